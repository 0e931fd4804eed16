"""Negative sampling against the papers' equations as naive float64 loops over pairs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.words import cbow_loss, skip_gram_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive_skip_gram(v, u, near, n, k):
    """Mikolov et al., 2013, eq. 4, for each pair, with the mean over the drawn words for the
    expectation."""
    total = 0.0
    for b in range(len(v)):
        for i in range(v.shape[1]):
            for j in range(u.shape[1]):
                if near[b, i, j]:
                    noise = [math.log(sigmoid(-n[b, m] @ v[b, i])) for m in range(n.shape[1])]
                    total += math.log(sigmoid(u[b, j] @ v[b, i])) + k * sum(noise) / len(noise)
    return -total


def naive_cbow(v, u, near, n, k):
    """The same of the mean of the neighbours, once for each word that has some."""
    total = 0.0
    for b in range(len(u)):
        for i in range(u.shape[1]):
            neighbours = [v[b, j] for j in range(v.shape[1]) if near[b, i, j]]
            if neighbours:
                h = sum(neighbours) / len(neighbours)
                noise = [math.log(sigmoid(-n[b, m] @ h)) for m in range(n.shape[1])]
                total += math.log(sigmoid(u[b, i] @ h)) + k * sum(noise) / len(noise)
    return -total


def draw(seed, model):
    rng = np.random.default_rng(seed)
    b, t, s, m, d = 2, 4, 6, 3, 5
    v, u, n = rng.normal(size=(b, t, d)), rng.normal(size=(b, s, d)), rng.normal(size=(b, m, d))
    near = rng.random((b, t, s)) < 0.5
    near[0, 1] = False  # A word without neighbours.
    return (v, u, near, n) if model is skip_gram_loss else (u, v, near, n)


@pytest.mark.parametrize(
    "model, naive", [(skip_gram_loss, naive_skip_gram), (cbow_loss, naive_cbow)]
)
def test_equal_the_equations(model, naive):
    for seed, k in enumerate((1, 5, 2.5)):
        args = draw(seed, model)
        np.testing.assert_allclose(model(*map(jnp.asarray, args), k), naive(*args, k), rtol=1e-5)


@pytest.mark.parametrize(
    "model, naive", [(skip_gram_loss, naive_skip_gram), (cbow_loss, naive_cbow)]
)
def test_gradients_are_those_of_finite_differences(model, naive):
    a, b, near, n = draw(5, model)
    grads = jax.grad(lambda x: model(x[0], x[1], near, x[2], 5))(
        [jnp.asarray(x) for x in (a, b, n)]
    )
    rng = np.random.default_rng(0)
    for i in range(3):
        way = [np.zeros_like(x) for x in (a, b, n)]
        way[i] = rng.normal(size=way[i].shape)
        at = lambda e: naive(a + e * way[0], b + e * way[1], near, n + e * way[2], 5)
        np.testing.assert_allclose(
            np.sum(np.asarray(grads[i]) * way[i]), (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-4
        )


def test_a_word_without_neighbours_moves_nothing():
    v, u, _, n = map(jnp.asarray, draw(0, skip_gram_loss))
    nothing = jnp.zeros((2, 4, 6), bool)
    assert skip_gram_loss(v, u, nothing, n, 5) == 0 and cbow_loss(u, v, nothing, n, 5) == 0
    grads = jax.grad(lambda x: cbow_loss(*x[:2], nothing, x[2], 5))((u, v, n))
    assert all((g == 0).all() for g in grads)
