"""TensorFlow Datasets, read without TensorFlow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
import difflib
import os
import pathlib
import sys
from typing import Any

import numpy as np

from ssljax import extras
from ssljax.data import described
from ssljax.data.cache import cache_file, read_cache, store
from ssljax.data.decode import decoder, fit, suggested_size
from ssljax.data.sources import (
    Arrays,
    fits_in_memory,
    OnDisk,
    read_arrays,
    select,
    Source,
    store_arrays,
)
from ssljax.data.splits import hash_of_indices, held_out
from ssljax.errors import InputError


def has_config(name: str) -> bool:
    """Whether a name is of a TFDS set and its configuration, as cifar10_corrupted/fog_1."""
    if name.startswith((".", "~", os.sep)):
        return False
    tfds = _package(name, [])
    return name.split("/")[0] in tfds.list_builders(with_community_datasets=False)


def builder_of(name: str, embedded: Sequence[str], instead: str):
    """Builder of a TFDS set; InputError with similar names where there is none."""
    tfds = _package(name, embedded)
    try:
        return tfds.builder(name)
    except (ValueError, AssertionError):  # Not found, or not a name at all, or no such version.
        # Those of others need TensorFlow.
        known = [*embedded, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name.lower(), known, 3)
        hint = f"did you mean {' or '.join(near)}? Otherwise " if near else ""
        raise InputError(f"There is no data set {name}: {hint}{instead}.") from None


def _package(name: str, embedded: Sequence[str]) -> Any:
    """The package of TFDS; InputError where it is not installed, with the `embedded` set meant."""
    near = difflib.get_close_matches(name.lower(), embedded, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return extras.load(
        "tensorflow_datasets",
        f"{name} is no file or folder{hint}, and a set of TensorFlow Datasets",
    )


def prepare_command(name: str) -> str:
    python, here = pathlib.Path(sys.executable), pathlib.Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    return f"{python} -m ssljax.data.prepare {name}"


def check_prepared(name: str, builder, instead: str) -> None:
    """InputError where the set has not been downloaded and written."""
    if not builder.is_prepared():
        raise InputError(
            f"{name} is not prepared in {builder.data_path}: run `{prepare_command(name)}` once, "
            f"{instead}."
        )


def data_source(name: str, builder, split: str, instead: str):
    """Rows of a split; InputError where its format can't be read without TensorFlow."""
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as e:
        raise InputError(
            f"{name} was prepared in a format without random access: move {builder.data_path} "
            f"aside and run `{prepare_command(name)}`, {instead}."
        ) from e


def features_of(builder: Any) -> Mapping[str, Any]:
    """Features of the examples of a set, by name."""
    return builder.info.features


def tfds_images(
    name: str,
    split: str,
    size: int,
    named: str = "",
    *,
    whole: bool = False,
    part: float = 1.0,
    skip_bad: bool = False,
) -> tuple[Source, str]:
    """The "train" or "test" images of a prepared TFDS set, and the line to be printed.

    Images of different sizes are decoded as files in a folder are (`decoder`).

    `named` is the split to train on; the test split is the set's own, or else that of validation,
    or else a tenth held out by a hash of the index. There are labels where the set has a feature
    "label" with class names, and where none is -1. InputError says what is wrong with the set.
    """
    builder = builder_of(
        name,
        ["doodles", "digits", "photos"],
        "give a TFDS name, a folder of class folders, an .npz, or doodles, which is embedded",
    )
    feature = _image_feature(name, features_of(builder))
    if described.planning() and not builder.is_prepared():
        return _described(name, builder, named or "train", split, size, feature, whole)
    check_prepared(name, builder, "or take --data doodles, which is embedded and needs no download")
    splits = builder.info.splits
    train = named or "train"
    test = next((s for s in ("test", "validation") if s in splits and s != train), "")
    for wanted in (train, split if split not in ("train", "test") else train):
        if wanted not in splits:
            raise InputError(
                f"{name} has no {wanted} split; it has {', '.join(splits)}: give one of those as "
                f"in {name}:{next(iter(splits))}, to train on it."
            )
    how = {"whole": whole, "part": part, "skip_bad": skip_bad}
    chosen = test if split == "test" and test else train
    every = _read_split(name, builder, chosen, size, feature, **how)
    counts = {"train": splits[train].num_examples}
    if test:
        counts["test"] = splits[test].num_examples
        note = "those of validation are the test split" if test == "validation" else ""
        source = every
    else:
        out = held_out(hash_of_indices(len(every), "test"), every.labels)
        if not out.any():
            raise InputError(f"{name} has too few images in {train} to hold some out for testing.")
        source = select(every, np.flatnonzero(out == (split == "test")))
        counts = {"train": int((~out).sum()), "test": int(out.sum())}
        note = "a tenth is held out by a hash of the index, for there is no other split to test on"
    n = source.num_classes
    form = f"in {n:,} class{'es' * (n > 1)}" if n else "without classes"
    line = (
        f"{name}{f':{named}' * bool(named)}: {counts['train']:,} images {form} to train, "
        f"{counts['test']:,} to test{f'; {note}' if note else ''}"
    )
    unused = [f"{x.num_examples:,} of {s}" for s, x in splits.items() if s not in (train, test)]
    return source, line + (f". Left out: {', '.join(unused)}" if unused else "")


