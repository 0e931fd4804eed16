"""Features of the files in a folder, by the encoder of a run.

    python -m ssljax.features runs/simclr ~/photos -o features.parquet
    python -m ssljax.features runs/simcse ~/notes -o features.csv

There is a row for each file, in the order of the names. Images are resized and cut as the run's
evaluators do it; of a text the first tokens are read, as many as in training; of a recording the
features of its windows are averaged. Files are read as they are needed, so a folder may be larger
than memory, and the output appears when it is whole.

| output | content |
|---|---|
| `.parquet` | columns `file` and `features`, a list of float32 of fixed length |
| `.npz` | arrays `file` and `features`, (n, d) float32 |
| `.csv` | columns `file`, `0`, `1`, ... |
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import csv
from dataclasses import dataclass, replace
import pathlib
import shutil
import tempfile
from typing import Annotated, Any, NamedTuple
import zipfile

import numpy as np
from tqdm import tqdm
import tyro

from ssljax import extras, flags
from ssljax.backends import start_backends
from ssljax.data.audio import read_wave, recordings_in
from ssljax.data.decode import decoder, Unreadable
from ssljax.data.documents import Documents
from ssljax.data.folders import IMAGES, Kind, RECORDINGS, TEXTS
from ssljax.data.image_sets import MIDDLE
from ssljax.data.listing import list_files
from ssljax.data.sources import OnDisk
from ssljax.data.text_files import read_documents
from ssljax.data.token_rows import labelled_rows
from ssljax.data.tokenizers import load_tokenizer
from ssljax.errors import InputError
from ssljax.evals.features import batches
from ssljax.loaded import load, Loaded
from ssljax.ranges import Count, CountOrZero

Write = Callable[[Sequence[str], np.ndarray], None]


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of images, of texts (.txt) or of recordings, in any nesting."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """File to write, .parquet (which needs pyarrow), .npz or .csv; an older one is replaced."""
    batch_size: Count = 256
    """Examples that are encoded at once."""
    skip_bad: bool = False
    """Leave out files that can't be read, and count them, instead of stopping at the first."""
    lane: CountOrZero = 0
    """Index of the seed in the run, from 0."""


Command.__doc__ = __doc__


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags.run_command(Command, _run, args)


def _run(asked: Command) -> None:
    _writer(asked.out)  # Before anything is computed.
    start_backends()
    run = load(asked.run, asked.lane)
    count = write_features(run, asked.folder, asked.out, asked.batch_size, asked.skip_bad)
    print(f"{asked.out}: features of {count:,} files")


def write_features(
    run: Loaded,
    folder: str | pathlib.Path,
    out: str | pathlib.Path,
    batch_size: int = 256,
    skip_bad: bool = False,
) -> int:
    """Writes the features of the files in `folder` to `out`; returns the number of files in it.

    InputError where the run has no `encode` or is of another kind than the files, for a file that
    can't be read unless `skip_bad`, and where features are not finite.
    """
    write_to = _writer(out)
    files = _files(run, pathlib.Path(folder).expanduser(), skip_bad)
    out, count = pathlib.Path(out).expanduser(), 0
    with contextlib.ExitStack() as stack:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".", dir=out.parent))
        part = pathlib.Path(scratch) / out.name
        with write_to(part) as write, tqdm(
            total=len(files.names), desc="features", unit="file", delay=3
        ) as bar:  # fmt: skip
            for names, rows in _features(run, files, batch_size):
                write(names, rows)
                count += len(names)
                bar.update(len(names))
        part.replace(out)
    return count


class Files(NamedTuple):
    """Files of a folder, as a set of examples."""

    names: list[str]
    """Relative to the folder."""
    source: OnDisk
    of: np.ndarray
    """The file that each example is of, (examples,), not falling."""


