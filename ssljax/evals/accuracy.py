"""Accuracy of a classifier: of one that is trained, or, by one that was, of images that are drawn."""

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
from ssljax.evals.feature_nets import FeatureNet
from ssljax.evals.features import Encode, put, Tree


def accuracy(logits: Encode, test: Any) -> Callable[[Tree], Mapping[str, float]]:
    """Percent of `test` named rightly by the largest of `logits(state, images)`, (n, classes).

    `cross_entropy` is theirs, in nats; `most_frequent` is the floor: the percent of the most frequent class. InputError
    if a label has no logit.
    """

    def measure(state: Tree, key: Array, images: Array, labels: Array) -> Mapping[str, Array]:
        z = _with_all_classes(logits(state, images), test)
        return {
            "accuracy": 100.0 * (z.argmax(1) == labels),
            "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(z, labels),
        }

    run, floor = (
        average(measure, test, len(test)),
        100 * float(np.bincount(test.labels).max() / len(test)),
    )
    return lambda state: {**run(state), "most_frequent": floor}


def recognised(
    versions: Callable[[Tree, Array], Mapping[str, Array]],
    net: FeatureNet,
    test: Any,
    n: int = 10_000,
) -> Callable[[Tree], Mapping[str, float]]:
    """Percent of `n` images of `test` that the classifier `net` names rightly after each of `versions(state, images)`.

    These take (n, H, W, C) uint8 and give {name: (n, H, W, C) in [0, 1]}, rounded here to 8 bits; the percents are
    called "accuracy" + name, and `accuracy_of_images` is that of the images themselves, found once. InputError if
    `net` names no classes, or not all of the set's.
    """
    if net.logits is None:
        raise InputError(
            f"{net.name} names no classes: give the folder of a run of experiments/supervised.py."
        )

    def right(params: Tree, x: Array, labels: Array) -> Array:
        return 100.0 * (
            _with_all_classes(net.logits(params, net.apply(params, x)), test).argmax(1) == labels
        )

    def measure(both: Tree, key: Array, images: Array, labels: Array) -> Mapping[str, Array]:
        found = versions(both["state"], images)
        named = {
            name: right(both["net"], augment.eight_bits(y), labels) for name, y in found.items()
        }
        return {
            f"accuracy{name}": jnp.where(jnp.isfinite(found[name]).all((1, 2, 3)), x, jnp.nan)
            for name, x in named.items()
        }  # Not a number is no image, whatever it is rounded to.

    params = functools.cache(lambda: jax.tree.map(put, net.params))
    run = average(measure, test, n)
    own = average(
        lambda params, key, x, labels: {"accuracy_of_images": right(params, x, labels)}, test, n
    )
    floor = functools.cache(lambda: own(params()))
    return lambda state: {**run({"state": state, "net": params()}), **floor()}


def _with_all_classes(z: Array, test: Any) -> Array:
    if not 0 <= test.labels.min() <= test.labels.max() < z.shape[1]:
        raise InputError(
            f"A label of the test set is not in [0, {z.shape[1]}): the training set lacks that class."
        )
    return z
