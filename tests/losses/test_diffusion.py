"""Diffusion and flow matching against closed forms: of Gaussian data the best denoiser is linear,
each term of the bound is a number, and the paths of samplers are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssljax.data import images
from ssljax.errors import InputError
from ssljax.losses import diffusion as d
from ssljax.models.sampler import ddim, flow

KEY = jax.random.key(0)
SCHEDULES = pytest.mark.parametrize("kind", ["linear", "cosine"])
MEAN, VARIANCE = np.array([0.5, -0.2, 0.1]), np.array([0.36, 0.04, 1.0])  # Of Gaussian data.


def test_schedules_are_the_papers():
    beta = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    bar = np.cumprod([1 - b for b in beta])
    found = d.noise_schedule("linear", 1000)
    np.testing.assert_allclose(found.a[1:] ** 2, bar, rtol=1e-9)
    f = lambda t: math.cos((t / 50 + 0.008) / 1.008 * math.pi / 2) ** 2
    bar = np.array([f(t) / f(0) for t in range(50)])  # The last β is cut, to 0.999.
    found = d.noise_schedule("cosine", 50)
    np.testing.assert_allclose(found.a[:50] ** 2, bar, rtol=1e-9)
    np.testing.assert_allclose((found.a[50] / found.a[49]) ** 2, 0.001, rtol=1e-9)


@SCHEDULES
def test_noise_and_signal_share_the_variance(kind):
    found = d.noise_schedule(kind, 100)
    assert found.steps == 100 and (found.a[0], found.s[0]) == (1, 0)
    np.testing.assert_allclose(found.a**2 + found.s**2, 1, rtol=1e-12)
    assert (np.diff(found.a) < 0).all() and found.a[-1] < 0.05


def test_linear_schedule_of_few_steps_is_refused():
    for steps in (1, 20):
        with pytest.raises(InputError, match=f"more than 20 steps, not {steps}"):
            d.noise_schedule("linear", steps)
    d.noise_schedule("linear", 21)


def test_times_are_one_in_each_part_and_uniform_each():
    draws = np.stack([d.spread_times(jax.random.key(i), 8) for i in range(300)])
    np.testing.assert_array_equal(np.sort(np.floor(8 * draws), axis=1), [range(8)] * 300)
    for i in range(8):
        assert stats.kstest(draws[:, i], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("predict", ["epsilon", "v"])
def test_target_stands_for_the_example_and_its_noise(predict):
    x, noise = jax.random.normal(KEY, (2, 5, 3))
    a, s = d.noise_schedule("cosine", 10).at(jnp.array([1, 3, 5, 7, 9]), 2)
    found = d.denoised(d.target(x, noise, a, s, predict), d.noised(x, noise, a, s), a, s, predict)
    for want, got in zip((x, noise), found, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_v_and_epsilon_are_the_same_net_in_other_units():
    """A net of ε, its output turned into v, gives the same examples, samples and losses."""
    levels = d.noise_schedule("cosine", 20)
    eps_net = lambda x_t, t: jnp.tanh(x_t + 0.1 * t)
    v_net = lambda x_t, t, a, s: (eps_net(x_t, t) - s * x_t) / a  # v = aε - sx, with eq. 15.
    x, noise = jax.random.normal(KEY, (2, 6, 3))
    t = jnp.array([1, 2, 5, 9, 13, 18])
    a, s = levels.at(t, 2)
    x_t = d.noised(x, noise, a, s)
    by_eps = d.denoised(eps_net(x_t, t[:, None]), x_t, a, s, "epsilon")
    by_v = d.denoised(v_net(x_t, t[:, None], a, s), x_t, a, s, "v")
    np.testing.assert_allclose(by_v[0], by_eps[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_v[1], by_eps[1], rtol=1e-4, atol=1e-5)
    # |v - v̂| = |ε - ε̂| / a, so that the losses differ by a weight alone: 1 + a²/s² of |x - x̂|².
    error = lambda out, kind: (out - d.target(x, noise, a, s, kind)) ** 2
    by_eps = error(eps_net(x_t, t[:, None]), "epsilon")
    by_v = error(v_net(x_t, t[:, None], a, s), "v")
    np.testing.assert_allclose(by_v, by_eps / a**2, rtol=1e-3, atol=1e-5)
    end = jax.random.normal(jax.random.key(1), (6, 3))
    samples = [
        ddim(find, levels, end, 20)
        for find in (
            lambda x, t, a, s: d.denoised(eps_net(x, t), x, a, s, "epsilon"),
            lambda x, t, a, s: d.denoised(v_net(x, t, a, s), x, a, s, "v"),
        )
    ]
    np.testing.assert_allclose(*samples, rtol=1e-3, atol=1e-4)


def test_guidance_is_away_from_the_output_without_a_class():
    net = lambda x, t, y: x + t + (0 if y is None else y.sum(1, keepdims=True))
    x, y = jnp.full((2, 1), 0.5), jax.nn.one_hot(jnp.array([1, 2]), 3)
    t = jnp.float32(0.25)
    np.testing.assert_allclose(d.guided(net, x, t, y, 0.0), 1.75)
    np.testing.assert_allclose(d.guided(net, x, t, y, 2.0), 3 * 1.75 - 2 * 0.75)
    np.testing.assert_allclose(d.guided(net, x, t, None, 2.0), 0.75)


def test_classes_are_dropped_whole_and_as_often_as_said():
    y = jax.nn.one_hot(jnp.arange(4000) % 5, 5)
    kept = np.asarray(d.drop_classes(KEY, y, 0.1))
    rows = kept.sum(1)
    assert set(rows) == {0, 1} and stats.binomtest(int((rows == 0).sum()), 4000, 0.1).pvalue > 1e-3
    np.testing.assert_array_equal(kept[rows == 1], np.asarray(y)[rows == 1])


# Gaussian data, N(MEAN, VARIANCE) on each axis.


def last_log_prob(x, predicted, s):
    """-L_0 as a density: log N(x; predicted, s²), as the net's x is the mean at step 1."""
    return jax.scipy.stats.norm.logpdf(x, predicted, s)


