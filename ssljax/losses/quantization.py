"""Vector quantisation: a codebook learned by moving averages, and choices by Gumbel noise."""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.accumulation import whole_batch
from ssljax.sharding import over_batch

Codebook = dict[str, Array]  # {"vectors": (K, d), "counts": (K,), "sums": (K, d)}


def codebook(vectors: Array) -> Codebook:
    """A new codebook with the entries `vectors` (K, d), each with a count of 1."""
    return {"vectors": vectors, "counts": jnp.ones(len(vectors)), "sums": vectors}


def nearest_code(z: Array, vectors: Array) -> Array:
    """The index (...) of the entry of `vectors` (K, d) nearest to each of `z` (..., d).

    van den Oord et al., 2017, arXiv:1711.00937, eq. 1, by squared distance.
    """
    # Less |z|², which is the same for all entries.
    distance = jnp.sum(vectors**2, -1) - 2 * jnp.matmul(z, vectors.T, precision="highest")
    return jnp.argmin(distance, axis=-1)


def straight_through(z: Array, q: Array) -> Array:
    """`q`, with the gradient of `z`."""
    return z + jax.lax.stop_gradient(q - z)


def gumbel_softmax(key: Array | None, logits: Array, temperature: Array | float) -> Array:
    """A choice for each of `logits` (..., V), as a one-hot vector: argmax of l + n, n Gumbel noise.

    The gradient is that of softmax((l + n) / τ): Jang et al., 2016, arXiv:1611.01144, section 2.2,
    and Baevski et al., 2020, arXiv:2006.11477, eq. 1. Without a key there is no noise.
    """
    noise = 0.0 if key is None else over_batch(jax.random.gumbel(key, logits.shape))
    soft = jax.nn.softmax((logits + noise) / temperature, axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), logits.shape[-1], dtype=soft.dtype)
    return straight_through(soft, hard)


def diversity_loss(p: Array, weight: Array) -> Array:
    """1 - (sum over groups of exp H(p̄_g)) / (G V), of `p` (..., G, V): from 0 to 1 - 1/V.

    p̄_g, (V,), is the mean with `weight` (...) of the probabilities of a group's entries, H its
    entropy. So the authors' code has it, and α = 0.1 belongs to it; eq. 4 of Baevski et al., 2020,
    arXiv:2006.11477, has the sum of -H(p̄_g) / (G V), which is least for the same p̄.
    """
    whole_batch()
    sums = jnp.sum(weight[..., None, None] * p, axis=range(p.ndim - 2))
    return 1 - jnp.sum(jax.vmap(codebook_perplexity)(sums)) / sums.size


def group_perplexities(p: Array, weight: Array) -> Array:
    """`codebook_perplexity` of the likeliest entries by `p` (..., G, V), each of `weight` (...):
    (G,), where a group that always takes one entry has 1."""
    likeliest = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1])
    counts = jnp.sum(weight[..., None, None] * likeliest, axis=range(p.ndim - 2))
    return jax.vmap(codebook_perplexity)(counts)


def commitment_loss(z: Array, q: Array) -> Array:
    """The mean of |z - sg(q)|² over vectors, z and q (..., d): the last term of eq. 3, without β.

    The square is summed over the d dimensions, as in eq. 3; implementations that average over them
    (DeepMind's Sonnet, vector-quantize-pytorch) have the same loss with a β d times as large.
    """
    return jnp.mean(jnp.sum((z - jax.lax.stop_gradient(q)) ** 2, axis=-1))


def update_codebook(
    book: Codebook, z: Array, index: Array, key: Array, decay: float = 0.99, dead: float = 0.01
) -> Codebook:
    """The codebook after a batch `z` (m, d) assigned to the entries `index` (m,).

    Counts and sums are moving averages with `decay`, γ: van den Oord et al., 2017, appendix A.1,
    eq. 6 to 8. An entry whose count falls below `dead` times an even share m / K is replaced by a
    random row of `z` (Williams et al., 2020, arXiv:2002.08111, section 4.2).
    """
    z, k = jax.lax.stop_gradient(z), len(book["vectors"])
    taken = jax.nn.one_hot(index, k)
    counts = decay * book["counts"] + (1 - decay) * taken.sum(0)
    sums = decay * book["sums"] + (1 - decay) * jnp.matmul(taken.T, z, precision="highest")
    vectors = sums / jnp.maximum(counts, 1e-6)[:, None]
    share = len(z) / k
    fresh = z[jax.random.randint(key, (k,), 0, len(z))]
    revive = counts < dead * share
    return {
        "vectors": jnp.where(revive[:, None], fresh, vectors),
        "counts": jnp.where(revive, share, counts),
        "sums": jnp.where(revive[:, None], fresh * share, sums),
    }


def codebook_perplexity(counts: Array | np.ndarray) -> Array:
    """exp of the entropy of the entries' frequencies, from `counts` (K,); K if all are used
    equally."""
    p = counts / jnp.maximum(jnp.sum(counts), 1e-12)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)))
