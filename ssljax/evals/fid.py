"""Generated and real images compared as sets of features: Fréchet and kernel distance, precision,
recall, density and coverage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from ssljax.evals.features import (
    check_shapes,
    extractor,
    gathered,
    put,
    subset,
    trace_features,
    Tree,
)

REACHED = 0.2  # Share of the held-out images' numbers, below which a generator's are far below.


def generated(
    draw: Callable[[Tree, Array, int], Array],
    features: FeatureNet,
    reference: Any,
    test: Any,
    n: int = 0,
    most: int = 50_000,
    k: int = 5,
    seed: int = 0,
) -> Evaluator:
    """How near `n` images of `draw(state, key, n)`, (n, H, W, C) in [0, 1], come to `reference`.

    `fid_NAME`, `kid_NAME` and its standard error, `precision_NAME`, `recall_NAME`, `density_NAME`
    and `coverage_NAME`, where NAME is the feature net's: numbers of two nets can't be compared.
    `..._floor` is the same for as many real images of `test`.
    Distances shrink as sets grow, so by default `n` is as many as `test` has, 10,000 at most, and
    the floor's sample has `n` too where there are so many. The FID is taken to `most` images of
    `reference`, the neighbours' numbers to `n`; what depends on real images alone is computed once.
    A generator whose recall is far below the floor is named where the run ends.
    InputError for k images or fewer, for sets of two shapes, and for features that are not finite.
    """
    n = n or min(len(test), 10_000)
    real, held = subset(reference, most, seed), subset(test, n, seed)
    fewest = min(n, len(real), len(held))
    if fewest <= k:
        raise InputError(
            f"{fewest} images are too few to compare: {k + 1} or more are needed both to train and "
            "to test; add some to the data."
        )
    check_shapes(reference, test)
    shape = tuple(reference.shape)
    extract, size = extractor(features.apply, features.batch_size), features.batch_size

    @gathered
    def drawn(state, params, key):
        x = draw(state, key, size)
        if x.shape != (size, *shape):
            raise InputError(
                f"{size} images of shape {shape} must be drawn, as in the training set, not "
                f"{x.shape}."
            )
        return features.apply(params, augment.eight_bits(x)), jnp.isfinite(x).all((1, 2, 3))

    params = functools.cache(lambda: jax.tree.map(put, features.params))
    label = features.name_for(shape)

    def name(numbers: Mapping[str, float], end: str = "") -> dict[str, float]:
        return {f"{what}_{label}{end}": x for what, x in numbers.items()}

    @functools.cache
    def real_side() -> tuple[Callable[[np.ndarray], Mapping[str, float]], Mapping[str, float]]:
        z = extract(params(), reference, real)
        compare = comparison(z, z[subset(z, n, seed)], k, seed)
        return compare, compare(extract(params(), test, held))

    def evaluate(state: Tree) -> Mapping[str, float]:
        compare, floor = real_side()
        found = []
        for i in range(-(-n // size)):
            signals.check()
            key = jax.random.fold_in(jax.random.key(seed), i)
            found.append(jax.device_get(drawn(state, params(), key)))
        z, finite = (np.concatenate(x)[:n] for x in zip(*found, strict=True))
        bad = n - (finite & np.isfinite(z).all(1)).sum()
        if bad:
            raise InputError(f"{bad} of {n} drawn images, or their features, are not finite.")
        return {**name(compare(z)), **name(floor, "_floor")}

    def trace(state: Tree) -> None:
        trace_features(features.apply, features.params, reference, features.batch_size)
        jax.eval_shape(drawn, state, features.params, jax.random.key(seed))

    return Evaluator(
        evaluate,
        better={
            f"fid_{label}": "lower",
            f"kid_{label}": "lower",
            f"precision_{label}": "higher",
            f"recall_{label}": "higher",
            f"density_{label}": "higher",
            f"coverage_{label}": "higher",
        },
        real={
            f"{what}_{label}": f"{what}_{label}_floor"
            for what in ("fid", "kid", "kid_error", "precision", "recall", "density", "coverage")
        },
        settings={"n": n, "k": k, "seed": seed},
        trace=trace,
        bank=reference,
        queries=test,
        warning=lambda numbers: mode_collapse(numbers, label),
    )


def mode_collapse(numbers: Mapping[str, float], label: str) -> str:
    """A sentence where samples vary far less than images do, by the numbers of `generated`.

    Of low recall alone, it says that; with low coverage too the generator has collapsed, and where
    precision is low as well its samples may be unlike any image.
    """
    wanted = ("precision", "recall", "coverage")
    found, held = ({w: numbers[f"{w}_{label}{end}"] for w in wanted} for end in ("", "_floor"))
    few = {w: found[w] < REACHED * held[w] for w in wanted}
    if not few["recall"]:
        return ""
    said = (
        f"Samples vary far less than the images do: recall {found['recall']:.2f} and coverage "
        f"{found['coverage']:.2f}, where held-out images have {held['recall']:.2f} and "
        f"{held['coverage']:.2f}. "
    )
    if few["coverage"]:
        unlike = ", or makes none that are like the data" if few["precision"] else ""
        said += f"The generator has collapsed to a few kinds of images{unlike}. "
    return said + (
        "Look at the samples. Usual causes are a discriminator that wins (see the curves), too few "
        "steps, and learning rates that are too high."
    )


def comparison(
    real: np.ndarray,
    few: np.ndarray,
    k: int = 5,
    seed: int = 0,
) -> Callable[[np.ndarray], Mapping[str, float]]:
    """The numbers of `generated` for features (n, d): the FID to `real`, all others to `few`."""
    there, radii = moments(real), neighbour_radii(few, k)

    def compare(fake: np.ndarray) -> Mapping[str, float]:
        distance, error = kid(few, fake, seed=seed)
        return {
            "fid": frechet(there, moments(fake)),
            "kid": distance,
            "kid_error": error,
            **prdc(few, fake, k, radii=radii),
        }

    return compare


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (d,) and covariance of features (n, d), in float64.

    The covariance is `factor`' `factor` for fewer images than features, (n, d), and `cov`, (d, d),
    else: neither is larger than the features.
    """

    mean: np.ndarray
    cov: np.ndarray | None = None
    factor: np.ndarray | None = None

    @functools.cached_property
    def root(self) -> np.ndarray:
        """A matrix R with R'R = covariance, (r, d), r <= d."""
        if self.factor is not None:
            return self.factor
        if self.cov is None:
            raise ValueError("Moments need a covariance, or a factor of it.")
        values, vectors = np.linalg.eigh(self.cov)
        # The others are noise, whose roots would add up.
        kept = values > len(values) * np.finfo(float).eps * values.max()
        return np.sqrt(values[kept])[:, None] * vectors[:, kept].T

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return np.sum(self.root**2) if self.cov is None else np.trace(self.cov)


