"""Shards: encoded images in ArrayRecord files, Grain's own format, with random access.

`python -m ssljax.data.prepare` writes a folder of

- train-00000-of-00012.array_record, ...: a record is the label (int32, -1 for none), the length of
  the name (uint32), both little-endian, the name (UTF-8) and the bytes of the image file;
- train-labels.npy, (n,) int32, of a split with labels, and train-names.npy, the names as UTF-8 with
  a zero byte between two, so that neither costs a pass over the images; in the same form
  train-captions.npy, of images with captions, a line each;
- index.json: the splits' counts, the classes' names, and the bytes and sha256 of each file.

Images are in the order in which the folder that they come from is read, so that training is the
same from either. It needs no shuffling of its own: any image is as near as any other.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
import hashlib
import io
import json
import pathlib
import struct
import threading
from typing import Any

import numpy as np

from ssljax.data.cache import cache_file
from ssljax.data.decode import decoder
from ssljax.data.sources import fits_in_memory, OnDisk, read_arrays, Source, store_arrays
from ssljax.data.splits import hash_of_names, held_out
from ssljax.errors import InputError

FORMAT, VERSION = "ssljax shards", 1
HEAD = struct.Struct("<iI")
# Encoded images don't shrink, and one record a chunk is what makes access random.
OPTIONS = "group_size:1,uncompressed"
READING = "readahead_buffer_size:0,max_parallelism:0"  # Of single records at random.
AGAIN = "run the command that wrote these shards once more, which writes anew only what is damaged"


def pack_record(label: int, name: str, image: bytes) -> bytes:
    """A record."""
    encoded = name.encode("utf-8", "surrogateescape")
    return HEAD.pack(label, len(encoded)) + encoded + image


def unpack_record(record: bytes) -> tuple[int, str, bytes]:
    """Label, name and image of a record."""
    label, length = HEAD.unpack_from(record)
    end = HEAD.size + length
    return label, record[HEAD.size : end].decode("utf-8", "surrogateescape"), record[end:]


def names_as_array(names: list[str]) -> np.ndarray:
    """Names as bytes, uint8, with a zero between two."""
    return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)


def as_npy(array: np.ndarray) -> bytes:
    """The content of an .npy."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def describe_file(path: pathlib.Path) -> dict[str, Any]:
    """Name, bytes and sha256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def is_shards(path: pathlib.Path) -> bool:
    """Whether a folder holds shards."""
    try:
        return FORMAT in (path / "index.json").read_text("utf-8")[:100]
    except (OSError, ValueError):
        return False


def read_index(root: pathlib.Path) -> dict[str, Any]:
    """The content of index.json. InputError where it is damaged, or of another version."""
    try:
        index = json.loads((root / "index.json").read_text("utf-8"))
    except ValueError as e:
        raise InputError(
            f"{root / 'index.json'} is damaged ({e}): put back a copy of it, or remove {root} and "
            "prepare the images once more."
        ) from e
    if index.get("version") != VERSION:
        raise InputError(
            f"{root} holds shards of version {index.get('version')}, and this ssljax reads version "
            f"{VERSION}: prepare the images once more into another folder."
        )
    return index


def sidecar(root: pathlib.Path, entry: Mapping[str, Any]) -> np.ndarray:
    """The array of an .npy beside shards. InputError where it is damaged."""
    try:
        data = (root / entry["file"]).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{root / entry['file']} is missing: {AGAIN}.") from None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise InputError(f"{root / entry['file']} is damaged: {AGAIN}.")
    return np.load(io.BytesIO(data))


def read_names(root: pathlib.Path, split: Mapping[str, Any]) -> list[str]:
    """Names of the images of a split of an index."""
    text = sidecar(root, split["names"]).tobytes()
    return text.decode("utf-8", "surrogateescape").split("\0")


def read_captions(root: pathlib.Path, split: Mapping[str, Any]) -> list[list[str]]:
    """Captions of each image of a split of an index that has them, perhaps none."""
    text = sidecar(root, split["captions"]).tobytes().decode("utf-8", "surrogateescape")
    return [own.split("\n") if own else [] for own in text.split("\0")]


class Shards:
    """Records of shards by index: (label, name, image).

    `entries` are those of an index. InputError for a shard that is missing or has another size;
    and, once it is read, for one that is damaged. Threads may share it. (ArrayRecordDataSource,
    which Grain reads the same files with, takes one and a half times as long or more for a record.)
    """

    def __init__(self, root: pathlib.Path, entries: Sequence[Mapping[str, Any]]):
        check_sizes(root, entries)
        self.paths = [root / entry["file"] for entry in entries]
        self.ends = np.cumsum([entry["count"] for entry in entries]).tolist()
        self.readers: list[Any] = [None] * len(entries)  # Opened when they are needed.
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, i: int) -> tuple[int, str, bytes]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = bisect.bisect_right(self.ends, i)
        at = i - (self.ends[shard - 1] if shard else 0)
        try:
            return unpack_record(self._reader(shard).read(at, at + 1)[0])
        except RuntimeError as e:
            reason = str(e).partition(";")[0]
            raise InputError(f"{self.paths[shard]} is damaged ({reason}): {AGAIN}.") from e

    def __iter__(self) -> Iterator[tuple[int, str, bytes]]:
        return (self[i] for i in range(len(self)))

    def _reader(self, shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        with self.lock:
            if self.readers[shard] is None:
                self.readers[shard] = ArrayRecordReader(
                    str(self.paths[shard]), options=READING, file_reader_buffer_size=2**15
                )
            return self.readers[shard]


def check_sizes(root: pathlib.Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """InputError for a file of an index that is missing or has another size."""
    for entry in entries:
        path = root / entry["file"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise InputError(f"{path} is missing: {AGAIN}.") from None
        if size != entry["bytes"]:
            raise InputError(
                f"{path} is damaged ({size:,} bytes instead of {entry['bytes']:,}): {AGAIN}."
            )


def _splits(
    root: pathlib.Path, splits: Mapping[str, Any], named: str, validation: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray | None]]:
    """Of "train" and "test": indices of images, those to test after all to train; and labels."""
    n = splits["train"]["count"]
    at = {"train": np.arange(n), "test": np.arange(n, n + splits["test"]["count"])}
    labels: dict[str, np.ndarray | None] = {"train": None, "test": None}
    for s in splits:
        if splits[s]["labels"] and not named:
            labels[s] = sidecar(root, splits[s]["labels"])
    if validation:
        every, own = at["train"], labels["train"]
        out = held_out(hash_of_names(read_names(root, splits["train"]), "validation"), own)
        at = {"train": every[~out], "test": every[out]}
        labels = {s: own if own is None else own[at[s]] for s in at}
    return at, labels


def has_captions(root: pathlib.Path) -> bool:
    """Whether a folder holds shards of images with captions."""
    return is_shards(root) and "captions" in read_index(root)["splits"]["train"]


def shard_captions(
    root: pathlib.Path, split: str, validation: bool = False
) -> list[tuple[str, list[str]]]:
    """The name of each image of `shard_images`, and its captions, perhaps none."""
    splits = read_index(root)["splits"]
    at, _ = _splits(root, splits, "", validation)
    every: list[tuple[str, list[str]]] = []
    for s in ("train", "test"):
        own = splits[s]
        said = read_captions(root, own) if "captions" in own else [[]] * own["count"]
        every += zip(read_names(root, own), said, strict=True)
    return [every[i] for i in at[split]]


def shard_images(
    root: pathlib.Path,
    split: str,
    size: int,
    named: str = "",
    validation: bool = False,
    *,
    whole: bool = False,
    part: float = 1.0,
    skip_bad: bool = False,
) -> tuple[Source, str]:
    """The images of a split of shards, and the line to be printed.

    They are those of the folder that the shards were written from, in the same order, with the same
    images held out by `validation` (see `image_folder`). `named` may be "unlabelled", to leave
    labels out. Sets that fit in memory are decoded once and kept in the cache. InputError as of
    `decoder`, and for shards that are damaged or missing.
    """
    if named not in ("", "unlabelled"):
        raise InputError(
            f"{root}:{named} is no set: shards have the splits that they were written with; write "
            f"others from FOLDER:{named}."
        )
    index = read_index(root)
    splits = index["splits"]
    shards = Shards(root, [entry for s in ("train", "test") for entry in splits[s]["shards"]])
    at, labels = _splits(root, splits, named, validation)
    both = np.concatenate([at["train"], at["test"]]).tolist()
    decode = decoder(
        lambda i: shards[both[i]][2],
        len(both),
        size,
        whole,
        part,
        skip_bad,
        name=lambda i: shards[both[i]][1],
        where=str(root),
    )
    classes = index["class_names"] if any(x is not None for x in labels.values()) else []
    line = (
        f"{root}: {len(both):,} images in shards, "
        + (f"in {len(classes):,} classes" if classes else "without classes")
        + f", {len(at['train']):,} to train, {len(at['test']):,} to test"
        + "; a tenth of the training images is held out to choose settings" * validation
        + (f". {decode.note}" if decode.note else "")
    )

    def image(i: int) -> Any:
        _, name, content = shards[int(at[split][i])]
        return decode(content, name)

    source = OnDisk(
        image,
        labels[split],
        classes if labels[split] is not None else [],
        (decode.size, decode.size, decode.channels),
        count=len(at[split]),
        aspects=decode.whole,
        skip_bad=skip_bad,
    )
    content = [entry["sha256"] for s in splits for entry in splits[s]["shards"]]
    content += [split, "validation"] if validation else [split]
    if not fits_in_memory(len(source), source.shape):
        return replace(source, files="\n".join(content)), line
    cache = cache_file(f"shards {content} {decode} {named} {skip_bad}")
    if cached := read_arrays(cache, source.class_names):
        return cached, line
    arrays = source.in_memory()
    store_arrays(cache, arrays)
    return arrays, line
