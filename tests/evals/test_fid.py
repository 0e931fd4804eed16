"""Distances of sets of features against closed forms, SciPy's matrix root, and loops."""

from dataclasses import replace
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ssljax import sharding
from ssljax.data import images
from ssljax.data.sources import Arrays
from ssljax.errors import InputError
from ssljax.evals.feature_nets import FeatureNet, pixels
from ssljax.evals.features import raw_pixels
from ssljax.evals.fid import (
    comparison,
    frechet,
    generated,
    kid,
    Moments,
    moments,
    neighbour_radii,
    prdc,
)


def covariance(rng, d, rank=None):
    a = rng.normal(size=(d, rank or d))
    return a @ a.T / d


# Fréchet distance


def gaussian(mean, cov):
    return Moments(np.asarray(mean, float), cov=np.asarray(cov))


def frechet_of_covariances(mean1, cov1, mean2, cov2):
    """The equation on d x d covariances, by eigenvalues in float64."""
    values, vectors = np.linalg.eigh(cov1)
    kept = values > len(values) * np.finfo(float).eps * values.max()
    root = vectors[:, kept] * np.sqrt(values[kept])
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ cov2 @ root), 0)).sum()
    return np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * cross


def test_frechet_of_known_gaussians():
    eye = np.eye(3)
    assert frechet(gaussian([0, 0, 0], eye), gaussian([3, 0, 4], eye)) == pytest.approx(25)
    scaled = [gaussian([1, 1, 1], c * eye) for c in (4, 9)]
    assert frechet(*scaled) == pytest.approx(3 * (2 - 3) ** 2)
    # Where they commute, the sum of (sqrt a - sqrt b)^2.
    a, b = np.array([1.0, 4, 9]), np.array([16.0, 1, 0])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = [
        gaussian(m, turn @ np.diag(x) @ turn.T) for m, x in ((np.zeros(3), a), (np.ones(3), b))
    ]
    assert frechet(*turned) == pytest.approx(3 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2))
    # In two dimensions tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)), by Cayley and Hamilton.
    rng = np.random.default_rng(1)
    a, b = covariance(rng, 2), covariance(rng, 2)
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = frechet(gaussian([0, 0], a), gaussian([0, 0], b))
    assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * cross)


@pytest.mark.parametrize("d", [2, 17, 60])
def test_frechet_equals_scipys_matrix_root(d):
    rng = np.random.default_rng(d)
    (m1, m2), c1, c2 = rng.normal(size=(2, d)), covariance(rng, d), covariance(rng, d)
    root = scipy.linalg.sqrtm(c1 @ c2)
    assert np.abs(root.imag).max() < 1e-6
    expected = np.sum((m1 - m2) ** 2) + np.trace(c1 + c2 - 2 * root.real)
    a, b = gaussian(m1, c1), gaussian(m2, c2)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 7])
@pytest.mark.parametrize(
    "n1, n2, d",
    [
        (20, 20, 80),
        (20, 50, 80),
        (200, 20, 80),
        (20, 200, 80),
        (300, 200, 80),
        (80, 81, 80),
        (2, 5, 9),
    ],
)
def test_frechet_without_covariances_equals_the_covariance_form(n1, n2, d, rank):
    """More features than images, fewer, and one of each; of full rank and of low rank."""
    rng = np.random.default_rng(n1 + n2)
    a = rng.normal(size=(n1, d)) * np.geomspace(10, 0.1, d) + 100
    b = rng.normal(size=(n2, d)) * np.geomspace(10, 0.1, d) + 101
    if rank:
        a, b = (
            z @ np.linalg.qr(rng.normal(size=(d, rank)))[0] @ rng.normal(size=(rank, d))
            for z in (a, b)
        )
    expected = frechet_of_covariances(
        *(x for z in (a, b) for x in (z.mean(0), np.cov(z, rowvar=False)))
    )
    found = moments(a), moments(b)
    for z, m in zip((a, b), found):
        cov = np.cov(z, rowvar=False)
        np.testing.assert_allclose(m.root.T @ m.root, cov, atol=1e-9 * np.abs(cov).max())
        stored = m.cov if m.factor is None else m.factor
        assert len(m.root) <= min(z.shape) and len(stored) <= min(z.shape)
    assert frechet(*found) == pytest.approx(expected, rel=1e-6)
    assert frechet(found[0], found[0]) == pytest.approx(0, abs=1e-6 * found[0].trace)


