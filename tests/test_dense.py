"""Parts of dense layers as a CPU computes them, against JAX's; gradients added up in float32."""

from functools import partial
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import sharding
from ssljax.models.convnet import Conv, Up
from ssljax.models.convolution import convolve, wide_kernel_gradient
from ssljax.models.dense import gelu, PRODUCT, product, WIDE
from ssljax.models.mlp import MLP
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import ViT
from ssljax.plan import machines
from tests.test_convolution import agree, draw
from tests.test_plan import compilers


@pytest.mark.parametrize("shape", [(7, 9, 3), (7, 3, 9), (2, 4, 9, 3)])
def test_product_equals_a_dense_layers(shape):
    *rows, d, f = shape
    x, kernel = draw((*rows, d), (d, f))
    layer = lambda dot: (
        lambda x, kernel: nn.Dense(f, use_bias=False, dot_general=dot).apply(
            {"params": {"kernel": kernel}}, x
        )
    )
    agree(layer(product), layer(None), x, kernel)


@pytest.mark.parametrize("rows", [(4096,), (8, 512)])
def test_kernel_gradient_of_bfloat16_is_added_up_in_float32(rows):
    """On eight devices it is the exact sum but for float32's rounding; bfloat16's is above 1e-4."""
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(*rows, n)), jnp.bfloat16) for n in (24, 20))
    rows_of = lambda a: np.asarray(a, np.float64).reshape(-1, a.shape[-1])
    exact, terms = rows_of(x).T @ rows_of(dy), abs(rows_of(x)).T @ abs(rows_of(dy))
    mesh = sharding.make_mesh()
    along = jax.NamedSharding(mesh, sharding.BATCH)
    for options in (WIDE, PRODUCT):
        layer = nn.Dense(20, use_bias=False, dtype="bfloat16", **options)
        with jax.set_mesh(mesh):
            x, dy = jax.device_put((x, dy), along)
            params = layer.init(jax.random.key(0), x)
            grad = jax.jit(lambda x, dy: jax.vjp(lambda p: layer.apply(p, x), params)[1](dy)[0])
            found = grad(x, dy)["params"]["kernel"]
        assert np.max(abs(found - exact) / terms) < 1e-6


@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions_of_bfloat16_have_the_gradients_of_xlas(strides):
    """Of the images and of the kernel, which each device adds its part to."""
    x, kernel, dy = (
        a.astype(jnp.bfloat16) for a in draw((16, 6, 6, 4), (3, 3, 4, 5), (16, 6, 6, 5))
    )
    dy = dy[:, ::strides, ::strides]
    how = dict(padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    conv = partial(jax.lax.conv_general_dilated, window_strides=(strides, strides), **how)
    exact = jax.vjp(conv, x.astype(jnp.float32), kernel.astype(jnp.float32))[1](
        dy.astype(jnp.float32)
    )
    mesh = sharding.make_mesh(2)
    with jax.set_mesh(mesh):
        put = jax.device_put((x, dy), jax.NamedSharding(mesh, sharding.BATCH))
        ours = lambda x, k: wide_kernel_gradient(conv, x, k)
        found = jax.jit(lambda x, dy: jax.vjp(ours, x, kernel)[1](dy))(*put)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float32), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())


class _Nets(nn.Module):
    """One of each net that computes in bfloat16; their kernels, tables and biases."""

    @nn.compact
    def __call__(self, x, tokens):
        low = {"dtype": "bfloat16"}
        conv = nn.Conv(8, (3, 3), conv_general_dilated=convolve, use_bias=False, **low)
        y = [MLP((16, 8), **low)(x), Conv(8, 4, stride=2, **low)(x), Up(8, **low)(x), conv(x)]
        y += [ViT(patch=4, width=16, depth=1, heads=2, **low)(x)]
        y += [LanguageModel(Transformer(1, 2, 16, **low), 50)(tokens)]
        return sum(jnp.mean(a.astype(jnp.float32) ** 2) for a in y)


@compilers
def test_devices_add_up_gradients_of_bfloat16_nets_in_float32(costly):
    """In a program for eight H100s: all but the biases of dense layers."""
    costly(1)
    machine, net = machines.machine_of("h100x8"), _Nets()
    mesh = sharding.make_mesh(devices=list(machine.devices))
    shapes = (jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32),)
    shapes += (jax.ShapeDtypeStruct((16, 12), jnp.int32),)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        params = jax.eval_shape(net.init, jax.random.key(0), *shapes)["params"]
        grad = lambda p, *x: jax.grad(lambda p: net.apply({"params": p}, *x))(p)
        every, along = sharding.replicated(mesh), jax.NamedSharding(mesh, sharding.BATCH)
        step = jax.jit(grad, in_shardings=(every, along, along), out_shardings=every)
        text = step.lower(params, *shapes).compile(compiler_options=machine.options).as_text()
    added = dict.fromkeys(("f32", "bf16"), 0)
    for types in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        for dtype, shape in re.findall(r"(f32|bf16)\[([\d,]*)\]", types):
            added[dtype] += math.prod(map(int, filter(None, shape.split(","))))
    sizes = jax.tree.map_with_path(lambda path, a: (path[-1].key, a.size), params)
    sizes = jax.tree.leaves(sizes, is_leaf=lambda x: isinstance(x, tuple))
    biases = sum(size for name, size in sizes if name == "bias")
    assert added["bf16"] <= biases and added["f32"] >= sum(s for _, s in sizes) - biases


def test_gelu_equals_jaxs_also_in_its_tails():
    x = jnp.linspace(-12, 12, 1001)
    agree(gelu, lambda x: jax.nn.gelu(x, approximate=False), x)
    slope = jax.vmap(jax.grad(gelu))
    np.testing.assert_allclose(
        slope(jnp.array([-5.0, 0.0, 5.0])), [-7.1e-6, 0.5, 1 + 7.1e-6], rtol=2e-2
    )
    assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