def best(x_t, t, a, s):
    """E[x|x_t] and E[ε|x_t], which the best net predicts."""
    x = MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x_t - a * MEAN)
    return x, (x_t - a * x) / s


def gaussian_kl(m1, v1, m2, v2):
    return 0.5 * (np.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1)


def terms_in_closed_form(levels, k=1):
    """L_0, from step `k`, [L_1, ...], L_T of the best net, sums over axes, in float64."""
    a, s = levels
    left = VARIANCE * s[:, None] ** 2 / (a[:, None] ** 2 * VARIANCE + s[:, None] ** 2)  # Var x|x_t.
    middle = []
    for t in range(k + 1, len(a)):
        alpha = (a[t] / a[t - 1]) ** 2
        beta = (1 - alpha) * s[t - 1] ** 2 / s[t] ** 2  # β̃_t, eq. 7
        at_x = a[t - 1] * (1 - alpha) / s[t] ** 2  # The factor of x in the mean of eq. 7.
        middle.append((at_x**2 * left[t] / (2 * beta)).sum())  # Eq. 8.
    first = (0.5 * np.log(2 * np.pi * s[k] ** 2) + left[k] / (2 * s[k] ** 2)).sum()
    # Of N(ax, s²) and N(0, 1), the mean over x.
    end = 0.5 * (a[-1] ** 2 * (VARIANCE + MEAN**2) + s[-1] ** 2 - 1 - np.log(s[-1] ** 2)).sum()
    return first, np.array(middle), end


@SCHEDULES
def test_each_term_of_the_bound_is_the_closed_form(kind):
    levels = d.noise_schedule(kind, 30)
    first, middle, end = terms_in_closed_form(levels)
    rng, n = np.random.default_rng(0), 20_000
    x = jnp.asarray(MEAN + np.sqrt(VARIANCE) * rng.normal(size=(n, 3)), jnp.float32)
    for t in (1, 2, 3, 15, 29, 30):
        a, s = levels.at(jnp.full(n, t), 2)
        found, _ = best(d.noised(x, jnp.asarray(rng.normal(size=x.shape)), a, s), t, a, s)
        if t == 1:
            each, want = -last_log_prob(x, found, s).sum(1), first
        else:
            before = levels.at(jnp.full(n, t - 1), 2)
            each, want = d.step_kl(x, found, (a, s), before).sum(1), middle[t - 2]
        assert abs(each.mean() - want) < 5 * each.std() / math.sqrt(n), t
    each = d.prior_kl(x, *map(jnp.float32, (levels.a[-1], levels.s[-1]))).sum(1)
    assert abs(each.mean() - end) < 5 * each.std() / math.sqrt(n)


