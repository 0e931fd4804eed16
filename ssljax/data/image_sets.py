"""Image sets by name: embedded, from TFDS, a folder, or an .npz."""

from dataclasses import dataclass, replace
import os
import pathlib
from typing import NamedTuple
import zipfile
import zlib

import numpy as np
import tyro

from ssljax.data import tfds
from ssljax.data.decode import fit
from ssljax.data.folders import image_folder
from ssljax.data.sources import (
    Arrays,
    HELD_OUT,
    select,
    Source,
    validation_indices,
    without_validation,
)
from ssljax.errors import InputError
from ssljax.fingerprint import reported
from ssljax.ranges import CountOrZero

EMBEDDED = "digits"
# Features are computed from the middle of an image whose shorter side has 256/224 of its pixels.
MIDDLE = 224 / 256


class ImageSets(NamedTuple):
    """What `Images` names, as it was read."""

    train: Source
    """Images to learn from, perhaps with labels."""
    test: Source
    """Other images of the same kind."""
    bank: Source
    """Training images of the judge, which features of `queries` are compared with."""
    queries: Source
    """Test images of the judge."""
    labelled: bool
    """Whether the judge's images have labels."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)  # --data, not --data.data.
@dataclass(frozen=True)
class PlainImages:
    """Images to learn from."""

    data: str = EMBEDDED
    """Images to learn from: digits (embedded), a TFDS set or a split of one (cifar10,
    stl10:unlabelled), a folder of images or of shards, or an .npz."""
    image_size: CountOrZero = 0
    """Side of the images in pixels, to which they are resized; 0 for their own."""
    skip_bad: bool = False
    """Leave out files that can't be read, and count them, instead of stopping at the first."""

    def read(self, whole: bool = False, labels: bool = False) -> ImageSets:
        """The sets that the fields name; features are judged by the labels of `data`, if any.

        With `whole`, photographs to learn from are not cut: they are resized to squares, and
        batches have their "aspect". With `labels`, what is learned from must have labels.
        InputError says what is wrong with a name, a set or a file.
        """
        train = self._images(self.data, "train", whole=whole)
        if labels:
            check_labels(train, self.data)
        part = MIDDLE if "aspect" in train.read(np.arange(1)) else 1.0
        bank = train if part == 1.0 else self._images(self.data, "train", part=part)
        test = self._images(self.data, "test", part=part)
        return ImageSets(
            train, test, bank, test, labelled=not (bank.labels is None or test.labels is None)
        )

    def _images(self, name: str, split: str, whole: bool = False, part: float = 1.0) -> Source:
        how = {"whole": whole, "part": part, "skip_bad": self.skip_bad}
        return images(name, split, self.image_size, **how)


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Images(PlainImages):
    """Images to learn from, and those that features are judged on."""

    judge: str = ""
    """Labelled set that features are judged on; empty for the labels of --data, if it has any."""

    def read(self, whole: bool = False, labels: bool = False) -> ImageSets:
        """The sets that the fields name, with those of the judge, if one is given.

        As of `PlainImages`; InputError also where the judge has no labels, or images of another
        shape.
        """
        sets = super().read(whole, labels)
        if not self.judge:
            return sets
        height, width, channels = sets.test.shape
        size = self.image_size or (height if height == width else 0)
        judge = replace(self, data=self.judge, image_size=size, judge="").read(whole)
        if not judge.labelled:
            raise InputError(f"--judge must be a labelled set: {self.judge} has no labels.")
        if judge.bank.shape != sets.test.shape:
            raise InputError(
                f"Images of --judge {self.judge} are of shape {judge.bank.shape}, and those of "
                f"--data {self.data} of shape {sets.test.shape}: take a judge with {channels} "
                "channels, and give --image-size."
            )
        return sets._replace(bank=judge.bank, queries=judge.queries, labelled=True)


def check_labels(source: Source, name: str) -> None:
    """InputError where a set that is learned from with labels has none."""
    if source.labels is None:
        raise InputError(
            f"This experiment learns from labels, and {name} has none: give a labelled set as "
            "--data, or train an experiment on it that needs none, such as simclr."
        )


