"""Pictures to look at: maps of features, augmented views, samples, reconstructions and the way between images."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.features import Encode, extractor, gathered, put, subset, Tree


def feature_map(
    encode: Encode,
    test: Any,
    n: int = 1000,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, np.ndarray]]:
    """`map`: the features of `n` images of `test` in the plane by t-SNE, coloured by class, (H, W, 3) uint8.

    InputError if there are fewer than 5 images.
    """
    extract, indices = extractor(encode), subset(test, n, seed)
    if len(indices) < 5:
        raise InputError(f"A map of {len(indices)} images shows nothing: 5 or more are needed.")

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        points = _plane(extract(state, test, indices))
        return {"map": scatter(points, test.labels[indices], test.class_names)}

    return evaluate


def views(
    show: Callable[[Array, Array], Array], data: Any, n: int = 8, draws: int = 8, seed: int = 0
) -> Callable[[Tree], Mapping[str, np.ndarray]]:
    """`views`: a row for each of `n` images of `data`, the original, then `draws` independent `show`s.

    `show(key, images)` takes (n, H, W, C) uint8 and returns floats in [0, 1], of whatever size it likes.
    """
    indices = subset(data, n, seed)
    run = gathered(
        lambda key, images: jax.vmap(lambda key: show(key, images))(jax.random.split(key, draws))
    )

    @functools.cache  # It doesn't depend on the state.
    def picture() -> np.ndarray:
        images = data.read(indices)["image"]
        drawn = np.asarray(run(jax.random.key(seed), put(images))).swapaxes(0, 1)
        first = images / np.float32(255)
        if first.shape[1:3] != drawn.shape[2:4]:
            size = (len(first), *drawn.shape[2:4], first.shape[-1])
            first = np.asarray(jax.image.resize(first, size, "linear"))
        return grid(np.concatenate([_colour(first)[:, None], _colour(drawn)], axis=1))

    return lambda state: {"views": picture()}


def samples(
    draw: Callable[[Tree, Array, int], Array], rows: int = 8, columns: int = 8, seed: int = 0
) -> Callable[[Tree], Mapping[str, np.ndarray]]:
    """`samples`: a grid of `draw(state, key, n)`, (n, H, W, 1 or 3) in [0, 1], of the same noise each time."""
    run = gathered(lambda state: draw(state, jax.random.key(seed), rows * columns))

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        images = np.asarray(run(state))
        return {"samples": grid(images.reshape(rows, columns, *images.shape[1:]))}

    return evaluate


def compared(
    show: Callable[[Tree, Array, Array], Sequence[Array]], data: Any, n: int = 8, seed: int = 0
) -> Callable[[Tree], Mapping[str, np.ndarray]]:
    """`compared`: a column for each of `n` images of `data`, the image on top and below it what `show` makes of it.

    `show(state, key, images)` takes (n, H, W, C) uint8 and returns one or more (n, H, W, 1 or 3) in [0, 1]: what the net
    is given, for instance, and what it answers.
    """
    indices = subset(data, n, seed)
    run = gathered(lambda state, images: tuple(show(state, jax.random.key(seed), images)))

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        images = data.read(indices)["image"]
        rows = [images / np.float32(255), *map(np.asarray, run(state, put(images)))]
        return {"compared": grid(np.stack([_colour(r) for r in rows]))}

    return evaluate


def interpolations(
    encode: Callable[[Tree, Array], Array],
    decode: Callable[[Tree, Array], Array],
    data: Any,
    rows: int = 8,
    columns: int = 9,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, np.ndarray]]:
    """`interpolations`: `decode(state, z)` along straight lines between the codes `encode(state, images)`, (n, d), of
    pairs of images; the images themselves are the first and last of each row."""
    indices = subset(data, 2 * rows, seed)

    def line(state, images):
        z = encode(state, images)
        a, b = z[:rows], z[rows : 2 * rows]
        t = jax.numpy.linspace(0, 1, columns)[None, :, None]
        drawn = decode(state, ((1 - t) * a[:, None] + t * b[:, None]).reshape(rows * columns, -1))
        return drawn.reshape(rows, columns, *drawn.shape[1:])

    run = gathered(line)

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        images = data.read(indices)["image"]
        ends = (images / np.float32(255)).reshape(2, rows, 1, *images.shape[1:])
        return {
            "interpolations": grid(
                np.concatenate([ends[0], np.asarray(run(state, put(images))), ends[1]], axis=1)
            )
        }

    return evaluate


def filters(
    weights: Callable[[Tree], Array], shape: tuple[int, int, int], n: int = 64, columns: int = 16
) -> Callable[[Tree], Mapping[str, np.ndarray]]:
    """`filters`: the first `n` columns of `weights(state)`, (H*W*C, d), as images of `shape`, each scaled to [0, 1]."""
    run = gathered(lambda state: weights(state)[:, :n].T)

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        w = np.asarray(run(state))
        low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
        w = (w - low) / np.maximum(high - low, 1e-12)
        w = np.pad(w, ((0, -len(w) % columns), (0, 0)), constant_values=1)
        return {"filters": grid(w.reshape(-1, columns, *shape))}

    return evaluate


def grid(images: np.ndarray, cell: int = 64, gap: int = 2) -> np.ndarray:
    """Images (rows, columns, H, W, 1 or 3), uint8 or floats in [0, 1], as one picture, (H', W', 3) uint8.

    Each is enlarged by a whole number until its sides are `cell` pixels or more. InputError on another shape.
    """
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[-1] not in (1, 3):
        raise InputError(f"A grid needs images (rows, columns, H, W, 1 or 3), not {images.shape}.")
    if images.dtype != np.uint8:
        images = np.round(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)
    rows, columns, *size = images.shape[:4]
    factor = max(1, -(-cell // min(size)))
    images = _colour(images).repeat(factor, axis=2).repeat(factor, axis=3)
    images = np.pad(images, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255)
    height, width = images.shape[2:4]
    images = images.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return images[: len(images) - gap, : images.shape[1] - gap]


def scatter(points: np.ndarray, labels: np.ndarray, names: list[str]) -> np.ndarray:
    """Points (n, 2) coloured by class, with a legend of up to 20 names, (H, W, 3) uint8."""
    from matplotlib import (
        colormaps,
    )  # Here and below: slow imports, which the first step need not wait for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xticks=[], yticks=[])
    palette = colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo"]
    colours = palette.resampled(len(names))(range(len(names)))
    for c, name in enumerate(names):
        axes.scatter(*points[labels == c].T, s=8, color=colours[c], label=name)
    if len(names) <= 20:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", markerscale=2)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plane(z: np.ndarray) -> np.ndarray:
    """t-SNE of `z` (n, d) after PCA to 30 dimensions, started from the first two: (n, 2)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    z = np.pad(z, ((0, 0), (0, max(0, 2 - z.shape[1])))).astype(np.float64)
    with np.errstate(
        invalid="ignore"
    ):  # Where all rows are alike it divides 0 by 0, for a number not used.
        z = PCA(min(30, *z.shape), random_state=0).fit_transform(z)
    start = (
        1e-4 * z[:, :2] / max(z[:, 0].std(), np.finfo(float).tiny)
    )  # init="pca", which fails at collapse.
    with threadpool_limits(1):  # Its threads spin: 7 times slower on 2 cores that others use too.
        return TSNE(perplexity=min(30, (len(z) - 1) / 3), init=start, random_state=0).fit_transform(
            z
        )


def _colour(images: np.ndarray) -> np.ndarray:
    return np.broadcast_to(images, images.shape[:-1] + (3,))
