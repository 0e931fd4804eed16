"""Prepare a data set, once, to be read with random access.

- python -m ssljax.data.prepare cifar10
- python -m ssljax.data.prepare ~/photos --to ~/photos-shards
- python -m ssljax.data.prepare ~/imagenet --to /fast/imagenet-320 --size 320 --workers 32

The first downloads a TensorFlow data set and writes it in its own folder. The others write shards
(ArrayRecord files of encoded images), which `--data DIR` reads, from

- a folder of images, whose splits and classes are those that `--data FOLDER` would find,
- WebDataset's tars: KEY.jpg with its label in KEY.cls, KEY.json or KEY.txt,
- Hugging Face's Parquet files: a column image and perhaps a column label;

with captions, for clip.py, from a .txt beside each image of a folder, from KEY.txt or the "caption"
of KEY.json in a tar, or from the first column of a Parquet file that is named title, caption, text
or description;

the split of a tar or Parquet file is that of its name or its folder (train-00000.tar, val/0.tar).
FOLDER:NAME takes another split for training, and FOLDER:unlabelled leaves labels out, as in --data.

Images keep their bytes, unless --size is given. Every image is decoded once, and what can't be read
is left out and counted. Run the same command again after it was stopped: it keeps the shards that
are finished. Run it again when a shard is damaged: it writes that one anew.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
import contextlib
from dataclasses import dataclass
import functools
import io
import json
import math
import multiprocessing.connection
import os
import pathlib
import re
import signal
import sys
import threading
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm
import tyro

from ssljax import extras, flags
from ssljax.data import archives, shards
from ssljax.data.archives import ArchivedImages
from ssljax.data.decode import Decoder, GAP, readable, Unreadable
from ssljax.data.folders import ARCHIVES, find_files, IMAGES
from ssljax.data.listing import list_files
from ssljax.data.sources import CORES, HELD_OUT
from ssljax.data.text_files import captions_beside
from ssljax.errors import InputError
from ssljax.fingerprint import digest
from ssljax.lock import lock
from ssljax.ranges import check_value, Count, CountOrZero

UNFINISHED = "unfinished.jsonl"  # The plan, and the shards that are finished, a line each.
SHARD_BYTES = 256 * 2**20
QUALITY = 95  # Of JPEGs that are written because of --size.
LOSSY = {"JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000"}  # Written as JPEGs by --size.
COMPRESSED = ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"
ONCE_MORE = "run the same command again, which keeps the shards that are finished"


@dataclass(frozen=True)
class Command:
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """A TensorFlow data set, such as cifar10; or, with --to, a folder of images, of WebDataset's
    tars or of Hugging Face's Parquet files, or one such file."""
    to: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """Folder to write shards to: a new or an empty one, or that of the same command."""
    size: CountOrZero = 0
    """Pixels of the shorter side that larger images are resized to; 0 to keep all as they are.
    Resized images have no EXIF and no colour profile. JPEG, WebP and other lossy formats become
    JPEGs of quality 95, which loses a little once more; the others become PNGs. Images of more than
    8 bits stay as they are."""
    workers: CountOrZero = 0
    """Processes that write; 0 for one a core. Shards are the same for any number."""
    shard_bytes: Count = SHARD_BYTES
    """Bytes of images, before they are resized, that make a shard."""


Command.__doc__ = __doc__


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    try:
        asked = flags.parse(Command, args)
        check_value("", asked, Command)
        if not asked.name:
            raise InputError("Name a data set, or a folder with --to DIR; --help gives examples.")
        if asked.to:
            jax.config.update("jax_platforms", "cpu")  # No GPU is taken.
            prepare_shards(asked.name, asked.to, asked.size, asked.workers, asked.shard_bytes)
        else:
            _prepare_tfds(asked)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nStopped: {ONCE_MORE}.", file=sys.stderr)
        sys.exit(130)


