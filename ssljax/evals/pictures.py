"""Pictures: maps of features, augmented views, samples, reconstructions and interpolations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import functools
from typing import Any, TYPE_CHECKING
import warnings

import jax
from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import (
    Encode,
    examples,
    extractor,
    gathered,
    put,
    subset,
    trace_features,
    Tree,
)
from ssljax.evals.knn import neighbours
from ssljax.models.sampler import spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Examples as points of a plane."""

    points: np.ndarray  # (n, 2)
    labels: np.ndarray  # (n,), numbers of `class_names`.
    class_names: Sequence[str]
    images: np.ndarray | None = None  # (n, H, W, 1 or 3) uint8
    features: np.ndarray | None = None  # (n, d), whose map the points are.

    def picture(self) -> np.ndarray:
        """The points, coloured by class: (H, W, 3) uint8."""
        return scatter(self.points, self.labels, self.class_names)


def feature_map(encode: Encode, test: Any, n: int = 1000, seed: int = 0) -> Evaluator:
    """`map`: t-SNE of the features of `n` images of `test`, a `FeatureMap`.

    Without labels all are of one class. Fewer images are taken where there are fewer. InputError
    for an empty set.
    """
    extract, indices = extractor(encode), subset(test, n, seed)
    if not len(indices):
        raise InputError("A set to evaluate on is empty.")

    def evaluate(state: Tree) -> Mapping[str, FeatureMap]:
        features = extract(state, test, indices)
        points = _plane(features)
        images = test.read(indices).get("image")
        if images is not None and (images.ndim != 4 or images.shape[-1] not in (1, 3)):
            images = None
        labels, names = np.zeros(len(points), np.int32), ["no labels"]
        if test.labels is not None:
            labels, names = test.labels[indices], test.class_names
        return {"map": FeatureMap(points, labels, names, images, features)}

    return Evaluator(
        evaluate,
        pictures=True,
        captions={
            "map": f"t-SNE of the features of {len(indices):,} held-out examples. A point is an "
            "example, its colour the class. Distances between far groups mean little, and so does "
            "a group's place."
        },
        trace=lambda state: trace_features(encode, state, test),
        encode=encode,
        queries=test,
    )


def nearest_images(
    encode: Encode,
    bank: Any,
    queries: Any,
    whole_bank: bool = True,
    rows: int = 8,
    k: int = 9,
    seed: int = 0,
) -> Evaluator:
    """`nearest`: a row for each of some images of `queries`, then the `k` nearest of `bank`.

    Nearest by the cosine of features: what the net takes to be alike. Of a bank that is not used
    `whole_bank`, which costs no more where other evaluators need its features too, at most 10,000
    images are searched.
    """
    extract = extractor(encode)
    asked = subset(queries, rows, seed)
    searched = None if whole_bank else subset(bank, 10_000, seed)
    k = min(k, len(bank) if searched is None else len(searched))

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        known = extract(state, bank, searched)
        found = neighbours(known, extract(state, queries, asked), k)[1]
        found = found if searched is None else searched[found]
        near = bank.read(found.reshape(-1))["image"]
        first = queries.read(asked)["image"]
        near = near.reshape(*found.shape, *near.shape[1:])
        return {"nearest": grid(np.concatenate([first[:, None], near], axis=1))}

    def trace(state: Tree) -> None:
        _check_pictures("Images", examples(queries, len(asked)).shape, len(asked))
        trace_features(encode, state, bank)
        trace_features(encode, state, queries)

    caption = (
        f"First column: held-out images. In their rows, the {k} images of the training set whose "
        "features are nearest by the cosine, the nearest first."
    )
    return Evaluator(
        evaluate,
        pictures=True,
        captions={"nearest": caption},
        trace=trace,
        encode=encode,
        bank=bank,
        queries=queries,
    )


