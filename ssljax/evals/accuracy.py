"""Accuracy of a classifier."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax

from ssljax.errors import InputError
from ssljax.evals.features import Encode, Tree, extractor


def accuracy(logits: Encode, test: Any) -> Callable[[Tree], Mapping[str, float]]:
    """Percent of `test` named rightly by the largest of `logits(state, images)`, (n, classes).

    `cross_entropy` is theirs, in nats; `most_frequent` is the floor: the percent of the most frequent class. InputError
    if a label has no logit.
    """
    extract = extractor(logits)

    def evaluate(state: Tree) -> Mapping[str, float]:
        z = extract(state, test)
        if not 0 <= test.labels.min() <= test.labels.max() < z.shape[1]:
            raise InputError(f"A label of the test set is not in [0, {z.shape[1]}): the training set lacks that class.")
        nll = -log_softmax(z.astype(np.float64), axis=1)[np.arange(len(z)), test.labels]
        return {"accuracy": 100 * float(np.mean(z.argmax(1) == test.labels)), "cross_entropy": float(nll.mean()),
                "most_frequent": 100 * float(np.bincount(test.labels).max() / len(test))}

    return evaluate
