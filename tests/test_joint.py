"""Joint-embedding experiments: views, chains, teachers, queues, prototypes and their losses."""

from dataclasses import replace
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.barlow import barlow
from experiments.byol import byol
from experiments.dino import dino
from experiments.finetune import finetune
from experiments.ibot import ibot
from experiments.ijepa import ijepa
from experiments.lejepa import lejepa
from experiments.mae import mae
from experiments.moco import moco
from experiments.mocov3 import mocov3
from experiments.nnclr import nnclr
from experiments.simclr import simclr
from experiments.simsiam import simsiam
from experiments.supcon import supcon
from experiments.swav import swav
from experiments.vicreg import vicreg
from ssljax import InputError, load, Run, train
from ssljax.data import augment, Images, images, PlainImages
from ssljax.data.sources import share
from ssljax.data.views import MultiCrop, Views
from ssljax.losses.distillation import teacher_temperature
from ssljax.losses.infonce import normalize
from ssljax.losses.masked_image import block_masks, blockwise_masks
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Chain, rebuild
from ssljax.models.mlp import MLP
from ssljax.models.vit import Predictor, sincos_positions, ViT, ViTBlocks
from ssljax.pretrained import encoder_of
from ssljax.record import plain

KEY = jax.random.key(0)
PLAIN = Views(jitter=0.0, gray=0.0)  # Colours take most of the compiler's time.
DIGITS = Images("digits")
BRIEF = {"data": DIGITS, "batch_size": 32, "epochs": 1}
TINY = BRIEF | {
    "encoder": ConvNet(widths=(8, 16)),
    "head": MLP((16, 8), norm=True),
}
VIT = ViT(patch=2, width=24, depth=1, heads=2)
ONE, CROPS = TINY | {"view": PLAIN}, TINY | {"crops": MultiCrop(PLAIN), "prototypes": 8}


def digits(n=32):
    return {k: jnp.asarray(v) for k, v in images("digits", "train").read(np.arange(n)).items()}


def states(exp, steps=2):
    """The states at step 0, 1, ..., as the loop makes them."""
    step, out = jax.jit(exp.step), [jax.jit(exp.init)(KEY, digits())]
    for i in range(steps):
        new, _ = step(out[-1], digits(), jax.random.key(i))
        out.append(new.replace(step=new.step + 1))
    return out


def traced(exp):
    """What the step would make, without compiling it: enough to meet its errors."""
    return jax.eval_shape(exp.step, jax.eval_shape(exp.init, KEY, digits()), digits(), KEY)


def close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# Views.


def test_views_compose_their_augmentations():
    x = images("photos", "train").read(np.arange(4))["image"]
    batch = {"image": x}
    k1, k2, k3, k4 = jax.random.split(KEY, 4)
    y = augment.random_resized_crop(k1, augment.to_float(x), 16, scale=(0.3, 1.0))
    y = augment.grayscale(
        k4, augment.colour_jitter(k2, augment.flip(k3, y, 0.5), 0.2, 0.2, 0.2, 0.05, p=0.8), 0.2
    )
    view = Views(view_size=16, crop=0.3, jitter=0.2)
    np.testing.assert_array_equal(view(KEY, batch), y)
    several = view.several(KEY, batch, 3)
    assert several.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(several[1::3], view(jax.random.split(KEY, 3)[1], batch))
    np.testing.assert_allclose(view.whole(x).mean(), x.mean() / 255, atol=0.01)
    rare = Views(crop=1.0, flip=0.0, jitter=0.0, gray=0.0, solarize=1.0)(KEY, batch)
    np.testing.assert_allclose(rare, np.where(x >= 127.5, 255 - x, x) / 255, atol=1e-5)
    assert jnp.abs(Views(crop=1.0, blur=1.0)(KEY, batch) - Views(crop=1.0)(KEY, batch)).max() > 0.01
    four = Views(crop=1.0, flip=0.0, gray=0.0, jitter=(0.4, 0.3, 0.2, 0.1))(KEY, batch)
    np.testing.assert_allclose(
        four, augment.colour_jitter(k2, augment.to_float(x), 0.4, 0.3, 0.2, 0.1, p=0.8), atol=1e-5
    )


def test_blur_and_solarise_probabilities_per_view():
    """BYOL's, and DINO's, whose small views come third: each is the view of that chance alone."""
    x = images("photos", "train").read(np.arange(4))["image"]
    batch = {"image": x}
    plain = Views(crop=1.0, flip=0.0, jitter=0.0, gray=0.0)
    of = lambda key, blur, solarize: replace(plain, blur=blur, solarize=solarize)(key, batch)
    k1, k2, k3 = jax.random.split(KEY, 3)
    unequal = replace(plain, blur=(1.0, 0.0), solarize=(0.0, 1.0))
    views = unequal.each(KEY, batch, 3)
    for found, want in zip(views, (of(k1, 1.0, 0.0), of(k2, 0.0, 1.0), of(k3, 0.0, 1.0))):
        np.testing.assert_array_equal(found, want)
    for i in range(3):  # An image's views are next to each other.
        np.testing.assert_array_equal(unequal.several(KEY, batch, 3)[i::3], views[i])
    drawn = [unequal.either(k, batch) for k in jax.random.split(KEY, 8)]
    first = [bool((d == of(k, 1.0, 0.0)).all()) for d, k in zip(drawn, jax.random.split(KEY, 8))]
    second = [bool((d == of(k, 0.0, 1.0)).all()) for d, k in zip(drawn, jax.random.split(KEY, 8))]
    assert any(first) and any(second) and all(a != b for a, b in zip(first, second))
    np.testing.assert_array_equal(plain.either(KEY, batch), plain(KEY, batch))
    for blur, small in (
        (1.0, 1.0),
        ((1.0, 0.1), (0.1,)),
        ((1.0, 0.1, 0.5), (0.5,)),
        ((1.0, 0.1, 0.5, 0.2), (0.5, 0.2)),
    ):
        kinds = MultiCrop(replace(plain, crop=0.2, blur=blur)).kinds(x.shape[1:])
        assert [v.blur for v in kinds] == [blur, small]


