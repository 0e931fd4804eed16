"""ddpm.py and flow.py on images without labels, and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ddpm import ddpm
from experiments.flow import flow
from ssljax.data import PlainImages
from ssljax.errors import InputError
from ssljax.models.unet import TimeUNet

KEY = jax.random.key(0)
BOTH = pytest.mark.parametrize("make", [ddpm, flow])
SMALL = {"unet": TimeUNet(widths=(8,), heads=2), "batch_size": 8, "epochs": 1, "sampling_steps": 2}


@pytest.fixture
def unlabelled(tmp_path):
    rng = np.random.default_rng(0)
    images = {
        f"{s}_images": rng.integers(0, 256, (24, 6, 6, 1), np.uint8) for s in ("train", "test")
    }
    np.savez(tmp_path / "images.npz", **images)
    return PlainImages(str(tmp_path / "images.npz"))


def started(exp, batch):
    """A state whose net does something: at first its output is 0."""
    rng, state = np.random.default_rng(0), jax.jit(exp.init)(KEY, batch)
    draw = lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype)
    return state.replace(extra={"ema": jax.tree.map(draw, state.extra["ema"])})


@BOTH
def test_images_without_labels_are_learned_and_drawn(make, unlabelled, one_device):
    exp = make(unlabelled, **SMALL)
    batch = {"image": jnp.asarray(unlabelled.read().train.read(np.arange(8))["image"])}
    state, metrics = jax.jit(exp.step)(started(exp, batch), batch, KEY)
    assert 0.3 < metrics["loss"] < 3  # The net's output is 0 at first.
    shapes = jax.eval_shape(lambda: state)
    for evaluate in exp.evals.values():
        evaluate.trace(shapes)
    found = exp.evals["samples"](state)
    assert found["animation"].shape[0] == 3  # The noise, and two steps.
    assert len({frame.tobytes() for frame in found["animation"]}) == 3


@BOTH
def test_guidance_needs_labels(make, unlabelled):
    with pytest.raises(InputError, match="give images with labels"):
        make(unlabelled, guidance=1.0, **SMALL)


@BOTH
def test_guidance_moves_samples_away_from_those_without_a_class(make, one_device):
    """By an amount that is linear in its weight at the first step: here there is one."""

    def drawn(guidance):
        linear = {"method": "euler"} if make is flow else {"predict": "v"}
        settings = SMALL | {"sampling_steps": 1} | linear
        exp = make(PlainImages("digits"), guidance=guidance, **settings)
        batch = {"image": jnp.zeros((2, 8, 8, 1), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}
        state = started(exp, batch)
        return exp.evals["samples"](state)["animation"][-1].astype(float)

    none, some, more = map(drawn, (0.0, 1.0, 2.0))
    assert np.abs(some - none).max() > 2
    inside = (none > 0) & (none < 255) & (more > 0) & (more < 255)
    assert inside.mean() > 0.2
    np.testing.assert_allclose((more - none)[inside], 2 * (some - none)[inside], atol=2.1)


def test_more_sampling_steps_than_the_diffusion_has_are_refused(unlabelled):
    exp = ddpm(unlabelled, **SMALL | {"sampling_steps": 30}, diffusion_steps=25)
    batch = {"image": jax.ShapeDtypeStruct((8, 6, 6, 1), jnp.uint8)}
    state = jax.eval_shape(exp.init, KEY, batch)
    with pytest.raises(InputError, match="25 steps can't be sampled in 30"):
        exp.evals["samples"].trace(state)
