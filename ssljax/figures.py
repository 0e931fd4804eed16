"""Curves of a run."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(rows: Sequence[Mapping[str, Any]], file: pathlib.Path) -> None:
    """Writes `curve_figure(rows)` as a PNG, if there is anything to draw."""
    figure = curve_figure(rows)
    if figure is not None:
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file, dpi=110)


def curve_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Every number of metrics.jsonl over the steps, one panel each; None where there is none.

    Rows are {"step": ..., name: a number, or a list of one for each seed}. Several seeds are drawn
    as their mean and a band from the least to the largest.
    """
    # Slow imports, not needed before the end.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "seconds"):
                series.setdefault(name, {})[row["step"]] = np.atleast_1d(value)
    if not series:
        return None
    columns = min(3, len(series))
    height = -(-len(series) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * height), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, values) in enumerate(series.items()):
        axes = figure.add_subplot(height, columns, i + 1)
        steps = sorted(values)
        axes.plot(steps, [values[s].mean() for s in steps], marker="." if len(steps) < 20 else None)
        if any(len(values[s]) > 1 for s in steps):
            least, largest = ([f(values[s]) for s in steps] for f in (np.min, np.max))
            axes.fill_between(steps, least, largest, alpha=0.25)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return figure
