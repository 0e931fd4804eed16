"""Contrastive losses: classify the positive among negatives."""

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.accumulation import whole_batch
from ssljax.errors import InputError
from ssljax.losses.tiled import log_partition, product, TILE
from ssljax.sharding import whole


def normalize(z: Array, eps: float = 1e-12) -> Array:
    """`z`, (..., d), scaled to length 1; a row of zeros stays zero, with a zero gradient."""
    square = jnp.sum(z**2, axis=-1, keepdims=True)
    return z / jnp.sqrt(jnp.maximum(square, eps**2))


def nt_xent_loss(za: Array, zb: Array, tau: float = 0.5, tiled: bool | None = None) -> Array:
    """NT-Xent, SimCLR's loss, of two views `za[i]` and `zb[i]` (n, d) of each image i.

    The mean over all 2n views, each with its other view as the positive and the remaining 2n - 2 as
    negatives, at temperature τ (`tau`). `tiled` computes it without the (2n, 2n) matrix
    (`losses.tiled`); None does so where the matrix is over 32 MB.

    Chen et al., 2020, arXiv:2002.05709, eq. 1.
    """
    whole_batch()
    _check(za, zb, tau)
    n = len(za)
    # An image's views are next to each other, so that devices that share the images share the rows.
    pairs = normalize(jnp.stack([za, zb], axis=1).astype(jnp.float32))
    z = pairs.reshape(2 * n, -1)
    if _large(z, z) if tiled is None else tiled:
        agree = jnp.sum(pairs[:, 0] * pairs[:, 1]) / (tau * n)
        return log_partition(z, z, jnp.full(2 * n, 1 / (2 * n)), 1 / tau, diagonal=False) - agree
    # A view is no negative of itself: exp(-1e9) is 0, and unlike -inf passes jax_debug_infs.
    logits = jnp.where(jnp.eye(2 * n, dtype=bool), -1e9, product(z, z.T) / tau)
    positive = jnp.arange(2 * n) ^ 1
    return optax.softmax_cross_entropy_with_integer_labels(logits, positive).mean()


def info_nce_loss(
    q: Array,
    k: Array,
    negatives: Array | None = None,
    tau: float | Array = 0.07,
    tiled: bool | None = None,
) -> Array:
    """InfoNCE of queries `q` (n, d) and their keys `k` (n, d), by cosine, at temperature τ (`tau`).

    The negatives of a query are the keys of the other queries or, where given, the rows of
    `negatives` (m, d) alone, as in MoCo (He et al., 2020, arXiv:1911.05722, eq. 1). `tiled` is as
    in `nt_xent_loss`; with `negatives` it is an InputError.

    van den Oord et al., 2018, arXiv:1807.03748, eq. 4.
    """
    if negatives is None:
        whole_batch()
    if tiled and negatives is not None:
        raise InputError("With given negatives the whole matrix is computed: leave `tiled` out.")
    _check(q, k, tau)
    q, k = normalize(q.astype(jnp.float32)), normalize(k.astype(jnp.float32))
    if negatives is None and (_large(q, k) if tiled is None else tiled):
        return log_partition(q, k, jnp.full(len(q), 1 / len(q)), 1 / tau) - jnp.sum(q * k) / (
            tau * len(q)
        )
    if negatives is None:
        logits, positive = product(q, k.T), jnp.arange(len(q))
    else:
        logits = jnp.concatenate(
            [jnp.sum(q * k, -1, keepdims=True), product(q, normalize(negatives).T)], axis=-1
        )
        positive = jnp.zeros(len(q), jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits / tau, positive).mean()


def clip_loss(za: Array, zb: Array, tau: float | Array = 0.07, tiled: bool | None = None) -> Array:
    """The mean of InfoNCE in both directions, image to text and back; `za[i]` belongs to `zb[i]`,
    (n, d).

    Radford et al., 2021, arXiv:2103.00020, figure 3, where 1/τ is learned: exp of a parameter, at
    most 100. `tiled` is as in `nt_xent_loss`.
    """
    return (
        info_nce_loss(za, zb, tau=tau, tiled=tiled) + info_nce_loss(zb, za, tau=tau, tiled=tiled)
    ) / 2


