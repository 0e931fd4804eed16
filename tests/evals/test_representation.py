"""Evaluators on scikit-learn's digits, against loops in float64 and scikit-learn's own."""

import os
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ssljax.data.sources import Arrays
from ssljax.evals import probe
from ssljax.evals.average import average
from ssljax.evals.collapse import collapse, feature_std, rankme
from ssljax.evals.features import extractor, features, in_parts, raw_pixels, subset
from ssljax.evals.knn import knn, neighbours, vote
from ssljax.evals.masked_language import keyed
from ssljax.evals.pictures import compared, feature_map, grid, interpolations, samples, views
from ssljax.evals.probe import linear_probe


class Digits:
    """A set of images, as evaluators read it; `reads` has the indices of every read."""

    num_classes, class_names, shape = 10, [str(c) for c in range(10)], (8, 8, 1)

    def __init__(self, part: slice, labels: np.ndarray | None = None):
        digits = load_digits()
        self.images = (digits.images[part, ..., None] * 15).astype(np.uint8)
        self.labels = digits.target[part].astype(np.int32) if labels is None else labels
        self.reads = []

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        self.reads.append(indices)
        return {"image": self.images[indices], "label": self.labels[indices]}


@pytest.fixture
def train():
    return Digits(slice(0, 1300))


@pytest.fixture
def test():
    return Digits(slice(1300, None))


def project(state, images):
    """Images through a fixed random layer: features that only an honest evaluator gets right."""
    x = images.reshape(len(images), -1) / 255
    return jax.nn.relu(x @ state["w"])


def random_state(d=32, seed=0):
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(64, d)), jnp.float32)}


# features


@pytest.mark.parametrize("batch_size", [100, 333, 10_000])
def test_features_are_in_order_whatever_the_batch(test, batch_size):
    state = random_state()
    expected = test.images.reshape(len(test), -1) / 255.0 @ np.asarray(state["w"], np.float64)
    found = features(project, state, test, batch_size)
    assert found.shape == (497, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-4)


def test_features_compile_once_and_read_once_a_state(test):
    traces = []

    def encode(state, images):
        traces.append(images.shape)
        return project(state, images)

    state, other = random_state(), random_state(seed=1)
    extract = extractor(encode, 100)
    first = extract(state, test)
    again = extractor(encode, 100)(dict(state), test)  # Another evaluator, the same arrays.
    assert len(test.reads) == 5 and again is first
    np.testing.assert_array_equal(extract(state, Digits(slice(0, 100))).shape, (100, 32))
    some = np.array([5, 3])
    np.testing.assert_array_equal(extract(state, test, some), first[some])
    assert len(test.reads) == 5 and traces == [(100, 8, 8, 1)]
    alone = extract(other, test, some)
    assert len(test.reads) == 6 and traces[1:] == [(2, 8, 8, 1)]
    np.testing.assert_allclose(extract(other, test)[some], alone, atol=1e-5)
    assert not np.array_equal(extract(other, test), first)
    assert len(test.reads) == 11 and len(traces) == 2
    assert not np.array_equal(extract({"w": other["w"] + 1}, test), extract(other, test))


def test_features_are_freed_with_their_state(test):
    extract = extractor(lambda state, images: project(state, images))
    state = random_state()
    old, held = extract(state, test).copy(), weakref.ref(extract(state, test))
    assert held() is not None
    del state
    assert held() is None
    new = extract(random_state(seed=1), test)  # It may lie at the same address.
    assert not np.array_equal(old, new)


def test_features_of_a_state_of_numpy_arrays_are_not_remembered(test):
    state = {"w": np.asarray(random_state()["w"]).copy()}
    old = features(project, state, test)
    state["w"] *= 2
    np.testing.assert_allclose(features(project, state, test), 2 * old, rtol=1e-5)


