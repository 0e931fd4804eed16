"""Image sets by name: embedded, from TFDS, a folder, or an .npz."""

from dataclasses import dataclass, replace
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np
import tyro

from ssljax.data import tfds
from ssljax.data.decode import fit
from ssljax.data.embedded import EMBEDDED
from ssljax.data.folders import IMAGES, is_of_another_kind
from ssljax.data.image_arrays import array_images
from ssljax.data.image_files import image_folder
from ssljax.data.shards import is_shards, shard_images
from ssljax.data.sources import (
    Arrays,
    HELD_OUT,
    select,
    Source,
    validation_indices,
    without_validation,
)
from ssljax.data.splits import hash_of_indices, held_out
from ssljax.errors import InputError
from ssljax.fingerprint import reported
from ssljax.processes import say
from ssljax.ranges import CountOrZero

DEFAULT = "doodles"
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

    data: str = DEFAULT
    """Images to learn from: doodles or digits (embedded), a TFDS set or a split of one (cifar10,
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
        if labels and test.labels is None:
            raise InputError(
                f"This experiment is tested on labels, and the test images of {self.data} have "
                f"none: give {self.data}:{HELD_OUT}, which tests on a tenth of the training images."
            )
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
    """The "train" or "test" split of an image set; a line on what was found is printed once.

    `name` is an embedded set (doodles, digits, photos: `ssljax/data/embedded.py`), a prepared TFDS
    image set (with its configuration after a slash, where it has several), a folder of images (see
    `ssljax/data/folders.py`) or of shards (see `shards.py`), or an .npz or .npy (see
    `image_arrays.py`). Sets may have no labels. Where a set has no test split, a tenth is held out.
    Images are resized to `size` pixels per side, the longer side being cut; `size` must be given
    where images differ in size.

    NAME:SPLIT trains on another split of a TFDS set, a folder or an .npz (stl10:unlabelled); the
    test split stays the set's own.

    For choosing settings, NAME:validation never reads the test split: its "test" split is a tenth
    of the training images, of each class if there are any, always the same, and its "train" split
    the rest. It is so for sets with a split of that name too. InputError says what is wrong with
    the name, the set or a file.
    """
    if size < 0:
        raise InputError(
            f"--image-size must be a number of pixels, or 0 for the set's own size, not {size}."
        )
    base, validation = without_validation(name) or name, bool(without_validation(name))
    base, named = _base_and_split(base)
    path = pathlib.Path(base).expanduser()
    if path.is_dir() and path.suffix.lower() not in (".npz", ".npy"):
        read = shard_images if is_shards(path) else image_folder
        source, line = read(
            path, split, size, named, validation, whole=whole, part=part, skip_bad=skip_bad
        )
        say(line)
        return source
    of = "train" if validation else split
    if base in EMBEDDED:
        if named:
            raise InputError(
                f"{name} is no set: after the colon only {HELD_OUT} can stand, as in "
                f"{base}:{HELD_OUT}, for a tenth of the training images instead of the test split."
            )
        sets = {s: EMBEDDED[base](s) for s in ("train", "test")}
        train, test = sets["train"], sets["test"]
        line = (
            f"{base}: {len(train) + len(test):,} images in {train.num_classes} classes, "
            f"{len(train):,} to train, {len(test):,} to test"
        )
        source = resized(sets[of], size)
    elif path.suffix.lower() in (".npz", ".npy"):
        source, line = array_images(path, of, size, named)
    elif path.is_file():
        raise InputError(
            is_of_another_kind(path, IMAGES)
            or f"{path} is one file: give the folder that the images are in, or an .npz."
        )
    elif os.sep in base and not tfds.has_config(base):
        raise InputError(f"There is no folder or .npz file {base}: check the path given as --data.")
    else:
        source, line = tfds.tfds_images(
            base, of, size, named, whole=whole, part=part, skip_bad=skip_bad
        )
    if validation:
        source = _validation(base, source, split)
        line += f"; of those to train, {HELD_OUT} holds out a tenth, and the test split is not read"
    if split == "train":
        say(line)
    return source


def _base_and_split(name: str) -> tuple[str, str]:
    """NAME and SPLIT of NAME:SPLIT; a path and a version of a TFDS set may have colons."""
    base, colon, part = name.rpartition(":")
    is_version = part[:1].isdigit() or part.startswith("*")  # 3.0.1, *.*.*
    if not colon or is_version or pathlib.Path(name).expanduser().exists():
        return name, ""
    if not re.search(r"\w", part):
        raise InputError(
            f"{name} is no set: after a colon a split can stand, to train on it, or {HELD_OUT}, as "
            f"in {base}:{HELD_OUT}, for a tenth of the training images instead of the test split."
        )
    return base, part


def _validation(name: str, source: Source, split: str) -> Source:
    """What NAME:validation has as a split, of the training split."""
    if source.labels is not None:
        return select(source, validation_indices(name, source.labels)[split])
    out = held_out(hash_of_indices(len(source), HELD_OUT))
    return select(source, np.flatnonzero(out == {"train": False, "test": True}[split]))


def resized(source: Arrays, size: int) -> Arrays:
    if not size or source.shape[:2] == (size, size):
        return source
    return Arrays(np.stack([fit(x, size) for x in source.image]), source.labels, source.class_names)
