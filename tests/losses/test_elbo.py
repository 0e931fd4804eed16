"""Bounds on the likelihood: against naive float64 loops, closed forms, and a linear model whose
likelihood is known."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssljax import InputError
from ssljax.data.sources import Arrays
from ssljax.evals.likelihood import latent_use, likelihood
from ssljax.losses.elbo import (
    dreg_bound,
    gaussian_log_prob,
    iwae_bound,
    kl_normal,
    log_normal,
    one_sample_bound,
)

f32 = lambda *xs: [jnp.asarray(x, jnp.float32) for x in xs]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000))
def test_log_probabilities_equal_loops(seed):
    rng = np.random.default_rng(seed)
    x, y, v = (
        rng.uniform(size=(2, 3, 2, 1)),
        3 * rng.normal(size=(2, 3, 2, 1)),
        rng.normal(size=(2, 3, 2, 1)),
    )
    gaussian = [sum(stats.norm.logpdf(x[i].flat, y[i].flat, np.exp(v[i] / 2).flat)) for i in (0, 1)]
    np.testing.assert_allclose(gaussian_log_prob(*f32(x, y, v)), gaussian, rtol=1e-5)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (1.5, 0.3), (-2.0, 2.5)])
def test_kl_is_the_expectation_of_the_log_ratio(mean, std):
    x, width = np.linspace(mean - 12 * std, mean + 12 * std, 200_001, retstep=True)
    q, p = stats.norm(mean, std), stats.norm(0, 1)
    by_sum = np.sum(q.pdf(x) * (q.logpdf(x) - p.logpdf(x))) * width
    np.testing.assert_allclose(
        kl_normal(*f32(mean, 2 * math.log(std))), by_sum, rtol=1e-5, atol=1e-6
    )


def test_iwae_equals_the_equation_and_grows_with_k():
    log_w = np.random.default_rng(0).normal(-90, 4, size=(64, 500))
    naive = [math.log(sum(math.exp(w + 90) for w in column) / 64) - 90 for column in log_w.T]
    np.testing.assert_allclose(iwae_bound(*f32(log_w)), naive, rtol=1e-5)
    np.testing.assert_allclose(
        iwae_bound(*f32(log_w[:1])), log_w[0], rtol=1e-6
    )  # k = 1 is the ELBO by sampling.
    bounds = [
        np.mean([iwae_bound(*f32(log_w[i : i + k])).mean() for i in range(0, 64, k)])
        for k in (1, 2, 4, 16, 64)
    ]
    assert (
        np.diff(bounds) > 0.1
    ).all()  # Of all draws in equal parts it grows for certain (Burda, theorem 1).


# A model with a known likelihood: p(z) = N(0, 1), p(x|z) = N(w z, 1), so p(x) = N(0, 1 + w²).
# q(z|x) = N(a x, exp(s)); the exact posterior has a = w / (1 + w²), exp(s) = 1 / (1 + w²).


def log_weight(w, x, z, a, s):
    return log_normal(x, w * z[..., 0]) + (log_normal(z) - log_normal(z, a * x[:, None], s)).sum(-1)


def draw(key, k, x, a, s):
    return a * x[:, None] + jnp.exp(s / 2) * jax.random.normal(key, (k, len(x), 1))


def test_the_exact_posterior_gives_the_likelihood_from_one_draw():
    w, x = 1.7, jnp.array([-2.0, 0.3, 4.0])
    a, s = w / (1 + w**2), -math.log(1 + w**2)
    z = draw(jax.random.key(0), 1, x, a, s)
    np.testing.assert_allclose(
        iwae_bound(log_weight(w, x, z, a, s)), stats.norm.logpdf(x, 0, np.sqrt(1 + w**2)), rtol=1e-4
    )


@pytest.mark.parametrize("k", [1, 4])
def test_dreg_is_unbiased_and_less_noisy(k):
    """Its mean gradient is that of the bound's own estimator, for the model and for q; at the exact
    posterior that of q vanishes draw by draw (Tucker et al., section 3)."""
    x, n = jnp.array([1.3]), 40_000

    def grads(params, which):
        def one(key):
            def value(w, a, s):
                z = draw(key, k, x, a, s)
                if which == "iwae":
                    return iwae_bound(log_weight(w, x, z, a, s)).sum()
                held = jax.lax.stop_gradient((a, s))
                return dreg_bound(lambda z: log_weight(w, x, z, *held), z).sum()

            return jnp.stack(jax.grad(value, (0, 1, 2))(*params))

        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), n)))

    own, doubly = grads((1.7, 0.2, -0.5), "iwae"), grads((1.7, 0.2, -0.5), "dreg")
    error = np.sqrt(own.var(0) / n + doubly.var(0) / n)
    assert (np.abs(own.mean(0) - doubly.mean(0)) < 4 * error).all()
    assert (np.abs(doubly.mean(0)) > 10 * error)[1:].all()  # There is a gradient to be wrong about.
    if k > 1:
        assert (doubly.var(0)[1:] < own.var(0)[1:]).all()
    exact = grads((1.7, 1.7 / (1 + 1.7**2), -math.log(1 + 1.7**2)), "dreg")
    np.testing.assert_allclose(exact[:, 1:], 0, atol=1e-5)


def test_the_gradient_of_one_draw_is_the_bounds_on_average_and_of_that_draw_each_time():
    x, w, k, n = jnp.array([1.3, -0.4]), 1.7, 4, 4000
    z = draw(jax.random.key(0), k, x, 0.2, -0.5)

    def value(w, z, key):
        return one_sample_bound(key, lambda z: log_weight(w, x, z, 0.2, -0.5), z).sum()

    keys = jax.random.split(jax.random.key(1), n)
    values, (by_w, by_z) = jax.vmap(jax.value_and_grad(value, (0, 1)), (None, None, 0))(w, z, keys)
    bound, (exact_w, exact_z) = jax.value_and_grad(
        lambda w, z: iwae_bound(log_weight(w, x, z, 0.2, -0.5)).sum(), (0, 1)
    )(w, z)
    np.testing.assert_allclose(values, bound, rtol=1e-5)
    assert abs(by_w.mean() - exact_w) < 4 * by_w.std() / math.sqrt(n) < 0.1 * abs(exact_w)
    np.testing.assert_allclose(by_z.mean(0), exact_z, atol=4 * by_z.std(0).max() / math.sqrt(n))
    assert ((by_z != 0).sum(axis=1) == 1).all()  # One draw of the k for each x.


def scalar_images(x):
    """Numbers as images of one byte: value / 50 - 2."""
    return Arrays(np.asarray(x, np.uint8).reshape(-1, 1, 1, 1), np.zeros(len(x), np.int32), ["all"])


def test_likelihood_by_importance_sampling_finds_the_known_one():
    data, w = scalar_images(np.random.default_rng(0).integers(0, 200, 33)), 1.7

    def log_weights(state, key, images, k):
        x = images[:, 0, 0, 0] / 50.0 - 2.0
        return log_weight(w, x, draw(key, k, x, 0.3, -0.5), 0.3, -0.5)

    x = data.image.ravel() / 50.0 - 2.0
    truth = -stats.norm.logpdf(x, 0, np.sqrt(1 + w**2))
    found = likelihood(log_weights, data, samples=20_000, batch_size=10, chunk=1000)({})
    np.testing.assert_allclose(found["nll"], truth.mean(), atol=5e-3)
    np.testing.assert_allclose(found["nll_error"], truth.std(ddof=1) / np.sqrt(33), rtol=0.02)
    expected_elbo = np.mean(
        [
            -t
            - (
                0.5
                * (
                    (0.3 * v - w * v / (1 + w**2)) ** 2 * (1 + w**2)
                    + math.exp(-0.5) * (1 + w**2)
                    - 1
                    + 0.5
                    - math.log(1 + w**2)
                )
            )
            for t, v in zip(truth, x)
        ]
    )
    np.testing.assert_allclose(
        found["elbo"], expected_elbo, atol=2e-2
    )  # log p(x) - KL(q || p(z|x)).
    with pytest.raises(InputError, match="divide"):
        likelihood(log_weights, data, samples=10, chunk=3)


def test_latents_count_the_ones_that_vary():
    data = scalar_images(np.arange(100))

    def posterior(state, images):
        x = images[:, 0, 0, 0] / 50.0 - 1.0
        return jnp.stack([2 * x, jnp.full_like(x, 3.0), 0 * x], 1), jnp.zeros((len(x), 3))

    found = latent_use(posterior, data)({})
    assert found["active"] == 1 and found["dead"] == 2
    x = np.arange(100) / 50.0 - 1.0
    np.testing.assert_allclose(found["kl"], np.mean(2 * x**2) + 4.5, rtol=1e-5)
    assert found["kl_picture"].shape[-1] == 3 and found["kl_picture"].std() > 0
