"""Anomalies: does a score that was learned on one class tell images of the others?"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from jax import Array
import numpy as np

from ssljax.data.sources import rows, Source
from ssljax.errors import InputError
from ssljax.evals.features import extractor, raw_pixels, subset, Tree


def anomaly(
    score: Callable[[Tree, Array], Array],
    normal: Any,
    test: Any,
    normal_class: int,
    k: int = 5,
    n: int = 10_000,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, float]]:
    """`auroc`: how often, in percent, an image of another class scores above one of `normal_class`.

    Both are of `n` images of `test`. `score(state, images)`, (n, H, W, C) uint8 to (n,), should be high for what is
    strange; 50 is chance. `pixels_knn` is the floor: the `auroc` of the mean distance to the `k` nearest of `n` images
    of `normal`, the training set, on pixels, found once. InputError where `test` holds only normal images or none, or `normal` fewer than k.
    """
    indices = subset(test, n, seed)
    strange = test.labels[indices] != normal_class
    if strange.all() or not strange.any():
        raise InputError(
            f"The test set must hold images of class {normal_class} and of others, to tell them apart."
        )
    if len(normal) < k:
        raise InputError(f"{len(normal)} normal images are too few for {k} neighbours.")
    extract = extractor(_column(score))

    @functools.cache
    def pixels() -> float:
        bank, queries = raw_pixels(normal, subset(normal, n, seed)), raw_pixels(test, indices)
        return auroc(knn_distance(bank, queries, k), strange)

    return lambda state: {
        "auroc": auroc(extract(state, test, indices)[:, 0], strange),
        "pixels_knn": pixels(),
    }


def of_class(data: Source, which: int) -> Source:
    """The images of one class of a set; InputError where there are none."""
    at = np.flatnonzero(data.labels == which)
    if not len(at):
        raise InputError(
            f"The set has no images of class {which}; its classes are 0 to {data.num_classes - 1}."
        )
    return rows(data, at)


def auroc(score: np.ndarray, strange: np.ndarray) -> float:
    """Percent of pairs of a strange and a normal image in which the strange one scores higher, ties for half."""
    from sklearn.metrics import roc_auc_score

    return 100 * float(roc_auc_score(strange, score))


def knn_distance(bank: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Mean Euclidean distance (m,) of `queries` (m, d) to the `k` nearest of `bank` (n, d)."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(bank).kneighbors(queries)[0].mean(1)


@functools.lru_cache(maxsize=8)
def _column(score: Callable[[Tree, Array], Array]) -> Callable[[Tree, Array], Array]:
    return lambda state, images: score(state, images)[:, None]
