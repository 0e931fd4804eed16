"""What evaluators say about themselves, and what is refused before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import signals
from ssljax.data import images
from ssljax.data.sources import Arrays
from ssljax.errors import InputError
from ssljax.evals import features as features_module
from ssljax.evals.accuracy import accuracy
from ssljax.evals.alignment_uniformity import alignment_uniformity
from ssljax.evals.anomaly import anomaly_auroc, auroc
from ssljax.evals.average import average, linear_floor
from ssljax.evals.cluster import clusters, kmeans
from ssljax.evals.collapse import collapse
from ssljax.evals.compress import compression
from ssljax.evals.evaluator import Evaluator, trace_evaluator, warnings
from ssljax.evals.feature_nets import nearest_image_classifier, pixels
from ssljax.evals.features import features, raw_pixels
from ssljax.evals.fid import generated
from ssljax.evals.knn import knn
from ssljax.evals.likelihood import latent_use, likelihood
from ssljax.evals.modes import modes
from ssljax.evals.pictures import (
    compared,
    feature_map,
    FeatureMap,
    filters,
    interpolations,
    samples,
    views,
)
from ssljax.evals.probe import linear_probe
from ssljax.evals.stacked import stacked_modes
from ssljax.evals.texts import nearest_texts, text_samples
from ssljax.evals.words import analogies, nearest_words, similarity

STATE = {"w": jax.ShapeDtypeStruct((64, 16), jnp.float32)}


def noise(n, *shape, seed=0):
    """`n` random images of a shape, of ten classes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Arrays(image, (np.arange(n) % 10).astype(np.int32), [str(c) for c in range(10)])


def encode(state, x):
    return x.reshape(len(x), -1) / 255 @ state["w"]


def wrong(state, x):
    return x / 255


def draw(state, key, n):
    return jnp.zeros((n, 8, 8, 1)) + 0 * state["w"][0, 0]


def draw_small(state, key, n):
    return draw(state, key, n)[:, :4]


def reconstruct(state, x):
    return x / 255 + 0 * state["w"][0, 0]


