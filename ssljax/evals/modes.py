"""Modes: how many of a mixture's Gaussians does a generator reach, and how many of its samples belong to one?"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import Array
import numpy as np
from scipy.spatial import KDTree

from ssljax.errors import InputError
from ssljax.evals.features import gathered, Tree


def modes(
    draw: Callable[[Tree, Array, int], Array],
    centres: np.ndarray,
    sigma: float,
    n: int = 2500,
    seed: int = 0,
) -> Callable[[Tree], Mapping[str, Any]]:
    """`modes` and `high_quality` of `n` samples `draw(state, key, n)`, (n, 2), and a picture of them over the centres.

    The ceilings are the number of centres and, for samples of the mixture itself, 98.9 % (1 - exp(-9/2)). The measures
    of Srivastava et al., 2017, arXiv:1705.07761, section 4.1, as Lin et al., 2017, arXiv:1712.04086, take them.
    """
    run = gathered(lambda state: draw(state, jax.random.key(seed), n))

    def evaluate(state: Tree) -> Mapping[str, Any]:
        points = np.asarray(run(state))
        count, percent = recovered(points, centres, sigma)
        return {"modes": count, "high_quality": percent, "samples": picture(points, centres)}

    return evaluate


def recovered(points: np.ndarray, centres: np.ndarray, sigma: float) -> tuple[int, float]:
    """The number of `centres` (k, d) that are the nearest of a point within 3 `sigma` of them, and the percentage of
    such points among `points` (n, d). InputError if a point is not finite."""
    if not np.isfinite(points).all():
        raise InputError(
            f"{len(points) - np.isfinite(points).all(1).sum()} of {len(points)} points are not finite."
        )
    distance, nearest = KDTree(centres).query(points)
    good = distance < 3 * sigma
    return len(np.unique(nearest[good])), 100 * float(good.mean())


def picture(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """`points` (n, 2) in blue over rings at `centres` (k, 2), (H, W, 3) uint8; points far outside are not shown."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # Slow imports, not needed before the end.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    reach = 1.5 * np.abs(centres).max()
    axes = figure.add_subplot(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.scatter(*centres.T, s=120, facecolors="none", edgecolors="tab:red", linewidths=1)
    axes.scatter(*points.T, s=4, color="tab:blue", alpha=0.3, linewidths=0)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