def test_prior_kl_is_that_of_two_normals():
    x, a, s = np.array([0.3, -2.0]), 0.2, 0.7
    np.testing.assert_allclose(d.prior_kl(x, a, s), gaussian_kl(a * x, s**2, 0, 1), rtol=1e-5)


@pytest.mark.parametrize("draws, k", [(7, 1), (99, 1), (79, 21)])
def test_bound_is_the_sum_of_its_terms(draws, k):
    levels = d.noise_schedule("cosine", 100)
    first, middle, end = terms_in_closed_form(levels, k)
    n = 8000
    x = MEAN + np.sqrt(VARIANCE) * jax.random.normal(KEY, (n, 3))
    each = np.asarray(d.diffusion_bound(best, levels, x, KEY, draws, last_log_prob, k))
    want = -(first + middle.sum() + end)
    assert abs(each.mean() - want) < 5 * each.std() / math.sqrt(n)
    # With every term computed, what is left varies with the data and the noise alone.
    if draws == 100 - k:
        assert abs(each.mean() - want) < 0.1


def test_bound_of_clipped_predictions():
    """A net that predicts too much, clipped, has the bound of one that predicts the limit."""
    levels, x = d.noise_schedule("cosine", 20), jax.random.uniform(KEY, (50, 3), minval=-1)
    too_much = lambda x, t, a, s: (jnp.full_like(x, 7.0), x)
    limit = lambda x, t, a, s: (jnp.full_like(x, 1.0), x)
    last = d.last_log_prob_of_levels(np.ones(256) / 256)
    found = d.diffusion_bound(too_much, levels, x, KEY, 19, last, clip=1.0)
    np.testing.assert_array_equal(found, d.diffusion_bound(limit, levels, x, KEY, 19, last))
    assert (found > d.diffusion_bound(too_much, levels, x, KEY, 19, last)).all()


@SCHEDULES
def test_bound_of_the_best_net_is_the_entropy_and_what_the_steps_lose(kind):
    """The chain's steps are normal with the right means; what they lose is in their variances."""
    levels = d.noise_schedule(kind, 300)
    a, s = levels
    first, middle, end = terms_in_closed_form(levels)
    entropy = 0.5 * np.log(2 * np.pi * np.e * VARIANCE).sum()
    lost = gaussian_kl(a[-1] * MEAN, a[-1] ** 2 * VARIANCE + s[-1] ** 2, 0, 1).sum()
    for t in range(1, 301):
        shares = a[t - 1], a[t] / a[t - 1]
        before = shares[0] ** 2 * VARIANCE + s[t - 1] ** 2  # Of x_{t-1}.
        added = s[t] ** 2 - shares[1] ** 2 * s[t - 1] ** 2  # Of x_t given x_{t-1}.
        truly = 1 / (1 / before + shares[1] ** 2 / added)  # Of x_{t-1} given x_t, by Bayes.
        taken = s[1] ** 2 if t == 1 else added * s[t - 1] ** 2 / s[t] ** 2
        lost += gaussian_kl(0, truly, 0, taken).sum()
    np.testing.assert_allclose(first + middle.sum() + end, entropy + lost, rtol=1e-9)
    assert lost > 0


