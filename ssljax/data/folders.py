"""Folders of files: which split and class each file is of, for images, texts and recordings.

A folder is read as follows; `find_files` returns a line that says how it was.

**Files.** Files of the kind are found in any nesting, through symbolic links too. What is hidden
(its name begins with a dot) is left out, and so are other files, which are counted.

**Splits** are, in this order,
- lists, train.txt and test.txt (or training_list.txt and so on) in the folder, whose lines name
  files relative to it; without a list for training, whatever no list names is for training;
- folders of one level with usual names: train, training, seg_train, Train, train2017; test,
  testing; val, valid, validation or dev, which is the test split where there is no test folder, or
  one without the classes that the other has, and else left out; news_train and news_test. The level
  may be below others (data/train, or cat/train and dog/train). A folder test beside others, without
  one for training, is read where the others have the folders that it has, or hold no folders; else
  it is an error.
- Without a test split, a tenth of each class is held out of the training files, by a hash of the
  name relative to the folder (`ssljax/data/splits.py`).

**Classes** are the folders directly below those of the split (or the one folder below, while there
is one alone) that hold files of the kind, in any nesting, where
- there are two or more, and at most a tenth of the files lie beside them, which are left out;
- they are not named like dates or like parts of a large set (2019, 2019-05, 000, 001, 0a, part-3);
- both splits have one of them, or all files are equally deep, or half of the folders or more have
  files directly in them.
Otherwise the files have no classes. A folder unsup, unsupervised or unlabelled is no class and in
no split, nor is one of masks or annotations beside others.

FOLDER:NAME takes a subfolder NAME for training, and keeps the test split. Where there is no such
subfolder, FOLDER:classes and FOLDER:unlabelled decide whether files have classes, and the former
that folders such as train are classes where there are not both of train and test.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
import os
import pathlib
import re
import shlex
from typing import NamedTuple

import numpy as np

from ssljax.data.decode import SUFFIXES
from ssljax.data.listing import list_files, Listing
from ssljax.data.splits import hash_of_names, held_out
from ssljax.errors import InputError


class Kind(NamedTuple):
    """Kind of files that a set is made of."""

    name: str
    suffixes: tuple[str, ...]
    example: str
    experiments: str
    beside: tuple[str, ...] = ()  # Suffixes of files that belong to those of the kind.


IMAGES = Kind("images", SUFFIXES, "cat/1.png", "images, such as simclr")
RECORDINGS = Kind(
    "recordings",
    (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"),
    "yes/1.wav",
    "sound, such as cpc",
)
TEXTS = Kind(
    "texts",
    (".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".txt.zst", ".jsonl.zst", ".parquet"),
    "pos/1.txt",
    "text, such as gpt",
)
KINDS = IMAGES, RECORDINGS, TEXTS

WORDS = {
    "train": {"train", "training", "trainset", "trainingset"},
    "test": {"test", "testing", "testset", "eval", "evaluation"},
    "val": {"val", "valid", "validation", "dev", "development"},
    "unlabelled": {"unlabelled", "unlabeled", "unsup", "unsupervised"},
}
ARCHIVES = ".tar", ".parquet"  # What ssljax.data.prepare reads images from.
# Words beside these in the name of a split's folder, as in seg_train or test-clean.
NEUTRAL = re.compile(
    "set|data|dataset|split|lists?|files?|images?|imgs?|photos|seg|audio|wavs?|clips|texts?|txt|"
    "final|full|clean|other"
)
MASKS = re.compile("(.*[ _-])?(masks?|annotations?|segmentations?|trimaps?|ground_?truth)")
NO_TEXTS = re.compile(r"(readme|license|licence|copying|changelog|notice|authors)\b.*", re.I)


def split_of(name: str) -> str:
    """Which split a folder or file of this name is: train, test, val, unlabelled, or none ("")."""
    split, others = _split_and_words(name)
    return split if all(map(NEUTRAL.fullmatch, others)) else ""


def _split_and_words(name: str) -> tuple[str, tuple[str, ...]]:
    """The split whose word is in a name, "" for none or several, and the name's other words."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    known = {word: split for word in words for split, usual in WORDS.items() if word in usual}
    plain = re.fullmatch(r"[A-Za-z0-9 ._-]+", name)
    split = known.popitem()[1] if plain and len(known) == 1 else ""
    return split, tuple(word for word in words if not any(word in own for own in WORDS.values()))