def test_multi_crop_returns_large_and_small_views():
    x = np.zeros((2, 32, 32, 3), np.uint8)
    batch = {"image": x}
    x[:, :16] = 255
    large, small = MultiCrop(Views(jitter=0, gray=0, crop=0.05)).kinds((32, 32, 3))
    assert (large.view_size, large.crop, large.crop_most) == (0, 0.4, 1.0)
    assert (small.view_size, small.crop, small.crop_most) == (16, 0.05, 0.4)
    assert [v.shape for v in MultiCrop(small=3)(KEY, batch)] == [
        (2, 2, 32, 32, 3),
        (2, 3, 16, 16, 3),
    ]
    assert [v.shape for v in MultiCrop(small=1, small_size=8)(KEY, batch)] == [
        (2, 2, 32, 32, 3),
        (2, 1, 8, 8, 3),
    ]
    assert [v.shape for v in MultiCrop(Views(view_size=24), small=0)(KEY, batch)] == [
        (2, 2, 24, 24, 3)
    ]
    for crops, words in (
        (
            MultiCrop(Views(view_size=33)),
            "--view-size must be at most the images' 32 pixels, not 33",
        ),
        (MultiCrop(small_size=64), "--small-size must be at most the images' 32 pixels, not 64"),
    ):
        with pytest.raises(InputError, match=words):
            crops(KEY, {"image": x})
    with pytest.raises(InputError, match="--view-size must be at most the images' 32 pixels"):
        Views(view_size=33)(KEY, batch)
    for make, words in (
        (lambda: MultiCrop(part=0.1), "--part must lie between --crop 0.2 and --crop-most 1.0"),
        (lambda: MultiCrop(large=1, small=0), "Two or more views"),
        (lambda: Views(crop=0.9, crop_most=0.5), "--crop must be at most --crop-most 0.5, not 0.9"),
    ):
        with pytest.raises(InputError, match=words):
            make()


# Chains.


def test_chain_composes_nets_and_updates_statistics_per_batch():
    f, g = ConvNet(widths=(4,)), MLP((8, 3), norm=True)
    x, y = jax.random.normal(KEY, (6, 8, 8, 1)), jax.random.normal(jax.random.key(1), (4, 4, 4, 1))
    k1, k2 = jax.random.split(KEY)
    params, stats = Chain(f=f, g=g).init((k1, k2), x)
    h, new_f = f.apply(
        {"params": params["f"], "batch_stats": stats["f"]}, x, True, mutable=["batch_stats"]
    )
    z, new_g = g.apply(
        {"params": params["g"], "batch_stats": stats["g"]}, h, True, mutable=["batch_stats"]
    )
    found, new = Chain(f=f, g=g)(params, stats | {"more": 1}, x, train=True)
    np.testing.assert_array_equal(found, z)
    close(new, {"f": new_f["batch_stats"], "g": new_g["batch_stats"]}, 0)
    np.testing.assert_array_equal(Chain(f=f)(params, stats, x, train=True)[0], h)
    (one, two), after = Chain(f=f, g=g).each(params, stats, [x, y])
    np.testing.assert_array_equal(one, z)
    alone, _ = Chain(f=f, g=g)(
        params, stats, y, train=True
    )  # By y's own statistics, whatever came before.
    np.testing.assert_array_equal(two, alone)
    # Three views of two images, then two smaller ones: f by sizes, g on all at once.
    both, of = Chain(f=f, g=g).crops(
        params, stats, [x.reshape(2, 3, 8, 8, 1), y.reshape(2, 2, 4, 4, 1)]
    )
    views = lambda x, y: jnp.concatenate([x.reshape(2, 3, -1), y.reshape(2, 2, -1)], axis=1)
    h1, h2 = (Chain(f=f)(params, stats, v, train=True)[0] for v in (x, y))
    want, of_g = Chain(g=g)(params, stats, views(h1, h2).reshape(10, -1), train=True)
    np.testing.assert_array_equal(both, want.reshape(2, 5, 3))
    close(of, {"f": after["f"], "g": of_g["g"]}, 0)
    assert jnp.abs(both - views(one, two)).max() > 1e-3
    mean = [
        np.mean(
            f.apply(
                {"params": params["f"], "batch_stats": stats["f"]},
                v,
                True,
                capture_intermediates=True,
                mutable=["intermediates", "batch_stats"],
            )[1]["intermediates"]["conv1"]["__call__"][0],
            (0, 1, 2),
        )
        for v in (x, y)
    ]
    np.testing.assert_allclose(
        after["f"]["norm1"]["mean"], 0.9 * 0.1 * mean[0] + 0.1 * mean[1], atol=1e-6
    )