def test_features_errors(test):
    with pytest.raises(ValueError, match=r"must return features \(n, d\)"):
        features(lambda state, images: images, {}, test)
    with pytest.raises(ValueError, match="497 of 497 images have features that are not finite"):
        features(lambda state, images: project(state, images) / 0, random_state(), test)


def test_raw_pixels(test):
    expected = test.images.reshape(497, 64) / 255
    np.testing.assert_allclose(raw_pixels(test, chunk=100), expected, atol=1e-6)
    np.testing.assert_allclose(
        raw_pixels(test, np.array([7, 2, 9]), chunk=2), expected[[7, 2, 9]], atol=1e-6
    )
    assert [len(at) for at in test.reads] == [100, 100, 100, 100, 97, 2, 1]  # None is read twice.
    halves = raw_pixels(
        Arrays(np.tile(np.uint8([[0, 255]]), (3, 64, 16))[..., None], np.zeros(3, np.int32), ["a"]),
        most=8,
    )
    assert (
        halves.shape == (3, 8 * 4) and abs(halves - 0.5).max() < 0.02
    )  # Antialiased, and of the same shape.


@pytest.mark.parametrize(
    "n, size, want",
    [
        (7, 3, [[0, 1, 2], [3, 4, 5], [6, 6, 6]]),
        (5, 9, [[0, 1, 2, 3, 4]]),
        (4, 2, [[0, 1], [2, 3]]),
    ],
)
def test_in_parts_and_keyed_have_parts_of_one_length(n, size, want):
    """Parts are padded with their own first rows, on one device and eight; `keyed` adds a key."""
    rows, data = 10 * np.arange(n)[:, None] + np.arange(3), jax.random.key_data
    for room, count in (len(want[0]), 1), (8, 8):
        mesh = jax.make_mesh(
            (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
        )
        with jax.set_mesh(mesh):
            found, masked = (
                list(in_parts(rows.__getitem__, np.arange(n), size)),
                list(keyed(rows, size, seed=3)),
            )
        for (start, k, part), (key, m, again), at in zip(found, masked, want, strict=True):
            assert (start, k) == (at[0], len(set(at))) and k == m
            for x in part, again:
                np.testing.assert_array_equal(x, rows[np.resize(at[:k], room)])
            np.testing.assert_array_equal(
                data(key), data(jax.random.fold_in(jax.random.key(3), start))
            )
    with pytest.raises(ValueError, match="A set to evaluate on is empty"):
        next(in_parts(rows.__getitem__, np.arange(0), size))


# kNN


def loop(bank, labels, queries, k, temperature):
    """Wu et al., 2018, sec. 3.4, in float64: (weighted, plain) classes."""
    weighted, plain = [], []
    for q in queries.astype(np.float64):
        cosine = [q @ b / np.linalg.norm(q) / np.linalg.norm(b) for b in bank.astype(np.float64)]
        nearest = sorted(range(len(bank)), key=lambda i: -cosine[i])[:k]
        w, count = np.zeros(10), np.zeros(10)
        for i in nearest:
            w[labels[i]] += np.exp(cosine[i] / temperature)
            count[labels[i]] += 1
        weighted.append(np.argmax(w))
        plain.append(next(labels[i] for i in nearest if count[labels[i]] == count.max()))
    return np.array(weighted), np.array(plain)


@pytest.fixture
def encoded(train, test):
    return [features(project, random_state(), data) for data in (train, test)]


@pytest.mark.parametrize(
    "k, temperature", [(1, 0.07), (4, 0.07), (20, 0.07), (20, 0.01), (50, 1.0)]
)
def test_knn_equals_a_loop(encoded, train, test, k, temperature):
    bank, queries = encoded[0], encoded[1][:60]
    sims, index = neighbours(bank, queries, k, tile=(32, 500))  # Neither divides.
    weighted, plain = vote(sims, train.labels[index], temperature)
    expected = loop(bank, train.labels, queries, k, temperature)
    np.testing.assert_array_equal(weighted, expected[0])
    np.testing.assert_array_equal(plain, expected[1])


def test_vote_by_weights_and_ties():
    labels = np.array([[1, 2, 2], [3, 1, 0]])
    sims = np.array([[0.9, 0.1, 0.1], [0.5, 0.4, 0.3]], np.float32)
    weighted, plain = vote(sims, labels, 0.07)
    np.testing.assert_array_equal(weighted, [1, 3])
    np.testing.assert_array_equal(plain, [2, 3])
    close = np.array([[0.9, 0.89999, 0.89999]], np.float32)
    assert vote(close, labels[:1], 1e-4)[0] == 2  # exp(0.9 / 1e-4) overflows.


@pytest.mark.parametrize("k", [1, 7, 30])
def test_plain_knn_equals_scikit_learns(encoded, train, test, k):
    bank, queries = encoded
    sims, index = neighbours(bank, queries, k)
    _, plain = vote(sims, train.labels[index], 0.07)
    oracle = KNeighborsClassifier(k, metric="cosine").fit(bank, train.labels)
    shares = np.sort(oracle.predict_proba(queries), axis=1)
    clear = shares[:, -1] > shares[:, -2]  # It breaks ties by the class's number.
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(plain[clear], oracle.predict(queries)[clear])


@pytest.mark.parametrize("tile", [(1, 1300), (100, 7), (497, 1299), (4096, 4096)])
def test_neighbours_do_not_depend_on_tiles(encoded, tile):
    sims, index = neighbours(*encoded, 20)
    tiled = neighbours(*encoded, 20, tile=tile)
    np.testing.assert_allclose(tiled[0], sims, atol=1e-6)
    assert (tiled[1] == index).mean() > 0.999  # Two that are equal in float32 may change places.


def test_neighbours_leave_out_padding():
    """Also where all neighbours point away from a query, so that a row of zeros is nearer."""
    rng = np.random.default_rng(0)
    bank, queries = np.abs(rng.normal(size=(10, 8))), -np.abs(rng.normal(size=(4, 8)))
    sims, index = neighbours(bank, queries, 10, tile=(3, 7))
    np.testing.assert_array_equal(np.sort(index), np.tile(np.arange(10), (4, 1)))
    assert (np.diff(sims) <= 0).all() and (sims < 0).all()


def test_knn_numbers(encoded, train):
    test = Digits(slice(1300, 1400))
    evaluate = knn(project, train, test, k=5)
    numbers = evaluate(random_state())
    weighted, plain = loop(encoded[0], train.labels, encoded[1][:100], 5, 0.07)
    assert numbers["accuracy"] == pytest.approx(100 * np.mean(weighted == test.labels))
    assert numbers["plain"] == pytest.approx(100 * np.mean(plain == test.labels))
    assert 85 < numbers["raw_pixels"] <= 100
    reads = len(train.reads)
    assert evaluate(random_state(seed=1))["raw_pixels"] == numbers["raw_pixels"]
    assert len(train.reads) == reads + 2  # The encoder's two batches; pixels were kept.
    assert "raw_pixels" not in knn(project, train, test, floor=False)(random_state())


def test_knn_of_a_small_bank_is_refused(test):
    with pytest.raises(ValueError, match="k=20 neighbours cannot be had from a bank of 15 images."):
        knn(project, Digits(slice(15)), test)


# Linear probe


def oracle(x, y, lam):
    return LogisticRegression(C=1 / (lam * len(x)), tol=1e-8, max_iter=5000).fit(x, y)


def fit(x, y, weight, lam, tol):
    zeros = {"w": np.zeros((10, x.shape[1]), np.float32), "b": np.zeros(10, np.float32)}
    return probe.minimise(
        zeros, x, y, weight, probe._second_moment(x, np.ones_like(weight)), lam, tol
    )


@pytest.mark.parametrize("rows", [1300, 1000])
@pytest.mark.parametrize("lam", [1e-1, 1e-3, 1e-5])
def test_minimise_equals_scikit_learns(train, test, lam, rows):
    """Also where the last rows have no weight, as held-out images and padding have none."""
    scaler = StandardScaler().fit(raw_pixels(train))
    x, xt = (scaler.transform(raw_pixels(data)) for data in (train, test))
    weight = (np.arange(len(x)) < rows).astype(np.float32)
    ours = fit(x, train.labels, weight, lam, 1e-8)
    theirs = oracle(x[:rows].astype(np.float64), train.labels[:rows], lam)
    best = {"w": theirs.coef_.astype(np.float32), "b": theirs.intercept_.astype(np.float32)}
    rows = x[:rows], train.labels[:rows], weight[:rows]
    loss, least = (float(probe.objective(p, *rows, lam)) for p in (ours, best))
    assert loss == pytest.approx(least, rel=1e-3)
    agree = np.mean(np.argmax(xt @ np.asarray(ours["w"]).T + ours["b"], -1) == theirs.predict(xt))
    assert agree > 0.99


def test_probe_numbers(train, test):
    evaluate = linear_probe(project, train, test)
    numbers = evaluate(random_state(64))
    z, zt = (features(project, random_state(64), data) for data in (train, test))
    theirs = oracle(StandardScaler().fit_transform(z), train.labels, numbers["regulariser"])
    score = 100 * theirs.score(StandardScaler().fit(z).transform(zt), test.labels)
    assert numbers["accuracy"] == pytest.approx(score, abs=0.5)
    assert numbers["train_accuracy"] > numbers["accuracy"]
    flat = lambda state, x: x.reshape(len(x), -1) / 255
    # Of two regularisers that do as well, rounding chooses.
    pixels = linear_probe(flat, train, test, regularisers=(1e-3,), floor=False)({})["accuracy"]
    floor = linear_probe(project, train, test, regularisers=(1e-3,))(random_state(64))["raw_pixels"]
    assert floor == pytest.approx(pixels, abs=0.5) and pixels > 85
    reads = len(train.reads)
    assert evaluate(random_state(64, seed=1))["raw_pixels"] == numbers["raw_pixels"]
    assert len(train.reads) == reads + 2  # The encoder's two batches; pixels were kept.


def test_probe_chooses_the_regulariser_without_the_test_set(train, test):
    shuffled = Digits(slice(1300, None), np.random.default_rng(0).permutation(test.labels))
    honest, blind = (
        linear_probe(project, train, data, floor=False)(random_state(64))
        for data in (test, shuffled)
    )
    assert honest["regulariser"] == blind["regulariser"]
    assert honest["train_accuracy"] == blind["train_accuracy"]
    assert honest["accuracy"] > 85 and blind["accuracy"] < 25


def test_probe_chooses_the_regulariser_on_held_out_images(train, test):
    """With wrong labels among the right ones, the weakest fits new images worst."""
    rng = np.random.default_rng(0)
    train.labels = np.where(
        rng.random(1300) < 0.4, rng.integers(0, 10, 1300, dtype=np.int32), train.labels
    )
    weak, both = (
        linear_probe(project, train, test, lams, floor=False)(random_state(64))
        for lams in ((1e-6,), (1e-6, 0.1))
    )
    assert both["regulariser"] == 0.1 and both["accuracy"] > weak["accuracy"] + 1
    assert both["train_accuracy"] < weak["train_accuracy"]


def test_probe_refuses_labels_outside_the_classes(test):
    with pytest.raises(ValueError, match=r"not in \[0, 10\)"):
        linear_probe(project, Digits(slice(0, 3), np.array([0, -1, 3], np.int32)), test)


def test_probe_of_more_features_than_images_equals_scikit_learns(train, test):
    """1,500 features of 200 images: fitted in the 200 dimensions of their rows."""
    few = Digits(slice(0, 200))
    state = random_state(1500)
    numbers = linear_probe(project, few, test, floor=False)(state)
    z, zt = (features(project, state, data) for data in (few, test))
    scaler = StandardScaler().fit(z)
    theirs = oracle(scaler.transform(z).astype(np.float64), few.labels, numbers["regulariser"])
    assert numbers["accuracy"] == pytest.approx(
        100 * theirs.score(scaler.transform(zt), test.labels), abs=0.5
    )
    rows, rows_test = probe._in_row_space(z, zt)
    assert rows.shape == (200, 200) and rows_test.shape == (497, 200)
    np.testing.assert_allclose(rows @ rows.T, z @ z.T, rtol=1e-3)
    np.testing.assert_allclose(rows_test @ rows.T, zt @ z.T, rtol=1e-3, atol=1e-2)


def test_probe_without_a_matrix_of_features_finds_the_same_minimum(train, test, monkeypatch):
    """As it does of more than 8,192 features, whose d x d matrix would take too much memory."""
    expected = linear_probe(project, train, test, (1e-2,), floor=False)(random_state(64))
    monkeypatch.setattr(probe, "PRECONDITIONED", 10)
    monkeypatch.setattr(probe, "_second_moment", lambda *a: pytest.fail("made"))
    found = linear_probe(project, train, test, (1e-2,), floor=False)(random_state(64))
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=0.5)
    assert found["train_accuracy"] == pytest.approx(expected["train_accuracy"], abs=0.5)


