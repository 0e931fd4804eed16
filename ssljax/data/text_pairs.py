"""Texts for an encoder and decoder: pairs of an input and its target, and rows to corrupt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import functools
import pathlib
from typing import Any, TYPE_CHECKING

import numpy as np

from ssljax.data import described, sources
from ssljax.data.documents import (
    Documents,
    documents,
    DocumentsOnDisk,
    evaluated,
    is_planned,
    labelled_documents,
    report_texts,
    sample,
)
from ssljax.data.folders import split_of
from ssljax.data.text_files import kind_of, read_pairs
from ssljax.data.token_feeds import document_rows, joined, pack, PackedRows
from ssljax.data.token_rows import TokenRows
from ssljax.data.tokenizers import (
    check_unknown,
    counts_of,
    encode,
    id_of,
    PAD_AND_STOP,
    SENTINELS,
    text_to_text,
)
from ssljax.errors import InputError
from ssljax.fingerprint import reported
from ssljax.processes import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Lists of words in another order, whose targets are exact: GENERATED[name](words).
GENERATED = {"reverse": lambda words: words[::-1], "sort": sorted}
WORDS = """
apple boat cloud door eagle field grass house island juice king lemon mouse night ocean piano queen
river stone table uncle violin window yellow zebra
"""
PAIRS = {"train": 20_000, "test": 1_000}  # Of a generated set.
SUFFIXES = (".tsv", ".jsonl")


@dataclass(frozen=True, eq=False)
class TextPairs:
    """Inputs and the target of each, whose class it is named after where the set has classes."""

    text: list[str]
    targets: list[str]
    labels: np.ndarray | None = None  # (n,) int32
    class_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def files(self) -> list[str]:
        """What a run's record has of the content, in addition to the inputs."""
        return self.targets

    def select(self, at: np.ndarray) -> "TextPairs":
        return TextPairs(
            [self.text[i] for i in at],
            [self.targets[i] for i in at],
            None if self.labels is None else self.labels[at],
            self.class_names,
        )

    @property
    def inputs(self) -> Documents:
        """The inputs, with their classes."""
        return Documents(self.text, self.labels, self.class_names)

    @property
    def texts(self) -> Documents:
        """Inputs and targets."""
        return Documents([*self.text, *self.targets])


def _form(pairs: TextPairs) -> dict[str, Any]:
    return {"classes": pairs.class_names}


def _absent(form: Mapping[str, Any], count: int, seed: int) -> TextPairs:
    """Pairs that stand in for others: the same text for all, with its class where there are any."""
    texts, classes = [described.known_text(seed)] * count, form["classes"]
    if not classes:
        return TextPairs(texts, texts)
    labels = np.arange(count, dtype=np.int32) % len(classes)
    return TextPairs(texts, [classes[i] for i in labels], labels, classes)


@reported("pairs of texts", _form, _absent)
def text_pairs(data: str, split: str) -> TextPairs:
    """The "train" or "test" split of a set of pairs; InputError for what is none.

    `data` is one of

    - "reverse" or "sort": generated, lists of 2 to 8 of 25 words, and the list reversed or sorted;
    - a .tsv or .jsonl file (`read_pairs`), of which every tenth pair, from the first, is the test
      split;
    - a folder of such files, each named after its split (train, and test or valid);
    - a text set with classes (`labelled_documents`): the target is the name of the class.

    DATA:validation never reads the test split: its "test" is a tenth of the training pairs.
    """
    if split not in PAIRS:
        raise InputError(f"{data} has no {split} split; it has {', '.join(PAIRS)}.")
    whole = sources.without_validation(data)
    if whole:
        pairs = text_pairs(whole, "train")
        labels = np.zeros(len(pairs), np.int32) if pairs.labels is None else pairs.labels
        return pairs.select(sources.validation_indices(data, labels)[split])
    path = pathlib.Path(data).expanduser()
    if data in GENERATED and not path.exists():
        return _generated(data, split)
    if path.is_file() and kind_of(path) in SUFFIXES:
        pairs = _pairs([path])
        if len(pairs) < 2:
            raise InputError(f"{path} holds one pair, which makes no two splits: give more.")
        return pairs.select(np.flatnonzero((np.arange(len(pairs)) % 10 == 0) == (split == "test")))
    if path.is_dir() and (splits := _split_files(path)):
        return _pairs(splits[split])
    if path.is_file() or (path.suffix and not path.exists()):
        raise InputError(
            f"{data} is no file of pairs: give a .tsv of inputs and targets with a tab between, or "
            'a .jsonl of objects such as {"input": "...", "target": "..."}.'
        )
    docs = labelled_documents(data, split)
    assert docs.labels is not None  # Or labelled_documents had refused them.
    targets = [docs.class_names[i] for i in docs.labels]
    return TextPairs(docs.text, targets, docs.labels, docs.class_names)


def _generated(name: str, split: str) -> TextPairs:
    """Generated lists and their targets, of which none is in both splits."""
    n = PAIRS["train"]
    chosen = _lists()[:n] if split == "train" else _lists()[n:]
    targets = [" ".join(GENERATED[name](list(words))) for words in chosen]
    return TextPairs([" ".join(words) for words in chosen], targets)


