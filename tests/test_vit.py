"""The Vision Transformer: against published sizes, JAX's attention, a loop over heads and tokens,
and its own mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from ssljax.errors import InputError
from ssljax.losses.masked_image import masked_patch_loss, patch_statistics, random_mask
from ssljax.models.vit import MAEDecoder, patchify, sincos_positions, unpatchify, ViT

KEY = jax.random.key(0)


def test_vit_b16_has_its_published_size():
    net = ViT(16, 768, 12, 12, "token")
    params = jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, 224, 224, 3))))
    # timm's vit_base_patch16_224: 86,567,656 with a head of 769,000 and 197 · 768 positions.
    assert sum(x.size for x in jax.tree.leaves(params)) == 86_567_656 - 769_000 - 197 * 768


def test_learned_positions_are_added_to_patches_in_their_place():
    net, fixed = (ViT(2, 16, 2, 2, positions=kind) for kind in ("learned", "sincos"))
    x = jax.random.uniform(KEY, (3, 4, 6, 1))
    params = net.init(KEY, x)["params"]
    table = params["places"]["table"]
    assert table.shape == (2, 3, 16) and 0.01 < table.std() < 0.03
    same = params | {"places": {"table": sincos_positions(2, 3, 16).reshape(2, 3, 16)}}
    others = {k: v for k, v in params.items() if k != "places"}
    assert set(fixed.init(KEY, x)["params"]) == set(others)
    apply = lambda net, params, x: net.apply({"params": params}, x, method="tokens")
    np.testing.assert_allclose(apply(net, same, x), apply(fixed, others, x), atol=1e-6)
    gradient = jax.grad(lambda p: apply(net, p, x)[:, 0, 0].sum())(params)["places"]["table"]
    assert jnp.abs(gradient).max(-1).min() > 0
    level = params | {
        "places": {"table": jnp.broadcast_to(table[:1, :1], (2, 3, 16))}
    }  # All alike, so at any size too.
    large = jax.random.uniform(KEY, (3, 8, 8, 1))
    alone = params | {"places": {"table": jnp.broadcast_to(table[:1, :1], (4, 4, 16))}}
    np.testing.assert_allclose(apply(net, level, large), apply(net, alone, large), atol=1e-5)


def naive_cubic(table, n_out):
    """Antialiased cubics (a = -0.5) along the first axis, in float64 loops, as in torch and
    Pillow."""
    n_in, out = len(table), []
    step = n_in / n_out
    for i in range(n_out):
        centre, weights = (i + 0.5) * step, []
        for j in range(n_in):
            x, a = abs(j + 0.5 - centre) / max(step, 1), -0.5
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights.append(near if x < 1 else far if x < 2 else 0)
        out.append(sum(w * row for w, row in zip(weights, table)) / sum(weights))
    return np.array(out)


@pytest.mark.parametrize("old, new", [((8, 8), (5, 5)), ((4, 6), (9, 3)), ((3, 3), (7, 8))])
def test_learned_positions_are_resampled_with_antialiasing(old, new):
    table = np.random.default_rng(0).normal(size=(*old, 16))
    net = ViT(2, 16, 1, 2, positions="learned")
    bound = net.bind({"params": {"places": {"table": jnp.asarray(table, jnp.float32)}}})
    found = np.asarray(bound.places(*new, 16)).reshape(*new, 16)
    want = naive_cubic(naive_cubic(table, new[0]).swapaxes(0, 1), new[1]).swapaxes(0, 1)
    np.testing.assert_allclose(found, want, atol=1e-5)


def naive_vit(params, x, patch, heads):
    """Dosovitskiy et al., 2020, eqs. 1 to 4, in float64, with the exact GELU and ε of timm."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    dense = lambda x, p: x @ p["kernel"] + p["bias"]

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    y = dense(np.asarray(patchify(x, patch), np.float64), p["embed"])
    h, w, d = x.shape[1] // patch, x.shape[2] // patch, y.shape[-1]
    y, blocks = y + np.asarray(sincos_positions(h, w, d), np.float64), p["blocks"]
    for i in range(1, sum(name.startswith("qkv") for name in blocks) + 1):
        z = dense(norm(y, blocks[f"norm{i}a"]), blocks[f"qkv{i}"])
        out = np.zeros_like(y)
        for n in range(len(y)):
            for k in range(heads):
                q, key, v = (
                    z[n][:, j * d :][:, :d][:, k * d // heads :][:, : d // heads] for j in range(3)
                )
                e = np.exp(q @ key.T / np.sqrt(d // heads))
                part = slice(k * d // heads, (k + 1) * d // heads)
                out[n][:, part] = e / e.sum(1, keepdims=True) @ v
        y = y + dense(out, blocks[f"out{i}"])
        z = dense(norm(y, blocks[f"norm{i}b"]), blocks[f"up{i}"])
        y = y + dense(z * (1 + special.erf(z / np.sqrt(2))) / 2, blocks[f"down{i}"])
    return norm(y, blocks["norm"]).mean(1)


def test_vit_is_the_equations():
    net, x = ViT(2, 16, 2, 4), jax.random.normal(KEY, (3, 4, 6, 2))
    params = net.init(KEY, x)["params"]
    params = jax.tree.map(
        lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), params
    )
    want = naive_vit(params, x, 2, 4)
    np.testing.assert_allclose(net.apply({"params": params}, x), want, atol=2e-5)


def test_learned_vit_b16_has_its_published_size():
    net = ViT(16, 768, 12, 12, "token", "learned")
    params = jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, 224, 224, 3))))
    assert (
        sum(x.size for x in jax.tree.leaves(params)) == 86_567_656 - 769_000 - 768
    )  # The token needs no position.


