"""Curves of a run, by the numbers that are drawn."""

import numpy as np
from PIL import Image

from ssljax.figures import curve_figure, curves

ROWS = [
    {"step": 0, "knn/accuracy": [10.0, 12.0]},
    {"step": 20, "loss": [3.0, 5.0], "seconds": [1.5]},
    {"step": 10, "loss": [7.0, 8.0]},
    {"step": 30, "loss": [1.0, 2.0], "knn/accuracy": [50.0, 60.0], "lr": 0.1},
]


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_curves_are_the_numbers_of_the_rows_in_the_order_of_steps():
    found = panels(curve_figure(ROWS))
    assert set(found) == {"knn/accuracy", "loss", "lr"}
    lines = {
        "loss": ([10, 20, 30], [7.5, 4, 1.5]),
        "knn/accuracy": ([0, 30], [11, 55]),
        "lr": ([30], [0.1]),
    }
    for name, (steps, means) in lines.items():
        (line,) = found[name].lines
        np.testing.assert_allclose(line.get_xdata(), steps)
        np.testing.assert_allclose(line.get_ydata(), means)
        low, high = found[name].get_ylim()
        assert low < min(means) and max(means) < high


def test_bands_reach_from_the_least_to_the_largest_seed():
    found = panels(curve_figure(ROWS))
    (band,) = found["loss"].collections
    points = band.get_paths()[0].vertices
    for step, low, high in ((10, 7, 8), (20, 3, 5), (30, 1, 2)):
        at = points[points[:, 0] == step, 1]
        assert (at.min(), at.max()) == (low, high)
    assert not found["lr"].collections


def test_curves_file_shows_the_lines(tmp_path):
    """Two runs with other numbers have other pictures, with the line's colour in them."""
    pictures = []
    for i, rise in enumerate((0.0, 1.0)):
        file = tmp_path / "figures" / f"{i}.png"
        curves([{"step": s, "loss": [rise * s]} for s in range(30)], file)
        pictures.append(np.asarray(Image.open(file).convert("RGB")).astype(int))
    blue = [(p[..., 2] - p[..., 0] > 100) for p in pictures]
    flat, rising = (np.flatnonzero(b.any(1)) for b in blue)
    assert len(flat) < 6 and len(rising) > 100


def test_nothing_is_written_without_numbers(tmp_path):
    curves([{"step": 3, "seconds": [1.0]}], tmp_path / "figures" / "curves.png")
    assert not (tmp_path / "figures").exists() and curve_figure([]) is None


def test_curves_with_gaps_and_nan():
    rows = [{"step": s, "loss": [np.nan if s == 2 else float(s)]} for s in range(4)]
    (line,) = panels(curve_figure(rows))["loss"].lines
    np.testing.assert_allclose(line.get_ydata(), [0, 1, np.nan, 3])
