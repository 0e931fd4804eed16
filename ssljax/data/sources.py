"""Sets of examples with random access: the protocol, sets in memory, and sets on a disk."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
import functools
import os
import pathlib
from typing import Any, Protocol

import numpy as np

from ssljax.data.cache import read_cache, store
from ssljax.data.decode import Unreadable
from ssljax.errors import InputError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Decoders let other threads run meanwhile, and threads that wait for the disk take no core.
THREADS = min(64, max(8, 2 * CORES))
print_once = functools.cache(print)
NAMED = 3  # Files that can't be read are named up to this many.
RESIDENT_BYTES = 2 * 2**30  # Sets of more decoded bytes than this are streamed.
HELD_OUT = "validation"  # What a colon and this after a name ask for.


class Source(Protocol):
    """Random access to examples of one shape: images, windows of sound, rows of tokens."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class of each example, (n,) int32; None for a set without labels."""
        ...

    @property
    def class_names(self) -> list[str]:
        """Name of each class; none for a set without labels."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example: height, width and channels of an image."""
        ...

    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        """Examples at k indices: {"image": (k, *shape), "label": (k,) int32, "aspect": (k,)}.

        There is no "label" in a set without labels. There is an "aspect", the width of a photograph
        over its height, float32, where photographs were resized to squares without being cut.
        """
        ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Set in memory: images (n, *shape), labels (n,) or None, aspects (n,) or None."""

    image: np.ndarray
    labels: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    aspect: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape[1:]

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that `read` gives, of all examples."""
        named = {"image": self.image, "label": self.labels, "aspect": self.aspect}
        return {name: x for name, x in named.items() if x is not None}

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: x[at] for name, x in self.arrays().items()}


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Set that is decoded as it is read.

    `image(i)` gives example i, an array of `shape`; with `aspects`, a pair of it and its aspect.
    With `skip_bad`, an example that is `Unreadable` is replaced by the next one that isn't, and
    the first after the last: what is read is a function of the index and the files.
    """

    image: Callable[[int], Any]
    labels: np.ndarray | None
    class_names: list[str]
    shape: tuple[int, ...]
    count: int | None = None  # Number of examples; None for that of the labels.
    aspects: bool = False
    skip_bad: bool = False
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(THREADS, "decode"), repr=False
    )
    files: str = ""  # What stands for the content in a run's record: names and sizes.
    left_out: dict[int, str] = field(default_factory=dict, repr=False)  # Why, by index.

    def __len__(self) -> int:
        if self.count is None:
            return 0 if self.labels is None else len(self.labels)
        return self.count

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        at = np.array(at)
        first = self._example(int(at[0])) if len(at) else None  # Its type is that of all.
        image = np.empty((len(at), *self.shape), first[1].dtype if first else np.uint8)
        aspect = np.empty(len(at), np.float32)
        if first:
            at[0], image[0], aspect[0] = first

        def fill(row: int) -> None:
            at[row], image[row], aspect[row] = self._example(int(at[row]))

        _each(self.pool, fill, range(1, len(at)))
        found = {"image": image}
        if self.labels is not None:
            found["label"] = self.labels[at]
        if self.aspects:
            found["aspect"] = aspect
        return found

    def in_memory(self) -> Arrays:
        """The set in memory, without what can't be read if `skip_bad`."""
        found = dict(self.read(np.arange(len(self))))
        if self.left_out:
            if len(self.left_out) > NAMED:
                count = len(self.left_out)
                print_once(f"Left out {count} of {len(self)} files, which can't be read.")
            kept = np.setdiff1d(np.arange(len(self)), list(self.left_out))
            found = {name: x[kept] for name, x in found.items()}
        return Arrays(found["image"], found.get("label"), self.class_names, found.get("aspect"))

    def _example(self, i: int) -> tuple[int, np.ndarray, float]:
        """The index of what is read for example i, its array, and its aspect."""
        for _ in range(len(self)):
            if i not in self.left_out:
                try:
                    found = self.image(i)
                except Unreadable as error:
                    if not self.skip_bad:
                        raise
                    self._leave_out(i, str(error))
                else:
                    image, aspect = found if self.aspects else (found, 1.0)
                    if image.shape != self.shape:  # NumPy would repeat one channel thrice.
                        raise ValueError(f"Example {i} is {image.shape}, not {self.shape}.")
                    return i, image, aspect
            i = (i + 1) % len(self)
        why = next(iter(self.left_out.values()), "there are none")
        raise InputError(f"None of {len(self)} files can be read; of one, {why}")

    def _leave_out(self, i: int, why: str) -> None:
        self.left_out[i] = why
        count = len(self.left_out)
        if count <= NAMED or count in (10, 100, 1000, 10_000, 100_000):
            what = why.rpartition(": ")[0]  # Without what to do, which --skip-bad does.
            print_once(f"Left out {count} of {len(self)} files so far: {what}.")