@pytest.mark.parametrize(
    "net", [ConvNet(widths=(4, 8)), ViT(patch=2, width=8, depth=1, heads=2, pool="token")]
)
def test_encoders_are_rebuilt_from_a_record(net):
    assert rebuild(plain(net)) == net
    params, stats = Chain(encoder=net).init((KEY,), jnp.zeros((2, 8, 8, 1)))
    assert Chain(encoder=net)(params, stats, jnp.zeros((2, 8, 8, 1)), train=True)[0].shape == (2, 8)


# Teachers, queues, prototypes.


@pytest.mark.parametrize(
    "make, name",
    [
        (byol, "target"),
        (moco, "target"),
        (mocov3, "target"),
        (dino, "teacher"),
        (ibot, "teacher"),
        (ijepa, "teacher"),
    ],
)
def test_teacher_is_the_moving_average_of_the_weights(make, name):
    """Teacher of step k: τ old + (1 - τ) θ_k, used by the step that makes θ_{k+1}; τ by hand."""
    more = {"predictor": MLP((16, 8), norm=True)} if make in (byol, mocov3) else {}
    more |= {"queue": 64} if make is moco else {}
    some = CROPS if make is dino else BRIEF | {"vit": VIT} if make in (ibot, ijepa) else ONE
    more |= {"crops": MultiCrop(PLAIN, small=0), "head": MLP((16, 8))} if make is ibot else {}
    exp = make(**some, **more, decay=0.6)
    seen = states(exp, 3)
    for k in range(3):
        left = (
            1 - k / exp.num_steps
            if make is ijepa
            else (math.cos(math.pi * k / exp.num_steps) + 1) / 2
        )
        tau = 0.6 if make is moco else 1 - 0.4 * left
        old, new = seen[k].extra[name], seen[k + 1].extra[name]
        weights = {n: seen[k].params[n] for n in old}
        close(new, jax.tree.map(lambda a, b: tau * a + (1 - tau) * b, old, weights))
    close(seen[0].extra[name], {n: seen[0].params[n] for n in seen[0].extra[name]}, 0)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), seen[1].extra[name], seen[3].extra[name]
    )
    assert max(jax.tree.leaves(moved)) > 1e-5


def test_mocos_queue_holds_the_keys_of_the_last_batches():
    zero, one, two = (s.extra["queue"] for s in states(moco(**ONE, queue=96)))
    np.testing.assert_array_equal(two[64:], zero[:32])
    np.testing.assert_array_equal(two[32:64], one[:32])
    np.testing.assert_allclose(jnp.linalg.norm(two, axis=1), 1, rtol=1e-5)
    assert jnp.abs(two[:32] - one[:32]).max() > 0.01
    for size in (16, 48):
        with pytest.raises(InputError, match="--queue must be a multiple of --batch-size 32"):
            moco(**ONE, queue=size)


@pytest.mark.parametrize("make", [swav, dino])
def test_frozen_prototypes_have_zero_gradient(make):
    moments = lambda exp: optax.tree.get(states(exp, 1)[1].opt_state, "mu")
    frozen, free = (moments(make(**CROPS, frozen=f)) for f in (0.5, 0.0))
    np.testing.assert_array_equal(frozen["prototypes"], 0)
    assert jnp.abs(free["prototypes"]).max() > 0
    for name in ("encoder", "head"):
        assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(frozen[name]) if x.ndim > 1) > 0


def test_swavs_prototypes_stay_normalised():
    seen = states(swav(**CROPS, frozen=0.0, lr=0.1))
    np.testing.assert_allclose(jnp.linalg.norm(seen[2].params["prototypes"], axis=1), 1, rtol=1e-5)
    assert jnp.abs(seen[2].params["prototypes"] - seen[1].params["prototypes"]).max() > 1e-3
    held = states(swav(**CROPS, frozen=1.0, lr=0.1))
    close(held[2].params["prototypes"], held[0].params["prototypes"])


def test_dinos_centre_is_the_moving_average_of_the_teachers_outputs():
    exp = dino(**CROPS, centre_decay=0.0, decay=1.0)
    zero, one, two = states(exp)
    large = MultiCrop(PLAIN)(jax.random.key(1), digits())[0]
    net = Chain(encoder=TINY["encoder"], head=TINY["head"])
    z, _ = net.crops(zero.params, zero.extra, [large])  # At a decay of 1 the teacher stays.
    np.testing.assert_allclose(
        two.extra["centre"],
        (normalize(z) @ normalize(zero.params["prototypes"]).T).mean((0, 1)),
        atol=1e-5,
    )
    slow = states(dino(**CROPS, centre_decay=0.75, decay=1.0))
    np.testing.assert_array_equal(slow[0].extra["centre"], 0)
    np.testing.assert_allclose(
        slow[2].extra["centre"],
        0.75 * 0.25 * one.extra["centre"] + 0.25 * two.extra["centre"],
        atol=1e-6,
    )


