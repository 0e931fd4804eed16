"""Splits of TFDS sets by their own names, and sets without labels: real ones, written here."""

import io

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits
import tensorflow_datasets

from ssljax.data import images, sources, tfds
from ssljax.data.splits import hash_of_indices
from ssljax.errors import InputError

DIGITS = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
CLASSES = load_digits().target
PARTS = {"train": range(100), "test": range(100, 120), "extra": range(120, 160)}


def set_of(parts, features, row):
    """Builder of a set whose split `s` has row(i, s, file) of the i in parts[s]."""

    class Some(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self):
            form = tensorflow_datasets.features.FeaturesDict(features)
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=form)

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in parts}

        def _generate_examples(self, split):
            for i in parts[split]:
                file = io.BytesIO()
                Image.fromarray(DIGITS[i, ..., 0]).save(file, "PNG")
                file.seek(0)
                yield i, row(i, split, file)

    return Some


IMAGE = tensorflow_datasets.features.Image(shape=(8, 8, 1), encoding_format="png")
LABEL = tensorflow_datasets.features.ClassLabel(num_classes=10)
SETS = {
    "stl": set_of(
        PARTS,
        {"image": IMAGE, "label": LABEL},
        lambda i, split, file: {"image": file, "label": -1 if split == "extra" else CLASSES[i]},
    ),
    "plain": set_of(
        {"train": range(200)}, {"image": IMAGE}, lambda i, split, file: {"image": file}
    ),
    "dev": set_of(
        {"train": range(50), "validation": range(50, 60)},
        {"picture": IMAGE, "label": LABEL},
        lambda i, split, file: {"picture": file, "label": CLASSES[i]},
    ),
}


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    made = {}
    for name, kind in SETS.items():
        folder = str(tmp_path_factory.mktemp(name))
        made[name] = kind(data_dir=folder, file_format="array_record")
        made[name].download_and_prepare()
    return made


@pytest.fixture(params=["resident", "streamed"])
def sets(request, builders, monkeypatch, tmp_path):
    """Makes the sets known by name, in memory or decoded as they are read."""
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(tfds, "builder_of", lambda name, *_: builders[name])
    if request.param == "streamed":
        monkeypatch.setattr(sources, "RESIDENT_BYTES", 0)


def numbers(source) -> list[int]:
    """Which digits a set has."""
    found = source.read(np.arange(len(source)))["image"]
    return [int(np.flatnonzero((DIGITS[:200] == x).all((1, 2, 3)))[0]) for x in found]


def both(name: str) -> list:
    return [images(name, split) for split in ("train", "test")]


def test_a_split_by_its_own_name_is_learned_from(sets, capsys):
    for name, parts, labelled in (
        ("stl", ("train", "test"), (True, True)),
        ("stl:train", ("train", "test"), (True, True)),
        ("stl:extra", ("extra", "test"), (False, True)),
    ):
        for source, part, has_labels in zip(both(name), parts, labelled):
            assert sorted(numbers(source)) == list(PARTS[part])
            assert (source.labels is not None) == has_labels == bool(source.class_names)
            if has_labels:
                np.testing.assert_array_equal(source.labels, CLASSES[numbers(source)])
    out = capsys.readouterr().out
    assert "stl:extra: 40 images without classes to train, 20 to test. Left out: 100 of t" in out


def test_a_tenth_is_held_out_where_no_split_is_left_to_test_on(sets):
    for name, rows in (("stl:test", range(100, 120)), ("plain", range(200))):
        train, test = both(name)
        out = hash_of_indices(len(rows), "test") / 2**64 < 0.1
        assert sorted(numbers(train) + numbers(test)) == list(rows)
        if name == "plain":  # Without labels no class needs an example of its own.
            rank = {n: i for i, n in enumerate(numbers(images_of("plain")))}
            assert [rank[n] for n in numbers(test)] == np.flatnonzero(out).tolist()
        else:
            assert set(test.labels) <= set(train.labels)


def images_of(name: str):
    """All images of the set's training split, in its order."""
    builder = tfds.builder_of(name)
    return tfds._read_split(name, builder, "train", 0, "image")


def test_validation_holds_out_a_tenth_whatever_splits_there_are(sets):
    train, test = both("dev")
    assert sorted(numbers(train)) == list(range(50))
    assert sorted(numbers(test)) == list(range(50, 60))
    train, test = both("dev:validation")
    assert sorted(numbers(train) + numbers(test)) == list(range(50))
    train, test = both("plain:validation")
    assert sorted(numbers(train) + numbers(test)) == sorted(numbers(images("plain", "train")))
    train, test = both("stl:extra:validation")
    assert sorted(numbers(train) + numbers(test)) == list(PARTS["extra"])
    assert test.labels is None and 1 <= len(test) <= 10


def test_a_split_that_is_not_there(sets):
    with pytest.raises(InputError, match="stl has no more split; it has .*extra.*: give one of"):
        images("stl:more", "train")
