"""Colour spaces against published values, and round trips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data import images
from ssljax.data.colour import gamut, lab_to_rgb, occurrences, rgb_to_lab
from ssljax.errors import InputError
from ssljax.losses.colour import annealed_mean, rare_weights, rebalanced_loss, soft_bins


@pytest.mark.parametrize(
    "rgb, lab",
    [  # sRGB's primaries and white under D65, as CIE calculators have them.
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 1, 0), (97.14, -21.55, 94.48)),
    ],
)
def test_published_values(rgb, lab):
    np.testing.assert_allclose(rgb_to_lab(jnp.asarray(rgb, jnp.float32)), lab, atol=0.03)


def test_lab_round_trip():
    x = (
        jax.random.uniform(jax.random.key(0), (4000, 3)) ** 3
    )  # Many dark ones, on the straight part of the curves.
    np.testing.assert_allclose(lab_to_rgb(rgb_to_lab(x)), x, atol=2e-5)
    grey = rgb_to_lab(jnp.linspace(0, 1, 50)[:, None] * jnp.ones(3))
    np.testing.assert_allclose(grey[:, 1:], 0, atol=1e-3)
    assert (np.diff(grey[:, 0]) > 0).all()
    assert float(lab_to_rgb(jnp.array([50.0, 128, -128])).max()) <= 1
    assert np.isfinite(jax.grad(lambda x: lab_to_rgb(rgb_to_lab(x)).sum())(jnp.zeros(3))).all()
    with pytest.raises(InputError, match="three channels, not 1"):
        rgb_to_lab(jnp.zeros((2, 2, 1)))


def test_nearest_bins():
    centres, _ = gamut()
    assert 230 < len(centres) < 320 and len(np.unique(centres, axis=0)) == len(centres)
    ab = np.asarray(rgb_to_lab(jax.random.uniform(jax.random.key(1), (5000, 3))))[:, 1:]
    nearest = ((ab[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert np.abs(centres[nearest] - ab).max() < 10
    np.testing.assert_array_equal(
        occurrences(ab, centres), np.bincount(nearest, minlength=len(centres))
    )


def test_rare_weights_equation():
    centres = np.array([[0, 0], [10, 0], [50, 50], [60, -30]], np.float32)
    counts = np.array([80, 15, 5, 0])
    w = rare_weights(counts, centres)
    smooth = np.zeros(4)
    for j in range(
        4
    ):  # Each bin's share goes to those near it by a Gaussian of 5, which keeps the sum.
        share = [np.exp(-((centres[i] - centres[j]) ** 2).sum() / 50) for i in range(4)]
        smooth += counts[j] / 100 * np.array(share) / sum(share)
    want = [1 / (0.5 * p + 0.5 / 4) for p in smooth]
    np.testing.assert_allclose(w, want / np.dot(smooth, want), rtol=1e-5)
    assert w[3] == w.max() > w[2] > w[1] > w[0] and smooth.sum() == pytest.approx(1)
    np.testing.assert_allclose(rare_weights(counts, centres, lam=1.0), 1, rtol=1e-6)
    with pytest.raises(InputError, match="a bin may never occur"):
        rare_weights(counts, centres, lam=0)


def test_soft_encoding_over_five_bins():
    rng = np.random.default_rng(0)
    centres, table = gamut()
    ab = np.array(rgb_to_lab(jnp.asarray(rng.uniform(size=(4, 6, 3)), "float32")))[..., 1:]
    ab[0, 0], ab[0, 1] = centres[0] + [0.3, 0.7], centres[-1] - [0.3, 0.7]  # At the rim.
    logits, w = rng.normal(size=(4, 6, len(centres))), rng.uniform(0.1, 9, size=len(centres))
    bins, share = soft_bins(jnp.asarray(ab), centres, table, 10.0)
    total = 0.0
    for at in np.ndindex(4, 6):
        square = [float(((ab[at].astype(float) - c) ** 2).sum()) for c in centres]
        five = sorted(range(len(centres)), key=square.__getitem__)[:5]
        gauss = [np.exp(-(square[q] - square[five[0]]) / (2 * 5**2)) for q in five]
        target = np.zeros(len(centres))
        target[five] = np.array(gauss) / sum(gauss)
        np.testing.assert_allclose(
            np.bincount(bins[at], share[at], len(centres)), target, atol=1e-4
        )
        p = np.exp(logits[at]) / np.exp(logits[at]).sum()
        total -= w[target.argmax()] * sum(z * np.log(q) for z, q in zip(target, p))
    found = rebalanced_loss(jnp.asarray(logits, "float32"), bins, share, jnp.asarray(w, "float32"))
    np.testing.assert_allclose(found, total / 24, rtol=1e-4)
    for width in (
        10.0,
        7.0,
    ):  # The table holds the five nearest to all that lies in a bin, at its corners too.
        centres, table = gamut(width)
        ab = np.concatenate([(c + rng.uniform(-0.5, 0.5, size=(12, 2)) * width) for c in centres])
        square = ((ab[:, None] - centres) ** 2).sum(-1)
        bins = soft_bins(jnp.asarray(ab, "float32"), centres, table, width)[0]
        np.testing.assert_allclose(
            np.take_along_axis(square, np.asarray(bins), 1), np.sort(square)[:, :5], atol=1e-2
        )
    with pytest.raises(InputError, match="choose a narrower --step"):
        gamut(60.0)


def test_annealed_mean_between_mean_and_mode():
    p, centres = jnp.array([0.5, 0.3, 0.2]), jnp.array([[10.0, 0], [0, 10], [-10, -10]])
    np.testing.assert_allclose(annealed_mean(jnp.log(p), centres, 1.0), p @ centres, atol=1e-5)
    np.testing.assert_allclose(annealed_mean(jnp.log(p), centres, 0.01), centres[0], atol=1e-4)
    sharp = p ** (1 / 0.38)
    np.testing.assert_allclose(
        annealed_mean(jnp.log(p), centres), sharp @ centres / sharp.sum(), atol=1e-4
    )


def test_photograph_tiles():
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    train, test = images("photos", "train"), images("photos", "test")
    assert (len(train), len(test), train.shape) == (390, 104, (32, 32, 3))
    assert train.class_names == ["china", "flower"] and np.bincount(test.labels).tolist() == [
        52,
        52,
    ]
    np.testing.assert_array_equal(train.image[0], china[:32, :32])
    np.testing.assert_array_equal(train.image[15], china[32:64, :32])
    np.testing.assert_array_equal(
        test.image[0], china[:32, 16 * 32 : 17 * 32]
    )  # Column 15 is in neither.
    np.testing.assert_array_equal(test.image[-1], flower[12 * 32 : 13 * 32, 19 * 32 : 20 * 32])
    every = {x.tobytes() for x in np.concatenate([train.image, test.image])}
    assert len(every) == 494
