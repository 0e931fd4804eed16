"""Feeds of tokens, on the devices or in files, and documents packed into rows of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
import itertools
from typing import Any, Literal, NamedTuple, TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from ssljax import sharding
from ssljax.data import described
from ssljax.data.documents import (
    AnyDocuments,
    Documents,
    documents,
    evaluated,
    is_planned,
    report_texts,
    sample,
)
from ssljax.data.feed import check_batch
from ssljax.data.order import indices
from ssljax.data.token_files import token_file
from ssljax.data.tokenizers import (
    bpe,
    characters,
    check_unknown,
    contains,
    counts_of,
    encode,
    END,
    unknown_share,
    words,
)
from ssljax.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tree = Any

RESIDENT_BYTES = 2**29  # Of tokens: more are read from their file, a step's windows at a time.


class Tokenized(NamedTuple):
    """A text set for a model of what comes next."""

    tokenizer: "Tokenizer"
    train: np.ndarray  # (n,) int32, end to end; in a file, uint16 or uint32, for a large text.
    test: np.ndarray  # int32; of a large text, its part that is evaluated.
    characters: int  # Number in the test text; 0 where its tokens lose something of it.
    unknown: float | None = None  # Percent of unknown tokens in `test`; None if there are none.
    counts: np.ndarray | None = None  # How often each token is in `train`; None to count them.

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.tokenizer.get_vocab_size()


def tokenized(data: str, kind: Literal["words", "characters", "bpe"], vocabulary: int) -> Tokenized:
    """A text set in tokens learned on its training split; `vocabulary` limits words and byte pairs.

    Words and byte pairs of a large text are learned on a `sample` of it. Of several documents each
    ends with END in byte pairs, and otherwise with a newline, added where there is none. Words that
    occur once are the unknown token, so that it is learned, unless the text has its own <unk> for
    rare words. Prints what was read and the shares of unknown tokens; InputError where a text is
    mostly unknown, and as from `documents` and the tokenizers.
    """
    if is_planned(data):
        tokenizer = described.tokenizer(vocabulary, (END,))
        return Tokenized(tokenizer, *described.tokens(), 0, counts=np.ones(vocabulary, np.int64))
    given = [documents(data, split) for split in ("train", "test")]
    train, test = given[0], evaluated(given[1])
    several = max(map(len, given)) > 1
    if several and kind != "bpe":
        train, test = train.ending("\n"), test.ending("\n")
    if kind == "words":
        tokenizer = words(sample(train), None, vocabulary)
    elif kind == "characters":
        tokenizer = characters(train)
    else:
        tokenizer = bpe(sample(train), vocabulary)
    end = tokenizer.token_to_id(END) if several and kind == "bpe" else None
    x, counts = joined(tokenizer, train, end)
    y, tested = joined(tokenizer, test, end)
    report_texts(given[0], given[1], (len(x), len(y)))
    check_unknown(tokenizer, counts, tested)
    share = unknown_share(tokenizer, tested)
    lost = kind == "words" or share or (contains(test, END) and kind == "bpe")
    return Tokenized(tokenizer, x, y, 0 if lost else int(test.lengths.sum()), share, counts)


def joined(
    tokenizer: "Tokenizer", docs: AnyDocuments, end: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of documents end to end, each followed by `end`, and how often each is there.

    int32; of documents on a disk, uint16 or uint32 in a file of the cache.
    """
    if isinstance(docs, Documents):
        tokens = _joined(*encode(tokenizer, docs), end)
        return tokens, counts_of(tokenizer, tokens)
    tokens, _, counts = token_file(tokenizer, docs, end)
    return tokens, counts


def _joined(tokens: np.ndarray, offsets: np.ndarray, separator: int | None) -> np.ndarray:
    """The documents end to end, each followed by `separator` if there is one."""
    return tokens if separator is None else np.insert(tokens, offsets[1:], separator)


