"""Attention, one for all nets: JAX's on an accelerator, as XLA compiles it, two matrix products on a CPU; and rotary
positions."""

import math

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError


def attend(q: Array, k: Array, v: Array, causal: bool = False, mask: Array | None = None) -> Array:
    """Attention of queries (n, t, heads, d) to keys and values (n, s, heads, d): (n, t, heads, d).

    With `causal` each token sees itself and those before it; where `mask`, (n or 1, 1, t or 1, s), is false, none sees
    that key.
    """
    if jax.default_backend() == "cpu":
        return einsum_attention(q, k, v, causal, mask)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


def einsum_attention(q: Array, k: Array, v: Array, causal: bool = False, mask: Array | None = None) -> Array:
    """What `jax.nn.dot_product_attention` computes, faster on a CPU: softmax(q kᵀ / √d) v, head by head."""
    t, s, d = q.shape[1], k.shape[1], q.shape[-1]
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=jnp.float32) / math.sqrt(d)
    if causal:  # exp(-1e9) is 0, and unlike -inf doesn't set off JAX's search for infinities.
        scores = jnp.where(np.tri(t, s, dtype=bool), scores, -1e9)
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores).astype(v.dtype), v)


def rotary(x: Array, at: Array, base: float = 10_000.0) -> Array:
    """Turns each pair (i, i + d/2) of the d channels of `x` (n, t, heads, d) by `at` (t,) · base^(-2i/d) radians.

    Su et al., 2021, arXiv:2104.09864, eq. 15, with the pairs of GPT-NeoX: q · k then depends on where they are only by
    their distance. InputError for an odd d.
    """
    d = x.shape[-1]
    if d % 2:
        raise InputError(f"Rotary positions turn pairs of channels: a head can't have {d}. Change width or heads.")
    angle = at[:, None] * base ** (-np.arange(0, d, 2) / d)
    cos, sin = (f(angle)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
