"""Alignment and uniformity: are the views of one example near, and are all examples spread over the sphere?"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
import numpy as np

from ssljax.evals.features import batches, gathered, put, subset, Tree

View = Callable[
    [Tree, Array, Array], Array
]  # (state, key, examples) -> features (n, d) of random views


def alignment_uniformity(
    view: View, data: Any, n: int = 1000, batch_size: int = 250, seed: int = 0
) -> Callable[[Tree], Mapping[str, float]]:
    """`alignment` and `uniformity` of two views each of `n` examples of `data`, drawn with the same keys each time.

    Wang and Isola, 2020, arXiv:2005.10242, eq. 5 and 6 (alpha 2, t 2), on features at length 1: the less the better; at
    a collapse both are 0.
    """
    indices = subset(data, n, seed)
    run = gathered(view)

    def evaluate(state: Tree) -> Mapping[str, float]:
        found = []
        for start, count, examples in batches(data, indices, batch_size):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), start))
            found.append(
                [
                    np.asarray(run(state, key, put(examples, split=True)), np.float64)[:count]
                    for key in keys
                ]
            )
        a, b = (np.concatenate(z) for z in zip(*found))
        return {"alignment": alignment(a, b), "uniformity": uniformity(a)}

    return evaluate


def alignment(a: np.ndarray, b: np.ndarray) -> float:
    """The mean squared distance of rows of `a` and `b` (n, d) at length 1."""
    return float(((_unit(a) - _unit(b)) ** 2).sum(1).mean())


def uniformity(z: np.ndarray) -> float:
    """log of the mean of exp(-2 squared distance) over pairs of different rows of `z` (n, d) at length 1."""
    z = _unit(z)
    square = np.maximum(2 - 2 * z @ z.T, 0)[np.triu_indices(len(z), 1)]
    return float(np.log(np.exp(-2 * square).mean()))


def _unit(z: np.ndarray) -> np.ndarray:
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
