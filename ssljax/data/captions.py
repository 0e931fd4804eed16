"""Pictures and captions: from a table, from texts beside the pictures, or from names of classes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import csv
from dataclasses import dataclass, replace
import functools
import itertools
import os
import pathlib
from typing import Any, NamedTuple, TYPE_CHECKING

import jax
from jax.sharding import Mesh
import numpy as np
import tyro

from ssljax import sharding
from ssljax.data import described
from ssljax.data.decode import decoder
from ssljax.data.documents import Documents, report_texts
from ssljax.data.feed import check_batch, Data, Streamed
from ssljax.data.folders import find_files, IMAGES
from ssljax.data.image_sets import DEFAULT, ImageSets, MIDDLE, PlainImages
from ssljax.data.order import indices
from ssljax.data.shards import has_captions, read_index, shard_captions, shard_images
from ssljax.data.sources import (
    Arrays,
    fits_in_memory,
    HELD_OUT,
    OnDisk,
    Source,
    without_validation,
)
from ssljax.data.splits import hash_of_names, held_out
from ssljax.data.text_files import caption_columns, captions_beside, compose, unread_columns
from ssljax.data.token_rows import labelled_rows, masked_tokenizer, TokenKind
from ssljax.data.tokenizers import check_unknown, counts_of, encode, SPECIAL_TOKENS
from ssljax.errors import InputError
from ssljax.fingerprint import form_of, names_and_sizes, reported
from ssljax.processes import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tree = Any

# Usual names of a table's column of files; filepath is OpenCLIP's.
FILE = ("filepath", "file", "filename", "file_name", "path", "image", "image_path")
TABLES = {".csv": ",", ".tsv": "\t"}
FORMS = (
    "a .csv or .tsv of files and captions, a folder of pictures with a .txt of the same name "
    "beside each, shards of pictures with captions (ssljax.data.prepare), or a set with classes"
)


@dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures and captions that belong together; a picture may have several, and so a caption."""

    images: Source
    """Pictures, each once; their labels, if any, are classes."""
    captions: list[str]
    """Captions, each once."""
    pairs: np.ndarray
    """Numbers of a picture and of its caption, (n, 2) int32."""
    files: str = ""
    """What stands for the pictures in a run's record: names and sizes."""
    planned: bool = False
    """Whether they stand in for pairs that aren't here."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def text(self) -> list[str]:
        """The caption of each pair."""
        return [self.captions[i] for i in self.pairs[:, 1]]


class PairSets(NamedTuple):
    """What `Pairs` names, as it was read."""

    train: Captioned
    """Pairs to learn from."""
    test: Captioned
    """Held-out pairs."""
    images: ImageSets
    """The pictures, for evaluators of features."""
    prompts: list[str]
    """A caption for each class; none where the pictures have no classes."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Pairs(PlainImages):
    """Pictures to learn from, and their captions."""

    data: str = DEFAULT
    """Pictures and captions: a .csv or .tsv of files and captions, a folder of pictures with a .txt
    of the same name beside each, shards that ssljax.data.prepare wrote from such a folder or from
    tars or Parquet files with captions, or any set with classes (doodles, cifar10, class folders).
    """
    template: str = "a drawing of a {}"
    """Caption of a picture that has none but is of a class, whose name replaces {}."""

    def pairs(self, whole: bool = False) -> PairSets:
        """The sets that the fields name; `whole` as for `PlainImages.read`.

        A table has columns of files, whose names are relative to it, and of captions; with a header
        they may be in any order and among others. Of a text beside a picture each line is a
        caption. A tenth of the pictures is held out by a hash of the name, unless the folder has
        splits of its own. InputError says what is wrong with a set, a file or a line; --skip-bad
        leaves out what can't be used, and counts it.
        """
        if "{}" not in self.template:
            raise InputError(
                f"--template must have {{}} where the name of a class belongs, not {self.template}."
            )
        if not _has_captions(self.data):
            sets = self.read(whole)
            if not sets.labelled:
                raise InputError(
                    f"This experiment learns from labels, and {self.data} has none, nor captions: "
                    f"give {FORMS}."
                )
            prompts = [self.template.replace("{}", name) for name in sets.train.class_names]
            train, test = (_by_class(x, prompts) for x in (sets.train, sets.test))
            return PairSets(train, test, sets, prompts)

        def read(split: str, whole: bool = False, part: float = 1.0) -> Captioned:
            how = {"whole": whole, "part": part, "skip_bad": self.skip_bad}
            return captioned(self.data, split, self.image_size, **how)

        train = read("train", whole)
        part = MIDDLE if "aspect" in train.images.read(np.arange(1)) else 1.0
        bank = train.images if part == 1 else read("train", part=part).images
        test = read("test", part=part)
        labelled = bank.labels is not None and test.images.labels is not None
        sets = ImageSets(train.images, test.images, bank, test.images, labelled)
        classes = bank.class_names if labelled else []
        return PairSets(train, test, sets, [self.template.replace("{}", x) for x in classes])


