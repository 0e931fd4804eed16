"""`Images`: what is learned from, what features are judged on, and the evaluators that follow."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.simclr import simclr
from ssljax import Run, sharding, train
from ssljax.data import Images, images, PlainImages
from ssljax.data.sources import Arrays
from ssljax.data.views import MultiCrop, Views
from ssljax.errors import InputError
from ssljax.evals.evaluator import trace_evaluator
from ssljax.evals.pictures import grid, nearest_images
from ssljax.evals.representation import representation
from ssljax.models.convnet import ConvNet
from tests.conftest import ROOT

LEARNS_FROM_LABELS = {
    "anomaly",
    "clip",
    "cvae",
    "finetune",
    "pacdcgan",
    "projection",
    "supcon",
    "supervised",
}


def takes_images(name):
    made = getattr(importlib.import_module(f"experiments.{name}"), name)
    data = inspect.signature(made).parameters.get("data")
    return data is not None and isinstance(data.default, PlainImages)


FILES = [p.stem for p in sorted((ROOT / "experiments").glob("*.py")) if takes_images(p.stem)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folder of sets: digits upside down, digits without labels, of 7x7 pixels, and photographs."""
    folder = tmp_path_factory.mktemp("sets")
    digits = {split: images("digits", split) for split in ("train", "test")}
    photos = {split: images("photos", split) for split in ("train", "test")}

    def write(name, of, labels, form=lambda x: x):
        arrays = {f"{s}_images": form(d.image) for s, d in of.items()}
        arrays |= {f"{s}_labels": d.labels for s, d in of.items()} if labels else {}
        np.savez(folder / f"{name}.npz", **arrays)

    write("labelled", digits, True, lambda x: x[:, ::-1])
    write("unlabelled", digits, False)
    write("small", digits, True, lambda x: x[:, 1:, 1:])
    write("photos", photos, False)
    return folder


def encode(state, x):
    return x.reshape(len(x), -1) / 255 @ jnp.ones((np.prod(x.shape[1:]), 3)) + x[:, 0, :3, 0]


def test_labels_of_the_data_judge_features_unless_a_judge_is_named(sets):
    digits = images("digits", "train")
    own = Images("digits").read()
    assert own.labelled
    np.testing.assert_array_equal(own.bank.read(np.arange(5))["label"], digits.labels[:5])
    judged = Images(str(sets / "unlabelled.npz"), judge=str(sets / "labelled.npz")).read()
    assert judged.labelled and judged.train.labels is None
    np.testing.assert_array_equal(judged.train.read(np.arange(9))["image"], digits.image[:9])
    np.testing.assert_array_equal(judged.bank.read(np.arange(9))["image"], digits.image[:9, ::-1])
    np.testing.assert_array_equal(judged.bank.labels, digits.labels)
    assert "label" not in judged.train.read(np.arange(2))
    np.testing.assert_array_equal(
        judged.queries.read(np.arange(9))["image"], images("digits", "test").image[:9, ::-1]
    )


def test_a_judge_is_resized_to_the_images_that_are_learned_from(sets):
    judged = Images(str(sets / "unlabelled.npz"), judge=str(sets / "small.npz")).read()
    assert judged.bank.shape == judged.queries.shape == judged.train.shape == (8, 8, 1)


@pytest.mark.parametrize(
    "data, says",
    [
        (("unlabelled.npz", "unlabelled.npz"), "--judge must be a labelled set: .* has no labels"),
        (
            ("photos.npz", "labelled.npz"),
            r"shape \(32, 32, 1\).* shape \(32, 32, 3\): .*3 channels",
        ),
        (("unlabelled.npz", "none.npz"), "There is no file .*none.npz"),
    ],
)
def test_a_judge_that_can_not_judge_is_one_sentence(sets, data, says):
    name, judge = (str(sets / part) for part in data)
    with pytest.raises(InputError, match=says) as e:
        Images(name, judge=judge).read()
    assert "\n" not in str(e.value)


def test_panel_without_labels_has_no_number_that_needs_them(sets):
    unlabelled = Images(str(sets / "unlabelled.npz")).read()
    show = Views()
    state = jnp.zeros(3)
    found = representation(encode, unlabelled, show)
    assert set(found) == {"alignment", "collapse", "features", "neighbours", "views"}
    labelled = representation(encode, Images("digits").read(), show)
    assert set(labelled) == {"knn", "probe", "collapse", "features", "neighbours", "views"}
    for name in ("collapse", "neighbours"):  # The same images, and so the same results.
        for a, b in zip(
            jax.tree.leaves(found[name](state)), jax.tree.leaves(labelled[name](state)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    numbers = found["alignment"](state)
    assert 0 < numbers["alignment"] < 4 and numbers["uniformity"] < 0
    assert found["features"](state)["map"].points.std() > 0


def test_nearest_images_are_those_of_the_largest_cosine():
    rng = np.random.default_rng(0)
    bank, queries = images("digits", "train"), images("digits", "test")
    bank = Arrays(bank.image[:300])
    w = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
    evaluate = nearest_images(lambda s, x: x.reshape(len(x), -1) / 255 @ w, bank, queries, k=4)
    picture = evaluate(jnp.zeros(1))["nearest"]
    asked = np.sort(np.random.default_rng(0).permutation(len(queries))[:8])

    def unit(x):
        z = x.reshape(len(x), -1).astype(np.float64) / 255 @ np.asarray(w, np.float64)
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    order = np.argsort(-(unit(queries.image[asked]) @ unit(bank.image).T), axis=1)[:, :4]
    expected = grid(np.concatenate([queries.image[asked][:, None], bank.image[order]], axis=1))
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("name", FILES)
def test_experiments_take_images_without_labels(name, sets):
    """Each can train and be evaluated on them, or says in a sentence that it learns from labels."""
    make = getattr(importlib.import_module(f"experiments.{name}"), name)
    known = inspect.signature(make).parameters
    colours = known["data"].default.data == "photos"
    data = type(known["data"].default)(str(sets / f"{'photos' if colours else 'unlabelled'}.npz"))
    settings = {"batch_size": 16} if "batch_size" in known else {}
    settings |= {"crops": MultiCrop()} if "crops" in known else {}  # Views of the images' size.
    if name in LEARNS_FROM_LABELS:
        with pytest.raises(InputError, match="learns from labels, and .* has none"):
            make(data=data, **settings)
        return
    exp = make(data=data, **settings)
    mesh = sharding.make_mesh()
    batch = jax.eval_shape(exp.data.batch, exp.data.resident(), next(exp.data.feed(0, 0, mesh)))
    assert "label" not in batch
    state = jax.eval_shape(exp.init, jax.random.key(0), batch)
    jax.eval_shape(exp.step, state, batch, jax.random.key(0))
    for evaluate in exp.evals.values():
        trace_evaluator(evaluate, state)


def test_run_without_labels_trains_and_shows_what_needs_none(sets, tmp_path, one_device, capsys):
    exp = simclr(
        data=Images(str(sets / "unlabelled.npz")),
        view=Views(jitter=0.0, gray=0.0),
        encoder=ConvNet(widths=(4, 8)),
        batch_size=512,
        epochs=1,
    )
    train(exp, Run(workdir=str(tmp_path / "run")))
    said = capsys.readouterr().out
    assert "alignment/uniformity" in said and "collapse/rankme" in said and "accuracy" not in said
    assert (tmp_path / "run" / "figures" / "neighbours_nearest.png").exists()
