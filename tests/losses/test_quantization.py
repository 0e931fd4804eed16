"""Vector quantisation against the paper's equations as naive loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.losses.quantization import (
    codebook,
    codebook_perplexity,
    commitment_loss,
    diversity_loss,
    group_perplexities,
    gumbel_softmax,
    nearest_code,
    straight_through,
    update_codebook,
)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


def test_nearest_is_the_nearest():
    z, vectors = draw(0, (5, 7, 3), (11, 3))
    naive = [
        [
            min(range(11), key=lambda k: sum((a - b) ** 2 for a, b in zip(v, vectors[k])))
            for v in row
        ]
        for row in z
    ]
    np.testing.assert_array_equal(nearest_code(z, vectors), naive)


def test_straight_through_takes_the_value_of_one_and_the_gradient_of_the_other():
    z, q = (jnp.asarray(x) for x in draw(1, (4, 3), (4, 3)))
    np.testing.assert_allclose(straight_through(z, q), q, atol=1e-6)
    dz, dq = jax.grad(lambda z, q: jnp.sum(straight_through(z, q) ** 2), (0, 1))(z, q)
    np.testing.assert_allclose(dz, 2 * q, rtol=1e-5)
    np.testing.assert_array_equal(dq, 0)


def test_commitment_moves_z_alone():
    z, q = (jnp.asarray(x) for x in draw(2, (4, 3), (4, 3)))
    naive = (
        sum((a - b) ** 2 for i in range(4) for a, b in zip(np.float64(z)[i], np.float64(q)[i])) / 4
    )
    value, (dz, dq) = jax.value_and_grad(commitment_loss, (0, 1))(z, q)
    np.testing.assert_allclose(value, naive, rtol=1e-5)
    np.testing.assert_allclose(dz, (z - q) / 2, rtol=1e-5)
    np.testing.assert_array_equal(dq, 0)


def test_the_codebook_follows_as_the_equations_say():
    vectors, *batches = draw(3, (4, 2), (30, 2), (30, 2), (30, 2))
    book = codebook(jnp.asarray(vectors))
    counts, sums = [1.0] * 4, [list(map(float, v)) for v in vectors]
    for z in batches:
        index = np.asarray(nearest_code(z, book["vectors"]))
        book = update_codebook(
            book, jnp.asarray(z), jnp.asarray(index), jax.random.key(0), decay=0.9, dead=0.0
        )
        for k in range(4):
            mine = [z[i] for i in range(30) if index[i] == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = [0.9 * sums[k][d] + 0.1 * sum(float(v[d]) for v in mine) for d in (0, 1)]
        naive = [[s / counts[k] for s in sums[k]] for k in range(4)]
        np.testing.assert_allclose(book["vectors"], naive, rtol=1e-4)
    # At rest, an entry is the mean of what takes it: k-means.
    for _ in range(200):
        index = nearest_code(z, book["vectors"])
        book = update_codebook(book, jnp.asarray(z), index, jax.random.key(0), decay=0.8, dead=0.0)
    for k in range(4):
        np.testing.assert_allclose(book["vectors"][k], z[np.asarray(index) == k].mean(0), atol=1e-4)


def test_a_dead_entry_begins_anew_at_a_vector_of_the_batch():
    z = draw(4, (50, 2))[0]
    book = codebook(jnp.array([[0.0, 0.0], [100.0, 100.0]]))
    for step in range(20):
        index = nearest_code(z, book["vectors"])
        new = update_codebook(
            book, jnp.asarray(z), index, jax.random.key(step), decay=0.5, dead=0.01
        )
        if (new["vectors"][1] < 50).all():
            break
        book = new
    assert step == 2  # 0.5³ is the first power of 0.5 below a hundredth of 25.
    assert (np.abs(z - np.asarray(new["vectors"][1])).sum(1) == 0).any()
    np.testing.assert_allclose(new["sums"][1] / new["counts"][1], new["vectors"][1], rtol=1e-6)
    assert len(set(np.asarray(nearest_code(z, new["vectors"])))) == 2


def test_perplexity():
    np.testing.assert_allclose(codebook_perplexity(jnp.full(7, 3.0)), 7, rtol=1e-6)
    np.testing.assert_allclose(codebook_perplexity(jnp.array([5.0, 0, 0])), 1, rtol=1e-6)
    p = [0.5, 0.3, 0.2]
    np.testing.assert_allclose(
        codebook_perplexity(jnp.array([5.0, 3, 2])),
        math.exp(-sum(x * math.log(x) for x in p)),
        rtol=1e-6,
    )


def test_gumbel_softmax_is_a_choice_with_the_gradient_of_a_softmax():
    logits, way = (jnp.asarray(x) for x in draw(5, (6, 2, 4), (6, 2, 4)))
    key, tau = jax.random.key(3), 0.7
    noise = np.float64(jax.random.gumbel(key, logits.shape))
    chosen, back = jax.vjp(lambda x: gumbel_softmax(key, x, tau), logits)
    naive, grads = np.zeros(logits.shape), np.zeros(logits.shape)
    for i in np.ndindex(6, 2):
        noisy = np.float64(logits[i]) + noise[i]
        naive[i][max(range(4), key=lambda v: noisy[v])] = 1
        p = np.exp(noisy / tau) / np.exp(noisy / tau).sum()
        for v in range(4):
            grads[i][v] = sum(float(way[i][u]) * p[u] * ((u == v) - p[v]) / tau for u in range(4))
    np.testing.assert_allclose(chosen, naive, atol=1e-6)
    np.testing.assert_allclose(back(way)[0], grads, atol=1e-5)
    likeliest = jax.nn.one_hot(jnp.argmax(logits, -1), 4)
    np.testing.assert_allclose(gumbel_softmax(None, logits, tau), likeliest, atol=1e-6)


def test_gumbel_softmax_draws_with_the_probabilities():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = gumbel_softmax(jax.random.key(0), jnp.tile(jnp.log(p), (20_000, 1)), 2.0).mean(0)
    np.testing.assert_allclose(drawn, p, atol=5 * 0.5 / math.sqrt(20_000))


def test_diversity_loss():
    one = jax.nn.one_hot(jnp.zeros((3, 4, 2), int), 5)
    weight = jnp.ones((3, 4))
    uniform = jnp.full((3, 4, 2, 5), 0.2)
    np.testing.assert_allclose(diversity_loss(uniform, weight), 0, atol=1e-6)
    np.testing.assert_allclose(diversity_loss(one, weight), 1 - 1 / 5, rtol=1e-6)
    # Different entries in different steps are as good as uniform probabilities in each.
    spread = jax.nn.one_hot(jnp.arange(5)[:, None] + jnp.zeros((5, 2), int), 5)
    np.testing.assert_allclose(diversity_loss(spread, jnp.ones(5)), 0, atol=1e-6)
    # Steps without weight don't count; of two groups one is collapsed.
    mixed = jnp.stack([one[..., 0, :], uniform[..., 0, :]], axis=-2).at[1:].set(0.7)
    first = weight.at[1:].set(0)
    np.testing.assert_allclose(diversity_loss(mixed, first), 1 - (1 + 5) / 10, rtol=1e-6)
    np.testing.assert_allclose(group_perplexities(mixed, first), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(group_perplexities(spread, jnp.ones(5)), [5, 5], rtol=1e-6)
    np.testing.assert_allclose(
        group_perplexities(spread, jnp.array([5, 3, 2, 0, 0])),
        [codebook_perplexity(np.array([5, 3, 2]))] * 2,
        rtol=1e-6,
    )
    p = jax.nn.softmax(draw(6, (7, 2, 5))[0])
    entropy = [-sum(x * math.log(x) for x in np.float64(p).mean(0)[g]) for g in range(2)]
    np.testing.assert_allclose(
        diversity_loss(p, jnp.ones(7)), 1 - sum(map(math.exp, entropy)) / 10, rtol=1e-5
    )
