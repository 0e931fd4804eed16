"""Figures of evaluators, by what they show."""

from matplotlib import colors
import numpy as np
import pytest

from ssljax.evals.lag import lag_curves, lag_figure
from ssljax.evals.likelihood import kl_figure
from ssljax.evals.modes import mode_figure
from ssljax.evals.pictures import rendered, scatter_figure


def test_lag_curves_are_the_given_numbers():
    lines = {"trained": np.array([1, 0.5, 0.01]), "untrained": np.array([1, 3.0, 0])}
    (axes,) = lag_figure(lines).axes
    assert axes.get_yscale() == "log"
    found = {line.get_label(): line for line in axes.lines}
    assert found.keys() == lines.keys() == {t.get_text() for t in axes.get_legend().texts}
    for name, y in lines.items():
        np.testing.assert_array_equal(found[name].get_xdata(), [1, 2, 3])
        np.testing.assert_allclose(found[name].get_ydata(), np.maximum(y, 1e-12))
    assert not np.array_equal(lag_curves(lines), lag_curves({"trained": lines["trained"]}))


def test_kl_bars_are_as_high_as_the_kl_and_blue_where_active():
    kl, active = np.array([3.0, 1.5, 0.01]), np.array([True, True, False])
    (axes,) = kl_figure(kl, active).axes
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], kl)
    found = [bar.get_facecolor() == colors.to_rgba("tab:blue") for bar in axes.patches]
    np.testing.assert_array_equal(found, active)


def test_modes_show_points_and_centres():
    points, centres = np.array([[0.5, 0.2], [0.1, 0.9]]), np.array([[0.0, 1], [1, 0]])
    (axes,) = mode_figure(points, centres).axes
    rings, dots = axes.collections
    np.testing.assert_allclose(rings.get_offsets(), centres)
    np.testing.assert_allclose(dots.get_offsets(), points)


def test_scatter_shows_the_points_of_each_class_in_its_colour():
    points = np.random.default_rng(0).normal(size=(9, 2))
    labels, names = np.arange(9) % 3, ["cat", "dog", "cow"]
    (axes,) = scatter_figure(points, labels, names).axes
    seen = set()
    for c, dots in enumerate(axes.collections):
        np.testing.assert_allclose(dots.get_offsets(), points[labels == c])
        assert dots.get_label() == names[c]
        seen.add(tuple(dots.get_facecolor()[0]))
    assert len(seen) == 3


@pytest.mark.filterwarnings("error")
def test_legends_have_the_names_of_any_folders():
    names = ["_noise_", r"$\frac$", "花", "a" * 200, "x\ny", "plain"]
    points = np.random.default_rng(0).normal(size=(12, 2))
    figure = scatter_figure(points, np.arange(12) % 6, names)
    found = [text.get_text() for text in figure.legends[0].get_texts()]
    assert found == ["_noise_", r"$\frac$", "花", "a" * 29 + "…", "x y", "plain"]
    picture = rendered(figure)
    width = picture.shape[1]
    assert figure.axes[0].get_window_extent().width > width / 2  # The legend leaves it room.
    assert (picture[:, : width // 2] != 255).any()


def test_rendered_figures_have_the_colours_drawn():
    picture = rendered(kl_figure(np.array([3.0]), np.array([True])))
    assert picture.shape == (400, 800, 3) and picture.dtype == np.uint8
    blue = np.round(255 * np.array(colors.to_rgb("tab:blue"))).astype(int)
    assert (np.abs(picture.astype(int) - blue).max(-1) <= 1).sum() > 10_000
