"""Alignment and uniformity: are the views of one example near, and all examples far apart?"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import (
    batches,
    examples,
    gathered,
    part_size,
    put,
    subset,
    Tree,
    unit_rows,
)

# (state, key, examples) -> features (n, d) of random views
View = Callable[[Tree, Array, Array], Array]


def alignment_uniformity(
    view: View, data: Any, n: int = 1000, batch_size: int = 250, seed: int = 0
) -> Evaluator:
    """`alignment` and `uniformity` of two views each of `n` examples, with the same keys each time.

    Wang and Isola, 2020, arXiv:2005.10242, eq. 5 and 6 (alpha 2, t 2), on features at length 1.
    Both are better lower, but one at the other's expense, and both are 0 at a collapse: neither is
    marked when it is worse than the untrained net's. InputError for fewer than two examples.
    """
    indices = subset(data, n, seed)
    if len(indices) < 2:
        raise InputError(
            f"Uniformity needs 2 test examples or more, not {len(indices)}: add some to the data."
        )
    run = gathered(view)

    def evaluate(state: Tree) -> Mapping[str, float]:
        found = []
        for start, count, x in batches(data, indices, batch_size, split=True):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), start))
            pair = [run(state, key, put(x, split=True)) for key in keys]
            found.append([np.asarray(z, np.float64)[:count] for z in pair])
        a, b = (np.concatenate(z) for z in zip(*found, strict=True))
        return {"alignment": alignment(a, b), "uniformity": uniformity(a)}

    def trace(state: Tree) -> None:
        x = examples(data, part_size(data, len(indices), batch_size))
        z = jax.eval_shape(run, state, jax.random.key(seed), x)
        if z.ndim != 2 or len(z) != len(x):
            raise InputError(f"A view must have features (n, d); {x.shape} gave {z.shape}.")

    return Evaluator(evaluate, settings={"n": n, "seed": seed}, trace=trace, queries=data)


def alignment(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance of rows of `a` and `b` (n, d) at length 1."""
    return float(((unit_rows(a) - unit_rows(b)) ** 2).sum(1).mean())


def uniformity(z: np.ndarray) -> float:
    """log of the mean of exp(-2 squared distance) over pairs of rows of `z` (n, d) at length 1."""
    z = unit_rows(z)
    square = np.maximum(2 - 2 * z @ z.T, 0)[np.triu_indices(len(z), 1)]
    return float(np.log(np.exp(-2 * square).mean()))
