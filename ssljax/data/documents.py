"""Documents by name: the embedded manual of Python, text files, folders, and TFDS sets."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
import hashlib
import os
import pathlib
import re
from typing import Any

import numpy as np

from ssljax.data import cache, described, sources, tfds
from ssljax.data.folders import find_files, is_list, is_of_another_kind, split_of, TEXTS
from ssljax.data.text_files import (
    compose,
    is_compressed,
    kind_of,
    read_documents,
    sizes_and_times,
    text_parts,
)
from ssljax.errors import InputError
from ssljax.fingerprint import reported
from ssljax.processes import say

EMBEDDED = "python"
IN_MEMORY = 100_000_000  # Bytes of a set above which its texts stay on the disk,
SAMPLE = 100_000_000  # of whose characters tokenizers are learned on about so many, evenly spread,
EVALUATED = 1_000_000  # and of whose held-out text so many characters are evaluated.


@dataclass(frozen=True, eq=False)
class Documents:
    """Texts, and the class of each where the set has classes."""

    text: list[str]
    labels: np.ndarray | None = None  # (n,) int32
    class_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def lengths(self) -> np.ndarray:
        """Characters of each document."""
        return np.array([len(text) for text in self.text], np.int64)

    def parts(self) -> Iterator[Iterator[str]]:
        """The documents, each in parts that have the tokens of the whole."""
        return (text_parts([text]) for text in self.text)

    def select(self, at: np.ndarray) -> "Documents":
        labels = None if self.labels is None else self.labels[at]
        return replace(self, text=[self.text[i] for i in at], labels=labels)

    def tenth(self, last: bool) -> "Documents":
        """The last tenth of each text, in characters, or all but that."""
        cuts = [int(len(text) * 0.9) for text in self.text]
        return replace(
            self,
            text=[text[cut:] if last else text[:cut] for text, cut in zip(self.text, cuts)],
        )

    def ending(self, end: str) -> "Documents":
        """The documents with `end` at the end of each, added where it isn't there."""
        return replace(self, text=[text.removesuffix(end) + end for text in self.text])


@dataclass(frozen=True, eq=False)
class DocumentsOnDisk:
    """Texts of more than `IN_MEMORY` bytes, which are read each time they are needed.

    `read()` gives the documents, each in parts (`text_parts`). What is made of them is cached by
    `key`.
    """

    read: Callable[[], Iterator[Iterator[str]]]
    lengths: np.ndarray  # Characters of each document, (n,) int64.
    key: str
    files: str  # What stands for the content in a run's record.
    labels: np.ndarray | None = None  # (n,) int32
    class_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lengths)

    def parts(self) -> Iterator[Iterator[str]]:
        return self.read()

    def derived(self, what: str, read: Callable, lengths: np.ndarray) -> "DocumentsOnDisk":
        """The same documents in another form."""
        key, files = (f"{x}\n{what}" for x in (self.key, self.files))
        return replace(self, read=read, lengths=lengths, key=key, files=files)

    def select(self, at: np.ndarray) -> "DocumentsOnDisk":
        """The documents at sorted indices."""
        chosen = np.zeros(len(self), bool)
        chosen[at] = True

        def read() -> Iterator[Iterator[str]]:
            return (parts for i, parts in enumerate(self.read()) if chosen[i])

        what = f"documents {hashlib.sha256(chosen.tobytes()).hexdigest()[:16]}"
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self.derived(what, read, self.lengths[chosen]), labels=labels)

    def tenth(self, last: bool) -> "DocumentsOnDisk":
        cuts = (self.lengths * 0.9).astype(np.int64)

        def read() -> Iterator[Iterator[str]]:
            for parts, cut in zip(self.read(), cuts.tolist()):
                yield _from(parts, cut) if last else _until(parts, cut)

        return self.derived(f"last tenth {last}", read, self.lengths - cuts if last else cuts)

    def ending(self, end: str) -> "DocumentsOnDisk":
        return self.derived(
            f"ending {end!r}",
            lambda: (_ended(parts, end) for parts in self.read()),
            self.lengths,
        )

    def sample(self) -> "DocumentsOnDisk":
        """About `SAMPLE` characters: parts of the documents, evenly spread."""
        share = SAMPLE / max(1, self.lengths.sum())
        if share >= 1:
            return self

        def read() -> Iterator[Iterator[str]]:
            taken, before = 0, 0
            for parts in self.read():
                chosen = []
                for part in parts:
                    before += len(part)
                    if taken + len(part) <= before * share:
                        taken += len(part)
                        chosen.append(part)
                yield iter(chosen)

        return self.derived(f"sample {SAMPLE}", read, (self.lengths * share).astype(np.int64))


