"""Generated against real images, as sets of features: Fréchet and kernel distance, precision, recall and their kin."""

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
from ssljax.evals.features import extractor, gathered, put, subset, Tree


def generated(
    draw: Callable[[Tree, Array, int], Array],
    features: FeatureNet,
    reference: Any,
    test: Any,
    n: int = 0,
    most: int = 50_000,
    k: int = 5,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, float]]:
    """How near `n` images of `draw(state, key, n)`, (n, H, W, C) in [0, 1], come to those of `reference`.

    `fid_NAME`, `kid_NAME` and its standard error, `precision_NAME`, `recall_NAME`, `density_NAME` and `coverage_NAME`,
    where NAME is the feature net's: no two nets' numbers can be compared. Each has beside it, as `..._floor`, the same
    number of real images of `test`, which no generator should beat. Distances shrink as sets grow, so by default `n` is
    as many as `test` has, 10,000 at most, and the floor's sample has `n` too where there are so many. The FID is taken
    to `most` images of `reference`, the neighbours' numbers to `n`; what depends on real images alone is found once.
    InputError for k images or fewer, or features that are not finite.
    """
    n = n or min(len(test), 10_000)
    real, held = subset(reference, most, seed), subset(test, n, seed)
    if min(n, len(real), len(held)) <= k:
        raise InputError(
            f"{min(n, len(real), len(held))} images are too few to compare: {k + 1} or more are needed."
        )
    extract, size = extractor(features.apply, features.batch_size), features.batch_size

    @gathered
    def drawn(state, params, key):
        x = draw(state, key, size)
        return features.apply(params, augment.eight_bits(x)), jnp.isfinite(x).all((1, 2, 3))

    params = functools.cache(lambda: jax.tree.map(put, features.params))
    name = lambda numbers, end="": {
        f"{what}_{features.name}{end}": x for what, x in numbers.items()
    }

    @functools.cache
    def real_side() -> tuple[Callable[[np.ndarray], Mapping[str, float]], Mapping[str, float]]:
        z = extract(params(), reference, real)
        compare = comparison(z, z[subset(z, n, seed)], k, seed)
        return compare, compare(extract(params(), test, held))

    def evaluate(state: Tree) -> Mapping[str, float]:
        compare, floor = real_side()
        keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(-(-n // size))]
        z, fine = (
            np.concatenate(x)[:n]
            for x in zip(*(jax.device_get(drawn(state, params(), key)) for key in keys))
        )
        bad = n - (fine & np.isfinite(z).all(1)).sum()
        if bad:
            raise InputError(f"{bad} of {n} drawn images, or their features, are not finite.")
        return {**name(compare(z)), **name(floor, "_floor")}

    return evaluate


def comparison(
    real: np.ndarray,
    few: np.ndarray,
    k: int = 5,
    seed: int = 0,
) -> Callable[[np.ndarray], Mapping[str, float]]:
    """The numbers of `generated` for features (n, d): the FID to `real`, all others to `few` of them."""
    there, radii = moments(real), neighbour_radii(few, k)

    def compare(fake: np.ndarray) -> Mapping[str, float]:
        distance, error = kid(few, fake, seed=seed)
        return {
            "fid": frechet(*there, *moments(fake)),
            "kid": distance,
            "kid_error": error,
            **prdc(few, fake, k, radii=radii),
        }

    return compare


def moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and unbiased covariance (d, d) of features (n, d), in float64."""
    z = np.asarray(z, np.float64)
    mean = z.mean(0)
    return mean, (z - mean).T @ (z - mean) / (len(z) - 1)


def frechet(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)): Heusel et al., 2017, arXiv:1706.08500, eq. 6.

    With RR' = cov1, the eigenvalues of cov1 cov2 are those of R' cov2 R, which is symmetric: no root of a matrix that
    is singular, as a covariance is of fewer images than features, and no imaginary part to drop. InputError if a number
    is not finite.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(x, np.float64) for x in (mean1, cov1, mean2, cov2))
    if not all(np.isfinite(x).all() for x in (mean1, cov1, mean2, cov2)):
        raise InputError("A Fréchet distance needs finite means and covariances.")
    values, vectors = np.linalg.eigh(cov1)
    kept = (
        values > len(values) * np.finfo(float).eps * values.max()
    )  # The others are noise, whose roots would add up.
    root = vectors[:, kept] * np.sqrt(values[kept])
    product = root.T @ cov2 @ root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    cross = np.sqrt(np.maximum(values, 0)).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def kid(a: np.ndarray, b: np.ndarray, size: int = 0, seed: int = 0) -> tuple[float, float]:
    """Squared MMD with the kernel (x.y / d + 1)^3, and its standard error: Bińkowski et al., 2018, arXiv:1801.01401.

    The mean over blocks of `size` rows of `a` (n, d) and `b` (m, d), by default 1000 or a tenth of the fewer rows; each
    is unbiased, so of equal distributions about half are negative. No two blocks share a row, unlike the paper's
    subsets, so that their scatter is the mean's error. InputError for fewer than two rows.
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
    found = [_mmd2(x, y) for x, y in zip(a, b)]
    return float(np.mean(found)), float(
        np.std(found, ddof=1) / np.sqrt(blocks)
    ) if blocks > 1 else float("nan")


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate for as many rows of each: no image is compared with itself."""
    n, (within, across) = (
        len(x),
        (np.asarray(sums, np.float64).sum() for sums in _row_sums(put(x), put(y))),
    )
    return float(within / (n * (n - 1)) - 2 * across / n**2)


@gathered
def _row_sums(x: Array, y: Array) -> tuple[Array, Array]:
    """Sums of the rows (n,) of the kernel within `x` and `y`, without their diagonals, and of that between them."""
    kernel = lambda a, b: (jnp.matmul(a, b.T, precision="highest") / x.shape[1] + 1) ** 3
    others = 1 - jnp.eye(len(x))
    return (others * kernel(x, x)).sum(1) + (others * kernel(y, y)).sum(1), kernel(x, y).sum(1)


def prdc(
    real: np.ndarray,
    fake: np.ndarray,
    k: int = 5,
    tile: int = 1024,
    radii: np.ndarray | None = None,
) -> dict[str, float]:
    """`precision` and `recall`, `density` and `coverage` of features `fake` (m, d) for `real` (n, d).

    Kynkäänniemi et al., 2019, arXiv:1904.06991, eq. 1 and 2, and Naeem et al., 2020, arXiv:2002.09797, sec. 3. A row's
    ball reaches to its `k`-th neighbour of its own kind; `radii` are the squared ones of `real`, if known. Precision is
    the share of fakes in a ball of a real one, recall the share of real ones in a ball of a fake; density is the number
    of real balls a fake lies in, over k, and coverage the share of real balls with a fake in them. No more than `tile`
    x m distances exist at a time. InputError for k rows or fewer.
    """
    radii = neighbour_radii(real, k, tile) if radii is None else radii
    around = neighbour_radii(fake, k, tile)
    centre = real.mean(0, dtype=np.float64)
    inside, recalled, covered = np.zeros(len(fake), np.int64), 0, 0
    for start in range(0, len(real), tile):
        square = _squares(real[start : start + tile] - centre, fake - centre)
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
    """Squared distances (n,) of the rows of `z` (n, d) to their `k`-th neighbours; InputError for k rows or fewer."""
    if not 1 <= k < len(z):
        raise InputError(
            f"{len(z)} images have no {k}th neighbours: give more images or a smaller k."
        )
    z = z - z.mean(
        0, dtype=np.float64
    )  # Of a common offset, distances between large numbers would keep few digits.
    found = []
    for start in range(0, len(z), tile):
        square = _squares(z[start : start + tile], z)
        square[np.arange(len(square)), start + np.arange(len(square))] = (
            np.inf
        )  # No row is its own neighbour.
        found.append(np.partition(square, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found) * (1 + 1e-9)  # A ball holds its rim, whatever rounding says.


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) of rows, in float64."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0)
