"""Documents by name: the embedded manual of Python, text files, folders, and TFDS sets."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
import os
import pathlib
import unicodedata

import numpy as np

from ssljax.data import sources, tfds
from ssljax.errors import InputError
from ssljax.fingerprint import reported

EMBEDDED = "python"


@dataclass(frozen=True, eq=False)
class Documents:
    """Texts, and the class of each where the set has classes."""

    text: list[str]
    labels: np.ndarray | None = None  # (n,) int32
    class_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)


@reported("texts")
def documents(data: str, split: str) -> Documents:
    """The "train" or "test" split of a text set, in Unicode's composed form (NFC).

    InputError says what is wrong with the name, the set or a file. `data` is one of

    - "python": embedded, the reference manual of the running Python; a tenth of its topics is the
      test split;
    - a text file in UTF-8: its first 90 % of characters, and the rest;
    - a folder of .txt files: train/ and test/, or every tenth file is the test split; in a folder
      for each class or without classes;
    - X, or its folder, where X.train.txt, X.valid.txt and X.test.txt are files (this set has the
      split "valid" too);
    - a prepared TFDS set with texts, and its own splits;
    - several of these with commas between them.

    DATA:validation never reads the test split, so that settings can be chosen by it: its "test" is
    a tenth of each class of the training texts (of all texts where there are no classes, or the
    last tenth of each text where they are fewer than five), its "train" the rest.
    """
    if whole := sources.without_validation(data):
        return held_out_documents(documents(whole, "train"), whole, split)
    path = pathlib.Path(data).expanduser()
    if data == EMBEDDED:
        return Documents(_python(split))
    if path.is_file():
        text = _read(path)
        cut = int(len(text) * 0.9)
        halves = {"train": text[:cut], "test": text[cut:]}
        return Documents([halves[_known(data, split, halves)]])
    if "," in data:
        parts = [documents(part.strip(), split) for part in data.split(",")]
        return Documents([text for part in parts for text in part.text])
    if splits := _splits(path):
        return Documents([_read(splits[_known(data, split, splits)])])
    if path.is_dir():
        return _folder(path, split)
    if path.suffix or (os.sep in data and not tfds.has_config(data)):
        raise InputError(f"There is no file or folder {data}: check the path given as --data.")
    return _tfds(data, split)


@reported("texts")
def labelled_documents(data: str, split: str) -> Documents:
    """The "train" or "test" split of a text set with classes; InputError for a set without classes.

    "python" has half pages of the embedded manual, whose class is which of the manual's eight
    longest topics they are from; every fourth is in the test split, whose long paragraphs are
    removed from the training split. (A language model trained on the manual has seen both.)
    DATA:validation works as in `documents`.
    """
    if whole := sources.without_validation(data):
        return held_out_documents(labelled_documents(whole, "train"), whole, split)
    if data == EMBEDDED:
        return _half_pages_by_topic(split)
    docs = documents(data, split)
    if docs.labels is None or not docs.class_names:
        raise InputError(
            f"{data} has no classes: give a TFDS set of labelled texts (imdb_reviews), a folder of "
            f"class folders, or {EMBEDDED}, which is embedded."
        )
    return docs


def held_out_documents(whole: Documents, data: str, split: str) -> Documents:
    """Nine tenths of the training texts of `data` as "train", the rest as "test".

    InputError where nothing can be held out.
    """
    _known(f"{data}:{sources.HELD_OUT}", split, ("train", "test"))
    if whole.labels is None and len(whole) < 5:
        cuts = [int(len(text) * 0.9) for text in whole.text]
        return Documents(
            [text[:cut] if split == "train" else text[cut:] for text, cut in zip(whole.text, cuts)]
        )
    labels = np.zeros(len(whole), np.int32) if whole.labels is None else whole.labels
    at = sources.validation_indices(data, labels)[split]
    return replace(
        whole,
        text=[whole.text[i] for i in at],
        labels=None if whole.labels is None else whole.labels[at],
    )


def compose(text: str) -> str:
    """Unicode's composed form, NFC: an accent is one character with its letter where it can be."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _known(data: str, split: str, splits: Collection[str]) -> str:
    if split not in splits:
        raise InputError(f"{data} has no {split} split; it has {', '.join(splits)}.")
    return split


def _read(path: pathlib.Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        raise InputError(
            f"{path} is not UTF-8 (byte {e.start} is {e.object[e.start]:#04x}): convert it, as in "
            f"`iconv -f latin1 -t utf-8`."
        ) from None
    except OSError as e:
        raise InputError(
            f"{path} can't be read ({e.strerror}): check the path given as --data."
        ) from e
    if not text.strip():
        raise InputError(f"{path} is empty: there is nothing to learn from in it.")
    return compose(text)


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
    topics = documents(EMBEDDED, "train").text + documents(EMBEDDED, "test").text
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


def _splits(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The existing files X.train.txt, X.valid.txt, X.test.txt of X, or of a folder with one X."""
    if path.is_dir():
        stems = {f.name.removesuffix(".train.txt") for f in path.glob("*.train.txt")}
        path = path / stems.pop() if len(stems) == 1 else path
    splits = ("train", "valid", "test")
    files = {split: path.with_name(f"{path.name}.{split}.txt") for split in splits}
    return {split: f for split, f in files.items() if f.exists()} if files["train"].exists() else {}


def _folder(root: pathlib.Path, split: str) -> Documents:
    own = (root / "train").is_dir() or (root / "test").is_dir()
    top = root / split if own else root
    files = sorted(
        f
        for f in top.rglob("*.txt")
        if not any(p.startswith(".") for p in f.relative_to(top).parts)
    )
    if not own and len(files) > 1:
        _known(str(root), split, ("train", "test"))
        files = [f for i, f in enumerate(files) if (i % 10 == 0) == (split == "test")]
    elif not own and files:
        raise InputError(
            f"{root} holds one .txt file, which makes no two splits: give the file itself as "
            "--data."
        )
    if not files:
        raise InputError(
            f"{top} holds no .txt files: put the texts there, or give another folder as --data."
        )
    tops = [root / s for s in ("train", "test")] if own else [root]
    names = sorted({d.name for t in tops for d in t.glob("*/") if not d.name.startswith(".")})
    classes = [f.relative_to(top).parts[0] for f in files]
    text = [_read(f) for f in files]
    if len(names) > 1 and set(classes) <= set(names):
        return Documents(text, np.array([names.index(c) for c in classes], np.int32), names)
    return Documents(text)


def _tfds(name: str, split: str) -> Documents:
    instead = f"or take --data {EMBEDDED}, which is embedded and needs no download"
    builder = tfds.builder_of(
        name,
        [EMBEDDED],
        f"give a TFDS name, a text file, a folder of .txt files, or {EMBEDDED}, which is embedded",
    )
    features = builder.info.features
    if "text" not in features:
        raise InputError(f"{name} holds {', '.join(features)}, and no text: it is not a text set.")
    tfds.check_prepared(name, builder, instead)
    rows = tfds.data_source(name, builder, _known(name, split, builder.info.splits), instead)
    rows = list(tfds.all_rows(rows))
    text = [row["text"].decode() if isinstance(row["text"], bytes) else row["text"] for row in rows]
    text = [compose(t) for t in text]
    labels = np.array([row["label"] for row in rows], np.int32) if "label" in features else None
    # Labels are -1 where a split has none, as in imdb_reviews/unsupervised.
    if labels is None or labels.min() < 0:
        return Documents(text)
    return Documents(text, labels, list(getattr(features["label"], "names", None) or []))
