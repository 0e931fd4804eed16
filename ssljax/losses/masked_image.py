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