def views(
    show: Callable[[Array, Mapping[str, Array]], Array],
    data: Any,
    n: int = 8,
    draws: int = 8,
    seed: int = 0,
) -> Evaluator:
    """`views`: a row for each of `n` images of `data`: the original, then `draws` of `show`.

    `show(key, batch)` takes what `data.read` gives, "image" (n, H, W, C) uint8 and so on, and
    returns floats in [0, 1] of any size. A photograph that was resized to a square is shown so.
    """
    indices = subset(data, n, seed)

    @gathered
    def run(key, batch):
        drawn = jax.vmap(lambda key: show(key, batch))(jax.random.split(key, draws))
        _check_pictures("Views", drawn.shape[1:], len(batch["image"]))
        return drawn

    @functools.cache  # It doesn't depend on the state.
    def picture() -> np.ndarray:
        batch = data.read(indices)
        drawn = np.asarray(run(jax.random.key(seed), jax.tree.map(put, dict(batch))))
        drawn = drawn.swapaxes(0, 1)
        first = batch["image"] / np.float32(255)
        if first.shape[1:3] != drawn.shape[2:4]:
            size = (len(first), *drawn.shape[2:4], first.shape[-1])
            first = np.asarray(jax.image.resize(first, size, "linear"))
        return grid(np.concatenate([_colour(first)[:, None], _colour(drawn)], axis=1))

    def trace(state: Tree) -> None:
        batch = dict(data.read(indices[:1]))
        batch = {
            k: jax.ShapeDtypeStruct((len(indices), *x.shape[1:]), x.dtype) for k, x in batch.items()
        }
        _check_pictures("Images", batch["image"].shape, len(indices))
        jax.eval_shape(run, jax.random.key(seed), batch)

    caption = f"First column: the original. In its row, {draws} random views of it."
    return Evaluator(
        lambda state: {"views": picture()},
        pictures=True,
        captions={"views": caption},
        trace=trace,
        queries=data,
    )


def samples(
    draw: Callable[[Tree, Array, int], Array],
    rows: int = 8,
    columns: int = 8,
    seed: int = 0,
    names: Sequence[str] = (),
) -> Evaluator:
    """`samples`: a grid of `draw(state, key, n)`, (n, H, W, 1 or 3) in [0, 1].

    The noise is the same each time. `names` of the rows are for the caption.
    """

    @gathered
    def run(state):
        images = draw(state, jax.random.key(seed), rows * columns)
        _check_pictures("Samples", images.shape, rows * columns)
        return images

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        images = np.asarray(run(state))
        return {"samples": grid(images.reshape(rows, columns, *images.shape[1:]))}

    return Evaluator(
        evaluate,
        pictures=True,
        captions={"samples": _of_samples(names)},
        trace=lambda state: jax.eval_shape(run, state),
    )


def denoising(
    path: Callable[[Tree, Array, int], Array],
    rows: int = 8,
    columns: int = 8,
    seed: int = 0,
    names: Sequence[str] = (),
) -> Evaluator:
    """`samples`, an `animation` of them as they are made from noise, and a `strip` of some.

    `path(state, key, n)` gives points of a sampler's way, (points, n, H, W, 1 or 3) in [0, 1], from
    the noise to the samples; the noise is the same each time. The samples are `rows` x `columns`,
    row by row. The animation has all points; the strip has up to `columns` of them, evenly spread,
    of the first sample of each row. `names` of the rows are for the caption.
    """

    @gathered
    def run(state):
        points = path(state, jax.random.key(seed), rows * columns)
        _check_pictures("Points of a sampler", points.shape[1:], rows * columns)
        return points

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        points = np.asarray(run(state))
        strip = points[spread(len(points), columns), ::columns]
        frames = points.reshape(len(points), rows, columns, *points.shape[2:])
        return {
            "samples": grid(frames[-1]),
            "animation": np.stack([grid(frame, cell=24) for frame in frames]),
            "strip": grid(strip.swapaxes(0, 1)),
        }

    return Evaluator(
        evaluate,
        pictures=True,
        captions={
            "samples": _of_samples(names),
            "animation": "Samples as they are made, from the same noise at each step.",
            "strip": "Some of them: a row for each sample, from the noise to the sample.",
        },
        trace=lambda state: jax.eval_shape(run, state),
    )


def _of_samples(names: Sequence[str]) -> str:
    """A caption; `names` are those of the rows."""
    by_row = f" From the top: {', '.join(names)}." if names else ""
    return f"Samples, from the same noise at each step. None is an original.{by_row}"


def compared(
    show: Callable[[Tree, Array, Array], Sequence[Array]],
    data: Any,
    n: int = 8,
    seed: int = 0,
    names: Sequence[str] = (),
) -> Evaluator:
    """`compared`: a column for each of `n` images of `data`, above what `show` makes of it.

    `show(state, key, images)` takes (n, H, W, C) uint8 and returns one or more (n, H, W, 1 or 3) in
    [0, 1]: the net's input, for instance, and its output. There are fewer columns where there are
    fewer images. `names` of the rows below the originals are for the caption.
    """
    indices = subset(data, n, seed)

    @gathered
    def run(state, images):
        shown = tuple(show(state, jax.random.key(seed), images))
        for x in shown:
            _check_pictures("Pictures", x.shape, len(images), images.shape[1:3])
        return shown

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        images = data.read(indices)["image"]
        rows = [images / np.float32(255), *map(np.asarray, run(state, put(images)))]
        return {"compared": grid(np.stack([_colour(r) for r in rows]))}

    below = f"Below: {', '.join(names)}." if names else "Below: what the net makes of them."

    def trace(state: Tree) -> None:
        images = examples(data, len(indices))
        _check_pictures("Images", images.shape, len(indices))
        jax.eval_shape(run, state, images)

    return Evaluator(
        evaluate,
        pictures=True,
        captions={"compared": f"First row: originals, which are held out. {below}"},
        trace=trace,
        queries=data,
    )


