"""Where arrays lie: the rule, batches born in a step, and that a layout changes nothing."""

from dataclasses import replace
from functools import partial
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from ssljax import InputError, Run, sharding, train
from tests.conftest import ROOT
from tests.tiny import tiny


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(4)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def test_the_rule_splits_the_largest_dimension_that_divides(mesh):
    assert sharding.fsdp("w", shape(512, 1024), mesh) == P(None, "fsdp")
    assert sharding.fsdp("w", shape(1024, 513), mesh) == P("fsdp", None)
    assert sharding.fsdp("w", shape(511, 1023), mesh) == P()
    assert sharding.fsdp("b", shape(1024), mesh) == P()  # Small.
    assert sharding.fsdp("w", shape(512, 1024), sharding.make_mesh(1)) == P()


def test_a_mesh_that_does_not_fit():
    with pytest.raises(ValueError, match="--run.fsdp 3 does not divide the 8 devices"):
        sharding.make_mesh(3)


def test_over_batch_splits_arrays_made_in_a_step(mesh):
    f = jax.jit(lambda k: sharding.over_batch(jax.random.normal(k, (16, 4))))
    with jax.set_mesh(mesh):
        x = f(jax.random.key(0))
    assert x.sharding.shard_shape(x.shape) == (2, 4)
    np.testing.assert_array_equal(
        x, sharding.over_batch(jax.random.normal(jax.random.key(0), (16, 4)))
    )


def test_fsdp_splits_parameters_and_keeps_results(devices):
    states = {}
    for n, fsdp in ((1, 1), (8, 1), (8, 4)):
        devices(n)
        states[n, fsdp] = train(
            replace(tiny(num_steps=1), partition=partial(sharding.fsdp, min_size=1)), Run(fsdp=fsdp)
        )
    kernel = states[8, 4].params["Dense_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (16, 16)
    for other in ((8, 1), (8, 4)):
        for a, b in zip(
            jax.tree.leaves(states[1, 1].opt_state), jax.tree.leaves(states[other].opt_state)
        ):
            np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max() + 1e-8)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_several_seeds_on_several_devices(devices, fsdp):
    exp = replace(tiny(num_steps=1), partition=partial(sharding.fsdp, min_size=1))
    devices(8)
    many = train(exp, Run(seeds=2, lanes="vmap", fsdp=fsdp))
    devices(1)
    for lane in range(2):
        one = train(exp, Run(seed=lane))
        for a, b in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(many.opt_state)):
            np.testing.assert_allclose(b[lane], a, atol=1e-4 * np.abs(a).max() + 1e-8)


def test_resumes_on_any_layout(devices, tmp_path):
    """A run that goes on from device counts and splits to others computes what one device does.

    Adam's first steps have size lr whatever the gradient's size, so rounding moves parameters by a
    fraction of lr, or by lr where it decides a sign: lr is small here.
    """
    make = lambda steps: replace(
        tiny(num_steps=steps, lr=1e-4), partition=partial(sharding.fsdp, min_size=1)
    )
    layouts = [(8, 4), (8, 2), (1, 1), (8, 8), (2, 1), (4, 4)]
    for steps, (n, fsdp) in enumerate(layouts, 1):
        devices(n)
        state = train(make(steps), Run(workdir=str(tmp_path), fsdp=fsdp))
        kernel = state.params["Dense_0"]["kernel"]
        assert kernel.size // np.prod(kernel.sharding.shard_shape(kernel.shape)) == fsdp
        assert int(state.step) == steps
    devices(1)
    whole = train(make(len(layouts)))
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.params)]) for s in (whole, state)
    )
    # A gradient near 0 whose sign is rounding's moves its parameter by lr either way.
    assert np.isclose(a, b, rtol=1e-3, atol=1e-5).mean() > 0.995
    np.testing.assert_allclose(a, b, atol=6e-4)
    for x, y in zip(*(jax.tree.leaves(s.opt_state) for s in (whole, state)), strict=True):
        np.testing.assert_allclose(y, x, atol=2e-2 * np.abs(x).max() + 1e-8)


def test_batch_not_divisible_by_devices():
    with pytest.raises(InputError, match="batch of 20 can't be split over 8 devices"):
        train(tiny(batch_size=20))


def test_split_cpu_before_any_computation():
    code = (
        "from ssljax import sharding; sharding.split_cpu(3); import jax; "
        "print(jax.device_count()); sharding.split_cpu(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )
    assert done.returncode == 0 and done.stdout.strip() == "3", done.stderr
