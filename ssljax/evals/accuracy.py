"""Accuracy of a classifier that is trained, or of a trained one on images that a net makes."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.evals.average import average
from ssljax.evals.evaluator import Direction, Evaluator, trace_evaluator
from ssljax.evals.feature_nets import FeatureNet
from ssljax.evals.features import Encode, put, Tree


def accuracy(logits: Encode, test: Any) -> Evaluator:
    """Percent of `test` whose class has the largest of `logits(state, images)`, (n, classes).

    `cross_entropy` is that of the logits, in nats. `most_frequent` is the floor: the percent of the
    most frequent class. InputError if a label has no logit.
    """

    def measure(state: Tree, key: Array, images: Array, labels: Array) -> Mapping[str, Array]:
        z = _with_all_classes(logits(state, images), test)
        return {
            "accuracy": 100.0 * (z.argmax(1) == labels),
            "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(z, labels),
        }

    if not len(test):
        raise InputError("A set to evaluate on is empty: add examples to the data.")
    run = average(measure, test, len(test))
    floor = 100 * float(np.bincount(test.labels).max() / len(test))
    return Evaluator(
        lambda state: {**run(state), "most_frequent": floor},
        better={"accuracy": "higher", "cross_entropy": "lower"},
        floors={"accuracy": "most_frequent"},
        trace=run.trace,
        queries=test,
    )


def accuracy_of_versions(
    versions: Callable[[Tree, Array], Mapping[str, Array]],
    net: FeatureNet,
    test: Any,
    n: int = 10_000,
    better: Mapping[str, Direction] | None = None,
    floors: Mapping[str, str] | None = None,
) -> Evaluator:
    """Percent of `n` images of `test` that `net` classifies rightly in each of their versions.

    `versions(state, images)` takes (n, H, W, C) uint8 and gives {name: (n, H, W, C) in [0, 1]},
    rounded here to 8 bits. The percents are called "accuracy" + name; `accuracy_of_images` is that
    of the images themselves, computed once. `better` and `floors` are those of the `Evaluator`.
    InputError if `net` is no classifier, or lacks classes of the set.
    """
    classify = net.classifier()

    def right(params: Tree, x: Array, labels: Array) -> Array:
        z = _with_all_classes(classify(params, x), test)
        return 100.0 * (z.argmax(1) == labels)

    def measure(both: Tree, key: Array, images: Array, labels: Array) -> Mapping[str, Array]:
        found = {}
        for name, y in versions(both["state"], images).items():
            percent = right(both["net"], augment.eight_bits(y), labels)
            # NaN would be rounded to some image.
            found[f"accuracy{name}"] = jnp.where(jnp.isfinite(y).all((1, 2, 3)), percent, jnp.nan)
        return found

    def measure_images(params: Tree, key: Array, x: Array, labels: Array) -> Mapping[str, Array]:
        return {"accuracy_of_images": right(params, x, labels)}

    params = functools.cache(lambda: jax.tree.map(put, net.params))
    run, own = average(measure, test, n), average(measure_images, test, n)
    of_images = functools.cache(lambda: own(params()))

    def evaluate(state: Tree) -> Mapping[str, float]:
        found = run({"state": state, "net": params()})
        bad = [name for name, x in found.items() if not np.isfinite(x)]
        if bad:
            raise InputError(f"Images to classify are not finite: {', '.join(bad)}.")
        return {**found, **of_images()}

    return Evaluator(
        evaluate,
        better=better or {},
        floors=floors or {},
        settings={"n": n, "net": net.name},
        trace=lambda state: trace_evaluator(run, {"state": state, "net": net.params}),
        queries=test,
    )


def _with_all_classes(z: Array, test: Any) -> Array:
    if z.ndim != 2:
        raise InputError(f"Logits must be of shape (n, classes), not {z.shape}.")
    if not 0 <= test.labels.min() <= test.labels.max() < z.shape[1]:
        raise InputError(
            f"A label of the test set is not in [0, {z.shape[1]}): the training set lacks that "
            "class."
        )
    return z
