"""Masked image modelling: which patches are masked, and the loss on them."""

import math

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.sharding import over_batch


def random_mask(key: Array, n: int, patches: int, share: float) -> tuple[Array, Array]:
    """Random masks of `n` images: the visible patches, (n, seen), and each patch's rank, (n,
    patches).

    Patches are ranked at random and the first `seen` = floor(patches · (1 - share)) are visible, as
    in the code of MAE and SimMIM. He et al., 2021, arXiv:2111.06377, section 3.

    InputError unless at least one patch is visible and one masked.
    """
    seen = math.floor(patches * (1 - share) + 1e-9)  # 10 * (1 - 0.9) is 0.9999999999999998.
    if not 1 <= seen < patches:
        raise InputError(
            f"Of {patches} patches, {patches - seen} would be masked: choose a --mask that leaves "
            "both."
        )
    order = jnp.argsort(over_batch(jax.random.uniform(key, (n, patches))), axis=1)
    return order[:, :seen], jnp.argsort(order, axis=1)


def block_masks(
    key: Array,
    n: int,
    grid: tuple[int, int],
    count: int,
    area: tuple[float, float] = (0.15, 0.2),
    aspect: tuple[float, float] = (0.75, 1.5),
    correlated: bool = False,
) -> Array:
    """Random blocks of patches, (n, count, patches), true inside; I-JEPA's targets by default.

    `area`, as a fraction of the grid, `aspect` (height over width) and position are uniform and
    drawn independently for each block: Assran et al., 2023, arXiv:2301.08243, section 3. In the
    authors' code area and aspect are the same uniform number, so that large blocks are always tall,
    and the area is cut to whole patches: `correlated` does so. Their code also shares one size
    among a batch, and never places a block at the last row or column that it fits into; ours
    differs there.

    InputError unless count >= 1, 0 < area <= 1 and 0 < aspect, the lower bound first.
    """
    if count < 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
        raise InputError(
            f"{count} blocks of areas {area} and aspects {aspect} can't be drawn: one or more are "
            "needed, of areas in (0, 1] and positive aspects, the lower first."
        )
    low, high = jnp.array([area[0], aspect[0], 0, 0]), jnp.array([area[1], aspect[1], 1, 1])
    draw = over_batch(jax.random.uniform(key, (n, count, 4)))
    if correlated:
        draw = draw.at[..., 1].set(draw[..., 0])
    share, ratio, down, right = jnp.moveaxis(low + draw * (high - low), -1, 0)[..., None]
    whole = share * grid[0] * grid[1]
    if correlated:
        whole = jnp.floor(whole + 1e-4)  # The area of a whole grid is not rounded down in float32.

    def inside(length, place, size):  # (n, count, size)
        length = jnp.clip(jnp.round(length), 1, size)
        start = jnp.minimum(jnp.floor(place * (size - length + 1)), size - length)
        return (jnp.arange(size) >= start) & (jnp.arange(size) < start + length)

    rows, columns = (
        inside(jnp.sqrt(whole * r), place, size)
        for r, place, size in ((ratio, down, grid[0]), (1 / ratio, right, grid[1]))
    )
    return (rows[..., :, None] & columns[..., None, :]).reshape(n, count, -1)


def blockwise_masks(
    key: Array,
    n: int,
    grid: tuple[int, int],
    share: tuple[float, float] = (0.1, 0.5),
    masked: float = 0.5,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    attempts: int = 32,
) -> Array:
    """iBOT's masks of `n` images, (n, patches): of `masked` of them, blocks up to a random share.

    The share is uniform in `share`. Blocks of log-uniform aspect (height over width) and uniform
    area, at least that of a ninth of the grid unless less is left, are added until the share is
    reached or ten in a row don't fit; a block that holds a masked patch only, or too many others,
    doesn't. Others than the `masked` images have no masked patch.

    It is the loop of the authors' code in `attempts` draws: of 4,000 of their masks of a grid of
    14x14, 99.9 % have their last block among the first 32, and all those of a grid of 7x7.

    BEiT's blockwise masking (Bao et al., 2021, arXiv:2106.08254, algorithm 1) with the ratios of
    Zhou et al., 2022, arXiv:2111.07832, section 4.1. InputError unless 0 <= masked <= 1, 0 < share
    < 1 and 0 < aspect, the lower bound first.
    """
    if not (0 <= masked <= 1 and 0 < share[0] <= share[1] < 1 and 0 < aspect[0] <= aspect[1]):
        raise InputError(
            f"Blocks of a share {share} and aspects {aspect} in {masked} of the images can't be "
            "drawn: shares lie in (0, 1), the lower first, and aspects are positive."
        )
    (h, w), k1, k2 = grid, *jax.random.split(key)
    least = (min(grid) // 3) ** 2
    some = over_batch(jax.random.uniform(k1, (n, 2)))
    wanted = jnp.where(
        some[:, 0] < masked, (share[0] + some[:, 1] * (share[1] - share[0])) * h * w, 0.0
    )

    def inside(start, length, size):
        at = jnp.arange(size)
        return (at >= start[:, None]) & (at < (start + length)[:, None])

    def attempt(carry, key):
        mask, failed = carry
        size, ratio, down, right = over_batch(jax.random.uniform(key, (n, 4))).T
        left = wanted - mask.sum((1, 2))
        area = least + size * (left - least)
        ratio = jnp.exp(jnp.log(aspect[0]) + ratio * jnp.log(aspect[1] / aspect[0]))
        height, width = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
        rows = inside(jnp.floor(down * (h - height + 1)), height, h)
        columns = inside(jnp.floor(right * (w - width + 1)), width, w)
        block = rows[:, :, None] & columns[:, None, :]
        new = (block & ~mask).sum((1, 2))
        fits = (height < h) & (width < w) & (new > 0) & (new <= left) & (failed < 10)
        mask = over_batch(mask | (block & fits[:, None, None]))
        return (mask, over_batch(jnp.where(fits, 0, failed + 1))), None

    start = over_batch(jnp.zeros((n, h, w), bool)), over_batch(jnp.zeros(n, jnp.int32))
    return jax.lax.scan(attempt, start, jax.random.split(k2, attempts))[0][0].reshape(n, -1)


def patch_statistics(y: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each patch, (n, patches, d) to (n, patches, 1) each.

    The variance is unbiased, plus 1e-6 so that the deviation is never 0, as in MAE's code.
    """
    return y.mean(-1, keepdims=True), jnp.sqrt(y.var(-1, ddof=1, keepdims=True) + 1e-6)


def masked_patch_loss(y: Array, target: Array, hidden: Array, power: int = 2) -> Array:
    """The mean of |y - target|^power, (n, patches, d), over the `hidden` patches, (n, patches).

    `power` is 2 for MAE, arXiv:2111.06377, section 3, and 1 for SimMIM, Xie et al., 2021,
    arXiv:2111.09886, eq. 1.
    """
    return jnp.mean(jnp.abs(y - target) ** power, where=hidden[:, :, None])
