"""Modes of stacked images: how many of a data set's classes, one to each channel, does a generator bring together?"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.evals.feature_nets import FeatureNet
from ssljax.evals.features import gathered, put, Tree


def stacked_modes(
    draw: Callable[[Tree, Array, int], Array],
    labels: FeatureNet,
    test: Any,
    n: int = 26_000,
    channels: int = 3,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, float]]:
    """`modes_NAME` and `kl_NAME` of `n` images `draw(state, key, n)`, (n, H, W, channels) in [0, 1].

    `labels` is a classifier of images (n, H, W, 1) uint8, which names the numbers. A mode is a class for each channel, so
    there are classes^channels. `..._floor` are those of as many random stacks of `test`, labelled in the same way: even
    these miss a few modes, and a KL of about (modes - 1) / 2n is only the chance of so many draws. `named_rightly_NAME` is
    the percent of `test` that the labels are right of. As Srivastava et al., 2017, arXiv:1705.07761, and Lin et al., 2017,
    arXiv:1712.04086, section 4.2, measure. InputError if drawn images are not finite or of other channels.
    """
    size, classes = labels.batch_size, test.num_classes
    name = lambda params, x: labels.logits(params, labels.apply(params, x)).argmax(-1)

    @gathered
    def drawn(state, params, key):
        x = draw(state, key, size)
        if x.shape[-1] != channels:
            raise InputError(f"Stacks of {channels} images are needed, and {x.shape} were drawn.")
        named = jnp.stack(
            [name(params, augment.eight_bits(x[..., i : i + 1])) for i in range(channels)], 1
        )
        return named, jnp.isfinite(x).all()

    real, params = gathered(name), functools.cache(lambda: jax.tree.map(put, labels.params))

    @functools.cache
    def floor() -> tuple[int, float, float]:
        at = np.resize(np.arange(len(test)), -(-len(test) // size) * size).reshape(-1, size)
        named = np.concatenate(
            [np.asarray(real(params(), put(test.read(i)["image"]))) for i in at]
        )[: len(test)]
        stacks = named[np.random.default_rng(seed).integers(len(test), size=(n, channels))]
        return *reached(stacks, classes), 100 * float(np.mean(named == test.labels))

    def evaluate(state: Tree) -> Mapping[str, float]:
        keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(-(-n // size))]
        found = [drawn(state, params(), key) for key in keys]
        if not all(bool(finite) for _, finite in found):
            raise InputError("Drawn images are not finite.")
        count, kl = reached(np.concatenate([np.asarray(named) for named, _ in found])[:n], classes)
        real_count, real_kl, right = floor()
        return {
            f"modes_{labels.name}": count,
            f"kl_{labels.name}": kl,
            f"modes_{labels.name}_floor": real_count,
            f"kl_{labels.name}_floor": real_kl,
            f"named_rightly_{labels.name}": right,
        }

    return evaluate


def reached(named: np.ndarray, classes: int) -> tuple[int, float]:
    """How many of the classes^m combinations are among `named` (n, m), and the KL divergence, in nats, of their
    frequencies from all combinations being equally likely. InputError if a class is not in [0, classes)."""
    if not (named.min() >= 0 and named.max() < classes):
        raise InputError(f"Classes must be in [0, {classes}), not {named.min()} to {named.max()}.")
    count = np.unique(named, axis=0, return_counts=True)[1]
    p = count / count.sum()
    return len(count), float(np.sum(p * np.log(p * float(classes) ** named.shape[1])))
