"""Adversarial losses against the papers' equations as float64 loops, and penalties against critics
with known gradients."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses import adversarial as adv

KEY = jax.random.key(0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


NAIVE = {  # As printed, with D = sigmoid(logit) where the paper's D is a probability.
    "gan_critic_loss": lambda r, f: (
        -mean(math.log(sigmoid(x)) for x in r) - mean(math.log(1 - sigmoid(x)) for x in f)
    ),
    "minimax_generator_loss": lambda f: mean(math.log(1 - sigmoid(x)) for x in f),
    "nonsaturating_generator_loss": lambda f: -mean(math.log(sigmoid(x)) for x in f),
    "relativistic_critic_loss": lambda r, f: -mean(math.log(sigmoid(x - y)) for x, y in zip(r, f)),
    "relativistic_generator_loss": lambda r, f: (
        -mean(math.log(sigmoid(y - x)) for x, y in zip(r, f))
    ),
    "least_squares_critic_loss": lambda r, f: (
        0.5 * mean((x - 1) ** 2 for x in r) + 0.5 * mean(x**2 for x in f)
    ),
    "least_squares_generator_loss": lambda f: 0.5 * mean((x - 1) ** 2 for x in f),
    "hinge_critic_loss": lambda r, f: (
        -mean(min(0, -1 + x) for x in r) - mean(min(0, -1 - x) for x in f)
    ),
    "wasserstein_critic_loss": lambda r, f: mean(f) - mean(r),
    "linear_generator_loss": lambda f: -mean(f),
}
LOSSES = pytest.mark.parametrize("name", NAIVE)


def arguments(name, real, fake):
    return (
        (real, fake)
        if name.endswith("critic_loss") or name == "relativistic_generator_loss"
        else (fake,)
    )


def draw(seed, n=7, scale=3.0):
    rng = np.random.default_rng(seed)
    return rng.normal(scale=scale, size=n), rng.normal(scale=scale, size=n)


@LOSSES
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_equal_the_equations(name, seed, scale):
    args = arguments(name, *draw(seed, scale=scale))
    found = getattr(adv, name)(*(jnp.asarray(a, jnp.float32) for a in args))
    np.testing.assert_allclose(found, NAIVE[name](*args), rtol=1e-5, atol=1e-6)


@LOSSES
def test_gradient_is_the_finite_difference_of_the_equation(name):
    args = arguments(name, *draw(3))
    grads = jax.grad(getattr(adv, name), tuple(range(len(args))))(
        *(jnp.asarray(a, jnp.float32) for a in args)
    )
    for which, grad in enumerate(grads):
        for i in range(len(grad)):
            ends = []
            for s in (1e-5, -1e-5):
                moved = [a.copy() for a in args]
                moved[which][i] += s
                ends.append(NAIVE[name](*moved))
            np.testing.assert_allclose(grad[i], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-6)


@LOSSES
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (1, 1), (-1, -1)])
def test_extremes_stay_finite(name, signs):
    args = arguments(name, *(jnp.full(4, s * 1e4) for s in signs))
    with jax.debug_infs(True), jax.debug_nans(True):  # As --run.replay looks for the first of them.
        value, grads = jax.value_and_grad(getattr(adv, name), tuple(range(len(args))))(*args)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_a_sure_critic_stops_the_minimax_generator_alone():
    """Goodfellow et al., 2014, section 3: log(1 - D) saturates where samples are rejected with
    confidence."""
    sure = jnp.full(8, -20.0)
    saturated, strong = (
        jax.grad(f)(sure) for f in (adv.minimax_generator_loss, adv.nonsaturating_generator_loss)
    )
    assert np.abs(saturated).max() < 1e-8
    np.testing.assert_allclose(strong, -1 / 8, rtol=1e-5)


def test_the_best_critic_gives_log_four():
    """Goodfellow et al., 2014, theorem 1: at p_g = p_data the best D is 1/2 and the value -log
    4."""
    grad = jax.grad(lambda s: adv.gan_critic_loss(jnp.full(5, s), jnp.full(5, s)))
    assert grad(0.0) == 0
    np.testing.assert_allclose(
        adv.gan_critic_loss(jnp.zeros(5), jnp.zeros(5)), math.log(4), rtol=1e-6
    )


def test_only_differences_count_in_pairs():
    real, fake = (jnp.asarray(a, jnp.float32) for a in draw(5))
    np.testing.assert_allclose(
        adv.relativistic_critic_loss(real + 9, fake + 9),
        adv.relativistic_critic_loss(real, fake),
        rtol=1e-5,
    )
    mixed = jnp.roll(fake, 1)
    assert (
        abs(adv.relativistic_critic_loss(real, mixed) - adv.relativistic_critic_loss(real, fake))
        > 1e-3
    )  # The pairing matters.


# Penalties, on critics whose gradients are known.


def images(seed, n=6):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=(n, 3, 2, 2)), jnp.float32) for _ in range(2))


def linear(length):
    w = np.random.default_rng(9).normal(size=12)
    w = jnp.asarray(length * w / np.linalg.norm(w), jnp.float32)
    return lambda x: x.reshape(len(x), -1) @ w + 3


@pytest.mark.parametrize("length, expected", [(1, 0), (0, 1), (3, 4), (0.5, 0.25)])
def test_gradient_penalty_of_a_linear_critic(length, expected):
    """|∇D| is `length` everywhere: (length - 1)², and nothing for a critic of slope 1."""
    real, fake = images(0)
    np.testing.assert_allclose(
        adv.gradient_penalty(linear(length), real, fake, KEY), expected, atol=1e-6
    )


def test_gradient_penalty_is_taken_between_the_two():
    """With D(x) = |x|²/2 the gradient is x itself: from the points drawn, its norm says where they
    lie."""
    real, fake = images(1, 2000)
    real, fake = real / 10, fake + 5
    points = []

    def critic(x):
        jax.debug.callback(lambda x: points.append(np.asarray(x, np.float64)), x)
        return jnp.sum(x**2, axis=(1, 2, 3)) / 2

    found = adv.gradient_penalty(critic, real, fake, KEY)
    jax.effects_barrier()
    r, f = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    t = ((points[0] - r) / (f - r)).reshape(len(r), -1)
    np.testing.assert_allclose(
        t, t[:, :1] * np.ones(12), atol=1e-3
    )  # One place on the line for an image,
    assert (
        t.min() + 1e-3 >= 0 and t.max() <= 1 + 1e-3 and abs(t[:, 0].mean() - 0.5) < 0.03
    )  # uniform in [0, 1].
    assert abs(t[:, 0].std() - 12**-0.5) < 0.02
    expected = mean((math.sqrt(sum(v * v for v in x.ravel())) - 1) ** 2 for x in points[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_r1_and_r2_of_a_known_critic():
    """D(x) = sum(a x²)/2 + sin(x_0): the gradient is a x + cos(x_0) e_0."""
    real, fake = images(2)
    a = np.random.default_rng(1).normal(size=12)
    critic = lambda x: (
        x.reshape(len(x), -1) ** 2 @ jnp.asarray(a / 2, jnp.float32)
        + jnp.sin(x.reshape(len(x), -1)[:, 0])
    )

    def naive(points):
        total = 0.0
        for x in np.asarray(points, np.float64).reshape(len(points), -1):
            total += (
                sum((a[j] * x[j] + (math.cos(x[0]) if j == 0 else 0)) ** 2 for j in range(12)) / 2
            )
        return total / len(points)

    np.testing.assert_allclose(adv.r1_penalty(critic, real), naive(real), rtol=1e-5)
    np.testing.assert_allclose(adv.r2_penalty(critic, fake), naive(fake), rtol=1e-5)


def test_penalties_reach_the_critics_parameters():
    """Their gradient by the parameters, which is of second order, against finite differences in
    float64 loops."""
    real, fake = images(3)
    w = np.random.default_rng(4).normal(size=12)
    critic = lambda w: lambda x: jnp.tanh(x.reshape(len(x), -1) @ w)

    def square(x, w):  # |∇ tanh(w x)|² = (1 - tanh²)² |w|²
        return (1 - math.tanh(x @ w) ** 2) ** 2 * (w @ w)

    t = np.asarray(jax.random.uniform(KEY, (6, 1, 1, 1)), np.float64)
    real64, fake64 = (np.asarray(v, np.float64) for v in (real, fake))
    between = (real64 + t * (fake64 - real64)).reshape(6, -1)
    naive_r1 = lambda w: mean(square(x, w) / 2 for x in real64.reshape(6, -1))
    naive_gp = lambda w: mean((math.sqrt(square(x, w)) - 1) ** 2 for x in between)
    ours_r1 = jax.grad(lambda w: adv.r1_penalty(critic(w), real))(jnp.asarray(w, jnp.float32))
    ours_gp = jax.grad(lambda w: adv.gradient_penalty(critic(w), real, fake, KEY))(
        jnp.asarray(w, jnp.float32)
    )
    for i in range(12):
        e = np.eye(12)[i] * 1e-5
        np.testing.assert_allclose(
            ours_r1[i], (naive_r1(w + e) - naive_r1(w - e)) / 2e-5, rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(
            ours_gp[i], (naive_gp(w + e) - naive_gp(w - e)) / 2e-5, rtol=1e-3, atol=1e-4
        )


def test_a_flat_critic_makes_no_nan():
    """At initialisation a critic may be flat somewhere: the norm of a zero gradient has no slope of
    its own."""
    real, fake = images(5)
    flat = lambda w: lambda x: w * jax.nn.relu(x.reshape(len(x), -1).sum(1) - 1e3)
    with jax.debug_nans(True):
        value, grad = jax.value_and_grad(lambda w: adv.gradient_penalty(flat(w), real, fake, KEY))(
            2.0
        )
    assert value == 1 and grad == 0


def test_bad_input_is_a_sentence():
    real, fake = images(0)
    with pytest.raises(ValueError, match="must be the same shape"):
        adv.gradient_penalty(linear(1), real, fake[:3], KEY)
    with pytest.raises(ValueError, match="compared in pairs"):
        adv.relativistic_critic_loss(jnp.zeros(4), jnp.zeros(3))