def test_minimise_does_not_depend_on_chunks(train, caplog):
    n = 1001  # A size of no other test, whose program could be had.
    x = StandardScaler().fit_transform(raw_pixels(train)).astype(np.float32)[:n]
    zeros = {"w": np.zeros((10, 64), np.float32), "b": np.zeros(10, np.float32)}
    weight = np.ones(len(x), np.float32)
    cov = probe._second_moment(x, weight)
    jax.config.update("jax_log_compiles", True)
    try:
        one, many = (
            probe.minimise(zeros, x, train.labels[:n], weight, cov, 1e-3, 1e-6, chunk=chunk)
            for chunk in (200, 3)
        )
    finally:
        jax.config.update("jax_log_compiles", False)
    np.testing.assert_allclose(one["w"], many["w"], atol=1e-5)
    assert caplog.text.count("Finished XLA compilation of jit(_descend)") == 1


def test_probe_of_one_training_image_is_refused(test):
    with pytest.raises(ValueError, match="2 training images or more, not 1"):
        linear_probe(project, Digits(slice(1)), test)


# Collapse


@pytest.mark.parametrize("rank", [1, 5, 30])
@pytest.mark.parametrize("n, d", [(400, 60), (50, 300)])
def test_rankme_counts_equal_directions(n, d, rank):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(m, rank)))[0] for m in (n, d))
    assert rankme((3 * left @ right.T).astype(np.float32)) == pytest.approx(rank, rel=1e-3)


