"""Stand-ins for data sets that aren't there: to plan a program, or to encode by a run's net.

They have the shapes, classes and number of examples of the set, and not its content.
"""

from collections.abc import Iterator, Mapping
import contextlib
import contextvars
from typing import Any, TYPE_CHECKING

import numpy as np

from ssljax.data.sources import Arrays, fits_in_memory, OnDisk, Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_planning: contextvars.ContextVar[bool] = contextvars.ContextVar("planning", default=False)
# What `standing_in` was given, and the names of the sets that were replaced.
_forms: contextvars.ContextVar[tuple[Mapping[str, Any], int, str, set[str]] | None]
_forms = contextvars.ContextVar("forms", default=None)

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
    line = f"{name} isn't prepared here: planned as {n:,} images of {shape}"
    return _repeated(np.zeros(shape, np.uint8), n, class_names or None, aspects), line


def windows(length: int) -> Source:
    """Waves of `length` samples without labels, of recordings that aren't there."""
    return _repeated(np.zeros(length, np.int16), UNKNOWN, None, False)


def _repeated(x: np.ndarray, n: int, class_names: list[str] | None, aspects: bool) -> Source:
    """A set of `n` times the same example; without labels for None as `class_names`."""
    names = class_names or []
    labels = None if class_names is None else np.arange(n, dtype=np.int32) % max(1, len(names))
    if fits_in_memory(n, x.shape):
        aspect = np.ones(n, np.float32) if aspects else None
        return Arrays(np.broadcast_to(x, (n, *x.shape)), labels, names, aspect)
    image = lambda i: (x, 1.0) if aspects else x
    return OnDisk(image, labels, names, x.shape, count=n, aspects=aspects)


@contextlib.contextmanager
def standing_in(
    read: Mapping[str, Mapping[str, Any]], seed: int, tokenizer: str = ""
) -> Iterator[set[str]]:
    """Context in which a set that can't be read is replaced by noise of its form in a record.

    `read` is what the record has of it, {name: {part: {"count", "form", ...}}}, and `tokenizer` the
    content of a run's tokenizer.json, if it has one: a text is then replaced by one token over and
    over (`replaces_text`). Gives the names of the sets that were replaced.
    """
    used: set[str] = set()
    token = _forms.set((read, seed, tokenizer, used))
    try:
        yield used
    finally:
        _forms.reset(token)


def stand_in(name: str, part: str) -> Source | None:
    """The stand-in for a part of a set; None where none is wanted, or its form isn't known."""
    read, seed, _, used = _forms.get() or ({}, 0, "", set())
    known = read.get(name, {}).get(part, {})
    form = known.get("form")
    if not form:
        return None
    used.add(name)
    noise = np.random.default_rng(seed).integers(0, 256, form["shape"]).astype(form["dtype"])
    return _repeated(noise, known["count"], form["classes"], form["aspects"])


def replaces_text(name: str | None = None) -> bool:
    """Whether a text that can't be read is replaced, for a run with a tokenizer: that of `name`."""
    *_, tokenizer, used = _forms.get() or ("", set())
    if tokenizer and name:
        used.add(name)
    return bool(tokenizer)


def tokenizer(vocabulary: int, special: tuple[str, ...] = ()) -> "Tokenizer":
    """The tokenizer of the run whose text is replaced; or, to plan a program, one of `vocabulary`
    tokens, the `special` ones first, that says nothing of a text."""
    from tokenizers import models, Tokenizer

    *_, own, _ = _forms.get() or ("", set())
    if own:
        return Tokenizer.from_str(own)
    tokens = [*special, *(f"token{i}" for i in range(vocabulary - len(special)))]
    unknown = special[0] if special else tokens[0]
    return Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unknown))


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Tokens to learn from, too many to lie on the devices, and held-out ones."""
    return np.broadcast_to(np.uint16(0), (TOKENS,)), np.zeros(2**16, np.int32)
