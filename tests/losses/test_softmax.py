"""Cross-entropy through an output layer against its equation as a naive float64 loop, and so its
gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.errors import InputError
from ssljax.losses.softmax import output_cross_entropy


def naive_cross_entropy(h, w, b, y):
    out = []
    for i in range(len(h)):
        logits = [sum(h[i, k] * w[k, j] for k in range(h.shape[1])) + b[j] for j in range(len(b))]
        out.append(-math.log(math.exp(logits[y[i]]) / sum(map(math.exp, logits))))
    return np.array(out)


def test_cross_entropy_and_its_gradient_are_the_equations():
    rng = np.random.default_rng(0)
    h, w, b, y = (
        rng.normal(size=(4, 3)),
        rng.normal(size=(3, 5)),
        rng.normal(size=5),
        np.array([0, 3, 3, 4]),
    )
    weight = rng.normal(size=4)  # Of each example.
    f32 = lambda x: jnp.asarray(x, jnp.float32)
    args = f32(h), f32(w), f32(b)
    np.testing.assert_allclose(
        output_cross_entropy(*args, y), naive_cross_entropy(h, w, b, y), rtol=1e-5
    )
    grads = jax.grad(lambda *a: jnp.sum(weight * output_cross_entropy(*a, y)), (0, 1, 2))(*args)
    for which, grad in enumerate(grads):
        for at in np.ndindex(grad.shape):
            args = [[a.copy() for a in (h, w, b)] for _ in range(2)]
            for a, s in zip(args, (1, -1)):
                a[which][at] += s * 1e-5
            up, down = (np.sum(weight * naive_cross_entropy(*a, y)) for a in args)
            np.testing.assert_allclose(grad[at], (up - down) / 2e-5, rtol=1e-3, atol=1e-4)


def test_is_finite_where_a_word_is_all_but_certain():
    h, w, b = 100 * jnp.eye(3), 100 * jnp.eye(3), jnp.zeros(3)
    value, grads = jax.value_and_grad(
        lambda *a: output_cross_entropy(*a, jnp.array([0, 1, 0])).sum(), (0, 1, 2)
    )(h, w, b)
    np.testing.assert_allclose(value, 10_000)
    assert all(np.isfinite(g).all() for g in grads)


def test_wrong_shapes_are_a_sentence():
    with pytest.raises(InputError, match="are needed, not"):
        output_cross_entropy(jnp.ones((4, 3)), jnp.ones((2, 5)), jnp.ones(5), jnp.zeros(4, int))
