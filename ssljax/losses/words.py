"""Word vectors by negative sampling: a word's vector separates its neighbours from random words."""

from collections.abc import Callable

from jax import Array
from jax.nn import log_sigmoid
import jax.numpy as jnp


def skip_gram_loss(v: Array, u: Array, near: Array, n: Array, k: float) -> Array:
    """Skip-gram with negative sampling, negated and summed over pairs of centre and context.

    `near` (b, t, s) marks by 1 the pairs of centres `v` (b, t, d) and contexts `u` (b, s, d) in
    each of b blocks; each pair has `k` negatives. Deviations: the expectation over negatives is the
    mean over the rows of `n` (b, m, d), shared by the pairs of a block, so that all is matrix
    products; and a pair's own context may be among its negatives, with the probability that the
    noise gives it (eq. 4 does not exclude it), where word2vec.c and gensim skip it.

    Mikolov et al., 2013, arXiv:1310.4546, eq. 4.
    """
    near = near.astype(v.dtype)
    positive = jnp.sum(near * log_sigmoid(_dots(v, u)))
    return -positive - k * jnp.sum(near.sum(-1) * log_sigmoid(-_dots(v, n)).mean(-1))


def cbow_loss(v: Array, u: Array, near: Array, n: Array, k: float) -> Array:
    """Continuous bag of words: the mean of a word's neighbours predicts the word.

    Row i of `near` (b, t, s) marks the neighbours among `v` (b, s, d) of the word whose output
    vector is row i of `u` (b, t, d); words without neighbours count 0. Negatives are as in
    `skip_gram_loss`. Each neighbour gets its share of the mean's gradient, where word2vec.c gives
    each the whole of it (İrsoy et al., 2020, arXiv:2012.15332).

    Mikolov et al., 2013, arXiv:1301.3781.
    """
    near = near.astype(v.dtype)
    count = near.sum(-1)
    h = near @ v / jnp.maximum(count, 1)[..., None]
    each = log_sigmoid(jnp.sum(h * u, -1)) + k * log_sigmoid(-_dots(h, n)).mean(-1)
    return -jnp.sum((count > 0) * each)


def term_counts(loss: Callable, near: Array, m: int, k: float) -> tuple[Array, Array, Array]:
    """The number of terms of `loss` (one of the two above) with each row of its v, u and n (m
    rows).

    `k` is the number of negatives of a pair.
    """
    near = near.astype(jnp.float32)
    count = near.sum(-1)
    positives = count if loss is skip_gram_loss else (count > 0).astype(jnp.float32)
    noise = jnp.broadcast_to(k / m * positives.sum(-1, keepdims=True), (len(near), m))
    if loss is skip_gram_loss:
        return (1 + k) * count, near.sum(-2), noise
    return (1 + k) * (near / jnp.maximum(count, 1)[..., None]).sum(-2), positives, noise


def _dots(a: Array, b: Array) -> Array:
    return a @ b.swapaxes(-1, -2)