@reported("images")
def images(
    name: str,
    split: str,
    size: int = 0,
    *,
    whole: bool = False,
    part: float = 1.0,
    skip_bad: bool = False,
) -> Source:
    """The "train" or "test" split of an image set.

    `name` is "digits" (scikit-learn's, embedded, 8x8), "photos" (32x32 tiles of its two
    photographs, embedded, in colour), a prepared TFDS image set (with its configuration after a
    slash, where it has several), a folder (train/CLASS/*.png and test/CLASS/*.png; or CLASS/*.png
    alone, of which every tenth image is then the test split), or an .npz ({split}_images and
    {split}_labels, or x_{split} and y_{split}). Images are resized to `size` pixels per side, the
    longer side being cut; `size` must be given where images differ in size.

    For choosing settings, NAME:validation never reads the test split: its "test" split is a tenth
    of each class of the training images, always the same, and its "train" split the rest.
    InputError says what is wrong with the name, the set or a file.
    """
    if size < 0:
        raise InputError(
            f"--image-size must be a number of pixels, or 0 for the set's own size, not {size}."
        )
    how = {"whole": whole, "part": part, "skip_bad": skip_bad}
    if base_name := without_validation(name):
        source = images(base_name, "train", size, **how)
        return select(source, validation_indices(base_name, source.labels)[split])
    path, (base, colon, part) = pathlib.Path(name).expanduser(), name.rpartition(":")
    is_version = part[:1].isdigit() or part.startswith("*")  # 3.0.1, *.*.*
    if colon and not (is_version or path.exists()):
        raise InputError(
            f"{name} is no set: after a colon only {HELD_OUT} can stand, as in {base}:{HELD_OUT}, "
            "for a tenth of the training images instead of the test split; or the version of a "
            "TFDS set."
        )
    if name == EMBEDDED:
        source = _digits(split)
    elif name == "photos":
        source = _photos(split)
    elif path.suffix == ".npz":
        source = _npz(path, split)
    elif path.is_dir():
        return image_folder(path, split, size)
    elif os.sep in name and not tfds.has_config(name):
        raise InputError(f"There is no folder or .npz file {name}: check the path given as --data.")
    else:
        return tfds.tfds_images(name, split, size)
    return resized(source, size)


def resized(source: Arrays, size: int) -> Arrays:
    if not size or source.shape[:2] == (size, size):
        return source
    return Arrays(np.stack([fit(x, size) for x in source.image]), source.labels, source.class_names)


def _digits(split: str) -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    at = np.arange(len(image)) % 5 == 0  # Every fifth is for testing: 1437 and 360, writers mixed.
    at = {"train": ~at, "test": at}[split]
    return Arrays(image[at], digits.target[at].astype(np.int32), [str(i) for i in range(10)])


def _photos(split: str) -> Arrays:
    """Tiles of 32x32 pixels of china.jpg and flower.jpg.

    The left 15 columns of each photograph are the training set, the right 4 the test set; the
    column between them is left out. As both sets are parts of the same two photographs, they only
    show that a method runs.
    """
    from sklearn.datasets import load_sample_images

    photos = np.stack(load_sample_images().images)[:, :416, :640]
    columns = {"train": slice(15), "test": slice(16, 20)}[split]
    tiles = (
        photos.reshape(2, 13, 32, 20, 32, 3).swapaxes(2, 3)[:, :, columns].reshape(2, -1, 32, 32, 3)
    )
    return Arrays(
        np.concatenate(tiles),
        np.repeat(np.arange(2, dtype=np.int32), tiles.shape[1]),
        ["china", "flower"],
    )


def _npz(path: pathlib.Path, split: str) -> Arrays:
    pairs = (f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = file.files
            found = next((pair for pair in pairs if set(pair) <= set(held)), ())
            arrays = [file[key] for key in found]
    except FileNotFoundError:
        raise InputError(f"There is no file {path}: check the path given as --data.") from None
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise InputError(f"{path} can't be read as an .npz of arrays ({e}).") from e
    if not arrays:
        raise InputError(
            f"{path} holds {', '.join(held) or 'nothing'}; it needs {split}_images and "
            f"{split}_labels, or x_{split} and y_{split}."
        )
    image, labels = arrays[0], arrays[1].reshape(-1)
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or image.dtype != np.uint8 or len(image) != len(labels):
        raise InputError(
            f"{path}: images must be uint8 (n, height, width[, channels]) with a label each, not "
            f"{image.dtype} {image.shape} with {labels.shape[0]} labels."
        )
    if 0 in image.shape[1:] or (image.shape[1] in (1, 3) and image.shape[3] > 4):
        raise InputError(
            f"{path}: images must be (n, height, width[, channels]), channels last, not "
            f"{image.shape}."
        )
    if len(labels) == 0 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise InputError(
            f"{path}: labels must be whole numbers from 0 on, one for each of at least one image."
        )
    return Arrays(image, labels.astype(np.int32), [str(i) for i in range(int(labels.max()) + 1)])