def moments(z: np.ndarray) -> Moments:
    """Mean and unbiased covariance of features (n, d).

    InputError for fewer than two rows, and for numbers that are not finite.
    """
    n, d = z.shape
    if n < 2:
        raise InputError(f"A covariance needs 2 images or more, not {n}.")
    if not np.isfinite(z).all():
        raise InputError("A Fréchet distance needs features that are finite.")
    mean = z.mean(0, dtype=np.float64)
    if n <= d:
        return Moments(mean, factor=(z - mean) / np.sqrt(n - 1))
    cov = np.zeros((d, d))
    for start in range(0, n, 4096):  # No copy of all features in float64.
        part = z[start : start + 4096] - mean
        cov += part.T @ part
    return Moments(mean, cov=cov / (n - 1))


def frechet(a: Moments, b: Moments) -> float:
    """|mean1 - mean2|² + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)).

    Heusel et al., 2017, arXiv:1706.08500, eq. 6. With R'R = cov1, the eigenvalues of cov1 cov2 are
    those of R cov2 R', which is symmetric: no root of a singular matrix is taken, as a covariance
    of few images is, and there is no imaginary part to drop. With F'F = cov2, they are those of
    R F' F R' and of F R' R F', of which the smaller one is made.
    """
    if b.cov is not None:
        product = a.root @ b.cov @ a.root.T
    else:
        half = a.root @ b.root.T
        product = half @ half.T if half.shape[0] <= half.shape[1] else half.T @ half
    values = np.linalg.eigvalsh((product + product.T) / 2)
    cross = np.sqrt(np.maximum(values, 0)).sum()
    return float(np.sum((a.mean - b.mean) ** 2) + a.trace + b.trace - 2 * cross)


