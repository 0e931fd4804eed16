"""Labelled image sets: embedded, from TFDS (read without TensorFlow), a folder, or an .npz."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
import difflib
import os
import pathlib
import sys
from typing import Protocol
import zipfile
import zlib

import numpy as np

from ssljax.data.cache import cache_file, read_cache, store
from ssljax.errors import InputError
from ssljax.fingerprint import names_and_sizes, reported

RESIDENT_BYTES = 2 * 2**30  # Sets of more decoded bytes than this are streamed.
EMBEDDED = "digits"
HELD_OUT = "validation"  # What a colon and this after a name ask for.
SUFFIXES = ".png", ".jpg", ".jpeg", ".bmp", ".webp"


class Source(Protocol):
    """Random access to labelled images of one size."""

    @property
    def labels(self) -> np.ndarray:
        """Class of each image, (n,) int32."""
        ...

    @property
    def class_names(self) -> list[str]:
        """Name of each class."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        ...

    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        """{"image": (k, height, width, channels) uint8, "label": (k,) int32} at k indices."""
        ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Set in memory."""

    image: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.shape[1:]

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        return {"image": self.image[at], "label": self.labels[at]}


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Set that is decoded as it is read.

    `image(i)` gives example i, (height, width, channels) uint8.
    """

    image: Callable[[int], np.ndarray]
    labels: np.ndarray
    class_names: list[str]
    shape: tuple[int, int, int]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8), repr=False)
    files: str = ""  # What stands for the content in a run's record: names and sizes.

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        decode = map if len(at) < 8 else self.pool.map
        return {"image": np.stack(list(decode(self.image, map(int, at)))), "label": self.labels[at]}


@reported("images")
def images(name: str, split: str, size: int = 0) -> Source:
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
    if whole := without_validation(name):
        source = images(whole, "train", size)
        return select(source, validation_indices(whole, source.labels)[split])
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
        return _folder(path, split, size)
    elif os.sep in name and not has_config(name):
        raise InputError(f"There is no folder or .npz file {name}: check the path given as --data.")
    else:
        return _tfds(name, split, size)
    return _resized(source, size)


def select(source: Source, at: np.ndarray) -> Source:
    """Set of the images of another at some indices."""
    if isinstance(source, Arrays):
        return Arrays(source.image[at], source.labels[at], source.class_names)
    return replace(source, image=lambda i: source.image(int(at[i])), labels=source.labels[at])


def share(source: Source, fraction: float, seed: int = 0) -> Source:
    """Set of a fraction of each class, drawn by `seed`, to learn from few labels.

    At least one image of each class is kept. InputError unless the fraction is in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(f"The fraction of the images to keep must be in (0, 1], not {fraction}.")
    return (
        source if fraction == 1 else select(source, _of_each_class(source.labels, fraction, seed))
    )


def _of_each_class(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Indices, in order, of a fraction of each class, and of at least one example of each."""
    rng, at = np.random.default_rng(seed), []
    for c in np.unique(labels):
        every = rng.permutation(np.flatnonzero(labels == c))
        at.append(every[: max(1, round(fraction * len(every)))])
    return np.sort(np.concatenate(at))


def without_validation(name: str) -> str | None:
    """NAME of NAME:validation; None of any other name."""
    base, colon, part = name.rpartition(":")
    return base if colon and part == HELD_OUT else None