def _splits_of(names: Collection[str]) -> dict[str, str]:
    """Which splits folders beside each other are, of those that are one.

    Names with other words are pairs: news_train and news_test, but not bullet_train alone.
    """
    found = {name: split for name in names if (split := split_of(name))}
    pairs: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        split, others = _split_and_words(name)
        if split and name not in found:
            pairs.setdefault(others, {})[name] = split
    for own in pairs.values():
        if {"train", "test"} <= set(own.values()) or {"train", "val"} <= set(own.values()):
            found |= own
    return found


@dataclass(frozen=True)
class Found:
    """Files of a set's "train" and "test" splits."""

    root: pathlib.Path
    names: dict[str, list[str]]  # Of the files of each split, relative to the folder.
    labels: dict[str, np.ndarray | None]  # Class of each file, int32; None without classes.
    class_names: list[str]
    line: str  # How many files were found, and what was left out, to be printed.

    def paths(self, split: str) -> list[pathlib.Path]:
        """Files of a split; InputError as of `check`."""
        self.check(split)
        return [self.root / name for name in self.names[split]]

    def check(self, split: str) -> None:
        """InputError where a split has no files, for want of some to hold out."""
        if not self.names[split]:
            raise InputError(
                f"{_show(self.root)} has too few files to hold some out to {split} on, no class of "
                "two: add files."
            )

    def classes(self, split: str) -> list[str]:
        """Names of the classes; none for a split without labels."""
        return [] if self.labels[split] is None else self.class_names


def find_files(root: pathlib.Path, kind: Kind, named: str = "", validation: bool = False) -> Found:
    """The files of a kind in a folder, by split and class: see above.

    `named` is NAME of FOLDER:NAME. With `validation`, a tenth of the training files is the test
    split. InputError where there are no files to train on, or it can't be said which they are.
    """
    listing = list_files(root)
    folders, left = _of_kind(listing, root, kind)
    if not folders:
        raise InputError(_holds_no(root, kind, left))
    reading = _read(root, kind, listing, folders, named, validation)
    return _chosen(root, kind, reading, left, validation)


def _of_kind(
    listing: Listing, root: pathlib.Path, kind: Kind
) -> tuple[dict[str, list[str]], Counter]:
    """Names of the files of a kind by folder, and how many others there are, by suffix."""
    folders: dict[str, list[str]] = {}
    left: Counter = Counter()
    for folder, names in zip(listing.folders, listing.files):
        own = []
        for name in names:
            is_it = name.lower().endswith(kind.suffixes) and name.lower() not in kind.suffixes
            if name.startswith("."):
                left["hidden"] += is_it
            elif is_it and not (kind is TEXTS and NO_TEXTS.match(name)):
                own.append(name)
            elif not name.lower().endswith(kind.beside):
                left[pathlib.PurePosixPath(name).suffix.lower() or "without a suffix"] += 1
        if own:
            folders[folder] = own
    left[f"broken link{'s' * (listing.broken != 1)}"] += listing.broken
    left[f"hidden folder{'s' * (listing.hidden != 1)}"] += listing.hidden
    return folders, +left


def is_of_another_kind(path: pathlib.Path, kind: Kind) -> str:
    """A sentence on a file that is not of a kind, for an error; empty for what may be."""
    own = next((k for k in KINDS if path.name.lower().endswith(k.suffixes)), None)
    if kind is IMAGES and path.suffix.lower() in ARCHIVES:
        return f"{_show(path)} is no image: {_prepared(path)}."
    if own in (kind, None):
        return ""
    return (
        f"{_show(path)} is {'an' if own is IMAGES else 'a'} {_few(own, 1)}, and this experiment is "
        f"on {kind.name}: train one on {own.experiments}, on the folder that it is in."
    )


def _prepared(source: pathlib.Path) -> str:
    """What to do with images in archives."""
    return (
        "write shards of the images in it by `python -m ssljax.data.prepare "
        f"{shlex.quote(_show(source))} --to SHARDS`, and give SHARDS as --data"
    )


