"""DCGAN's nets: image sizes, norms, and spectral normalisation against NumPy's singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models.dcgan import Discriminator, Generator

NORMS = ["batch", "layer", "spectral", "none"]


def variables(net, *shape):
    x = jax.random.normal(jax.random.key(0), shape)
    return x, jax.jit(net.init)(jax.random.key(1), x)


def test_dcgan_published_size():
    """64x64x3 from 100 latents by 1024, 512, 256 and 128 channels: figure 1 of the paper."""
    count = lambda v: sum(x.size for x in jax.tree.leaves(v["params"]))
    shapes = lambda net, *shape: jax.eval_shape(
        lambda: net.init(jax.random.key(0), jnp.zeros(shape))
    )
    convolutions = 16 * (1024 * 512 + 512 * 256 + 256 * 128)
    g = shapes(Generator((64, 64, 3), (1024, 512, 256, 128)), 2, 100)
    assert count(g) == 100 * 4 * 4 * 1024 + convolutions + 16 * 128 * 3 + 3 + 2 * (
        1024 + 512 + 256 + 128
    )
    d = shapes(Discriminator((128, 256, 512, 1024)), 2, 64, 64, 3)
    assert count(d) == 16 * 3 * 128 + 128 + convolutions + 4 * 4 * 1024 + 1 + 2 * (256 + 512 + 1024)


@pytest.mark.parametrize(
    "norm, shape", [*((norm, (8, 8, 1)) for norm in NORMS), ("none", (9, 6, 3))]
)
def test_image_sizes_and_channels(norm, shape):
    g, d = Generator(shape, (8, 4), norm), Discriminator((4, 8), norm)
    z, vg = variables(g, 5, 7)
    x = jax.jit(lambda v: g.apply(v, z, True, mutable=["batch_stats"])[0])(vg)
    assert x.shape == (5, *shape) and float(jnp.abs(x).max()) <= 1 and float(x.std(0).min()) > 0
    _, vd = variables(d, *x.shape)
    run = lambda x: d.apply(vd, x, True, mutable=["batch_stats"])[0]
    y, slope = jax.jit(lambda x: (run(x), jax.grad(lambda x: run(x)[0])(x)))(x)
    assert y.shape == (5,) and float(y.std()) > 0
    alone = (
        np.abs(np.asarray(slope[1:])).max() < 1e-7
    )  # Only BatchNorm lets other images have a say.
    assert np.abs(slope[0]).max() > 0 and alone == (norm != "batch")


def test_features_are_the_heads_inputs():
    d = Discriminator((4, 8), "none")
    x, v = variables(d, 3, 8, 8, 1)
    h = d.clone(head=False).apply(v, x)
    dense = v["params"]["Dense_0"]
    assert h.shape == (3, 2 * 2 * 8)
    np.testing.assert_allclose(
        (h @ dense["kernel"] + dense["bias"])[:, 0], d.apply(v, x), rtol=1e-5
    )


def settled(net, *shape):
    """The net after so many training steps that its power iterations have arrived."""
    x, v = variables(net, *shape)
    train = jax.jit(lambda v: v | net.apply(v, x, True, mutable=["batch_stats"])[1])
    for _ in range(200):
        v = train(v)
    return x, v


def kernels(v):
    """Yield each normalised kernel as a matrix, and the singular value estimated for it."""
    for sigma in v["batch_stats"].values():
        (key,) = (k for k in sigma if k.endswith("sigma"))
        w = v["params"][key.split("/")[0]]["kernel"]
        yield np.asarray(w, np.float64).reshape(-1, w.shape[-1]), float(sigma[key])


def test_spectral_normalisation_matches_numpys_singular_value():
    d = Discriminator((6, 12), "spectral")
    x, v = settled(d, 4, 8, 8, 3)
    assert len(v["batch_stats"]) == 3
    for w, sigma in kernels(v):
        assert sigma == pytest.approx(np.linalg.svd(w, compute_uv=False)[0], rel=1e-3)
    # Nothing but the direction of a kernel is left, and in use nothing moves.
    grown = v | {"params": jax.tree.map(lambda x: 7 * x if x.ndim > 1 else x, v["params"])}
    out, same = d.apply(v, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(d.apply(grown, x), out, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], v["batch_stats"])


def test_a_spectrally_normalised_discriminator_is_lipschitz():
    """Each matrix has norm 1, and a 4x4 kernel of stride 2 covers a pixel 4 times: at most 2."""
    d = Discriminator((6, 12), "spectral")
    x, v = settled(d, 64, 8, 8, 3)
    grad = jax.jit(lambda v: jax.grad(lambda x: d.apply(v, x).sum())(x))
    slope = grad(v)
    assert 0 < np.linalg.norm(np.asarray(slope).reshape(64, -1), axis=1).max() <= 4
    big = v | {"params": jax.tree.map(lambda x: 100 * x if x.ndim > 1 else x, v["params"])}
    np.testing.assert_allclose(grad(big), slope, rtol=1e-3, atol=1e-5)


def test_gradient_through_spectral_normalisation():
    """Miyato et al., 2018, eq. 12: a kernel's length does not matter: no gradient along itself."""
    d = Discriminator((6, 12), "spectral")
    x, v = settled(d, 4, 8, 8, 3)
    grads = jax.jit(jax.grad(lambda p: d.apply(v | {"params": p}, x).sum()))(v["params"])
    for name in ("Conv_0", "Conv_1", "Dense_0"):
        g, w = (np.asarray(t[name]["kernel"], np.float64).ravel() for t in (grads, v["params"]))
        assert abs(g @ w) < 1e-3 * np.linalg.norm(g) * np.linalg.norm(w) and np.linalg.norm(g) > 0


@pytest.mark.parametrize(
    "net, shape",
    [
        (Generator((8, 8, 1), (8, 4), dtype="bfloat16"), (4, 7)),
        (Discriminator((4, 8), dtype="bfloat16"), (4, 8, 8, 1)),
        (Discriminator((4, 8), "spectral", dtype="bfloat16"), (4, 8, 8, 1)),
    ],
)
def test_bfloat16_computation_with_float32_parameters(net, shape):
    x, v = variables(net, *shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(v)} == {jnp.dtype("float32")}
    low, high = (
        jax.jit(lambda v, n=n: n.apply(v, x, True, mutable=["batch_stats"])[0])(v)
        for n in (net, net.clone(dtype="float32"))
    )
    assert low.dtype == jnp.float32
    assert 0 < float(jnp.abs(low - high).max()) < 0.1 * float(jnp.abs(high).max())
