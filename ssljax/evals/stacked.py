"""Modes of stacked images: how many combinations of classes, one per channel, are generated?"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax import signals
from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.feature_nets import FeatureNet
from ssljax.evals.features import batches, gathered, put, Tree


def stacked_modes(
    draw: Callable[[Tree, Array, int], Array],
    labels: FeatureNet,
    test: Any,
    n: int = 26_000,
    channels: int = 3,
    seed: int = 0,
) -> Evaluator:
    """`modes_NAME` and `kl_NAME` of `n` images `draw(state, key, n)`, (n, H, W, channels).

    `labels` is a classifier of images (n, H, W, 1) uint8, whose name is NAME; images are in [0, 1].
    A mode is a class for each channel, so there are classes^channels. `..._floor` is the same for
    as many random stacks of `test`, labelled in the same way: even they miss a few modes, and a KL
    of about (modes - 1) / 2n is only the chance of so many draws. `labelled_rightly_NAME` is the
    percent of `test` that the classifier labels rightly. As in Srivastava et al., 2017,
    arXiv:1705.07761, and Lin et al., 2017, arXiv:1712.04086, section 4.2. InputError if `labels`
    is no classifier, and if drawn images are not finite or have other channels.
    """
    size, classes, classify = labels.batch_size, test.num_classes, labels.classifier()

    def label(params, x):
        return classify(params, x).argmax(-1)

    @gathered
    def drawn(state, params, key):
        x = draw(state, key, size)
        if x.ndim != 4 or x.shape[-1] != channels:
            raise InputError(f"Stacks of {channels} images are needed, and {x.shape} were drawn.")
        each = [label(params, augment.eight_bits(x[..., i : i + 1])) for i in range(channels)]
        return jnp.stack(each, 1), jnp.isfinite(x).all()

    real, params = gathered(label), functools.cache(lambda: jax.tree.map(put, labels.params))

    @functools.cache
    def floor() -> tuple[int, float, float]:
        parts = batches(test, np.arange(len(test)), size)
        found = np.concatenate([np.asarray(real(params(), put(x)))[:n] for _, n, x in parts])
        stacks = found[np.random.default_rng(seed).integers(len(test), size=(n, channels))]
        return *reached(stacks, classes), 100 * float(np.mean(found == test.labels))

    def evaluate(state: Tree) -> Mapping[str, float]:
        found = []
        for i in range(-(-n // size)):
            signals.check()
            found.append(drawn(state, params(), jax.random.fold_in(jax.random.key(seed), i)))
        if not all(bool(finite) for _, finite in found):
            raise InputError("Drawn images are not finite.")
        stacks = np.concatenate([np.asarray(stack) for stack, _ in found])[:n]
        count, kl = reached(stacks, classes)
        real_count, real_kl, right = floor()
        return {
            f"modes_{labels.name}": count,
            f"kl_{labels.name}": kl,
            f"modes_{labels.name}_floor": real_count,
            f"kl_{labels.name}_floor": real_kl,
            f"labelled_rightly_{labels.name}": right,
        }

    return Evaluator(
        evaluate,
        better={f"modes_{labels.name}": "higher", f"kl_{labels.name}": "lower"},
        real={f"{what}_{labels.name}": f"{what}_{labels.name}_floor" for what in ("modes", "kl")},
        settings={"n": n, "channels": channels, "seed": seed},
        trace=lambda state: jax.eval_shape(drawn, state, labels.params, jax.random.key(seed)),
        queries=test,
    )


def reached(labels: np.ndarray, classes: int) -> tuple[int, float]:
    """Number of the classes^m combinations among `labels` (n, m), and a KL divergence in nats.

    The divergence is that of their frequencies from all combinations being equally likely.
    InputError if a class is not in [0, classes).
    """
    if not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(
            f"Classes must be in [0, {classes}), not {labels.min()} to {labels.max()}."
        )
    count = np.unique(labels, axis=0, return_counts=True)[1]
    p = count / count.sum()
    return len(count), float(np.sum(p * np.log(p * float(classes) ** labels.shape[1])))
