"""Colourisation as classification: Zhang et al., 2016, https://arxiv.org/abs/1603.08511, section 2."""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.errors import InputError


def rare_weights(counts: np.ndarray, centres: np.ndarray, lam: float = 0.5, sigma: float = 5.0) -> np.ndarray:
    """Weights of the colour bins, (q,), the rarer the larger: w ∝ 1 / ((1 - lam) p + lam / q), Σ p w = 1, eq. 4.

    p is how often each occurs, smoothed by a Gaussian of `sigma` over the bins' `centres`, (q, 2).
    """
    if not 0 < lam <= 1:
        raise InputError(f"The uniform part of the weights must be in (0, 1], not {lam}: a bin may never occur.")
    distance = ((centres[:, None] - centres[None]) ** 2).sum(-1)
    kernel = np.exp(-distance / (2 * sigma**2))
    p = kernel / kernel.sum(0) @ (counts / counts.sum())
    w = 1 / ((1 - lam) * p + lam / len(p))
    return (w / (p * w).sum()).astype(np.float32)


def rebalanced(logits: Array, bins: Array, weights: Array) -> Array:
    """The mean over pixels of w log 1/p of the right bin: logits (..., q), bins (...), eq. 2 with one bin a pixel.

    In the paper the five nearest share a pixel.
    """
    return jnp.mean(weights[bins] * optax.softmax_cross_entropy_with_integer_labels(logits, bins))


def annealed_mean(logits: Array, centres: Array, temperature: float = 0.38) -> Array:
    """From logits (..., q) a colour (..., 2), between the mean (temperature 1) and the mode (0): eq. 5."""
    return jax.nn.softmax(logits / temperature) @ centres
