"""Vector quantisation against the paper's equations as naive loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.losses.quantization import (
    codebook,
    codebook_perplexity,
    commitment_loss,
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
