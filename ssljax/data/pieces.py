"""Rows of WordPiece tokens for encoders: of unlabelled text end to end, and of labelled texts one by one."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from ssljax.data import text
from ssljax.data.sources import Arrays, held_out_of
from ssljax.data.text import Documents
from ssljax.errors import InputError

SPECIAL = len(text.BERT)  # The first tokens, which are neither masked nor drawn.


@dataclass(frozen=True, eq=False)
class Pieces:
    """Rows of tokens (n, length), int32, that begin with [CLS], with [SEP] after each document."""

    tokenizer: Tokenizer
    train: np.ndarray
    test: np.ndarray

    @property
    def size(self) -> int:
        """Of the vocabulary."""
        return self.tokenizer.get_vocab_size()

    @property
    def mask(self) -> int:
        return self.tokenizer.token_to_id("[MASK]")


def pieces(data: str, vocabulary: int, length: int) -> Pieces:
    """A text set as rows of documents end to end, in tokens learned on its training split; errors as of `documents`."""
    train, test = (text.documents(data, split) for split in ("train", "test"))
    tokenizer = text.wordpiece(train, vocabulary)
    cls, sep = map(tokenizer.token_to_id, ("[CLS]", "[SEP]"))
    rows = lambda docs: np.insert(
        text.pack(*text.encode(tokenizer, docs), length - 1, sep), 0, cls, axis=1
    )
    return Pieces(tokenizer, rows(train), rows(test))


def labelled(data: str, split: str) -> Documents:
    """The "train" or "test" split of a text set with classes; InputError for one without.

    "python" is then half pages of the embedded manual, and the class is which of its eight longest topics one is from;
    every fourth is for testing, and long paragraphs of those are not in the others. Training on the manual without
    labels sees them all. DATA:validation is as `documents` has it.
    """
    if whole := held_out_of(data):
        return text.held_out(labelled(whole, "train"), whole, split)
    if data != text.EMBEDDED:
        docs = text.documents(data, split)
        if docs.labels is None or not docs.class_names:
            raise InputError(
                f"{data} has no classes: give a TFDS set of labelled texts (imdb_reviews), a folder of "
                f"class folders, or {text.EMBEDDED}, which is embedded."
            )
        return docs
    topics = sorted(
        text.documents(data, "train").text + text.documents(data, "test").text,
        key=lambda t: (-len(t), t),
    )
    bodies = [topic.partition("\n\n")[2] for topic in topics[:8]]
    found = [(page, label) for label, body in enumerate(bodies) for page in half_pages(body)]
    tested = set().union(*(text.long_paragraphs(page) for page, _ in found[3::4]))
    found = (
        found[3::4]
        if split == "test"
        else [
            (text.without(page, tested), label)
            for i, (page, label) in enumerate(found)
            if i % 4 != 3
        ]
    )
    return Documents(
        [page for page, _ in found],
        np.array([label for _, label in found], np.int32),
        [topic.partition("\n")[0] for topic in topics[:8]],
    )


def half_pages(topic: str, least: int = 800) -> list[str]:
    """Whole paragraphs of at least so many characters together; what is left at the end is left out."""
    pages, page = [], ""
    for paragraph in topic.split("\n\n"):
        page = f"{page}\n\n{paragraph}".strip("\n")
        if len(page) >= least:
            pages.append(page)
            page = ""
    return pages


def labelled_rows(tokenizer: Tokenizer, docs: Documents, length: int) -> Arrays:
    """A row of each document, cut or padded, as a set whose images are rows (n, length) int32: features are of these.

    With [CLS] and [SEP] around each, where the tokenizer has them; -1 where there is no token.
    """
    cls, sep = map(tokenizer.token_to_id, ("[CLS]", "[SEP]"))
    rows = text.rows(*text.encode(tokenizer, docs), length, -1, cls, sep)
    labels = np.zeros(len(rows), np.int32) if docs.labels is None else docs.labels
    return Arrays(rows, labels, list(docs.class_names))