def test_frechet_of_many_features_needs_little_memory():
    """60 images of 128 x 128 x 3 pixels: their covariance would take 18 GiB."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((60, 128 * 128 * 3), np.float32) for _ in range(2))
    tracemalloc.start()
    distance = frechet(moments(a), moments(b))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(distance) and peak < 2**28


def test_moments_of_too_few_or_of_nan_are_an_error():
    with pytest.raises(InputError, match="finite"):
        moments(np.array([[0, np.nan], [1, 2]]))
    with pytest.raises(InputError, match="2 images or more, not 1"):
        moments(np.ones((1, 3)))


# Kernel distance


def naive_kid(a, b):
    """Bińkowski et al., 2018, eq. 4, with k(x, y) = (x.y / d + 1)^3."""
    k = lambda x, y: (sum(float(p) * float(q) for p, q in zip(x, y)) / len(x) + 1) ** 3
    m, n = len(a), len(b)
    aa = sum(k(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    bb = sum(k(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return aa + bb - 2 * sum(k(x, y) for x in a for y in b) / (m * n)


def test_kid_equals_a_loop():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 5)), rng.normal(size=(12, 5)) + 1
    found, error = kid(a, b, size=12)
    assert found == pytest.approx(naive_kid(a, b), rel=1e-5) and np.isnan(
        error
    )  # One block has no scatter.


def test_kid_error_is_the_scatter_of_fresh_samples():
    rng = np.random.default_rng(1)
    found, errors = np.array(
        [kid(rng.normal(size=(200, 8)), rng.normal(size=(200, 8)) + 0.2) for _ in range(60)]
    ).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(found.std(ddof=1), rel=0.35)


def test_kid_of_equal_distributions_is_zero_on_average():
    rng = np.random.default_rng(0)
    found = np.array([kid(*rng.normal(size=(2, 30, 4)), size=30)[0] for _ in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20 and 0.3 < np.mean(found < 0) < 0.7
    other = [
        kid(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)) + 0.5, size=30)[0]
        for _ in range(100)
    ]
    assert np.mean(other) > 5 * found.std()


def test_kid_of_one_image_is_refused():
    with pytest.raises(ValueError, match="two images"):
        kid(np.ones((1, 3)), np.ones((5, 3)))


# Precision, recall, density, coverage


def naive_prdc(real, fake, k):
    distance = lambda x, y: np.sqrt(sum((p - q) ** 2 for p, q in zip(x, y)))
    radius = lambda z, i: sorted(distance(z[i], z[j]) for j in range(len(z)) if j != i)[k - 1]
    r, f = ([radius(z, i) for i in range(len(z))] for z in (real, fake))
    n, m = len(real), len(fake)
    return {
        "precision": sum(any(distance(y, real[i]) <= r[i] for i in range(n)) for y in fake) / m,
        "recall": sum(any(distance(x, fake[j]) <= f[j] for j in range(m)) for x in real) / n,
        "density": sum(distance(y, real[i]) <= r[i] for y in fake for i in range(n)) / (k * m),
        "coverage": sum(any(distance(real[i], y) <= r[i] for y in fake) for i in range(n)) / n,
    }


@pytest.mark.parametrize("k, tile", [(1, 1024), (2, 7), (3, 1)])
def test_prdc_equals_a_loop(k, tile):
    rng = np.random.default_rng(k)
    real, fake = (
        rng.normal(size=(40, 3)),
        0.7 * rng.normal(size=(33, 3)) + 2 * (np.arange(33)[:, None] % 4),
    )
    expected = naive_prdc(real, fake, k)
    assert prdc(real, fake, k, tile) == pytest.approx(expected)
    assert prdc(real + 1e4, fake + 1e4, k, tile) == pytest.approx(
        expected
    )  # A common offset costs no digits.
    assert 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1


def test_prdc_of_known_sets():
    line = np.arange(20.0)[:, None]
    assert prdc(line, line, 1) == {
        "precision": 1,
        "recall": 1,
        "density": (2 * 2 + 18 * 3) / 20,
        "coverage": 1,
    }
    assert prdc(line, line + 1000, 5) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    stuck = (
        np.full((20, 1), 10.0) + np.arange(20)[:, None] / 1e3
    )  # One mode: precise, but it covers little.
    numbers = prdc(line, stuck, 1)
    assert (
        numbers["precision"] == 1 and numbers["recall"] == 1 / 20 and numbers["coverage"] == 3 / 20
    )  # 9, 10 and 11.
    np.testing.assert_allclose(np.sqrt(neighbour_radii(line, 2)), [2, *[1] * 18, 2])


def test_prdc_of_equal_distributions():
    """Naeem et al., 2020: the expected density is 1.

    The expected coverage is 1 - (n - 1) ... (n - k) / ((2n - 1) ... (2n - k)).
    """
    rng, n, k = np.random.default_rng(0), 500, 5
    numbers = [prdc(*rng.normal(size=(2, n, 8)), k) for _ in range(5)]
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert np.mean([x["density"] for x in numbers]) == pytest.approx(1, abs=0.05)
    assert np.mean([x["coverage"] for x in numbers]) == pytest.approx(expected, abs=0.02)


def test_prdc_of_too_few_images_is_refused():
    with pytest.raises(ValueError, match="no 5th neighbours"):
        prdc(np.eye(5), np.eye(9), 5)


# The evaluator


@pytest.fixture(scope="module")
def digits():
    return images("digits", "train"), images("digits", "test")


def resample(data):
    """A perfect generator: it draws from the images of `data`."""
    x = jnp.asarray(data.read(np.arange(len(data)))["image"] / np.float32(255))
    return lambda state, key, n: jnp.clip(
        x[jax.random.choice(key, len(x), (n,), replace=False)] + state["shift"], 0, 1
    )


def test_generated_numbers(digits):
    train, test = digits
    evaluate = generated(resample(test), replace(pixels(), batch_size=360), train, test)
    good, bad = (evaluate({"shift": jnp.float32(s)}) for s in (0, 0.3))
    floor = comparison(raw_pixels(train), raw_pixels(train)[:360])(raw_pixels(test))
    for what in ("fid", "kid", "precision", "recall", "density", "coverage"):
        assert (
            f"{what}_pixels" in good and good[f"{what}_pixels_floor"] == bad[f"{what}_pixels_floor"]
        )
    # All of the test set, in one draw of 360: the floor itself.
    assert good["fid_pixels"] == pytest.approx(floor["fid"], rel=1e-6)
    assert good["fid_pixels_floor"] == pytest.approx(floor["fid"], rel=1e-6)
    assert (
        good["precision_pixels"] == good["precision_pixels_floor"] > 0.8 > bad["precision_pixels"]
    )
    assert (
        bad["fid_pixels"] > 5 * good["fid_pixels"]
        and bad["kid_pixels"] > 5 * good["kid_pixels"] > -1
    )
    assert evaluate({"shift": jnp.float32(0.3)}) == bad  # The same noise each time.


def test_a_generator_of_few_kinds_of_images_is_named(digits):
    """Of five images with noise; not one of all images, nor one of half of them.

    Of one whose samples are all too bright, it isn't known which of the two they are.
    """
    train, test = digits
    x = jnp.asarray(test.image / np.float32(255))

    def draw(state, key, n):
        k1, k2 = jax.random.split(key)
        noise = 0.05 * jax.random.normal(k2, (n, *x.shape[1:]))
        return jnp.clip(x[jax.random.randint(k1, (n,), 0, state["kinds"])] + noise, 0, 1)

    evaluate = generated(draw, pixels(), train, test)
    numbers = {kinds: evaluate({"kinds": jnp.int32(kinds)}) for kinds in (5, 180, 360)}
    assert evaluate.warning(numbers[180]) == evaluate.warning(numbers[360]) == ""
    said = evaluate.warning(numbers[5])
    assert said.startswith("Samples vary far less than the images do: recall 0.0")
    assert f"held-out images have {numbers[5]['recall_pixels_floor']:.2f} and" in said
    assert "has collapsed to a few kinds of images. Look" in said
    poor = generated(resample(test), replace(pixels(), batch_size=360), train, test)
    said = poor.warning(poor({"shift": jnp.float32(0.3)}))
    assert "kinds of images, or makes none that are like the data. Look" in said
    some = numbers[360] | {"recall_pixels": 0.1}
    assert "recall 0.10" in evaluate.warning(some) and "collapsed" not in evaluate.warning(some)


def test_generated_draws_in_batches_of_the_feature_net(digits):
    train, test = digits
    sizes = []

    def draw(state, key, n):
        sizes.append(n)
        return resample(test)(state, key, n)

    seen = []

    def half(params, x):
        seen.append(x.dtype)
        return params["w"] * x.reshape(len(x), -1)

    net = FeatureNet("half", {"w": np.float32(0.5)}, half, 100)
    numbers = generated(draw, net, train, test, n=250)({"shift": jnp.float32(0)})
    assert sizes == [100] and set(seen) == {jnp.dtype("uint8")}
    assert 0 < numbers["fid_half"] < 3 * numbers["fid_half_floor"] + 1e4


def test_generated_on_a_mesh_of_eight_devices(digits):
    train, test = digits
    draw = lambda state, key, n: (
        sharding.over_batch(jax.random.uniform(key, (n, 8, 8, 1))) ** state["power"]
    )
    one, eight = (generated(draw, pixels(), train, test, n=200) for _ in range(2))
    state = {"power": jnp.float32(2)}
    expected = one(state)
    with jax.set_mesh(sharding.make_mesh()):
        assert eight(state) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_generated_reads_real_images_once(digits):
    reads = []

    class Counted(Arrays):
        def read(self, at):
            reads.append(len(at))
            return super().read(at)

    train, test = (Counted(x.image, x.labels, x.class_names) for x in digits)
    evaluate = generated(resample(test), replace(pixels(), batch_size=360), train, test)
    reads.clear()
    for shift in (0, 0.1):
        evaluate({"shift": jnp.float32(shift)})
    assert reads == [
        360,
        360,
        360,
        360,
        360,
    ]  # The last of the four of the training set repeats its own images.


def test_generated_errors(digits):
    train, test = digits
    net = FeatureNet("nan", {}, lambda p, x: jnp.where(x[:, :, 0, 0] > 200, jnp.nan, x[:, :, 0, 0]))
    with pytest.raises(ValueError, match="not finite"):
        generated(lambda s, k, n: jnp.ones((n, 8, 8, 1)), net, train, test)({"a": jnp.ones(())})
    with pytest.raises(
        ValueError, match="360 of 360 drawn images"
    ):  # As bytes they would be black.
        generated(lambda s, k, n: jnp.full((n, 8, 8, 1), jnp.nan), pixels(), train, test)({})
    with pytest.raises(ValueError, match="4 images are too few"):
        generated(resample(test), pixels(), train, test, n=4)