TRAIN, TEST = noise(60, 8, 8, 1), noise(40, 8, 8, 1, seed=1)
STACKED = nearest_image_classifier(TRAIN)
WORDS = [f"w{i}" for i in range(64)]
PAIRS = [("w1", "w2", 3.0), ("w3", "w4", 1.0)]
# A factory with arguments that fit, and the arguments of which one doesn't, with its sentence.
CASES = {
    "knn": (lambda e: knn(e, TRAIN, TEST), encode, wrong, r"features \(n, d\)"),
    "probe": (lambda e: linear_probe(e, TRAIN, TEST), encode, wrong, r"features \(n, d\)"),
    "collapse": (lambda e: collapse(e, TEST), encode, wrong, r"features \(n, d\)"),
    "clusters": (lambda e: clusters(e, TEST), encode, wrong, r"features \(n, d\)"),
    "map": (lambda e: feature_map(e, TEST), encode, wrong, r"features \(n, d\)"),
    "texts": (
        lambda e: nearest_texts(e, TEST, ["a title"] * 40),
        encode,
        wrong,
        r"features \(n, d\)",
    ),
    "accuracy": (
        lambda f: accuracy(f, TEST),
        encode,
        lambda state, x: encode(state, x)[:, :5],
        r"not in \[0, 5\)",
    ),
    "anomaly": (
        lambda f: anomaly_auroc(f, TRAIN, TEST, 0),
        lambda state, x: encode(state, x)[:, 0],
        encode,
        r"features \(n, d\)",
    ),
    "average": (
        lambda f: average(f, TEST),
        lambda state, key, x, y: {"error": encode(state, x)[:, 0]},
        lambda state, key, x, y: {"error": encode(state, x)},
        "one number for each of 40 images",
    ),
    "compression": (
        lambda f: compression(f, TEST, 100),
        reconstruct,
        lambda state, x: reconstruct(state, x)[:, :4],
        r"\(40, 8, 8, 1\), not \(40, 4, 8, 1\)",
    ),
    "generated": (
        lambda f: generated(f, pixels(), TRAIN, TEST),
        draw,
        draw_small,
        r"\(8, 8, 1\) must be drawn",
    ),
    "stacked": (
        lambda f: stacked_modes(f, STACKED, TEST, n=100),
        lambda *a: jnp.tile(draw(*a), 3),
        draw,
        "Stacks of 3 images",
    ),
    "modes": (
        lambda f: modes(f, np.eye(2), 0.1, n=9),
        lambda state, key, n: state["w"][:n, :2],
        lambda state, key, n: state["w"][:n, :3],
        r"\(9, 2\), not \(9, 3\)",
    ),
    "likelihood": (
        lambda f: likelihood(f, TEST, 100),
        lambda state, key, x, k: jnp.zeros((k, len(x))),
        lambda state, key, x, k: jnp.zeros((len(x), k)),
        r"must return \(100, 40\)",
    ),
    "latents": (
        lambda f: latent_use(f, TEST),
        lambda state, x: (encode(state, x), encode(state, x)),
        lambda state, x: (encode(state, x), encode(state, x)[:, :3]),
        "means and log variances",
    ),
    "alignment": (
        lambda f: alignment_uniformity(f, TEST),
        lambda state, key, x: encode(state, x),
        lambda state, key, x: x,
        r"features \(n, d\)",
    ),
    "samples": (
        samples,
        draw,
        lambda *a: jnp.tile(draw(*a), 2),
        r"\(64, H, W, 1 or 3\) to be shown",
    ),
    "compared": (
        lambda f: compared(f, TEST),
        lambda state, key, x: [reconstruct(state, x)],
        lambda state, key, x: [reconstruct(state, x)[:, 1:]],
        r"\(8, 8, 8, 1 or 3\) to be shown, not \(8, 7, 8, 1\)",
    ),
    "interpolations": (
        lambda f: interpolations(encode, f, TEST),
        lambda state, z: jnp.zeros((len(z), 8, 8, 1)),
        lambda state, z: z,
        r"\(72, 8, 8, 1 or 3\)",
    ),
    "views": (
        lambda f: views(f, TEST),
        lambda key, batch: batch["image"] / 255,
        lambda key, batch: batch["image"][..., 0] / 255,
        "Views must be",
    ),
    "filters": (
        lambda f: filters(f, (8, 8, 1)),
        lambda state: state["w"],
        lambda state: state["w"].T,
        r"\(H\*W\*C, d\)",
    ),
    "text_samples": (
        lambda f: text_samples(f, str),
        lambda state, key: jnp.zeros((2, 3), int),
        lambda state, key: jnp.zeros(3, int),
        "rows of tokens",
    ),
    "similarity": (
        lambda f: similarity(f, WORDS, PAIRS),
        lambda state: state["w"],
        lambda state: state["w"].T,
        "a row for each of 64 words",
    ),
    "analogies": (
        lambda f: analogies(f, WORDS, [("w1", "w2", "w3", "w4", "x")]),
        lambda state: state["w"],
        lambda state: state["w"][1:],
        "a row for each of 64 words",
    ),
    "nearest_words": (
        lambda f: nearest_words(f, WORDS),
        lambda state: state["w"],
        lambda state: state["w"][1:],
        "a row for each of 64 words",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_check_finds_wrong_shapes_without_computing(case):
    factory, fits, misfits, sentence = CASES[case]
    good, bad = factory(fits), factory(misfits)
    assert isinstance(good, Evaluator)
    trace_evaluator(good, STATE)  # It has no arrays to compute with.
    with pytest.raises(InputError, match=sentence) as error:
        trace_evaluator(bad, STATE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", CASES)
def test_better_and_floors_name_numbers_of_the_result(case):
    factory, fits, *_ = CASES[case]
    evaluate = factory(fits)
    w = np.random.default_rng(0).normal(size=(64, 16))
    found = evaluate({"w": jnp.asarray(w, jnp.float32)})
    other = (str, FeatureMap)
    numbers = {k for k, x in found.items() if not isinstance(x, other) and np.ndim(x) == 0}
    # Parts of a result that depend on the data: small images have no SSIM.
    optional = {"ssim", "jpeg_ssim", "syntactic"}
    beside = evaluate.floors | evaluate.real
    assert {*evaluate.better, *beside, *beside.values()} <= numbers | optional
    assert set(evaluate.floors) <= set(evaluate.better)
    assert evaluate.pictures == (not numbers)


def test_check_of_a_net_that_does_not_fit_is_one_sentence():
    import flax.linen as nn

    net = nn.Dense(3)
    state = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 5)))
    evaluate = collapse(lambda state, x: net.apply(state, x.reshape(len(x), -1) / 255), TEST)
    with pytest.raises(InputError, match="have one shape") as error:
        trace_evaluator(evaluate, state)
    assert "(64, 3)" in str(error.value) and "\n" not in str(error.value)


def test_plain_functions_are_evaluators_that_are_not_tried():
    trace_evaluator(lambda state: pytest.fail("called"), STATE)
    assert Evaluator(lambda state: {"x": state})(3) == {"x": 3}


OTHER = noise(40, 6, 8, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: knn(encode, TRAIN, OTHER),
        lambda: linear_probe(encode, TRAIN, OTHER),
        lambda: generated(draw, pixels(), TRAIN, OTHER),
        lambda: anomaly_auroc(encode, TRAIN, OTHER, 0),
        lambda: linear_floor(TRAIN, OTHER, 3),
    ],
)
def test_training_and_test_images_of_two_shapes_are_refused(make):
    with pytest.raises(InputError, match=r"\(8, 8, 1\) .* \(6, 8, 1\)"):
        make()


