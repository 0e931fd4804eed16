"""Order of the examples: a function of (seed, epoch), so that a run can resume at any step."""

from functools import lru_cache

import numpy as np

LISTED = 2**26  # Examples up to which the order of an epoch is a list in memory, of 0.8 GB at most.
ROUNDS = 8  # Of the Feistel network.


@lru_cache(maxsize=32)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Permutation of range(n), int32 or int64; read-only, since it is shared."""
    # Unlike jax.random, NumPy takes no negative seeds.
    rng = np.random.default_rng((seed % 2**64, epoch))
    permutation = rng.permutation(n).astype(np.int32 if n < 2**31 else np.int64)
    permutation.setflags(write=False)
    return permutation


def indices(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """Indices of the examples of a step's batch, (batch_size,).

    The last n % batch_size examples of each epoch's order are left out. The order is a list
    (`order`) for at most `LISTED` examples, and otherwise is computed (`permuted`).
    """
    epoch, at = divmod(step, n // batch_size)
    if n <= LISTED:
        return order(seed, epoch, n)[at * batch_size : (at + 1) * batch_size]
    return permuted(seed, epoch, n, np.arange(at * batch_size, (at + 1) * batch_size))


def permuted(seed: int, epoch: int, n: int, at: np.ndarray) -> np.ndarray:
    """Places of `at`, (k,) in range(n), in a permutation of range(n) that isn't kept; (k,) int64.

    A Feistel network permutes the numbers of an even number of bits; those that are not below `n`
    are permuted again until they are (cycle walking: Black and Rogaway, Ciphers with arbitrary
    finite domains, 2002, section 4).
    """
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.default_rng((seed % 2**64, epoch)).integers(
        2**64, size=ROUNDS, dtype=np.uint64
    )
    found = np.array(at, np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        x = found[outside]
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        found[outside] = x = left << half | right
        outside = outside[x >= n]
    return found.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: each bit of the result depends on all bits of `x`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
