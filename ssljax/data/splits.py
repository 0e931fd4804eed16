"""Examples that are held out of a set without a test split: by hashes, so that they stay the same.

Which examples are held out of a growing set depends on their names or indices alone: those that
are added move no others, but for classes that were too small to have a test example by their
hashes.
"""

from collections.abc import Iterable
import hashlib
import unicodedata

import numpy as np

PART = 0.1  # Of the examples that are held out.


def hash_of_names(names: Iterable[str], purpose: str) -> np.ndarray:
    """64 bits for each name, (n,) uint64; other ones for another purpose.

    A name has the same hash in each of Unicode's forms, in which file systems differ.
    """
    person = purpose.encode()

    def digest(name: str) -> bytes:
        name = name if name.isascii() else unicodedata.normalize("NFC", name)
        data = name.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, digest_size=8, person=person).digest()

    return np.frombuffer(b"".join(map(digest, names)), "<u8")


def hash_of_indices(n: int, purpose: str) -> np.ndarray:
    """64 bits for each index below n, (n,) uint64: SplitMix64 of the index and the purpose."""
    seed = hash_of_names([purpose], "indices")
    with np.errstate(over="ignore"):
        x = seed + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def held_out(hashes: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Which examples are held out, (n,) bool: those whose hash is in the first tenth of its range.

    Of each class of two or more (without labels, of the whole) at least one is held out and at
    least one is not: the one of the smallest hash, and that of the largest.
    """
    out = hashes < np.uint64(PART * 2**64)
    labels = np.zeros(len(hashes), np.int32) if labels is None else labels
    order = np.lexsort((hashes, labels))
    ends = np.flatnonzero(np.diff(labels[order], append=-1))
    starts = np.r_[0, ends[:-1] + 1]
    out[order[starts[ends > starts]]] = True
    out[order[ends]] = False
    return out
