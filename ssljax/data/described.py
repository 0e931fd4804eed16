"""Stand-ins for data sets that aren't there, so that a program can be planned without them.

They have the shapes, classes and number of examples of the set, and zeros for its content.
"""

from collections.abc import Iterator
import contextlib
import contextvars
from typing import TYPE_CHECKING

import numpy as np

from ssljax.data.sources import Arrays, fits_in_memory, OnDisk, Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_planning: contextvars.ContextVar[bool] = contextvars.ContextVar("planning", default=False)

# Examples of splits, which TFDS knows only of a set that was prepared; of others that aren't:
EXAMPLES = {
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "stl10": {"train": 5_000, "test": 8_000, "unlabelled": 100_000},
    "lsun/bedroom": {"train": 3_033_042, "validation": 300},
    "celeb_a": {"train": 162_770, "validation": 19_867, "test": 19_962},
    "places365_small": {"train": 1_803_460, "validation": 36_500, "test": 328_500},
}
UNKNOWN = 1_000_000  # A number that changes the length of an epoch, and nothing of a step.
TOKENS = 2**30  # Of a text that isn't there: too many to lie on the devices.


@contextlib.contextmanager
def described() -> Iterator[None]:
    """Context in which a set that isn't there is described rather than refused."""
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def planning() -> bool:
    return _planning.get()


def image_set(
    name: str, split: str, shape: tuple[int, ...], class_names: list[str], aspects: bool
) -> tuple[Source, str]:
    """The "train" or "test" split of a set that isn't there, or another one, and the line on it.

    `aspects` is whether its images are photographs of different sizes, used whole.
    """
    counts = EXAMPLES.get(name, {})
    if split == "test" and split not in counts:
        split = "validation"
    n = counts.get(split, UNKNOWN)
    labels = np.arange(n, dtype=np.int32) % len(class_names) if class_names else None
    zeros = np.zeros(shape, np.uint8)
    line = f"{name} isn't prepared here: planned as {n:,} images of {shape}"
    if fits_in_memory(n, shape):
        image = np.broadcast_to(zeros, (n, *shape))
        aspect = np.ones(n, np.float32) if aspects else None
        return Arrays(image, labels, class_names, aspect), line
    image = lambda i: (zeros, 1.0) if aspects else zeros
    return OnDisk(image, labels, class_names, shape, count=n, aspects=aspects), line


def tokenizer(vocabulary: int, special: tuple[str, ...] = ()) -> "Tokenizer":
    """A tokenizer of `vocabulary` tokens, the `special` ones first, that says nothing of a text."""
    from tokenizers import models, Tokenizer

    tokens = [*special, *(f"token{i}" for i in range(vocabulary - len(special)))]
    unknown = special[0] if special else tokens[0]
    return Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unknown))


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Tokens to learn from, too many to lie on the devices, and held-out ones."""
    return np.broadcast_to(np.uint16(0), (TOKENS,)), np.zeros(2**16, np.int32)
