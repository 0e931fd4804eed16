"""Evaluators of denoising: bits of images, and samples on their way from noise; and a mixture in
the plane, sampled by the loss and the samplers of ddpm.py and flow.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

from ssljax import figures
from ssljax.data import images
from ssljax.data.mixtures import Mixture, RING
from ssljax.errors import InputError
from ssljax.evals.features import subset
from ssljax.evals.likelihood import bits
from ssljax.evals.modes import recovered
from ssljax.evals.pictures import denoising, samples
from ssljax.losses import diffusion as d
from ssljax.models.mlp import MLP
from ssljax.models.sampler import ddim, flow

KEY = jax.random.key(0)
WIDE = Mixture(RING.centres, 0.1)  # Learned in seconds; the ring itself has a tenth of the width.


def test_bits_of_a_known_model_and_their_floor():
    train, test = images("digits", "train"), images("digits", "test")
    # Pixels of the digits are 0 or one of 16 levels; this model knows that, and no more.
    uniform = lambda state, key, x: jnp.full(len(x), -64 * jnp.log(17.0))
    found = bits(uniform, train, test)({})
    np.testing.assert_allclose(found["bits"], np.log2(17), rtol=1e-6)
    assert found["bits_error"] < 1e-6
    counts = np.zeros((64, 256))
    for image in train.image.reshape(-1, 64):
        counts[np.arange(64), image] += 1
    rest = (counts.sum(0) + 1) / (counts.sum() + 256)
    p = (counts + rest) / (counts.sum(1, keepdims=True) + 1)
    np.testing.assert_allclose(p.sum(1), 1)
    each = [-np.log2(p[np.arange(64), x]).mean() for x in test.image.reshape(-1, 64)]
    np.testing.assert_allclose(found["independent_bits"], np.mean(each), rtol=1e-6)
    assert found["independent_bits"] < found["bits"]


def test_bits_have_the_error_of_their_mean():
    test = images("digits", "test")
    bright = lambda state, key, x: x.astype(jnp.float32).sum((1, 2, 3))
    found = bits(bright, test, test, n=100, batch_size=30)({})
    each = -test.read(subset(test, 100))["image"].reshape(100, -1).sum(1, dtype=float) / (
        64 * np.log(2)
    )
    np.testing.assert_allclose(found["bits"], each.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["bits_error"], each.std(ddof=1) / 10, rtol=1e-5)


def test_bits_refuse_what_is_not_one_number_of_each_image():
    test = images("digits", "test")
    with pytest.raises(InputError, match="one number for each"):
        bits(lambda state, key, x: jnp.zeros((len(x), 2)), test, test).trace({})
    with pytest.raises(InputError, match="2 test images or more"):
        bits(lambda state, key, x: jnp.zeros(len(x)), test, test, n=1)


def test_samples_on_their_way_are_an_animation_and_a_strip(tmp_path):
    """Point i of the way of sample j is an image of brightness (i + j/10) / 40."""

    def path(state, key, n):
        level = (jnp.arange(0, 33, 2)[:, None] + jnp.arange(n) / 10) / 40
        return jnp.broadcast_to(level[..., None, None, None], (17, n, 8, 8, 1))

    found = denoising(path, rows=2, columns=5)({})
    shade = lambda i, j: np.round(255 * (i + j / 10) / 40)
    moving, strip = found["animation"], found["strip"]
    assert moving.dtype == strip.dtype == np.uint8 and len(moving) == 17
    for frame, i in zip(moving, range(0, 33, 2), strict=True):
        side = (frame.shape[1] + 2) // 5
        for j in range(10):
            row, column = divmod(j, 5)
            assert frame[row * side + 5, column * side + 5, 0] == shade(i, j)
    side = (strip.shape[1] + 2) // 5
    for column, i in enumerate((0, 8, 16, 24, 32)):
        for row in range(2):
            assert strip[row * side + 5, column * side + 5, 0] == shade(i, 5 * row)
    figures.write_picture(tmp_path, 3, "denoising/animation", moving)
    with Image.open(tmp_path / "figures" / "denoising_animation.gif") as file:
        assert file.n_frames == 17 and file.info["loop"] == 0
        durations = []
        for i in range(17):
            file.seek(i)
            durations.append(file.info["duration"])
            np.testing.assert_allclose(np.asarray(file.convert("RGB")), moving[i], atol=3)
    assert durations == [100] * 16 + [2000]
    side = (found["samples"].shape[1] + 2) // 5
    drawn = found["samples"][5::side, 5::side, 0]
    np.testing.assert_array_equal(drawn, shade(32, np.arange(10).reshape(2, 5)))
    (kept,) = figures.kept_figures(tmp_path)["denoising_animation"].values()
    assert kept.suffix == ".gif"


def test_rows_of_samples_are_named_in_the_caption():
    draw = lambda state, key, n: jnp.zeros((n, 8, 8, 1))
    caption = samples(draw, 2, 3, names=["apple", "bear"]).captions["samples"]
    assert caption.endswith("None is an original. From the top: apple, bear.")
    assert samples(draw, 2, 3).captions["samples"].endswith("None is an original.")
    path = lambda state, key, n: jnp.zeros((2, n, 8, 8, 1))
    assert denoising(path, 2, 3, names=["apple", "bear"]).captions["samples"] == caption


def trained(loss, steps=500, batch=256):
    """A net of points and times, an MLP that has descended `loss(net, points, key)`."""
    net = MLP((96, 96, 96, 2), activation="silu")

    def forward(params, x, t):
        t = jnp.clip(t, 0, 1)[:, None]
        return net.apply(params, jnp.concatenate([3 * x, t, jnp.sqrt(t), jnp.sqrt(1 - t)], axis=-1))

    params = net.init(KEY, jnp.zeros((1, 5)))
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    points = jnp.asarray(WIDE.draw(100_000))

    @jax.jit
    def learn(params):
        def step(carry, key):
            params, opt_state = carry
            kx, kl = jax.random.split(key)
            x = points[jax.random.randint(kx, (batch,), 0, len(points))]
            grads = jax.grad(lambda p: loss(lambda *a: forward(p, *a), x, kl))(params)
            updates, opt_state = tx.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(KEY, steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    params = learn(params)
    return lambda x, t: forward(params, x, jnp.broadcast_to(t, len(x)))


def check_modes(points):
    """All modes are reached, each about equally often; 7 samples in 10 are near one of them.

    Of the noise 2 in 10 are, and of the mixture itself 98.9 %; these nets learn for two seconds.
    """
    modes, good = recovered(points, WIDE.centres, WIDE.sigma)
    share = np.bincount(
        np.linalg.norm(points[:, None] - WIDE.centres, axis=-1).argmin(1), minlength=8
    ) / len(points)
    assert modes == 8 and good > 60, (modes, good)
    assert share.min() > 0.08 and share.max() < 0.17, share


def test_flow_reaches_all_modes_of_a_mixture():

    def loss(net, x, key):
        kt, kn = jax.random.split(key)
        t, noise = d.spread_times(kt, len(x)), jax.random.normal(kn, x.shape)
        x_t = d.noised(x, noise, *d.straight(t[:, None], 0.0))
        return jnp.mean((net(x_t, t) - d.flow_target(x, noise, 0.0)) ** 2)

    net = trained(loss)
    points = flow(net, jax.random.normal(KEY, (2000, 2)), 20, "heun")
    check_modes(np.asarray(points))


def test_diffusion_reaches_all_modes_of_a_mixture():
    levels = d.noise_schedule("cosine", 200)

    def loss(net, x, key):
        kt, kn = jax.random.split(key)
        t = 1 + (levels.steps * d.spread_times(kt, len(x))).astype(jnp.int32)
        noise, (a, s) = jax.random.normal(kn, x.shape), levels.at(t, 2)
        out = net(d.noised(x, noise, a, s), t / levels.steps)
        return jnp.mean((out - d.target(x, noise, a, s, "epsilon")) ** 2)

    net = trained(loss)
    find = lambda x, t, a, s: d.denoised(net(x, t / levels.steps), x, a, s, "epsilon")
    points = ddim(find, levels, jax.random.normal(KEY, (2000, 2)), 50, clip=1.5)
    check_modes(np.asarray(points))
