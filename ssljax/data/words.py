"""Running text for word vectors: its words in lower case, subsampled for each epoch, in blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
import functools
import itertools
import re
import sys
from typing import TYPE_CHECKING
import unicodedata

import jax
from jax.sharding import Mesh
import numpy as np

from ssljax import sharding
from ssljax.data.documents import (
    AnyDocuments,
    Documents,
    documents,
    DocumentsOnDisk,
    report_texts,
    together,
)
from ssljax.data.order import order
from ssljax.data.text_files import compose
from ssljax.data.token_files import token_file
from ssljax.data.tokenizers import encode, MOSTLY, words
from ssljax.errors import InputError
from ssljax.processes import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEGMENT = 2**24  # Words of a longer text that are subsampled and shuffled at once.
# Scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
UNSPACED = (
    "\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff"
)


@functools.cache
def _marks() -> str:
    """Ranges of Unicode's marks, for a regular expression: Python's \\w doesn't match them."""
    is_mark = [unicodedata.category(chr(i)).startswith("M") for i in range(sys.maxunicode + 1)]
    edges = np.flatnonzero(np.diff(np.array([False, *is_mark, False], np.int8)))
    return "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in edges.reshape(-1, 2))


@functools.cache
def _word() -> re.Pattern[str]:
    """Letters, each with its marks (Devanagari vowels, Thai tones, accents without composed form).

    Joiners inside a word (U+200C, U+200D) belong to it.
    """
    letters, joined = r"[^\W\d_]", rf"[{_marks()}]|[\u200c\u200d](?=[^\W\d_])"
    return re.compile(rf"{letters}+(?:(?:{joined})+{letters}*)*")


def count_pattern() -> str:
    """A regular expression of words to count, scikit-learn's for all scripts.

    Two or more letters, digits, underscores and marks; in `UNSPACED` scripts each letter.
    """
    marks = _marks()
    other = rf"(?![{UNSPACED}])\w"
    return rf"[{UNSPACED}][{marks}]*|{other}(?:[{marks}]|{other})+"


def split_words(text: str) -> list[str]:
    """The words of a text in lower case and composed form (NFC): runs of letters and their marks.

    Words of scripts without spaces (Chinese, Japanese, Thai, ...) need spaces put between them.
    """
    return _word().findall(compose(text.lower()))


def plain_words(data: str) -> AnyDocuments:
    """All texts of a set, of both splits, as `split_words` with spaces between."""
    docs = together([documents(data, split) for split in ("train", "test")])
    if isinstance(docs, Documents):
        return Documents([" ".join(split_words(t)) for t in docs.text])

    def read() -> Iterator[Iterator[str]]:
        return ((" ".join(split_words(part)) + " " for part in parts) for parts in docs.parts())

    return docs.derived("plain words 1", read, docs.lengths)


def vocabulary(data: str, min_count: int) -> tuple["Tokenizer", np.ndarray, np.ndarray, list[str]]:
    """A tokenizer of the words of a set, its text (n,), and each word's count (v,) and name.

    The text is int32, or of a large set uint16 or uint32 in a file. Word i is token i + 1 of the
    tokenizer. Words that occur less than `min_count` times, its unknown token, are left out of the
    text; their share is printed. InputError where they are most of the text.
    """
    docs = plain_words(data)
    tokenizer = words(docs, min_count, newline="")
    if isinstance(docs, DocumentsOnDisk):
        tokens, _, counts = token_file(tokenizer, docs, known=True)
    else:
        tokens = encode(tokenizer, docs)[0]
        counts = np.bincount(tokens, minlength=1)
        tokens = tokens[tokens > 0] - 1
    rare = 100 * counts[0] / counts.sum() if counts.sum() else 100.0
    report_texts(docs, None, [len(tokens)])
    say(f"left out: {rare:.2f} % of the text, words that occur less than {min_count} times")
    if rare > MOSTLY:
        raise InputError(
            f"{rare:.1f} % of the words of {data} occur less than {min_count} times: choose a "
            "smaller --min-count, or more text, or put spaces between the words of a script that "
            "is written without."
        )
    count = counts[1:]
    names = [tokenizer.id_to_token(i + 1) or "" for i in range(len(count))]
    return tokenizer, tokens, count, names


def keep_probability(count: np.ndarray, sample: float) -> np.ndarray:
    """Probability that an occurrence of each word is kept, as in word2vec.c; 1 if `sample` is 0.

    Mikolov et al., 2013, arXiv:1310.4546, eq. 5, have sqrt(t / f); the program has
    sqrt(t / f) + t / f.
    """
    if not sample:
        return np.ones(len(count))
    ratio = sample / np.maximum(count / count.sum(), 1e-300)
    return np.minimum(1, np.sqrt(ratio) + ratio)


@dataclass(frozen=True, eq=False)
class WordBlocks:
    """Blocks of `length` words and `window` more on either side, for word vectors.

    {"words": (batch_size, length + 2 window) int32}. In each epoch frequent words are left out by
    chance (`keep_probability`) before blocks are cut and shuffled, as a function of (seed, step).
    An epoch takes `steps` steps. A text of more than `SEGMENT` words is cut into segments of equal
    size, which come one after the other, in another order in each epoch. Deviation: windows reach
    over the ends of sentences and documents. InputError where the text is too short for one step.
    """

    tokens: np.ndarray
    count: np.ndarray  # Occurrences of each word of the vocabulary.
    batch_size: int
    length: int
    window: int
    sample: float

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError(
                f"A text of about {self.expected} words after subsampling is too short for a step "
                f"of {self.batch_size} blocks of {self.length}: choose a smaller --batch-size, or "
                "more text."
            )

    @functools.cached_property
    def expected(self) -> int:
        """Words of an epoch, on average."""
        return int(self.count @ keep_probability(self.count, self.sample))

    @property
    def segments(self) -> int:
        return max(1, -(-len(self.tokens) // SEGMENT))

    @property
    def steps_of_segment(self) -> int:
        return self.expected // self.segments // (self.batch_size * self.length)

    @property
    def steps(self) -> int:
        return self.segments * self.steps_of_segment

    def resident(self) -> tuple:
        return ()

    def segment(self, seed: int, number: int) -> np.ndarray:
        """The text of the segment that is read as this number, from 0 on, subsampled."""
        epoch, at = divmod(number, self.segments)
        i, n = int(order(seed, epoch, self.segments)[at]), len(self.tokens)
        whole = self.tokens[n * i // self.segments : n * (i + 1) // self.segments]
        rng = np.random.default_rng((seed % 2**64, number, 1))
        stays = keep_probability(self.count, self.sample).astype(np.float32)[whole]
        return whole[rng.random(len(whole), np.float32) < stays]

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[np.ndarray]:
        inside, now = np.arange(-self.window, self.length + self.window), -1
        text, blocks = self.tokens[:0], np.empty(0, np.int64)
        for step in itertools.count(start):
            number, at = divmod(step, self.steps_of_segment)
            if number != now:
                now, text = number, self.segment(seed, number)
                blocks = order(seed, number, self.steps_of_segment * self.batch_size)
                # Blocks start at a random word, so that the rest that is left out differs.
                first = np.random.default_rng((seed % 2**64, number, 2)).integers(len(text))
                blocks = blocks.astype(np.int64) * self.length + first
            begin = blocks[at * self.batch_size : (at + 1) * self.batch_size, None]
            # After its end the text starts again.
            yield text[(begin + inside) % len(text)].astype(np.int32)

    def batch(self, resident: tuple, fed: jax.Array) -> dict[str, jax.Array]:
        return {"words": sharding.over_batch(fed)}
