"""Collapse: how many directions do the features use?"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import Encode, extractor, subset, trace_features, Tree, unit_rows

COLLAPSED = 0.02  # feature_std, below which features are taken to be of one direction.


def collapse(encode: Encode, data: Any, n: int = 5000, seed: int = 0) -> Evaluator:
    """`rankme`, `feature_std` and the number of `dimensions` of the features of `n` images.

    The ceilings of `rankme` are `dimensions` and `n`; a full collapse gives 1 and a `feature_std`
    of 0. Neither has a better direction: a supervised net lowers both. A full collapse is named
    where the run ends.
    """
    extract, indices = extractor(encode), subset(data, n, seed)

    def evaluate(state: Tree) -> Mapping[str, float]:
        z = extract(state, data, indices)
        return {"rankme": rankme(z), "feature_std": feature_std(z), "dimensions": z.shape[1]}

    return Evaluator(
        evaluate,
        settings={"n": n, "seed": seed},
        trace=lambda state: trace_features(encode, state, data),
        encode=encode,
        queries=data,
        warning=full_collapse,
    )


def full_collapse(numbers: Mapping[str, float]) -> str:
    """A sentence where features hardly differ between images, by the numbers of `collapse`."""
    if numbers["feature_std"] > COLLAPSED:
        return ""
    return (
        f"The features have collapsed: they hardly differ between images (feature_std "
        f"{numbers['feature_std']:.2g}). Usual causes are a missing stop-gradient, predictor or "
        "normalisation, and a learning rate that is too high."
    )


def rankme(z: np.ndarray, eps: float = 1e-7) -> float:
    """exp of the entropy of the singular values of `z` (n, d).

    Garrido et al., 2023, arXiv:2210.02885, eq. 1. Not centred, as there: an offset that all rows
    share counts as a direction.
    """
    z = z.astype(np.float64)
    gram = z.T @ z if len(z) > z.shape[1] else z @ z.T  # An SVD of z would take many times longer.
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    p = sigma / max(sigma.sum(), np.finfo(float).tiny) + eps
    return float(np.exp(-np.sum(p * np.log(p))))


def feature_std(z: np.ndarray) -> float:
    """sqrt(d) times the mean standard deviation of a column of `z` (n, d), rows at length 1.

    SimSiam's measure: Chen and He, 2021, arXiv:2011.10566, sec. 4.1, where it isn't scaled. About 1
    for an isotropic Gaussian, 0 where all rows point the same way.
    """
    z = unit_rows(z)
    return float(z.std(axis=0, dtype=np.float64).mean() * np.sqrt(z.shape[1]))
