"""Contrastive predictive coding: the past of a sequence picks its own future from the batch."""

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.errors import InputError


def cpc_loss(c: Array, z: Array, w: Array) -> tuple[Array, Array]:
    """InfoNCE of contexts and codes up to `steps` = len(w) into the future: (loss, accuracy).

    log f_k(z', c_t) = z' · (c_t W_k), with contexts `c` (n, time, d), codes `z` (n, time, e) and
    `w` (steps, d, e). For each t and k <= steps the positive is z_{t+k} of the same example and the
    negatives are z_{t+k} of the others. The loss is the mean over all pairs of times in nats (log n
    is chance); accuracy is the fraction of positives with the largest f. InputError unless the
    shapes fit and steps < time.

    van den Oord et al., 2018, arXiv:1807.03748, eqs. 3 and 4.
    """
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
    own = jnp.broadcast_to(jnp.arange(len(c)), (time, len(c)))

    def ahead(total, step):  # A loop, since copies of it for every step take long to compile.
        k, w = step
        logits = jnp.einsum("itd,jtd->tij", c @ w, jnp.roll(z, -k, axis=1), precision="highest")
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, own)
        exists = (
            jnp.arange(time)[:, None] < time - k
        )  # Later codes have rolled over from the start.
        right = jnp.argmax(logits, axis=-1) == own
        return total + jnp.stack([jnp.sum(exists * nll), jnp.sum(exists * right)]), None

    total, _ = jax.lax.scan(ahead, jnp.zeros(2), (jnp.arange(1, steps + 1), w))
    loss, accuracy = total / (len(c) * sum(time - k for k in range(1, steps + 1)))
    return loss, accuracy