def what_it_holds(root: pathlib.Path) -> str:
    """What kinds of files a folder holds, as in "240 images and 3 texts"; empty for nothing known.

    InputError where it can't be read.
    """
    listing = list_files(root)
    counts = {kind: sum(map(len, _of_kind(listing, root, kind)[0].values())) for kind in KINDS}
    return " and ".join(f"{n:,} {_few(kind, n)}" for kind, n in counts.items() if n)


def _few(kind: Kind, n: int) -> str:
    return kind.name if n != 1 else kind.name.removesuffix("s")


def _holds_no(root: pathlib.Path, kind: Kind, left: Counter) -> str:
    if kind is IMAGES and any(suffix in left for suffix in ARCHIVES):
        return f"{_show(root)} holds no {kind.name}, only {_counted(left)}: {_prepared(root)}."
    holds = what_it_holds(root)
    of = [k for k in KINDS if f" {k.name}" in f" {holds}" or f" {_few(k, 1)}" in f" {holds}"]
    suffixes = " ".join(kind.suffixes)
    if holds:
        return (
            f"{_show(root)} holds no {kind.name} ({suffixes}) but {holds}: train an experiment on "
            f"{of[0].experiments}, on it, or give another folder as --data."
        )
    held = f", only {_counted(left)}" if left else ""
    return (
        f"{_show(root)} holds no {kind.name} ({suffixes}){held}: put them there, all in one folder "
        f"or in a folder for each class, as in {_show(root)}/{kind.example}."
    )


@dataclass
class _Reading:
    """Files by split, {split: {folder: names}}, and where each folder lies below its split's."""

    parts: dict[str, dict[str, list[str]]]
    rest: dict[str, str]
    notes: list[str]
    left: Counter
    class_of: dict[str, dict[str, str]]  # {split: {folder: class}} of the splits with classes.
    form: str = ""  # In how many classes, or why in none.
    tested: bool = False  # Whether there is a test split.


def _read(
    root: pathlib.Path,
    kind: Kind,
    listing: Listing,
    folders: dict[str, list[str]],
    named: str,
    validation: bool,
) -> _Reading:
    force = ""
    lists = _lists(root, listing, folders)
    chosen = _named(folders, named) if named and not lists else {}
    if named and not chosen and split_of(named) not in lists:
        if named not in ("classes", "unlabelled"):
            raise InputError(
                f"{_show(root)} has no folder {named} with {kind.name}: after a colon a folder in "
                "it can stand, to train on that; or validation, for a tenth of the training "
                f"{kind.name} instead of the test split; or classes or unlabelled, for what its "
                "folders are."
            )
        force = named
    if lists:
        reading = _by_lists(root, kind, folders, lists)
        key = split_of(named)
        if key in reading.parts:
            reading.parts["train"] = reading.parts.pop(key)
    else:
        reading = _by_folders(root, kind, folders, force, bool(chosen))
    if chosen:
        for part in reading.parts.values():
            for folder in chosen:
                part.pop(folder, None)
        reading.parts["train"] = {folder: folders[folder] for folder in chosen}
        reading.rest |= chosen
    parts = reading.parts = {split: part for split, part in reading.parts.items() if part}
    if "val" in parts and ("test" not in parts or _has_better_classes(reading)):
        tested = parts.pop("test", {})
        parts["test"] = parts.pop("val")
        parts |= {"other": tested} if tested else {}
        if not lists:
            reading.notes.append("those of validation are the test split")
    reading.tested = "test" in parts
    if validation and reading.tested:
        n = sum(map(len, parts.pop("test").values()))
        reading.notes.append(f"{n:,} to test are not read")
    _drop_linked(reading, listing)
    _strip(reading)
    for split in [s for s in parts if s not in ("train", "test")]:
        for folder, names in parts.pop(split).items():
            reading.left[_place(folder)] += len(names)
    _find_classes(reading, root, force, bool(chosen))
    return reading


def _has_better_classes(reading: _Reading) -> bool:
    """Whether the split of validation has folders that training has too, and the test none."""
    tops = {
        split: {reading.rest[f].partition("/")[0] for f in reading.parts.get(split, {})} - {""}
        for split in ("train", "val", "test")
    }
    return bool(tops["train"] & tops["val"]) and not tops["train"] & tops["test"]