def interpolations(
    encode: Callable[[Tree, Array], Array],
    decode: Callable[[Tree, Array], Array],
    data: Any,
    rows: int = 8,
    columns: int = 9,
    seed: int = 0,
) -> Evaluator:
    """`interpolations`: `decode(state, z)` on straight lines between codes of pairs of images.

    The codes are `encode(state, images)`, (n, d); the images themselves are the first and last of
    each row. There are fewer rows where there are fewer images; InputError for fewer than two.
    """
    rows = min(rows, len(data) // 2)
    if rows < 1:
        raise InputError(f"Interpolations need 2 images or more, not {len(data)}.")
    indices = subset(data, 2 * rows, seed)

    @gathered
    def run(state, images):
        z = encode(state, images)
        a, b = z[:rows], z[rows : 2 * rows]
        t = jax.numpy.linspace(0, 1, columns)[None, :, None]
        drawn = decode(state, ((1 - t) * a[:, None] + t * b[:, None]).reshape(rows * columns, -1))
        _check_pictures("Decoded images", drawn.shape, rows * columns, images.shape[1:3])
        return drawn.reshape(rows, columns, *drawn.shape[1:])

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        images = data.read(indices)["image"]
        a, b = _colour(images / np.float32(255)).reshape(2, rows, 1, *images.shape[1:3], 3)
        between = _colour(np.asarray(run(state, put(images))))
        return {"interpolations": grid(np.concatenate([a, between, b], axis=1))}

    def trace(state: Tree) -> None:
        images = examples(data, len(indices))
        _check_pictures("Images", images.shape, len(indices))
        jax.eval_shape(run, state, images)

    caption = (
        "First and last column: originals, which are held out. Between them, images decoded on a "
        "straight line from the code of the one to the code of the other."
    )
    return Evaluator(
        evaluate, pictures=True, captions={"interpolations": caption}, trace=trace, queries=data
    )


def filters(
    weights: Callable[[Tree], Array], shape: tuple[int, int, int], n: int = 64, columns: int = 16
) -> Evaluator:
    """`filters`: the first `n` columns of `weights(state)`, (H*W*C, d), as images of `shape`.

    Each is scaled to [0, 1].
    """

    _check_pictures("Filters", (n, *shape), n)

    @gathered
    def run(state):
        w = weights(state)
        if w.ndim != 2 or len(w) != np.prod(shape):
            raise InputError(f"Weights (H*W*C, d) of images {shape} are needed, not {w.shape}.")
        return w[:, :n].T

    def evaluate(state: Tree) -> Mapping[str, np.ndarray]:
        w = np.asarray(run(state))
        low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
        w = (w - low) / np.maximum(high - low, 1e-12)
        w = np.pad(w, ((0, -len(w) % columns), (0, 0)), constant_values=1)
        return {"filters": grid(w.reshape(-1, columns, *shape))}

    return Evaluator(
        evaluate,
        pictures=True,
        captions={"filters": "Weights of units as images, each from its least to its largest."},
        trace=lambda state: jax.eval_shape(run, state),
    )


def _check_pictures(
    what: str, shape: tuple[int, ...], n: int, size: tuple[int, ...] | None = None
) -> None:
    """InputError unless a shape is (n, H, W, 1 or 3), with H and W as in `size`, if given."""
    fits = len(shape) == 4 and shape[0] == n and shape[3] in (1, 3)
    if not fits or (size is not None and shape[1:3] != size):
        height, width = size or ("H", "W")
        raise InputError(
            f"{what} must be of shape ({n}, {height}, {width}, 1 or 3) to be shown, not {shape}."
        )


def grid(images: np.ndarray, cell: int = 64, gap: int = 2) -> np.ndarray:
    """One picture (H', W', 3) uint8 of images (rows, columns, H, W, 1 or 3).

    Images are uint8 or floats in [0, 1]; each is enlarged by a whole number until its sides are
    `cell` pixels or more. InputError for another shape.
    """
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[-1] not in (1, 3):
        raise InputError(f"A grid needs images (rows, columns, H, W, 1 or 3), not {images.shape}.")
    if images.dtype != np.uint8:
        images = np.round(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)
    rows, columns = images.shape[:2]
    images = _enlarged(images, cell)
    images = np.pad(images, [(0, 0), (0, 0), (0, gap), (0, gap), (0, 0)], constant_values=255)
    height, width = images.shape[2:4]
    images = images.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return images[: len(images) - gap, : images.shape[1] - gap]


def framed_panels(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], cell: int = 56, frame: int = 3
) -> np.ndarray:
    """Grids of images next to each other, each under its title: (H, W, 3) uint8.

    By title, images (rows, columns, H, W, 1 or 3) uint8 and which of them, (rows, columns) bool,
    have a green frame. All have as many rows. Images are enlarged as by `grid`.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, parts, start = ImageFont.load_default(14), [], 0
    titles = []
    for title, (images, marked) in panels.items():
        images = _enlarged(images, cell)
        green, white = np.array([0, 170, 80], np.uint8), np.array([255] * 3, np.uint8)
        border = [(0, 0), (0, 0), (frame, frame), (frame, frame), (0, 0)]
        inside = np.pad(np.ones(images.shape, bool), border)
        colour = np.where(marked[:, :, None, None, None], green, white)
        images = np.where(inside, np.pad(images, border), colour)
        part = grid(images, cell=1)
        titles.append((start, title))
        start += part.shape[1] + 2 * frame
        parts.append(np.pad(part, [(24, 0), (0, 2 * frame), (0, 0)], constant_values=255))
    picture = Image.fromarray(np.concatenate(parts, axis=1))
    for x, title in titles:
        ImageDraw.Draw(picture).text((x + frame, 4), title, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def scatter(points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Points (n, 2) coloured by class, with a legend of up to 20 names, (H, W, 3) uint8."""
    return rendered(scatter_figure(points, labels, names))


