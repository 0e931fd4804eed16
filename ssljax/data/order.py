"""The order of the examples: a function of (seed, epoch), so that any step is reached at once on any machine."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=32)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """A permutation of range(n), int32 or int64; read-only, since it is shared."""
    rng = np.random.default_rng(
        (seed % 2**64, epoch)
    )  # Unlike jax.random, NumPy takes no negative seeds.
    permutation = rng.permutation(n).astype(np.int32 if n < 2**31 else np.int64)
    permutation.setflags(write=False)
    return permutation


def indices(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """The examples of a step's batch, (batch_size,); the n % batch_size last of each epoch's order are left out."""
    epoch, at = divmod(step, n // batch_size)
    return order(seed, epoch, n)[at * batch_size : (at + 1) * batch_size]
