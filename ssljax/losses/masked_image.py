"""Masked image modelling: which patches are hidden, and what is asked of them."""

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.sharding import over_batch


def random_mask(key: Array, n: int, patches: int, share: float) -> tuple[Array, Array]:
    """Of each of `n` images the patches that are seen, (n, seen), and each patch's place in a random order, (n, patches).

    A patch is hidden if its place is not among the first `seen`. He et al., 2021, arXiv:2111.06377, section 3.

    InputError unless at least one patch is seen and one hidden.
    """
    seen = patches - round(share * patches)
    if not 1 <= seen < patches:
        raise InputError(
            f"Of {patches} patches, {patches - seen} would be hidden: choose a share that leaves both."
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
) -> Array:
    """Of each of `n` images `count` blocks of patches, (n, count, patches), true inside: I-JEPA's targets by default.

    Area, as a fraction, aspect (height over width) and place are uniform, drawn for each block. Assran et al., 2023,
    arXiv:2301.08243, section 3. InputError unless there is a block and both ranges rise from above 0.
    """
    if count < 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
        raise InputError(
            f"{count} blocks of areas {area} and aspects {aspect} can't be drawn: one or more are needed, "
            "of areas in (0, 1] and positive aspects, the lower first."
        )
    low, high = jnp.array([area[0], aspect[0], 0, 0]), jnp.array([area[1], aspect[1], 1, 1])
    draw = over_batch(jax.random.uniform(key, (n, count, 4)))
    share, ratio, down, right = jnp.moveaxis(low + draw * (high - low), -1, 0)[..., None]
    whole = share * grid[0] * grid[1]

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
    """The mean and standard deviation of each patch, (n, patches, d) to (n, patches, 1) twice; never 0."""
    return y.mean(-1, keepdims=True), jnp.sqrt(y.var(-1, ddof=1, keepdims=True) + 1e-6)


def masked_patch_loss(y: Array, target: Array, hidden: Array, power: int = 2) -> Array:
    """The mean of |y - target|^power, (n, patches, d), over patches that are `hidden`, (n, patches).

    Squares for MAE, arXiv:2111.06377, section 3; absolute values for SimMIM, Xie et al., 2021, arXiv:2111.09886, eq. 1.
    """
    return jnp.mean(jnp.abs(y - target) ** power, where=hidden[:, :, None])
