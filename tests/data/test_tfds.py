"""Sets of TensorFlow Datasets with photographs of different sizes: a real one, written here."""

import io

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_sample_images
import tensorflow_datasets

from ssljax.data import Images, sources, tfds
from ssljax.data.decode import fit, squeeze
from ssljax.data.sources import Arrays
from ssljax.errors import InputError

PHOTOS = load_sample_images().images


def cut(i):
    """Photograph i, of its own size."""
    rng = np.random.default_rng(i)
    (h, w), (top, left) = rng.integers(60, 200, 2), rng.integers(0, 200, 2)
    return PHOTOS[i % 2][top : top + h, left : left + w]


class Cuts(tensorflow_datasets.core.GeneratorBasedBuilder):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features.FeaturesDict(
            {
                "image": tensorflow_datasets.features.Image(encoding_format="png"),
                "label": tensorflow_datasets.features.ClassLabel(names=["china", "flower"]),
            }
        )
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        parts = {"train": range(40), "test": range(40, 50)}
        return {split: self._generate_examples(rows) for split, rows in parts.items()}

    def _generate_examples(self, rows):
        for i in rows:
            file = io.BytesIO()
            Image.fromarray(cut(i)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 2}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    made = Cuts(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    made.download_and_prepare()
    return made


@pytest.fixture(params=["resident", "streamed"])
def cuts(request, builder, monkeypatch, tmp_path):
    """The set's name, where it is in memory and where it is decoded as it is read."""
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(tfds, "builder_of", lambda *_: builder)
    if request.param == "streamed":
        monkeypatch.setattr(sources, "RESIDENT_BYTES", 0)
    return "cuts"


def test_photographs_are_whole_to_learn_from_and_their_middles_are_judged(cuts):
    sets = Images(cuts, image_size=64).read(whole=True)
    for _ in range(2):  # The second time from the cache, where they are resident.
        found = sets.train.read(np.arange(len(sets.train)))
        assert found["image"].shape == (40, 64, 64, 3)
        every = [squeeze(cut(i), 64) for i in range(40)]
        known = {round(aspect, 5): (i, x) for i, (x, aspect) in enumerate(every)}
        for x, aspect, label in zip(found["image"], found["aspect"], found["label"]):
            i, expected = known[round(float(aspect), 5)]
            np.testing.assert_array_equal(x, expected)
            assert label == i % 2
        sets = Images(cuts, image_size=64).read(whole=True)
    for source, rows in ((sets.bank, range(40)), (sets.queries, range(40, 50))):
        found = source.read(np.arange(len(source)))
        assert "aspect" not in found
        middles = {fit(cut(i), 64, 224 / 256).tobytes(): i % 2 for i in rows}
        assert {x.tobytes(): y for x, y in zip(found["image"], found["label"])} == middles


def test_middles_are_learned_from_where_there_are_no_random_crops(cuts):
    sets = Images(cuts, image_size=64).read()
    found = sets.train.read(np.arange(40))
    assert "aspect" not in found and sets.bank is sets.train
    middles = {fit(cut(i), 64).tobytes() for i in range(40)}
    assert {x.tobytes() for x in found["image"]} == middles


def test_a_size_is_suggested(cuts):
    with pytest.raises(InputError, match="cuts differ in size: give --image-size 96, for instance"):
        Images(cuts).read()


def test_small_sets_are_in_memory(builder, monkeypatch, tmp_path):
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(tfds, "builder_of", lambda *_: builder)
    assert isinstance(Images("cuts", image_size=16).read(whole=True).train, Arrays)