def _named(folders: Iterable[str], named: str) -> dict[str, str]:
    """Folders below a subfolder of a name, and their paths below it; those nearest to the top."""
    split = split_of(named)
    tests: tuple[Callable[[str], bool], ...] = (
        lambda c: c == named,
        lambda c: c.lower() == named.lower(),
        lambda c: bool(split) and split_of(c) == split,
    )
    paths = {folder: folder.split("/") for folder in folders if folder}
    for is_it in tests:
        for depth in range(max(map(len, paths.values()), default=0)):
            found = {
                folder: "/".join(path[depth + 1 :])
                for folder, path in paths.items()
                if len(path) > depth and is_it(path[depth])
            }
            if found:
                return found
    return {}


def _lists(
    root: pathlib.Path, listing: Listing, folders: dict[str, list[str]]
) -> dict[str, tuple[str, list[str]]]:
    """{split: (list's name, its lines)} of the lists in the folder that name files in it."""
    tops = [n for n in listing.files[0] if n.lower().endswith((".txt", ".lst", ".csv", ".tsv"))]
    tops = [name for name in tops if split_of(name.rpartition(".")[0]) in ("train", "test", "val")]
    if not tops:
        return {}
    files = {_join(folder, name) for folder, names in folders.items() for name in names}
    found: dict[str, tuple[str, list[str]]] = {}
    for name in tops:
        lines = _lines(root / name)
        if lines and _listed(lines[0], files):
            split = split_of(name.rpartition(".")[0])
            if split in found:
                raise InputError(
                    f"{_show(root)} has two lists of one split, {found[split][0]} and {name}: "
                    "remove one of them."
                )
            found[split] = name, lines
    return found


def is_list(path: pathlib.Path) -> bool:
    """Whether a file is a list that names files beside or below it."""
    first = next(iter(_lines(path, 2**12)), "")
    return any(name and os.path.isfile(path.parent / name) for name in _names_in(first))


def _lines(path: pathlib.Path, most: int = -1) -> list[str]:
    """The lines, without blank ones, of a file, or of its first bytes."""
    try:
        with open(path, "rb") as file:
            text = file.read(most).decode("utf-8-sig", "surrogateescape")
    except OSError as e:
        raise InputError(f"{_show(path)} can't be read ({e.strerror}): correct its rights.") from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _names_in(line: str) -> list[str]:
    """What a line of a list may name: all of it, or what is before a label."""
    names = (line, line.rpartition(",")[0], line.rsplit(None, 1)[0], line.partition(",")[0])
    return [name.strip().strip('"').replace("\\", "/").removeprefix("./") for name in names]


def _listed(line: str, files: Collection[str]) -> str:
    """The file that a line names, alone or before a label; "" for none."""
    return next((name for name in _names_in(line) if name in files), "")


def _by_lists(
    root: pathlib.Path,
    kind: Kind,
    folders: dict[str, list[str]],
    lists: dict[str, tuple[str, list[str]]],
) -> _Reading:
    files = {_join(f, name): (f, name) for f, names in folders.items() for name in names}
    for name, _ in lists.values():
        files.pop(name, None)
    names, absent = set(files), 0
    parts: dict[str, dict[str, list[str]]] = {}
    owner: dict[str, str] = {}
    for split, (list_name, lines) in lists.items():
        for line in lines:
            name = _listed(line, names)
            absent += not name
            if not name or owner.get(name) == list_name:
                continue
            if name in owner:
                raise InputError(
                    f"{_show(root)} is split by lists, and both {owner[name]} and {list_name} name "
                    f"{_show(name)}: name each file in one of them."
                )
            owner[name] = list_name
            folder, own = files[name]
            parts.setdefault(split, {}).setdefault(folder, []).append(own)
    others: dict[str, list[str]] = {}
    for name in names - set(owner):
        others.setdefault(files[name][0], []).append(files[name][1])
    parts.setdefault("train", others)
    left = Counter()
    if parts["train"] is not others:
        left["in no list"] += sum(map(len, others.values()))
    if "val" in parts and "test" in parts:
        left[f"in {lists['val'][0]}"] += sum(map(len, parts.pop("val").values()))
    if absent:
        left["named in a list but missing"] += absent
    note = f"split by {' and '.join(name for name, _ in lists.values())}"
    return _Reading(parts, {f: f for f in folders}, [note], +left, {})


