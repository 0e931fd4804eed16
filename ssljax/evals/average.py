"""Means over a set of numbers measured on each image: errors of a reconstruction or classifier."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data import augment
from ssljax.errors import InputError
from ssljax.evals.evaluator import Direction, Evaluator
from ssljax.evals.features import (
    batches,
    check_shapes,
    examples,
    gathered,
    part_size,
    put,
    raw_pixels,
    subset,
    Tree,
)

# (state, key, images, labels) -> {name: (n,)}
Measure = Callable[[Tree, Array, Array, Array], Mapping[str, Array]]


def average(
    measure: Measure,
    data: Any,
    n: int = 10_000,
    batch_size: int = 500,
    seed: int = 0,
    better: Mapping[str, Direction] | None = None,
    floors: Mapping[str, str] | None = None,
) -> Evaluator:
    """Mean of each of `measure(state, key, images, labels) -> {name: (n,)}` over `n` images.

    `better` and `floors` are those of the `Evaluator`. The key, for masks and noise, is the same
    each time, and labels are -1 where there are none. InputError if `measure` gives anything but
    one number for each image.
    """
    indices = subset(data, n, seed)
    known = np.full(len(data), -1, np.int32) if data.labels is None else data.labels

    @gathered
    def run(state, key, images, labels):
        found = measure(state, key, images, labels)
        for name, x in found.items():
            if x.shape != (len(images),):
                raise InputError(
                    f"{name} must be one number for each of {len(images)} images, not of shape "
                    f"{x.shape}."
                )
        return found

    def evaluate(state: Tree) -> Mapping[str, float]:
        total: dict[str, float] = {}
        for start, count, images in batches(data, indices, batch_size, split=True):
            labels = known[np.resize(indices[start : start + count], len(images))]
            key = jax.random.fold_in(jax.random.key(seed), start)
            found = run(state, key, put(images, split=True), put(labels, split=True))
            for name, x in found.items():
                total[name] = total.get(name, 0.0) + np.asarray(x, np.float64)[:count].sum()
        return {name: float(x) / len(indices) for name, x in total.items()}

    def trace(state: Tree) -> None:
        images = examples(data, part_size(data, len(indices), batch_size))
        labels = jax.ShapeDtypeStruct(images.shape[:1], known.dtype)
        jax.eval_shape(run, state, jax.random.key(seed), images, labels)

    return Evaluator(
        evaluate,
        better=better or {},
        floors=floors or {},
        settings={"n": n, "seed": seed},
        trace=trace,
        queries=data,
    )


def psnr(x: Array, y: Array, where: Array | None = None) -> Array:
    """10 log10(1 / mean squared error) of pairs of images in dB, at most 100: (n,).

    Images are (n, H, W, C), uint8 or in [0, 1]; with `where`, (1, H, W, 1), only its pixels count.
    `evals.compress` has the same after rounding to 8 bits.
    """
    square = (augment.to_float(x) - augment.to_float(y)) ** 2
    return -10 * jnp.log10(jnp.mean(square, axis=(1, 2, 3), where=where) + 1e-10)


def linear_floor(train: Any, test: Any, size: int, n: int = 10_000, seed: int = 0) -> Evaluator:
    """Floors of an autoencoder: squared errors of an image, summed over pixels in [0, 1].

    `pca` is that of PCA with `size` components, the best linear code, and `mean` that of the mean
    image; both are computed from `n` images of `train` on `n` of `test`, once. Fewer images are
    taken where they are large (2^27 numbers at most). InputError unless both sets have one shape.
    """
    check_shapes(train, test)
    n = min(n, max(1, 2**27 // int(np.prod(train.shape))))

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

    return Evaluator(lambda state: floors(), bank=train, queries=test)
