"""Perplexity of a whole text under a model of what comes next: each token counted once, and not without its past."""

from collections.abc import Callable, Iterator, Mapping
import functools

from jax import Array
import numpy as np

from ssljax.data.token_feeds import Tokenized
from ssljax.errors import InputError
from ssljax.evals.features import gathered, put, round_up, Tree

Score = Callable[
    [Tree, Array], Array
]  # (state, windows (n, length + 1)) -> -log p of all but the first, (n, length)


def perplexity(
    score: Score, text: Tokenized, length: int, stride: int, batch_size: int = 64
) -> Callable[[Tree], Mapping[str, float]]:
    """The perplexity of `text.test` by windows of tokens, and what else `told` makes of it.

    `score(state, windows)` is given windows of `length` + 1 tokens that begin every `stride`, and of each only the last
    `stride` are counted, which are new: none has fewer than `length` - `stride` tokens in sight but those at the start.
    InputError unless 1 <= stride <= length, and for less than two tokens.
    """
    if not 1 <= stride <= length:
        raise InputError(
            f"Windows of {length} tokens can't begin every {stride}: the stride must be from 1 to the "
            "length."
        )
    run, tell = gathered(score), told(text)

    def evaluate(state: Tree) -> Mapping[str, float]:
        total = 0.0
        for rows, counted in windows(text.test, length, stride, round_up(batch_size)):
            total += np.asarray(run(state, put(rows, split=True)), np.float64)[counted].sum()
        return tell(total)

    return evaluate


def told(text: Tokenized) -> Callable[[float], dict[str, float]]:
    """The numbers that a sum of -log p, in nats, over all of `text.test` but the first makes.

    `perplexity` is exp of the mean, `nll`. `bits_per_character` is left out where the tokens don't tell the text
    without loss, and `unknown`, the percent of tokens that stand for what the tokenizer doesn't know, where it knows
    all. `unigram` is the floor: the perplexity under the frequencies in `text.train`, one added to each. InputError for
    less than two tokens, and for a sum that is not finite.
    """
    if len(text.test) < 2:
        raise InputError(
            f"The perplexity of {len(text.test)} tokens is not defined: 2 or more are needed."
        )
    unigram = functools.cache(lambda: float(np.exp(unigram_nll(text.test[1:], text.train))))

    def tell(total: float) -> dict[str, float]:
        if not np.isfinite(total):
            raise InputError("The text has a -log p that is not finite.")
        nll = float(total / (len(text.test) - 1))
        out = {"perplexity": float(np.exp(nll)), "nll": nll, "unigram": unigram()}
        if text.characters:
            out["bits_per_character"] = float(total / np.log(2) / text.characters)
        return out if text.unknown is None else {**out, "unknown": text.unknown}

    return tell


def windows(
    tokens: np.ndarray, length: int, stride: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of windows (b, length + 1) of `tokens` (n,), and which of their last `length` tokens count, (b, length).

    Each token of the text but the first counts in one window. What is beyond the text is 0 and counts nowhere.
    """
    n = len(tokens)
    starts = np.arange(
        0, max(n - 1 - length, 0) + stride, stride
    )  # The last reaches the end, or beyond.
    at = starts[:, None] + np.arange(length + 1)
    fresh = np.arange(length) >= length - stride
    counted = (at[:, 1:] < n) & (fresh | (starts[:, None] == 0))
    rows = np.where(at < n, tokens[np.minimum(at, n - 1)], 0).astype(np.int32)
    for i in range(0, len(rows), batch_size):
        short = batch_size - len(rows[i : i + batch_size])
        yield tuple(np.pad(x[i : i + batch_size], ((0, short), (0, 0))) for x in (rows, counted))


def unigram_nll(tokens: np.ndarray, train: np.ndarray) -> float:
    """The mean -log p in nats of `tokens` by their frequencies in `train`, one added to the count of each."""
    counts = np.bincount(train, minlength=tokens.max() + 1) + 1.0
    return float(-np.log(counts[tokens] / counts.sum()).mean())
