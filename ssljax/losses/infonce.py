"""Contrastive losses: find the positive among the negatives."""

from jax import Array
import jax.numpy as jnp
import optax

from ssljax.errors import InputError
from ssljax.losses.tiled import TILE, log_partition


def normalize(z: Array, eps: float = 1e-12) -> Array:
    """Rows of `z`, (n, d), at length 1; a row of zeros stays zero, with a zero gradient."""
    square = jnp.sum(z**2, axis=-1, keepdims=True)
    return z / jnp.sqrt(jnp.maximum(square, eps**2))


def nt_xent(za: Array, zb: Array, tau: float = 0.5, tiled: bool | None = None) -> Array:
    """NT-Xent of two views, `za[i]` and `zb[i]` (n, d) of image i: Chen et al., 2020, arXiv:2002.05709, eq. 1.

    Each of the 2n views has its other view as the positive and the remaining 2n - 2 as negatives; the mean over all.
    `tiled` computes the same without the (2n, 2n) matrix (`losses.tiled`); None does so where that is over 32 MB.
    """
    _check(za, zb, tau)
    n = len(za)
    pairs = normalize(jnp.stack([za, zb]).astype(jnp.float32))
    z = pairs.reshape(2 * n, -1)
    if _large(z, z) if tiled is None else tiled:
        agree = jnp.sum(pairs[0] * pairs[1]) / (tau * n)
        return log_partition(z, z, jnp.full(2 * n, 1 / (2 * n)), 1 / tau, diagonal=False) - agree
    # A view is no negative of itself: exp(-1e9) is 0, and unlike -inf doesn't set off JAX's search for infinities.
    logits = jnp.where(jnp.eye(2 * n, dtype=bool), -1e9, z @ z.T / tau)
    positive = (jnp.arange(2 * n) + n) % (2 * n)
    return optax.softmax_cross_entropy_with_integer_labels(logits, positive).mean()


def info_nce(q: Array, k: Array, negatives: Array | None = None, tau: float = 0.07, tiled: bool | None = None) -> Array:
    """InfoNCE of queries `q` (n, d) for their keys `k` (n, d): van den Oord et al., 2018, arXiv:1807.03748, eq. 4.

    The negatives of a query are the other queries' keys or, where given, the rows of `negatives` (m, d) alone, as in
    MoCo (He et al., 2020, arXiv:1911.05722, eq. 1). All are compared by cosine. `tiled` as in `nt_xent`, of the (n, n)
    matrix; with `negatives` it is always whole.
    """
    _check(q, k, tau)
    q, k = normalize(q.astype(jnp.float32)), normalize(k.astype(jnp.float32))
    if negatives is None and (_large(q, k) if tiled is None else tiled):
        return log_partition(q, k, jnp.full(len(q), 1 / len(q)), 1 / tau) - jnp.sum(q * k) / (tau * len(q))
    if negatives is None:
        logits, positive = q @ k.T, jnp.arange(len(q))
    else:
        logits = jnp.concatenate([jnp.sum(q * k, -1, keepdims=True), q @ normalize(negatives).T], axis=-1)
        positive = jnp.zeros(len(q), jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits / tau, positive).mean()


def _large(q: Array, k: Array) -> bool:
    return len(q) * len(k) > TILE


def _check(a: Array, b: Array, tau: float) -> None:
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(f"Two views of the same shape (n, d) are needed, not {a.shape} and {b.shape}.")
    if isinstance(tau, (int, float)) and tau <= 0:
        raise InputError(f"The temperature must be positive, not {tau}.")
