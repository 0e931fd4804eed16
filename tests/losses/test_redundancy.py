"""Barlow Twins, VICReg and SIGReg against the papers' equations as naive float64 loops, and closed
forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from ssljax.losses.redundancy import (
    barlow_twins_loss,
    covariance_loss,
    lejepa_loss,
    sigreg,
    variance_loss,
    vicreg_loss,
)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s) for s in shapes]


def column(z, i):
    mean = sum(z[b][i] for b in range(len(z))) / len(z)
    return [z[b][i] - mean for b in range(len(z))]


def naive_barlow(za, zb, lam):
    """Zbontar et al., 2021, eqs. 1 and 2, of features centred over the batch."""
    d, total = len(za[0]), 0.0
    for i in range(d):
        for j in range(d):
            a, b = column(za, i), column(zb, j)
            c = sum(x * y for x, y in zip(a, b)) / len(a)
            for z in (a, b):  # ε as in the BatchNorm of the authors' code.
                c /= math.sqrt(sum(x * x for x in z) / len(z) + 1e-5)
            total += (1 - c) ** 2 if i == j else lam * c**2
    return total


def naive_vicreg(za, zb, lam, mu, nu):
    """Bardes et al., 2021, eqs. 1 to 6, s over features too as in algorithm 1."""
    n, d = len(za), len(za[0])
    s = sum((za[b][i] - zb[b][i]) ** 2 for b in range(n) for i in range(d)) / (n * d)
    v = c = 0.0
    for z in (za, zb):
        for i in range(d):
            v += max(0.0, 1 - math.sqrt(sum(x * x for x in column(z, i)) / (n - 1) + 1e-4)) / d
            for j in range(d):
                if i != j:
                    c += (sum(x * y for x, y in zip(column(z, i), column(z, j))) / (n - 1)) ** 2 / d
    return lam * s + mu * v + nu * c


def naive_sigreg(z, directions, reach=3.0, knots=33):
    """Balestriero and LeCun, 2025, algorithm 1: complex numbers and the trapezoid rule in full."""
    n, total = len(z), 0.0
    ts = [-reach + 2 * reach * k / (knots - 1) for k in range(knots)]
    for a in directions:
        length = math.sqrt(sum(x * x for x in a))
        values = []
        for t in ts:
            phi = (
                sum(
                    complex(math.cos(t * p), math.sin(t * p))
                    for p in (sum(x * y for x, y in zip(row, a)) / length for row in z)
                )
                / n
            )
            values.append(abs(phi - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))
        total += n * sum(
            (values[k] + values[k + 1]) / 2 * (ts[k + 1] - ts[k]) for k in range(knots - 1)
        )
    return total / len(directions)


def naive_lejepa(z, directions, lam, large=None):
    v, n, d = np.shape(z)
    m = large or v
    mean = [[sum(z[k][b][i] for k in range(m)) / m for i in range(d)] for b in range(n)]
    distance = sum(
        (z[k][b][i] - mean[b][i]) ** 2 for k in range(v) for b in range(n) for i in range(d)
    ) / (v * n * d)
    return (1 - lam) * distance + lam * sum(naive_sigreg(view, directions) for view in z) / v


A, B, DIRECTIONS = draw(0, (7, 4), (7, 4), (3, 4))
CASES = {
    "barlow": (lambda a, b: barlow_twins_loss(a, b, 0.01), lambda a, b: naive_barlow(a, b, 0.01)),
    "vicreg": (
        lambda a, b: vicreg_loss(0.7 * a, b, 5, 7, 2),
        lambda a, b: naive_vicreg(0.7 * a, b, 5, 7, 2),
    ),
    "lejepa": (
        lambda a, b: lejepa_loss(jnp.stack([a, b]), jnp.asarray(DIRECTIONS, jnp.float32), 0.3),
        lambda a, b: naive_lejepa([a, b], DIRECTIONS, 0.3),
    ),
    "lejepa, local views": (  # Two global ones, and another.
        lambda a, b: lejepa_loss(
            jnp.stack([a, b, 0.8 * b]), jnp.asarray(DIRECTIONS, jnp.float32), 0.3, large=2
        ),
        lambda a, b: naive_lejepa([a, b, 0.8 * b], DIRECTIONS, 0.3, large=2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_the_equations(name):
    loss, naive = CASES[name]
    for seed in range(3):
        a, b = draw(seed, (7, 4), (7, 4))
        b = 0.5 * a + b
        found = loss(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
        np.testing.assert_allclose(found, naive(a, b), rtol=5e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_finite_difference_of_the_equation(name):
    loss, naive = CASES[name]
    grads = jax.grad(loss, (0, 1))(jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32))
    for which, grad in enumerate(grads):
        for at in [(0, 0), (3, 2), (6, 3)]:
            step = np.zeros(A.shape)
            step[at] = 1e-5
            up, down = ((A + s * step, B) if which == 0 else (A, B + s * step) for s in (1, -1))
            np.testing.assert_allclose(
                grad[at], (naive(*up) - naive(*down)) / 2e-5, rtol=2e-3, atol=1e-4
            )


@pytest.mark.parametrize("name", CASES)
def test_invariant_to_the_order_of_images_and_views(name):
    loss = CASES[name][0]
    a = jnp.asarray(A, jnp.float32)
    b, mixed = a + 0.1 * jnp.asarray(B, jnp.float32), jnp.array([3, 1, 6, 0, 2, 5, 4])
    whole = loss(a, b)
    np.testing.assert_allclose(loss(a[mixed], b[mixed]), whole, rtol=1e-5)
    assert loss(a, b[mixed]) > 1.1 * whole
    if name not in ("vicreg", "lejepa, local views"):  # There one is scaled above.
        np.testing.assert_allclose(loss(b, a), whole, rtol=1e-5)


def test_closed_forms():
    eye = jnp.array([[1, 1], [1, -1], [-1, 1], [-1, -1.0]])  # Uncorrelated, of variance 1.
    np.testing.assert_allclose(barlow_twins_loss(eye, eye, 0.1), 0, atol=1e-6)
    # Neither scale nor offset counts.
    np.testing.assert_allclose(barlow_twins_loss(eye, 3 * eye + 1, 0.1), 0, atol=1e-6)
    np.testing.assert_allclose(barlow_twins_loss(eye, -eye, 0.1), 8, rtol=2e-5)
    np.testing.assert_allclose(barlow_twins_loss(eye, eye[:, ::-1], 0.1), 2 + 0.1 * 2, rtol=2e-5)
    np.testing.assert_allclose(covariance_loss(eye), 0, atol=1e-7)
    np.testing.assert_allclose(covariance_loss(eye[:, [0, 0]]), (4 / 3) ** 2, rtol=1e-5)
    np.testing.assert_allclose(variance_loss(jnp.ones((4, 3))), 1 - 0.01, rtol=1e-5)  # Collapsed.
    np.testing.assert_allclose(variance_loss(10 * eye), 0)
    np.testing.assert_allclose(vicreg_loss(eye, eye), 0, atol=1e-6)


def test_barlow_twins_shrinks_features_of_small_variance_as_batch_norm_does():
    """C_ii = var / (var + 1e-5) of a feature of equal views: 0.909 at a standard deviation of
    0.01."""
    z = 0.01 * jnp.array([[1, 1], [1, -1], [-1, 1], [-1, -1.0]])
    np.testing.assert_allclose(
        barlow_twins_loss(z, z, 0.0), 2 * (1 - 1e-4 / (1e-4 + 1e-5)) ** 2, rtol=1e-3
    )


def test_vicreg_with_half_the_variance_is_the_authors_code():
    """Their std_loss averages the hinges of the two views, each a mean over features."""
    a, b = draw(3, (7, 4), (7, 4))
    hinge = lambda z: np.mean(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)))
    theirs = 25 * np.mean((a - b) ** 2) + 25 * (hinge(a) / 2 + hinge(b) / 2)
    ours = vicreg_loss(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), mu=12.5, nu=0.0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def authors_sigreg(x):
    """Epps-Pulley in float64 for x (n,): 17 knots on [0, 3], doubled since the integrand is
    even."""
    t = np.linspace(0, 3, 17)
    normal = np.exp(-(t**2) / 2)
    phi = np.exp(1j * np.outer(t, x)).mean(1)
    values = np.abs(phi - normal) ** 2 * normal
    return len(x) * 2 * np.sum((values[1:] + values[:-1]) / 2 * np.diff(t))


@pytest.mark.parametrize("mean, std", [(0, 1), (10.05, 1), (0, 6), (0, 8), (20.1, 1), (3, 0.1)])
def test_sigreg_has_the_authors_knots(mean, std):
    x = mean + std * np.random.default_rng(0).normal(size=4096)
    found = sigreg(jnp.asarray(x, jnp.float32)[:, None], jnp.ones((1, 1)))
    # Angles of float32 are off by 1e-6 of the largest, and the error at n = 4096 is multiplied.
    np.testing.assert_allclose(found, authors_sigreg(x), rtol=1e-3, atol=1e-2)


def test_sigreg_sees_a_mean_of_10_and_shrinks_wide_features():
    """With reach 5 and 17 knots the value was 1.26 and the gradient's sign wrong from a std of 6
    on."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4096, 1)), jnp.float32)
    one = jnp.ones((1, 1))
    assert 11_700 < sigreg(x + 10.05, one) < 12_100
    for std in (2.0, 4.0, 6.0, 6.2, 7.0, 8.0):
        assert jax.grad(lambda s: sigreg(s * x, one))(std) > 0
    assert jax.grad(lambda s: sigreg(s * x, one))(0.5) < 0
    scale, moved = jnp.float32(6.0), optax.adam(0.05)
    state = moved.init(scale)
    step = jax.jit(jax.grad(lambda s: sigreg(s * x, one)))
    for _ in range(300):
        update, state = moved.update(step(scale), state)
        scale = scale + update
    assert 0.9 < scale < 1.3


