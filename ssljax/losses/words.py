"""Word vectors by negative sampling: a word's vector tells its neighbours from words drawn at random."""

from collections.abc import Callable

from jax import Array
from jax.nn import log_sigmoid
import jax.numpy as jnp


def skip_gram_loss(v: Array, u: Array, near: Array, n: Array, k: float) -> Array:
    """Skip-gram with negative sampling: Mikolov et al., 2013, arXiv:1310.4546, eq. 4, negated, summed over pairs.

    In each of b blocks the centres `v` (b, t, d) have those of the contexts `u` (b, s, d) that `near` (b, t, s) marks
    by 1 or true, and each pair `k` negatives. Deviation: the expectation over them is the mean over the rows of `n`
    (b, m, d), which a block's pairs share, so that all is products of matrices.
    """
    near = near.astype(v.dtype)
    told = jnp.sum(near * log_sigmoid(_dots(v, u)))
    return -told - k * jnp.sum(near.sum(-1) * log_sigmoid(-_dots(v, n)).mean(-1))


def cbow_loss(v: Array, u: Array, near: Array, n: Array, k: float) -> Array:
    """Continuous bag of words (Mikolov et al., 2013, arXiv:1301.3781): the mean of a word's neighbours tells the word.

    Row i of `near` (b, t, s) marks the neighbours among `v` (b, s, d) of the word whose output vector is row i of `u`
    (b, t, d); words without any count for nothing. Negatives as in `skip_gram_loss`. The gradient is this
    loss's own, where word2vec.c gives each neighbour the whole of the mean's (İrsoy et al., 2020, arXiv:2012.15332).
    """
    near = near.astype(v.dtype)
    count = near.sum(-1)
    h = near @ v / jnp.maximum(count, 1)[..., None]
    told = log_sigmoid(jnp.sum(h * u, -1)) + k * log_sigmoid(-_dots(h, n)).mean(-1)
    return -jnp.sum((count > 0) * told)


def term_counts(loss: Callable, near: Array, m: int, k: float) -> tuple[Array, Array, Array]:
    """How many terms of `loss` (skip_gram or cbow) each row of its v, u and n is in, with `k` negatives to a pair."""
    near = near.astype(jnp.float32)
    count = near.sum(-1)
    told = count if loss is skip_gram_loss else (count > 0).astype(jnp.float32)
    noise = jnp.broadcast_to(k / m * told.sum(-1, keepdims=True), (len(near), m))
    if loss is skip_gram_loss:
        return (1 + k) * count, near.sum(-2), noise
    return (1 + k) * (near / jnp.maximum(count, 1)[..., None]).sum(-2), told, noise


def _dots(a: Array, b: Array) -> Array:
    return a @ b.swapaxes(-1, -2)
