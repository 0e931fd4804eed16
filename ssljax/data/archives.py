"""Tars in WebDataset's form and Parquet files in Hugging Face's: which images they hold.

Tars hold KEY.jpg (or .png, ...) and beside it KEY.cls (a number or a name), KEY.json with a "label"
or KEY.txt (a class's name): the first of these that all images of a split have is their class. KEY
ends at the first dot of a member's name. Texts are names of classes where five images or more share
one in the mean, and captions otherwise, a line each; so is a "caption" of KEY.json.

Parquet files have a column of images, each its bytes or a struct of bytes and path, named image or
img or else the only one of its kind; and perhaps a column label, or another one that Hugging Face's
metadata calls a ClassLabel. A label of -1 is none. Captions are in a column named as in
`ssljax.data.text_files.CAPTION`, of texts or of lists of texts.

The split of a file is that of its name or of its folders' names: train-00000.tar, val/0.tar. The
rules for splits, and what is held out without a test split, are those of `folders`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import json
import pathlib
import re
import tarfile
from typing import Any, NamedTuple

import numpy as np

from ssljax import extras
from ssljax.data.decode import SUFFIXES
from ssljax.data.folders import WORDS
from ssljax.data.splits import hash_of_names, held_out
from ssljax.data.text_files import caption_columns, captions_of, unread_columns
from ssljax.errors import InputError

ROWS = 64  # Rows of a Parquet file that are decoded at once.


@dataclass(frozen=True)
class ArchivedImages:
    """Where n images lie, of a split or of one archive."""

    names: list[str]
    sizes: np.ndarray  # (n,) bytes; of Parquet, the mean of the row group.
    labels: Any  # (n,) int32, or None; a list of any values before `read_archives` counts.
    file: np.ndarray  # (n,) index of the archive.
    at: np.ndarray  # (n,) first byte in a tar; row in a Parquet file.
    captions: list[list[str]] | None = None  # Of each image, perhaps none.

    def __len__(self) -> int:
        return len(self.names)

    def take(self, at: np.ndarray) -> "ArchivedImages":
        """The images at some indices."""
        names = [self.names[i] for i in at]
        labels = None if self.labels is None else np.asarray(self.labels)[at]
        said = None if self.captions is None else [self.captions[i] for i in at]
        return ArchivedImages(names, self.sizes[at], labels, self.file[at], self.at[at], said)


class Listed(NamedTuple):
    """What one archive holds."""

    images: ArchivedImages
    class_names: list[str]
    left_out: dict[str, int]
    note: str = ""
    unread: Sequence[str] = ()  # Texts beside images that can't be read.
    columns: Sequence[str] = ()  # Those that may be of captions, the one that is read first.


def list_archive(path: pathlib.Path, name: str) -> Listed:
    """The images of an archive, whose name begins theirs; InputError where it can't be read."""
    return list_tar(path, name) if path.suffix == ".tar" else list_parquet(path, name)


def list_tar(path: pathlib.Path, name: str) -> Listed:
    """The images of a tar. InputError where it is damaged, or two images have one key."""
    images: dict[str, tuple[str, int, int]] = {}
    beside: dict[str, dict[str, Any]] = {"cls": {}, "json": {}, "txt": {}}
    said: dict[str, list[str]] = {}
    others = 0
    unread: list[str] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                if not member.isreg() or base.startswith("."):
                    continue
                stem, _, suffix = base.partition(".")
                suffix = suffix.lower()
                key = f"{folder}/{stem}"
                if suffix in beside:
                    content = tar.extractfile(member)
                    text = content.read() if content else b""
                    try:
                        label, captions = _text(text, suffix)
                    except ValueError:
                        unread.append(f"{name}/{_clean(member.name)}")
                        continue
                    if label is not None:
                        beside[suffix][key] = label
                    if captions and (suffix == "txt" or key not in said):
                        said[key] = captions
                elif f".{suffix}" not in SUFFIXES or member.issparse():
                    others += 1
                elif key in images:
                    raise InputError(
                        f"{path} holds two images of one name, {images[key][0]} and {member.name}: "
                        "what is before the first dot must differ; rename one, or write the tar "
                        "without it."
                    )
                else:
                    images[key] = (member.name, member.size, member.offset_data)
    except tarfile.TarError as e:
        raise InputError(
            f"{path} can't be read as a tar ({e}): copy it once more, or move it away."
        ) from e
    keys = list(images)
    label = next((kind for kind, found in beside.items() if found.keys() & images.keys()), "")
    labels = [beside[label].get(key) for key in keys] if label else [None] * len(keys)
    names = [f"{name}/{_clean(images[key][0])}" for key in keys]
    sizes, at = (np.array([images[key][i] for key in keys], np.int64) for i in (1, 2))
    left = {"members that are not KEY.jpg or the like": others} if others else {}
    zeros = np.zeros(len(keys), np.int32)
    captions = [said.get(key, []) for key in keys] if said.keys() & images.keys() else None
    images_of_tar = ArchivedImages(names, sizes, labels, zeros, at, captions)
    return Listed(images_of_tar, [], left, label, unread)


