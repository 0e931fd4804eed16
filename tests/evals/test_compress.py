"""Likeness of images against the papers' equations as loops, and JPEG at a given rate."""

import io

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from ssljax.data import images
from ssljax.data.sources import Arrays
from ssljax.evals.average import psnr
from ssljax.evals.compress import compression, nearest_jpeg, ssim


@pytest.fixture(scope="module")
def pictures():
    """Digits, enlarged to 24 x 24: real, and with room for SSIM's window."""
    test = images("digits", "test", 24)
    return Arrays(test.image[:40], test.labels[:40], test.class_names)


def noisy(x, amount, seed=0):
    noise = np.random.default_rng(seed).normal(size=x.shape) * amount
    return np.clip(np.round(x + noise), 0, 255).astype(np.uint8)


def naive_ssim(x, y):
    """Wang et al., 2004, eq. 13 to 16, at every place of one channel where the window is whole."""
    w = np.array(
        [
            [np.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)]
            for i in range(11)
        ]
    )
    w, x, y = w / w.sum(), x.astype(float), y.astype(float)
    c1, c2, values = 2.55**2, 7.65**2, []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (
                (w * (a - ma) ** 2).sum(),
                (w * (b - mb) ** 2).sum(),
                (w * (a - ma) * (b - mb)).sum(),
            )
            values.append(
                (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            )
    return np.mean(values)


def test_ssim_equals_a_loop(pictures):
    a = pictures.image[:3]
    b = np.stack([noisy(x, s) for x, s in zip(a, (5, 40, 200))])
    found = ssim(a, b)
    np.testing.assert_allclose(
        found, [naive_ssim(x[..., 0], y[..., 0]) for x, y in zip(a, b)], rtol=1e-9
    )
    assert 1 > found[0] > found[1] > found[2]
    colours = np.concatenate([a, noisy(a, 20, 1), noisy(a, 20, 2)], -1)
    other = noisy(colours, 30, 3)
    each = [ssim(colours[..., [c]], other[..., [c]]) for c in range(3)]
    np.testing.assert_allclose(ssim(colours, other), np.mean(each, 0))


def test_ssim_of_flat_and_equal_images(pictures):
    a = pictures.image
    np.testing.assert_allclose(ssim(a, a), 1)
    flat = lambda value: np.full((1, 16, 16, 1), value, np.uint8)
    c1 = 2.55**2  # Of flat images only the luminance is left.
    assert ssim(flat(100), flat(150))[0] == pytest.approx(
        (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    )
    assert ssim(a[:1], 255 - a[:1])[0] < 0


def test_psnr_equals_its_equation(pictures):
    a = pictures.image[:4]
    b = noisy(a, 20)
    expected = [
        20 * np.log10(255 / np.sqrt(np.mean((x.astype(float) - y) ** 2))) for x, y in zip(a, b)
    ]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(
        psnr(np.zeros((1, 4, 4, 1), np.uint8), np.full((1, 4, 4, 1), 255, np.uint8)), 0, atol=1e-6
    )
    np.testing.assert_allclose(psnr(a, a), 100)  # The cap, for what is the same.


def test_nearest_jpeg_equals_a_search_over_qualities(pictures):
    x = pictures.image
    rates = {}
    for quality in range(1, 96):
        sizes = []
        for image in x:
            file = io.BytesIO()
            Image.fromarray(image[..., 0]).save(file, "JPEG", quality=quality)
            sizes.append(len(file.getvalue()))
        rates[quality] = 8 * np.mean(sizes)
    header = rates[1] - nearest_jpeg(x, 1)[0]
    assert (
        8 * 300 < header < 8 * 700 and header % 8 == 0
    )  # Of JPEG's own tables, and the same at any quality.
    for bits in (1, 400, 800, 1600, 1e6):
        rate, decoded = nearest_jpeg(x, bits)
        assert rate == pytest.approx(
            min((r - header for r in rates.values()), key=lambda r: abs(r - bits))
        )
        assert decoded.shape == x.shape and decoded.dtype == np.uint8
    assert psnr(x, decoded).mean() > 35 > psnr(x, nearest_jpeg(x, 400)[1]).mean()


def test_compression_numbers(pictures):
    x = pictures.image
    exact = compression(
        lambda state, x: x / 255.0 + state["shift"], pictures, bits=24 * 24 * 2, batch_size=15
    )
    numbers = exact({"shift": jnp.float32(0)})
    assert numbers["ssim"] == pytest.approx(1) and numbers["bits_per_pixel"] == 2
    assert numbers["psnr"] == pytest.approx(100)
    with pytest.raises(ValueError, match="not finite"):
        exact({"shift": jnp.float32(np.nan)})
    rate, decoded = nearest_jpeg(x, 24 * 24 * 2)
    assert (
        numbers["jpeg_psnr"] == pytest.approx(float(psnr(x, decoded).mean()))
        and numbers["jpeg_psnr"] > 20
    )
    assert numbers["jpeg_ssim"] == pytest.approx(ssim(x, decoded).mean())
    assert (
        numbers["jpeg_bits_per_pixel"] == pytest.approx(rate / 24**2) and 1.8 < rate / 24**2 < 2.2
    )
    shifted = exact({"shift": jnp.float32(10 / 255)})
    expected = np.minimum(x.astype(int) + 10, 255).astype(np.uint8)
    assert shifted["psnr"] == pytest.approx(psnr(x, expected).mean())
    assert shifted["ssim"] == pytest.approx(ssim(x, expected).mean())
    assert "ssim" not in compression(
        lambda state, x: x / 255.0, images("digits", "test"), bits=10, n=20
    )({})


def test_compression_errors(pictures):
    x = pictures.image
    with pytest.raises(ValueError, match="11 pixels a side"):
        ssim(x[:, :8, :8], x[:, :8, :8])
    with pytest.raises(ValueError, match=r"must be of shape \(40, 24, 24, 1\)"):
        ssim(x, x[:2])
    with pytest.raises(ValueError, match="positive number of bits"):
        compression(lambda state, x: x / 255.0, pictures, bits=0)
