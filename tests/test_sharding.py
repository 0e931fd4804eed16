"""Where arrays lie: the rule, batches born in a step, and that a layout changes nothing."""

from dataclasses import replace
from functools import partial
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from experiments.simmim import simmim
from ssljax import InputError, minimize, Run, sharding, train, TrainState
from ssljax.checkpoint import flatten
from ssljax.data import Images
from ssljax.models.transformer import Transformer
from ssljax.models.vit import ViT
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


def test_fsdp_splits_parameters_and_keeps_results(devices, capsys):
    states = {}
    for n, fsdp in ((1, 1), (8, 1), (8, 4)):
        devices(n)
        states[n, fsdp] = train(
            replace(tiny(num_steps=1), partition=partial(sharding.fsdp, min_size=1)), Run(fsdp=fsdp)
        )
    assert "large parameters split over 4" in capsys.readouterr().out
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


NETS = {
    "vit": (ViT(patch=4, width=16, depth=2, heads=4), jnp.zeros((8, 8, 8, 3))),
    "decoder": (Transformer(2, 4, 16, norm="layer", positions="learned"), jnp.zeros((8, 6, 16))),
    "cross": (Transformer(1, 4, 16, positions="relative", unit="geglu"), jnp.zeros((8, 6, 16))),
}


@pytest.mark.parametrize("name", NETS)
def test_tensor_parallelism_computes_the_same(name):
    """Heads and hidden channels split over two or four devices, with fsdp: Adam's moments, and no
    activation that is gathered."""
    net, x = NETS[name]
    x = jax.random.normal(jax.random.key(1), x.shape)
    given = (lambda x: {"memory": x}) if name == "cross" else lambda x: {}
    tx = optax.adam(1e-2)

    def init():
        return TrainState.create(tx, net.init(jax.random.key(0), x[:1], **given(x[:1]))["params"])

    def loss(params, state, batch, key):
        y = net.apply({"params": params}, batch["x"], **given(batch["x"][:, ::-1]))
        return jnp.sum(jnp.sin(y if name == "vit" else y[0])), (state.extra, {})

    states = {}
    for layout in ((1, 1, 1), (8, 1, 2), (8, 2, 4)):
        n, fsdp, tensor = layout
        mesh = sharding.make_mesh(fsdp, jax.devices()[:n], tensor)
        rule = partial(sharding.tensor, other=partial(sharding.fsdp, min_size=1))
        with jax.set_mesh(mesh):
            at = sharding.shard_state(jax.eval_shape(init), rule, mesh)

            def step(state, x):
                return minimize(tx, loss)(state, {"x": x}, jax.random.key(0))

            state = jax.jit(init, out_shardings=at)()
            split = jax.device_put(x, jax.NamedSharding(mesh, sharding.BATCH))
            compiled = jax.jit(step, out_shardings=(at, None)).lower(state, split).compile()
            states[layout] = compiled(state, split)[0]
        if tensor > 1:
            kernels = [k for k in flatten(state.params) if "up1/kernel" in k or "out1/kernel" in k]
            for path in kernels:
                kernel = flatten(state.params)[path]
                assert kernel.size == fsdp * tensor * np.prod(
                    kernel.sharding.shard_shape(kernel.shape)
                )
        if layout == (8, 1, 2):
            text = compiled.as_text()
            gathers = re.findall(r"= (\S+?)\{\S+ all-gather\(", text)
            # What is whole at rest, and each head's gradient on its device: biases and distances.
            assert "all-reduce" in text
            assert set(gathers) <= {"f32[3,4,4]", "f32[32,4]"}, gathers
    for layout in ((8, 1, 2), (8, 2, 4)):
        for a, b in zip(
            jax.tree.leaves(states[1, 1, 1].opt_state), jax.tree.leaves(states[layout].opt_state)
        ):
            np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max() + 1e-8)


def test_a_run_split_by_heads_resumes_whole(devices, tmp_path, capsys):
    """The header says that it is split, and the numbers are those of one device."""
    vit = ViT(patch=2, width=24, depth=1, heads=2)
    make = lambda steps: replace(
        simmim(Images("digits"), vit, batch_size=16, lr=1e-4),
        num_steps=steps,
        evals={},
        partition=partial(sharding.fsdp, min_size=1),
    )
    for steps, (n, run) in enumerate([(8, Run(tensor=2, fsdp=2)), (1, Run())]):
        devices(n)
        state = train(make(steps + 1), replace(run, workdir=str(tmp_path)))
        header = capsys.readouterr().out
        assert ("heads and hidden channels split over 2" in header) == (run.tensor == 2)
        kernel = state.params["encoder"]["params"]["blocks"]["up1"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[1] * run.tensor == kernel.shape[1]
    devices(1)
    whole = train(make(2))
    for x, y in zip(*(jax.tree.leaves(s.opt_state) for s in (whole, state)), strict=True):
        np.testing.assert_allclose(y, x, atol=2e-2 * np.abs(x).max() + 1e-8)


def test_tensor_parallelism_that_is_not_possible(devices):
    with pytest.raises(InputError, match="splits the layers of ViTs and Transformers"):
        train(tiny(num_steps=1), Run(tensor=2))
    with pytest.raises(InputError, match="--run.fsdp 2 times --run.tensor 3 does not divide the 8"):
        sharding.make_mesh(2, tensor=3)
    mesh = sharding.make_mesh(1, tensor=4)
    with pytest.raises(InputError, match="--run.tensor 4 does not divide the 30 channels of a/up1"):
        sharding.tensor("a/up1/kernel", shape(8, 30), mesh)
    with (
        jax.set_mesh(mesh),
        pytest.raises(InputError, match="--run.tensor 4 can't split 6 heads evenly"),
    ):
        net = ViT(patch=4, width=24, depth=1, heads=6)
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((8, 8, 8, 3)))
