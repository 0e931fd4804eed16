"""Reconstruction: what an autoencoder minimises, what it is given to see, and what keeps its code from being trivial.

Bengio et al., 2012, https://arxiv.org/abs/1206.5538, section 7, tell of all of these.
"""

from collections.abc import Callable
import math
from typing import Literal

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.sharding import over_batch

Noise = Literal["none", "masking", "salt_and_pepper", "gaussian"]


def squared_error(x: Array, y: Array) -> Array:
    """The sum of (x - y)² over all but the first axis: (n, ...) twice to (n,)."""
    _same(x, y)
    return jnp.sum((x - y) ** 2, axis=tuple(range(1, x.ndim)))


def cross_entropy(x: Array, logits: Array) -> Array:
    """-Σ x log p + (1 - x) log(1 - p) with p = sigmoid(logits), in nats: x (n, ...) in [0, 1], logits alike, to (n,).

    Hinton and Salakhutdinov, 2006, Science 313; Vincent et al., 2010, JMLR 11, section 2.1. Least, but not 0, at p = x.
    Where x is 0 or 1 it is -log p(x) under independent Bernoullis. Logits (k, n, ...), for k draws, give (k, n).
    """
    _same(x, logits[(0,) * (logits.ndim - x.ndim)])
    logits = logits.reshape(
        *logits.shape[: logits.ndim - x.ndim + 1], -1
    )  # A CPU's loop over one channel is not
    x = x.reshape(len(x), -1)  # vectorised: six times as long.
    softplus = jnp.maximum(logits, 0) + jnp.log1p(
        jnp.exp(-jnp.abs(logits))
    )  # jax.nn's takes 2.5 times as long.
    return jnp.sum(softplus - x * logits, axis=-1)


def masking(key: Array, x: Array, p: float) -> Array:
    """Each element of x becomes 0 with probability `p`: Vincent et al., 2010, section 3.3."""
    _probability("masked", p)
    return jnp.where(over_batch(jax.random.bernoulli(key, p, x.shape)), 0, x)


def salt_and_pepper(key: Array, x: Array, p: float) -> Array:
    """Each element of x becomes, with probability `p`, 0 or 1, as a coin falls: Vincent et al., 2010, section 3.3."""
    _probability("salted or peppered", p)
    u = over_batch(jax.random.uniform(key, x.shape))
    return jnp.where(u < p / 2, 0, jnp.where(u < p, 1, x))


def gaussian(key: Array, x: Array, sigma: float) -> Array:
    """x with independent normal noise of standard deviation `sigma`: Vincent et al., 2010, section 3.3."""
    if sigma < 0:
        raise InputError(f"The standard deviation of noise must be at least 0, not {sigma}.")
    return x + sigma * over_batch(jax.random.normal(key, x.shape))


def corrupt(noise: Noise, key: Array, x: Array, amount: float) -> Array:
    """x after the corruption of that name; `amount` is its share of elements or its standard deviation."""
    functions = {"masking": masking, "salt_and_pepper": salt_and_pepper, "gaussian": gaussian}
    return x if noise == "none" else functions[noise](key, x, amount)


def kl_sparsity_penalty(logits: Array, rho: float) -> Array:
    """Σ_j KL(rho ‖ rho_j), rho_j the batch's mean of sigmoid(logits[:, j]), (n, d): each unit on a share `rho` of it.

    Ng, 2011, notes of CS294A on the sparse autoencoder, section 3.
    """
    if not 0 < rho < 1:
        raise InputError(
            f"The share of time that a unit is on must lie between 0 and 1, not {rho}."
        )
    # The mean's logarithms by logsumexp of log-sigmoids: finite where all units of a column are off for good.
    on, off = (
        jax.nn.logsumexp(jax.nn.log_sigmoid(s * logits), axis=0) - math.log(len(logits))
        for s in (1, -1)
    )
    return jnp.sum(rho * (math.log(rho) - on) + (1 - rho) * (math.log1p(-rho) - off))


def contractive_penalty(
    key: Array, encode: Callable[[Array], Array], x: Array, draws: int = 1
) -> Array:
    """‖J‖²_F of `encode` at each row of x, (n, ...) to (n,), estimated: Rifai et al., 2011 (ICML), eq. 5.

    Not the closed form of one layer, but the mean of ‖J v‖² over `draws` random sign vectors v, whose mean it is as
    E v vᵀ = 1; each costs one forward-mode product, for an encoder of any depth that treats rows apart.
    """

    def one(key: Array) -> Array:
        v = over_batch(jax.random.rademacher(key, x.shape, x.dtype))
        jv = jax.jvp(encode, (x,), (v,))[1]
        return jnp.sum(jv.reshape(len(x), -1) ** 2, axis=1)

    return sum(map(one, jax.random.split(key, draws))) / draws


def _same(x: Array, y: Array) -> None:
    if x.shape != y.shape:
        raise InputError(
            f"An image and its reconstruction must have the same shape, not {x.shape} and {y.shape}."
        )


def _probability(what: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise InputError(f"The share of elements that are {what} must be in [0, 1], not {p}.")
