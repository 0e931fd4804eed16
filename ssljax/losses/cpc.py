"""Contrastive predictive coding: the past of a sequence picks its own future from the batch."""

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax

from ssljax.accumulation import whole_batch
from ssljax.errors import InputError
from ssljax.sharding import BATCH, batch_parts


def cpc_loss(c: Array, z: Array, w: Array) -> tuple[Array, Array]:
    """InfoNCE of contexts and codes up to `steps` = len(w) into the future: (loss, accuracy).

    log f_k(z', c_t) = z' · (c_t W_k), with contexts `c` (n, time, d), codes `z` (n, time, e) and
    `w` (steps, d, e). For each t and k <= steps the positive is z_{t+k} of the same example and the
    negatives are z_{t+k} of the others. The loss is the mean over all pairs of times in nats (log n
    is chance); accuracy is the fraction of positives with the largest f. InputError unless the
    shapes fit and steps < time.

    van den Oord et al., 2018, arXiv:1807.03748, eqs. 3 and 4.
    """
    whole_batch()
    steps, time = len(w), c.shape[1]
    if z.shape[:2] != c.shape[:2] or w.shape[1:] != (c.shape[-1], z.shape[-1]):
        raise InputError(
            "c (n, time, d), z (n, time, e) and w (steps, d, e) are needed, not "
            f"{c.shape}, {z.shape}, {w.shape}."
        )
    if not 0 < steps < time:
        raise InputError(
            f"{steps} steps into the future don't fit into {time} codes: predict fewer or use "
            "longer waves."
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(c) % batch_parts():
        total = _sums(c, z, w, jnp.arange(len(c)))
    else:
        # Codes of the other devices are gathered once, not at each step into the future.
        def local(c, z, w):
            own = jax.lax.axis_index(BATCH[0]) * len(c) + jnp.arange(len(c))
            every = jax.lax.all_gather(z, BATCH[0], tiled=True)
            return jax.lax.psum(_sums(c, every, w, own), BATCH[0])

        specs = (BATCH, BATCH, P())
        total = jax.shard_map(local, in_specs=specs, out_specs=P(), check_vma=False)(c, z, w)
    loss, accuracy = total / (len(c) * sum(time - k for k in range(1, steps + 1)))
    return loss, accuracy


def _sums(c: Array, z: Array, w: Array, own: Array) -> Array:
    """Sums of -log p and of right picks, (2,): `c[i]` picks the future of `z[own[i]]`."""
    steps, time = len(w), c.shape[1]
    own = jnp.broadcast_to(own, (time, len(c)))

    def ahead(total, step):  # A loop, since copies of it for every step take long to compile.
        k, w = step
        logits = jnp.einsum("itd,jtd->tij", c @ w, jnp.roll(z, -k, axis=1), precision="highest")
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, own)
        exists = (
            jnp.arange(time)[:, None] < time - k
        )  # Later codes have rolled over from the start.
        right = jnp.argmax(logits, axis=-1) == own
        return total + jnp.stack([jnp.sum(exists * nll), jnp.sum(exists * right)]), None

    return jax.lax.scan(ahead, jnp.zeros(2), (jnp.arange(1, steps + 1), w))[0]