def siglip_loss(za: Array, zb: Array, scale: float | Array, bias: float | Array) -> Array:
    """The mean over images of Σ_j -log σ(± (t cos(za_i, zb_j) + b)), + for the image's own text i.

    `za` and `zb` are (n, d), t is `scale`, and b is `bias`, at first log 10 and -10 in the paper.
    The whole (n, n) matrix is computed, in parts only on several devices.

    Zhai et al., 2023, arXiv:2303.15343, eq. in section 3.2 and algorithm 1.
    """
    whole_batch()
    _check(za, zb, 1.0)
    za, zb = normalize(za.astype(jnp.float32)), normalize(zb.astype(jnp.float32))
    logits = scale * product(za, zb.T) + bias
    return (
        -jax.nn.log_sigmoid(jnp.where(jnp.eye(len(za), dtype=bool), logits, -logits)).sum(1).mean()
    )


def supcon_loss(z: Array, labels: Array, tau: float = 0.1, tiled: bool | None = None) -> Array:
    """SupCon's L_out: the mean over views `z`, (n, d), of -log p, averaged over the same label's
    views.

    A view whose label no other view shares counts 0. The authors' code multiplies the loss by
    τ/0.07 (1.43 at τ = 0.1), which eq. 2 has not: their SGD's learning rate 0.5 is 0.714 here.
    `tiled` is as in `nt_xent_loss`.

    Khosla et al., 2020, arXiv:2004.11362, eq. 2.
    """
    whole_batch()
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        raise InputError(
            f"Views (n, d) and their labels (n,) are needed, not {z.shape} and {labels.shape}."
        )
    _check(z, z, tau)
    z = normalize(z.astype(jnp.float32))
    if _large(z, z) if tiled is None else tiled:
        # The mean over positives is a product with their class's sum; a class's number is its rank.
        order, n = jnp.argsort(labels), len(z)
        number = jnp.cumsum(jnp.diff(labels[order], prepend=labels[order[:1]]) != 0)
        number = jnp.zeros(n, jnp.int32).at[order].set(number)
        of_class = lambda x: jax.ops.segment_sum(x, number, n)[number]
        others = of_class(jnp.ones(n)) - 1
        agree = jnp.sum(z * (of_class(z) - z), -1) / (tau * jnp.maximum(others, 1))
        counts = (others > 0) / n
        return log_partition(z, z, counts, 1 / tau, diagonal=False) - jnp.sum(counts * agree)
    itself = jnp.eye(len(z), dtype=bool)
    log_p = jax.nn.log_softmax(jnp.where(itself, -1e9, product(z, z.T) / tau))
    positive = (labels[:, None] == labels) & ~itself
    return -jnp.mean(jnp.sum(log_p, -1, where=positive) / jnp.maximum(positive.sum(-1), 1))


def nearest_neighbour(z: Array, support: Array) -> Array:
    """The row of `support`, (m, d), nearest to each of `z`, (n, d), by cosine, without a gradient.

    NNCLR's queries: Dwibedi et al., 2021, arXiv:2104.14548, eq. 2. InputError for an empty support.
    """
    if not len(support):
        raise InputError("An empty support set has no neighbours: choose --queue above 0.")
    cosines = product(normalize(jax.lax.stop_gradient(z)), normalize(support).T)
    return jax.lax.stop_gradient(support[jnp.argmax(cosines, axis=-1)])


def enqueue(queue: Array, rows: Array) -> Array:
    """`queue`, (m, d), with `rows`, (n, d), in place of its n oldest rows, without a gradient.

    MoCo: He et al., 2019, arXiv:1911.05722, section 3.1. InputError unless m is a multiple of n.
    """
    whole_batch()
    check_queue(len(queue), len(rows))
    rows = whole(rows.astype(queue.dtype))  # The queue is on every device.
    return jax.lax.stop_gradient(jnp.concatenate([rows, queue[: -len(rows)]]))


def check_queue(size: int, batch_size: int) -> None:
    """InputError unless the queue's size is a multiple of the batch's."""
    if size < 1 or size % batch_size:  # A batch larger than the queue has a remainder as well.
        near = max(1, size // batch_size) * batch_size
        raise InputError(
            f"--queue must be a multiple of --batch-size {batch_size}, such as {near}, not {size}."
        )


def _large(q: Array, k: Array) -> bool:
    return len(q) * len(k) > TILE


def _check(a: Array, b: Array, tau: float | Array) -> None:
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(
            f"Two views of the same shape (n, d) are needed, not {a.shape} and {b.shape}."
        )
    if isinstance(tau, (int, float)) and tau <= 0:
        raise InputError(f"The temperature must be positive, not {tau}.")
