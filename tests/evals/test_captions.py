"""Zero-shot classes and retrieval of pairs, against loops over sorted lists."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data.captions import Captioned
from ssljax.data.sources import Arrays
from ssljax.evals.captions import chance, nearest_pictures, retrieval, zero_shot
from ssljax.evals.evaluator import trace_evaluator

STATE = {"image": jnp.eye(3), "text": jnp.eye(3)}


def encode(state, x):
    """Pictures of 1x3 pixels and captions of three tokens, as vectors of three numbers."""
    flat = x.reshape(len(x), 3).astype(jnp.float32)
    return flat @ (state["text"] if x.ndim == 2 else state["image"])


def drawn(seed, n, captions):
    """`n` pictures and their captions, some of which several pictures share."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 255, (n, 1, 3, 1), dtype=np.uint8)
    rows = rng.integers(1, 255, (captions, 3)).astype(np.int32)
    pairs = [(i, int(j)) for i in range(n) for j in rng.permutation(captions)[: 1 + i % 2]]
    texts = [f"caption {i}" for i in range(captions)]
    return Captioned(Arrays(image), texts, np.array(pairs, np.int32)), rows


def cosine(a, b):
    a, b = np.asarray(a, np.float64).reshape(-1), np.asarray(b, np.float64)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_zero_shot_accuracy():
    captioned, rows = drawn(0, 40, 5)
    labels = np.random.default_rng(1).integers(0, 5, 40).astype(np.int32)
    test = Arrays(captioned.images.image, labels, list("abcde"))
    evaluate = zero_shot(encode, test, rows)
    guesses = [max(range(5), key=lambda j: cosine(x, rows[j])) for x in test.image]
    found = evaluate(STATE)
    np.testing.assert_allclose(found["accuracy"], 100 * np.mean(guesses == labels), rtol=1e-6)
    assert found["chance"] == 20 and found["most_frequent"] == 100 * np.bincount(labels).max() / 40
    assert 0 < found["accuracy"] < 100
    trace_evaluator(evaluate, jax.eval_shape(lambda: STATE))


def test_retrieval_and_its_chance():
    pairs, rows = drawn(2, 30, 12)
    belongs = {(int(i), int(j)) for i, j in pairs.pairs}
    found = retrieval(encode, pairs, rows)(STATE)
    asked = sorted({j for _, j in belongs})
    for k in (1, 5, 10):
        right = []
        for i in range(30):
            order = sorted(asked, key=lambda j: -cosine(pairs.images.image[i], rows[j]))
            right.append(any((i, j) in belongs for j in order[:k]))
        assert found[f"text_{k}"] == pytest.approx(100 * np.mean(right))
        right = []
        for j in asked:
            order = sorted(range(30), key=lambda i: -cosine(pairs.images.image[i], rows[j]))
            right.append(any((i, j) in belongs for i in order[:k]))
        assert found[f"picture_{k}"] == pytest.approx(100 * np.mean(right))
    assert found["text_1"] < found["text_5"] < 100
    own = np.zeros((30, 12), bool)
    own[tuple(pairs.pairs.T)] = True
    own = own[:, asked]
    np.testing.assert_allclose(found["chance_text_5"], 100 * chance(own, 5).mean())
    np.testing.assert_allclose(found["chance_picture_1"], 100 * own.T.mean())


def test_collapsed_features_retrieve_nothing():
    """What is as near as the right one comes before it: equal features don't count as right."""
    pairs, rows = drawn(3, 20, 12)
    same = {"image": jnp.zeros((3, 3)), "text": jnp.zeros((3, 3))}
    found = retrieval(encode, pairs, rows)(same)
    numbers = [v for k, v in found.items() if not k.startswith("chance")]
    assert numbers == [0.0] * len(numbers) and len(numbers) >= 5


def test_chance_counts_random_orders():
    right = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    orders = list(itertools.permutations(range(5)))
    for k in (1, 2, 4):
        want = [np.mean([any(of[i] for i in order[:k]) for order in orders]) for of in right]
        np.testing.assert_allclose(chance(right, k), want, atol=1e-12)


def test_ranks_that_all_candidates_fill_are_left_out():
    pairs, rows = drawn(4, 20, 4)
    names = set(retrieval(encode, pairs, rows)(STATE))
    assert {n for n in names if "text" in n} == {"text_1", "chance_text_1"}
    assert "picture_10" in names


def test_nearest_pictures_are_of_the_captions_named():
    pairs, rows = drawn(5, 20, 12)
    found = nearest_pictures(encode, pairs, rows, n=3, k=4)(STATE)
    assert found["captions"].count("\n") == 2 and found["nearest"].shape[2] == 3
    first = pairs.captions.index(found["captions"].split("\n")[0].removeprefix("1. "))
    best = max(range(20), key=lambda i: cosine(pairs.images.image[i], rows[first]))
    corner = found["nearest"][0, 0]
    np.testing.assert_array_equal(corner, np.repeat(pairs.images.image[best, 0, 0], 3))