def scatter_figure(points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> "Figure":
    """The figure of `scatter`."""
    # Here and below: slow imports, which the first step need not wait for.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[])
    palette = colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo"]
    colours = palette.resampled(len(names))(range(len(names)))
    drawn = [
        axes.scatter(*points[labels == c].T, s=8, color=colours[c], label=name)
        for c, name in enumerate(names)
    ]
    if len(names) <= 20:
        lines = [" ".join(name.split()) for name in names]
        short = [line if len(line) <= 30 else f"{line[:29]}…" for line in lines]
        legend = figure.legend(drawn, short, loc="outside right upper", markerscale=2)
        for text in legend.get_texts():
            text.set_parse_math(False)  # A $ in a folder's name is no formula.
    return figure


def rendered(figure: "Figure") -> np.ndarray:
    """A figure of matplotlib as a picture (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # It is drawn as a box.
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plane(z: np.ndarray) -> np.ndarray:
    """t-SNE of `z` (n, d) after PCA to 30 dimensions, started from the first two: (n, 2).

    Fewer than 5 points, too few for t-SNE, are placed by PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    z = np.pad(z, ((0, 0), (0, max(0, 2 - z.shape[1])))).astype(np.float64)
    if len(z) == 1:
        return np.zeros((1, 2))
    # Where all rows are alike it divides 0 by 0, for a number that is not used.
    with np.errstate(invalid="ignore"):
        z = PCA(min(30, *z.shape), random_state=0).fit_transform(z)
    if len(z) < 5:
        return z[:, :2]
    # init="pca" fails at a collapse.
    start = 1e-4 * z[:, :2] / max(z[:, 0].std(), np.finfo(float).tiny)
    tsne = TSNE(
        perplexity=min(30, (len(z) - 1) / 3),
        init=start,  # pyright: ignore[reportArgumentType] - its type is guessed from "pca"
        random_state=0,
    )
    # One thread: sklearn's threads spin, 7 times slower on 2 cores that other programs use too.
    with threadpool_limits(1):
        return tsne.fit_transform(z)


def _enlarged(images: np.ndarray, cell: int) -> np.ndarray:
    """Images (rows, columns, H, W, 1 or 3) in colour, by a whole number until sides are `cell`."""
    factor = max(1, -(-cell // min(images.shape[2:4])))
    return _colour(images).repeat(factor, axis=2).repeat(factor, axis=3)


def _colour(images: np.ndarray) -> np.ndarray:
    return np.broadcast_to(images, (*images.shape[:-1], 3))
