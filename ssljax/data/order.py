"""Order of the examples: a function of (seed, epoch), so that a run can resume at any step."""

from functools import lru_cache

import numpy as np


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

    The last n % batch_size examples of each epoch's order are left out.
    """
    epoch, at = divmod(step, n // batch_size)
    return order(seed, epoch, n)[at * batch_size : (at + 1) * batch_size]
