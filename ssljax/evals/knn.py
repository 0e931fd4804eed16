"""Nearest neighbours in feature space: does the encoder put images of a class together?"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.features import Encode, extractor, gathered, put, raw_pixels, round_up, Tree


def knn(
    encode: Encode,
    train: Any,
    test: Any,
    k: int = 20,
    temperature: float = 0.07,
    floor: bool = True,
) -> Callable[[Tree], Mapping[str, float]]:
    """Percent of `test` named rightly by the `k` nearest images of `train`, compared by cosine.

    `accuracy` weighs votes by exp(cosine / temperature): Wu et al., 2018, arXiv:1805.01978, sec. 3.4; `plain`
    counts them, and among equals takes the class of the nearest; `raw_pixels` is `accuracy` on pixels, 32 a
    side at most, found once, unless `floor` is False. InputError if `train` has fewer than `k` images.
    """
    if not 1 <= k <= len(train):
        raise InputError(f"k={k} neighbours cannot be had from a bank of {len(train)} images.")
    extract = extractor(encode)

    def score(bank: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
        sims, index = neighbours(bank, queries, k)
        weighted, plain = vote(sims, train.labels[index], temperature)
        return 100 * float(np.mean(weighted == test.labels)), 100 * float(
            np.mean(plain == test.labels)
        )

    @functools.cache
    def pixels() -> float:
        return score(*(raw_pixels(data, most=32) for data in (train, test)))[0]

    def evaluate(state: Tree) -> Mapping[str, float]:
        accuracy, plain = score(extract(state, train), extract(state, test))
        return {"accuracy": accuracy, "plain": plain} | ({"raw_pixels": pixels()} if floor else {})

    return evaluate


def neighbours(
    bank: np.ndarray, queries: np.ndarray, k: int, tile: tuple[int, int] = (1024, 16384)
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows, (m, k), of the `k` nearest of `bank` (n, d) to `queries` (m, d), nearest first.

    No more than `tile` (queries, bank) cosines exist at a time.
    """
    n, m = len(bank), len(queries)
    q, b = round_up(min(tile[0], m)), min(tile[1], n)
    starts = range(0, m, q)
    tiles = [put(_rows(queries, start, q), split=True) for start in starts]
    best = [
        (put(np.full((q, k), -np.inf, np.float32)), put(np.zeros((q, k), np.int32))) for _ in starts
    ]
    for start in range(0, n, b):
        block = put(_rows(bank, start, b))
        best = [_merge(*found, queries, block, start, n) for found, queries in zip(best, tiles)]
    sims, index = (np.concatenate([np.asarray(x) for x in xs])[:m] for xs in zip(*best))
    return sims, index


def vote(sims: np.ndarray, labels: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The classes (m,) that neighbours' `labels` (m, k), nearest first, elect by weight and by count.

    A tie goes to the class of the nearer neighbour.
    """
    weights = np.exp(
        (sims - sims[:, :1]) / temperature, dtype=np.float64
    )  # At most 1: no overflow.

    def elect(weights: np.ndarray) -> np.ndarray:
        total = sum(weights[:, [j]] * (labels == labels[:, [j]]) for j in range(labels.shape[1]))
        return np.take_along_axis(labels, np.argmax(total, axis=1, keepdims=True), axis=1)[:, 0]

    return elect(weights), elect(np.ones_like(weights))


@gathered
def _merge(
    sims: Array,
    index: Array,
    queries: Array,
    block: Array,
    start: Array,
    n: Array,
) -> tuple[Array, Array]:
    """The best of those found, (q, k), and of the bank's rows from `start` on, padding from `n` on."""
    rows = start + jnp.arange(len(block))
    new = jnp.where(rows < n, jnp.matmul(queries, block.T, precision="highest"), -jnp.inf)
    new, column = jax.lax.top_k(new, min(sims.shape[1], len(block)))
    sims = jnp.concatenate([sims, new], axis=1)
    index = jnp.concatenate([index, rows[column]], axis=1)
    sims, column = jax.lax.top_k(sims, sims.shape[1] - new.shape[1])
    return sims, jnp.take_along_axis(index, column, axis=1)


def _rows(z: np.ndarray, start: int, size: int) -> np.ndarray:
    """Rows `start` to `start + size` of `z` at length 1, and zeros where there are none."""
    z = z[start : start + size]
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return np.pad(z, ((0, size - len(z)), (0, 0)))