def _text(data: bytes, suffix: str) -> tuple[Any, list[str]]:
    """A label as an int or a str, or None; and captions. ValueError where it can't be read."""
    text: Any = data.decode("utf-8-sig").strip()
    captions = text.splitlines() if suffix == "txt" else []
    if suffix == "json":
        found = json.loads(text)
        found = found if isinstance(found, dict) else {}
        captions = found.get("caption") or []
        captions = captions if isinstance(captions, list) else [captions]
        text = found.get("label", found.get("class"))
        if not isinstance(text, (str, int)) or isinstance(text, bool):
            text = None
    text = int(text) if re.fullmatch(r"\d{1,9}", str(text)) else text
    return text, captions_of(x for x in captions if isinstance(x, str))


def list_parquet(path: pathlib.Path, name: str) -> Listed:
    """The images of a Parquet file. InputError where it has none, or can't be read."""
    with _parquet(path) as (pa, file):
        schema = file.schema_arrow
        column = _image_column(path, pa, schema)
        features = _features(schema)
        classes = [k for k, f in features.items() if f.get("_type") == "ClassLabel"]
        label = "label" if "label" in schema.names else next(iter(classes), "")
        kind = schema.field(column).type
        nested = pa.types.is_struct(kind)
        paths = f"{column}.path" if nested and "path" in [f.name for f in kind] else ""
        columns = _caption_columns(pa, schema)
        caption = columns[0] if columns else ""
        wanted = [x for x in (label, paths, caption) if x]
        table = file.read(columns=wanted, use_threads=False)
        labels: list = [None] * file.metadata.num_rows
        if label and table is not None:
            labels = table.column(label).to_pylist()
            bad = next((x for x in labels if not isinstance(x, (int, str, type(None)))), None)
            if bad is not None or any(isinstance(x, bool) for x in labels):
                raise InputError(
                    f"{path}: labels must be whole numbers or texts; the column {label} holds "
                    f"{schema.field(label).type}."
                )
            labels = [None if x == -1 else x for x in labels]
        bases = [None] * len(labels)
        if paths and table is not None:
            bases = [x and x.get("path") for x in table.column(column).to_pylist()]
        captions = None
        if caption and table is not None:
            said = table.column(caption).to_pylist()
            lists = ([x] if isinstance(x, str) else x or [] for x in said)
            captions = [captions_of(x for x in own if x) for own in lists]
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        rows = np.array([g.num_rows for g in groups], np.int64)
        mean = np.array([g.total_byte_size // max(1, g.num_rows) for g in groups], np.int64)
    names = [
        f"{name}/{i:07d}" + (f"/{_clean(base)}" if base else "") for i, base in enumerate(bases)
    ]
    class_names = features.get(label, {}).get("names") or []
    zeros = np.zeros(len(names), np.int32)
    places = np.arange(len(names))
    images = ArchivedImages(names, np.repeat(mean, rows), labels, zeros, places, captions)
    note = f"column {label}" if label else ""
    return Listed(images, class_names, {}, note, columns=columns)


class _parquet:
    """Context of an open Parquet file, (pyarrow, file); InputError where it can't be read."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __enter__(self):
        pyarrow = extras.load("pyarrow", str(self.path))
        from pyarrow import parquet

        try:
            self.file = parquet.ParquetFile(self.path, buffer_size=2**20)
        except (OSError, pyarrow.ArrowException) as error:
            self._explain(error)
            raise
        return pyarrow, self.file

    def __exit__(self, kind, error, trace) -> None:
        self.file.close()
        self._explain(error)

    def _explain(self, error: BaseException | None) -> None:
        import pyarrow

        # Arrow's own errors of damaged files are OSErrors without a number, too.
        system = isinstance(error, OSError) and error.errno
        if isinstance(error, (OSError, pyarrow.ArrowException)) and not system:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.path} can't be read as a Parquet file ({reason}): copy it once more, or "
                "move it away."
            ) from error


def _image_column(path: pathlib.Path, pa: Any, schema: Any) -> str:
    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(f.name == "bytes" and holds_images(f.type) for f in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [f.name for f in schema if holds_images(f.type)]
    column = next((x for x in ("image", "img") if x in found), found[0] if len(found) == 1 else "")
    if not column:
        held = ", ".join(f"{f.name} ({f.type})" for f in schema)[:300]
        raise InputError(
            f"{path} needs a column image of bytes, or of structs of bytes and path; it holds "
            f"{held or 'nothing'}."
        )
    return column


def _caption_columns(pa: Any, schema: Any) -> list[str]:
    """The columns of texts that may be captions, the one that is read first."""

    def holds_texts(kind: Any) -> bool:
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return holds_texts(kind.value_type)
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    return caption_columns(f.name for f in schema if holds_texts(f.type))


def _features(schema: Any) -> dict[str, dict]:
    """Hugging Face's description of the columns; empty where there is none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {k: f for k, f in found.items() if isinstance(f, dict)}


def _clean(name: str) -> str:
    return re.sub(r"[\0\n]", "_", name)


def read_images(paths: Sequence[pathlib.Path], images: ArchivedImages) -> Iterator[bytes]:
    """The bytes of images, which are in the order of their archives and of their places there."""
    for i in np.unique(images.file):
        own = images.take(np.flatnonzero(images.file == i))
        read = _read_tar if paths[i].suffix == ".tar" else _read_parquet
        yield from read(paths[i], own)


def _read_tar(path: pathlib.Path, images: ArchivedImages) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for at, size in zip(images.at.tolist(), images.sizes.tolist()):
            file.seek(at)
            yield file.read(size)


def _read_parquet(path: pathlib.Path, images: ArchivedImages) -> Iterator[bytes]:
    """b"" for an image that is null."""
    with _parquet(path) as (pa, file):
        column = _image_column(path, pa, file.schema_arrow)
        ends = np.cumsum(
            [0, *(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))]
        )
        for group in np.unique(np.searchsorted(ends, images.at, "right") - 1).tolist():
            rows = images.at[(images.at >= ends[group]) & (images.at < ends[group + 1])]
            start = ends[group]
            batches = file.iter_batches(ROWS, [group], [column], use_threads=False)
            for batch in batches:
                own = rows[(rows >= start) & (rows < start + len(batch))] - start
                for x in batch.column(0).take(pa.array(own)).to_pylist():
                    content = x.get("bytes") if isinstance(x, dict) else x
                    if content is None and isinstance(x, dict) and x.get("path"):
                        raise InputError(
                            f"{path} holds paths of images ({x['path']}) and not their bytes: give "
                            "the folder that they are in instead."
                        )
                    yield content or b""
                start += len(batch)
                if start > rows[-1]:
                    break


def split_of_archive(name: str) -> str:
    """Which split an archive is of, by its name and its folders' names; none ("")."""
    for part in reversed(name.split("/")):
        for word in re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", part).lower()):
            for split, usual in WORDS.items():
                if word in usual:
                    return split
    return ""


class Archives(NamedTuple):
    """The images of archives by split."""

    splits: dict[str, ArchivedImages]  # Of "train" and "test".
    class_names: list[str]
    line: str  # What was found and left out, to be printed.


def read_archives(
    root: pathlib.Path, names: Sequence[str], listed: Sequence[Listed], named: str = ""
) -> Archives:
    """The splits of archives in a folder.

    `named` is a split to train on, or "unlabelled" to leave labels out. InputError where there are
    no images to train on, or only some of a split's images have a label.
    """
    parts: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        parts.setdefault(split_of_archive(name), []).append(i)
    unlabelled = named == "unlabelled" and "unlabelled" not in parts
    if named and not unlabelled:
        split = split_of_archive(named)
        if split not in parts:
            raise InputError(
                f"{root} has no {named} among its files ({_some(names)}): after a colon can stand "
                "the split to train on, or unlabelled to leave labels out."
            )
        parts["train"] = parts.pop(split)
    notes, left = [], {}
    if "" in parts:
        if "train" in parts:
            left[f"files of no split ({_some([names[i] for i in parts['']])})"] = len(parts[""])
            del parts[""]
        else:
            parts["train"] = parts.pop("")
    if "val" in parts and "test" not in parts:
        parts["test"] = parts.pop("val")
        notes.append("those of validation are the test split")
    for split in set(parts) - {"train", "test"}:
        left[f"files of {split}"] = len(parts.pop(split))
    if "train" not in parts:
        raise InputError(
            f"{root} holds no files to train on, only {_some(names)}: name them train-*, or give "
            f"{root}:NAME to train on the split NAME."
        )
    chosen = {split: _join([(i, listed[i].images) for i in at]) for split, at in parts.items()}
    for i in sorted(i for at in parts.values() for i in at):
        for what, n in listed[i].left_out.items():
            left[what] = left.get(what, 0) + n
    labels, class_names, form, by = _classes(root, chosen, listed, parts, unlabelled)
    splits = {split: replace(x, labels=labels[split]) for split, x in chosen.items()}
    if by == ".txt":
        splits = {split: replace(x, captions=None) for split, x in splits.items()}
    if not len(splits["train"]):
        raise InputError(f"{root} holds no images to train on in {_some(names)}.")
    if not len(splits.get("test", ())):
        every = splits["train"]
        out = held_out(hash_of_names(every.names, "test"), every.labels)
        if not out.any():
            raise InputError(
                f"{root} holds too few images to hold some out: add files of a test split."
            )
        splits = {s: every.take(np.flatnonzero(x)) for s, x in (("train", ~out), ("test", out))}
        notes.append("a tenth is held out by a hash of the names, for there is no test split")
    counts = {split: len(x) for split, x in splits.items()}
    line = (
        f"{root}: {sum(counts.values()):,} images {form} in {len(names):,} files, "
        f"{counts['train']:,} to train, {counts['test']:,} to test"
    )
    used = [listed[i] for at in parts.values() for i in at]
    columns = {unread_columns(x.columns) for x in used} - {""}
    notes = [*filter(None, (counted_captions(splits), *sorted(columns))), *notes]
    line = "; ".join([line, *notes])
    line += left_out(left, [name for x in used for name in x.unread])
    return Archives(splits, class_names, line)


def left_out(counts: Mapping[str, int], unread: Sequence[str]) -> str:
    """The end of a line: numbers of what is left out, and texts that can't be read; or empty."""
    found = [f"{n:,} {what}" for what, n in counts.items()]
    if unread:
        texts = "text" if len(unread) == 1 else "texts"
        found.append(f"{len(unread):,} {texts} that can't be read ({_some(unread)})")
    return f". Left out: {', '.join(found)}" if found else ""


def counted_captions(splits: Mapping[str, ArchivedImages]) -> str:
    """How many captions of how many images there are, for a line; empty for none."""
    said = [own for x in splits.values() for own in x.captions or []]
    n = sum(map(bool, said))
    return f"{sum(map(len, said)):,} captions of {n:,} images" if n else ""


def _join(parts: Sequence[tuple[int, ArchivedImages]]) -> ArchivedImages:
    return ArchivedImages(
        [name for _, x in parts for name in x.names],
        np.concatenate([x.sizes for _, x in parts]),
        [label for _, x in parts for label in x.labels],
        np.concatenate([np.full(len(x), i, np.int32) for i, x in parts]),
        np.concatenate([x.at for _, x in parts]),
        [own for _, x in parts for own in x.captions or [[]] * len(x)]
        if any(x.captions for _, x in parts)
        else None,
    )


def _classes(
    root: pathlib.Path,
    chosen: dict[str, ArchivedImages],
    listed: Sequence[Listed],
    parts: dict[str, list[int]],
    unlabelled: bool,
) -> tuple[dict[str, np.ndarray | None], list[str], str, str]:
    """The labels of each split, the classes' names, a phrase for both, and where they are."""
    none = dict.fromkeys(chosen)
    if unlabelled:
        return none, [], "without classes (their labels are left out)", ""
    if _are_captions(chosen, listed, parts):
        return none, [], "without classes (their texts are captions)", ""
    used = {}
    for split, images in chosen.items():
        missing = [n for n, label in zip(images.names, images.labels) if label is None]
        if missing and len(missing) < len(images):
            raise InputError(
                f"{root}: {len(missing):,} of {len(images):,} images to {split} have no label, "
                f"such as {missing[0]}: give them one, or give {root}:unlabelled to leave labels "
                "out."
            )
        if not missing and len(images):
            used[split] = images.labels
    if not used:
        return none, [], "without classes", ""
    sources = sorted({listed[i].note for split in used for i in parts[split] if listed[i].note})
    if len(sources) > 1:
        raise InputError(
            f"{root}: labels are in {' and in '.join(sources)}: write all files in the same way, "
            f"or give {root}:unlabelled to leave labels out."
        )
    given = {tuple(listed[i].class_names) for split in used for i in parts[split]} - {()}
    if len(given) > 1:
        raise InputError(
            f"{root}: the files differ in the names of their classes: keep those of one data set."
        )
    values = {x for labels in used.values() for x in labels}
    numbers = [x for x in values if isinstance(x, int)]
    if numbers and len(numbers) < len(values):
        raise InputError(
            f"{root}: some labels are numbers, such as {numbers[0]}, and some are texts: write all "
            f"in the same way, or give {root}:unlabelled to leave labels out."
        )
    class_names = list(next(iter(given), ()))
    if not numbers:
        class_names = class_names or sorted(values)
        strange = values - set(class_names)
        number = {name: i for i, name in enumerate(class_names)}
    else:
        class_names = class_names or [str(i) for i in range(max(numbers) + 1)]
        strange = {x for x in numbers if not 0 <= x < len(class_names)}
        number = {i: i for i in range(len(class_names))}
    if strange:
        raise InputError(
            f"{root}: {next(iter(strange))} is the label of an image and none of the "
            f"{len(class_names):,} classes: correct it, or give {root}:unlabelled."
        )
    if len(class_names) > max(10_000, len(values) * 100):
        raise InputError(
            f"{root}: labels reach {max(numbers)}, and there are {len(values):,}: number the "
            f"classes from 0 on, or give {root}:unlabelled to leave labels out."
        )
    labels = {
        split: np.array([number[x] for x in used[split]], np.int32) if split in used else None
        for split in chosen
    }
    few = ", ".join(class_names[:3] + ["..."] * (len(class_names) > 3))
    by = sources[0] if sources[0].startswith("column") else f".{sources[0]}"
    return labels, class_names, f"in {len(class_names):,} classes ({few}; by {by})", by


def _are_captions(
    chosen: dict[str, ArchivedImages], listed: Sequence[Listed], parts: dict[str, list[int]]
) -> bool:
    """Whether the texts of tars are captions: in the mean, fewer than five images share one."""
    texts = [x for images in chosen.values() for x in images.labels if x is not None]
    notes = {listed[i].note for at in parts.values() for i in at if listed[i].note}
    return notes == {"txt"} and 5 * len(set(texts)) > len(texts)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *["..."] * (len(names) > 3)])