def test_pictures_have_as_many_images_as_there_are():
    """A folder of 120 photographs has 12 test images, fewer than a grid of 16 shows."""
    few = noise(5, 8, 8, 1)
    state = {"w": jnp.ones((64, 16))}
    show = compared(lambda state, key, x: [x / 255], few, n=16)
    assert show(state)["compared"].shape == (2 * 64 + 2, 5 * 66 - 2, 3)
    lines = interpolations(encode, lambda state, z: jnp.zeros((len(z), 8, 8, 1)), few)
    assert lines(state)["interpolations"].shape == (2 * 66 - 2, 11 * 66 - 2, 3)
    drawn = views(lambda key, batch: batch["image"] / 255, few)(state)["views"]
    assert drawn.shape == (5 * 66 - 2, 9 * 66 - 2, 3)
    for evaluate in (show, lines):
        trace_evaluator(evaluate, STATE)
    with pytest.raises(InputError, match="2 images or more, not 1"):
        interpolations(encode, draw, noise(1, 8, 8, 1))


def test_large_images_come_in_smaller_parts(monkeypatch):
    sizes = []

    def sized(state, x):
        sizes.append(len(x))
        return x.reshape(len(x), -1)[:, :3] * state["w"]

    monkeypatch.setattr(features_module, "PART", 8 * 8 * 20)
    z = features(sized, {"w": jnp.ones(3)}, TEST)
    assert sizes == [20]
    np.testing.assert_array_equal(z, TEST.image.reshape(40, -1)[:, :3])


def test_pixels_of_large_images_are_shrunk_and_named_so():
    large, test = noise(30, 48, 64, 3), noise(20, 48, 64, 3, seed=1)
    net = pixels()
    assert net.apply({}, large.image).shape == (30, 24 * 32 * 3)
    expected = raw_pixels(large, most=32)
    np.testing.assert_allclose(net.apply({}, large.image), expected, atol=1e-5)
    evaluate = generated(lambda state, key, n: jnp.zeros((n, 48, 64, 3)), net, large, test)
    assert "fid_pixels_32px" in evaluate.better
    assert set(evaluate.better) <= set(evaluate({}))
    assert net.name_for((32, 32, 3)) == "pixels"


def test_evaluation_is_stopped_by_a_signal_between_batches(monkeypatch):
    state = {"w": jnp.ones((64, 16))}

    class Stop(Exception):
        pass

    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    # Before the check of a third batch nothing is raised; features in four batches reach it.
    monkeypatch.setattr(signals, "check", stop)
    for run in (
        lambda: features(encode, state, TEST, 10),
        lambda: kmeans(np.random.default_rng(0).normal(size=(30, 2)), 3),
        lambda: generated(draw, pixels(), TRAIN, TEST)(state),
        lambda: average(lambda s, k, x, y: {"e": encode(s, x)[:, 0]}, TEST, batch_size=10)(state),
        lambda: linear_probe(lambda s, x: x.reshape(len(x), -1) / 255, TRAIN, TEST)(state),
        lambda: likelihood(
            lambda s, k, x, n: jnp.zeros((n, len(x))) + s["w"][0, 0], TEST, 100, batch_size=10
        )(state),
    ):
        calls.clear()
        with pytest.raises(Stop):
            run()


def test_auroc_of_one_kind_is_an_error():
    with pytest.raises(InputError, match="both kinds"):
        auroc(np.arange(3.0), np.zeros(3, bool))


def test_evaluation_of_digits_by_knn_has_a_direction_and_a_floor():
    train, test = images("digits", "train"), images("digits", "test")
    evaluate = knn(encode, train, test)
    assert evaluate.better == {"accuracy": "higher", "plain": "higher"}
    assert evaluate.floors == {"accuracy": "raw_pixels"}
    assert (evaluate.encode, evaluate.bank, evaluate.queries) == (encode, train, test)
    assert knn(encode, train, test, floor=False).floors == {}


def test_warnings_are_of_each_seed_and_of_evaluators_that_have_any():
    evals = {
        "a": Evaluator(lambda state: {}, warning=lambda n: f"x is {n['x']}." if n["x"] > 1 else ""),
        "b": Evaluator(lambda state: {}),
        "c": lambda state: {},
    }
    results = {"a/x": [1.0, 2.0, 3.0], "ab/x": [9.0] * 3, "b/x": [9.0] * 3, "c/x": [9.0] * 3}
    assert warnings(results, evals, [4, 5, 6]) == ["! x is 2.0. (seed 5)", "! x is 3.0. (seed 6)"]
    assert warnings({"a/x": [2.0]}, evals, [0]) == ["! x is 2.0."]
    assert warnings({"b/x": [9.0]}, evals, [0]) == []  # Where a has not been evaluated.