def test_probabilities_of_levels_sum_to_one_and_are_those_of_scipy():
    levels = np.arange(256) / 127.5 - 1
    for mean, s in ((0.1, 0.3), (-1.0, 0.01), (0.996, 0.02), (5.0, 0.5)):
        at = jnp.asarray(levels, jnp.float32), jnp.full(256, mean), jnp.float32(s)
        found = d.log_mass_of_level(*at)
        edges = np.concatenate([[-np.inf], levels[:-1] + 1 / 255, [np.inf]])
        # In the upper tail by the survival function, where no digits cancel.
        lower, upper = (edges[:-1] - mean) / s, (edges[1:] - mean) / s
        want = np.where(
            lower > 0,
            stats.norm.sf(lower) - stats.norm.sf(upper),
            stats.norm.cdf(upper) - stats.norm.cdf(lower),
        )
        near = want > 1e-30
        np.testing.assert_allclose(np.exp(found)[near], want[near], rtol=2e-3, atol=1e-12)
        np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-4)
        assert np.isfinite(found).all()
        equal = d.last_log_prob_of_levels(np.full(256, 1 / 256))(*at)
        np.testing.assert_allclose(equal, found, rtol=1e-4, atol=1e-4)
        f = np.where(np.arange(256) % 16 == 0, 1.0, 1e-3)  # As Bayes has it.
        weighed = np.exp(d.last_log_prob_of_levels(f)(*at))
        np.testing.assert_allclose(weighed[near], (f * want / (f @ want))[near], rtol=2e-3)


def test_levels_of_pixels_are_counted_and_the_first_step_follows_their_gap():
    digits = images("digits", "train").image  # 0, and 16 levels, some 16 apart.
    f = d.level_frequencies(digits)
    assert f.sum() == pytest.approx(1) and np.sum(f > 1e-4) == 17
    assert f[255] == (np.sum(digits == 255) + 1) / (digits.size + 256)
    levels = d.noise_schedule("linear", 1000)
    k, noise = d.step_to_decode_at(levels, digits), levels.s / levels.a
    assert noise[k] < 15 / 255 < noise[k + 1]
    every = np.arange(256, dtype=np.uint8)
    assert d.step_to_decode_at(levels, every) == 1
    assert d.step_to_decode_at(levels, every[:1]) > d.step_to_decode_at(levels, every[::2])


# Samplers. The distribution at time t is N(a m, a² v + s²), and a way without noise keeps each
# sample's number of standard deviations from the mean.


def transported(x, start, end):
    (a, s), (b, r) = start, end
    root = np.sqrt((b**2 * VARIANCE + r**2) / (a**2 * VARIANCE + s**2))
    return b * MEAN + root * (x - a * MEAN)


def ddim_error(steps):
    levels = d.noise_schedule("cosine", 2000)
    x = np.asarray(jax.random.normal(KEY, (50, 3)), np.float64)
    with jax.enable_x64(True):
        found = ddim(best, levels, jnp.asarray(x), steps)
    return np.abs(found - transported(x, (levels.a[-1], levels.s[-1]), (1, 0))).max()