# Loss and gradient of a step by the papers' equations in plain arrays, once nets and queues have
# moved.


class Noisy(Views):
    """An image and noise, the more, the later the view: one that compiles at once."""

    def __call__(self, key, batch, number=0):
        images = batch["image"]
        return augment.to_float(images) + (0.5 + 0.2 * number) * jax.random.normal(
            key, images.shape
        )


NORMED = MLP((9, 6), norm=True, last_norm=True)
WIRED = {
    "data": DIGITS,
    "encoder": MLP((12, 10), norm=True),
    "head": MLP((9, 6), norm=True),
    "view": Noisy(),
    "optimizer": "sgd",
    "batch_size": 32,
    "epochs": 1,
    "lr": 0.5,
    "weight_decay": 0.0,
}


def mlp(p, x):
    """An MLP with this batch's statistics: the layers without a bias are the normalised ones."""
    x = x.reshape(len(x), -1)
    for i in range(sum("Dense" in name for name in p)):
        layer, norm = p[f"Dense_{i}"], p.get(f"BatchNorm_{i}")
        x = x @ layer["kernel"] + layer.get("bias", 0)
        x = x if "bias" in layer else (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
        x = x if norm is None else jnp.maximum(x * norm["scale"] + norm["bias"], 0)
    return x


def through(p, x, *names):
    for name in names or ("encoder", "head"):
        x = mlp(p[name], x)
    return x


def unit(z):
    return z / jnp.linalg.norm(z, axis=1, keepdims=True)


def cross_entropy(logits):  # For the diagonal.
    return jnp.mean(jnp.log(jnp.exp(logits).sum(1)) - jnp.diagonal(logits))


def of_simclr(p, state, target, x1, x2):
    z = unit(through(p, jnp.concatenate([x1, x2])))
    others = jnp.exp(z @ z.T / 0.1).sum(1) - jnp.exp(jnp.sum(z * z, 1) / 0.1)
    return jnp.mean(jnp.log(others) - jnp.sum(z * jnp.roll(z, 32, 0), 1) / 0.1)


def of_supcon(p, state, target, x1, x2):
    z, labels = (
        unit(through(p, jnp.concatenate([x1, x2]))),
        np.tile(images("digits", "train").labels[:32], 2),
    )
    others = jnp.exp(z @ z.T / 0.1).sum(1) - jnp.exp(jnp.sum(z * z, 1) / 0.1)
    alike = (labels[:, None] == labels) & ~np.eye(64, dtype=bool)
    return jnp.mean(jnp.sum(alike * (jnp.log(others)[:, None] - z @ z.T / 0.1), 1) / alike.sum(1))


def of_moco(p, state, target, x1, x2):
    q, k = unit(through(p, x1)), unit(through(target, x2))
    positive, negative = jnp.sum(q * k, 1) / 0.1, q @ state.extra["queue"].T / 0.1
    return jnp.mean(jnp.log(jnp.exp(positive) + jnp.exp(negative).sum(1)) - positive)


def of_mocov3(p, state, target, x1, x2):
    q1, q2 = (unit(through(p, x, "encoder", "head", "predictor")) for x in (x1, x2))
    k1, k2 = (unit(through(target, x)) for x in (x1, x2))
    return 0.4 * (cross_entropy(q1 @ k2.T / 0.2) + cross_entropy(q2 @ k1.T / 0.2))


def of_byol(p, state, target, x1, x2):
    q1, q2 = (unit(through(p, x, "encoder", "head", "predictor")) for x in (x1, x2))
    z1, z2 = (unit(through(target, x)) for x in (x1, x2))
    return jnp.mean(jnp.sum((q1 - z2) ** 2 + (q2 - z1) ** 2, 1))


def of_simsiam(p, state, target, x1, x2):
    p1, p2 = (unit(through(p, x, "encoder", "head", "predictor")) for x in (x1, x2))
    z1, z2 = (
        unit(through(state.params, x)) for x in (x1, x2)
    )  # Constants: the gradient is with respect to p.
    return -jnp.mean(jnp.sum(p1 * z2, 1)) / 2 - jnp.mean(jnp.sum(p2 * z1, 1)) / 2


def of_nnclr(p, state, target, x1, x2):
    p1, p2 = (unit(through(p, x, "encoder", "head", "predictor")) for x in (x1, x2))
    queue = state.extra["queue"]
    n1, n2 = (queue[jnp.argmax(unit(through(state.params, x)) @ queue.T, 1)] for x in (x1, x2))
    return (cross_entropy(n1 @ p2.T / 0.1) + cross_entropy(n2 @ p1.T / 0.1)) / 2


def of_barlow(p, state, target, x1, x2):
    z1, z2 = ((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5) for z in (through(p, x1), through(p, x2)))
    c = z1.T @ z2 / 32
    same = jnp.eye(6, dtype=bool)
    return jnp.sum(jnp.where(same, (1 - c) ** 2, 5e-3 * c**2))


def of_vicreg(p, state, target, x1, x2):
    z = [through(p, x) for x in (x1, x2)]
    value = 25 * jnp.mean((z[0] - z[1]) ** 2)
    for covariance in (jnp.cov(a.T) for a in z):
        value += 25 * jnp.mean(jnp.maximum(0, 1 - jnp.sqrt(jnp.diagonal(covariance) + 1e-4)))
        value += jnp.sum(jnp.where(jnp.eye(6, dtype=bool), 0, covariance) ** 2) / 6
    return value


def across(q, logits):
    """-Σ q log p over pairs of different views, the mean of pairs and images."""
    pairs = [(s, v) for s in range(len(q)) for v in range(len(logits)) if s != v]
    return -sum(jnp.sum(q[s] * jax.nn.log_softmax(logits[v]), 1).mean() for s, v in pairs) / len(
        pairs
    )


def one_after_another(parts):
    """Views (n, views, ...) of each size as the papers' code has them: (views n, ...)."""
    return [x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for x in parts]


def cropped(p, prototypes, *parts):
    """The cosines (views, 32, prototypes): the encoder by size, the head on all."""
    z = mlp(p["head"], jnp.concatenate([mlp(p["encoder"], x) for x in parts]))
    return (unit(z) @ unit(prototypes).T).reshape(-1, 32, 8)


def of_swav(p, state, target, large, small):
    codes = []
    for s in cropped(state.params, state.params["prototypes"], large, small)[:2]:
        q = jnp.exp(s / 0.05)
        for _ in range(3):
            q = q / q.sum(0) / 8
            q = q / q.sum(1, keepdims=True) / 32
        codes.append(q * 32)
    z = mlp(p["head"], jnp.concatenate([mlp(p["encoder"], x) for x in (large, small)]))
    return across(codes, (unit(z) @ p["prototypes"].T).reshape(-1, 32, 8) / 0.1)


def of_dino(p, state, target, large, small):
    tau = 0.04 + 0.03 * 3 / (44 // 3)  # At the fourth step, of 44.
    q = jax.nn.softmax((cropped(target, target["prototypes"], large) - state.extra["centre"]) / tau)
    return across(q, cropped(p, p["prototypes"], large, small) / 0.1)


def fourth_step(exp):
    """State before the fourth step, and its metrics, gradient and key.

    Two of the three steps before it have moved the net, as warm-up begins at 0.
    """
    batch = digits(exp.data.batch_size)
    step, new, key = jax.jit(exp.step), jax.jit(exp.init)(KEY, batch), jax.random.key(9)
    for k in range(4):
        state = new.replace(step=jnp.int32(k))
        new, metrics = step(state, batch, key)
    trace = lambda state: optax.tree.get(state.opt_state, "trace")
    found = jax.tree.map(
        lambda a, b: a - 0.9 * b, trace(new), trace(state)
    )  # Momentum's sum gives the gradient.
    return state, metrics, found, key


def rising(decay, steps=44):
    return 1 - (1 - decay) * (math.cos(math.pi * 3 / steps) + 1) / 2


def agree(loss, found, want, gradient):
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    close(found, gradient, 1e-4 * max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)))


