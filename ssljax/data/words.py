"""Running text for word vectors: its plain words, subsampled and cut into blocks anew each epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
import functools
import itertools
import re

import jax
from jax.sharding import Mesh
import numpy as np
from tokenizers import Tokenizer

from ssljax import sharding
from ssljax.data.order import order
from ssljax.data.documents import Documents, documents
from ssljax.data.tokenizers import encode, words
from ssljax.errors import InputError


def plain_words(data: str) -> Documents:
    """All texts of a set, of both splits, as words in lower case, without marks and digits, with spaces between."""
    text = [text for split in ("train", "test") for text in documents(data, split).text]
    return Documents([" ".join(re.findall(r"[^\W\d_]+", text.lower())) for text in text])


def vocabulary(data: str, min_count: int) -> tuple[Tokenizer, np.ndarray, np.ndarray, list[str]]:
    """A tokenizer of the plain words of a set, its text (n,) int32, and the count (v,) and name of each word in that.

    Word i is token i + 1: words that occur less than `min_count` times, the unknown, are left out of the text.
    InputError where none is left.
    """
    docs = plain_words(data)
    tokenizer = words(docs, min_count, newline="")
    tokens = encode(tokenizer, docs)[0]
    tokens = tokens[tokens > 0] - 1
    if not len(tokens):
        raise InputError(
            f"No word of {data} occurs {min_count} times: choose a smaller --min-count, or more text."
        )
    count = np.bincount(tokens)
    return tokenizer, tokens, count, [tokenizer.id_to_token(i + 1) for i in range(len(count))]


def keep_probability(count: np.ndarray, sample: float) -> np.ndarray:
    """How likely an occurrence of each word stays in the text, as word2vec.c has it; 1 for all where `sample` is 0.

    Mikolov et al., 2013, arXiv:1310.4546, eq. 5, have sqrt(t / f); the program sqrt(t / f) + t / f.
    """
    if not sample:
        return np.ones(len(count))
    ratio = sample / np.maximum(count / count.sum(), 1e-300)
    return np.minimum(1, np.sqrt(ratio) + ratio)


@dataclass(frozen=True, eq=False)
class WordBlocks:
    """Blocks of `length` words with `window` more on either side: {"words": (batch_size, length + 2 window) int32}.

    In each epoch frequent words are left out by chance (`keep_probability`), before blocks are cut and shuffled; all by
    (seed, step) alone. An epoch takes `steps` steps. Deviation: windows reach over the ends of sentences and documents.
    InputError where the text is too short for one step.
    """

    tokens: np.ndarray
    count: np.ndarray  # Of each word of the vocabulary.
    batch_size: int
    length: int
    window: int
    sample: float

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError(
                f"A text of about {self.expected} words after subsampling is too short for a step of "
                f"{self.batch_size} blocks of {self.length}: choose a smaller --batch-size, or more text."
            )

    @functools.cached_property
    def expected(self) -> int:
        return int(self.count @ keep_probability(self.count, self.sample))

    @property
    def steps(self) -> int:
        return self.expected // (self.batch_size * self.length)

    def resident(self) -> tuple:
        return ()

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The text of an epoch."""
        rng = np.random.default_rng((seed % 2**64, epoch, 1))
        stays = keep_probability(self.count, self.sample).astype(np.float32)[self.tokens]
        return self.tokens[rng.random(len(self.tokens), np.float32) < stays]

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[np.ndarray]:
        inside, now = np.arange(-self.window, self.length + self.window), None
        for step in itertools.count(start):
            epoch, at = divmod(step, self.steps)
            if epoch != now:
                now, text = epoch, self.epoch(seed, epoch)
                blocks = (
                    order(seed, epoch, self.steps * self.batch_size).astype(np.int64) * self.length
                )
                blocks += np.random.default_rng((seed % 2**64, epoch, 2)).integers(
                    len(text)
                )  # What is left over differs.
            begin = blocks[at * self.batch_size : (at + 1) * self.batch_size, None]
            # Behind its end the text begins again.
            yield text[(begin + inside) % len(text)].astype(np.int32)

    def batch(self, resident: tuple, fed: jax.Array) -> dict[str, jax.Array]:
        return {"words": sharding.over_batch(fed)}
