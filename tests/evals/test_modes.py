"""Mixtures in the plane and their modes: known points, the mixture itself, and loops."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data.mixtures import GRID, Mixture, RING
from ssljax.evals.modes import modes, recovered

MIXTURES = pytest.mark.parametrize("mixture", [RING, GRID], ids=["ring", "grid"])


def naive(points, centres, sigma):
    """Lin et al., 2017, section 4.1.

    A sample within 3 sigma of the nearest centre is of high quality, and recovers that centre.
    """
    found, good = set(), 0
    for x in points:
        distances = [math.dist(x, c) for c in centres]
        nearest = distances.index(min(distances))
        if distances[nearest] < 3 * sigma:
            found.add(nearest)
            good += 1
    return len(found), 100 * good / len(points)


def test_mixtures_are_the_papers():
    assert len(RING.centres) == 8 and RING.sigma == 0.01
    for c in RING.centres:
        assert math.hypot(*c) == pytest.approx(1)
        assert sorted(math.dist(c, o) for o in RING.centres)[1] == pytest.approx(
            2 * math.sin(math.pi / 8)
        )
    assert GRID.sigma == 0.05
    assert {tuple(c) for c in GRID.centres} == set(itertools.product((-4, -2, 0, 2, 4), repeat=2))


@MIXTURES
def test_mixture_draw_has_its_moments(mixture):
    points = mixture.draw(50_000, seed=3)
    distance = np.linalg.norm(points[:, None] - mixture.centres, axis=-1)
    nearest = distance.argmin(1)
    share = np.bincount(nearest, minlength=len(mixture.centres)) / len(points)
    np.testing.assert_allclose(
        share, 1 / len(mixture.centres), atol=5 * math.sqrt(share.max() / len(points))
    )
    for i, c in enumerate(mixture.centres):
        own = points[nearest == i]
        np.testing.assert_allclose(own.mean(0), c, atol=5 * mixture.sigma / math.sqrt(len(own)))
        np.testing.assert_allclose(
            np.cov(own.T), mixture.sigma**2 * np.eye(2), atol=0.15 * mixture.sigma**2
        )
    assert not np.array_equal(points, mixture.draw(50_000, seed=4))
    np.testing.assert_array_equal(points, mixture.draw(50_000, seed=3))


@MIXTURES
def test_recovered_of_the_mixture_itself(mixture):
    """Within 3 sigma in the plane: 1 - exp(-9/2)."""
    count, percent = recovered(mixture.draw(50_000), mixture.centres, mixture.sigma)
    assert count == len(mixture.centres)
    assert percent == pytest.approx(100 * (1 - math.exp(-4.5)), abs=0.2)


def test_mixture_packs_are_independent_points():
    packs, drawn = GRID.packs(2000, 3, seed=5), GRID.draw(2000, seed=5)
    assert packs.shape == (2000, 3, 2)
    assert {tuple(x) for x in packs.reshape(-1, 2)} <= {tuple(x) for x in drawn}
    centre = np.linalg.norm(packs[:, :, None] - GRID.centres, axis=-1).argmin(-1)
    together = np.histogram2d(centre[:, 0], centre[:, 1], bins=25)[0]
    assert (
        together.max() < 5 * 2000 / 25**2 and np.mean(centre[:, 0] == centre[:, 1]) < 0.07
    )  # 1/25 by chance.
    with pytest.raises(ValueError, match="at least 1 point, not 0"):
        GRID.packs(10, 0)


@pytest.mark.parametrize(
    "points, expected",
    [
        ([[1, 0]], (1, 100)),
        ([[1, 0.029], [0.971, 0]], (1, 100)),
        ([[1, 0.031], [0, 1]], (1, 50)),
        ([[0, 0], [5, 5]], (0, 0)),
        ([[1, 0], [0, 1], [-1, 0], [0, -1]], (4, 100)),
        ([[1, 0]] * 3 + [[0.9, 0]], (1, 75)),
    ],
)
def test_recovered_of_known_points(points, expected):
    assert recovered(np.array(points, float), RING.centres, RING.sigma) == expected


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0, 30.0])
@MIXTURES
def test_recovered_equals_a_loop(mixture, spread):
    wide = Mixture(mixture.centres[::2], spread * mixture.sigma)
    points = wide.draw(300, seed=int(spread))
    expected = naive(points.astype(float), mixture.centres, mixture.sigma)
    found = recovered(points.astype(float), mixture.centres, mixture.sigma)
    assert found[0] == expected[0] and found[1] == pytest.approx(expected[1])


def test_recovered_counts_the_nearest_of_overlapping_modes():
    centres = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert recovered(np.array([[0.4, 0.0], [0.45, 0.0]]), centres, 1.0) == (1, 100)
    assert recovered(np.array([[0.4, 0.0], [0.6, 0.0]]), centres, 1.0) == (2, 100)


def test_modes_numbers_and_picture():
    table = jnp.asarray(RING.draw(5000))

    def draw(state, key, n):
        return state["shift"] + table[jax.random.choice(key, len(table), (n,))]

    evaluate = modes(draw, RING.centres, RING.sigma, n=400)
    right, shifted = evaluate({"shift": jnp.zeros(2)}), evaluate({"shift": jnp.array([0.2, 0.0])})
    assert right["modes"] == 8 and right["high_quality"] > 95
    assert shifted["modes"] == 0 and shifted["high_quality"] == 0
    for numbers in (right, shifted):
        assert numbers["samples"].shape == (600, 600, 3) and numbers["samples"].dtype == np.uint8
    blue = lambda p: (p[..., 2] > p[..., 0].astype(int) + 40).sum()
    assert blue(right["samples"]) > 200 and not np.array_equal(right["samples"], shifted["samples"])
    with pytest.raises(ValueError, match="400 of 400 points are not finite"):
        evaluate({"shift": jnp.full(2, jnp.nan)})