def test_rankme_equals_the_papers_equation(encoded):
    z = encoded[0]
    sigma = np.linalg.svd(z, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert rankme(z) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-4)
    assert rankme(z + 100) < 0.5 * rankme(z)  # Uncentred: a common offset is a direction.


def test_feature_std_is_one_for_a_gaussian_and_none_for_a_point():
    z = np.random.default_rng(0).normal(size=(4000, 50)).astype(np.float32)
    assert feature_std(z[:, :12]) == pytest.approx(1, abs=0.02)
    assert feature_std(z) == pytest.approx(1, abs=0.02)
    assert feature_std(z * np.linspace(1, 9, 4000, dtype=np.float32)[:, None]) == pytest.approx(
        1, abs=0.02
    )
    assert feature_std(np.ones((100, 50), np.float32)) == pytest.approx(0, abs=1e-6)
    assert feature_std(z[:, :1] * np.ones(50, np.float32) + 50) == pytest.approx(0, abs=1e-2)


def test_collapse_numbers(test):
    evaluate = collapse(project, test, n=200)
    numbers = evaluate(random_state())
    z = features(project, random_state(), test)[subset(test, 200)]
    assert numbers == {"rankme": rankme(z), "feature_std": feature_std(z), "dimensions": 32}
    collapsed = evaluate({"w": jnp.zeros((64, 32))})
    assert collapsed["rankme"] == pytest.approx(1, abs=1e-3) and collapsed["feature_std"] == 0
    assert evaluate.warning(numbers) == ""
    assert evaluate.warning(collapsed).startswith("The features have collapsed: they hardly differ")