def test_patches_are_cut_and_put_back():
    x = np.arange(2 * 6 * 4 * 3).reshape(2, 6, 4, 3)
    y = patchify(x, 2)
    np.testing.assert_array_equal(
        y[1, 3].reshape(2, 2, 3), x[1, 2:4, 2:4]
    )  # Row 1, column 1 of 3 x 2 patches.
    np.testing.assert_array_equal(unpatchify(y, (6, 4, 3)), x)
    with pytest.raises(InputError, match="Patches of 4 pixels can't tile images of 6x4"):
        patchify(x, 4)


def test_positions_are_sines_of_row_and_column():
    p = np.asarray(sincos_positions(3, 5, 16)).reshape(3, 5, 16)
    omega = [1, 1e-1, 1e-2, 1e-3]
    want = [f(at * w) for at in (2, 4) for f in (np.sin, np.cos) for w in omega]
    np.testing.assert_allclose(p[2, 4], want, atol=1e-6)
    with pytest.raises(InputError, match="4 divides, not 6"):
        sincos_positions(2, 2, 6)


@pytest.mark.parametrize("shape, pool", [((8, 8, 1), "mean"), ((6, 10, 3), "token")])
def test_masked_patches_do_not_affect_visible_tokens(shape, pool):
    """Hidden patches don't move the tokens of those kept, which differ from the tokens of the whole
    image."""
    net = ViT(2, 16, 2, 2, pool)
    x = jax.random.uniform(KEY, (3, *shape))
    params = net.init(KEY, x)
    patches = shape[0] * shape[1] // 4
    keep, place = random_mask(KEY, 3, patches, 0.75)
    hidden = np.asarray(place >= keep.shape[1])
    y = np.array(patchify(x, 2))
    y[hidden] = np.random.default_rng(0).uniform(size=y[hidden].shape)
    other = unpatchify(jnp.asarray(y), shape)
    tokens = lambda x, *a: net.apply(params, x, *a, method="tokens")
    np.testing.assert_allclose(tokens(x, keep), tokens(other, keep), atol=1e-5)
    assert np.abs(tokens(x) - tokens(other)).max() > 1e-2
    everyone = jnp.broadcast_to(
        jnp.arange(patches)[::-1], (3, patches)
    )  # In another order: positions go with patches.
    np.testing.assert_allclose(
        tokens(x, everyone)[:, -patches:], tokens(x)[:, -patches:][:, ::-1], atol=1e-5
    )
    blank = jnp.ones(16)
    np.testing.assert_allclose(
        tokens(x, None, hidden, blank), tokens(other, None, hidden, blank), atol=1e-5
    )
    np.testing.assert_allclose(
        net.apply(params, x), tokens(x)[:, 0] if pool == "token" else tokens(x).mean(1), atol=1e-6
    )


