"""Sets of examples with random access: the protocol, sets in memory, and sets on a disk."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ssljax.errors import InputError

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
    """

    image: Callable[[int], Any]
    labels: np.ndarray | None
    class_names: list[str]
    shape: tuple[int, ...]
    count: int | None = None  # Number of examples; None for that of the labels.
    aspects: bool = False
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8), repr=False)
    files: str = ""  # What stands for the content in a run's record: names and sizes.

    def __len__(self) -> int:
        if self.count is None:
            return 0 if self.labels is None else len(self.labels)
        return self.count

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        decode = map if len(at) < 8 else self.pool.map
        found = list(decode(self.image, map(int, at)))
        labels = {} if self.labels is None else {"label": self.labels[at]}
        if not self.aspects:
            return {"image": np.stack(found)} | labels
        images, aspects = zip(*found, strict=True)
        return {"image": np.stack(images), "aspect": np.array(aspects, np.float32)} | labels


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
    return Selected(source, at)


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


def fits_in_memory(n: int, shape: tuple[int, ...]) -> bool:
    """Whether `n` examples of `shape` bytes are few enough to lie on the devices."""
    return n * int(np.prod(shape)) <= RESIDENT_BYTES