def _prepare_tfds(asked: Command) -> None:
    """Downloads and writes a TensorFlow data set. InputError where there is none of the name."""
    path = pathlib.Path(asked.name).expanduser()
    if path.exists():
        raise InputError(f"Shards of {path} need a folder of their own: give it as --to DIR.")
    if (asked.size, asked.workers, asked.shard_bytes) != (0, 0, SHARD_BYTES):
        raise InputError("--size, --workers and --shard-bytes are of shards: give --to DIR.")
    if asked.name.startswith((".", "~", os.sep)):
        raise InputError(f"There is no folder or file {path}: check the path.")
    tfds = extras.load("tensorflow_datasets", "A set of TensorFlow Datasets")  # Takes seconds.
    try:
        tfds.builder(asked.name, file_format="array_record").download_and_prepare()
    except ImportError as e:
        raise InputError(
            f"TFDS prepares {asked.name} with a package that is missing ({e.name}): install it and "
            "run this again."
        ) from e
    except ValueError as e:  # No such name, or no such version of it.
        raise InputError(str(e).splitlines()[0]) from e


def prepare_shards(
    name: str, to: str, size: int = 0, workers: int = 0, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes shards of the images that `name` stands for into the folder `to`; see `Command`.

    InputError where there are no images, where `to` holds something else, and for what the file
    system refuses.
    """
    workers = workers or CORES
    source, named = _source_of(name)
    target = pathlib.Path(to).expanduser()
    _check_target(target, source)
    plan = _plan(source, named, size, workers, shard_bytes)
    print(plan.line, flush=True)
    try:
        with lock(target, "--to"):
            _write(target, plan, workers)
    except OSError as e:
        raise _refused(e.filename or target, e.strerror or str(e)) from e


def _source_of(name: str) -> tuple[pathlib.Path, str]:
    """The folder or file of FOLDER:NAME, and NAME."""
    path = pathlib.Path(name).expanduser()
    base, colon, named = name.rpartition(":")
    if not path.exists() and colon and pathlib.Path(base).expanduser().exists():
        if named == HELD_OUT:
            raise InputError(
                f"Shards hold all images: prepare {base}, and give --data SHARDS:{HELD_OUT} to "
                "choose settings on a tenth of those to train."
            )
        return pathlib.Path(base).expanduser(), named
    if not path.exists():
        raise InputError(
            f"There is no folder or file {path}: check the path; or leave out --to if {name} is a "
            "TensorFlow data set."
        )
    return path, ""


def _check_target(target: pathlib.Path, source: pathlib.Path) -> None:
    """InputError where shards of `source` must not be written to `target`."""
    try:
        str(target).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"--to {str(target).encode('utf-8', 'backslashreplace').decode()} is no name in UTF-8: "
            "give another folder."
        ) from None
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise InputError(
            f"--to {target} is in {source} itself: give a folder outside it, so that shards and "
            "images stay apart."
        )
    try:
        held = sorted(os.listdir(target))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise InputError(f"--to {target} is no folder: give a new or an empty one.") from None
    except OSError as e:
        raise _refused(target, e.strerror or str(e)) from e
    ours = UNFINISHED in held or shards.is_shards(target)
    if held and held != ["lock"] and not ours:
        raise InputError(
            f"--to {target} holds other files ({', '.join(held[:3])}{', ...' * (len(held) > 3)}): "
            "give a new or an empty folder."
        )


class Plan(NamedTuple):
    """What is to be written."""

    jobs: list["Job"]
    splits: dict[str, ArchivedImages]
    class_names: list[str]
    size: int
    digest: str
    line: str


class Job(NamedTuple):
    """A shard to be written: `images` of a folder, or of archives if there are `paths`."""

    split: str
    file: str
    root: pathlib.Path
    paths: list[pathlib.Path]
    images: ArchivedImages
    size: int

    def read(self) -> Iterator[bytes]:
        """The bytes of each image; InputError where they can't be had."""
        if self.paths:
            yield from archives.read_images(self.paths, self.images)
            return
        for name in self.images.names:
            yield (self.root / name).read_bytes()


def _plan(source: pathlib.Path, named: str, size: int, workers: int, shard_bytes: int) -> Plan:
    root, names = _archives_in(source)
    paths = [root / name for name in names]
    if names:
        listed: dict[int, archives.Listed] = {}
        bar = tqdm(total=len(names), desc="listing", unit="file", delay=3)
        lists = _each(archives.list_archive, list(zip(paths, names)), workers)
        with bar, _reading():
            for i, found in lists:
                listed[i] = found
                bar.update()
        splits, class_names, line = archives.read_archives(
            root, names, [listed[i] for i in range(len(names))], named
        )
    else:
        found = find_files(source, IMAGES._replace(beside=(".txt",)), named)
        unread: list[str] = []
        splits = {
            s: _of_folder(found.root, names, found.labels[s], unread)
            for s, names in found.names.items()
        }
        class_names, line = found.class_names, found.line
        if said := archives.counted_captions(splits):
            line += f"; {said}"
        line += archives.left_out({}, sorted(unread))
    jobs = []
    for split, images in splits.items():
        first = np.cumsum(images.sizes) - images.sizes
        starts = np.flatnonzero(np.diff(first // shard_bytes, prepend=-1)).tolist()
        for i, (a, b) in enumerate(zip(starts, [*starts[1:], len(images)])):
            file = f"{split}-{i:05d}-of-{len(starts):05d}.array_record"
            jobs.append(Job(split, file, root, paths, images.take(np.arange(a, b)), size))
    content = {
        s: [x.names, x.sizes, x.labels, *([x.captions] if x.captions else [])]
        for s, x in splits.items()
    }
    plan = digest([content, class_names, size, shard_bytes, shards.VERSION])
    return Plan(jobs, splits, class_names, size, plan, line)


def _archives_in(source: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """The folder, and the names of the archives in it; none for a folder of images."""
    if source.is_file():
        if source.suffix not in ARCHIVES:
            raise InputError(
                f"{source} is one file: give the folder that the images are in, a .tar or a "
                ".parquet."
            )
        return source.parent, [source.name]
    if shards.is_shards(source):
        raise InputError(f"{source} holds shards already: give it as --data.")
    found: dict[str, list[str]] = {}
    listing = list_files(source)
    for folder, files in zip(listing.folders, listing.files):
        for file in files:
            suffix = pathlib.PurePath(file).suffix.lower()
            kind = "images" if suffix in IMAGES.suffixes else suffix
            compressed = file.lower().endswith(
                (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
            )
            if (kind == "images" or suffix in ARCHIVES) and not file.startswith("."):
                found.setdefault(kind, []).append(f"{folder}/{file}" if folder else file)
            elif compressed:
                found.setdefault("compressed tars", []).append(file)
    if len(set(found) - {"compressed tars"}) > 1:
        held = " and ".join(f"{len(names):,} {kind}" for kind, names in sorted(found.items()))
        raise InputError(
            f"{source} holds {held}: give the folder that those of one kind are in, or move the "
            "others away."
        )
    if list(found) == ["compressed tars"]:
        raise InputError(
            f"{source} holds compressed tars ({found['compressed tars'][0]}), which have no random "
            "access: decompress them first."
        )
    return source, sorted(found.get(".tar", []) + found.get(".parquet", []))


def _of_folder(
    root: pathlib.Path, names: list[str], labels: np.ndarray | None, unread: list[str]
) -> ArchivedImages:
    """The images of a split. Texts beside them that can't be read are added to `unread`."""

    def captions(name: str) -> list[str]:
        try:
            return captions_beside(root / name) or []
        except InputError:
            unread.append(str(pathlib.PurePath(name).with_suffix(".txt")))
            return []

    with ThreadPoolExecutor(32) as pool, _reading():  # A network's folder answers slowly.
        sizes = list(pool.map(lambda name: os.stat(root / name).st_size, names))
        said = None
        if any((root / name).with_suffix(".txt").is_file() for name in names[:1000]):
            said = list(pool.map(captions, names))
    none = np.zeros(len(names), np.int64)
    return ArchivedImages(names, np.array(sizes, np.int64), labels, none, none, said)


def _write(target: pathlib.Path, plan: Plan, workers: int) -> None:
    """Writes what is missing or damaged of a plan's shards, then the index."""
    for part in target.glob("*.part"):
        part.unlink()
    old = shards.read_index(target) if shards.is_shards(target) else None
    kept = _verified(target, plan, old, workers) if old else _finished(target, plan)
    entries = [e for split in old["splits"].values() for e in split["shards"]] if old else []
    expected = {e["file"]: e["sha256"] for e in entries}
    todo = [job for job in plan.jobs if job.file not in kept]
    if old and todo:
        print(f"Writing {len(todo)} of {len(plan.jobs)} shards anew, which are damaged or missing.")
    count = sum(map(len, plan.splits.values()))
    left = sum(len(job.images) for job in todo)
    bar = tqdm(total=count, initial=count - left, desc="shards", unit="image", delay=3)
    with bar, open(target / UNFINISHED, "a", encoding="utf-8") as log:
        do = functools.partial(write_shard, target, expected)
        try:
            for i, entry in _each(do, [(job,) for job in todo], workers):
                kept[todo[i].file] = entry
                log.write(json.dumps(entry) + "\n")
                log.flush()
                bar.update(len(todo[i].images))
        finally:
            for part in target.glob("*.part"):
                part.unlink()
    _write_index(target, plan, [kept[job.file] for job in plan.jobs])


def _finished(target: pathlib.Path, plan: Plan) -> dict[str, dict]:
    """Descriptions of the shards that an earlier run of the command has finished, by file."""
    file = target / UNFINISHED
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # The last line of a run that was killed.
            found.append(json.loads(line))
    if not found:
        _whole(file, json.dumps({"plan": plan.digest}).encode() + b"\n")
        return {}
    if found[0].get("plan") != plan.digest:
        raise _other(target, "unfinished shards")
    kept = {e["file"]: e for e in found[1:] if _has_size(target, e)}
    print(f"{len(kept)} of {len(plan.jobs)} shards are finished already.")
    # Without the torn line, to which the next would be appended.
    text = "".join(json.dumps(e) + "\n" for e in [found[0], *kept.values()])
    _whole(file, text.encode())
    return kept


def _verified(
    target: pathlib.Path, plan: Plan, index: dict[str, Any], workers: int
) -> dict[str, dict]:
    """Descriptions of the shards of an index that are whole, by file."""
    if index["plan"] != plan.digest:
        raise _other(target, "shards")
    entries = [e for split in index["splits"].values() for e in split["shards"]]
    entries = [e for e in entries if _has_size(target, e)]
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(entries), desc="checking", unit="shard", delay=3) as bar,
    ):
        kept = {}
        for e, found in zip(
            entries, pool.map(lambda e: shards.describe_file(target / e["file"]), entries)
        ):
            bar.update()
            if found["sha256"] == e["sha256"]:
                kept[e["file"]] = e
    return kept


def _other(target: pathlib.Path, what: str) -> InputError:
    return InputError(
        f"--to {target} holds {what} of other images, or of another --size or --shard-bytes: give "
        "another folder, or remove this one."
    )


def _has_size(target: pathlib.Path, entry: dict[str, Any]) -> bool:
    path = target / entry["file"]
    return path.exists() and path.stat().st_size == entry["bytes"]


def write_shard(target: pathlib.Path, expected: dict[str, str], job: Job) -> dict[str, Any]:
    """Writes a shard, whole or not at all, and describes it as an index does.

    InputError where an image can't be had or a shard can't be written, and where its sha256 is not
    what is `expected` of its file.
    """
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    path = target / job.file
    part = target / f"{job.file}.{os.getpid()}.part"
    labels = [-1] * len(job.images)
    if job.images.labels is not None:
        labels = np.asarray(job.images.labels).tolist()
    count, left_out = 0, []
    try:
        writer = ArrayRecordWriter(str(part), shards.OPTIONS)
        with _reading():
            for i, content in enumerate(job.read()):
                name = job.images.names[i]
                try:
                    content = checked_bytes(content, name, job.size)
                except Unreadable as e:
                    why = str(e).removeprefix(name).partition(": ")[0].strip()
                    left_out.append({"at": i, "name": name, "why": why})
                else:
                    writer.write(shards.pack_record(labels[i], name, content))
                    count += 1
        writer.close()
        reader = ArrayRecordReader(str(part))
        if reader.num_records() != count:
            raise OSError(f"{reader.num_records()} of {count} images were written")
        reader.close()
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        entry = shards.describe_file(part) | {"file": job.file}
        if expected.get(job.file, entry["sha256"]) != entry["sha256"]:
            raise InputError(
                f"{path} can't be written anew: the images it was written from have changed since; "
                "prepare them all into another folder."
            )
        part.replace(path)
    except RuntimeError as e:  # Of ArrayRecord, which has no kinds of errors.
        raise _refused(path, str(e).partition(";")[0]) from e
    except OSError as e:
        raise _refused(e.filename or path, e.strerror or str(e)) from e
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return {**entry, "count": count, "left_out": left_out}


def _refused(path: object, reason: str) -> InputError:
    return InputError(
        f"{path} can't be written ({reason}): make room or correct the rights, then {ONCE_MORE}."
    )


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Context in which errors of the file system are of reading images."""
    try:
        yield
    except OSError as e:
        raise InputError(
            f"{e.filename or 'A file'} can't be read ({e.strerror or e}): correct its rights, put "
            f"it back or move it away, then {ONCE_MORE}."
        ) from e


CHECK = Decoder(8)


def checked_bytes(content: bytes, name: str, size: int) -> bytes:
    """The bytes of an image, with the shorter side resized to `size` if it is larger, and not 0.

    `Unreadable` where they can't be decoded.
    """
    if not content:
        raise Unreadable(f"{name} is empty: remove it.")
    if size:
        with readable(name), Image.open(io.BytesIO(content)) as picture:
            resized = _resized(picture, size)
        if resized is not None:
            return resized
    CHECK(content, name)
    return content


def _resized(picture: Image.Image, size: int) -> bytes | None:
    """The picture encoded, its shorter side being `size`; None where it is to stay as it is."""
    width, height = picture.size
    if min(width, height) <= size or picture.mode.startswith("I") or picture.mode == "F":
        return None
    across, down = (max(size, round(x * size / min(width, height))) for x in (width, height))
    form = picture.format
    picture.draft(None, (math.ceil(GAP * across), math.ceil(GAP * down)))
    clear = picture.has_transparency_data
    picture = picture.convert("RGBA") if clear else picture
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    picture = picture.resize((across, down), Image.Resampling.BILINEAR, reducing_gap=GAP)
    picture = ImageOps.exif_transpose(picture)
    file = io.BytesIO()
    if form in LOSSY and not clear:
        picture.save(file, "JPEG", quality=QUALITY)
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def _write_index(target: pathlib.Path, plan: Plan, entries: list[dict[str, Any]]) -> None:
    """Writes labels, names and the index; prints what is there and what was left out."""
    splits: dict[str, dict] = {}
    for split, images in plan.splits.items():
        own = [(job, entry) for job, entry in zip(plan.jobs, entries) if job.split == split]
        left = [[x["at"] for x in entry["left_out"]] for _, entry in own]
        kept = np.concatenate(
            [
                np.delete(np.arange(len(job.images)), at) + start
                for (job, _), at, start in zip(
                    own, left, np.cumsum([0, *(len(job.images) for job, _ in own)])
                )
            ]
        )
        if not len(kept):
            first = own[0][1]["left_out"][0]
            raise InputError(
                f"None of the {len(images):,} images to {split} can be read; of one, "
                f"{first['name']} {first['why']}."
            )
        some = images.take(kept)
        files = {"names": shards.as_npy(shards.names_as_array(some.names))}
        if some.labels is not None:
            files["labels"] = shards.as_npy(np.asarray(some.labels, np.int32))
        if some.captions is not None:
            said = ["\n".join(own) for own in some.captions]
            files["captions"] = shards.as_npy(shards.names_as_array(said))
        described = {}
        for what, content in files.items():
            _whole(target / f"{split}-{what}.npy", content)
            described[what] = shards.describe_file(target / f"{split}-{what}.npy")
        shards_of_split = [entry for _, entry in own]
        splits[split] = {"count": len(kept), "labels": None, **described, "shards": shards_of_split}
    index = {
        "format": shards.FORMAT,
        "version": shards.VERSION,
        "plan": plan.digest,
        "size": plan.size,
        "class_names": plan.class_names,
        "splits": splits,
    }
    _whole(target / "index.json", json.dumps(index, indent=1).encode())
    (target / UNFINISHED).unlink(missing_ok=True)
    counts = {split: x["count"] for split, x in splits.items()}
    line = (
        f"{target}: {sum(counts.values()):,} images in {len(entries):,} shards of "
        f"{sum(e['bytes'] for e in entries) / 2**20:,.1f} MiB, {counts['train']:,} to train, "
        f"{counts['test']:,} to test"
    )
    print(line + _said([x for entry in entries for x in entry["left_out"]]))


def _said(left_out: list[dict[str, str]]) -> str:
    """The end of a line that says what was left out and why."""
    if not left_out:
        return "."
    kinds: dict[str, list[dict[str, str]]] = {}
    for x in left_out:  # Truncated files differ in the number of missing bytes.
        kinds.setdefault(re.sub(r"\d+", "", x["why"]), []).append(x)
    most = sorted(kinds.values(), key=len, reverse=True)
    said = [f"{len(all_):,} such as {all_[0]['name']}, which {all_[0]['why']}" for all_ in most[:3]]
    more = sum(map(len, most[3:]))
    said += [f"{more:,} others"] * bool(more)
    return f". Left out: {'; '.join(said)}. index.json lists them all."


def _whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def _each(do: Callable[..., Any], jobs: Sequence[tuple], workers: int) -> Iterator[tuple[int, Any]]:
    """(i, do(*jobs[i])) of all jobs, as they are done, in several processes.

    After an error, jobs that have begun are done, and the error is raised last.
    """
    if min(workers, len(jobs)) <= 1:
        for i, job in enumerate(jobs):
            yield i, do(*job)
        return
    before = multiprocessing.active_children()
    # JAX's threads don't survive a fork.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, _end_with_parent)
    error = None
    try:
        # Workers inherit that Ctrl-C, which a terminal sends to them too, is the parent's business.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            tasks = {pool.submit(do, *job): i for i, job in enumerate(jobs)}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        left = set(tasks)
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            for task in done:
                try:
                    result = task.result()
                except Exception as e:
                    error = error or e
                    left = {task for task in left if not task.cancel()}
                else:
                    yield tasks[task], result
    except BaseException:
        for process in set(multiprocessing.active_children()) - set(before):
            process.terminate()
            process.join()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    if isinstance(error, BrokenProcessPool):
        raise InputError(
            "A process that wrote a shard was ended from outside, perhaps because memory was "
            f"short: give fewer --workers, and {ONCE_MORE}."
        ) from error
    if error:
        raise error


def _end_with_parent() -> None:
    """Ends this process when its parent ends, however that does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
