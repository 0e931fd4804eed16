"""Attention for all nets, JAX's on an accelerator and our own on a CPU, and relative positions."""

import math

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.models.blocks import map_blocks, per_block
from ssljax.sharding import platform

CACHE = 2**18  # Scores at a time, 1 MiB of them, in `cpu_attention`'s gradient.


def attend(
    q: Array,
    k: Array,
    v: Array,
    causal: bool = False,
    mask: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """Attention of queries (n, t, heads, d) to keys and values (n, s, heads, d): (n, t, heads, d).

    With `causal` a token attends to itself and those before it; keys where `mask`, (n or 1, 1, t or
    1, s), is false are not attended to. `bias`, (1, heads, t, s), is added to q kᵀ / √d. On a CPU
    there are gradients of any order, but without a bias no forward mode (`jax.jvp`).
    """
    if platform() != "cpu":
        return jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=causal)
    if bias is not None:
        return biased_attention(q, k, v, bias, causal, mask)
    return cpu_attention(q, k, v, causal, mask)


def biased_attention(
    q: Array, k: Array, v: Array, bias: Array, causal: bool = False, mask: Array | None = None
) -> Array:
    """softmax(q kᵀ / √d + bias) v, of the shapes of `attend`; all scores are kept for the gradient.

    The sum over n in the gradient of the bias is what `cpu_attention` has no room for.
    """
    n, t, h, d = q.shape
    rows = lambda x: x.swapaxes(1, 2).reshape(n * h, x.shape[1], d)
    scores = _product(rows(q) / math.sqrt(d), rows(k), 2, 2).reshape(n, h, t, -1) + bias
    below = np.tri(t, k.shape[1], dtype=bool) if causal else None
    seen = below if mask is None else mask if below is None else mask & below
    scores = scores if seen is None else jnp.where(seen, scores, -1e9)
    p = jax.nn.softmax(scores, axis=-1).reshape(n * h, t, -1).astype(v.dtype)
    y = _product(p, rows(v), 2, 1).astype(v.dtype)
    return y.reshape(n, h, t, d).swapaxes(1, 2)


def cpu_attention(
    q: Array, k: Array, v: Array, causal: bool = False, mask: Array | None = None
) -> Array:
    """softmax(q kᵀ / √d) v, as `jax.nn.dot_product_attention` but several times as fast on a CPU.

    Divides by softmax's sums after the product with v, and stores no scores for the gradient, which
    recomputes them for a few heads at a time so that they stay in the processor's cache (as Dao et
    al., 2022, arXiv:2205.14135).
    """
    n, t, h, d = q.shape
    rows = lambda x: x.swapaxes(1, 2).reshape(n * h, x.shape[1], d)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (n, h, *mask.shape[2:])).reshape(n * h, *mask.shape[2:])
    y = _attention(rows(q) / math.sqrt(d), rows(k), rows(v), mask, causal)
    return y.reshape(n, h, t, d).swapaxes(1, 2)


@lambda f: jax.custom_vjp(f, nondiff_argnums=(4,))  # A partial would have no type.
def _attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """softmax(q kᵀ) v of queries (m, t, d), keys and values (m, s, d), where a `mask` (m, t or 1,
    s) is true."""
    return _forward(q, k, v, mask, causal)[0]


def _forward(q, k, v, mask, causal):
    scores = _scores(q, k, _seen(q, k, mask, causal))
    top = scores.max(-1, keepdims=True)
    e = jnp.exp(scores - top)
    total = e.sum(-1, keepdims=True)
    y = (_product(e.astype(v.dtype), v, 2, 1) / total).astype(v.dtype)
    return y, (q, k, v, mask, y, top, total)


def _backward(causal, kept, dy):
    def some(q, k, v, mask, y, top, total, dy):
        seen = _seen(q, k, mask, causal)
        p = jnp.exp(_scores(q, k, seen) - top) / total
        mean = jnp.sum(dy.astype(jnp.float32) * y, -1, keepdims=True)
        ds = p * (_product(dy, v, 2, 2) - mean)
        # A token that attends to nothing has no gradient either.
        ds = (ds if seen is None else jnp.where(seen, ds, 0)).astype(q.dtype)
        turned = [jax.lax.optimization_barrier(x.swapaxes(1, 2)) for x in (ds, p.astype(q.dtype))]
        return tuple(
            _product(a, b, 2, 1).astype(q.dtype)
            for a, b in ((ds, k), (turned[0], q), (turned[1], dy))
        )

    heads = max(1, CACHE // (kept[0].shape[1] * kept[1].shape[1]))
    return *map_blocks(some, (*kept, dy), per_block(len(dy), heads)), None


_attention.defvjp(_forward, _backward)


def _seen(q, k, mask, causal):
    """Keys that `mask` and `causal` allow, (m or 1, t or 1, s), or None for all."""
    below = np.tri(q.shape[1], k.shape[1], dtype=bool)[None] if causal else None
    return mask if below is None else below if mask is None else mask & below


def _scores(q, k, seen):
    scores = _product(q, k, 2, 2)
    # exp(-1e9) is 0, and unlike -inf passes jax_debug_infs.
    return scores if seen is None else jnp.where(seen, scores, -1e9)


def _product(a: Array, b: Array, i: int, j: int) -> Array:
    """The matrix products of `a` (m, ...) and `b` (m, ...) over their axes i and j, in float32."""
    return jax.lax.dot_general(
        a, b, (((i,), (j,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )


BUCKETS = 32  # Of distances, with a learned bias for each, and
FARTHEST = 128  # the distance from which on all are in the last: T5's.


def distance_buckets(distance: Array, both: bool) -> Array:
    """The bucket, from 0 to 31, of a key at `distance`, its place less that of its query.

    With `both`, 16 are for keys up to the query's place, and 16 for those after it; else all are
    for those up to it, and a key after it is in bucket 0. Half of them are of one distance each,
    and the others grow by a constant factor up to 128: Raffel et al., 2020, arXiv:1910.10683,
    section 2.1, as in the authors' code.
    """
    own = BUCKETS // 2 if both else BUCKETS
    exact = own // 2
    far = np.arange(FARTHEST + 1, dtype=np.float32)
    grown = np.log(np.maximum(far, 1) / exact) / np.float32(math.log(FARTHEST / exact))
    grown = np.minimum(exact + (grown * (own - exact)).astype(np.int32), own - 1)
    table = jnp.asarray(np.where(far < exact, far, grown).astype(np.int32))
    if both:
        return table[jnp.minimum(jnp.abs(distance), FARTHEST)] + own * (distance > 0)
    return table[jnp.clip(-distance, 0, FARTHEST)]


def rotary(x: Array, at: Array, base: float = 10_000.0) -> Array:
    """`x` (n, t, heads, d) with each pair (i, i + d/2) of channels rotated.

    The angle is `at` (t,) · base^(-2i/d), so that q · k depends on positions only by their
    distance: Su et al., 2021, arXiv:2104.09864, eq. 15, with the pairs of GPT-NeoX. InputError for
    an odd d.
    """
    d = x.shape[-1]
    if d % 2:
        raise InputError(
            f"Rotary positions turn pairs of channels, and a head has {d}: change width or heads."
        )
    angle = at[:, None] * base ** (-np.arange(0, d, 2) / d)
    cos, sin = (f(angle)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
