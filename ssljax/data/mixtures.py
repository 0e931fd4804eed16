"""Mixtures of Gaussians in the plane, whose modes can be counted."""

from dataclasses import dataclass

import numpy as np

from ssljax.errors import InputError


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equally likely Gaussians at `centres` (k, 2), of standard deviation `sigma` on both axes."""

    centres: np.ndarray
    sigma: float

    def draw(self, n: int, seed: int = 0) -> np.ndarray:
        """`n` points, (n, 2) float32."""
        rng = np.random.default_rng(seed)
        centre = self.centres[rng.integers(len(self.centres), size=n)]
        return (centre + self.sigma * rng.normal(size=(n, 2))).astype(np.float32)

    def packs(self, n: int, m: int, seed: int = 0) -> np.ndarray:
        """`n` packs of `m` points, (n, m, 2) float32, with replacement from `n` points.

        The data set of PacGAN (Lin et al., 2017, arXiv:1712.04086), as its authors' code makes it.
        InputError for packs of less than one point.
        """
        if m < 1:
            raise InputError(f"A pack must hold at least 1 point, not {m}.")
        return self.draw(n, seed)[np.random.default_rng([seed, 1]).integers(n, size=(n, m))]


# As in VEEGAN (Srivastava et al., 2017, arXiv:1705.07761, section 4.1) and in PacGAN.
_angles = 2 * np.pi * np.arange(8) / 8
RING = Mixture(np.stack([np.cos(_angles), np.sin(_angles)], -1), 0.01)
GRID = Mixture(np.stack(np.meshgrid(*[np.arange(-4.0, 5.0, 2.0)] * 2), -1).reshape(25, 2), 0.05)
