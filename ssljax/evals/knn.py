"""Nearest neighbours in feature space: does the encoder put images of a class together?"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax import signals
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import (
    check_shapes,
    Encode,
    extractor,
    gathered,
    put,
    raw_pixels,
    round_up,
    subset,
    trace_features,
    Tree,
    unit_rows,
)

FLOOR_BANK = 100_000  # Most training images that the floor on pixels is computed from.


def knn(
    encode: Encode,
    train: Any,
    test: Any,
    k: int = 20,
    temperature: float = 0.07,
    floor: bool = True,
) -> Evaluator:
    """Percent of `test` that is classified rightly by the `k` nearest images of `train`, by cosine.

    `accuracy` weighs votes by exp(cosine / temperature): Wu et al., 2018, arXiv:1805.01978, sec.
    3.4. `plain` counts votes, and among equals takes the class of the nearest. `raw_pixels` is the
    floor, unless `floor` is False: `accuracy` on pixels, shrunk to 32 a side, with at most 100,000
    images of `train`, computed once. InputError if `train` has fewer than `k` images, or images of
    another shape than `test`.
    """
    if not 1 <= k <= len(train):
        raise InputError(f"k={k} neighbours cannot be had from a bank of {len(train)} images.")
    check_shapes(train, test)
    extract = extractor(encode)

    def score(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
        sims, index = neighbours(bank, queries, min(k, len(bank)))
        weighted, plain = vote(sims, labels[index], temperature)
        return (
            100 * float(np.mean(weighted == test.labels)),
            100 * float(np.mean(plain == test.labels)),
        )

    @functools.cache
    def pixels() -> float:
        at = subset(train, FLOOR_BANK)
        bank, queries = raw_pixels(train, at, most=32), raw_pixels(test, most=32)
        return score(bank, train.labels[at], queries)[0]

    def evaluate(state: Tree) -> Mapping[str, float]:
        accuracy, plain = score(extract(state, train), train.labels, extract(state, test))
        return {"accuracy": accuracy, "plain": plain} | ({"raw_pixels": pixels()} if floor else {})

    def trace(state: Tree) -> None:
        trace_features(encode, state, train)
        trace_features(encode, state, test)

    return Evaluator(
        evaluate,
        better={"accuracy": "higher", "plain": "higher"},
        floors={"accuracy": "raw_pixels"} if floor else {},
        settings={"k": k, "temperature": temperature},
        trace=trace,
        encode=encode,
        bank=train,
        queries=test,
    )


def neighbours(
    bank: np.ndarray, queries: np.ndarray, k: int, tile: tuple[int, int] = (1024, 16384)
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows, (m, k), of the `k` nearest of `bank` (n, d) to `queries` (m, d).

    The nearest is first. No more than `tile` (queries, bank) cosines exist at a time.
    """
    n, m = len(bank), len(queries)
    q, b = round_up(min(tile[0], m)), min(tile[1], n)
    starts = range(0, m, q)
    tiles = [put(_rows(queries, start, q), split=True) for start in starts]
    best = [
        (put(np.full((q, k), -np.inf, np.float32)), put(np.zeros((q, k), np.int32))) for _ in starts
    ]
    for start in range(0, n, b):
        signals.check()
        block = put(_rows(bank, start, b))
        best = [
            _merge(*found, queries, block, start, n)
            for found, queries in zip(best, tiles, strict=True)
        ]
    sims, index = (
        np.concatenate([np.asarray(x) for x in xs])[:m] for xs in zip(*best, strict=True)
    )
    return sims, index


def vote(sims: np.ndarray, labels: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes (m,) elected by weight and by count by the neighbours' `labels` (m, k).

    The nearest neighbour is first, and a tie goes to the class of the nearer one.
    """
    weights = np.exp((sims - sims[:, :1]) / temperature, dtype=np.float64)  # <= 1: no overflow.

    def elect(weights: np.ndarray) -> np.ndarray:
        total = sum(weights[:, [j]] * (labels == labels[:, [j]]) for j in range(labels.shape[1]))
        return np.take_along_axis(labels, np.argmax(total, axis=1, keepdims=True), axis=1)[:, 0]

    return elect(weights), elect(np.ones_like(weights))


@gathered
def _merge(
    sims: Array, index: Array, queries: Array, block: Array, start: Array, n: Array
) -> tuple[Array, Array]:
    """The best of those found, (q, k), and of a block of the bank; rows from n on are padding."""
    rows = start + jnp.arange(len(block))
    new = jnp.where(rows < n, jnp.matmul(queries, block.T, precision="highest"), -jnp.inf)
    new, column = jax.lax.top_k(new, min(sims.shape[1], len(block)))
    sims = jnp.concatenate([sims, new], axis=1)
    index = jnp.concatenate([index, rows[column]], axis=1)
    sims, column = jax.lax.top_k(sims, sims.shape[1] - new.shape[1])
    return sims, jnp.take_along_axis(index, column, axis=1)


def _rows(z: np.ndarray, start: int, size: int) -> np.ndarray:
    """Rows `start` to `start + size` of `z` at length 1, then zeros where `z` ends."""
    z = z[start : start + size]
    z = unit_rows(z)
    return np.pad(z, ((0, size - len(z)), (0, 0)))