def _by_folders(
    root: pathlib.Path,
    kind: Kind,
    folders: dict[str, list[str]],
    force: str,
    chosen: bool,
) -> _Reading:
    """Splits by the folders of one level: see above."""
    paths = {folder: folder.split("/") if folder else [] for folder in folders}
    whole = _Reading({"train": dict(folders)}, {f: f for f in folders}, [], Counter(), {})
    total = sum(map(len, folders.values()))
    for depth in range(min(5, max(map(len, paths.values())))):
        at_depth = {path[depth] for path in paths.values() if len(path) > depth}
        known = _splits_of(at_depth)
        of = {
            f: known[path[depth]]
            for f, path in paths.items()
            if len(path) > depth and path[depth] in known
        }
        marked = set(of)
        splits = set(of.values()) - {"unlabelled"}
        others = [f for f in folders if f not in of and f]
        inside = sum(len(folders[f]) for f in of)
        names = sorted({paths[f][depth] for f, split in of.items() if split != "unlabelled"})
        notes = []
        if not splits or (depth and 2 * inside < total):
            continue
        if "train" in splits and len(splits) == 1:
            flat = all(len(paths[f]) == depth + 1 for f in [*of, *others])
            if others and (depth or flat):
                if force != "classes" and not depth:
                    whole.notes.append(
                        f"{_names(names)} is read as a class, for there is no test folder"
                    )
                continue
            if others and force == "classes":
                continue
            if others:
                notes = [
                    f"{_names(names)} is read as the training split ({_show(root)}:classes takes "
                    "all folders as classes)"
                ]
        elif "train" not in splits:
            if depth and others:
                continue
            own = {name for f in of for name in paths[f][depth + 1 : depth + 2]}
            if force == "classes" and others:
                continue
            apart = not any(f and paths[f][0] in own for f in others) and others
            if not chosen and (apart or not (others or "" in folders)):
                raise InputError(_no_training(root, kind, names, others))
            for f in folders:
                of.setdefault(f, "train")
            notes = [f"all but {_names(names)} is for training"]
        parts: dict[str, dict[str, list[str]]] = {}
        for f, own_names in folders.items():
            parts.setdefault(of.get(f, ""), {})[f] = own_names
        rest = {
            f: "/".join(path[:depth] + path[depth + 1 :] if f in marked else path)
            for f, path in paths.items()
        }
        return replace(whole, parts=parts, rest=rest, notes=notes)
    return whole


def _no_training(
    root: pathlib.Path, kind: Kind, names: Sequence[str], others: Sequence[str]
) -> str:
    if not others:
        return (
            f"{_show(root)} has a folder {_names(names)} but no folder train with {kind.name}: put "
            f"those to train on into {_show(root / 'train')}, or give {_show(root)}:{names[0]} to "
            f"train on {_names(names)}."
        )
    tops = sorted({f.partition("/")[0] for f in others})
    return (
        f"{_show(root)} has a folder {_names(names)} beside {_names(tops)}, but no folder train: "
        f"put what to train on into {_show(root / 'train')}, or give {_show(root)}:classes if each "
        "of them is a class."
    )


def _drop_linked(reading: _Reading, listing: Listing) -> None:
    """Leaves out folders that a split has twice, by links."""
    where = {folder: i for i, folder in enumerate(listing.folders)}
    owner: dict[int, str] = {}
    for split in ("train", "test"):
        seen = set()
        part = reading.parts.get(split, {})
        for folder in sorted(part, key=lambda f: (listing.linked[where[f]], f)):
            same = int(listing.same[where[folder]])
            if same in seen:
                reading.left["found twice, by links"] += len(part.pop(folder))
            elif split == "test" and same in owner and owner[same] != folder:
                reading.notes.append(
                    f"{_show(owner[same])} and {_show(folder)} are one folder, so what is tested "
                    "has been trained on"
                )
            seen.add(same)
            owner.setdefault(same, folder)


