"""Reconstruction errors, corruptions and penalties against loops in float64, explicit Jacobians and
moments."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.errors import InputError
from ssljax.losses import reconstruction as r
from ssljax.models.mlp import MLP

KEY = jax.random.key(0)


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), rho=st.sampled_from([0.01, 0.1, 0.5, 0.9]))
def test_equal_the_equations(seed, rho):
    rng = np.random.default_rng(seed)
    x, t = rng.uniform(size=(3, 4, 2)), rng.normal(size=(3, 4, 2)) * 3
    square, nats = np.zeros(3), np.zeros(3)
    for i, j, k in np.ndindex(x.shape):
        p = sigmoid(t[i, j, k])
        square[i] += (x[i, j, k] - t[i, j, k]) ** 2
        nats[i] -= x[i, j, k] * math.log(p) + (1 - x[i, j, k]) * math.log(1 - p)
    np.testing.assert_allclose(
        r.squared_error(jnp.asarray(x, "float32"), jnp.asarray(t, "float32")), square, rtol=1e-5
    )
    np.testing.assert_allclose(
        r.cross_entropy(jnp.asarray(x, "float32"), jnp.asarray(t, "float32")), nats, rtol=1e-5
    )
    several = r.cross_entropy(
        jnp.asarray(x, "float32"), jnp.asarray(np.stack([t, -t, 2 * t]), "float32")
    )
    want = [
        r.cross_entropy(jnp.asarray(x, "float32"), jnp.asarray(s * t, "float32"))
        for s in (1, -1, 2)
    ]
    np.testing.assert_allclose(several, want, rtol=1e-5)
    kl = 0.0
    for j in range(4):
        mean = sum(sigmoid(v) for v in t[:, j, 0]) / 3
        kl += rho * math.log(rho / mean) + (1 - rho) * math.log((1 - rho) / (1 - mean))
    np.testing.assert_allclose(
        r.kl_sparsity_penalty(jnp.asarray(t[..., 0], "float32"), rho), kl, rtol=1e-4, atol=1e-5
    )


def test_extreme_logits_stay_finite():
    x, y = jnp.ones((1, 1, 2, 1)), jnp.array([1e4, -1e4]).reshape(1, 1, 2, 1)
    value, grad = jax.value_and_grad(lambda y: r.cross_entropy(x, y).sum())(y)
    np.testing.assert_allclose(value, 1e4)
    np.testing.assert_allclose(grad.ravel(), [0, -1])


def test_the_sparse_are_not_punished_and_the_dead_give_no_nan():
    logits = jnp.full((6, 3), math.log(0.05 / 0.95))
    np.testing.assert_allclose(r.kl_sparsity_penalty(logits, 0.05), 0, atol=1e-6)
    assert r.kl_sparsity_penalty(logits, 0.2) > 0.1
    value, grad = jax.value_and_grad(r.kl_sparsity_penalty)(jnp.full((6, 3), -200.0), 0.05)
    np.testing.assert_allclose(
        value, 3 * (0.05 * (math.log(0.05) + 200) + 0.95 * math.log(0.95)), rtol=1e-5
    )
    np.testing.assert_allclose(
        grad, -0.05 / 6, rtol=1e-4
    )  # d/dt of -rho log mean exp(t): it can still be woken.


def test_contraction_of_a_deep_net_is_the_jacobians_on_average():
    net = MLP((6, 4), activation="tanh")
    x = jax.random.normal(KEY, (3, 5))
    params = net.init(KEY, x)
    f = lambda x: net.apply(params, x)
    exact = (jax.vmap(jax.jacrev(lambda row: f(row[None])[0]))(x) ** 2).sum((1, 2))
    found = jax.jit(jax.vmap(lambda k: r.contractive_penalty(k, f, x, 8)))(
        jax.random.split(KEY, 100)
    )
    error = found.std(0) / math.sqrt(100)
    assert (jnp.abs(found.mean(0) - exact) < 4 * error).all() and (error < 0.1 * exact).all()
    assert (found.std(0) > 0).all()  # A draw of its own for each key.


def test_corruptions_are_the_papers():
    x = jax.random.uniform(KEY, (200, 500), minval=0.2, maxval=0.8)
    masked = np.asarray(r.masking(KEY, x, 0.3))
    assert set(np.unique(masked[masked != x])) == {0} and abs((masked == 0).mean() - 0.3) < 0.01
    salted = np.asarray(r.salt_and_pepper(KEY, x, 0.4))
    assert set(np.unique(salted[salted != x])) == {0, 1}
    assert abs((salted == 0).mean() - 0.2) < 0.01 and abs((salted == 1).mean() - 0.2) < 0.01
    noise = np.asarray(r.gaussian(KEY, x, 0.5) - x)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 0.5) < 0.01
    per_image = (masked == 0).mean(1)
    assert per_image.std() < 0.04 and len(np.unique(per_image)) > 10  # Each image has its own draw.
    for corrupt in (r.masking, r.salt_and_pepper, r.gaussian):
        np.testing.assert_array_equal(corrupt(KEY, x, 0.0), x)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: r.squared_error(x, x[:1]), "same shape"),
        (lambda x: r.cross_entropy(x, x[:, :1]), "same shape"),
        (lambda x: r.masking(KEY, x, 1.5), "masked must be in"),
        (lambda x: r.salt_and_pepper(KEY, x, -1), "peppered must be in"),
        (lambda x: r.gaussian(KEY, x, -1), "at least 0"),
        (lambda x: r.kl_sparsity_penalty(x, 0), "between 0 and 1"),
    ],
)
def test_bad_input_is_a_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(jnp.ones((2, 3)))
