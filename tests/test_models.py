"""Networks: against published sizes, against XLA's convolution, and in bfloat16."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from ssljax.models import activate
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
from ssljax.models.transformer import LanguageModel, norm_of, Transformer


def naive_bert(params, tokens, segment, mask, heads):
    """Devlin et al., 2018, as its code computes it: post-norm blocks, embedding norm, segments and
    the transform of the masked-language-model head; float64, token by token."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    gelu = lambda x: x * (1 + special.erf(x / math.sqrt(2))) / 2
    dense = lambda x, p: x @ p["kernel"] + p["bias"]

    def norm(x, p):
        x = x - x.mean()
        return x / math.sqrt((x**2).mean() + 1e-12) * p["scale"] + p["bias"]

    net, table, logits = p["net"], p["embed"]["embedding"], []
    for row, kinds, seen in zip(np.asarray(tokens), np.asarray(segment), np.asarray(mask)):
        x = [
            norm(table[token] + net["positions"][i] + net["segments"][kind], net["embed_norm"])
            for i, (token, kind) in enumerate(zip(row, kinds))
        ]
        d = len(x[0]) // heads
        for i in range(1, sum(name.startswith("qkv") for name in net) + 1):
            qkv = [dense(y, net[f"qkv{i}"]).reshape(3, heads, d) for y in x]
            new = []
            for t, y in enumerate(x):
                out = []
                for h in range(heads):
                    keys = [s for s in range(len(x)) if seen[s]]
                    w = np.exp([qkv[t][0, h] @ qkv[s][1, h] / math.sqrt(d) for s in keys])
                    out.append(sum(a * qkv[s][2, h] for a, s in zip(w / w.sum(), keys)))
                y = norm(y + dense(np.concatenate(out), net[f"out{i}"]), net[f"norm{i}a"])
                wide = gelu(dense(y, net[f"up{i}"]))
                new.append(norm(y + dense(wide, net[f"down{i}"]), net[f"norm{i}b"]))
            x = new
        x = [norm(gelu(dense(y, p["transform"])), p["transform_norm"]) for y in x]
        logits.append([y @ table.T + p["bias"] for y in x])
    return np.array(logits)


BERT = dict(norm="layer", positions="learned", unit="gelu", blocks="post-norm", segments=2)


def test_bert_matches_a_naive_loop():
    net = Transformer(2, 2, 16, reach=12, **BERT)
    model, keys = LanguageModel(net, 23, causal=False), jax.random.split(jax.random.key(0), 3)
    tokens = jax.random.randint(keys[0], (2, 7), 0, 23)
    params = model.init(keys[1], tokens)
    params = jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), params
    )
    mask = jnp.arange(7) < jnp.array([[5], [7]])
    segment = (jnp.arange(7) > 2).astype(int) * jnp.array([[1], [1]])
    found = model.apply(params, tokens, mask, segment=segment)
    want = naive_bert(params, tokens, segment, mask, 2)
    np.testing.assert_allclose(found[0, :5], want[0, :5], atol=1e-4)
    np.testing.assert_allclose(found[1], want[1], atol=1e-4)
    first = model.apply(params, tokens, mask)  # Without segments all tokens are of the first.
    want = naive_bert(params, tokens, 0 * segment, mask, 2)
    np.testing.assert_allclose(first[1], want[1], atol=1e-4)
    at = jnp.array([[1, 3], [6, 0]])
    some = model.apply(params, tokens, at, method="logits_at")
    whole = model.apply(params, tokens)
    np.testing.assert_allclose(some, jnp.take_along_axis(whole, at[:, :, None], 1), atol=1e-5)


def test_bert_published_size():
    net = Transformer(12, 12, 768, reach=512, **BERT)
    params = shapes_of(LanguageModel(net, 30522, causal=False))
    # Transformers' BertForMaskedLM of bert-base-uncased: 109,514,298, of which no pooler is a part.
    assert sum(x.size for x in jax.tree.leaves(params)) == 109_514_298


def shapes_of(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8), int)))


@pytest.mark.parametrize(
    "form, epsilon", [({}, 1e-6), ({"norm": "layer"}, 1e-5), (BERT, 1e-12), ({"epsilon": 0.1}, 0.1)]
)
def test_epsilon_of_each_form(form, epsilon):
    assert norm_of(Transformer(**form)).epsilon == epsilon


@pytest.mark.parametrize("unit, tanh", [("gelu", False), ("gelu-tanh", True)])
def test_gelu_of_each_form(unit, tanh):
    """A block whose attention adds nothing, by hand: GPT-2's unit has tanh, BERT's the error
    function."""
    net, x = (
        Transformer(1, 2, 8, "layer", unit=unit),
        jax.random.normal(jax.random.key(0), (1, 3, 8)),
    )
    params = net.init(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda a: a + 0.5 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    params["out1"] = jax.tree.map(jnp.zeros_like, params["out1"])
    found = net.apply({"params": params}, x)[0]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    norm = lambda y, q: (
        (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * q["scale"]
        + q["bias"]
    )
    x = np.asarray(x, np.float64)
    z = norm(x, p["norm1b"]) @ p["up1"]["kernel"] + p["up1"]["bias"]
    cubic = np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)
    z = z * (1 + (np.tanh(cubic) if tanh else special.erf(z / np.sqrt(2)))) / 2
    y = x + z @ p["down1"]["kernel"] + p["down1"]["bias"]
    np.testing.assert_allclose(found, norm(y, p["norm"]), atol=1e-5)


def test_gelu_of_an_mlp_is_exact():
    x = np.linspace(-4, 4, 101)
    want = x * (1 + special.erf(x / math.sqrt(2))) / 2
    np.testing.assert_allclose(activate("gelu")(jnp.asarray(x, jnp.float32)), want, atol=1e-6)


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
def test_resnet_published_sizes(depth, stem, size, parameters, features):
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
def test_patch_convolution_matches_xla(size, kernel, stride):
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
def test_transposed_patch_convolution_matches_xla(size):
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
def test_coders_fit_images_of_any_size(coder, shape):
    """Encoder and decoder fit each other, and every pixel finds its place: two ramps can be learned
    by heart."""
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
def test_convnet_image_sizes_and_channels(size, channels):
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
def test_bfloat16_computation_with_float32_parameters(net, x):
    x = jax.random.uniform(jax.random.key(0), x)
    variables = jax.jit(net.init)(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    low, high = (jax.jit(n.apply)(variables, x) for n in (net, net.clone(dtype="float32")))
    error = float(jnp.abs(low.astype(jnp.float32) - high).max() / jnp.abs(high).max())
    assert 0 < error < 0.05  # bfloat16 has 8 bits of mantissa.
    text = str(jax.make_jaxpr(lambda v: net.apply(v, x))(variables))
    assert "bf16" in text


def test_batch_statistics_change_only_in_training():
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
