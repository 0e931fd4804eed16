"""Feeds of tokens that lie on the devices, and documents packed into rows of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
from tokenizers import Tokenizer

from ssljax import sharding
from ssljax.data.documents import documents
from ssljax.data.tokenizers import (
    bpe,
    characters,
    check_unknown,
    contains,
    encode,
    END,
    unknown_share,
    words,
)
from ssljax.errors import InputError

Tree = Any


class Tokenized(NamedTuple):
    """A text set for a model of what comes next."""

    tokenizer: Tokenizer
    train: np.ndarray  # (n,) int32, end to end.
    test: np.ndarray
    characters: int  # Number in the test text; 0 where its tokens lose something of it.
    unknown: float | None = None  # Percent of unknown tokens in `test`; None if there are none.

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.tokenizer.get_vocab_size()


def tokenized(data: str, kind: Literal["words", "characters", "bpe"], vocabulary: int) -> Tokenized:
    """A text set in tokens learned on its training split; `vocabulary` limits words and byte pairs.

    Of several documents each ends with END in byte pairs, and otherwise with a newline, added where
    there is none. Words that occur once are the unknown token, so that it is learned, unless the
    text has its own <unk> for rare words. Prints the shares of unknown tokens; InputError where a
    text is mostly unknown, and as from `documents` and the tokenizers.
    """
    train, test = (documents(data, split) for split in ("train", "test"))
    several = max(len(train), len(test)) > 1
    if several and kind != "bpe":
        train, test = (
            replace(docs, text=[text.removesuffix("\n") + "\n" for text in docs.text])
            for docs in (train, test)
        )
    if kind == "words":
        tokenizer = words(train, 1 if contains(train, "<unk>") else 2, vocabulary)
    elif kind == "characters":
        tokenizer = characters(train)
    else:
        tokenizer = bpe(train, vocabulary)
    end = tokenizer.token_to_id(END) if several and kind == "bpe" else None
    x, y = (_joined(*encode(tokenizer, docs), end) for docs in (train, test))
    check_unknown(tokenizer, x, y)
    share = unknown_share(tokenizer, y)
    lost = kind == "words" or share or (contains(test, END) and kind == "bpe")
    return Tokenized(tokenizer, x, y, 0 if lost else sum(map(len, test.text)), share)


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
        raise InputError(
            f"A text of {len(tokens)} tokens does not fill a row of {length}: choose a shorter "
            "length, or more text."
        )
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

    def resident(self) -> np.ndarray:
        return np.asarray(self.tokens, np.int32)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[np.ndarray]:
        for step in itertools.count(start):
            rng = np.random.default_rng((seed % 2**64, step))
            yield rng.integers(len(self.tokens) - self.length, size=self.batch_size, dtype=np.int32)

    def batch(self, resident: jax.Array, fed: jax.Array) -> dict[str, jax.Array]:
        return {"tokens": _windows(resident, fed, self.length)}


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

    def resident(self) -> np.ndarray:
        return np.asarray(self.tokens, np.int32)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[Tree]:
        begins = (np.arange(self.batch_size) * ((len(self.tokens) - 1) // self.batch_size)).astype(
            np.int32
        )
        for step in itertools.count(start):
            at = step % self.steps
            yield {
                "at": begins + np.int32(at * self.length),
                "first": np.full(self.batch_size, at == 0),
            }

    def batch(self, resident: jax.Array, fed: Tree) -> dict[str, jax.Array]:
        return {
            "tokens": _windows(resident, fed["at"], self.length),
            "first": sharding.over_batch(fed["first"]),
        }


def _long_enough(n: int, least: int, what: str) -> None:
    if n < least:
        raise InputError(
            f"A text of {n} tokens is too short for {what}: choose a shorter one, or more text."
        )


def _windows(tokens: jax.Array, at: jax.Array, length: int) -> jax.Array:
    return sharding.over_batch(tokens[sharding.over_batch(at)[:, None] + jnp.arange(length + 1)])
