"""Every experiment file, tiny: it trains, resumes to the bit, and computes the same on any layout of devices."""

from dataclasses import replace
from functools import partial
import importlib
import inspect
import shutil

import jax
import numpy as np
import pytest

from ssljax import Run, sharding, train
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.transformer import Transformer
from tests.conftest import ROOT

FILES = sorted(p for p in (ROOT / "experiments").glob("*.py"))
SMALL = {
    "encoder": ConvNet(widths=(8, 16)),
    "batch_size": 32,
    "widths": (8, 16),
    "width": 8,
    "critic_steps": 2,
    "adversarial": 0.5,
    "net": Transformer(2, 2, 16, dropout=0.1),
    "length": 16,
    "vocabulary": 512,
    "predictor": MLP((16, 128), norm=True),
    "queue": 64,
    "prototypes": 8,
}


def make(file, num_steps, **changes):
    function = getattr(importlib.import_module(f"experiments.{file.stem}"), file.stem)
    known = inspect.signature(function).parameters
    exp = function(**{k: v for k, v in (SMALL | changes).items() if k in known})
    return replace(exp, num_steps=num_steps)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
class TestFile:
    def test_reads_like_the_paper(self, file):
        text = file.read_text()
        assert len(text.splitlines()) <= 80
        assert "arxiv.org" in text.split('"""')[1], "the module docstring names its paper"
        assert "launch/local.sh" in text.split('"""')[1], "and its command"

    def test_layouts_agree(self, file, devices, tmp_path):
        """On what a step makes of Adam's moments, which are the gradients (without an Adam, of the parameters), and of all
        that moves without a gradient: one device, eight, and parameters split over four. All begin with what one device
        has after three steps, when teachers, centres, queues and prototypes are no longer as they were drawn."""
        exp = replace(
            make(file, 3, frozen=0.0), evals={}, partition=partial(sharding.fsdp, min_size=1)
        )

        def moving(state):
            state = jax.device_get(state)
            moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim] or jax.tree.leaves(
                state.params
            )
            return moments, [x for x in jax.tree.leaves(state.extra) if x.dtype.kind == "f"]

        devices(1)
        start, step = moving(train(exp, Run(workdir=str(tmp_path / "start")))), {}
        for n, fsdp in ((1, 1), (8, 1), (8, 4)):
            devices(n)
            folder = shutil.copytree(tmp_path / "start", tmp_path / f"{n}{fsdp}")
            new = moving(train(replace(exp, num_steps=4), Run(workdir=str(folder), fsdp=fsdp)))
            step[n, fsdp] = jax.tree.map(lambda a, b: b - a, start, new)
        for other in ((8, 1), (8, 4)):
            for a, b in zip(step[1, 1][1], step[other][1], strict=True):
                np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(a).max() + 1e-6)
            for a, b in zip(step[1, 1][0], step[other][0], strict=True):
                np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(a).max() + 1e-8)

    def test_resumes_to_the_bit(self, file, tmp_path, one_device):
        whole = train(replace(make(file, 4), evals={}))
        train(replace(make(file, 2), evals={}), Run(workdir=str(tmp_path)))
        rest = train(replace(make(file, 4), evals={}), Run(workdir=str(tmp_path)))
        jax.tree.map(np.testing.assert_array_equal, whole, rest)

    def test_trains_and_evaluates(self, file, tmp_path, one_device):
        train(make(file, 3), Run(workdir=str(tmp_path)))
        assert (tmp_path / "results.json").exists() and list((tmp_path / "figures").glob("*.png"))


@pytest.mark.parametrize(
    "name, steps, number, factor",
    [
        *(
            (gan, 100, "test/kid_pixels", 0.8)
            for gan in ("dcgan", "lsgan", "projection", "r1gan", "r3gan", "sngan")
        ),
        ("gan", 200, "test/kid_pixels", 0.4),
        ("wgan_gp", 100, "test/kid_pixels", 0.95),
        ("vae", 150, "test/nll", 0.7),
        ("iwae", 150, "test/nll", 0.75),
        ("cvae", 150, "classify/accuracy", 5),
        ("vqvae", 150, "rate/psnr", 1.5),
        ("autoencoder", 150, "test/squared_error", 0.2),
        ("mae", 100, "knn/accuracy", 1.2),
        ("simmim", 100, "test/error", 0.6),
        ("rotation", 100, "angle/accuracy", 1.5),
        ("inpainting", 100, "hole/psnr", 1.25),
    ],
)
def test_training_betters_what_is_measured(name, steps, number, factor, one_device):
    """By far: a loss of the wrong sign, or a player that doesn't move, is seen."""
    exp, (kind, what) = (
        make(ROOT / "experiments" / f"{name}.py", steps, adversarial=0.001),
        number.split("/"),
    )
    at = lambda steps: exp.evals[kind](train(replace(exp, evals={}, num_steps=steps)))[what]
    fresh, trained = at(1), at(steps)
    assert trained < factor * fresh if factor < 1 else trained > factor * fresh, (fresh, trained)


def test_simclr_learns_digits(one_device):
    """A minute's training beats the untrained net by far."""
    exp = make(ROOT / "experiments" / "simclr.py", 150, batch_size=128)
    exp = replace(exp, evals={"knn": exp.evals["knn"]})
    trained = exp.evals["knn"](train(exp))["accuracy"]
    untrained = exp.evals["knn"](train(replace(exp, num_steps=1)))["accuracy"]
    assert trained > untrained + 3 and trained > 88
