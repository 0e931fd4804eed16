"""Colourisation as classification: Zhang et al., 2016, https://arxiv.org/abs/1603.08511, section
2."""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError


def rare_weights(
    counts: np.ndarray, centres: np.ndarray, lam: float = 0.5, sigma: float = 5.0
) -> np.ndarray:
    """Weights of the q colour bins, larger for rare ones: w ∝ 1 / ((1 - λ) p + λ / q), Σ p w = 1.

    p are the frequencies of `counts`, (q,), smoothed by a Gaussian of width `sigma` over the bins'
    `centres`, (q, 2). Eq. 4. InputError unless 0 < λ (`lam`) <= 1.
    """
    if not 0 < lam <= 1:
        raise InputError(
            f"The uniform part of the weights must be in (0, 1], not {lam}: a bin may never occur."
        )
    distance = ((centres[:, None] - centres[None]) ** 2).sum(-1)
    kernel = np.exp(-distance / (2 * sigma**2))
    p = kernel / kernel.sum(0) @ (counts / counts.sum())
    w = 1 / ((1 - lam) * p + lam / len(p))
    return (w / (p * w).sum()).astype(np.float32)


def soft_bins(
    ab: Array, centres: Array, table: Array, step: float, k: int = 5, sigma: float = 5.0
) -> tuple[Array, Array]:
    """The `k` bins nearest to colours `ab` (..., 2), nearest first, and their shares z: (..., k)
    each.

    Shares are a Gaussian of the distance with width `sigma`, normalised: section 2.2. `centres` and
    `table` are from `data.colour.gamut(step)`; the table saves a search through all bins.
    """
    place = jnp.round(ab / step).astype(int) + len(table) // 2
    some = jnp.asarray(table)[place[..., 0], place[..., 1]]
    square = jnp.sum((ab[..., None, :] - jnp.asarray(centres)[some]) ** 2, axis=-1)
    distances, bins = [], []
    for _ in range(k):  # One after another, as XLA splits no top_k over devices.
        first = jnp.argmin(square, axis=-1, keepdims=True)
        distances.append(jnp.take_along_axis(square, first, axis=-1))
        bins.append(jnp.take_along_axis(some, first, axis=-1))
        square = jnp.where(jnp.arange(square.shape[-1]) == first, jnp.inf, square)
    near = jnp.concatenate(distances, axis=-1)
    return jnp.concatenate(bins, axis=-1), jax.nn.softmax(-near / (2 * sigma**2))


def rebalanced_loss(logits: Array, bins: Array, share: Array, weights: Array) -> Array:
    """-E v Σ_k z_k log p_k over pixels, with v the weight of a pixel's nearest bin: eqs. 2 and 3.

    `logits` are (..., q); `bins` and `share`, (..., k), are those of `soft_bins`.
    """
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), bins, axis=-1)
    return -jnp.mean(weights[bins[..., 0]] * jnp.sum(share * log_p, axis=-1))


def annealed_mean(logits: Array, centres: Array, temperature: float = 0.38) -> Array:
    """A colour (..., 2) from `logits` (..., q): the mean at temperature 1, near the mode at 0. Eq.
    5."""
    return jax.nn.softmax(logits / temperature) @ centres
