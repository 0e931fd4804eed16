"""Attention for all nets, fused on accelerators and our own on a CPU, and relative positions."""

from collections.abc import Iterator
import contextlib
import math
import re
from typing import Any, Literal
from unittest import mock

import flax.linen as nn
from flax.linen.dtypes import promote_dtype
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from ssljax.errors import InputError
from ssljax.models.blocks import map_blocks, per_block
from ssljax.sharding import BATCH, batch_parts, device_kind, platform, tensor_parts

CACHE = 2**18  # Scores at a time, 1 MiB of them, in `cpu_attention`'s gradient.
CUDNN = 91000  # A version of cuDNN that has what we use, for programs of a GPU that isn't there.
BEFORE_AMPERE = r"GTX|TITAN|RTX 20\d\d|Quadro"  # A Tesla's name begins otherwise.
NAMES = {
    "cudnn": "cuDNN's flash attention",
    "splash": "the TPU's splash kernel",
    "xla": "XLA's, with all scores in memory",
    "cpu": "our own for CPUs",
}
_records: list[dict[str, str]] = []


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
    there are gradients of any order, but without a bias no forward mode (`jax.jvp`); the fused ones
    of GPUs and TPUs have a first gradient alone. `implementation` says which is used.
    """
    name, why = implementation(q, k, causal, mask, bias)
    for record in _records:
        record[name] = why
    if name == "splash":
        return splash_attention(q, k, v, causal)
    if name == "cudnn":
        return even_attention(q, k, v, causal)
    if name == "xla":
        return jax.nn.dot_product_attention(q, k, v, bias, mask, is_causal=causal)
    if bias is not None:
        return biased_attention(q, k, v, bias, causal, mask)
    return cpu_attention(q, k, v, causal, mask)


def implementation(
    q: Array, k: Array, causal: bool = False, mask: Array | None = None, bias: Array | None = None
) -> tuple[str, str]:
    """The attention that `attend` uses on the mesh's device: a key of `NAMES`, and for "xla" why.

    cuDNN's flash attention is for NVIDIA's GPUs from Ampere on; the splash kernel is for TPUs.
    """
    where = platform()
    if where == "cpu":
        # There heads are an axis of their own, and not joined with the rows.
        return ("xla", "heads on several devices") if tensor_parts() > 1 else ("cpu", "")
    n, t, _, d = q.shape
    kind = device_kind()
    limits = [
        (mask is not None, "a mask"),
        (bias is not None, "a bias"),
        (t != k.shape[1], "other queries than keys"),
    ]
    if where == "tpu":
        limits += [
            (t % 128 > 0, f"{t} tokens, where the kernel takes multiples of 128"),
            (n % batch_parts() > 0, f"{n} rows on {batch_parts()} devices"),
        ]
        name = "splash"
    else:
        old = not kind.startswith("NVIDIA") or bool(re.search(BEFORE_AMPERE, kind))
        limits += [
            (old, kind),
            (q.dtype not in (jnp.bfloat16, jnp.float16), "float32: --dtype bfloat16 to fuse it"),
            (d % 8 > 0 or d > 128, f"heads of {d} channels"),
            (t < 64, f"{t} tokens"),
            (not _has_cudnn(), "no cuDNN found"),
        ]
        name = "cudnn"
    why = next((reason for holds, reason in limits if holds), "")
    return ("xla", why) if why else (name, "")


@contextlib.contextmanager
def recording() -> Iterator[dict[str, str]]:
    """{implementation: why} of what `attend` uses in programs that are traced in the context."""
    found: dict[str, str] = {}
    _records.append(found)
    try:
        yield found
    finally:
        _records.remove(found)


def described(found: dict[str, str]) -> str:
    """What `recording` gives, for a line of a log."""
    return "; ".join(NAMES[name] + (f" ({why})" if why else "") for name, why in found.items())


def _has_cudnn() -> bool:
    from jax._src.cudnn import fused_attention_stablehlo as fused

    try:
        return fused.check_cudnn_version() >= CUDNN
    except RuntimeError:
        return False


@contextlib.contextmanager
def assumed_cudnn() -> Iterator[None]:
    """Lets programs be compiled for a GPU that isn't there, by a process without cuDNN."""
    with mock.patch("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: CUDNN):
        yield


class Projections(nn.Dense):
    """`nn.Dense` of rows (n, d) to (n, parts, heads, channels): queries, keys and values of heads.

    `features` are those of all parts. Where heads are split over devices (`sharding.tensor`), each
    computes its own from its columns of the kernel; InputError where they can't be.
    """

    parts: int = 3
    """Queries, keys and values: how many of them."""
    heads: int = 1
    """Attention heads of each."""

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        size = (self.parts, self.heads, self.features // (self.parts * self.heads))
        if (n := tensor_parts()) == 1:
            return super().__call__(inputs).reshape(len(inputs), *size)
        if self.heads % n:
            raise InputError(
                f"--run.tensor {n} can't split {self.heads} heads evenly: choose a divisor."
            )
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        given = [inputs, kernel.reshape(-1, *size)]
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
            given.append(bias.reshape(size))
        x, kernel, *biases = promote_dtype(*given, dtype=self.dtype)
        kernel = jax.lax.with_sharding_constraint(kernel, P(None, None, "tensor", None))
        y = jnp.tensordot(x, kernel, 1)
        y = jax.lax.with_sharding_constraint(y, P(P.UNCONSTRAINED, None, "tensor", None))
        return y + biases[0] if biases else y


def even_attention(
    q: Array, k: Array, v: Array, causal: bool = False, name: Literal["cudnn", "xla"] = "cudnn"
) -> Array:
    """Attention of `attend` by `jax.nn.dot_product_attention`, of any number of tokens.

    cuDNN's gradient takes an even number of tokens, and a class token often makes it odd: one more
    is added then, which is not attended to.
    """
    n, t = q.shape[:2]
    if t % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=name)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(n, t, jnp.int32)
    how = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths, "is_causal": causal}
    return jax.nn.dot_product_attention(q, k, v, **how, implementation=name)[:, :t]


def splash_attention(
    q: Array, k: Array, v: Array, causal: bool = False, interpret: bool = False
) -> Array:
    """Attention of `attend` by JAX's splash kernel for TPUs, which keeps no scores.

    The rows are split over the devices of the mesh, which must divide them. `interpret` runs the
    kernel on any machine, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    t, _, d = q.shape[1:]
    block = max(size for size in (128, 256, 512) if t % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": block for name in names}
    sizes = kernel.BlockSizes(**blocks)

    def local(q: Array, k: Array, v: Array) -> Array:
        heads = q.shape[2]  # Of this device.
        mask = (masks.CausalMask if causal else masks.FullMask)((t, t))
        of_row = kernel.make_splash_mha(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        q, k, v = (x.swapaxes(1, 2) for x in (q / math.sqrt(d), k, v))
        y: Any = jax.vmap(of_row)(q, k, v)  # An array, without residuals.
        return y.swapaxes(1, 2)

    if batch_parts() * tensor_parts() == 1:
        return local(q, k, v)
    # A kernel is opaque to the partitioner, which would gather all rows on each device.
    at = P(*BATCH, None, "tensor" if tensor_parts() > 1 else None)
    return jax.shard_map(local, in_specs=(at, at, at), out_specs=at, check_vma=False)(q, k, v)


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
