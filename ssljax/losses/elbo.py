"""Bounds on the log-likelihood of latent-variable models and their terms, in nats."""

from collections.abc import Callable
import math

import jax
from jax import Array
import jax.numpy as jnp

LOG_2PI = math.log(2 * math.pi)


def gaussian_log_prob(x: Array, mean: Array, log_var: Array) -> Array:
    """log p(x) of images `x` (..., H, W, C) under independent Gaussians: (...)."""
    return jnp.sum(log_normal(x, mean, log_var), axis=(-3, -2, -1))


def log_normal(z: Array, mean: Array | float = 0.0, log_var: Array | float = 0.0) -> Array:
    """log N(z; mean, exp(log_var)), elementwise."""
    log_var = jnp.asarray(log_var)
    return -0.5 * (LOG_2PI + log_var + (z - mean) ** 2 * jnp.exp(-log_var))


def kl_normal(mean: Array, log_var: Array) -> Array:
    """KL(N(mean, exp(log_var)) || N(0, 1)) of each dimension.

    Kingma & Welling, 2013, arXiv:1312.6114, appendix B.
    """
    return 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var)


def iwae_bound(log_w: Array) -> Array:
    """The bound L_k, (n,), from log weights (k, n): log p(x, z) - log q(z|x) at k samples of q.

    Burda et al., 2015, arXiv:1509.00519, eq. 8; with k = 1 a sampled ELBO.
    """
    return jax.nn.logsumexp(log_w, axis=0) - math.log(len(log_w))


def dreg_bound(log_w: Callable[[Array], Array], z: Array) -> Array:
    """`iwae_bound(log_w(z))`, with the doubly reparameterised gradient: (n,).

    `log_w` maps samples `z` (k, n, d) to log weights (k, n), and must hold the parameters of q
    fixed (stop_gradient), since they learn through `z` alone. Tucker et al., 2018,
    arXiv:1810.04152, eq. 8.
    """
    w = jax.nn.softmax(jax.lax.stop_gradient(log_w(jax.lax.stop_gradient(z))), axis=0)
    return iwae_bound(
        log_w(_scale_gradient(z, w[..., None]))
    )  # Its own gradient brings the second w.


def one_sample_bound(key: Array, log_w: Callable[[Array], Array], z: Array) -> Array:
    """`iwae_bound(log_w(z))`, with the gradient of one of the k samples, picked by weight: (n,).

    Unbiased, noisier, and about three times as cheap for large k: k passes forward and one backward
    (Burda et al., 2015, arXiv:1509.00519, section 3). `log_w` maps samples `z` (k, n, d) to log
    weights (k, n), and one sample of each example, (n, d), to (n,).
    """
    every = jax.lax.stop_gradient(log_w(z))
    picked = jax.random.categorical(key, every, axis=0)
    one = log_w(jnp.take_along_axis(z, picked[None, :, None], axis=0)[0])
    return iwae_bound(every) + one - jax.lax.stop_gradient(one)


@jax.custom_vjp
def _scale_gradient(x: Array, scale: Array) -> Array:
    return x


_scale_gradient.defvjp(
    lambda x, scale: (x, scale), lambda scale, g: (g * scale, jnp.zeros_like(scale))
)
