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
        raise InputError(f"Of {patches} patches, {patches - seen} would be hidden: choose a share that leaves both.")
    order = jnp.argsort(over_batch(jax.random.uniform(key, (n, patches))), axis=1)
    return order[:, :seen], jnp.argsort(order, axis=1)


def patch_statistics(y: Array) -> tuple[Array, Array]:
    """The mean and standard deviation of each patch, (n, patches, d) to (n, patches, 1) twice; never 0."""
    return y.mean(-1, keepdims=True), jnp.sqrt(y.var(-1, ddof=1, keepdims=True) + 1e-6)


def masked_error(y: Array, target: Array, hidden: Array, power: int = 2) -> Array:
    """The mean of |y - target|^power, (n, patches, d), over patches that are `hidden`, (n, patches).

    Squares for MAE, arXiv:2111.06377, section 3; absolute values for SimMIM, Xie et al., 2021, arXiv:2111.09886, eq. 1.
    """
    return jnp.mean(jnp.abs(y - target) ** power, where=hidden[:, :, None])