def pack(
    tokens: np.ndarray, offsets: np.ndarray, length: int, separator: int | None = None
) -> np.ndarray:
    """The documents end to end, each followed by `separator`, in rows (n, length) int32.

    A last row that isn't full is left out. InputError where the documents don't fill one row.
    """
    tokens = _joined(tokens, offsets, separator)
    if len(tokens) < length:
        raise _no_row(len(tokens), length)
    return tokens[: len(tokens) // length * length].reshape(-1, length).astype(np.int32)


def document_rows(
    tokens: np.ndarray,
    offsets: np.ndarray,
    length: int,
    pad: int,
    first: int | None = None,
    last: int | None = None,
) -> np.ndarray:
    """One row for each document, cut or padded: (n, length) int32.

    `first` and `last` are put around each document ([CLS] and [SEP]), within the length.
    """
    before, after = int(first is not None), int(last is not None)
    own = np.minimum(np.diff(offsets), length - before - after)
    column = np.arange(length)[None] - before
    inside = (column >= 0) & (column < own[:, None])
    out = np.where(
        inside,
        tokens[np.where(inside, offsets[:-1, None] + column, 0)] if len(tokens) else pad,
        pad,
    )
    if before:
        out[:, 0] = first
    if after:
        out[np.arange(len(out)), before + own] = last
    return out.astype(np.int32)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows {"tokens": (batch, length + 1)} at places drawn for each step, as in nanoGPT.

    InputError where the text is shorter than a window.
    """

    tokens: np.ndarray
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        _long_enough(
            len(self.tokens), self.length + 1, f"a context of {self.length} and the token after it"
        )

    def resident(self) -> Tree:
        return _resident(self.tokens)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[Tree]:
        places = len(self.tokens) - self.length
        for step in itertools.count(start):
            rng = np.random.default_rng((seed % 2**64, step))
            at = rng.integers(places, size=self.batch_size, dtype=_integer(places))
            yield _fed(self.tokens, at, self.length + 1, mesh)

    def batch(self, resident: Tree, fed: jax.Array) -> dict[str, jax.Array]:
        return {"tokens": _windows(resident, fed, self.length + 1)}


@dataclass(frozen=True, eq=False)
class Streams:
    """The text as `batch_size` streams, for truncated backpropagation.

    Each step has the next `length` tokens of each stream: {"tokens": (batch, length + 1), "first":
    (batch,) bool}. The last token of a step is the first of the next step; "first" is true where
    the streams start from their beginning, so that the carry must be reset. An epoch takes `steps`
    steps; the seed doesn't matter. InputError where the text is too short for one step.
    """

    tokens: np.ndarray
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        _long_enough(
            len(self.tokens),
            self.batch_size * self.length + 1,
            f"{self.batch_size} streams of {self.length} tokens and the one after them",
        )

    @property
    def steps(self) -> int:
        return (len(self.tokens) - 1) // self.batch_size // self.length

    def resident(self) -> Tree:
        return _resident(self.tokens)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[Tree]:
        n = len(self.tokens)
        begins = np.arange(self.batch_size) * ((n - 1) // self.batch_size)
        for step in itertools.count(start):
            at = step % self.steps
            places = (begins + at * self.length).astype(_integer(n))
            yield {
                "at": _fed(self.tokens, places, self.length + 1, mesh),
                "first": np.full(self.batch_size, at == 0),
            }

    def batch(self, resident: Tree, fed: Tree) -> dict[str, jax.Array]:
        return {
            "tokens": _windows(resident, fed["at"], self.length + 1),
            "first": sharding.over_batch(fed["first"]),
        }


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of `length` tokens of a text in order, made as they are read.

    The first token of each is [CLS], unless that is None.
    """

    tokens: np.ndarray
    length: int
    cls: int | None

    def __post_init__(self) -> None:
        if not len(self):
            raise _no_row(len(self.tokens), self.width)

    @property
    def width(self) -> int:
        """Tokens of the text in a row."""
        return self.length - (self.cls is not None)

    def __len__(self) -> int:
        return len(self.tokens) // self.width

    def __getitem__(self, at: slice | np.ndarray) -> np.ndarray:
        """Rows (k, length), int32."""
        at = np.arange(len(self))[at] if isinstance(at, slice) else at
        rows = _rows(self.tokens, np.asarray(at, np.int64) * self.width, self.width)
        return rows if self.cls is None else np.insert(rows, 0, self.cls, axis=1)


@dataclass(frozen=True, eq=False)
class Packed:
    """Whole epochs of `PackedRows` in a seeded order: {"tokens": (batch, length) int32}.

    InputError for a batch that is larger than the set.
    """

    rows: PackedRows
    batch_size: int

    def __post_init__(self) -> None:
        check_batch(self.batch_size, len(self.rows))

    def resident(self) -> Tree:
        return _resident(self.rows.tokens)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[Tree]:
        n, width = len(self.rows), self.rows.width
        for step in itertools.count(start):
            at = indices(seed, step, n, self.batch_size).astype(np.int64) * width
            yield _fed(self.rows.tokens, at.astype(_integer(n * width)), width, mesh)

    def batch(self, resident: Tree, fed: jax.Array) -> dict[str, jax.Array]:
        rows = _windows(resident, fed, self.rows.width)
        if self.rows.cls is None:
            return {"tokens": rows}
        first = jnp.full((len(rows), 1), self.rows.cls, rows.dtype)
        return {"tokens": sharding.over_batch(jnp.concatenate([first, rows], axis=1))}


def _integer(n: int) -> type[np.signedinteger]:
    """The type of numbers below `n`."""
    return np.int32 if n < 2**31 else np.int64


def _resident(tokens: np.ndarray) -> Tree:
    """The tokens, if they are few enough to lie on the devices; else ()."""
    if tokens.dtype not in (np.uint16, np.uint32):
        tokens = np.asarray(tokens, np.int32)
    return tokens if tokens.nbytes <= RESIDENT_BYTES else ()


def _fed(tokens: np.ndarray, at: np.ndarray, width: int, mesh: Mesh) -> np.ndarray | jax.Array:
    """What a step is sent: where its windows begin, if the tokens are resident, else the windows.

    Of these each process reads those of its own devices.
    """
    if len(_resident(tokens)):
        return at

    def part(index: Any) -> np.ndarray:  # A slice for each axis.
        return _rows(tokens, at[index[0]], width)

    along = NamedSharding(mesh, sharding.BATCH)
    return jax.make_array_from_callback((len(at), width), along, part)


def _rows(tokens: np.ndarray, at: np.ndarray, width: int) -> np.ndarray:
    return tokens[at[:, None] + np.arange(width)].astype(np.int32)


def _windows(resident: Tree, fed: jax.Array, width: int) -> jax.Array:
    """The windows of a step, (batch, width) int32, from what it was sent."""
    if isinstance(resident, tuple):
        return sharding.over_batch(fed)
    found = resident[sharding.over_batch(fed)[:, None] + jnp.arange(width)]
    return sharding.over_batch(found.astype(jnp.int32))


def _long_enough(n: int, least: int, what: str) -> None:
    if n < least:
        raise InputError(
            f"A text of {n} tokens is too short for {what}: choose a shorter one, or more text."
        )


def _no_row(n: int, length: int) -> InputError:
    return InputError(
        f"A text of {n} tokens does not fill a row of {length}: choose a shorter length, or more "
        "text."
    )
