"""Rows of tokens for encoders: of unlabelled text end to end, and of labelled texts one by one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TYPE_CHECKING

import numpy as np

from ssljax.data import described
from ssljax.data.documents import (
    AnyDocuments,
    Documents,
    documents,
    DocumentsOnDisk,
    evaluated,
    is_planned,
    report_texts,
    sample,
)
from ssljax.data.feed import Data, Rows
from ssljax.data.sources import Arrays
from ssljax.data.token_feeds import document_rows, joined, pack, Packed, PackedRows
from ssljax.data.tokenizers import (
    check_unknown,
    counts_of,
    encode,
    id_of,
    masked_bpe,
    PAD_AND_STOP,
    SPECIAL_TOKENS,
    wordpiece,
)
from ssljax.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = len(SPECIAL_TOKENS)  # Number of special tokens, which are neither masked nor drawn.
TokenKind = Literal["wordpiece", "bpe"]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of tokens (n, length), int32, that begin with [CLS], with [SEP] after each document."""

    tokenizer: "Tokenizer"
    train: np.ndarray | PackedRows  # The latter for a large text.
    test: np.ndarray
    counts: np.ndarray | None = None  # How often each token is in `train`; None to count them.

    def feed(self, batch_size: int) -> Data:
        """Whole epochs of the training rows in a seeded order, {"tokens": (batch, length)}.

        InputError for a batch that is larger than the set.
        """
        if isinstance(self.train, PackedRows):
            return Packed(self.train, batch_size)
        return Rows({"tokens": self.train}, batch_size)

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.tokenizer.get_vocab_size()

    @property
    def mask(self) -> int:
        """The id of [MASK]."""
        return id_of(self.tokenizer, "[MASK]")


def masked_tokenizer(docs: AnyDocuments, kind: TokenKind, vocabulary: int) -> "Tokenizer":
    """A tokenizer learned on `docs`, whose first tokens are `SPECIAL_TOKENS`."""
    return {"wordpiece": wordpiece, "bpe": masked_bpe}[kind](docs, vocabulary)


def token_rows(data: str, kind: TokenKind, vocabulary: int, length: int) -> TokenRows:
    """Rows of a text set, its documents end to end, in tokens learned on its training split.

    The tokens of a large text are learned on a `sample` of it. Prints what was read and the shares
    of unknown tokens. InputError where a text is mostly unknown, and as from `documents` and the
    tokenizers.
    """
    if is_planned(data):
        tokenizer = described.tokenizer(vocabulary, SPECIAL_TOKENS)
        tokens, tested = described.tokens()
        rows = PackedRows(tokens, length, id_of(tokenizer, "[CLS]"))
        test = PackedRows(tested, length, rows.cls)[:]
        return TokenRows(tokenizer, rows, test, np.ones(vocabulary, np.int64))
    train, held_out = (documents(data, split) for split in ("train", "test"))
    test = evaluated(held_out)
    tokenizer = masked_tokenizer(sample(train), kind, vocabulary)
    cls, sep = id_of(tokenizer, "[CLS]"), id_of(tokenizer, "[SEP]")

    def packed(docs: Documents) -> np.ndarray:
        return np.insert(pack(*encode(tokenizer, docs), length - 1, sep), 0, cls, axis=1)

    y = packed(test)
    if isinstance(train, DocumentsOnDisk):
        tokens, counts = joined(tokenizer, train, sep)
        x: np.ndarray | PackedRows = PackedRows(tokens, length, cls)
    else:
        x = packed(train)
        counts = counts_of(tokenizer, x)
    report_texts(train, held_out, [len(rows) * (length - 1) for rows in (x, y)])
    check_unknown(tokenizer, counts, counts_of(tokenizer, y))
    return TokenRows(tokenizer, x, y, counts)


def word_starts(
    tokenizer: "Tokenizer", rows: np.ndarray | PackedRows, share: float, most: int = 2**16
) -> np.ndarray:
    """Which tokens of the vocabulary begin a word, (vocabulary,) bool, for whole-word masking.

    InputError where most tokens of the first `most` rows are in words that are longer than the
    `share` of a row which is masked, so that they would never be masked: a text without spaces.
    """
    inside = tokenizer.model.continuing_subword_prefix
    tokens = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    starts = np.array([not token.startswith(inside) for token in tokens])
    rows = rows[:most]
    first = starts[rows]
    first[:, 0] = True
    lengths = np.diff(np.append(np.flatnonzero(first), first.size))
    budget = max(1, round(share * rows.shape[1]))
    if lengths[lengths > budget].sum() > 0.5 * lengths.sum():
        raise InputError(
            f"Most tokens are in words of more than the {budget} tokens of a row that are masked, "
            "as in a text without spaces: leave out --whole-words, or choose a larger --length."
        )
    return starts


def labelled_rows(tokenizer: "Tokenizer", docs: Documents, length: int) -> Arrays:
    """A row of each document, cut or padded, as a set whose images are rows (n, length) int32.

    With [CLS] and [SEP] around each document, or </s> at its end, where the tokenizer has them; -1
    where there is no token.
    """
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    sep = tokenizer.token_to_id(PAD_AND_STOP[1]) if sep is None else sep
    rows = document_rows(*encode(tokenizer, docs), length, -1, cls, sep)
    labels = np.zeros(len(rows), np.int32) if docs.labels is None else docs.labels
    return Arrays(rows, labels, list(docs.class_names))


def labelled_splits(
    tokenizer: "Tokenizer", docs: Mapping[str, Documents], length: int
) -> tuple[Arrays, Arrays]:
    """`labelled_rows` of docs["train"] and docs["test"].

    Prints what was read and the shares of unknown tokens; InputError where a text is mostly
    unknown.
    """
    train, test = (labelled_rows(tokenizer, docs[split], length) for split in ("train", "test"))
    cure = "give --tokens bpe, or with --pretrained a run that was trained on such text or with it"
    report_texts(docs["train"], docs["test"], [int(np.sum(x.image >= 0)) for x in (train, test)])
    counts, tested = (counts_of(tokenizer, x.image) for x in (train, test))
    check_unknown(tokenizer, counts, tested, cure)
    return train, test
