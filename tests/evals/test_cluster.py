"""Clusters that are known, and their agreement with classes against a search over all namings."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

from ssljax.data import images
from ssljax.evals.cluster import agreement, clusters, kmeans


@pytest.mark.parametrize("k, classes", [(3, 3), (4, 3), (2, 4)])
def test_agreement_accuracy_equals_a_search_over_assignments(k, classes):
    rng = np.random.default_rng(k)
    for _ in range(10):
        labels, found = rng.integers(0, classes, 30), rng.integers(0, k, 30)
        labels[0], found[0] = classes - 1, k - 1
        names = list(range(classes)) + [-1] * k  # A cluster may stand for none.
        best = max(
            np.mean([names[f] == y for f, y in zip(found, labels)])
            for names in itertools.permutations(names, k)
            if len(names) == k
        )
        assert agreement(labels, found)["accuracy"] == pytest.approx(100 * best)


def naive_scores(labels, found):
    n = len(labels)
    joint = {(y, f): np.mean((labels == y) & (found == f)) for y in set(labels) for f in set(found)}
    py, pf = ({v: np.mean(x == v) for v in set(x)} for x in (labels, found))
    info = sum(p * np.log(p / (py[y] * pf[f])) for (y, f), p in joint.items() if p)
    entropy = [-sum(p * np.log(p) for p in dist.values()) for dist in (py, pf)]
    pairs = list(itertools.combinations(range(n), 2))
    same_y, same_f = ([x[i] == x[j] for i, j in pairs] for x in (labels, found))
    both = sum(a and b for a, b in zip(same_y, same_f))
    chance = sum(same_y) * sum(same_f) / len(pairs)
    return info / np.mean(entropy), (both - chance) / ((sum(same_y) + sum(same_f)) / 2 - chance)


def test_agreement_nmi_and_ari_equal_their_definitions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    found = np.where(rng.random(40) < 0.6, labels, rng.integers(0, 4, 40))
    numbers = agreement(labels, found)
    assert (numbers["nmi"], numbers["ari"]) == pytest.approx(naive_scores(labels, found))


def test_agreement_of_known_clusters():
    labels = np.repeat(np.arange(4), 25)
    assert agreement(labels, 3 - labels) == {"accuracy": 100, "nmi": pytest.approx(1), "ari": 1}
    assert agreement(labels, np.zeros(100, int)) == {"accuracy": 25, "nmi": 0, "ari": 0}
    merged = agreement(
        labels, labels // 2
    )  # Two pairs of classes in one cluster each: half right, ln 2 of ln 4 known.
    assert merged["accuracy"] == 50 and merged["nmi"] == pytest.approx(
        np.log(2) / ((np.log(2) + np.log(4)) / 2)
    )


def test_kmeans_finds_separate_groups():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    z = 10 * np.eye(5)[labels] + rng.normal(size=(200, 5))
    assert agreement(labels, kmeans(z, 5))["accuracy"] == 100
    assert set(kmeans(np.zeros((20, 3)), 5)) == {0}  # Collapse.


def test_clusters_numbers():
    test = images("digits", "test")
    state = {"images": jnp.asarray(test.image), "codes": 10 * jnp.eye(10)[test.labels]}

    def knows(state, x):
        same = (x[:, None] == state["images"][None]).all((2, 3, 4))
        return state["codes"][same.argmax(1)]

    numbers = clusters(knows, test)(state)
    assert numbers["accuracy"] == 100 and numbers["ari"] == 1
    assert 60 < numbers["pixels_accuracy"] < 90 and 0.5 < numbers["pixels_nmi"] < 0.9
    pixels = clusters(lambda state, x: x.reshape(len(x), -1) / 255.0, test, floor=False)({})
    assert set(pixels) == {"accuracy", "nmi", "ari"}
    assert pixels["nmi"] == pytest.approx(numbers["pixels_nmi"], abs=0.05)
    with pytest.raises(ValueError, match="5 images can't be put into 10 clusters"):
        clusters(knows, test, n=5)


@pytest.mark.parametrize("seed", [0, 3])
def test_kmeans_equals_scikit_learns_best_of_ten(seed):
    z = images("digits", "test").image.reshape(360, -1) / 255
    expected = KMeans(10, n_init=10, random_state=seed).fit_predict(z)
    np.testing.assert_array_equal(kmeans(z, 10, 10, seed), expected)