AnyDocuments = Documents | DocumentsOnDisk


def _until(parts: Iterator[str], cut: int) -> Iterator[str]:
    for part in parts:
        if cut <= 0:
            return
        yield part[:cut]
        cut -= len(part)


def _from(parts: Iterator[str], cut: int) -> Iterator[str]:
    for part in parts:
        if cut < len(part):
            yield part[max(cut, 0) :]
        cut -= len(part)


def _ended(parts: Iterator[str], end: str) -> Iterator[str]:
    last = ""
    for part in parts:
        if last:
            yield last
        last = part
    yield last.removesuffix(end) + end


def sample(docs: AnyDocuments) -> AnyDocuments:
    """What a tokenizer is learned on: all of the documents, or `DocumentsOnDisk.sample`.

    Says which.
    """
    if isinstance(docs, Documents):
        return docs
    part = docs.sample()
    if part is not docs:
        say(
            f"tokenizer: learned on {part.lengths.sum():,} of {docs.lengths.sum():,} characters, "
            "evenly spread over the training texts"
        )
    return part


def report_texts(train: AnyDocuments, test: AnyDocuments | None, tokens: Sequence[int]) -> None:
    """Says what is read: numbers of texts, characters and tokens, and what isn't evaluated.

    `tokens` are the numbers of those that are trained on and evaluated on.
    """
    lines = []
    sets = [docs for docs in (train, test) if docs is not None]
    for docs, use, n in zip(sets, ("to learn from", "held out"), tokens):
        size = f"{docs.lengths.sum():,} characters"
        lines.append(f"{len(docs):,} {use} ({size}, {n:,} tokens)")
    if isinstance(test, DocumentsOnDisk) and test.lengths.sum() > EVALUATED:
        lines[1] += f", of which {EVALUATED:,} characters are evaluated"
    say(f"texts: {'; '.join(lines)}")


