"""Perplexity of a whole text under a model of what comes next: each token counted once, and not without its past."""

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any

from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.features import Tree, gathered, put, round_up

Score = Callable[[Tree, Array], Array]  # (state, windows (n, length + 1)) -> -log p of all but the first, (n, length)


def perplexity(score: Score, tokens: np.ndarray, length: int, stride: int, characters: int, train: np.ndarray,
               batch_size: int = 64) -> Callable[[Tree], Mapping[str, float]]:
    """`perplexity`, exp of the mean `nll` in nats, over all of `tokens` (n,) but the first; `bits_per_character` too.

    The text has that many `characters`. `score(state, windows)` is given windows of `length` + 1 tokens that begin
    every `stride`, and of each only the last `stride` are counted, which are new: none has fewer than
    `length` - `stride` tokens in sight but those at the start. `unigram` is the floor: the perplexity under the tokens'
    frequencies in `train`, one added to each. InputError unless 1 <= stride <= length, and for less than two tokens.
    """
    if not 1 <= stride <= length or len(tokens) < 2:
        raise InputError(f"Windows of {length} tokens can't begin every {stride} in {len(tokens)} tokens: the stride "
                         "must be from 1 to the length, and the text at least 2 tokens.")
    run = gathered(score)

    def evaluate(state: Tree) -> Mapping[str, float]:
        total, count = 0.0, 0
        for rows, counted in windows(tokens, length, stride, round_up(batch_size)):
            nll = np.asarray(run(state, put(rows, split=True)), np.float64)
            total, count = total + nll[counted].sum(), count + counted.sum()
        return {**told(total, count, characters), "unigram": unigram()}

    @functools.cache
    def unigram() -> float:
        return float(np.exp(unigram_nll(tokens[1:], train)))

    return evaluate


def told(total: float, count: int, characters: int) -> dict[str, float]:
    """The numbers that a sum of -log p over `count` tokens makes; InputError where it is not finite."""
    if not np.isfinite(total):
        raise InputError("The text has a -log p that is not finite.")
    return {"perplexity": float(np.exp(total / count)), "nll": float(total / count),
            "bits_per_character": float(total / np.log(2) / characters)}


def windows(tokens: np.ndarray, length: int, stride: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of windows (b, length + 1) of `tokens` (n,), and which of their last `length` tokens count, (b, length).

    Each token of the text but the first counts in one window. What is beyond the text is 0 and counts nowhere.
    """
    n = len(tokens)
    starts = np.arange(0, max(n - 1 - length, 0) + stride, stride)  # The last reaches the end, or beyond.
    at = starts[:, None] + np.arange(length + 1)
    fresh = np.arange(length) >= length - stride
    counted = (at[:, 1:] < n) & (fresh | (starts[:, None] == 0))
    rows = np.where(at < n, tokens[np.minimum(at, n - 1)], 0).astype(np.int32)
    for i in range(0, len(rows), batch_size):
        short = batch_size - len(rows[i:i + batch_size])
        yield tuple(np.pad(x[i:i + batch_size], ((0, short), (0, 0))) for x in (rows, counted))


def unigram_nll(tokens: np.ndarray, train: np.ndarray) -> float:
    """The mean -log p in nats of `tokens` by their frequencies in `train`, one added to the count of each."""
    counts = np.bincount(train, minlength=tokens.max() + 1) + 1.0
    return float(-np.log(counts[tokens] / counts.sum()).mean())