NORM, PREDICT = {"head": NORMED}, {"predictor": MLP((7, 6), norm=True)}
MULTI = {"crops": MultiCrop(Noisy()), "prototypes": 8, "frozen": 0.0}


@pytest.mark.parametrize(
    "make, of, changes",
    [
        (simclr, of_simclr, {}),
        (supcon, of_supcon, {}),
        (moco, of_moco, {"queue": 64, "decay": 0.8}),
        (mocov3, of_mocov3, NORM | PREDICT | {"decay": 0.8}),
        (byol, of_byol, NORM | PREDICT | {"decay": 0.8}),
        (simsiam, of_simsiam, NORM | PREDICT),
        (nnclr, of_nnclr, NORM | PREDICT | {"queue": 64}),
        (barlow, of_barlow, {}),
        (vicreg, of_vicreg, {}),
        (swav, of_swav, MULTI),
        (dino, of_dino, MULTI | {"decay": 0.8}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_step_matches_the_papers_equation(make, of, changes):
    """Loss and gradient after three steps, of which two have moved the net: warm-up begins at 0."""
    settings = {k: v for k, v in (WIRED | changes).items() if k != "view" or "crops" not in changes}
    state, metrics, found, key = fourth_step(make(**settings))
    views = (
        one_after_another(changes["crops"](key, digits()))
        if "crops" in changes
        else [Noisy()(k, digits(), i) for i, k in enumerate(jax.random.split(key))]
    )
    old = state.extra.get("target", state.extra.get("teacher"))
    tau = 0.8 if make is moco else rising(0.8)
    target = old and jax.tree.map(
        lambda a, b: tau * a + (1 - tau) * b, old, {k: state.params[k] for k in old}
    )
    agree(
        metrics["loss"],
        found,
        *jax.jit(jax.value_and_grad(of))(state.params, state, target, *views),
    )


def test_lejepa_step_matches_the_papers_equation():
    """Three large views and a small one, with complex exponentials and a loop over directions."""
    crops = MultiCrop(Noisy(), large=3, small=1)
    state, metrics, found, key = fourth_step(
        lejepa(**{k: v for k, v in WIRED.items() if k != "view"}, crops=crops, slices=5, sketch=0.3)
    )
    k1, k2 = jax.random.split(key)
    large, small = one_after_another(crops(k1, digits()))
    knots = np.linspace(-3, 3, 33)

    def equation(params):
        h = jnp.concatenate([mlp(params["encoder"], x) for x in (large, small)])
        z = mlp(params["head"], h).reshape(4, 32, 6)
        agreement = jnp.mean((z - (z[0] + z[1] + z[2]) / 3) ** 2)
        statistics = []
        for direction in unit(jax.random.normal(k2, (5, 6))):
            for view in z:
                # The empirical characteristic function.
                found = jnp.exp(1j * jnp.outer(knots, view @ direction)).mean(1)
                height = abs(found - np.exp(-(knots**2) / 2)) ** 2 * np.exp(-(knots**2) / 2)
                statistics.append(32 * jnp.sum((height[1:] + height[:-1]) / 2 * np.diff(knots)))
        return 0.7 * agreement + 0.3 * sum(statistics) / 20

    agree(metrics["loss"], found, *jax.jit(jax.value_and_grad(equation))(state.params))


def test_ijepa_step_matches_the_papers_equation():
    """Unseen patches are left out, in loops over images and blocks; the experiment masks them."""
    vit = ViT(patch=2, width=12, depth=1, heads=2)
    state, metrics, found, key = fourth_step(
        ijepa(
            data=DIGITS,
            vit=vit,
            predictor_width=8,
            predictor_depth=1,
            decay=0.8,
            view=Noisy(),
            optimizer="sgd",
            batch_size=3,
            epochs=1,
            lr=0.5,
            weight_decay=0.0,
            final_decay=0.0,
        )
    )
    (k1, k2), place, tau = (
        jax.random.split(key),
        sincos_positions(4, 4, 8),
        0.8 + 0.2 * 3 / (1437 // 3),
    )
    x = Noisy()(k1, digits(3))
    asked, seen = (
        np.asarray(block_masks(k, 3, (4, 4), *a))
        for k, a in zip(jax.random.split(k2), [(4,), (1, (0.85, 1.0), (1.0, 1.0))])
    )
    target = jax.tree.map(
        lambda a, b: tau * a + (1 - tau) * b,
        state.extra["teacher"]["encoder"],
        state.params["encoder"],
    )
    goal = vit.apply({"params": target}, x, method="tokens")
    goal = (goal - goal.mean(-1, keepdims=True)) / jnp.sqrt(goal.var(-1, keepdims=True) + 1e-6)

    def equation(params):
        p, errors = params["predictor"]["params"], []
        for i in range(3):
            context = np.flatnonzero(seen[i, 0] & ~asked[i].any(0))
            assert len(context)
            h = vit.apply(
                {"params": params["encoder"]}, x[i : i + 1], keep=context[None], method="tokens"
            )[0]
            for block in asked[i]:
                hidden = np.flatnonzero(block)
                y = jnp.concatenate(
                    [
                        h @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"] + place[context],
                        p["blank"] + place[hidden],
                    ]
                )
                y = ViTBlocks(1, 2).apply({"params": p["Blocks_0"]}, y[None])[0, len(context) :]
                errors.append(
                    (y @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"] - goal[i, hidden]) ** 2
                )
        return jnp.concatenate(errors).mean()

    agree(metrics["loss"], found, *jax.jit(jax.value_and_grad(equation))(state.params))


@pytest.mark.parametrize("shared, frozen", [(True, 0.0), (False, 1.0)])
def test_ibot_step_matches_the_papers_equation(shared, frozen):
    """In loops over views and images, and what moves without a gradient, worked out.

    With small views of an image, which are not masked, and without.
    """
    vit = ViT(patch=2, width=12, depth=1, heads=2, pool="token")
    changes = {k: v for k, v in WIRED.items() if k not in ("encoder", "view", "head")}
    crops = MultiCrop(Noisy(), small=2 if shared else 0)
    changes |= {"vit": vit, "head": MLP((9, 6), activation="gelu"), "crops": crops}
    changes |= {"batch_size": 4, "warmup": 0.0, "sharpen": 0.1, "sharp": 0.07, "patch_sharp": 0.06}
    exp = ibot(**changes, shared=shared, prototypes=8, frozen=frozen, masked=0.7)
    state, metrics, found, key = fourth_step(exp)
    k1, k2 = jax.random.split(key)
    large, *small = crops(k1, digits(4))
    n, extra, of_patches = 4, state.extra, "views" if shared else "patches"
    hidden = np.asarray(blockwise_masks(k2, 2 * n, (4, 4), masked=0.7)).reshape(n, 2, 16)
    assert 0.1 < hidden.any(2).mean() < 0.9
    m = rising(0.99, exp.num_steps)
    teacher = jax.tree.map(lambda a, b: m * a + (1 - m) * b, extra["teacher"], state.params)

    def tokens(p, x, hidden=None):
        blank = {"hidden": hidden, "blank": p["blank"]}
        return vit.apply({"params": p["encoder"]}, x, **blank, method="tokens")

    def cosines(p, y):
        q = p["mlp"]
        y = y @ q["Dense_0"]["kernel"] + q["Dense_0"]["bias"]
        y = y * jax.scipy.stats.norm.cdf(y) @ q["Dense_1"]["kernel"] + q["Dense_1"]["bias"]
        c = jax.lax.stop_gradient(p["prototypes"]) if frozen else p["prototypes"]
        return unit(y) @ unit(c).T

    t = [tokens(teacher, large[:, v]) for v in range(2)]
    t_views = [cosines(teacher["views"], y[:, 0]) for y in t]
    t_patches = jnp.stack([cosines(teacher[of_patches], y[:, 1:].reshape(-1, 12)) for y in t])
    at = lambda sharp: 0.04 + (sharp - 0.04) * 3 / (exp.num_steps // 10)
    q = [jax.nn.softmax((x - extra["centre"]["views"]) / at(0.07)) for x in t_views]
    q_patches = jax.nn.softmax((t_patches - extra["centre"]["patches"]) / at(0.06))
    q_patches = q_patches.reshape(2, n, 16, 8)

    def equation(p):
        s = [tokens(p, large[:, v], jnp.asarray(hidden[:, v])) for v in range(2)]
        views = [y[:, 0] for y in s]
        views += [tokens(p, x[:, v])[:, 0] for x in small for v in range(2)]
        value = across(q, [cosines(p["views"], y) / 0.1 for y in views])
        of_images = []
        for v in range(2):
            log_p = jax.nn.log_softmax(cosines(p[of_patches], s[v][:, 1:].reshape(-1, 12)) / 0.1)
            log_p = log_p.reshape(n, 16, 8)
            for i in range(n):
                of = np.flatnonzero(hidden[i, v])
                each = -jnp.sum(q_patches[v, i, of] * log_p[i, of], 1)
                of_images.append(each.mean() if len(of) else 0.0)
        return value + sum(of_images) / len(of_images)

    agree(metrics["loss"], found, *jax.jit(jax.value_and_grad(equation))(state.params))
    after = jax.jit(exp.step)(state, digits(4), key)[0].extra["centre"]
    for kind, mean in (("views", sum(t_views).mean(0) / 2), ("patches", t_patches.mean((0, 1)))):
        want = 0.9 * extra["centre"][kind] + 0.1 * mean
        np.testing.assert_allclose(after[kind], want, atol=1e-5)


# What I-JEPA sees, and bad settings.


def test_unseen_patches_change_nothing():
    net = ViT(patch=2, width=12, depth=2, heads=3)
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    params = net.init(KEY, x)
    seen = jnp.arange(16)[None] % jnp.array([[2], [3]]) == 0
    y = net.apply(params, x, seen=seen, method="tokens")
    hidden = jnp.repeat(jnp.repeat(seen.reshape(2, 4, 4), 2, 1), 2, 2)[..., None]
    z = net.apply(params, jnp.where(hidden, x, 9.0), seen=seen, method="tokens")
    np.testing.assert_allclose(y[seen], z[seen], atol=1e-5)
    assert jnp.abs(y - net.apply(params, x, method="tokens"))[seen].max() > 1e-3
    keep = jnp.flatnonzero(seen[0])[None]  # As when only those are there.
    np.testing.assert_allclose(
        net.apply(params, x[:1], keep, method="tokens")[0], y[0][seen[0]], atol=1e-5
    )
    predictor, asked = Predictor((4, 4), 5, width=12), jnp.roll(seen, 1, axis=1) & ~seen
    params = predictor.init(KEY, y, seen, asked)
    out = predictor.apply(params, y, seen, asked)
    other = predictor.apply(params, jnp.where(seen[:, :, None], y, 7.0), seen, asked)
    np.testing.assert_allclose(out[asked], other[asked], atol=1e-5)


def test_teacher_temperature_without_warm_up_is_constant():
    assert teacher_temperature(0.07, 0.0)(0) == teacher_temperature(0.07, 0.9)(5) == 0.07


def test_fine_tuning_on_fewer_images_than_a_batch():
    assert finetune(DIGITS, batch_size=5000, epochs=2).num_steps == 2


# Fine-tuning.


@pytest.mark.parametrize("source", ["moco", "mae"])
def test_fine_tuning_starts_from_the_encoder_and_a_new_head(source, tmp_path, one_device):
    arguments = ONE | {"queue": 64} if source == "moco" else BRIEF | {"vit": VIT}
    exp = (moco if source == "moco" else mae)(**arguments)
    train(replace(exp, num_steps=2, evals={}), Run(workdir=str(tmp_path)))
    saved = load(tmp_path).state
    weights = saved["params"]["encoder"]
    weights = weights if source == "moco" else weights["params"]  # As the files keep them.
    tuned = finetune(DIGITS, pretrained=str(tmp_path), batch_size=32)
    fresh = jax.jit(tuned.init)(KEY, digits())
    warm = tuned.warm_start(fresh)
    close(warm.params["encoder"], weights, 0)
    close(warm.params["head"], fresh.params["head"], 0)
    close(warm.opt_state, fresh.opt_state, 0)
    if source == "moco":
        close(warm.extra["encoder"], saved["extra"]["encoder"], 0)
    differ = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), warm.params["encoder"], fresh.params["encoder"]
    )
    assert any(jax.tree.leaves(differ))
    new, _ = jax.jit(tuned.step)(warm, digits(), KEY)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, fresh)
    folder = (
        tmp_path / "tuned"
    )  # From which another begins, whatever encoder the arguments of this one name.
    after = train(replace(tuned, num_steps=1, evals={}), Run(workdir=str(folder)))
    again = finetune(DIGITS, pretrained=str(folder), batch_size=32)
    close(
        again.warm_start(jax.jit(again.init)(KEY, digits())).params["encoder"],
        after.params["encoder"],
        0,
    )
    with pytest.raises(
        InputError, match="images of another size, or of other channels, than these"
    ):
        other = finetune(PlainImages("photos"), pretrained=str(tmp_path), batch_size=32)
        other.warm_start(
            jax.eval_shape(other.init, KEY, {"image": jnp.zeros((4, 32, 32, 3), jnp.uint8)})
        )


def test_fine_tuning_on_images_of_another_size_resamples_learned_positions(tmp_path, one_device):
    arguments = BRIEF | {
        "view": replace(PLAIN, view_size=4),
        "encoder": ViT(patch=2, width=24, depth=1, heads=2, positions="learned"),
    }
    train(replace(simclr(**arguments), num_steps=2, evals={}), Run(workdir=str(tmp_path)))
    tuned, kept = (
        finetune(DIGITS, pretrained=str(tmp_path), batch_size=32),
        load(tmp_path).state["params"]["encoder"],
    )
    state, x = (
        tuned.warm_start(jax.jit(tuned.init)(KEY, digits())),
        augment.to_float(digits()["image"]),
    )
    places = state.params["encoder"]["places"]["table"]
    assert kept["places"]["table"].shape == (2, 2, 24) and places.shape == (4, 4, 24)
    net = arguments["encoder"]  # What is kept gives the same, as a net resamples its own positions.
    np.testing.assert_allclose(
        net.apply({"params": kept}, x), net.apply({"params": state.params["encoder"]}, x), atol=1e-5
    )
    jax.jit(tuned.step)(state, digits(), KEY)


@pytest.mark.parametrize("make", [dino, ibot, ijepa], ids=lambda f: f.__name__)
def test_the_teacher_is_saved_as_the_encoder(make, tmp_path, one_device):
    """Fine-tuning starts from the net that the run's evaluators measured, not the student."""
    arguments = CROPS if make is dino else BRIEF | {"vit": VIT}
    arguments |= {"crops": MultiCrop(PLAIN, small=0)} if make is ibot else {}
    exp = make(**arguments)
    state = train(replace(exp, num_steps=3, evals={}), Run(workdir=str(tmp_path)))
    _, params, stats, _ = encoder_of(tmp_path)
    close(params, state.extra["teacher"]["encoder"], 0)
    close(stats, state.extra["seen"]["encoder"] if make is dino else {}, 0)
    differ = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), params, jax.device_get(state.params["encoder"])
    )
    assert any(jax.tree.leaves(differ))


def test_ijepa_with_small_views():
    exp = ijepa(**BRIEF, vit=VIT, view=Views(crop=0.3, view_size=4, jitter=0.0, gray=0.0))
    _, new = states(exp, 1)
    assert exp.evals["masks"](new)["compared"].ndim == 3
    assert jnp.isfinite(jax.jit(exp.step)(new, digits(), KEY)[1]["loss"])


def test_ijepa_takes_a_class_token_and_learned_positions():
    """The token is seen by the patches, is not a target, and is the feature that evaluators use."""
    vit = ViT(patch=2, width=24, depth=1, heads=2, pool="token", positions="learned")
    exp = ijepa(**BRIEF, vit=vit)
    _, new = states(exp, 1)
    assert jnp.isfinite(jax.jit(exp.step)(new, digits(), KEY)[1]["loss"])
    moved = optax.tree.get(new.opt_state, "mu")["encoder"]
    assert min(float(jnp.abs(x).max()) for x in (moved["token"], moved["places"]["table"])) > 0


def test_without_small_views_the_large_ones_are_whole_views():
    (large,) = MultiCrop(Views(crop=0.5), small=0).kinds((8, 8, 1))
    assert (large.crop, large.crop_most) == (0.5, 1.0)
    for make in (swav, dino):
        evals = make(**TINY, crops=MultiCrop(Views(crop=0.5), small=0)).evals
        assert (
            "small_views" not in evals
            and evals["views"](())
            and "small_views" in make(**CROPS).evals
        )


def test_missing_run_error_names_the_command(tmp_path):
    with pytest.raises(
        InputError,
        match="does not exist, .* no run of a file with an --encoder or a --vit: check the path, "
        "or make one with `launch/local.sh",
    ):
        encoder_of(tmp_path / "none")


def test_share_of_labels_is_equal_across_classes():
    whole = images("digits", "train")
    counts = np.bincount(whole.labels)
    for fraction in (0.1, 0.01, 0.001):
        part = share(whole, fraction)
        np.testing.assert_array_equal(
            np.bincount(part.labels), np.maximum(1, np.round(fraction * counts))
        )
        np.testing.assert_array_equal(share(whole, fraction).image, part.image)
        known = {(x.tobytes(), y) for x, y in zip(whole.image, whole.labels)}
        assert all((x.tobytes(), y) in known for x, y in zip(part.image, part.labels))
    assert share(whole, 1.0) is whole
    assert np.any(share(whole, 0.1, seed=1).image != share(whole, 0.1).image)
    for bad in (0, -0.1, 1.5):
        with pytest.raises(InputError, match=r"in \(0, 1\]"):
            share(whole, bad)
