"""Clustering: do the groups that k-means finds in the features match the classes?"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np

from ssljax import signals
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, extractor, raw_pixels, subset, trace_features, Tree


def clusters(
    encode: Encode,
    data: Any,
    k: int = 0,
    n: int = 10_000,
    starts: int = 10,
    seed: int = 0,
    floor: bool = True,
) -> Evaluator:
    """`accuracy`, `nmi` and `ari` of k-means on the features of `n` images of `data`.

    There are `k` centres, by default one for each class; the best of `starts` runs is taken by
    k-means' own measure, which sees no label. The floors, unless `floor` is False, are
    `pixels_accuracy`, `pixels_nmi` and `pixels_ari`: the same on pixels, shrunk to 32 a side,
    computed once. InputError for fewer images than centres.
    """
    k, indices, extract = k or data.num_classes, subset(data, n, seed), extractor(encode)
    if not 1 <= k <= len(indices):
        raise InputError(
            f"{len(indices)} images can't be put into {k} clusters: add some to the data."
        )
    labels = data.labels[indices]

    @functools.cache
    def pixels() -> Mapping[str, float]:
        found = agreement(labels, kmeans(raw_pixels(data, indices, most=32), k, starts, seed))
        return {f"pixels_{name}": x for name, x in found.items()}

    def evaluate(state: Tree) -> Mapping[str, float]:
        numbers = agreement(labels, kmeans(extract(state, data, indices), k, starts, seed))
        return {**numbers, **(pixels() if floor else {})}

    names = ("accuracy", "nmi", "ari")
    return Evaluator(
        evaluate,
        better={"accuracy": "higher", "nmi": "higher", "ari": "higher"},
        floors={name: f"pixels_{name}" for name in names} if floor else {},
        settings={"k": k, "n": n, "starts": starts, "seed": seed},
        trace=lambda state: trace_features(encode, state, data),
        encode=encode,
        queries=data,
    )


def agreement(labels: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How well clusters `found` (n,) match classes `labels` (n,), both integers from 0.

    `accuracy` is the percent that is right when each cluster stands for one class and no two for
    the same, in the best assignment (Kuhn, 1955: the Hungarian method). `nmi` is the mutual
    information over the mean of the entropies, and `ari` the Rand index corrected for chance; both
    are 1 at best, and 0 by chance or where all is one cluster.
    """
    from scipy.optimize import linear_sum_assignment
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
    """Cluster (n,) of each row of `z` (n, d): the best of `starts` runs of Lloyd's method.

    Starts are by k-means++ (Arthur and Vassilvitskii, 2007). A signal to the run ends it between
    two starts.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    rng, runs = np.random.RandomState(seed), []
    # One thread: sklearn's threads spin, which is slow where other programs use the processor.
    with threadpool_limits(1), warnings.catch_warnings():
        # Collapsed features have fewer distinct points than centres.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(starts):
            signals.check()
            # Its types are guessed from defaults, here n_init="auto".
            one = KMeans(k, n_init=1, random_state=rng)  # pyright: ignore[reportArgumentType]
            runs.append(one.fit(z))
    return min(runs, key=lambda run: run.inertia_).labels_
