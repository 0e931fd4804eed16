"""Mixtures of Gaussians in the plane, where what a generator leaves out can be counted, and points as training data."""

from collections.abc import Iterator
from dataclasses import dataclass
import itertools

import jax
from jax.sharding import Mesh
import numpy as np

from ssljax import sharding
from ssljax.data.order import indices
from ssljax.errors import InputError


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equally likely Gaussians at `centres` (k, 2), each of standard deviation `sigma` along both axes."""

    centres: np.ndarray
    sigma: float

    def draw(self, n: int, seed: int = 0) -> np.ndarray:
        """`n` points, (n, 2) float32."""
        rng = np.random.default_rng(seed)
        points = self.centres[rng.integers(len(self.centres), size=n)] + self.sigma * rng.normal(size=(n, 2))
        return points.astype(np.float32)

    def packs(self, n: int, m: int, seed: int = 0) -> np.ndarray:
        """`n` packs of `m` points, (n, m, 2) float32, put together with replacement from one draw of `n` points.

        The data set of PacGAN (Lin et al., 2017, arXiv:1712.04086), as its authors' code makes it.
        """
        if m < 1:
            raise InputError(f"A pack must hold at least 1 point, not {m}.")
        return self.draw(n, seed)[np.random.default_rng([seed, 1]).integers(n, size=(n, m))]


# As in VEEGAN (Srivastava et al., 2017, arXiv:1705.07761, section 4.1) and PacGAN (Lin et al., 2017, arXiv:1712.04086).
_angles = 2 * np.pi * np.arange(8) / 8
RING = Mixture(np.stack([np.cos(_angles), np.sin(_angles)], -1), 0.01)
GRID = Mixture(np.stack(np.meshgrid(*[np.arange(-4.0, 5.0, 2.0)] * 2), -1).reshape(25, 2), 0.05)


@dataclass(frozen=True, eq=False)
class Points:
    """Feeds whole epochs of the rows of `x` in a seeded order, as {"x": (batch_size, ...)}; they lie on the devices.

    A batch larger than the set is an InputError.
    """

    x: np.ndarray
    batch_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.x):
            raise InputError(f"A batch of {self.batch_size} can't be drawn from a set of {len(self.x)} examples: "
                             f"choose --batch-size between 1 and {len(self.x)}.")

    def resident(self) -> np.ndarray:
        return self.x

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[np.ndarray]:
        for step in itertools.count(start):
            yield indices(seed, step, len(self.x), self.batch_size)

    def batch(self, resident: jax.Array, fed: jax.Array) -> dict[str, jax.Array]:
        return {"x": sharding.over_batch(resident[sharding.over_batch(fed)])}
