"""Folders of files: which split and class each file is of."""

from collections.abc import Sequence
from dataclasses import replace
import pathlib

import numpy as np

from ssljax.data.decode import decode, header
from ssljax.data.sources import Arrays, fits_in_memory, OnDisk, Source
from ssljax.errors import InputError
from ssljax.fingerprint import names_and_sizes

SUFFIXES = ".png", ".jpg", ".jpeg", ".bmp", ".webp"


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


def image_folder(root: pathlib.Path, split: str, size: int) -> Source:
    top, files, names = class_files(root, split, SUFFIXES, "images", "cat/1.png")
    headers = {header(f) for f, _ in files[:: max(1, len(files) // 100)]}
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
        lambda i: decode(paths[i], size, channels, exact), labels, names, (size, size, channels)
    )
    if not fits_in_memory(len(source), source.shape):
        return replace(source, files=names_and_sizes(paths, top))
    return Arrays(source.read(np.arange(len(source)))["image"], labels, names)