def test_ddim_follows_the_way_of_gaussian_data_with_an_error_of_first_order():
    errors = [ddim_error(steps) for steps in (50, 100, 200)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < 0.02 and ((orders > 0.8) & (orders < 1.25)).all(), (errors, orders)


def test_ddim_step_is_exact_for_data_of_one_point():
    """The velocity is then constant in Song et al.'s variables, and one step ends at the point."""
    point = jnp.array([0.3, -0.8])
    find = lambda x, t, a, s: (jnp.broadcast_to(point, x.shape), (x - a * point) / s)
    levels = d.noise_schedule("linear", 1000)
    x = jax.random.normal(KEY, (4, 2))
    whole = ddim(find, levels, x, 3, points=9)
    assert whole.shape == (4, 4, 2)
    np.testing.assert_array_equal(whole[0], x)
    for at, now in zip((667, 333, 0), whole[1:], strict=True):
        rest = (x - levels.a[-1] * point) / levels.s[-1]
        np.testing.assert_allclose(now, levels.a[at] * point + levels.s[at] * rest, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noisy_samples_have_the_variance_of_the_chain(eta):
    """Each step is linear in x for Gaussian data, which gives the variance step by step."""
    levels, n = d.noise_schedule("cosine", 100), 20_000
    a, s = levels
    variance, mean = np.ones(3), np.zeros(3)
    for t in range(100, 0, -1):
        fresh = eta * s[t - 1] / s[t] * math.sqrt(1 - (a[t] / a[t - 1]) ** 2)  # Eq. 16
        k = a[t] * VARIANCE / (a[t] ** 2 * VARIANCE + s[t] ** 2)
        rest = math.sqrt(s[t - 1] ** 2 - fresh**2) / s[t]
        by = a[t - 1] * k + rest * (1 - a[t] * k)
        mean = a[t - 1] * MEAN + by * (mean - a[t] * MEAN)
        variance = by**2 * variance + fresh**2
    x = jax.random.normal(KEY, (n, 3))
    found = np.asarray(ddim(best, levels, x, 100, eta, jax.random.key(1)))
    np.testing.assert_allclose(found.mean(0), mean, atol=0.04)
    np.testing.assert_allclose(found.var(0), variance, rtol=0.04)
    assert (variance < VARIANCE).all() and (variance > 0.7 * VARIANCE).all()  # β̃ is short by this.


def test_one_noisy_step_is_the_posterior_of_ddpm():
    """η = 1: mean and variance of q(x_{t-1}|x_t, x), eq. 6 and 7, with the net's x."""
    levels = d.noise_schedule("linear", 40)
    given = 0.7
    find = lambda x_t, t, a, s: (jnp.full_like(x_t, given), (x_t - a * given) / s)
    x = jnp.full((40_000, 1), 1.3)
    step = np.asarray(ddim(find, levels, x, 40, 1.0, KEY, points=41))[1]
    bar, bar1 = levels.a[40] ** 2, levels.a[39] ** 2
    alpha = bar / bar1
    mean = math.sqrt(bar1) * (1 - alpha) / (1 - bar) * given
    mean += math.sqrt(alpha) * (1 - bar1) / (1 - bar) * 1.3
    variance = (1 - bar1) / (1 - bar) * (1 - alpha)
    np.testing.assert_allclose(step.mean(), mean, atol=5 * math.sqrt(variance / 40_000))
    np.testing.assert_allclose(step.var(), variance, rtol=0.03)


def test_predicted_examples_are_clipped():
    find = lambda x, t, a, s: (jnp.full_like(x, 9.0), x)
    found = ddim(find, d.noise_schedule("cosine", 10), jnp.zeros((2, 3)), 5, clip=1.0)
    np.testing.assert_allclose(found, 1)


def test_samplers_refuse_what_they_can_not_do():
    levels, x = d.noise_schedule("cosine", 10), jnp.zeros((2, 3))
    with pytest.raises(InputError, match="10 steps can't be sampled in 11"):
        ddim(best, levels, x, 11)
    with pytest.raises(InputError, match="needs a key"):
        ddim(best, levels, x, 5, eta=0.5)


def velocity(x, t):
    """E[x - (1 - σ) ε | x_t] of the straight paths of Gaussian data, σ = 0.01."""
    a, s = d.straight(t, 0.01)
    found, noise = best(x, t, a, s)
    return d.flow_target(found, noise, 0.01)


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2)])
def test_flow_has_the_order_of_its_method(method, order):
    x = np.asarray(jax.random.normal(KEY, (50, 3)), np.float64)
    want = transported(x, (0, 1), (1, 0.01))
    with jax.enable_x64(True):
        errors = [
            np.abs(flow(velocity, jnp.asarray(x), steps, method) - want).max()
            for steps in (40, 80, 160)
        ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (np.abs(orders - order) < 0.25).all(), (errors, orders)


def test_path_of_a_flow_ends_at_its_sample():
    x = jax.random.normal(KEY, (3, 3))
    whole = flow(velocity, x, 8, points=9)
    assert whole.shape == (9, 3, 3)
    np.testing.assert_array_equal(whole[0], x)
    np.testing.assert_allclose(whole[-1], flow(velocity, x, 8), rtol=1e-6)
    few = flow(velocity, x, 8, points=4)  # Not all are kept: 1,000 steps would fill the memory.
    np.testing.assert_allclose(few, whole[np.array([0, 3, 5, 8])], rtol=1e-6)


def test_flow_target_is_the_derivative_of_the_path():
    x, noise = jax.random.normal(KEY, (2, 3))
    at = lambda t: d.noised(x, noise, *d.straight(t, 0.1))
    np.testing.assert_allclose(jax.jacobian(at)(0.3), d.flow_target(x, noise, 0.1), rtol=1e-6)
    np.testing.assert_array_equal(at(0.0), noise)
    np.testing.assert_allclose(at(1.0), x + 0.1 * noise, rtol=1e-6)