def kid(a: np.ndarray, b: np.ndarray, size: int = 0, seed: int = 0) -> tuple[float, float]:
    """Squared MMD with the kernel (x.y / d + 1)³, and its standard error.

    Bińkowski et al., 2018, arXiv:1801.01401. The mean over blocks of `size` rows of `a` (n, d) and
    `b` (m, d), by default 1000 or a tenth of the fewer rows. Each is unbiased, so about half are
    negative where the distributions are equal. No two blocks share a row, unlike the paper's
    subsets, so that their scatter is the mean's error; it is NaN for a single block. InputError for
    fewer than two rows.
    """
    fewer = min(len(a), len(b))
    size = min(size or min(1000, max(2, fewer // 10)), fewer)
    if size < 2:
        raise InputError("A kernel distance needs two images or more of each kind.")
    rng, blocks = np.random.default_rng(seed), fewer // size
    a, b = (
        np.asarray(z, np.float32)[rng.permutation(len(z))[: blocks * size]].reshape(
            blocks, size, -1
        )
        for z in (a, b)
    )
    found = [_mmd2(x, y) for x, y in zip(a, b, strict=True)]
    error = float(np.std(found, ddof=1) / np.sqrt(blocks)) if blocks > 1 else float("nan")
    return float(np.mean(found)), error


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate for equally many rows of each: no image is compared with itself."""
    signals.check()
    n = len(x)
    within, across = (np.asarray(sums, np.float64).sum() for sums in _row_sums(put(x), put(y)))
    return float(within / (n * (n - 1)) - 2 * across / n**2)


@gathered
def _row_sums(x: Array, y: Array) -> tuple[Array, Array]:
    """Row sums (n,) of the kernel within `x` and `y`, without diagonals, and between them."""

    def kernel(a: Array, b: Array) -> Array:
        return (jnp.matmul(a, b.T, precision="highest") / x.shape[1] + 1) ** 3

    others = 1 - jnp.eye(len(x))
    return (others * kernel(x, x)).sum(1) + (others * kernel(y, y)).sum(1), kernel(x, y).sum(1)


def prdc(
    real: np.ndarray,
    fake: np.ndarray,
    k: int = 5,
    tile: int = 1024,
    radii: np.ndarray | None = None,
) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of `fake` (m, d) for `real` (n, d).

    Kynkäänniemi et al., 2019, arXiv:1904.06991, eq. 1 and 2, and Naeem et al., 2020,
    arXiv:2002.09797, sec. 3. A row's ball reaches to its `k`-th neighbour of its own kind; `radii`
    are the squared radii of `real`, if known. Precision is the share of fakes in the ball of a real
    row, recall the share of real rows in the ball of a fake; density is the number of real balls
    that a fake lies in, over k, and coverage the share of real balls with a fake in them. No more
    than `tile` x m distances exist at a time. InputError for k rows or fewer.
    """
    radii = neighbour_radii(real, k, tile) if radii is None else radii
    around = neighbour_radii(fake, k, tile)
    centre = real.mean(0, dtype=np.float64)
    fake = fake - centre
    inside, recalled, covered = np.zeros(len(fake), np.int64), 0, 0
    for start in range(0, len(real), tile):
        signals.check()
        square = _squares(real[start : start + tile] - centre, fake)
        balls = square <= radii[start : start + tile, None]
        inside += balls.sum(0)
        covered += balls.any(1).sum()
        recalled += (square <= around).any(1).sum()
    return {
        "precision": float(np.mean(inside > 0)),
        "recall": float(recalled / len(real)),
        "density": float(np.mean(inside) / k),
        "coverage": float(covered / len(real)),
    }


def neighbour_radii(z: np.ndarray, k: int = 5, tile: int = 1024) -> np.ndarray:
    """Squared distances (n,) of the rows of `z` (n, d) to their `k`-th neighbours.

    InputError for k rows or fewer.
    """
    if not 1 <= k < len(z):
        raise InputError(
            f"{len(z)} images have no {k}th neighbours: give more images or a smaller k."
        )
    # With an offset that all rows share, distances of large numbers would keep few digits.
    z = z - z.mean(0, dtype=np.float64)
    found = []
    for start in range(0, len(z), tile):
        signals.check()
        square = _squares(z[start : start + tile], z)
        # No row is its own neighbour.
        square[np.arange(len(square)), start + np.arange(len(square))] = np.inf
        found.append(np.partition(square, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found) * (1 + 1e-9)  # A ball holds its rim, whatever rounding says.


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) of rows, in float64."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)