def test_sigreg_is_near_its_integral_and_separates_normal_features_from_others():
    z, directions = jnp.zeros((10, 4)), jnp.eye(4)  # At 0 the empirical function is 1.
    squared = lambda t: (1 - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
    exact = 10 * integrate.quad(squared, -3, 3)[0]
    np.testing.assert_allclose(sigreg(z, directions), exact, rtol=1e-3)
    np.testing.assert_allclose(sigreg(z, 7 * directions), sigreg(z, directions), rtol=1e-6)
    normal, directions = (jax.random.normal(jax.random.key(i), (2000, 8)) for i in (0, 1))
    low = sigreg(normal, directions[:64])
    for other in (2 * normal, normal + 0.5, jnp.sign(normal), normal[:, :1] * jnp.ones(8)):
        assert sigreg(other, directions[:64]) > 5 * low


@pytest.mark.parametrize(
    "loss",
    [barlow_twins_loss, vicreg_loss, lambda a, b: lejepa_loss(jnp.stack([a, b]), jnp.eye(3))],
)
def test_collapsed_batches_are_finite(loss):
    for z in (jnp.ones((4, 3)), jnp.zeros((4, 3))):
        assert np.isfinite(loss(z, z)) and np.isfinite(jax.grad(loss)(z, z)).all()


def test_bad_input_is_a_sentence():
    a = jnp.ones((4, 3))
    for loss in (barlow_twins_loss, vicreg_loss):
        with pytest.raises(ValueError, match="same shape"):
            loss(a, a[:2])
        with pytest.raises(ValueError, match="two images or more"):
            loss(a[:1], a[:1])
    with pytest.raises(ValueError, match="Two or more views"):
        lejepa_loss(a[None], a)
    with pytest.raises(ValueError, match=r"in \[0, 1\], not 2"):
        lejepa_loss(jnp.stack([a, a]), a, 2)
    for large in (0, 3):
        with pytest.raises(ValueError, match=f"from 1 to all 2, not {large}"):
            lejepa_loss(jnp.stack([a, a]), a, large=large)
    with pytest.raises(ValueError, match="directions"):
        sigreg(a, jnp.ones((4, 2)))