def test_random_masks_have_their_share_and_differ_between_images():
    keep, place = (np.asarray(a) for a in random_mask(KEY, 4000, 16, 0.75))
    assert keep.shape == (4000, 4)
    for k, p in zip(keep[:50], place):
        assert sorted(p) == list(range(16)) and set(np.flatnonzero(p < 4)) == set(k)
        np.testing.assert_array_equal(
            p[k], np.arange(4)
        )  # Where the decoder finds the token of each.
    assert np.abs((place >= 4).mean(0) - 0.75).max() < 0.03
    # Rounded down, as in int(L * (1 - ratio)) of MAE and L - ceil(L * ratio) of SimMIM.
    for patches, share, hidden in ((16, 0.6, 10), (16, 0.1, 2), (64, 0.6, 39), (10, 0.9, 9)):
        keep, place = random_mask(KEY, 100, patches, share)
        assert ((np.asarray(place) >= patches - hidden).sum(1) == hidden).all()
        assert keep.shape == (100, patches - hidden)
    for share in (0.0, 0.96, 1.0):
        with pytest.raises(InputError, match="leaves both"):
            random_mask(KEY, 2, 16, share)


def test_the_decoder_puts_each_token_in_its_place():
    net = MAEDecoder((2, 4), 12, 16, 1, 2)
    _, place = random_mask(KEY, 3, 8, 0.5)
    y = jax.random.normal(KEY, (3, 4, 6))
    params = net.init(KEY, y, place)
    mixed = jnp.array([2, 0, 3, 1])  # The seen in another order are the same picture.
    again = jnp.where(place < 4, jnp.argsort(mixed)[jnp.minimum(place, 3)], place)
    np.testing.assert_allclose(
        net.apply(params, y[:, mixed], again), net.apply(params, y, place), atol=1e-5
    )
    assert np.abs(net.apply(params, y[:, mixed], place) - net.apply(params, y, place)).max() > 1e-2


def test_the_error_is_a_loop_over_what_is_hidden():
    rng = np.random.default_rng(0)
    y, t, hidden = (
        rng.normal(size=(2, 5, 3)),
        rng.normal(size=(2, 5, 3)),
        rng.uniform(size=(2, 5)) < 0.6,
    )
    for power in (1, 2):
        each = [
            abs(y[i, j, k] - t[i, j, k]) ** power for i, j, k in np.ndindex(y.shape) if hidden[i, j]
        ]
        np.testing.assert_allclose(masked_patch_loss(y, t, hidden, power), np.mean(each), rtol=1e-5)
        moved = jax.grad(masked_patch_loss, 1)(
            jnp.asarray(y), jnp.asarray(t), jnp.asarray(hidden), power
        )
        assert (
            (np.abs(moved) > 0) == hidden[:, :, None]
        ).all()  # A pixel that was seen is no target.
    mean, deviation = patch_statistics(jnp.asarray(y, "float32"))
    np.testing.assert_allclose(mean[1, 2, 0], y[1, 2].mean(), rtol=1e-5)
    np.testing.assert_allclose(deviation[1, 2, 0], np.std(y[1, 2], ddof=1), rtol=1e-4)
    assert np.isfinite(jax.grad(lambda y: patch_statistics(y)[1].sum())(jnp.zeros((1, 2, 3)))).all()
