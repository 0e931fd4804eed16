"""TensorFlow Datasets, read without TensorFlow."""

from collections.abc import Iterator, Mapping, Sequence
import difflib
import pathlib
import sys

import numpy as np

from ssljax.data.cache import cache_file, read_cache, store
from ssljax.data.decode import fit
from ssljax.data.sources import Arrays, fits_in_memory, OnDisk, Source
from ssljax.errors import InputError


def has_config(name: str) -> bool:
    """Whether a name is of a TFDS set and its configuration, as cifar10_corrupted/fog_1."""
    import tensorflow_datasets as tfds

    return name.split("/")[0] in tfds.list_builders(with_community_datasets=False)


def builder_of(name: str, embedded: Sequence[str], instead: str):
    """Builder of a TFDS set; InputError with similar names where there is none."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name)
    except (ValueError, AssertionError):  # Not found, or not a name at all, or no such version.
        # Those of others need TensorFlow.
        known = [*embedded, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name.lower(), known, 3)
        hint = f"did you mean {' or '.join(near)}? Otherwise " if near else ""
        raise InputError(f"There is no data set {name}: {hint}{instead}.") from None


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


def tfds_images(name: str, split: str, size: int) -> Source:
    import tensorflow_datasets as tfds

    builder = builder_of(
        name,
        ["digits", "photos"],
        "give a TFDS name, a folder of class folders, an .npz, or digits, which is embedded",
    )
    instead = "or take --data digits, which is embedded and needs no download"
    features = builder.info.features
    if (
        "image" not in features
        or "label" not in features
        or not hasattr(features["label"], "names")
    ):
        raise InputError(
            f"{name} holds {', '.join(features)}, not image and label: it is not a labelled image "
            "set."
        )
    check_prepared(name, builder, instead)
    if (
        split == "test"
        and "test" not in builder.info.splits
        and "validation" in builder.info.splits
    ):
        split = "validation"
    if split not in builder.info.splits:
        raise InputError(f"{name} has no {split} split; it has {', '.join(builder.info.splits)}.")
    shape = features["image"].shape
    if not size and None in shape:
        raise InputError(f"The images of {name} differ in size: give --image-size.")
    shape = (size, size, shape[-1] or 3) if size else shape

    names = list(features["label"].names)
    made = (
        (pathlib.Path(builder.data_path) / "dataset_info.json").stat().st_mtime_ns
    )  # Prepared anew is another set.
    cache = cache_file(f"{builder.data_path}-{made}-{split}-{shape}")
    count = builder.info.splits[split].num_examples
    if cached := read_cache(cache):
        return Arrays(cached["image"], cached["labels"], names)
    rows = data_source(name, builder, split, instead)

    def image(i: int) -> np.ndarray:
        x = rows[i]["image"]
        return fit(x, size) if size and x.shape[:2] != (size, size) else x

    if not fits_in_memory(count, shape):
        undecoded = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        labels = np.array([r["label"] for r in all_rows(undecoded)], np.int32)
        rows_of = builder.info.splits[split]
        files = f"{builder.info.full_name} {split} {count} {rows_of.num_bytes}"
        return OnDisk(image, labels, names, shape, files=files)
    examples = list(all_rows(rows))
    out = np.stack([fit(r["image"], size) if size else r["image"] for r in examples])
    labels = np.array([r["label"] for r in examples], np.int32)
    store(cache, image=out, labels=labels)
    return Arrays(out, labels, names)


def all_rows(rows) -> Iterator[Mapping]:
    """Rows of a TFDS data source, read a thousand at a time: twice as fast as one by one."""
    for at in range(0, len(rows), 1000):
        yield from rows.__getitems__(list(range(at, min(at + 1000, len(rows)))))