def _features(run: Loaded, files: Files, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names of some files, and the mean features of each one's examples, (k, d) float32."""
    held = np.zeros(0, int), np.zeros((0, 0), np.float32)  # Of a file that may have more.
    for start, n, examples in batches(files.source, np.arange(len(files.source)), size):
        z = np.asarray(run.encode(examples), np.float32)[:n]
        kept = [i for i in range(n) if start + i not in files.source.left_out]
        of, z = files.of[start : start + n][kept], z[kept]
        if not np.isfinite(z).all():
            name = files.names[of[~np.isfinite(z).all(1)][0]]
            raise InputError(f"The features of {name} are not finite: use another checkpoint.")
        of = np.concatenate([held[0], of])
        z = np.concatenate([held[1], z]) if len(held[1]) else z
        last = start + n == len(files.source)
        whole = np.ones(len(of), bool) if last else of != files.of[start + n]
        held = of[~whole], z[~whole]
        if whole.any():
            found, first = np.unique(of[whole], return_index=True)
            counts = np.diff(np.append(first, whole.sum()))[:, None]
            sums = np.add.reduceat(z[whole], first)
            yield [files.names[i] for i in found], sums / counts.astype(np.float32)


def _files(run: Loaded, root: pathlib.Path, skip_bad: bool) -> Files:
    """The files that are of the run's kind; InputError where there are none."""
    example = next(run.batch[k] for k in ("image", "tokens") if k in run.batch)
    shape = tuple(example.shape[1:])
    if example.dtype == np.uint8 and len(shape) == 3:
        return _images(run, shape, root, skip_bad)
    if "tokens" in run.batch:
        return _texts(run, shape[0], root, skip_bad)
    if example.dtype == np.int16:
        return _recordings(run, shape[0], root, skip_bad)
    raise InputError(f"The run in {run.workdir} is of examples that are in no files.")


def _named(root: pathlib.Path, kind: Kind, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files of a kind, in order; says how many others there are."""
    if not root.is_dir():
        raise InputError(f"There is no folder {root}: give one of {kind.name}.")
    listing = list_files(root)
    every = [
        f"{folder}/{name}" if folder else name
        for folder, names in zip(listing.folders, listing.files)
        for name in names
        if not name.startswith(".")
    ]
    names = sorted(name for name in every if name.lower().endswith(suffixes))
    if not names:
        raise InputError(f"{root} holds no {kind.name}, which the run was trained on.")
    others = len(every) - len(names)
    print(f"{root}: {len(names):,} {kind.name}" + f"; {others:,} other files" * bool(others))
    return names


def _images(run: Loaded, shape: tuple[int, ...], root: pathlib.Path, skip_bad: bool) -> Files:
    height, width, channels = shape
    if height != width or channels not in (1, 3):
        raise InputError(
            f"The run's images are {height}x{width} with {channels} channels, and image files are "
            "read as squares in grey or in colour: compute features of arrays, "
            f"ssljax.load({str(run.workdir)!r}).encode."
        )
    names = _named(root, IMAGES, IMAGES.suffixes)
    # Photographs were trained on whole, and their middle is what features are judged on.
    part = MIDDLE if "aspect" in run.batch else 1.0
    decode = decoder(
        lambda i: root / names[i], len(names), height, False, part, skip_bad, where=str(root)
    )
    if decode.note:
        print(decode.note)
    decode = replace(decode, channels=channels)
    return _one_each(names, lambda i: decode(root / names[i]), shape, skip_bad)


def _texts(run: Loaded, length: int, root: pathlib.Path, skip_bad: bool) -> Files:
    names = _named(root, TEXTS, tuple(s for s in TEXTS.suffixes if ".txt" in s))
    tokenizer = load_tokenizer(run.workdir)

    def row(i: int) -> np.ndarray:
        try:
            text = "".join(next(read_documents(root / names[i])))
        except InputError as e:
            raise Unreadable(f"{e} Or leave out all such files with --skip-bad.") from e
        return labelled_rows(tokenizer, Documents([text]), length).image[0]

    return _one_each(names, row, (length,), skip_bad)


def _one_each(names: list[str], read: Callable, shape: tuple[int, ...], skip_bad: bool) -> Files:
    source = OnDisk(read, None, [], shape, count=len(names), skip_bad=skip_bad)
    return Files(names, source, np.arange(len(names)))


def _recordings(run: Loaded, length: int, root: pathlib.Path, skip_bad: bool) -> Files:
    names = _named(root, RECORDINGS, RECORDINGS.suffixes)
    rate = run.record["computes"]["rate"]
    found, bad = recordings_in(root, [str(root / name) for name in names], skip_bad)
    if bad:
        print(f"Left out {len(bad):,} of {len(names):,} files. {next(iter(bad.values()))}")
        names = [name for name in names if str(root / name) not in bad]
    of = np.repeat(np.arange(len(found)), [r.windows(length, rate) for r in found])
    first = np.searchsorted(of, np.arange(len(found)))

    def window(i: int) -> np.ndarray:
        return read_wave(found[of[i]], int(i - first[of[i]]) * length, length, rate)

    return Files(names, OnDisk(window, None, [], (length,), count=len(of), skip_bad=skip_bad), of)


def _writer(out: str | pathlib.Path) -> Callable[[pathlib.Path], Any]:
    """The writer of a file by its name's end; InputError where there is none."""
    path = pathlib.Path(out).expanduser()
    kinds = {".parquet": _parquet, ".npz": _npz, ".csv": _csv}
    if path.suffix.lower() not in kinds or path.is_dir():
        raise InputError(f"{out} must be the name of a .parquet, .npz or .csv file.")
    if path.suffix.lower() == ".parquet":
        extras.load("pyarrow", "A .parquet file, unlike .npz and .csv,")
    return kinds[path.suffix.lower()]


@contextlib.contextmanager
def _parquet(path: pathlib.Path) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        opened: list[pq.ParquetWriter] = []

        def write(names: Sequence[str], rows: np.ndarray) -> None:
            values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
            table = pa.table({"file": pa.array(map(_plain, names)), "features": values})
            if not opened:
                opened.append(stack.enter_context(pq.ParquetWriter(path, table.schema)))
            opened[0].write_table(table)

        yield write


@contextlib.contextmanager
def _csv(path: pathlib.Path) -> Iterator[Write]:
    with open(path, "w", newline="", encoding="utf-8") as file:
        lines, begun = csv.writer(file), []

        def write(names: Sequence[str], rows: np.ndarray) -> None:
            if not begun:
                lines.writerow(["file", *range(rows.shape[1])])
                begun.append(True)
            # Nine digits give each float32 back.
            lines.writerows(
                [_plain(name), *(f"{x:.9g}" for x in row)] for name, row in zip(names, rows)
            )

        yield write


@contextlib.contextmanager
def _npz(path: pathlib.Path) -> Iterator[Write]:
    found: list[str] = []
    width = 0
    with open(path.with_suffix(".rows"), "w+b") as rows_file:

        def write(names: Sequence[str], rows: np.ndarray) -> None:
            nonlocal width
            found.extend(map(_plain, names))
            width = rows.shape[1]
            rows_file.write(np.ascontiguousarray(rows, "<f4").tobytes())

        yield write
        rows_file.seek(0)
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("file.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.array(found), allow_pickle=False)
            with archive.open("features.npy", "w", force_zip64=True) as file:
                form = {"descr": "<f4", "fortran_order": False, "shape": (len(found), width)}
                np.lib.format.write_array_header_1_0(file, form)
                shutil.copyfileobj(rows_file, file)


def _plain(name: str) -> str:
    """A name in UTF-8, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    main()