@functools.cache
def _lists() -> list[tuple[str, ...]]:
    """Lists of 2 to 8 words, drawn once and for all, each once, in a random order."""
    rng = np.random.default_rng(0)
    found: dict[tuple[str, ...], None] = {}
    names = WORDS.split()
    while len(found) < sum(PAIRS.values()):
        at = rng.integers(len(names), size=rng.integers(2, 9))
        found[tuple(names[i] for i in at)] = None
    every = list(found)  # Lists of two words are few, and most of them drawn early.
    return [every[i] for i in rng.permutation(len(every))]


def _pairs(files: Sequence[pathlib.Path]) -> TextPairs:
    found = [pair for file in files for pair in read_pairs(file)]
    return TextPairs([a for a, _ in found], [b for _, b in found])


def _split_files(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The files of pairs of a folder by split; none where it has no such files.

    InputError where one is of no split, or a split is missing.
    """
    every = [f for f in sorted(folder.iterdir()) if f.is_file() and kind_of(f) in SUFFIXES]
    split = {f: split_of(f.name.partition(".")[0]) for f in every}
    # A .jsonl alone, named as no split, may be one of texts with classes.
    if not any(kind_of(f) == ".tsv" or split[f] for f in every):
        return {}
    found: dict[str, list[pathlib.Path]] = {}
    for file in every:
        found.setdefault(split[file], []).append(file)
    names = {s: ", ".join(f.name for f in files) for s, files in found.items()}
    test = "test" if "test" in found else "val"
    if "train" not in found or test not in found or not names.keys() <= {"train", "test", "val"}:
        raise InputError(
            f"{folder} holds {', '.join(names.values())}: name the files of pairs train and test, "
            "as in train.tsv and test.tsv, and keep others elsewhere."
        )
    unused = f"; {names['val']} left out" if test == "test" and "val" in found else ""
    say(f"{folder}: {names['train']} to train; {names[test]} to test{unused}")
    return {"train": found["train"], "test": found[test]}


def text_rows(data: str, vocabulary: int, length: int) -> TokenRows:
    """Rows (n, length) of a text set, its documents end to end, in the tokens of `text_to_text`.

    Learned on the training split, of a large text on a `sample` of it; a document ends with a
    newline where there are several. Prints what was read. InputError as from `documents` and the
    tokenizers.
    """
    if is_planned(data):
        tokenizer = described.tokenizer(vocabulary, PAD_AND_STOP)
        tokenizer.add_special_tokens(list(SENTINELS))
        tokens, tested = described.tokens()
        counts = np.ones(tokenizer.get_vocab_size(), np.int64)
        rows = (PackedRows(x, length, None) for x in (tokens, tested))
        return TokenRows(tokenizer, next(rows), next(rows)[:], counts)
    train, held_out = (documents(data, split) for split in ("train", "test"))
    test = evaluated(held_out)
    if max(len(train), len(held_out)) > 1:
        train, test = train.ending("\n"), test.ending("\n")
    tokenizer = text_to_text(sample(train), vocabulary)
    tokens, counts = joined(tokenizer, train)
    y = pack(*encode(tokenizer, test), length)
    if isinstance(train, DocumentsOnDisk):
        x: np.ndarray | PackedRows = PackedRows(tokens, length, None)
    else:
        x = pack(tokens, np.array([0, len(tokens)]), length)
    report_texts(train, held_out, [len(rows) * length for rows in (x, y)])
    return TokenRows(tokenizer, x, y, counts)


def pair_rows(
    tokenizer: "Tokenizer", pairs: TextPairs, length: int, target_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of inputs (n, length) and targets (n, target_length), and which targets are whole.

    Each ends with the end of a text, where it is cut too, and is padded with -1.
    """
    stop = id_of(tokenizer, PAD_AND_STOP[1])
    tokens, offsets = encode(tokenizer, Documents(pairs.text))
    inputs = document_rows(tokens, offsets, length, -1, None, stop)
    tokens, offsets = encode(tokenizer, Documents(pairs.targets))
    targets = document_rows(tokens, offsets, target_length, -1, None, stop)
    return inputs, targets, np.diff(offsets) < target_length


def pair_splits(
    tokenizer: "Tokenizer", pairs: dict[str, TextPairs], length: int, target_length: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`pair_rows` of pairs["train"] and pairs["test"].

    Prints what was read, how many texts are cut, and the shares of unknown tokens; InputError where
    a text is mostly unknown.
    """
    found = [pair_rows(tokenizer, pairs[split], length, target_length) for split in pairs]
    sizes = [sum(int(np.sum(x >= 0)) for x in rows[:2]) for rows in found]
    report_texts(pairs["train"].texts, pairs["test"].texts, sizes)
    for split, (_, _, whole) in zip(pairs, found, strict=True):
        if not whole.all():
            say(
                f"{np.sum(~whole):,} of {len(whole):,} targets of {split} are longer than "
                f"--target-length {target_length} and cut: their answers can't be right"
            )
    counts = [np.add(*(counts_of(tokenizer, x) for x in rows[:2])) for rows in found]
    cure = "take a --pretrained that was trained on such text"
    check_unknown(tokenizer, counts[0], counts[1], cure)
    return found


def sentinel_ids(tokenizer: "Tokenizer") -> np.ndarray:
    """The ids of the tokens that stand for spans left out, in order; InputError without them."""
    return np.array([id_of(tokenizer, token) for token in SENTINELS], np.int32)