def validation_indices(name: str, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of a training split that are the "train" and the "test" split of NAME:validation.

    The former are nine tenths of each class. InputError where nothing can be held out.
    """
    # By labels alone, so that no setting changes what is held out.
    kept = _of_each_class(labels, 0.9, seed=10)
    if len(kept) == len(labels):
        raise InputError(
            f"{name} has no class of 5 training examples or more, of which some could be held out."
        )
    return {"train": kept, "test": np.setdiff1d(np.arange(len(labels)), kept)}


def _resized(source: Arrays, size: int) -> Arrays:
    if not size or source.shape[:2] == (size, size):
        return source
    return Arrays(np.stack([fit(x, size) for x in source.image]), source.labels, source.class_names)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` and cuts out the middle: (size, size, channels) uint8.

    The resampling is Pillow's antialiased bilinear one.
    """
    from PIL import Image

    if image.shape[-1] not in (1, 3):  # Pillow takes 2 and 4 for colours and alpha, and no more.
        return np.concatenate(
            [fit(image[..., i : i + 1], size) for i in range(image.shape[-1])], -1
        )
    height, width = image.shape[:2]
    scale = size / min(height, width)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    new_w, new_h = max(size, round(width * scale)), max(size, round(height * scale))
    picture = picture.resize((new_w, new_h), Image.Resampling.BILINEAR)
    left, top = (new_w - size) // 2, (new_h - size) // 2
    out = np.asarray(picture.crop((left, top, left + size, top + size)))
    return out[..., None] if out.ndim == 2 else out


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


def class_files(
    root: pathlib.Path, split: str, suffixes: Sequence[str], what: str, example: str
) -> tuple[pathlib.Path, list[tuple[pathlib.Path, int]], list[str]]:
    """Folder of a split, each of its files with its class, and the names of the classes.

    Files are train/CLASS/* and test/CLASS/* (or val/, or validation/); or CLASS/*, of which every
    tenth file is then the test split. InputError where there is one split but not the other, or no
    `what` (such as `example`) in the folder.
    """
    own = {
        s: next((root / d for d in names if (root / d).is_dir()), None)
        for s, names in {"train": ("train",), "test": ("test", "val", "validation")}.items()
    }
    tops = [d for d in own.values() if d] or [root]
    top = own[split] if any(own.values()) else root
    if top is None:
        raise InputError(
            f"{root} has a folder {tops[0].name} but no folder {split}: add {root / split}, with a "
            f"folder a class."
        )
    # A label means the same class in both splits, even where one of them lacks some.
    names = sorted(
        {d.name for t in tops for d in t.iterdir() if d.is_dir() and not d.name.startswith(".")}
    )
    files = [
        (f, i)
        for i, name in enumerate(names)
        for f in sorted((top / name).rglob("*"))
        if f.suffix.lower() in suffixes
        and not any(p.startswith(".") for p in f.relative_to(top).parts)
    ]
    if top == root:  # No split of its own: every tenth of the sorted list is for testing.
        files = [f for i, f in enumerate(files) if (i % 10 == 0) == (split == "test")]
    if not files:
        raise InputError(
            f"{top} holds no {what}: put them in a folder for each class, as in {top}/{example} "
            f"({' '.join(suffixes)})."
        )
    return top, files, names


def _folder(root: pathlib.Path, split: str, size: int) -> Source:
    top, files, names = class_files(root, split, SUFFIXES, "images", "cat/1.png")
    headers = {_header(f) for f, _ in files[:: max(1, len(files) // 100)]}
    channels = 1 if all(gray for *_, gray in headers) else 3
    exact = not size
    if not size:
        shapes = sorted({shape[:2] for shape in headers})
        size = shapes[0][0]
        if shapes != [(size, size)]:
            raise InputError(
                f"The images in {top} are not all square and of one size "
                f"({', '.join('x'.join(map(str, s)) for s in shapes[:3])}, ...): give --image-size."
            )
    paths = [f for f, _ in files]
    labels = np.array([c for _, c in files], np.int32)
    source = OnDisk(
        lambda i: _decode(paths[i], size, channels, exact), labels, names, (size, size, channels)
    )
    if not _fits_in_memory(source):
        return replace(source, files=names_and_sizes(paths, top))
    return Arrays(source.read(np.arange(len(source)))["image"], labels, names)


def _header(path: pathlib.Path) -> tuple[int, int, bool]:
    """Width, height, and whether it is gray."""
    from PIL import Image

    with _readable(path), Image.open(path) as picture:
        return *picture.size, picture.mode in ("1", "L", "LA") or picture.mode.startswith("I")


def _decode(path: pathlib.Path, size: int, channels: int, exact: bool) -> np.ndarray:
    """One image as (size, size, channels); InputError for another size if it must be `exact`."""
    from PIL import Image

    with _readable(path), Image.open(path) as picture:
        if picture.mode.startswith("I"):  # 16 bits, which `convert` would clip to 255.
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        image = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    if image.shape[:2] == (size, size):
        return image.reshape(size, size, channels)
    if exact:
        raise InputError(
            f"{path} is {image.shape[1]}x{image.shape[0]}, others are {size}x{size}: "
            "give --image-size."
        )
    return fit(image.reshape(*image.shape[:2], channels), size)


class _readable:
    """Turns an error of Pillow on a broken file into an InputError that names the file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (OSError, SyntaxError, ValueError)):
            raise InputError(
                f"{self.path} can't be read as an image ({error}): repair or remove it."
            ) from error


def _fits_in_memory(source: OnDisk) -> bool:
    """Whether a set is small enough to lie on the devices."""
    return len(source) * int(np.prod(source.shape)) <= RESIDENT_BYTES


def has_config(name: str) -> bool:
    """Whether a name is of a TFDS set and its configuration, as cifar10_corrupted/fog_1."""
    import tensorflow_datasets as tfds

    return name.split("/")[0] in tfds.list_builders(with_community_datasets=False)


def tfds_builder(name: str, embedded: Sequence[str], instead: str):
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


def _prepare(name: str) -> str:
    python, here = pathlib.Path(sys.executable), pathlib.Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    return f"{python} -m ssljax.data.prepare {name}"


def check_prepared(name: str, builder, instead: str) -> None:
    """InputError where the set has not been downloaded and written."""
    if not builder.is_prepared():
        raise InputError(
            f"{name} is not prepared in {builder.data_path}: run `{_prepare(name)}` once, "
            f"{instead}."
        )


def data_source(name: str, builder, split: str, instead: str):
    """Rows of a split; InputError where its format can't be read without TensorFlow."""
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as e:
        raise InputError(
            f"{name} was prepared in a format without random access: move {builder.data_path} "
            f"aside and run `{_prepare(name)}`, {instead}."
        ) from e


def _tfds(name: str, split: str, size: int) -> Source:
    import tensorflow_datasets as tfds

    builder = tfds_builder(
        name,
        [EMBEDDED, "photos"],
        f"give a TFDS name, a folder of class folders, an .npz, or {EMBEDDED}, which is embedded",
    )
    instead = f"or take --data {EMBEDDED}, which is embedded and needs no download"
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

    if count * int(np.prod(shape)) > RESIDENT_BYTES:
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