def _strip(reading: _Reading) -> None:
    """Takes folders that hold everything off the paths, and what is in no split out of them."""
    parts, rest = reading.parts, reading.rest
    for split in ("train", "test"):
        own = parts.get(split, {})
        while len(tops := {rest[f].partition("/")[0] for f in own}) == 1:
            of, words = _split_and_words(next(iter(tops)))
            if not (of or words) or not all(map(NEUTRAL.fullmatch, words)):
                break
            for f in own:
                rest[f] = rest[f].partition("/")[2]
    while True:
        used = [f for split in ("train", "test") for f in parts.get(split, {})]
        top = {f: rest[f].partition("/")[0] for f in used}
        if len(set(top.values())) == 1 and "" not in top.values():
            for f in used:
                rest[f] = rest[f].partition("/")[2]
            continue
        apart = {f for f in used if split_of(top[f]) == "unlabelled" or is_mask(top[f])}
        for split in ("train", "test"):
            own = set(parts.get(split, {}))
            if own <= apart:
                apart -= own
        if not apart:
            return
        for f in apart:
            own = next(parts[split] for split in ("train", "test") if f in parts.get(split, {}))
            parts.setdefault("other", {})[f] = own.pop(f)


def is_mask(name: str) -> bool:
    """Whether a folder of this name has masks beside images."""
    return bool(MASKS.fullmatch(name.lower()))


DATE = r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?[0-3]\d)?)?\b.*"
PART_OF_MANY = r"(shard|part|batch|chunk|images?|img|vol|volume|dir|folder|disk|set|fold)?[ _-]?\d+"
CAMERA = r"1\d\d[A-Z_]{5}"


def like_dates_or_parts(names: Sequence[str]) -> bool:
    """Whether folders' names are mostly dates, padded numbers, or parts of a large set."""
    lower = [name.lower() for name in names]
    one_width = len({len(name) for name in names}) == 1 and len(names[0]) > 1
    digits = [name for name in names if name.isdecimal()]
    padded = one_width and len(digits) == len(names) and any(n.startswith("0") for n in digits)
    hexadecimal = (
        one_width
        and len(names) >= 16
        and all(re.fullmatch("[0-9a-f]+", name) for name in lower)
        and len(digits) < len(names)
        and bool(re.search(r"\d", "".join(names)))
    )
    parts = [n for n in lower if re.fullmatch(PART_OF_MANY, n) and not n.isdecimal()]
    dates = [n for n in names if re.fullmatch(DATE, n) or re.fullmatch(CAMERA, n)]
    return padded or hexadecimal or 2 * max(len(parts), len(dates)) > len(names)


def _find_classes(reading: _Reading, root: pathlib.Path, force: str, chosen: bool) -> None:
    """Notes the class of each folder of the splits that have classes, and leaves out the rest."""
    parts, rest = reading.parts, reading.rest
    tops = {
        split: {f: rest[f].partition("/")[0] for f in parts.get(split, {})}
        for split in ("train", "test")
    }
    named = {split: {name for name in own.values() if name} for split, own in tops.items()}
    names = sorted(named["train"] | named["test"])
    count = {split: sum(map(len, parts.get(split, {}).values())) for split in tops}
    beside = {
        split: sum(len(parts[split][f]) for f, name in own.items() if not name)
        for split, own in tops.items()
    }
    have = [s for s in tops if named[s] and (force or 10 * beside[s] <= count[s])]
    used = [f for split in have for f, name in tops[split].items() if name]
    common = named["train"] & named["test"]
    direct = {rest[f] for f in used if "/" not in rest[f]}
    depths = {rest[f].count("/") for f in used}
    take = f"{_show(root)}:classes takes the folders {_names(names)} as classes"
    if not names or force == "unlabelled":
        reading.form = "without classes"
    elif force != "classes" and len(names) == 1:
        reading.form = f"without classes (all are in {_show(names[0])})"
    elif force != "classes" and not have:
        reading.form = f"without classes (many lie beside the folders; {take})"
    elif force != "classes" and like_dates_or_parts(names):
        reading.form = f"without classes (folders look like dates or parts of a large set; {take})"
    elif force != "classes" and not (common or len(depths) == 1 or 2 * len(direct) >= len(names)):
        reading.form = f"without classes (folders are of different depths; {take})"
    elif len(have) == 2 and not common:
        if not chosen:
            raise InputError(
                f"{_show(root)} has no class in both splits, but {_names(sorted(named['train']))} "
                f"to train and {_names(sorted(named['test']))} to test: rename the folders, or "
                f"give {_show(root)}:unlabelled to learn without labels."
            )
        reading.form = "without classes to train on"
        _set_classes(reading, tops, ["test"])
    else:
        reading.form = f"in {len(names):,} class{'es' * (len(names) > 1)} ({_names(names)})"
        if force != "classes" and depths != {0} and not common:
            reading.form += f", by the outer folders ({_show(root)}:unlabelled takes none)"
        for split in [s for s in tops if s not in have and count[s]]:
            held = f" ({_show(root)}:validation tests on a tenth of those to train)"
            reading.notes.append(
                f"those to {split} are without classes{held if split == 'test' else ''}"
            )
        _set_classes(reading, tops, have)


