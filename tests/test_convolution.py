"""Convolutions and BatchNorm as a CPU computes them, against XLA's and Flax's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import sharding
from ssljax.models import convolution, resnet
from ssljax.models.blocks import map_blocks, per_block, sum_blocks
from ssljax.models.convolution import convolve, winograd
from ssljax.models.norm import BatchNorm
from ssljax.models.resnet import ResNet

NUMBERS = ("NHWC", "HWIO", "NHWC")


def reference(x, kernel, strides=(1, 1), padding="SAME"):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NUMBERS)


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def agree(f, g, *args, rtol=2e-5):
    """Values, gradients and gradients of gradients of f and g are equal within rounding."""

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(f, *args):
        y, back = jax.vjp(f, *args)
        first = jax.grad(lambda *args: jnp.sum(jnp.tanh(f(*args))), tuple(range(len(args))))
        second = jax.grad(lambda *args: sum(jnp.sum(x**2) for x in first(*args)))
        return y, back(jnp.sin(y)), second(*args)

    pairs = zip(*(jax.tree.leaves(derivatives(h, *args)) for h in (f, g)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize(
    "shape", [(4, 8, 8, 3, 5), (3, 7, 5, 4, 6), (2, 1, 1, 3, 3), (6, 2, 9, 5, 2)]
)
def test_winograd_equals_xla_with_gradients_of_two_orders(shape):
    n, h, w, c, f = shape
    agree(winograd, reference, *draw((n, h, w, c), (3, 3, c, f)))


@pytest.mark.parametrize("blocks", [1, 3])
def test_winograd_in_blocks(blocks, monkeypatch):
    monkeypatch.setattr(convolution, "ROWS", 16 * 6 // blocks)
    agree(winograd, reference, *draw((6, 8, 7, 4), (3, 3, 4, 5)))


@pytest.mark.parametrize(
    "size, stride, padding",
    [
        (1, 2, "SAME"),
        (1, 1, "VALID"),
        (1, 1, [(1, 0), (0, 0)]),
        (2, 3, [(0, 1), (2, 0)]),
        (3, 2, [(1, 1), (1, 1)]),
        (3, 2, "SAME"),
        (3, 1, "SAME"),
        (3, 1, "VALID"),
        (7, 2, [(3, 3), (3, 3)]),
    ],
)
@pytest.mark.parametrize("channels", [3, 32])
def test_convolve_equals_xla(size, stride, padding, channels):
    x, kernel = draw((2, 9, 8, channels), (size, size, channels, 5))
    how = dict(window_strides=(stride, stride), padding=padding, dimension_numbers=NUMBERS)
    agree(
        lambda x, k: convolve(x, k, **how),
        lambda x, k: reference(x, k, (stride, stride), padding),
        x,
        kernel,
    )


@pytest.mark.parametrize(
    "options", [dict(feature_group_count=2), dict(rhs_dilation=(2, 2)), dict(lhs_dilation=(2, 1))]
)
def test_convolve_leaves_groups_and_dilations_to_xla(options):
    x, kernel = draw((2, 6, 6, 4), (3, 3, 4 // options.get("feature_group_count", 1), 4))
    how = dict(window_strides=(1, 1), padding=[(1, 1)] * 2, dimension_numbers=NUMBERS, **options)
    assert (convolve(x, kernel, **how) == jax.lax.conv_general_dilated(x, kernel, **how)).all()


def other_machine():
    """A mesh of one GPU, which is not at hand."""
    device = jax.sharding.AbstractDevice(device_kind="H100", num_cores=None, platform="gpu")
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.AbstractMesh((1, 1), ("data", "fsdp"), auto, abstract_device=device)


def test_platform_is_that_of_the_mesh():
    assert sharding.platform() == "cpu"
    with jax.sharding.use_abstract_mesh(other_machine()):
        assert sharding.platform() == "gpu"


def test_a_resnet_for_an_accelerator_is_flaxs(monkeypatch):
    x = jnp.zeros((16, 32, 32, 3))
    monkeypatch.setattr(resnet, "STAGES", {18: (1, 1)})
    net = ResNet(18, width=32)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)

    def program():
        step = lambda v, x: net.apply(v, x, True, mutable=["batch_stats"])
        return str(jax.make_jaxpr(step)(variables, x))

    on_cpu = program()
    with jax.sharding.use_abstract_mesh(other_machine()):
        ours = program()
    monkeypatch.setattr(resnet, "convolve", None)
    monkeypatch.setattr(resnet, "BatchNorm", nn.BatchNorm)
    assert ours == program() and on_cpu != ours
    assert on_cpu.count("custom_vjp_call") > 5 and "custom_vjp_call" not in ours


def test_a_resnets_step_equals_flaxs(monkeypatch):
    """Loss, gradients and batch statistics, on a mesh of one device and of four."""
    monkeypatch.setattr(resnet, "STAGES", {18: (1, 1)})  # One block with a shortcut, one without.
    x, target = draw((32, 16, 16, 3), (32, 64))
    net = ResNet(18, width=32)
    variables = net.init(jax.random.key(0), x)
    # Blocks are the identity at first: scales of 1 give every layer a gradient.
    variables = jax.tree.map_with_path(
        lambda path, a: jnp.ones_like(a) if path[-1].key == "scale" else a, variables
    )

    def step(params, x):
        v = {"params": params, "batch_stats": variables["batch_stats"]}
        y, new = net.apply(v, x, True, mutable=["batch_stats"])
        return jnp.mean((y - target) ** 2), new

    def run(n):
        mesh = jax.make_mesh(
            (n, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:n]
        )
        with jax.set_mesh(mesh):
            put = jax.device_put(x, jax.NamedSharding(mesh, sharding.BATCH))
            compiled = jax.jit(jax.value_and_grad(step, has_aux=True))
            text = compiled.lower(variables["params"], put).compile().as_text()
            assert not any(word in text for word in ("all-gather(", "all-to-all(", "permute("))
            return jax.device_get(compiled(variables["params"], put))

    found = [run(1), run(4)]
    monkeypatch.setattr(resnet, "convolve", None)
    monkeypatch.setattr(resnet, "BatchNorm", nn.BatchNorm)
    expected = run(1)
    for ours in found:
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-7


@pytest.mark.parametrize("shape", [(64, 5), (4, 3, 2, 7)])
def test_batch_norm_equals_flaxs(shape):
    x, scale, bias = draw(shape, shape[-1:], shape[-1:])
    x = 3 * x + 1
    params = {"scale": scale, "bias": bias}

    def apply(kind):
        net = kind(use_running_average=False, momentum=0.9)
        stats = net.init(jax.random.key(0), x)["batch_stats"]
        out = lambda x, p: net.apply({"params": p, "batch_stats": stats}, x, mutable="batch_stats")
        return lambda x, scale, bias: out(x, {"scale": scale, "bias": bias})[0], out(x, params)[1]

    (ours, stats), (theirs, expected) = apply(BatchNorm), apply(nn.BatchNorm)
    agree(ours, theirs, x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, expected)


def test_batch_norm_evaluates_and_masks_as_flaxs():
    (x,) = draw((8, 3))
    mask = jnp.arange(8)[:, None] < 5
    for options in (dict(use_running_average=True), dict(use_running_average=False, mask=mask)):
        found = []
        for kind in (BatchNorm, nn.BatchNorm):
            net = kind()
            variables = net.init(jax.random.key(0), x, use_running_average=True)
            found.append(net.apply(variables, x, **options, mutable=["batch_stats"]))
        jax.tree.map(np.testing.assert_array_equal, *found)


def test_batch_norm_in_bfloat16_has_float32_statistics():
    x = jnp.asarray(100 + np.random.default_rng(0).normal(size=(256, 3)), jnp.bfloat16)
    net = BatchNorm(use_running_average=False, dtype="bfloat16")
    y, new = net.apply(net.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16 and new["batch_stats"]["mean"].dtype == jnp.float32
    expected = 0.01 * np.asarray(x, np.float64).mean(0)
    np.testing.assert_allclose(new["batch_stats"]["mean"], expected, rtol=1e-5)


def test_per_block_divides_what_each_device_has():
    assert [per_block(n, 5) for n in (1, 4, 6, 7, 30)] == [1, 4, 3, 1, 5]
    mesh = jax.make_mesh((4, 1), ("data", "fsdp"), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        assert [per_block(n, 5) for n in (8, 24, 28, 30)] == [2, 3, 1, 0]


@pytest.mark.parametrize("size", [0, 2, 3, 6])
def test_blocks_equal_the_whole(size):
    x, y = draw((6, 5), (6, 4))
    f = lambda x, y: {"sum": x.sum(1), "product": x[:, :4] * y}
    jax.tree.map(np.testing.assert_array_equal, map_blocks(f, (x, y), size), f(x, y))
    total = sum_blocks(lambda x, y: x.T @ y, (x, y), size, lambda a: 2 * a)
    np.testing.assert_allclose(total, 2 * x.T @ y, rtol=1e-5)
