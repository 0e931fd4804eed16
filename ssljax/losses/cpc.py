"""Contrastive predictive coding: which of the batch's futures is this past's?"""

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.errors import InputError


def cpc_loss(c: Array, z: Array, w: Array) -> tuple[Array, Array]:
    """InfoNCE over `steps` into the future: van den Oord et al., 2018, arXiv:1807.03748, eq. 3 and 4.

    log f_k(z', c_t) = z' · (c_t W_k), with the contexts `c` (n, time, d), the codes `z` (n, time, e) and `w` (steps, d,
    e). For each t and k <= steps the positive is z_{t+k} of the same example, the negatives those of the others.
    Returns two scalars: the mean of the loss over all that exist, in nats (log n is chance), and the share of positives
    that are the largest. InputError where shapes don't fit or no step fits into the time.
    """
    steps, time = len(w), c.shape[1]
    if z.shape[:2] != c.shape[:2] or w.shape[1:] != (c.shape[-1], z.shape[-1]):
        raise InputError(
            "c (n, time, d), z (n, time, e) and w (steps, d, e) are needed, not "
            f"{c.shape}, {z.shape}, {w.shape}."
        )
    if not 0 < steps < time:
        raise InputError(
            f"{steps} steps into the future don't fit into {time} codes: take fewer, or longer waves."
        )
    own = jnp.broadcast_to(jnp.arange(len(c)), (time, len(c)))

    def ahead(total, step):  # A loop, since as many copies of it take long to compile.
        k, w = step
        logits = jnp.einsum("itd,jtd->tij", c @ w, jnp.roll(z, -k, axis=1), precision="highest")
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, own)
        there = (
            jnp.arange(time)[:, None] < time - k
        )  # The others' codes have come round from the beginning.
        found = jnp.stack(
            [jnp.sum(there * nll), jnp.sum(there * (jnp.argmax(logits, axis=-1) == own))]
        )
        return total + found, None

    total, _ = jax.lax.scan(ahead, jnp.zeros(2), (jnp.arange(1, steps + 1), w))
    loss, accuracy = total / (len(c) * sum(time - k for k in range(1, steps + 1)))
    return loss, accuracy
