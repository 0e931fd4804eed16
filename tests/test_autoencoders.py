"""Reconstruction: evaluators against loops, Larochelle's problems, stacked autoencoders."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sdae import sdae
from ssljax import Run, train
from ssljax.data import images
from ssljax.data.order import indices
from ssljax.data.variations import SPLITS, variation_images
from ssljax.errors import InputError
from ssljax.evals import compress
from ssljax.evals.average import average, linear_floor, psnr
from tests.test_data import prepared


def test_average_counts_each_image_once(devices):
    test = images("digits", "test")
    measure = lambda state, key, x, y: {
        "right": jnp.float32(y == 3),
        "bright": x.mean((1, 2, 3)) * state,
    }
    want = {"right": np.mean(test.labels == 3), "bright": 2 * test.image.mean()}
    for size in (
        7,
        100,
        360,
        1000,
    ):  # None of the first two divides 360: the last batch repeats images.
        assert average(measure, test, batch_size=size)(jnp.float32(2)) == pytest.approx(
            want, rel=1e-5
        )
    some = average(measure, test, n=11, batch_size=4)(jnp.float32(1))
    assert round(some["right"] * 11) == pytest.approx(
        some["right"] * 11
    )  # A count of 11, not of 12.
    noise = average(lambda state, key, x, y: {"u": jax.random.uniform(key, (len(x),))}, test)
    assert noise(jnp.float32(0)) == noise(jnp.float32(0))  # The same masks at each evaluation.
    with pytest.raises(InputError, match="bad must be one number for each of"):
        average(lambda state, key, x, y: {"bad": x}, test)(jnp.float32(0))


def test_psnr_equals_that_of_eight_bits():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8) for _ in "ab")
    np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(b)), compress.psnr(a, b), rtol=1e-5)
    np.testing.assert_allclose(
        psnr(jnp.asarray(a), jnp.asarray(b / 255.0)), compress.psnr(a, b), rtol=1e-5
    )
    inside = np.zeros((1, 6, 5, 1), bool)
    inside[:, 2:4, 1:4] = True
    np.testing.assert_allclose(
        psnr(jnp.asarray(a), jnp.asarray(b), inside),
        compress.psnr(a[:, 2:4, 1:4], b[:, 2:4, 1:4]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(a)), 100, rtol=1e-5)


def test_linear_floor_equals_an_svd():
    train, test = images("digits", "train"), images("digits", "test")
    x, y = (s.image.reshape(len(s), -1) / 255.0 for s in (train, test))
    v = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:7]
    rest = (y - x.mean(0)) - (y - x.mean(0)) @ v.T @ v
    floor = linear_floor(train, test, 7)(None)
    assert floor["pca"] == pytest.approx((rest**2).sum(1).mean(), rel=1e-4)
    assert floor["mean"] == pytest.approx(((y - x.mean(0)) ** 2).sum(1).mean(), rel=1e-4)


# Larochelle's problems.


def test_rectangles_follow_the_recipe():
    train = variation_images("rect", "train")
    assert (
        len(train) == 10_000
        and train.shape == (28, 28, 1)
        and set(np.unique(train.image)) == {0, 255}
    )
    sides = []
    for image, label in zip(train.image[:2000, ..., 0], train.labels):
        (top, left), (bottom, right) = (f(np.argwhere(image), axis=0) for f in (np.min, np.max))
        outline = np.zeros((28, 28), np.uint8)
        outline[[top, bottom], left : right + 1] = outline[top : bottom + 1, left] = outline[
            top : bottom + 1, right
        ] = 255
        np.testing.assert_array_equal(image, outline)
        height, width = bottom - top + 1, right - left + 1
        assert abs(height - width) >= 3 and label == (width > height)
        sides.append((height, width, top / max(1, 28 - height)))
    heights, widths, places = np.array(sides).T
    pairs = [(h, w) for h in range(1, 29) for w in range(1, 29) if abs(h - w) >= 3]
    assert abs(heights.mean() - np.mean([h for h, _ in pairs])) < 0.6
    assert {1, 28} <= set(heights) and {1, 28} <= set(widths)
    assert abs(places[heights < 20].mean() - 0.5) < 0.03 and abs(train.labels.mean() - 0.5) < 0.02
    again, other = (
        variation_images("rect", "train"),
        variation_images("rect", "validation"),
    )
    np.testing.assert_array_equal(train.image, again.image)
    assert len(other) == 2000 and not np.array_equal(train.image[:2000], other.image)
    assert [len(variation_images("rect-1000", s)) for s in SPLITS] == [
        1000,
        200,
        50_000,
    ]


def test_random_background_is_uniform_and_keeps_the_digit():
    prepared("mnist")
    train, test = (
        variation_images("bg-rand", "train"),
        variation_images("bg-rand", "validation"),
    )
    mnist = np.concatenate([images("mnist", s).image for s in ("train", "test")])
    at = np.random.default_rng(2007).permutation(70_000)
    for data, rows in ((train, at[:10_000]), (test, at[10_000:12_000])):
        clean = mnist[rows]
        np.testing.assert_array_equal(data.image[clean > 0], clean[clean > 0])
        noise = data.image[clean == 0]
        share = np.bincount(noise, minlength=256) / len(noise)
        assert abs(share - 1 / 256).max() < 0.0006
        assert len(data) == len(rows)


def test_missing_splits_are_refused():
    with pytest.raises(InputError, match="rect has no valid split; it has train, validation, test"):
        variation_images("rect", "valid")
    with pytest.raises(
        InputError, match="digits has no validation split: only rect, bg-rand, rect-1000 have one"
    ):
        variation_images("digits", "validation")
    with pytest.raises(
        InputError, match="rect-1000 has .* of its own: give --data rect-1000 --judge validation"
    ):
        variation_images("rect-1000:validation", "train")
    assert len(variation_images("digits:validation", "test")) == 142


# Stacked autoencoders.


def small_sdae(tmp_path, **changes):
    digits = images("digits", "train")
    np.savez(
        tmp_path / "set.npz",
        **{
            f"{s}_{k}": v[:64]
            for s in ("train", "test")
            for k, v in (("images", digits.image), ("labels", digits.labels))
        },
    )
    return sdae(
        **{
            "data": str(tmp_path / "set.npz"),
            "widths": (12, 8),
            "pretrain_epochs": 1,
            "epochs": 2,
            "batch_size": 32,
        }
        | changes
    )


def test_each_layer_is_trained_in_its_own_phase_alone(tmp_path, one_device):
    """Two steps a layer, then all by the labels; and the phases survive an interruption."""
    exp = replace(small_sdae(tmp_path), evals={})
    assert exp.num_steps == 8
    after = {k: train(replace(exp, num_steps=k)) for k in (1, 2, 4, 8)}
    moved = lambda a, b: [
        any(not np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, layers)))
        for layers in zip(after[a].params, after[b].params)
    ]
    assert (
        moved(1, 2) == [True, False, False]
        and moved(2, 4) == [False, True, False]
        and moved(4, 8) == [True] * 3
    )
    # Labels have no gradient for the decoders' biases; a phase leaves the others' optimizer states.
    np.testing.assert_array_equal(
        after[4].params[0]["params"]["c"], after[8].params[0]["params"]["c"]
    )
    jax.tree.map(np.testing.assert_array_equal, after[2].opt_state[0], after[8].opt_state[0])
    train(replace(exp, num_steps=3), Run(workdir=str(tmp_path / "run")))
    jax.tree.map(
        np.testing.assert_array_equal, after[8], train(exp, Run(workdir=str(tmp_path / "run")))
    )


def test_pretraining_gradient_equals_the_equation(tmp_path, one_device):
    """The gradient in Adam's first moment against Vincent's equation in float64."""
    exp = replace(small_sdae(tmp_path, corruption=0.0), evals={}, num_steps=1)
    state = train(exp)
    batch = exp.data.batch(jax.tree.map(jnp.asarray, exp.data.resident()), indices(0, 0, 64, 32))
    x = np.asarray(batch["image"], np.float64).reshape(32, -1) / 255
    start = exp.init(jax.random.split(jax.random.key(0))[0], batch)
    p = {k: np.asarray(v, np.float64) for k, v in start.params[0]["params"].items()}
    h = 1 / (1 + np.exp(-(x @ p["w"] + p["b"])))
    error = (
        1 / (1 + np.exp(-(h @ p["w"].T + p["c"]))) - x
    )  # The gradient of the cross-entropy at the logits.
    back = error @ p["w"] * h * (1 - h)
    want = {"w": (x.T @ back + error.T @ h) / 32, "b": back.mean(0), "c": error.mean(0)}
    for name, moment in state.opt_state[0][0].mu["params"].items():
        np.testing.assert_allclose(
            moment / 0.1, want[name], rtol=1e-3, atol=1e-4 * np.abs(want[name]).max()
        )
