"""Modes of stacked images: known labels, closed forms, and digits that are stacked on purpose."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data import images
from ssljax.evals.feature_nets import nearest_image_classifier
from ssljax.evals.stacked import reached, stacked_modes


@pytest.fixture(scope="module")
def test():
    return images("digits", "test")


ALL = np.stack(np.meshgrid(*[np.arange(10)] * 3), -1).reshape(-1, 3)


@pytest.mark.parametrize(
    "named, expected",
    [
        (ALL, (1000, 0)),
        (np.repeat(ALL, 7, 0), (1000, 0)),
        (ALL[:1].repeat(50, 0), (1, math.log(1000))),
        (ALL[:250], (250, math.log(4))),
        (np.array([[1, 2, 3], [3, 2, 1]]), (2, math.log(500))),
        (np.array([[1, 2, 3]] * 3 + [[3, 2, 1]]), (2, 0.75 * math.log(750) + 0.25 * math.log(250))),
    ],
)
def test_reached_of_known_labels(named, expected):
    """k of 1000 modes, equally often: a KL of log(1000 / k)."""
    count, kl = reached(named, 10)
    assert count == expected[0] and kl == pytest.approx(expected[1], abs=1e-12)


def test_reached_divergence_equals_its_equation():
    """Σ p log(p / q) with q = 1/1000 over the modes, from counts kept by a dictionary."""
    named = np.random.default_rng(0).integers(0, 10, (3000, 3)) ** 2 // 9
    counts = {}
    for row in named:
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    kl = sum(c / 3000 * math.log((c / 3000) / (1 / 1000)) for c in counts.values())
    found = reached(named, 10)
    assert found[0] == len(counts) and found[1] == pytest.approx(kl)


def test_reached_divergence_of_random_labels():
    named = np.random.default_rng(1).integers(0, 10, (26_000, 3))
    count, kl = reached(named, 10)
    assert count == 1000 and kl == pytest.approx(999 / 52_000, rel=0.15)


def test_reached_refuses_labels_outside_the_classes():
    with pytest.raises(ValueError, match=r"in \[0, 10\), not 0 to 10"):
        reached(np.array([[0, 1, 10]]), 10)


def test_stacked_modes_of_real_digits(test):
    """Stacks of all test digits reach the floor, stacks of two digits 2^3 modes."""
    labels, x = (
        nearest_image_classifier(images("digits", "train")),
        jnp.asarray(test.image[..., 0] / np.float32(255)),
    )

    def draw(state, key, n):
        at = jax.random.randint(key, (3, n), 0, state["known"])
        return x[state["order"][at]].transpose(1, 2, 3, 0)

    evaluate = stacked_modes(draw, labels, test, n=6000)
    free = evaluate({"known": jnp.asarray(len(test)), "order": jnp.arange(len(test))})
    right = free["labelled_rightly_nearest"]
    found = np.asarray(labels.apply(labels.params, test.image)).argmax(1)
    square = (
        (
            test.image.reshape(360, 1, -1) / 255.0
            - images("digits", "train").image.reshape(1437, -1) / 255.0
        )
        ** 2
    ).sum(-1)
    naive = images("digits", "train").labels[square.argmin(1)]
    assert np.mean(naive == found) > 0.99  # But for ties.
    assert right == pytest.approx(100 * np.mean(found == test.labels)) and right > 95
    assert (
        free["modes_nearest_floor"] > 950
        and abs(free["modes_nearest"] - free["modes_nearest_floor"]) < 30
    )
    assert (
        free["kl_nearest"] == pytest.approx(free["kl_nearest_floor"], rel=0.15)
        and free["kl_nearest"] < 0.2
    )
    two = [np.flatnonzero(found == c)[0] for c in (3, 7)]
    few = evaluate({"known": jnp.asarray(2), "order": jnp.asarray(two + list(range(358)))})
    assert few["modes_nearest"] == 8 and few["kl_nearest"] == pytest.approx(math.log(125), abs=0.01)
    assert few["modes_nearest_floor"] == free["modes_nearest_floor"]


def test_stacked_modes_errors(test):
    labels = nearest_image_classifier(test)
    with pytest.raises(ValueError, match="Stacks of 3 images are needed"):
        stacked_modes(lambda state, key, n: jnp.zeros((n, 8, 8, 1)), labels, test, n=100)({})
    with pytest.raises(ValueError, match="not finite"):
        stacked_modes(
            lambda state, key, n: state["x"] * jnp.ones((n, 8, 8, 3)), labels, test, n=100
        )({"x": jnp.nan})
