"""Rows of tokens for encoders: of unlabelled text end to end, and of labelled texts one by one."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from ssljax.data.documents import Documents, documents
from ssljax.data.sources import Arrays
from ssljax.data.token_feeds import document_rows, pack
from ssljax.data.tokenizers import BERT, encode, wordpiece

SPECIAL = len(BERT)  # The first tokens, which are neither masked nor drawn.


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of tokens (n, length), int32, that begin with [CLS], with [SEP] after each document."""

    tokenizer: Tokenizer
    train: np.ndarray
    test: np.ndarray

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.tokenizer.get_vocab_size()

    @property
    def mask(self) -> int:
        """The id of [MASK]."""
        return self.tokenizer.token_to_id("[MASK]")


def token_rows(data: str, vocabulary: int, length: int) -> TokenRows:
    """Rows of a text set, its documents end to end, in tokens learned on its training split.

    InputError as from `documents`.
    """
    train, test = (documents(data, split) for split in ("train", "test"))
    tokenizer = wordpiece(train, vocabulary)
    cls, sep = map(tokenizer.token_to_id, ("[CLS]", "[SEP]"))

    def rows(docs: Documents) -> np.ndarray:
        return np.insert(pack(*encode(tokenizer, docs), length - 1, sep), 0, cls, axis=1)

    return TokenRows(tokenizer, rows(train), rows(test))


def labelled_rows(tokenizer: Tokenizer, docs: Documents, length: int) -> Arrays:
    """A row of each document, cut or padded, as a set whose images are rows (n, length) int32.

    With [CLS] and [SEP] around each document, where the tokenizer has them; -1 where there is no
    token.
    """
    cls, sep = map(tokenizer.token_to_id, ("[CLS]", "[SEP]"))
    rows = document_rows(*encode(tokenizer, docs), length, -1, cls, sep)
    labels = np.zeros(len(rows), np.int32) if docs.labels is None else docs.labels
    return Arrays(rows, labels, list(docs.class_names))
