"""Networks: against published sizes, against XLA's convolution, and in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.models.coder import Convolutional, Dense
from ssljax.models.convnet import (
    Conv,
    ConvNet,
    lax_conv,
    lax_conv_transpose,
    patch_matmul,
    patch_matmul_transpose,
)
from ssljax.models.mlp import MLP
from ssljax.models.resnet import ResNet


def shapes(net, *shape):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(shape)))


@pytest.mark.parametrize(
    "depth, stem, size, parameters, features",
    [
        (
            18,
            "imagenet",
            224,
            11_176_512,
            512,
        ),  # torchvision's resnet18, 34 and 50 without their last layer:
        (
            34,
            "imagenet",
            224,
            21_284_672,
            512,
        ),  # 11,689,512, 21,797,672 and 25,557,032 less 1000 (features + 1).
        (50, "imagenet", 224, 23_508_032, 2048),
        (18, "cifar", 32, 11_168_832, 512),  # A 3x3 stem has 64 · 3 · (49 - 9) parameters less.
    ],
)
def test_resnets_have_their_published_sizes(depth, stem, size, parameters, features):
    net = ResNet(depth, stem)
    variables = shapes(net, 2, size, size, 3)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters
    assert jax.eval_shape(
        lambda v: net.apply(v, jnp.zeros((2, size, size, 3))), variables
    ).shape == (2, features)


def test_resnet_resolutions():
    net = ResNet(18, "imagenet", width=4)
    _, seen = jax.eval_shape(
        lambda: net.init_with_output(
            jax.random.key(0), jnp.zeros((1, 64, 64, 3)), capture_intermediates=True
        )
    )
    sizes = {
        name: x["__call__"][0].shape[1]
        for name, x in seen["intermediates"].items()
        if "conv2" in name or name == "stem"
    }
    assert (
        sizes["stem"] == 32
        and sizes["stage1_block1_conv2"] == 16
        and sizes["stage4_block2_conv2"] == 2
    )


@pytest.mark.parametrize("size", [7, 8, 9, 28])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (4, 2), (2, 2), (4, 4), (1, 1), (2, 1)])
def test_patches_convolve_as_xla_does(size, kernel, stride):
    x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 3))
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, 3, 5))
    np.testing.assert_allclose(patch_matmul(x, w, stride), lax_conv(x, w, stride), atol=1e-4)
    grads = [
        jax.grad(lambda x, w: (f(x, w, stride) ** 2).sum(), (0, 1))(x, w)
        for f in (patch_matmul, lax_conv)
    ]
    for a, b in zip(*grads):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7)])
def test_patches_convolve_transposed_as_xla_does(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    w = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    np.testing.assert_allclose(patch_matmul_transpose(x, w), lax_conv_transpose(x, w), atol=1e-4)
    grads = [
        jax.grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1))(x, w)
        for f in (patch_matmul_transpose, lax_conv_transpose)
    ]
    for a, b in zip(*grads):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    "coder", [Dense((64,)), Convolutional((8, 16, 16))], ids=["dense", "convolutional"]
)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 27, 3)])
def test_coders_learn_an_image_of_any_size(coder, shape):
    """Encoder and decoder fit each other, and every pixel finds its place: two ramps can be learned by heart."""
    ramps = jnp.stack(jnp.meshgrid(*[jnp.linspace(0, 1, s) for s in shape[:2]], indexing="ij"))
    x = jnp.broadcast_to(ramps[..., None], (2, *shape))
    encoder, decoder = coder.encoder(6), coder.decoder(shape)
    z, e = encoder.init_with_output(jax.random.key(1), x)
    params = {"encoder": e, "decoder": decoder.init(jax.random.key(2), z)}
    again = lambda p: decoder.apply(p["decoder"], encoder.apply(p["encoder"], x))
    tx = optax.adam(2e-3)

    @jax.jit
    def learn(params, opt):
        value, grads = jax.value_and_grad(lambda p: jnp.mean((again(p) - x) ** 2))(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value

    opt = tx.init(params)
    for _ in range(300):
        params, opt, value = learn(params, opt)
    assert value < 0.1 * float(x.var())
    many = jax.random.normal(jax.random.key(3), (3, 2, 6))  # Codes may have any leading axes.
    each = jnp.stack([decoder.apply(params["decoder"], z) for z in many])
    np.testing.assert_allclose(decoder.apply(params["decoder"], many), each, atol=1e-5)


@pytest.mark.parametrize("size, channels", [(8, 1), (33, 3)])
def test_convnet_takes_any_image(size, channels):
    net = ConvNet(widths=(4, 8, 8, 12))
    x = jax.random.uniform(jax.random.key(0), (3, size, size, channels))
    variables = jax.jit(net.init)(jax.random.key(1), x)
    y, _ = jax.jit(lambda v: net.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
    assert y.shape == (3, 12) and float(jnp.std(y, axis=0).min()) > 0


@pytest.mark.parametrize(
    "net, x",
    [
        (ConvNet((8, 8), dtype="bfloat16"), (4, 8, 8, 3)),
        (ResNet(18, width=4, dtype="bfloat16"), (4, 16, 16, 3)),
        (MLP((16, 8), norm=True, dtype="bfloat16"), (4, 8)),
    ],
)
def test_bfloat16_computes_low_and_keeps_high(net, x):
    x = jax.random.uniform(jax.random.key(0), x)
    variables = jax.jit(net.init)(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    low, high = (jax.jit(n.apply)(variables, x) for n in (net, net.clone(dtype="float32")))
    error = float(jnp.abs(low.astype(jnp.float32) - high).max() / jnp.abs(high).max())
    assert 0 < error < 0.05  # bfloat16 has 8 bits of mantissa.
    text = str(jax.make_jaxpr(lambda v: net.apply(v, x))(variables))
    assert "bf16" in text


def test_batch_statistics_move_in_training_alone():
    net, x = ConvNet((4, 8)), jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    variables = net.init(jax.random.key(1), x)
    _, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
    moved = jax.tree.map(
        lambda a, b: not np.allclose(a, b), variables["batch_stats"], new["batch_stats"]
    )
    assert any(jax.tree.leaves(moved))
    np.testing.assert_array_equal(net.apply(variables, x)[:2], net.apply(variables, x[:2]))


def test_conv_has_the_parameters_of_a_convolution():
    variables = shapes(Conv(8, 3, 2), 1, 9, 9, 4)
    assert variables["params"]["kernel"].shape == (3, 3, 4, 8)
