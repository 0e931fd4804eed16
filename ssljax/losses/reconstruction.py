"""Autoencoders: reconstruction errors, corruptions of the input, and penalties on the code.

Bengio et al., 2012, https://arxiv.org/abs/1206.5538, section 7, is a review of all of these.
"""

from collections.abc import Callable
import functools
import math
from typing import Literal

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.sharding import over_batch

Noise = Literal["none", "masking", "salt_and_pepper", "gaussian"]


def squared_error(x: Array, y: Array) -> Array:
    """The sum of (x - y)² over all but the first axis: (n, ...) each to (n,)."""
    _same(x, y)
    return jnp.sum((x - y) ** 2, axis=tuple(range(1, x.ndim)))


def cross_entropy(x: Array, logits: Array) -> Array:
    """-Σ x log p + (1 - x) log(1 - p), in nats, with p = sigmoid(logits): (n, ...) each to (n,).

    x is in [0, 1]; the minimum, at p = x, is 0 only for binary x, for which it is -log p(x) under
    independent Bernoullis. Logits (k, n, ...) of k samples give (k, n).

    Hinton and Salakhutdinov, 2006, Science 313; Vincent et al., 2010, JMLR 11, section 2.1.
    """
    _same(x, logits[(0,) * (logits.ndim - x.ndim)])
    # Flat, since a CPU's loop over a last axis of one channel is not vectorised: six times as long.
    logits = logits.reshape(*logits.shape[: logits.ndim - x.ndim + 1], -1)
    x = x.reshape(len(x), -1)
    # jax.nn.softplus takes 2.5 times as long.
    softplus = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(softplus - x * logits, axis=-1)


def masking(key: Array, x: Array, p: float) -> Array:
    """x with each element set to 0 with probability `p`: Vincent et al., 2010, section 3.3."""
    _probability("masked", p)
    return jnp.where(over_batch(jax.random.bernoulli(key, p, x.shape)), 0, x)


def salt_and_pepper(key: Array, x: Array, p: float) -> Array:
    """x with each element set to 0 or 1, each with probability `p`/2: Vincent et al., 2010, 3.3."""
    _probability("salted or peppered", p)
    u = over_batch(jax.random.uniform(key, x.shape))
    return jnp.where(u < p / 2, 0, jnp.where(u < p, 1, x))


def gaussian(key: Array, x: Array, sigma: float) -> Array:
    """x with independent normal noise of standard deviation `sigma`: Vincent et al., 2010, section
    3.3."""
    if sigma < 0:
        raise InputError(f"The standard deviation of noise must be at least 0, not {sigma}.")
    return x + sigma * over_batch(jax.random.normal(key, x.shape))


def corrupt(noise: Noise, key: Array, x: Array, amount: float) -> Array:
    """x with `noise`; `amount` is the fraction of elements or, for gaussian, the deviation."""
    functions = {"masking": masking, "salt_and_pepper": salt_and_pepper, "gaussian": gaussian}
    return x if noise == "none" else functions[noise](key, x, amount)


def kl_sparsity_penalty(logits: Array, rho: float) -> Array:
    """Σ_j KL(ρ ‖ ρ_j), with ρ_j the batch mean of sigmoid(logits[:, j]) and logits (n, d).

    The penalty of a sparse autoencoder: Ng, 2011, notes of CS294A, section 3. InputError unless
    0 < ρ (`rho`) < 1.
    """
    if not 0 < rho < 1:
        raise InputError(f"The mean activation of a unit must lie between 0 and 1, not {rho}.")
    # The logarithm of a mean by logsumexp of log-sigmoids: finite for a unit that is always off.
    on, off = (
        jax.nn.logsumexp(jax.nn.log_sigmoid(s * logits), axis=0) - math.log(len(logits))
        for s in (1, -1)
    )
    return jnp.sum(rho * (math.log(rho) - on) + (1 - rho) * (math.log1p(-rho) - off))


def contractive_penalty(
    key: Array, encode: Callable[[Array], Array], x: Array, draws: int = 1
) -> Array:
    """An estimate of ‖J‖²_F, the Jacobian of `encode` at each row of x, (n, ...) to (n,).

    Rifai et al., 2011 (ICML), eq. 5, have the closed form for one layer; this is the mean of ‖J v‖²
    over `draws` random sign vectors v, unbiased since E v vᵀ = 1, at one forward-mode product each,
    for an encoder of any depth that treats rows independently.
    """

    def one(key: Array) -> Array:
        v = over_batch(jax.random.rademacher(key, x.shape, x.dtype))
        # The transpose of reverse mode, as some layers have no forward mode.
        y, back = jax.vjp(encode, x)
        (jv,) = jax.linear_transpose(lambda u: back(u)[0], y)(v)
        return jnp.sum(jv.reshape(len(x), -1) ** 2, axis=1)

    return functools.reduce(jnp.add, map(one, jax.random.split(key, draws))) / draws


def _same(x: Array, y: Array) -> None:
    if x.shape != y.shape:
        raise InputError(
            "An image and its reconstruction must have the same shape, not "
            f"{x.shape} and {y.shape}."
        )


def _probability(what: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise InputError(f"The fraction of elements that are {what} must be in [0, 1], not {p}.")