def _described(
    name: str, builder, train: str, split: str, size: int, feature: str, whole: bool
) -> tuple[Source, str]:
    """A stand-in for a set that isn't prepared, of the shapes and classes that TFDS says it has."""
    features = features_of(builder)
    *sides, channels = features[feature].shape
    varied = None in sides
    if varied and not size:
        raise InputError(
            f"The images of {name} differ in size: give --image-size 224, for instance."
        )
    shape = (*([size] * 2 if size else sides), channels or 3)
    names = getattr(features["label"], "names", None) if "label" in features else None
    chosen = split if split not in ("train", "test") else "test" if split == "test" else train
    return described.image_set(name, chosen, shape, list(names or []), whole and varied)


def _image_feature(name: str, features: Mapping) -> str:
    """Name of the feature that has a set's images; InputError where there is no such one."""
    import tensorflow_datasets as tfds

    found = [k for k, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if not found:
        raise InputError(f"{name} holds {', '.join(features)}, and no image: it is no image set.")
    if len(found) > 1 and "image" not in found:
        raise InputError(
            f"{name} has several images, {' and '.join(found)}, and none is called image: give "
            "another set, or a folder of the images that you want."
        )
    feature = "image" if "image" in found else found[0]
    if features[feature].np_dtype != np.uint8:
        kind = np.dtype(features[feature].np_dtype)
        raise InputError(f"The images of {name} are {kind}, and can only be read as uint8.")
    return feature


def _read_split(name: str, builder, split: str, size: int, feature: str, **how: Any) -> Source:
    """All images of a split, with their labels if there are any; `how` is that of `decoder`."""
    import tensorflow_datasets as tfds

    instead = "or take --data doodles, which is embedded and needs no download"
    features, info = features_of(builder), builder.info.splits[split]
    shape = features[feature].shape
    if not size and None in shape[:2]:
        rows = data_source(name, builder, split, instead)
        some = rows.__getitems__(list(range(0, len(rows), -(-len(rows) // 50))))
        sizes = [row[feature].shape[:2] for row in some]
        raise InputError(
            f"The images of {name} differ in size: give --image-size {suggested_size(sizes)}, for "
            "instance."
        )
    varied = None in shape[:2]
    shape = (size, size, shape[-1] or 3) if size else (*shape[:2], shape[-1] or 3)
    named = "label" in features and getattr(features["label"], "names", None)
    names = list(named or [])
    made = (
        (pathlib.Path(builder.data_path) / "dataset_info.json").stat().st_mtime_ns
    )  # Prepared anew is another set.
    form = f"{shape}{how if varied else ''}"
    cache = cache_file(f"{builder.data_path}-{made}-{split}-{feature}-{form}")
    if cached := read_arrays(cache, names):
        return cached
    rows = data_source(name, builder, split, instead)
    encoded = builder.as_data_source(split=split, decoders={feature: tfds.decode.SkipDecoding()})
    labels = _labels(cache_file(f"labels of {cache}"), encoded) if names else None
    if labels is None or labels.min() < 0:
        labels, names = None, []
    if varied:
        source = _varied(f"{name}:{split}", encoded, feature, shape, **how)
    else:

        def image(i: int) -> np.ndarray:
            x = rows[i][feature]
            return fit(x, size) if size and x.shape[:2] != (size, size) else x

        source = OnDisk(image, None, [], shape, count=info.num_examples)
    if not fits_in_memory(len(source), source.shape):
        files = f"{builder.info.full_name} {split} {info.num_examples} {info.num_bytes}"
        return replace(source, labels=labels, class_names=names, files=files)
    if not varied:
        images = np.stack([fit(r[feature], size) if size else r[feature] for r in all_rows(rows)])
        arrays = Arrays(images, labels, names)
    else:
        arrays = replace(source, labels=labels, class_names=names).in_memory()
    store_arrays(cache, arrays)
    return arrays


def _labels(cache: pathlib.Path, encoded: Any) -> np.ndarray:
    """Label of each row, from the cache if it is there: a pass over all of ImageNet takes long."""
    if cached := read_cache(cache):
        return cached["labels"]
    labels = np.array([row["label"] for row in all_rows(encoded)], np.int32)
    store(cache, labels=labels)
    return labels


def _varied(
    where: str, encoded: Any, feature: str, shape: tuple[int, int, int], **how: Any
) -> OnDisk:
    """Images of different sizes, decoded from their bytes to images of one shape."""

    def name(i: int) -> str:
        return f"Image {i} of {where}"

    def bytes_of(i: int) -> bytes:
        return encoded[i][feature]

    size, _, channels = shape
    found = decoder(bytes_of, len(encoded), size, name=name, where=where, **how)
    decode = replace(found, channels=channels)  # As the other split, whatever its headers say.
    return OnDisk(
        lambda i: decode(bytes_of(i), name(i)),
        None,
        [],
        shape,
        count=len(encoded),
        aspects=decode.whole,
        skip_bad=how["skip_bad"],
    )


def all_rows(rows) -> Iterator[Mapping]:
    """Rows of a TFDS data source, read a thousand at a time: twice as fast as one by one."""
    for at in range(0, len(rows), 1000):
        yield from rows.__getitems__(list(range(at, min(at + 1000, len(rows)))))
