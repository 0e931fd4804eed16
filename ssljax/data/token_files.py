"""Tokens of texts too large for the memory, in files of the cache that are mapped into memory.

A file of 1 GB (English, 465,221 documents end to end) became 261 million byte pairs in 522 MB. With
gpt.py on two cores the first start took 7 minutes of processor time, the next one 4 seconds, and a
run at most 1.0 GB of memory, 0.5 GB of them the tokens, which XLA:CPU keeps in memory as a device
would. Read from the file instead (0.7 GB), 100 steps had the same losses.
"""

from collections.abc import Callable
import hashlib
import os
import pathlib
import shutil
import time
from typing import NamedTuple, TYPE_CHECKING

import numpy as np

from ssljax.data.cache import cache_dir
from ssljax.data.documents import DocumentsOnDisk
from ssljax.data.tokenizers import encoded, package
from ssljax.errors import InputError
from ssljax.processes import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1  # To be raised when the same texts get other tokens: files of other formats aren't read.
ABANDONED = 3600  # Seconds without a write after which a part file is one of a killed process.


class TokenFile(NamedTuple):
    """Tokens of documents: those of document i are tokens[offsets[i]:offsets[i + 1]]."""

    tokens: np.ndarray  # (n,) uint16 where the vocabulary allows, else uint32, mapped from the disk
    offsets: np.ndarray  # (d + 1,) int64, mapped as well
    counts: np.ndarray  # (vocabulary,) int64: how often each token is there


def token_file(
    tokenizer: "Tokenizer", docs: DocumentsOnDisk, end: int | None = None, known: bool = False
) -> TokenFile:
    """The tokens of documents, made once and then read from the cache.

    Each document is followed by the token `end` if there is one. With `known`, unknown tokens (0)
    are left out, and the others are numbered from 0; `counts` still has all. InputError where the
    cache can't be written.
    """
    key = f"{FORMAT} {package().__version__} {docs.key} {tokenizer.to_str()} {end} {known}"
    folder = cache_dir() / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]
    kind = np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32)
    if (found := _read(folder, kind)) is None:
        _write(folder, docs, lambda part: _write_into(part, kind, tokenizer, docs, end, known))
        found = _read(folder, kind)
    if found is None:
        raise InputError(
            f"The tokens in {folder} can't be read although they were just written: set "
            "$SSLJAX_CACHE to a folder on another disk."
        )
    return found


def _read(folder: pathlib.Path, kind: np.dtype) -> TokenFile | None:
    """What a folder of the cache holds; None where it is missing or damaged, which removes it."""
    try:
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        counts = np.load(folder / "counts.npy")
        n = int(offsets[-1])
        if (folder / "tokens").stat().st_size != n * kind.itemsize:
            raise ValueError("size")
        tokens = np.memmap(folder / "tokens", kind, "r") if n else np.zeros(0, kind)
        return TokenFile(tokens, offsets, counts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, IndexError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _write(
    folder: pathlib.Path, docs: DocumentsOnDisk, fill: Callable[[pathlib.Path], None]
) -> None:
    """Makes a folder of the cache, whole or not at all, of what `fill` writes into another one."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    say(f"tokens: {docs.lengths.sum():,} characters are encoded, once, into {folder}")
    try:
        _remove_abandoned(folder)
        part.mkdir(parents=True, exist_ok=True)
        fill(part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.exists():  # It does where another process was faster.
                raise
    except OSError as e:
        # Not all of these errors are of the cache: the texts are read at the same time.
        if e.filename is not None and not pathlib.Path(e.filename).is_relative_to(cache_dir()):
            raise
        raise InputError(
            f"The tokens of the text can't be written to {cache_dir()} ({e.strerror or e}): set "
            f"$SSLJAX_CACHE to a folder with room for about {docs.lengths.sum() * 2 / 1e9:.1f} GB, "
            "or make room there."
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_into(
    part: pathlib.Path,
    kind: np.dtype,
    tokenizer: "Tokenizer",
    docs: DocumentsOnDisk,
    end: int | None,
    known: bool,
) -> None:
    counts = np.zeros(tokenizer.get_vocab_size(), np.int64)
    sizes = np.zeros(len(docs) + 1, np.int64)
    with open(part / "tokens", "wb") as file:
        for whose, found in encoded(tokenizer, docs, end):
            written = [np.count_nonzero(x) if known else len(x) for x in found]
            np.add.at(sizes, np.array(whose) + 1, np.array(written, np.int64))
            x = np.concatenate(found)
            counts += np.bincount(x, minlength=len(counts))
            file.write((x[x > 0] - 1 if known else x).astype(kind).data)
    np.save(part / "offsets.npy", np.cumsum(sizes))
    np.save(part / "counts.npy", counts)


def _remove_abandoned(folder: pathlib.Path) -> None:
    """Removes what processes that were killed while they wrote this have left."""
    for part in folder.parent.glob(f"{folder.name}.*.part"):
        newest = max((f.stat().st_mtime for f in [part, *part.iterdir()]), default=0.0)
        if time.time() - newest > ABANDONED:
            shutil.rmtree(part, ignore_errors=True)
