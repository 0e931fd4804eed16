"""Curves of a run."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np


def curves(rows: Sequence[Mapping[str, Any]], file: pathlib.Path) -> None:
    """Draws every number of metrics.jsonl over the steps, one panel each; several seeds as a mean and a band."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "seconds"):
                series.setdefault(name, {})[row["step"]] = (
                    value if isinstance(value, list) else [value]
                )
    if not series:
        return
    columns = min(3, len(series))
    figure = Figure(figsize=(4 * columns, 2.6 * -(-len(series) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, values) in enumerate(series.items()):
        axes = figure.add_subplot(-(-len(series) // columns), columns, i + 1)
        steps = sorted(values)
        y = np.asarray([values[step] for step in steps])
        axes.plot(steps, y.mean(1), marker="." if len(steps) < 20 else None)
        if y.shape[1] > 1:
            axes.fill_between(steps, y.min(1), y.max(1), alpha=0.25)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=110)
