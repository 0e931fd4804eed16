"""Modes: how many Gaussians of a mixture does a generator reach, and how good are its samples?"""

from collections.abc import Callable, Mapping
from typing import Any, TYPE_CHECKING

import jax
from jax import Array
import numpy as np

from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.evals.features import gathered, Tree
from ssljax.evals.pictures import rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def modes(
    draw: Callable[[Tree, Array, int], Array],
    centres: np.ndarray,
    sigma: float,
    n: int = 2500,
    seed: int = 0,
) -> Evaluator:
    """`modes` and `high_quality` of `n` samples `draw(state, key, n)`, (n, 2), and a picture.

    The ceilings are the number of centres and, for samples of the mixture itself, 98.9 %
    (1 - exp(-9/2)). As in Srivastava et al., 2017, arXiv:1705.07761, section 4.1, and Lin et al.,
    2017, arXiv:1712.04086. InputError if samples are not (n, 2), or not finite.
    """

    @gathered
    def run(state):
        points = draw(state, jax.random.key(seed), n)
        if points.shape != (n, centres.shape[1]):
            raise InputError(
                f"Samples must be of shape {(n, centres.shape[1])}, not {points.shape}."
            )
        return points

    def evaluate(state: Tree) -> Mapping[str, Any]:
        points = np.asarray(run(state))
        count, percent = recovered(points, centres, sigma)
        return {
            "modes": count,
            "high_quality": percent,
            "samples": rendered(mode_figure(points, centres)),
        }

    return Evaluator(
        evaluate,
        better={"modes": "higher", "high_quality": "higher"},
        settings={"n": n, "sigma": sigma, "seed": seed},
        trace=lambda state: jax.eval_shape(run, state),
    )


def recovered(points: np.ndarray, centres: np.ndarray, sigma: float) -> tuple[int, float]:
    """Number of modes reached, and percent of `points` (n, d) that are within 3 `sigma` of one.

    A mode is reached if it is the nearest of `centres` (k, d) to such a point. InputError if a
    point is not finite.
    """
    from scipy.spatial import KDTree

    if not np.isfinite(points).all():
        bad = len(points) - np.isfinite(points).all(1).sum()
        raise InputError(f"{bad} of {len(points)} points are not finite.")
    distance, nearest = KDTree(centres).query(points)
    good = distance < 3 * sigma
    return len(np.unique(np.asarray(nearest)[good])), 100 * float(good.mean())


def mode_figure(points: np.ndarray, centres: np.ndarray) -> "Figure":
    """`points` (n, 2) in blue over rings at `centres` (k, 2); points far outside are not shown."""
    from matplotlib.figure import Figure  # A slow import, not needed before the end.

    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    reach = 1.5 * np.abs(centres).max()
    axes = figure.add_subplot(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.scatter(*centres.T, s=120, facecolors="none", edgecolors="tab:red", linewidths=1)
    axes.scatter(*points.T, s=4, color="tab:blue", alpha=0.3, linewidths=0)
    return figure