def _set_classes(
    reading: _Reading, tops: Mapping[str, Mapping[str, str]], splits: Sequence[str]
) -> None:
    for split in splits:
        part = reading.parts[split]
        reading.class_of[split] = {f: name for f, name in tops[split].items() if name}
        for f in [f for f in part if f not in reading.class_of[split]]:
            reading.left["beside the classes' folders"] += len(part.pop(f))


def _chosen(
    root: pathlib.Path, kind: Kind, reading: _Reading, left: Counter, validation: bool
) -> Found:
    """The files of a reading in order, with what is held out."""
    classes = sorted({name for own in reading.class_of.values() for name in own.values()})
    number = {name: i for i, name in enumerate(classes)}
    names: dict[str, list[str]] = {}
    labels: dict[str, np.ndarray | None] = {}
    for split in ("train", "test"):
        class_of, part = reading.class_of.get(split), reading.parts.get(split, {})
        numbers = {f: number[class_of[f]] if class_of else 0 for f in part}
        order = sorted(part, key=lambda f: (numbers[f], f))
        names[split] = [_join(f, name) for f in order for name in sorted(part[f])]
        counts = [len(part[f]) for f in order]
        of = np.repeat(np.array([numbers[f] for f in order], np.int32), counts)
        labels[split] = of if class_of else None
    if not names["train"]:
        raise InputError(f"{_show(root)} holds no {kind.name} to train on.")
    notes = list(reading.notes)
    for purpose in ["test"] * (not reading.tested) + ["validation"] * validation:
        every, own = names["train"], labels["train"]
        out = held_out(hash_of_names(every, purpose), own)
        names = {
            split: [every[i] for i in np.flatnonzero(at)]
            for split, at in (("train", ~out), ("test", out))
        }
        labels = {"train": None, "test": None}
        if own is not None:
            labels = {"train": own[~out], "test": own[out]}
        if purpose == "validation":
            notes.append("a tenth of the training files is held out to choose settings")
        elif validation:
            notes.append(f"{len(names['test']):,} others are held out to test, and not read")
        else:
            notes.append("a tenth is held out by a hash of the names, for there is no test split")
    total = len(names["train"]) + len(names["test"])
    line = (
        f"{_show(root)}: {total:,} {_few(kind, total)} {reading.form}, {len(names['train']):,} to "
        f"train, {len(names['test']):,} to test"
    )
    line = "; ".join([line, *notes])
    if left or reading.left:
        line += f". Left out: {_counted(reading.left + left)}"
    # Names are drawn, logged and learned to write, so they must be Unicode.
    return Found(root, names, labels, list(map(_show, classes)), line)


def _counted(left: Counter) -> str:
    shown = [f"{n:,} {_show(what)}" for what, n in left.most_common(8)]
    more = sum(left.values()) - sum(n for _, n in left.most_common(8))
    return ", ".join(shown + [f"{more:,} others"] * bool(more))


def _names(names: Sequence[str]) -> str:
    return ", ".join([_show(name) for name in names[:3]] + ["..."] * (len(names) > 3))


def _place(folder: str) -> str:
    """Where files that are in no split lie."""
    path = folder.split("/")
    at = next((i for i, c in enumerate(path) if split_of(c) not in ("", "train")), 0)
    return f"in {_show('/'.join(path[: at + 1]))}" if folder else "beside the folders"


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _show(name: object) -> str:
    """A name that can be printed, whatever bytes it has."""
    return str(name).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
