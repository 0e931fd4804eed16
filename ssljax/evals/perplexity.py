"""Perplexity of a text under an autoregressive model, by windows that leave each token a past."""

from collections.abc import Callable, Iterator, Mapping
import functools

import jax
from jax import Array
import numpy as np

from ssljax import signals
from ssljax.data.token_feeds import Tokenized
from ssljax.errors import InputError
from ssljax.evals.evaluator import Direction, Evaluator
from ssljax.evals.features import gathered, put, round_up, Tree

# (state, windows (n, length + 1)) -> -log p of all tokens but the first, (n, length)
Score = Callable[[Tree, Array], Array]

# For evaluators that return `perplexity_numbers`.
BETTER: Mapping[str, Direction] = {
    "perplexity": "lower",
    "nll": "lower",
    "bits_per_character": "lower",
}
FLOORS = {"perplexity": "unigram"}


def perplexity(
    score: Score, text: Tokenized, length: int, stride: int, batch_size: int = 64
) -> Evaluator:
    """The numbers of `perplexity_numbers` for `text.test`, read in windows of tokens.

    `score(state, windows)` is given windows of `length` + 1 tokens that begin every `stride`. Only
    the last `stride` tokens of each are counted, which are new, so that each but those at the start
    has `length` - `stride` tokens before it at least. InputError unless 1 <= stride <= length, and
    for less than two tokens.
    """
    if not 1 <= stride <= length:
        raise InputError(
            f"Windows of {length} tokens can't begin every {stride}: the stride must be from 1 to "
            "the length."
        )
    numbers = perplexity_numbers(text)

    @gathered
    def run(state, rows):
        nats = score(state, rows)
        if nats.shape != (len(rows), length):
            raise InputError(
                f"score must return -log p of all tokens but the first, ({len(rows)}, {length}), "
                f"not {nats.shape}."
            )
        return nats

    def evaluate(state: Tree) -> Mapping[str, float]:
        total = 0.0
        for rows, counted in windows(text.test, length, stride, round_up(batch_size)):
            signals.check()
            total += np.asarray(run(state, put(rows, split=True)), np.float64)[counted].sum()
        return numbers(total)

    def trace(state: Tree) -> None:
        rows = jax.ShapeDtypeStruct((round_up(batch_size), length + 1), np.int32)
        jax.eval_shape(run, state, rows)

    return Evaluator(
        evaluate,
        better=BETTER,
        floors=FLOORS,
        settings={"length": length, "stride": stride},
        trace=trace,
        queries=text,
    )


def perplexity_numbers(text: Tokenized) -> Callable[[float], dict[str, float]]:
    """Numbers of a sum of -log p, in nats, over all tokens of `text.test` but the first.

    `perplexity` is exp of the mean, `nll`. `bits_per_character` is left out where the text can't be
    recovered from its tokens, and `unknown`, the percent of unknown tokens, where the tokenizer has
    no such token. `unigram` is the floor: the perplexity under the frequencies in `text.train`
    (`text.counts`), one added to each count. InputError for less than two tokens, and for a sum
    that is not finite.
    """
    if len(text.test) < 2:
        raise InputError(
            f"The perplexity of {len(text.test)} tokens is not defined: 2 or more are needed."
        )

    @functools.cache
    def unigram() -> float:
        counts = np.bincount(text.train) if text.counts is None else text.counts
        return float(np.exp(unigram_nll(text.test[1:], counts)))

    def numbers(total: float) -> dict[str, float]:
        if not np.isfinite(total):
            raise InputError("The text has a -log p that is not finite.")
        nll = float(total / (len(text.test) - 1))
        out = {"perplexity": float(np.exp(nll)), "nll": nll, "unigram": unigram()}
        if text.characters:
            out["bits_per_character"] = float(total / np.log(2) / text.characters)
        return out if text.unknown is None else {**out, "unknown": text.unknown}

    return numbers


def windows(
    tokens: np.ndarray, length: int, stride: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of windows (b, length + 1) of `tokens` (n,), and of which tokens count, (b, length).

    Each token of the text but the first counts in one window. What is beyond the text is 0 and
    counts nowhere.
    """
    n = len(tokens)
    # The last window reaches the end, or beyond.
    starts = np.arange(0, max(n - 1 - length, 0) + stride, stride)
    fresh = np.arange(length) >= length - stride
    for i in range(0, len(starts), batch_size):
        start = starts[i : i + batch_size, None]
        at = start + np.arange(length + 1)
        counted = (at[:, 1:] < n) & (fresh | (start == 0))
        rows = np.where(at < n, tokens[np.minimum(at, n - 1)], 0).astype(np.int32)
        pad = ((0, batch_size - len(rows)), (0, 0))
        yield np.pad(rows, pad), np.pad(counted, pad)


def unigram_nll(tokens: np.ndarray, counts: np.ndarray) -> float:
    """Mean -log p in nats of `tokens` by the `counts` of each, one added to each count."""
    counts = np.trim_zeros(counts, "b")
    counts = np.pad(counts, (0, max(0, tokens.max() + 1 - len(counts)))) + 1.0
    return float(-np.log(counts[tokens] / counts.sum()).mean())
