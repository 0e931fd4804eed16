"""Stand-ins for data sets that aren't there: to plan a program, or to encode by a run's net.

They have the shapes, classes and number of examples of the set, and not its content.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import contextvars
from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np

from ssljax.data.sources import Arrays, fits_in_memory, OnDisk, Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class _Run(NamedTuple):
    """What `standing_in` was given, and the names of what was replaced."""

    read: Mapping[str, Mapping[str, Any]]
    seed: int
    tokenizer: str
    workdir: str
    replaced: set[str]


_planning: contextvars.ContextVar[bool] = contextvars.ContextVar("planning", default=False)
_run: contextvars.ContextVar[_Run | None] = contextvars.ContextVar("run", default=None)

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
    read: Mapping[str, Mapping[str, Any]], seed: int, tokenizer: str = "", workdir: str = ""
) -> Iterator[set[str]]:
    """Context in which what a run was made of, and isn't here, is replaced.

    A set becomes noise of its form in `read`, {name: {part: {"count", "form", ...}}}, of the run's
    record. A text becomes one token over and over, for which the run's `tokenizer` is needed, the
    content of its file: it is also the one that is learned on any text. A pretrained run becomes
    the run itself, in `workdir`. Gives the names of what was replaced.
    """
    replaced: set[str] = set()
    token = _run.set(_Run(read, seed, tokenizer, workdir, replaced))
    try:
        yield replaced
    finally:
        _run.reset(token)


def stand_in(
    name: str, part: str, make: Callable[[Mapping[str, Any], int, int], Any] | None = None
) -> Any:
    """The stand-in for a part of a set; None where none is wanted, or its form isn't known.

    `make(form, count, seed)`, if given, makes it, with `known_text`.
    """
    run = _run.get()
    known = run.read.get(name, {}).get(part, {}) if run else {}
    form = known.get("form")
    if not run or not form or not (run.tokenizer if make else "shape" in form):
        return None
    run.replaced.add(name)
    return (make or noise)(form, known["count"], run.seed)


def digest_read(name: str, part: str) -> str:
    """The digest of a part of a set in the record of the run of `standing_in`; empty for none."""
    run = _run.get()
    return run.read.get(name, {}).get(part, {}).get("digest", "") if run else ""


def noise(form: Mapping[str, Any], count: int, seed: int) -> Source:
    """A set of `count` times the same noise, of a form as `fingerprint.form_of` gives."""
    x = np.random.default_rng(seed).integers(0, 256, form["shape"]).astype(form["dtype"])
    return _repeated(x, count, form["classes"], form["aspects"])


def was_read_as(name: str, what: str) -> bool:
    """Whether the run of `standing_in` read a set of this name as what `reported` calls `what`."""
    run = _run.get()
    return bool(run) and any(what in part.split() for part in run.read.get(name, {}))


def replaces_text(name: str | None = None) -> bool:
    """Whether a text that can't be read is replaced, for a run with a tokenizer: that of `name`."""
    run = _run.get()
    if run and run.tokenizer and name:
        run.replaced.add(name)
    return bool(run and run.tokenizer)


def own_tokenizer() -> "Tokenizer | None":
    """The tokenizer of the run of `standing_in`, if it has one."""
    if not replaces_text():
        return None
    from tokenizers import Tokenizer

    run = _run.get()
    return Tokenizer.from_str(run.tokenizer) if run else None


def own_run(pretrained: Any) -> str:
    """The folder of the run of `standing_in`, for a pretrained one that can't be read; or ""."""
    run = _run.get()
    if run and run.workdir:
        run.replaced.add(str(pretrained))
    return run.workdir if run else ""


def known_text(seed: int) -> str:
    """The `seed`th token of the run's tokenizer that is a text which it reads as that token."""
    own = own_tokenizer()
    assert own is not None  # As `stand_in` sees to.
    found = []
    for i in range(own.get_vocab_size()):
        text = own.decode([i])
        if text and own.encode(text, add_special_tokens=False).ids == [i]:
            found.append(text)
        if len(found) > seed:
            break
    return found[-1] if found else ""


def tokenizer(vocabulary: int, special: tuple[str, ...] = ()) -> "Tokenizer":
    """The tokenizer of the run whose text is replaced; or, to plan a program, one of `vocabulary`
    tokens, the `special` ones first, that says nothing of a text."""
    from tokenizers import models, Tokenizer

    if own := own_tokenizer():
        return own
    tokens = [*special, *(f"token{i}" for i in range(vocabulary - len(special)))]
    unknown = special[0] if special else tokens[0]
    return Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unknown))


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Tokens to learn from, too many to lie on the devices, and held-out ones."""
    return np.broadcast_to(np.uint16(0), (TOKENS,)), np.zeros(2**16, np.int32)
