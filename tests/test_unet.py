"""The U-Net of diffusion models: against Flax's layers, and what its output depends on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.errors import InputError
from ssljax.models.unet import (
    AdaptiveGroupNorm,
    Attention2D,
    from_patches,
    sinusoids,
    TimeBlock,
    TimeUNet,
    to_patches,
)

KEY = jax.random.key(0)


def scrambled(variables, seed=1):
    """Variables in which nothing is 0 or 1, as layers are at first."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), variables)


@pytest.mark.parametrize("channels, groups", [(12, 4), (12, 8), (6, 1), (7, 4)])
def test_group_norm_is_flaxs(channels, groups):
    x = 3 + 2 * jax.random.normal(KEY, (3, 4, 5, channels))
    net = AdaptiveGroupNorm(groups)
    variables = scrambled(net.init(KEY, x))
    used = max(g for g in range(1, groups + 1) if channels % g == 0)
    want = nn.GroupNorm(used).apply(variables, x)
    np.testing.assert_allclose(net.apply(variables, x), want, atol=2e-5)
    scale, shift = jax.random.normal(KEY, (2, 3, channels))
    want = want * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(net.apply(variables, x, scale, shift), want, atol=5e-5)


def test_attention_is_between_the_places_of_an_image():
    """One head at a time, in float64."""
    x = jax.random.normal(KEY, (2, 2, 3, 8))
    net = Attention2D(heads=2, groups=4)
    variables = scrambled(net.init(KEY, x))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    normal = np.asarray(nn.GroupNorm(4).apply({"params": variables["params"]["norm"]}, x))
    for image, flat, got in zip(x, normal.reshape(2, 6, 8), net.apply(variables, x), strict=True):
        q, k, v = np.split(flat @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, axis=-1)
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            scores = np.exp(q[:, h] @ k[:, h].T / np.sqrt(4))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, h])
        out = np.concatenate(heads, 1) @ p["out"]["kernel"] + p["out"]["bias"]
        np.testing.assert_allclose(got, image + out.reshape(2, 3, 8), atol=1e-4)


def test_sinusoids_of_a_thousand_steps_all_differ():
    found = np.asarray(sinusoids(jnp.arange(1000) / 1000, 32))
    t, i = 437, 5
    np.testing.assert_allclose(found[t, i], np.sin(t * 10_000.0 ** (-i / 16)), atol=2e-4)
    np.testing.assert_allclose(found[t, 16 + i], np.cos(t * 10_000.0 ** (-i / 16)), atol=2e-4)
    near = np.linalg.norm(np.diff(found, axis=0), axis=1)
    far = np.linalg.norm(found[100:] - found[:-100], axis=1)
    assert near.min() > 0.5 and far.min() > 2 * near.mean()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_patches_are_put_back_where_they_were(side):
    x = jnp.arange(2 * 6 * 7 * 2.0).reshape(2, 6, 7, 2)
    parts = to_patches(x, side)
    assert parts.shape == (2, -(-6 // side), -(-7 // side), 2 * side**2)
    np.testing.assert_array_equal(parts[:, 0, 0, :2], x[:, 0, 0])
    np.testing.assert_array_equal(from_patches(parts, side)[:, :6, :7], x)


@pytest.mark.parametrize(
    "changes, shape",
    [({"patch": 2, "blocks": 2}, (7, 10, 3)), ({"widths": (8,)}, (5, 5, 1))],
)
def test_output_has_the_shape_of_the_image_and_depends_on_all_that_is_given(changes, shape):
    net = TimeUNet(**{"widths": (8, 12), "heads": 2, "groups": 4} | changes)
    x, t, y = jax.random.normal(KEY, (2, *shape)), jnp.array([0.2, 0.7]), jnp.eye(2)
    start = jax.jit(net.init)(KEY, x, t, y)
    run = jax.jit(net.apply)
    np.testing.assert_array_equal(run(start, x, t, y), jnp.zeros(x.shape))
    share = {"kernel": start["params"]["share"]["kernel"], "bias": jnp.array([2.0])}
    twice = run({"params": start["params"] | {"share": share}}, x, t, y)
    np.testing.assert_allclose(twice, 2 * x, rtol=1e-6)  # The image, times a number of the time.
    params = scrambled(start)
    out = run(params, x, t, y)
    assert out.shape == x.shape and out.dtype == jnp.float32
    moved = {
        "image": run(params, x.at[1, 0, 0].add(1.0), t, y),
        "time": run(params, x, t.at[1].add(0.01), y),
        "class": run(params, x, t, y.at[1].set(0)),
    }
    for what, other in moved.items():
        np.testing.assert_allclose(other[0], out[0], atol=1e-5)  # Examples are independent.
        assert np.abs(other[1] - out[1]).max() > 1e-3, what
    # Attention and the skips reach from one corner to the other.
    assert np.abs(moved["image"][1, -1, -1] - out[1, -1, -1]).max() > 1e-6


def test_attention_is_where_maps_are_small():
    x, t = jnp.zeros((1, 16, 16, 1)), jnp.zeros(1)
    for most, wanted in ((8, {"down1_0", "up1_0"}), (16, {"down0_0", "down1_0"}), (0, set())):
        net = TimeUNet(widths=(8, 8), attention=most, heads=2)
        found = jax.eval_shape(net.init, KEY, x, t)["params"]
        names = {k.removesuffix("_attention") for k in found if k.endswith("_attention")}
        assert wanted <= names and (names == wanted or most == 16)


def test_dropout_is_of_training_alone():
    net = TimeBlock(8, groups=4, dropout=0.5)
    x, e = jax.random.normal(KEY, (2, 6, 6, 8)), jnp.ones((2, 4))
    params = scrambled(net.init(KEY, x, e))
    one, two = (net.apply(params, x, e, True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(net.apply(params, x, e), net.apply(params, x, e))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="3 heads can't share 8 channels"):
        jax.eval_shape(
            TimeUNet(widths=(8,), heads=3).init, KEY, jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
        )
