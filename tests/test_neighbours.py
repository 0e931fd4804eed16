"""Pictures of nearest neighbours before and after training, against neighbours by hand."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.gan import gan
from experiments.simclr import simclr
from ssljax import InputError, Run, train
from ssljax.data import Images, images, PlainImages
from ssljax.data.views import Views
from ssljax.evals.features import subset
from ssljax.evals.pictures import framed_panels, grid
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.neighbours import before_and_after

pytestmark = pytest.mark.usefixtures("one_device")


def run_of(make, folder, evals=None, **arguments):
    exp = replace(make(**arguments), num_steps=3, evals=evals or {})
    return exp, train(exp, Run(workdir=str(folder), seed=5))


def test_before_and_after_shows_the_neighbours_by_the_untrained_and_the_trained_net(tmp_path):
    """Of the seed that was trained, on the net that the run began with."""
    arguments = dict(
        data=Images("digits"),
        view=Views(crop=0.5, jitter=0.0, gray=0.0),
        encoder=ConvNet(widths=(4, 6)),
        head=MLP((8, 4)),
        batch_size=32,
        lr=0.1,
    )
    seen = []
    keep = {"seen": lambda state: seen.append(jax.device_get(state)) or {}}
    exp, trained = run_of(simclr, tmp_path, keep, **arguments)
    bank, queries = images("digits", "train"), images("digits", "test")
    asked = subset(queries, 3)

    def nearest(state):
        known, z = (np.asarray(exp.encode(state, x)) for x in (bank.image, queries.image[asked]))
        known, z = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (known, z))
        index = np.argsort(-z @ known.T, axis=1)[:, :2]
        return bank.image[index], bank.labels[index] == queries.labels[asked][:, None]

    before, after = nearest(seen[0]), nearest(trained)
    assert (before[0] != after[0]).any()
    want = framed_panels(
        {
            "image": (queries.image[asked][:, None], np.zeros((3, 1), bool)),
            "nearest by the untrained net": before,
            "nearest by the trained net": after,
        }
    )
    np.testing.assert_array_equal(before_and_after(tmp_path, rows=3, k=2), want)


def test_a_run_without_features_shows_no_neighbours(tmp_path):
    run_of(gan, tmp_path, data=PlainImages("digits"), hidden=(4,), batch_size=32)
    with pytest.raises(InputError, match="shows no nearest neighbours"):
        before_and_after(tmp_path)


def test_framed_panels_frame_what_is_marked():
    rows = np.full((2, 3, 5, 4, 1), 9, np.uint8)
    marked = np.array([[True, False, False], [False, False, True]])
    picture = framed_panels({"a": (rows, marked), "b": (rows[:, :1], marked[:, :1])}, 5, frame=3)
    # An image is 10 x 8 in a frame of 3, in cells 2 pixels apart, under a title of 24.
    cells = lambda i, j: picture[24 + 18 * i :, 16 * j :][:16, :14]
    for i, j in np.ndindex(2, 3):
        cell = cells(i, j)
        np.testing.assert_array_equal(cell[3:13, 3:11], 9)
        green = (cell[:3] == (0, 170, 80)).all() and (cell[:, :3] == (0, 170, 80)).all()
        assert green == marked[i, j] and (green or (cell[13:] == 255).all())
    assert (picture[:24] < 255).any() and picture.shape[0] == 24 + 2 * 16 + 2
    np.testing.assert_array_equal(grid(rows, cell=10)[:10, :8], 9)
