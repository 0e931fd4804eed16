"""Means over a whole set of what is measured on each image: errors of a reconstruction, of a classifier, of a guess."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.evals.features import batches, gathered, put, raw_pixels, subset, Tree

Measure = Callable[
    [Tree, Array, Array, Array], Mapping[str, Array]
]  # (state, key, images, labels) -> {name: (n,)}


def average(
    measure: Measure, data: Any, n: int = 10_000, batch_size: int = 500, seed: int = 0
) -> Callable[[Tree], Mapping[str, float]]:
    """The mean of each of `measure(state, key, images, labels) -> {name: (n,)}` over `n` images of `data`, at most.

    The key, for masks and noise, is the same each time. InputError if `measure` gives anything but a number an image.
    """
    indices = subset(data, n, seed)

    @gathered
    def run(state, key, images, labels):
        found = measure(state, key, images, labels)
        for name, x in found.items():
            if x.shape != (len(images),):
                raise InputError(
                    f"{name} must be a number for each of {len(images)} images, not of shape {x.shape}."
                )
        return found

    def evaluate(state: Tree) -> Mapping[str, float]:
        total = {}
        for start, count, images in batches(data, indices, batch_size):
            labels = data.labels[np.resize(indices[start : start + count], len(images))]
            key = jax.random.fold_in(jax.random.key(seed), start)
            for name, x in run(
                state, key, put(images, split=True), put(labels, split=True)
            ).items():
                total[name] = total.get(name, 0.0) + np.asarray(x, np.float64)[:count].sum()
        return {name: float(x) / len(indices) for name, x in total.items()}

    return evaluate


def psnr(x: Array, y: Array, where: Array | None = None) -> Array:
    """10 log10(1 / mean squared error) of pairs of images (n, H, W, C), uint8 or in [0, 1], in dB, 100 at most: (n,).

    With `where`, (1, H, W, 1), of these pixels alone. `evals.compress` has it after rounding to 8 bits.
    """
    square = (augment.to_float(x) - augment.to_float(y)) ** 2
    return -10 * jnp.log10(jnp.mean(square, axis=(1, 2, 3), where=where) + 1e-10)


def linear_floor(
    train: Any, test: Any, size: int, n: int = 10_000, seed: int = 0
) -> Callable[[Tree], Mapping[str, float]]:
    """What an autoencoder must beat: the squared error of an image, summed over pixels in [0, 1], by `pca` with `size`
    components, the best linear code, and by the `mean` image; both of `n` images of `train`, on `n` of `test`, once."""

    @functools.cache
    def floors() -> Mapping[str, float]:
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        x, y = (raw_pixels(data, subset(data, n, seed)) for data in (train, test))
        with threadpool_limits(1):
            pca = PCA(min(size, *x.shape), random_state=0).fit(x)
            again = pca.inverse_transform(pca.transform(y))
        return {
            "pca": float(((y - again) ** 2).sum(1).mean()),
            "mean": float(((y - x.mean(0)) ** 2).sum(1).mean()),
        }

    return lambda state: floors()
