"""Anomaly detection on known scores; AUROC against a count of pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data import images
from ssljax.data.sources import OnDisk, select
from ssljax.evals.anomaly import anomaly_auroc, auroc, knn_distance, of_class


@pytest.fixture(scope="module")
def digits():
    return images("digits", "train"), images("digits", "test")


def test_auroc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    score, strange = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.7
    pairs = [(a > b) + 0.5 * (a == b) for a in score[strange] for b in score[~strange]]
    assert auroc(score, strange) == pytest.approx(100 * np.mean(pairs))
    assert auroc(np.zeros(50), strange) == 50


def test_knn_distance_equals_a_loop():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(30, 4)), rng.normal(size=(7, 4))
    expected = [np.mean(sorted(np.sqrt(((q - b) ** 2).sum()) for b in bank)[:3]) for q in queries]
    np.testing.assert_allclose(knn_distance(bank, queries, 3), expected)


def test_anomaly_auroc_of_known_scores(digits):
    train, test = digits
    normal = of_class(train, 0)
    assert set(normal.labels) == {0} and len(normal) == np.sum(train.labels == 0)
    np.testing.assert_array_equal(
        normal.read(np.arange(3))["image"], train.image[train.labels == 0][:3]
    )
    state = {"zeros": jnp.asarray(test.image[test.labels == 0]), "sign": jnp.float32(1)}

    def known(state, x):  # 1 but for the test set's zeros.
        return state["sign"] * (1.0 - (x[:, None] == state["zeros"][None]).all((2, 3, 4)).any(1))

    numbers = anomaly_auroc(known, normal, test, 0)(state)
    assert numbers["auroc"] == 100 and 95 < numbers["pixels_knn"] <= 100
    assert anomaly_auroc(known, normal, test, 0)({**state, "sign": jnp.float32(-1)})["auroc"] == 0
    assert anomaly_auroc(lambda s, x: jnp.zeros(len(x)), normal, test, 0)({})["auroc"] == 50
    wrong = anomaly_auroc(known, select(train, np.flatnonzero(train.labels)), test, 0)(state)[
        "pixels_knn"
    ]
    assert wrong < 50  # Learned on all but zeros, a zero is what is strange.


def test_of_class_of_a_streamed_set(digits):
    test = digits[1]
    streamed = OnDisk(lambda i: test.image[i], test.labels, test.class_names, test.shape)
    one, two = of_class(test, 4), of_class(streamed, 4)
    at = np.arange(len(one))
    np.testing.assert_array_equal(one.read(at)["image"], two.read(at)["image"])
    np.testing.assert_array_equal(one.labels, two.labels)


def test_anomaly_auroc_errors(digits):
    train, test = digits
    score = lambda state, x: jnp.zeros(len(x))
    with pytest.raises(ValueError, match="of class 0 and of other"):
        anomaly_auroc(score, train, of_class(test, 0), 0)
    with pytest.raises(ValueError, match="too few for 5000 neighbours"):
        anomaly_auroc(score, train, test, 0, k=5000)
    with pytest.raises(ValueError, match="no images of class 11; its classes are 0 to 9"):
        of_class(train, 11)