def _by_class(images: Source, prompts: list[str]) -> Captioned:
    """Pictures with the caption of their class."""
    assert images.labels is not None
    pairs = np.stack([np.arange(len(images)), images.labels], 1)
    return Captioned(images, prompts, pairs.astype(np.int32))


def _one_caption(images: Source) -> Captioned:
    """Pictures that stand in for others, with one caption."""
    pairs = np.stack([np.arange(len(images)), np.zeros(len(images))], 1).astype(np.int32)
    return Captioned(images, [""], pairs, planned=True)


def _has_captions(data: str) -> bool:
    """Whether a name is, or was, of a table, or of a folder of pictures and captions."""
    path = pathlib.Path(_path_and_split(data)[0]).expanduser()
    if path.suffix.lower() in TABLES or described.was_read_as(data, "pairs"):
        return True
    if has_captions(path):
        return True
    return path.is_dir() and any(
        file.with_suffix(".txt").is_file() for file in itertools.islice(_pictures(path), 1000)
    )


def _pictures(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(IMAGES.suffixes):
                yield pathlib.Path(folder, name)


def _path_and_split(data: str) -> tuple[str, bool]:
    """The path of a name, and whether it is one of NAME:validation."""
    whole = without_validation(data)
    return whole or data, bool(whole)


def _form(pairs: Captioned) -> dict[str, Any] | None:
    return form_of(pairs.images)


def _absent(form: Mapping[str, Any], count: int, seed: int) -> Captioned:
    """Pictures of noise, with one caption, that stand in for others."""
    return _one_caption(described.noise(form, count, seed))


@reported("pairs", _form, _absent)
def captioned(
    name: str,
    split: str,
    size: int = 0,
    *,
    whole: bool = False,
    part: float = 1.0,
    skip_bad: bool = False,
) -> Captioned:
    """The "train" or "test" split of a table or folder of pictures and captions; prints a line.

    The arguments are those of `images`. InputError as of `Pairs.pairs`.
    """
    path, validation = _path_and_split(name)
    root = pathlib.Path(path).expanduser()
    if described.planning() and not root.exists():
        shape, line = (size or 224, size or 224, 3), f"{name} isn't here: planned"
        absent, _ = described.image_set(name, split, shape, [], whole)
        say(line)
        return _one_caption(absent)
    if has_captions(root):
        return _of_shards(root, split, size, validation, whole, part, skip_bad)
    if root.suffix.lower() in TABLES and not root.is_dir():
        files, captions, splits, labels, classes, line = _of_table(root, validation, skip_bad)
        root = root.parent
    else:
        files, captions, splits, labels, classes, line = _of_folder(root, validation, skip_bad)
    decode = decoder(
        lambda i: root / files[i],
        len(files),
        size,
        whole,
        part,
        skip_bad,
        name=lambda i: str(root / files[i]),
        where=path,
    )
    at = np.flatnonzero(splits == (split == "test"))
    own = [root / files[i] for i in at]
    different, pairs = _numbered(captions[of] for of in at)
    # A number rather than a class, so that the captions of what is left out are left out too.
    source: Source = OnDisk(
        lambda i: decode(own[i]),
        np.arange(len(own), dtype=np.int32),
        [],
        (decode.size, decode.size, decode.channels),
        aspects=decode.whole,
        skip_bad=skip_bad,
    )
    labels = None if labels is None else labels[at]
    if isinstance(source, OnDisk) and fits_in_memory(len(own), source.shape):
        arrays = source.in_memory()
        kept = np.full(len(own), -1, np.int32)
        kept[arrays.labels] = np.arange(len(arrays))
        pairs = np.stack([kept[pairs[:, 0]], pairs[:, 1]], 1)[kept[pairs[:, 0]] >= 0]
        labels = None if labels is None else labels[arrays.labels]
        source = replace(arrays, labels=labels, class_names=classes)
    else:
        source = replace(source, labels=labels, count=len(own), class_names=classes)
    if split == "train":
        say(f"{line}. {decode.note}" if decode.note else line)
    return Captioned(source, different, pairs, names_and_sizes(own, root))


def _of_shards(
    root: pathlib.Path,
    split: str,
    size: int,
    validation: bool,
    whole: bool,
    part: float,
    skip_bad: bool,
) -> Captioned:
    """Of shards, whose pictures were all decoded when they were written; damage is an error."""
    source, line = shard_images(root, split, size, "", validation, whole=whole, part=part)
    captions = shard_captions(root, split, validation)
    cure = "write one where it came from, and prepare all once more into another folder"
    bad = [f"{name} in {root} has no caption: {cure}" for name, own in captions if not own]
    _refuse(bad, len(captions), skip_bad, "pictures")
    different, pairs = _numbered(own for _, own in captions)
    if split == "train":
        say(f"{line}; {len(pairs):,} captions to train, {len(different):,} different")
    entries = [e["sha256"] for s in read_index(root)["splits"].values() for e in s["shards"]]
    return Captioned(source, different, pairs, "\n".join(entries))


def _numbered(captions: Iterable[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """The different captions of pictures, and pairs (n, 2) of a picture's number and its one's."""
    numbers: dict[str, int] = {}
    pairs = [
        (i, numbers.setdefault(text, len(numbers)))
        for i, own in enumerate(captions)
        for text in own
    ]
    return list(numbers), np.array(pairs, np.int32)


class _Read(NamedTuple):
    """Files, relative to a folder, of each its captions, and whether it is held out."""

    files: list[str]
    captions: list[list[str]]
    held_out: np.ndarray
    labels: np.ndarray | None
    classes: list[str]
    line: str


def _of_table(path: pathlib.Path, validation: bool, skip_bad: bool) -> _Read:
    found: dict[str, list[str]] = {}
    bad: list[str] = []
    rows = 0
    columns: list[str] = []
    for where, file, caption in _rows(path, columns):
        rows += 1
        name = os.path.normpath(os.path.join(path.parent, os.path.expanduser(file)))
        if not caption:
            bad.append(f"{where} has no caption: write one, or remove the line")
        elif not file or not os.path.isfile(name):
            header = " (a header would name its columns filepath and title)" * (rows == 1)
            bad.append(
                f"{where} names the picture {file or 'nothing'}, which is not there{header}: give "
                "its place relative to the table"
            )
        else:
            found.setdefault(os.path.relpath(name, path.parent), []).append(caption)
    _refuse(bad, rows, skip_bad, "lines")
    files = list(found)
    if len(files) < 2:
        raise InputError(f"{path} names {len(files)} pictures, and two or more are needed.")
    splits = held_out(hash_of_names(files, "test"))
    notes = "a tenth of the pictures is held out by a hash of the names"
    if validation:
        files = [file for file, out in zip(files, splits, strict=True) if not out]
        splits = held_out(hash_of_names(files, HELD_OUT))
        notes += ", and not read, and a tenth of the others to choose settings"
    if unread := unread_columns(columns):
        notes += f"; {unread}"
    captions = [list(dict.fromkeys(found[file])) for file in files]
    return _Read(files, captions, splits, None, [], _line(path, captions, splits, notes))


def _rows(path: pathlib.Path, columns: list[str]) -> Iterator[tuple[str, str, str]]:
    """Where a line of a table is, its file and its caption. InputError for other columns.

    Columns of a header that may be of captions are added to `columns`, the one that is read first.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, delimiter=TABLES[path.suffix.lower()], strict=True)
            at, wanted = (0, 1), 2
            for number, row in enumerate(table):
                where = f"{path}, line {table.line_num},"
                if not any(cell.strip() for cell in row):
                    continue
                if not number:
                    files = [i for i, x in enumerate(row) if x.strip().lower() in FILE]
                    texts = caption_columns(row)
                    if files and texts:
                        columns += texts
                        at, wanted = (files[0], row.index(texts[0])), len(row)
                        continue
                    if len(row) != 2:
                        raise InputError(
                            f"{where} has {len(row)} column{'s' * (len(row) != 1)}, of which none "
                            "can be told to be files and captions: give two, or a header that "
                            "names them filepath and title."
                        )
                if len(row) != wanted:
                    raise InputError(
                        f"{where} has {len(row)} column{'s' * (len(row) != 1)} and not {wanted}: "
                        "put a caption that holds the separator into double quotes."
                    )
                file_name, caption = (compose(" ".join(row[i].split())) for i in at)
                yield where, row[at[0]].strip() or file_name, caption
    except csv.Error as e:
        raise InputError(f"{path} can't be read as a table ({e}): write it again.") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not written in UTF-8 ({e}): write it so.") from e
    except OSError as e:
        raise InputError(
            f"{path} can't be read ({e.strerror or e}): check the path given as --data."
        ) from e


def _of_folder(root: pathlib.Path, validation: bool, skip_bad: bool) -> _Read:
    found = find_files(root, IMAGES._replace(beside=(".txt",)), validation=validation)
    names = found.names["train"] + found.names["test"]
    out = np.repeat([False, True], [len(found.names[s]) for s in ("train", "test")])
    captions, bad = [], []
    for name in names:
        file = (root / name).with_suffix(".txt")
        try:
            lines = captions_beside(root / name)
            if lines is None:
                bad.append(f"{root / name} has no caption: write {file.name} beside it")
            elif not lines:
                bad.append(f"{file} is empty: write the caption of the picture there")
        except InputError as e:
            bad.append(str(e).removesuffix("."))
            lines = []
        captions.append(lines or [])
    _refuse(bad, len(names), skip_bad, "pictures")
    kept = np.array([i for i, own in enumerate(captions) if own], np.int64)
    for split in ("train", "test"):
        found.check(split)
    of_splits = [x for s in ("train", "test") if (x := found.labels[s]) is not None]
    labels = np.concatenate(of_splits)[kept] if len(of_splits) == 2 else None
    captions = [captions[i] for i in kept]
    line = f"{found.line}; {sum(map(len, captions)):,} captions in texts beside them"
    classes = [] if labels is None else found.class_names
    return _Read([names[i] for i in kept], captions, out[kept], labels, classes, line)


def _refuse(bad: Sequence[str], count: int, skip_bad: bool, what: str) -> None:
    """InputError for the first of what can't be used, or a line that counts it."""
    if not bad:
        return
    more = f" ({len(bad) - 1:,} others can't be used either)" if len(bad) > 1 else ""
    if not skip_bad or len(bad) == count:
        raise InputError(f"{bad[0]}{more}; --skip-bad leaves out what can't be used.")
    say(f"Left out {len(bad):,} of {count:,} {what}; the first: {bad[0].partition(': ')[0]}.")


def _line(
    path: pathlib.Path, captions: Sequence[Sequence[str]], out: np.ndarray, notes: str
) -> str:
    texts = [x for own in captions for x in own]
    return (
        f"{path}: {len(captions):,} pictures with {len(texts):,} captions, of which "
        f"{len(set(texts)):,} are different; {np.sum(~out):,} pictures to train, {np.sum(out):,} "
        f"to test; {notes}"
    )


def caption_rows(
    sets: PairSets, kind: TokenKind, vocabulary: int, length: int
) -> tuple["Tokenizer", dict[str, np.ndarray]]:
    """A tokenizer learned on the training captions, and rows (captions, length) of tokens of
    "train", "test" and, if there are classes, their "prompts".

    Rows are those of `labelled_rows`. Prints what was read, how many captions are cut, and the
    shares of unknown tokens; InputError where captions are mostly unknown.
    """
    if sets.train.planned:
        row = np.zeros((1, length), np.int32)
        tokenizer = described.tokenizer(vocabulary, SPECIAL_TOKENS)
        return tokenizer, {"train": row, "test": row, "prompts": row[:0]}
    texts = {"train": Documents(sets.train.captions), "test": Documents(sets.test.captions)}
    prompts = Documents(sets.prompts)
    tokenizer = masked_tokenizer(Documents([*sets.train.captions, *sets.prompts]), kind, vocabulary)
    rows = {name: labelled_rows(tokenizer, docs, length).image for name, docs in texts.items()}
    report_texts(texts["train"], texts["test"], [int(np.sum(x >= 0)) for x in rows.values()])
    for name, docs in texts.items():
        longer = int(np.sum(np.diff(encode(tokenizer, docs)[1]) > length - 2))
        if longer:
            say(
                f"{longer:,} of {len(docs):,} captions of {name} are longer than --length {length} "
                "and cut"
            )
    counts, tested = (counts_of(tokenizer, x) for x in rows.values())
    check_unknown(tokenizer, counts, tested)
    return tokenizer, rows | {"prompts": labelled_rows(tokenizer, prompts, length).image}


def pair_feed(pairs: Captioned, rows: np.ndarray, batch_size: int) -> Data:
    """Whole epochs of pairs in a seeded order: {"image", "tokens", ...}, (batch, ...) each.

    `rows`, (captions, length), are the tokens of each caption. InputError for a batch that is
    larger than the set.
    """
    check_batch(batch_size, len(pairs))
    if isinstance(pairs.images, Arrays):
        return _Resident(pairs.images.arrays(), rows, pairs.pairs, batch_size)
    source: Any = _OnDisk(pairs, rows)  # Of which only `read` is needed.
    return Streamed(source, batch_size)


@dataclass(frozen=True, eq=False)
class _Resident:
    """Pictures and captions that lie on the devices once, however many pairs they are in."""

    images: Mapping[str, np.ndarray]
    rows: np.ndarray
    pairs: np.ndarray
    batch_size: int

    def resident(self) -> Tree:
        return {"images": dict(self.images), "rows": self.rows, "pairs": self.pairs}

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[np.ndarray]:
        for step in itertools.count(start):
            yield indices(seed, step, len(self.pairs), self.batch_size)

    def batch(self, resident: Tree, fed: jax.Array) -> Tree:
        picture, caption = sharding.over_batch(resident["pairs"][sharding.over_batch(fed)]).T
        found = {name: x[picture] for name, x in resident["images"].items()}
        found["tokens"] = resident["rows"][caption]
        return {name: sharding.over_batch(x) for name, x in found.items()}


@dataclass(frozen=True, eq=False)
class _OnDisk:
    """Pairs whose pictures are read as they are needed, as a set for `Streamed`."""

    pairs: Captioned
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, at: np.ndarray) -> Mapping[str, np.ndarray]:
        picture, caption = self.pairs.pairs[at].T
        images = self.pairs.images
        if isinstance(images, OnDisk) and images.skip_bad:
            # What can't be read is replaced by another picture: of that, the first caption.
            found = dict(self._numbered.read(picture))
            read = found.pop("label")
            caption = np.where(read == picture, caption, self._first[read])
        else:
            found = images.read(picture)
        return {**found, "tokens": self.rows[caption]}

    @functools.cached_property
    def _numbered(self) -> OnDisk:
        """The pictures, with their numbers as labels."""
        images = self.pairs.images
        assert isinstance(images, OnDisk)
        return replace(images, labels=np.arange(len(images)))

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """The first caption of each picture."""
        first = np.full(len(self.pairs.images), -1, np.int32)
        backwards = self.pairs.pairs[::-1]
        first[backwards[:, 0]] = backwards[:, 1]
        return first
