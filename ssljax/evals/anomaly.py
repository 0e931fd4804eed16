"""Anomalies: does a score that was learned on one class tell images of other classes apart?"""

from collections.abc import Callable
import functools
from typing import Any

from jax import Array
import numpy as np

from ssljax.data.sources import select, Source
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import (
    check_shapes,
    extractor,
    raw_pixels,
    subset,
    trace_features,
    Tree,
)


def anomaly_auroc(
    score: Callable[[Tree, Array], Array],
    normal: Any,
    test: Any,
    normal_class: int,
    k: int = 5,
    n: int = 10_000,
    seed: int = 0,
) -> Evaluator:
    """`auroc`: percent of pairs in which an image of another class scores above a normal one.

    Measured on `n` images of `test`; those of `normal_class` are normal. `score(state, images)`,
    (n, H, W, C) uint8 to (n,), should be high for anomalies; 50 is chance. `pixels_knn` is the
    floor: the `auroc` of the mean distance to the `k` nearest of `n` images of `normal`, the
    training set, on pixels, shrunk to 32 a side, computed once. InputError where `test` holds only
    normal images or none, or `normal` fewer than k images or images of another shape.
    """
    indices = subset(test, n, seed)
    strange = test.labels[indices] != normal_class
    if strange.all() or not strange.any():
        raise InputError(
            f"The test set must hold images of class {normal_class} and of other classes: add some "
            "of the kind that it lacks."
        )
    if len(normal) < k:
        raise InputError(
            f"{len(normal)} normal images are too few for {k} neighbours: add some to the data."
        )
    check_shapes(normal, test)
    column = _column(score)
    extract = extractor(column)

    @functools.cache
    def pixels() -> float:
        bank = raw_pixels(normal, subset(normal, n, seed), most=32)
        return auroc(knn_distance(bank, raw_pixels(test, indices, most=32), k), strange)

    return Evaluator(
        lambda state: {
            "auroc": auroc(extract(state, test, indices)[:, 0], strange),
            "pixels_knn": pixels(),
        },
        better={"auroc": "higher"},
        floors={"auroc": "pixels_knn"},
        settings={"normal_class": normal_class, "k": k, "n": n, "seed": seed},
        trace=lambda state: trace_features(column, state, test),
        bank=normal,
        queries=test,
    )


def of_class(data: Source, which: int) -> Source:
    """Images of one class of a set; InputError where there are none."""
    at = np.flatnonzero(data.labels == which)
    if not len(at):
        raise InputError(
            f"The set has no images of class {which}; its classes are 0 to {data.num_classes - 1}."
        )
    return select(data, at)


def auroc(score: np.ndarray, strange: np.ndarray) -> float:
    """Percent of pairs in which the strange example scores higher than the normal one.

    Ties count for half. InputError where all are strange, or none.
    """
    from sklearn.metrics import roc_auc_score

    if strange.all() or not strange.any():
        raise InputError("An AUROC needs examples of both kinds.")
    return 100 * float(roc_auc_score(strange, score))


def knn_distance(bank: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Mean Euclidean distance (m,) of `queries` (m, d) to the `k` nearest of `bank` (n, d)."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k).fit(bank).kneighbors(queries)[0].mean(1)


@functools.lru_cache(maxsize=8)
def _column(score: Callable[[Tree, Array], Array]) -> Callable[[Tree, Array], Array]:
    return lambda state, images: score(state, images)[:, None]
