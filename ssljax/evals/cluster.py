"""Clustering: do the groups that k-means finds in the features match the classes?"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from ssljax.errors import InputError
from ssljax.evals.features import Encode, extractor, raw_pixels, subset, Tree


def clusters(
    encode: Encode,
    data: Any,
    k: int = 0,
    n: int = 10_000,
    starts: int = 10,
    seed: int = 0,
    floor: bool = True,
) -> Callable[[Tree], Mapping[str, float]]:
    """`accuracy`, `nmi` and `ari` of k-means with `k` centres (0: one a class) on the features of `n` images of `data`.

    The best of `starts` runs by k-means' own measure, which sees no label. `pixels_accuracy`, `pixels_nmi` and
    `pixels_ari` are the same on pixels, found once, unless `floor` is False. InputError for fewer images than centres.
    """
    k, indices, extract = k or data.num_classes, subset(data, n, seed), extractor(encode)
    if not 1 <= k <= len(indices):
        raise InputError(f"{len(indices)} images can't be put into {k} clusters.")
    labels = data.labels[indices]

    @functools.cache
    def pixels() -> Mapping[str, float]:
        return agreement(labels, kmeans(raw_pixels(data, indices), k, starts, seed))

    def evaluate(state: Tree) -> Mapping[str, float]:
        numbers = agreement(labels, kmeans(extract(state, data, indices), k, starts, seed))
        return {
            **numbers,
            **({f"pixels_{name}": x for name, x in pixels().items()} if floor else {}),
        }

    return evaluate


def agreement(labels: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How well clusters `found` (n,) match classes `labels` (n,), both integers from 0 on, whatever their names.

    `accuracy` is the percent that is right when each cluster stands for one class and no two for the same, in the best
    of all ways (Kuhn, 1955: the Hungarian method); `nmi` the mutual information over the mean of the entropies, and
    `ari` the Rand index less what chance gives, both 1 at best and 0 by chance or where all is one cluster.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = np.zeros((found.max() + 1, labels.max() + 1), int)
    np.add.at(counts, (found, labels), 1)
    right = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "accuracy": 100 * float(right / len(labels)),
        "nmi": float(normalized_mutual_info_score(labels, found)),
        "ari": float(adjusted_rand_score(labels, found)),
    }


def kmeans(z: np.ndarray, k: int, starts: int = 10, seed: int = 0) -> np.ndarray:
    """The cluster (n,) of each row of `z` (n, d), by Lloyd's method from k-means++ (Arthur and Vassilvitskii, 2007)."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with (
        threadpool_limits(1),
        warnings.catch_warnings(),
    ):  # Its threads spin where others use the processor too.
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # Collapsed features have fewer points than centres.
        return KMeans(k, n_init=starts, random_state=seed).fit_predict(z)