# Pictures


def test_grid_places_and_enlarges():
    images = np.zeros((2, 3, 20, 30, 3))
    images[1, 2, 0, 0] = [1, 0.5, 2]
    picture = grid(images)
    assert picture.shape == (2 * 80 + 2, 3 * 120 + 4, 3) and picture.dtype == np.uint8
    assert (
        picture[82:86, 244:248] == [255, 128, 255]
    ).all()  # 4 x 4 pixels of image (1, 2), after two gaps.
    assert (picture[80:82] == 255).all() and (picture[:80, :120] == 0).all()
    gray = grid(np.full((1, 1, 100, 100, 1), 7, np.uint8))
    assert gray.shape == (100, 100, 3) and (gray == 7).all()


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 2, 8, 8, 4)])
def test_grid_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="A grid needs images"):
        grid(np.zeros(shape))


def cells(picture, rows, columns, factor=8):
    """First channel of the images of a grid of enlarged 8x8 images, (rows, columns, 8, 8)."""
    step = 8 * factor + 2
    return np.array(
        [
            [
                picture[
                    r * step : (r + 1) * step - 2 : factor,
                    c * step : (c + 1) * step - 2 : factor,
                    0,
                ]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )


def test_samples_are_what_was_drawn():
    drawn = lambda state, key, n: state["x"] * jax.random.uniform(key, (n, 8, 8, 1))
    picture = samples(drawn, rows=2, columns=3, seed=5)({"x": jnp.float32(0.5)})["samples"]
    want = np.asarray(drawn({"x": 0.5}, jax.random.key(5), 6))
    np.testing.assert_array_equal(
        cells(picture, 2, 3), np.round(255 * want.reshape(2, 3, 8, 8)).astype(np.uint8)
    )


def test_compared_shows_images_above_what_is_made_of_them(test):
    show = lambda state, key, x: [x / 255.0 * state["x"], 1 - x / 255.0]
    picture = cells(compared(show, test, n=4)({"x": jnp.float32(0.0)})["compared"], 3, 4)
    originals = test.images[subset(test, 4)][..., 0]
    np.testing.assert_array_equal(picture[0], originals)
    assert not picture[1].any()
    np.testing.assert_array_equal(picture[2], 255 - originals)


def test_interpolations_go_straight_from_one_image_to_another(test):
    encode, decode = (
        lambda state, x: x.reshape(len(x), -1) / 255.0,
        lambda state, z: z.reshape(-1, 8, 8, 1),
    )
    picture = cells(
        interpolations(encode, decode, test, rows=2, columns=3)({"x": jnp.zeros(())})[
            "interpolations"
        ],
        2,
        5,
    )
    ends = test.images[subset(test, 4)][..., 0].reshape(2, 2, 8, 8).astype(int)
    for column, want in zip(
        range(5), (ends[0], ends[0], (ends[0] + ends[1]) / 2, ends[1], ends[1])
    ):
        assert np.abs(picture[:, column] - want).max() <= 0.5


def test_views_are_originals_and_draws(test):
    def show(key, batch):
        images = batch["image"]
        shift = jax.random.uniform(key, (len(images), 1, 1, 1))
        return jnp.clip(
            images[:, 1:, 1:] / 255 + shift, 0, 1
        )  # Smaller than the original, as a crop may be.

    evaluate = views(show, test, n=3, draws=4)
    picture = evaluate(random_state())["views"]
    side = 7 * 10  # The least multiple of 7 from 64 on.
    assert picture.shape == (3 * side + 4, 5 * side + 8, 3) and picture.dtype == np.uint8
    cells = [picture[:side, c * (side + 2) : c * (side + 2) + side] for c in range(5)]
    assert len({cell.tobytes() for cell in cells}) == 5
    first = jax.image.resize(
        test.images[subset(test, 3)[:1]] / np.float32(255), (1, 7, 7, 1), "linear"
    )
    np.testing.assert_array_equal(cells[0], grid(first[None]))
    reads = len(test.reads)
    assert evaluate(random_state(seed=1))["views"] is picture and len(test.reads) == reads


def test_feature_map_shows_every_class(test):
    evaluate = feature_map(project, test, n=120)
    found = evaluate(random_state())["map"]
    asked = subset(test, 120, 0)
    np.testing.assert_array_equal(found.labels, test.labels[asked])
    np.testing.assert_array_equal(found.images, test.images[asked])
    picture = found.picture()
    assert picture.ndim == 3 and picture.shape[-1] == 3 and picture.dtype == np.uint8
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    vivid = (colours.max(1) - colours.min(1) > 40) & (counts > 20)
    assert vivid.sum() >= 9  # tab10 has nine colours and a gray.
    np.testing.assert_array_equal(evaluate(random_state())["map"].points, found.points)


@pytest.mark.parametrize("d", [1, 2])
def test_feature_map_of_collapsed_features(test, d):
    picture = feature_map(project, test, n=20)({"w": jnp.zeros((64, d))})["map"].picture()
    assert len(np.unique(picture)) > 2


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_feature_map_of_few_images(n):
    picture = feature_map(project, Digits(slice(n)))(random_state())["map"].picture()
    assert picture.shape == (600, 800, 3) and len(np.unique(picture)) > 2


# A mesh of eight devices


def numbers(train, test):
    probed = linear_probe(project, train, test, floor=False)
    return [
        e(random_state(64))
        for e in (knn(project, train, test), probed, collapse(project, test, 100))
    ]


def check_mesh():
    """On eight devices, all but the picture is what it is on one."""
    train, test = Digits(slice(0, 1300)), Digits(slice(1300, None))
    expected = numbers(train, test)
    z = features(project, random_state(), test, 100)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    state = jax.device_put(random_state(), split)
    shardings = []

    def encode(state, images):
        jax.debug.inspect_array_sharding(images, callback=shardings.append)
        return project(state, images)

    with jax.set_mesh(mesh):
        meshed = features(encode, state, test, 100)
        assert shardings[0].shard_shape((104, 8, 8, 1)) == (13, 8, 8, 1)  # 100, rounded up, over 8.
        np.testing.assert_allclose(meshed, z, atol=1e-5)
        train, test = Digits(slice(0, 1300)), Digits(slice(1300, None))
        for one, eight in zip(expected, numbers(train, test), strict=True):
            assert eight == pytest.approx(one, rel=1e-3)
        assert views(lambda key, batch: batch["image"] / 255.0, test)(state)["views"].std() > 0


@pytest.mark.parametrize("n", [1, 6, 8])
def test_average_draws_do_not_depend_on_the_devices(n):
    def measure(state, key, images, labels):
        return {"noise": jax.random.uniform(key, (len(images), 3))[:, 1] * labels}

    rng = lambda start, n: jax.random.uniform(jax.random.fold_in(jax.random.key(0), start), (n, 3))[
        :, 1
    ]
    first = Digits(slice(1300, 1450))
    expected = np.concatenate([rng(0, 100), rng(100, 50)]) * first.labels
    mesh = jax.make_mesh(
        (n, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:n]
    )
    with jax.set_mesh(mesh):
        found = average(measure, first, batch_size=100)({})
    assert found["noise"] == pytest.approx(expected.mean(), rel=1e-6)


def test_evaluators_on_a_mesh_of_eight_devices():
    if jax.device_count() == 8:
        return check_mesh()
    flags = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    run = subprocess.run([sys.executable, __file__], env=flags, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


if __name__ == "__main__":
    check_mesh()