def _each(pool: ThreadPoolExecutor, do: Callable[[int], None], rows: range) -> None:
    """`do(row)` of all rows in the threads of a pool; raises the error of the first that has one.

    Threads take the rows themselves: a task for each would cost as much as a small image.
    """
    left, errors = iter(rows), {}

    def work() -> None:
        for row in left:
            if errors:
                return
            try:
                do(row)
            except BaseException as error:
                errors[row] = error

    try:
        for task in [pool.submit(work) for _ in range(min(THREADS, len(rows)))]:
            task.result()
    except BaseException as error:  # Of a signal: the threads stop too.
        errors[-1] = error
        raise
    if errors:  # Rows are taken in order, so that this is the first of all.
        raise errors[min(errors)]


@dataclass(frozen=True, eq=False)
class Selected:
    """Examples of another set at some indices."""

    source: Source
    at: np.ndarray

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.source.labels is None else self.source.labels[self.at]

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def files(self) -> str:
        """What stands for the content of the other set in a run's record."""
        return getattr(self.source, "files", "")

    def __len__(self) -> int:
        return len(self.at)

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        return self.source.read(self.at[at])


def select(source: Source, at: np.ndarray) -> Source:
    """Set of the examples of another at some indices."""
    if isinstance(source, Arrays):
        labels = None if source.labels is None else source.labels[at]
        aspect = None if source.aspect is None else source.aspect[at]
        return Arrays(source.image[at], labels, source.class_names, aspect)
    if isinstance(source, OnDisk):  # What replaces a file that can't be read is one of these too.
        labels = None if source.labels is None else source.labels[at]
        image = lambda i: source.image(int(at[i]))
        return replace(source, image=image, labels=labels, count=len(at), left_out={})
    return Selected(source, at)


def read_arrays(path: pathlib.Path, class_names: list[str]) -> Arrays | None:
    """The set in a cached file; None where it is missing or damaged."""
    found = read_cache(path)
    if found is None:
        return None
    labels = found.get("labels")
    return Arrays(
        found["image"], labels, [] if labels is None else class_names, found.get("aspect")
    )


def store_arrays(path: pathlib.Path, source: Arrays) -> None:
    """Writes a set in memory to a cached file, without the names of its classes."""
    arrays = {"image": source.image, "labels": source.labels, "aspect": source.aspect}
    store(path, **{name: x for name, x in arrays.items() if x is not None})


def share(source: Source, fraction: float, seed: int = 0) -> Source:
    """Set of a fraction of each class, drawn by `seed`, to learn from few labels.

    At least one image of each class is kept. InputError unless the fraction is in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(f"The fraction of the images to keep must be in (0, 1], not {fraction}.")
    if fraction == 1:
        return source
    if source.labels is None:
        raise InputError("A fraction of each class can only be kept of a set with labels.")
    return select(source, _of_each_class(source.labels, fraction, seed))


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


def fits_in_memory(n: int, shape: tuple[int, ...]) -> bool:
    """Whether `n` examples of `shape` bytes are few enough to lie on the devices."""
    return n * int(np.prod(shape)) <= RESIDENT_BYTES
