"""The partition function of contrastive losses in tiles, without the whole (n, m) matrix."""

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ssljax.errors import InputError
from ssljax.sharding import BATCH, batch_parts

TILE = 2**23  # Elements of the matrix in memory at once: 32 MB in float32.
NONE = -1e9  # exp(-1e9) is 0, and unlike -inf passes jax_debug_infs.


def product(a: Array, b: Array) -> Array:
    """The matrix product in full float32: a low temperature magnifies the rounding of GPUs and
    TPUs."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@lambda f: jax.custom_vjp(f, nondiff_argnums=(4, 5))  # A partial would have no type.
def log_partition(
    q: Array,
    k: Array,
    weights: Array,
    scale: Array | float,
    diagonal: bool = True,
    tile: int = TILE,
) -> Array:
    """Σ_i weights_i log Σ_j exp(scale q_i · k_j) of queries q (n, d) and keys k (m, d), float32.

    Exact. Without the `diagonal`, j = i is left out of the sum; InputError unless n = m then. At
    most about `tile` elements of q kᵀ are in memory on each device: queries stay where they are and
    blocks of keys go around the devices in a ring. A gradient is computed together with the value,
    tile by tile, so that on one device no product is computed twice.
    """
    _check(q, k, diagonal)

    def local(q, k, weights, scale):
        return _total(jnp.sum(weights * _ring_lse(q, k, scale, diagonal, tile)))

    return _on_devices(local, P(), q, k, weights, scale)


def _forward(q, k, weights, scale, diagonal, tile):
    value, *grads = _value_and_grads(q, k, weights, scale, diagonal, tile)
    return value, grads


def _backward(diagonal, tile, grads, g):
    return tuple(g * x for x in grads)


log_partition.defvjp(_forward, _backward)


def _value_and_grads(q, k, weights, scale, diagonal, tile):
    _check(q, k, diagonal)

    def local(q, k, weights, scale):
        if _devices() == 1:
            lse, dq, dk = _block(q, k, scale, diagonal, tile, weights)
        else:
            lse = _ring_lse(q, k, scale, diagonal, tile)
            dq, dk = _ring_grads(q, k, weights, scale, lse, diagonal, tile)
        by_scale = _total(jnp.sum(q * dq))  # Σ p (q · k), as dq and dk still lack the scale.
        return _total(jnp.sum(weights * lse)), scale * dq, scale * dk, lse, by_scale

    return _on_devices(local, (P(), BATCH, BATCH, BATCH, P()), q, k, weights, scale)


def _ring_lse(q, k, scale, diagonal, tile):
    """log Σ_j exp(scale q_i · k_j) of this device's queries over the keys of all devices."""

    def turn(carry, i):
        lse, k = carry
        following = _pass_on(k)  # Sent before the products, which hide the transfer.
        block = _block(q, k, scale, diagonal | (i > 0), tile)[0]
        return (jnp.logaddexp(lse, block), following), None

    start = _block(q, k, scale, diagonal, tile)[0]
    if _devices() == 1:
        return start
    return jax.lax.scan(turn, (start, _pass_on(k)), jnp.arange(1, _devices()))[0][0]


def _ring_grads(q, k, weights, scale, lse, diagonal, tile):
    """Gradients by this device's queries and its keys; a key's is summed on its way around the
    ring."""

    def turn(carry, i):
        dq, k, dk = carry
        _, more, dk_block = _block(q, k, scale, diagonal | (i > 0), tile, weights, lse)
        return (dq + more, _pass_on(k), _pass_on(dk + dk_block)), None

    start = (jnp.zeros_like(q), k, jnp.zeros_like(k))
    (dq, _, dk), _ = jax.lax.scan(turn, start, jnp.arange(_devices()))
    return dq, dk


def _block(q, k, scale, diagonal, tile, weights=None, lse=None):
    """log Σ exp of each query over these keys and, with `weights`, gradients by scale q and scale
    k.

    `lse` is the log of the sum over all keys, of which these are a part.
    """
    n, rows = len(q), max(1, min(len(q), tile // len(k)))
    tiles = -(-n // rows)
    pad = lambda x: jnp.pad(x, [(0, tiles * rows - n)] + [(0, 0)] * (x.ndim - 1)).reshape(
        tiles, rows, *x.shape[1:]
    )

    def one(dk, part):
        i, q, *rest = part
        logits = scale * product(q, k.T)
        own = jnp.arange(len(k)) == (i * rows + jnp.arange(rows))[:, None]
        logits = jnp.where(own & jnp.logical_not(diagonal), NONE, logits)
        sums = jax.nn.logsumexp(logits, axis=1) if lse is None else rest[1]
        if weights is None:
            return dk, (sums,)
        p = jnp.exp(logits - sums[:, None]) * rest[0][:, None]
        return dk + product(p.T, q), (sums, product(p, k))

    arrays = [pad(x) for x in (q, weights, lse) if x is not None]
    start = jnp.zeros(()) if weights is None else jnp.zeros_like(k)
    if tiles == 1:
        dk, out = one(start, (jnp.zeros((), jnp.int32), *(x[0] for x in arrays)))
    else:
        dk, out = jax.lax.scan(one, start, (jnp.arange(tiles), *arrays))
    return *(x.reshape(-1, *x.shape[2:])[:n] if tiles > 1 else x for x in out), dk


def _devices() -> int:
    return jax.lax.axis_size(BATCH[0]) if _on_mesh() else 1


def _on_mesh() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _total(x: Array) -> Array:
    return jax.lax.psum(x, BATCH[0]) if _on_mesh() else x


def _pass_on(x: Array) -> Array:
    n = _devices()
    return jax.lax.ppermute(x, BATCH[0], [(i, (i + 1) % n) for i in range(n)])


def _on_devices(f, out_specs, q, k, weights, scale):
    """f on each device's part of the arrays if they divide by the mesh's size, else on the
    whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(len(x) % batch_parts() for x in (q, k)):
        return f(q, k, weights, scale)
    return jax.shard_map(
        f, in_specs=(BATCH, BATCH, BATCH, P()), out_specs=out_specs, check_vma=False
    )(q, k, weights, scale)


def _check(q: Array, k: Array, diagonal: bool) -> None:
    if not diagonal and len(q) != len(k):
        raise InputError(
            f"{len(q)} queries and {len(k)} keys have no diagonal to leave out: use as many keys "
            "as queries."
        )
