"""Names of the files below a folder, listed once and kept in the cache."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import os
import pathlib
import time

import numpy as np

from ssljax.data.cache import cache_file, read_cache, store
from ssljax.errors import InputError

FRESH = 2 * 10**9  # Nanoseconds in which a folder may change again without another time.


@dataclass(frozen=True)
class Listing:
    """Names in a folder and its subfolders, relative to it, with "/"."""

    folders: list[str]  # "" for the folder itself.
    times: np.ndarray  # (folders,) when each was changed, in nanoseconds.
    same: np.ndarray  # (folders,) equal numbers for one folder that is found twice, by links.
    linked: np.ndarray  # (folders,) whether it is found through a link.
    files: list[list[str]]  # Of each folder.
    hidden: int  # Hidden folders.
    broken: int  # Links to nothing, or to a folder that they are in, and what is no file.


def list_files(root: pathlib.Path) -> Listing:
    """The files below a folder, from the cache where no folder has changed.

    InputError where a folder can't be read.
    """
    cache = cache_file(f"list of {root.resolve()}")
    found = read_cache(cache)
    if found and (listing := _from_arrays(found)) and _is_unchanged(root, listing):
        return listing
    listing = _walk(root)
    if listing.times.max() < time.time_ns() - FRESH:
        store(cache, **_to_arrays(listing))
    return listing


def _walk(root: pathlib.Path) -> Listing:
    top = os.fspath(root)
    stack: list[tuple[str, bool, tuple]] = [("", False, ())]
    found, hidden, broken = [], 0, 0
    while stack:
        folder, linked, above = stack.pop()
        path = os.path.join(top, folder)
        try:
            seen = os.stat(path)
            identity = seen.st_dev, seen.st_ino
            if identity in above:
                broken += 1
                continue
            names = []
            with os.scandir(path) as entries:
                for entry in entries:
                    kind = _kind(entry)
                    if kind == "file":
                        names.append(entry.name)
                    elif not kind:
                        broken += 1
                    elif entry.name.startswith("."):
                        hidden += 1
                    else:
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        stack.append((name, linked or entry.is_symlink(), (*above, identity)))
        except OSError as e:
            raise InputError(
                f"{e.filename or path} can't be read ({e.strerror}): correct its rights, or move "
                "it away."
            ) from e
        found.append((folder, seen.st_mtime_ns, identity, linked, sorted(names)))
    found.sort(key=lambda row: row[0])
    folders, times, identities, links, files = map(list, zip(*found))
    _, same = np.unique(np.array(identities, np.uint64), axis=0, return_inverse=True)
    return Listing(
        folders, np.array(times), same.reshape(-1), np.array(links), files, hidden, broken
    )


def _kind(entry: os.DirEntry) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:  # A link to itself, or to where nobody may look.
        return ""


def _to_arrays(x: Listing) -> dict[str, np.ndarray]:
    def text(names: Iterable[str]) -> np.ndarray:
        return np.frombuffer("\0".join(names).encode("utf-8", "surrogateescape"), np.uint8)

    return {
        "folders": text(x.folders),
        "files": text(name for names in x.files for name in names),
        "counts": np.array([len(names) for names in x.files]),
        "times": x.times,
        "same": x.same,
        "linked": x.linked,
        "left": np.array([x.hidden, x.broken]),
    }


def _from_arrays(x: Mapping[str, np.ndarray]) -> Listing:
    def names(text: np.ndarray) -> list[str]:
        return text.tobytes().decode("utf-8", "surrogateescape").split("\0")

    ends, files = np.cumsum(x["counts"]).tolist(), names(x["files"])
    parts = [files[a:b] for a, b in zip([0, *ends], ends)]
    return Listing(
        names(x["folders"]), x["times"], x["same"], x["linked"], parts, *x["left"].tolist()
    )


def _is_unchanged(root: pathlib.Path, listing: Listing) -> bool:
    top = os.fspath(root)
    try:
        times = [os.stat(os.path.join(top, folder)).st_mtime_ns for folder in listing.folders]
    except OSError:
        return False
    return times == listing.times.tolist()