def evaluated(docs: AnyDocuments) -> Documents:
    """What is evaluated of held-out documents: all, or `EVALUATED` characters of those on a disk.

    Those are of every k-th document, from the first, k the number of such parts in the whole; the
    last one is cut.
    """
    if isinstance(docs, Documents):
        return docs
    every, left, text = max(1, int(docs.lengths.sum()) // EVALUATED), EVALUATED, []
    for i, parts in enumerate(docs.parts()):
        if i % every == 0 and left > 0:
            text.append("".join(_until(parts, left)))
            left -= len(text[-1])
        if left <= 0:
            break
    labels = None if docs.labels is None else docs.labels[::every][: len(text)]
    return Documents(text, labels, docs.class_names)


@reported("texts")
def documents(data: str, split: str) -> AnyDocuments:
    """The "train" or "test" split of a text set, in Unicode's composed form (NFC).

    Sets of more than `IN_MEMORY` bytes stay on the disk. InputError says what is wrong with the
    name, the set or a file. `data` is one of

    - "python": embedded, the reference manual of the running Python; a tenth of its topics is the
      test split;
    - a text file in UTF-8, or in UTF-16 with its mark: its first 90 % of characters, and the rest;
    - a .jsonl file with a field "text" in each line, or a .parquet file with such a column: every
      tenth document, from the first, is the test split;
    - a folder of .txt, .jsonl or .parquet files, of which splits and classes are found as
      `ssljax/data/folders.py` says; or FOLDER:NAME, as there (aclImdb:unsupervised);
    - X, or its folder, where X.train.txt, X.valid.txt and X.test.txt are files, or X_train.txt and
      so on, or train.txt (this set has the split "valid" too);
    - a prepared TFDS set with texts, and its own splits; or NAME:SPLIT, to learn from that split
      without its classes (the test split is the set's own, or where it has no other, a tenth);
    - several of these with commas between them.

    .txt and .jsonl files may be compressed, as .gz or .zst.

    DATA:validation never reads the test split, so that settings can be chosen by it: its "test" is
    a tenth of each class of the training texts (of all texts where there are no classes, or the
    last tenth of each text where they are fewer than five), its "train" the rest.
    """
    whole = sources.without_validation(data)
    root, named = _root_and_name(whole or data)
    if (
        root is not None
        and not _splits(root)
        and (docs := _folder(root, split, named, bool(whole)))
    ):
        return docs
    if whole:
        return held_out_documents(documents(whole, "train"), whole, split)
    path = pathlib.Path(data).expanduser()
    if data == EMBEDDED:
        return Documents(_python(split))
    if path.is_file():
        return _file(path, data, split)
    if "," in data:
        return together([documents(part.strip(), split) for part in data.split(",")])
    if splits := _splits(path):
        say(f"{data}: {', '.join(f'{file.name} to {s}' for s, file in splits.items())}")
        return read_texts([splits[_known(data, split, splits)]])
    if path.suffix or (os.sep in data and not tfds.has_config(data)):
        raise InputError(f"There is no file or folder {data}: check the path given as --data.")
    return _tfds(data, split)


def is_planned(data: str) -> bool:
    """Whether a text is replaced by a stand-in, to plan a program, which is said, or for the
    features of a run whose text isn't here.

    The tokens of a large one would take hours to learn, of which a step shows nothing but the size
    of the vocabulary.
    """
    if not described.planning() and not described.replaces_text():
        return False
    try:
        if isinstance(documents(data, "train"), Documents) or not described.planning():
            return False
        why = "is large"
    except InputError:
        if described.replaces_text(data):
            return True
        why = "isn't here"
    say(
        f"{data} {why}: planned with a vocabulary of --vocabulary tokens, and as too long a text "
        "to lie on the devices"
    )
    return True


def _form(docs: Documents) -> dict[str, Any]:
    return {"classes": docs.class_names}


def _absent(form: Mapping[str, Any], count: int, seed: int) -> Documents:
    """Texts with classes that stand in for others: the same one for all."""
    classes = form["classes"]
    labels = np.arange(count, dtype=np.int32) % len(classes)
    return Documents([described.known_text(seed)] * count, labels, classes)


@reported("texts", _form, _absent)
def labelled_documents(data: str, split: str) -> Documents:
    """The "train" or "test" split of a text set with classes; InputError for a set without classes.

    Always in memory. "python" has half pages of the embedded manual, whose class is which of the
    manual's eight longest topics they are from; every fourth is in the test split, whose long
    paragraphs are removed from the training split. (A language model trained on the manual has seen
    both.) DATA:validation works as in `documents`.
    """
    if data == EMBEDDED:
        return _half_pages_by_topic(split)
    if sources.without_validation(data) == EMBEDDED:
        return held_out_documents(_half_pages_by_topic("train"), EMBEDDED, split)
    docs = documents(data, split)
    if docs.labels is None or not docs.class_names:
        raise InputError(
            f"{data} has no classes: give a TFDS set of labelled texts (imdb_reviews), a folder of "
            f"class folders, or {EMBEDDED}, which is embedded."
        )
    if isinstance(docs, DocumentsOnDisk):
        docs = Documents(list(map("".join, docs.parts())), docs.labels, docs.class_names)
    return docs


def _file(path: pathlib.Path, data: str, split: str) -> AnyDocuments:
    _known(data, split, ("train", "test"))
    if other := is_of_another_kind(path, TEXTS):
        raise InputError(other)
    docs = read_texts([path])
    if kind_of(path) not in (".jsonl", ".parquet"):
        return docs.tenth(last=split == "test")
    if len(docs) < 2:
        raise InputError(
            f"{path} holds one document, which makes no two splits: give a file with more."
        )
    return docs.select(np.flatnonzero((np.arange(len(docs)) % 10 == 0) == (split == "test")))


def together(sets: Sequence[AnyDocuments]) -> AnyDocuments:
    """The documents of several sets, without their classes."""
    texts = [docs.text for docs in sets if isinstance(docs, Documents)]
    if len(texts) == len(sets):
        return Documents([text for own in texts for text in own])
    return DocumentsOnDisk(
        lambda: (parts for docs in sets for parts in docs.parts()),
        np.concatenate([docs.lengths for docs in sets]),
        "\n".join(map(identity, sets)),
        "\n".join(
            docs.files if isinstance(docs, DocumentsOnDisk) else identity(docs) for docs in sets
        ),
    )


def identity(docs: AnyDocuments) -> str:
    """What documents are cached by: a digest of their text, or the paths, sizes and times of their
    files."""
    if isinstance(docs, DocumentsOnDisk):
        return docs.key
    found = hashlib.sha256()
    for text in docs.text:
        found.update(f" {len(text)} {text}".encode())
    return found.hexdigest()


def read_texts(
    files: Sequence[pathlib.Path],
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> AnyDocuments:
    """The documents of text files, one after the other; InputError for one that can't be read.

    `labels`, (f,) int32, are those of the files, which all documents in a file have.
    """

    def read(counts: list[int] | None = None) -> Iterator[Iterator[str]]:
        for file in files:
            n = 0
            for parts in read_documents(file):
                n += 1
                yield parts
            if counts is not None:
                counts.append(n)

    try:
        size = sum(f.stat().st_size for f in files)
        key = sizes_and_times(files)
    except OSError as e:
        raise InputError(
            f"{e.filename} can't be read ({e.strerror}): check the path given as --data."
        ) from e
    packed = any(is_compressed(f) or kind_of(f) == ".parquet" for f in files)
    each: list[int] = []
    if size <= IN_MEMORY and (texts := _fitting(read(each), IN_MEMORY if packed else None)):
        docs: AnyDocuments = Documents(texts)
        counts = np.array(each, np.int64)
    else:
        docs, counts = on_disk(read, key)
    of_file = None if labels is None else np.repeat(labels, counts).astype(np.int32)
    return replace(docs, labels=of_file, class_names=list(class_names))


def _fitting(docs: Iterator[Iterator[str]], most: int | None) -> list[str]:
    """The texts of documents; none where they have more than `most` characters together."""
    texts, n = [], 0
    for parts in docs:
        text = []
        for part in parts:
            text.append(part)
            n += len(part)
            if most is not None and n > most:
                return []
        texts.append("".join(text))
    return texts


def on_disk(
    read: Callable[..., Iterator[Iterator[str]]], key: str
) -> tuple[DocumentsOnDisk, np.ndarray]:
    """Documents on a disk, and the numbers that `read` appends to a list that it is given.

    All of the text is read once, to measure and to check it; what was found is cached.
    """
    path = cache.cache_file(f"documents on disk 1\n{key}")
    found = cache.read_cache(path)
    if found is None:
        digest, lengths, counts = hashlib.sha256(), [], []
        for parts in read(counts):
            n = 0
            for part in parts:
                n += len(part)
                digest.update(part.encode())
            digest.update(b"\0")
            lengths.append(n)
        found = {
            "lengths": np.array(lengths, np.int64),
            "digest": np.array(digest.hexdigest()),
            "counts": np.array(counts, np.int64),
        }
        cache.store(path, **found)
    return DocumentsOnDisk(read, found["lengths"], key, str(found["digest"])), found["counts"]


def held_out_documents(whole: AnyDocuments, data: str, split: str) -> Any:
    """Nine tenths of the training texts of `data` as "train", the rest as "test".

    InputError where nothing can be held out.
    """
    _known(f"{data}:{sources.HELD_OUT}", split, ("train", "test"))
    if whole.labels is None and len(whole) < 5:
        return whole.tenth(last=split == "test")
    labels = np.zeros(len(whole), np.int32) if whole.labels is None else whole.labels
    return whole.select(sources.validation_indices(data, labels)[split])


def _known(data: str, split: str, splits: Collection[str]) -> str:
    if split not in splits:
        raise InputError(f"{data} has no {split} split; it has {', '.join(splits)}.")
    return split


def _python(split: str) -> list[str]:
    """Topics of the manual that aren't parts of other topics.

    Paragraphs of test topics are removed from the training topics.
    """
    from pydoc_data.topics import topics

    long = {k: long_paragraphs(v) for k, v in topics.items()}
    own, seen = [], set()
    for k in sorted(topics, key=lambda k: (-len(topics[k]), k)):
        if len(long[k] & seen) <= len(long[k]) / 2:
            own.append(k)
            seen |= long[k]
    own.sort()
    shuffled = np.random.default_rng(0).permutation(len(own))
    test = {own[i] for i in shuffled[: round(len(own) / 10)]}
    if _known(EMBEDDED, split, ("train", "test")) == "test":
        return [topics[k] for k in own if k in test]
    tested = set().union(*(long[k] for k in test))
    return [without_paragraphs(topics[k], tested) + "\n" for k in own if k not in test]


def _half_pages_by_topic(split: str) -> Documents:
    topics = _python("train") + _python("test")
    topics = sorted(topics, key=lambda t: (-len(t), t))[:8]
    bodies = [topic.partition("\n\n")[2] for topic in topics]
    pages = [(page, label) for label, body in enumerate(bodies) for page in half_pages(body)]
    test = pages[3::4]
    if _known(EMBEDDED, split, ("train", "test")) == "test":
        chosen = test
    else:
        tested = set().union(*(long_paragraphs(page) for page, _ in test))
        train = [page for i, page in enumerate(pages) if i % 4 != 3]
        chosen = [(without_paragraphs(page, tested), label) for page, label in train]
    return Documents(
        [page for page, _ in chosen],
        np.array([label for _, label in chosen], np.int32),
        [topic.partition("\n")[0] for topic in topics],
    )


def half_pages(topic: str, least: int = 800) -> list[str]:
    """Whole paragraphs of together at least `least` characters; a shorter rest is left out."""
    pages, page = [], ""
    for paragraph in topic.split("\n\n"):
        page = f"{page}\n\n{paragraph}".strip("\n")
        if len(page) >= least:
            pages.append(page)
            page = ""
    return pages


def long_paragraphs(text: str) -> set[str]:
    """Paragraphs of more than 40 characters, with single spaces."""
    return {" ".join(p.split()) for p in text.split("\n\n") if len(p) > 40}


def without_paragraphs(text: str, paragraphs: set[str]) -> str:
    """The paragraphs of `text` that aren't empty nor, with single spaces, among `paragraphs`."""
    return "\n\n".join(
        p for p in text.split("\n\n") if p.strip() and " ".join(p.split()) not in paragraphs
    )


SPLIT_FILE = re.compile(r"(.*?)[._-]?(train|valid|val|validation|dev|test)\.txt", re.IGNORECASE)


def _splits(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files train, valid and test of X, or of a folder with one X; none for other paths.

    InputError for a folder with several X.
    """
    folder = path if path.is_dir() else path.parent
    found: dict[str, dict[str, pathlib.Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        of = SPLIT_FILE.fullmatch(file.name)
        if of and file.is_file() and not file.name.startswith(".") and not is_list(file):
            split = split_of(of[2]).replace("val", "valid")
            found.setdefault(of[1], {})[split] = file
    found = {x: own for x, own in found.items() if "train" in own and len(own) > 1}
    for x, own in found.items():
        own.setdefault("test", own.get("valid", own["train"]))
        found[x] = {split: own[split] for split in ("train", "valid", "test") if split in own}
    if path != folder:
        return found.get(path.name, {})
    if len(found) > 1:
        raise InputError(
            f"{path} holds several sets, {' and '.join(sorted(found))}: give one, as in "
            f"{path / min(found)}, or several with commas between them."
        )
    return next(iter(found.values()), {})


def _root_and_name(data: str) -> tuple[pathlib.Path | None, str]:
    """The folder of FOLDER or FOLDER:NAME, and NAME; None where there is no such folder."""
    path = pathlib.Path(data).expanduser()
    base, colon, named = data.rpartition(":")
    if not path.exists() and colon:
        path = pathlib.Path(base).expanduser()
    else:
        named = ""
    return (path, named) if path.is_dir() else (None, "")


def _folder(root: pathlib.Path, split: str, named: str, validation: bool) -> AnyDocuments | None:
    """The documents of a folder; None where its files are too few for some to be held out."""
    found = find_files(root, TEXTS, named, validation)
    _known(str(root), split, ("train", "test"))
    texts = sum(map(len, found.names.values()))
    if validation and texts < 5 and not found.class_names:
        return None
    if texts == 1:
        raise InputError(
            f"{root} holds one text, which makes no two splits: give the file itself as --data."
        )
    say(found.line)
    return read_texts(found.paths(split), found.labels[split], found.classes(split))


def _tfds(data: str, split: str) -> AnyDocuments:
    instead = f"or take --data {EMBEDDED}, which is embedded and needs no download"
    name, of_split = _name_and_split(data)
    builder = tfds.builder_of(
        name,
        [EMBEDDED],
        f"give a TFDS name, a text file, a folder of .txt files, or {EMBEDDED}, which is embedded",
    )
    features = tfds.features_of(builder)
    if "text" not in features:
        raise InputError(f"{name} holds {', '.join(features)}, and no text: it is not a text set.")
    tfds.check_prepared(name, builder, instead)
    splits = builder.info.splits
    read = {of_split or "train", "test", split} & set(splits)
    if left := [f"{x.num_examples:,} of {s}" for s, x in splits.items() if s not in read]:
        say(f"{data}: left out: {', '.join(left)}")
    if not of_split:
        return _tfds_split(name, builder, _known(name, split, splits), instead)
    _known(name, of_split, splits)
    _known(data, split, ("train", "test"))
    out_of_it = of_split == "test" or "test" not in splits
    read_split = of_split if out_of_it or split == "train" else "test"
    docs = _tfds_split(name, builder, read_split, instead)
    docs = replace(docs, labels=None, class_names=[])
    return held_out_documents(docs, data, split) if out_of_it else docs


def _name_and_split(data: str) -> tuple[str, str]:
    """NAME and SPLIT of NAME:SPLIT; a version, as in NAME:1.0.0, is part of the name."""
    name, colon, split = data.rpartition(":")
    return (name, split) if colon and re.fullmatch(r"[A-Za-z_]\w*", split) else (data, "")


def _tfds_split(name: str, builder, split: str, instead: str) -> AnyDocuments:
    rows = tfds.data_source(name, builder, split, instead)

    def read(labels: list[int] | None = None) -> Iterator[Iterator[str]]:
        for row in tfds.all_rows(rows):
            if labels is not None and "label" in features:
                labels.append(int(row["label"]))
            text = row["text"]
            text = text.decode() if isinstance(text, bytes) else text
            yield map(compose, text_parts([text]))

    features, info = tfds.features_of(builder), builder.info.splits[split]
    if (info.num_bytes or 0) > IN_MEMORY:
        made = (pathlib.Path(builder.data_path) / "dataset_info.json").stat().st_mtime_ns
        docs, found = on_disk(read, f"{builder.data_path} {made} {split}")
    else:
        found = []
        docs = Documents(list(map("".join, read(found))))
    # Labels are -1 where a split has none, as in imdb_reviews/unsupervised.
    if len(found) == 0 or min(found) < 0:
        return docs
    names = list(getattr(features["label"], "names", None) or [])
    return replace(docs, labels=np.array(found, np.int32), class_names=names)
