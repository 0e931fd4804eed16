"""DDPM (Ho et al., 2020, https://arxiv.org/abs/2006.11239): images by learning to denoise.

Samples are drawn by DDIM (Song et al., 2020, https://arxiv.org/abs/2010.02502), in fewer steps,
and guided towards their class (Ho and Salimans, 2022, https://arxiv.org/abs/2207.12598).

    launch/local.sh experiments/ddpm.py                 # digits, on a laptop CPU
    # The paper's sizes, noise and sampler, for 800,000 steps; planned in launch/plans.md. In the
    # paper the learning rate is constant after the warm-up, no class is given, attention is on maps
    # of 16 pixels alone, and the net differs as `TimeUNet` says.
    launch/local.sh experiments/ddpm.py --data cifar10 --unet.widths 128 256 256 256 \
        --unet.blocks 2 --unet.attention 16 --unet.heads 1 --unet.groups 32 --unet.dropout 0.1 \
        --flip --batch-size 128 --lr 2e-4 --warmup 0.00625 --decay 0.9999 --epochs 2052 \
        --sampling-steps 1000 --eta 1
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import ema, Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, PlainImages, steps_of
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.features import subset
from ssljax.evals.fid import generated
from ssljax.evals.likelihood import bits
from ssljax.evals.pictures import denoising
from ssljax.losses.diffusion import (
    denoised,
    diffusion_bound,
    drop_classes,
    guided,
    last_log_prob_of_levels,
    level_frequencies,
    noise_schedule,
    noised,
    Prediction,
    Schedule,
    spread_times,
    step_to_decode_at,
    target,
)
from ssljax.models.sampler import ddim
from ssljax.models.unet import TimeUNet
from ssljax.optim import clipped, ema_decay, scheduled, warmup_cosine
from ssljax.ranges import (
    checked,
    Count,
    Fraction,
    FractionBelowOne,
    NotNegative,
    Positive,
    ProperFraction,
)
from ssljax.sharding import over_batch


@checked
def ddpm(
    data: PlainImages = PlainImages("digits"),
    unet: TimeUNet = TimeUNet(),
    predict: Prediction = "epsilon",
    schedule: Schedule = "linear",
    diffusion_steps: Count = 1000,
    sampling_steps: Count = 50,
    eta: Fraction = 0.0,
    guidance: NotNegative = 0.0,
    drop: ProperFraction = 0.1,
    flip: bool = False,
    features: str = "",
    epochs: Count = 40,
    batch_size: Count = 64,
    lr: Positive = 1e-3,
    warmup: FractionBelowOne = 0.05,
    decay: Fraction = 0.999,
) -> Experiment:
    """DDPM: a U-Net learns to predict the noise in an image, and samples are made from noise.

    With labels the net is given the class, and draws each class equally often; without, it learns
    and draws images of any kind.

    Args:
        data: Images to learn from.
        unet: Network that is given a noised image, the time and the class.
        predict: What the net's output is: the noise (epsilon), or the velocity (v).
        schedule: Noise of each step: DDPM's linear β, or the cosine of Nichol and Dhariwal.
        diffusion_steps: T: steps from an image to noise.
        sampling_steps: Steps of DDIM for a sample, at most T.
        eta: η: noise added in sampling; 0 is DDIM, 1 with T steps is DDPM's sampler.
        guidance: w: weight of classifier-free guidance in samples; 0 for none.
        drop: Probability that an image's class is left out in training, for guidance.
        flip: Mirror half of the images.
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Peak learning rate of Adam; a cosine ends at 0.
        warmup: Fraction of training over which the learning rate rises to its peak.
        decay: EMA decay of the net used for sampling; lower in the first steps.
    """
    train, test, *_ = data.read()
    num_steps = steps_of(epochs, train, batch_size)
    rate = warmup_cosine(lr, num_steps, warmup)
    tx = clipped(1.0, scheduled(optax.adam(rate), rate))
    levels = noise_schedule(schedule, diffusion_steps)
    classes = 0 if train.labels is None else train.num_classes
    if guidance and not classes:
        raise InputError("--guidance is towards classes: leave it out, or give images with labels.")
    rows = min(classes, 10) or 8
    shown = np.arange(rows) * max(classes, rows) // rows  # Classes that are drawn.

    def one_hot(y):
        return jax.nn.one_hot(y, classes) if classes else None

    def init(key, batch):
        t, y = jnp.zeros(1), one_hot(jnp.zeros(1))
        params = unet.init(key, jnp.zeros((1, *train.shape)), t, y)["params"]
        return TrainState.create(tx, params, ema=params)

    def loss(params, state, batch, key):
        kt, kn, ky, kd, kf = jax.random.split(key, 5)
        x = augment.to_signed(batch["image"])
        x = augment.flip(kf, x) if flip else x
        t = 1 + (levels.steps * spread_times(kt, len(x))).astype(jnp.int32)
        noise = over_batch(jax.random.normal(kn, x.shape))
        a, s = levels.at(t, x.ndim)
        y = drop_classes(ky, one_hot(batch["label"]), drop) if classes else None
        x_t, rngs = noised(x, noise, a, s), {"dropout": kd}
        out = unet.apply({"params": params}, x_t, t / levels.steps, y, True, rngs=rngs)
        value = jnp.mean((out - target(x, noise, a, s, predict)) ** 2)
        slow = ema(state.extra["ema"], params, ema_decay(decay, state.step))
        return value, ({"ema": slow}, {"loss": value})

    def predictor(state, y, weight):
        def net(x_t, t, y):
            t = jnp.broadcast_to(t / levels.steps, len(x_t))
            return unet.apply({"params": state.extra["ema"]}, x_t, t, y)

        def find(x_t, t, a, s):
            return denoised(guided(net, x_t, t, y, weight), x_t, a, s, predict)

        return find

    def sample(state, key, y, points=None):
        kx, ks = jax.random.split(key)
        x = jax.random.normal(kx, (len(y), *train.shape))
        find = predictor(state, one_hot(y), guidance)
        return (ddim(find, levels, x, sampling_steps, eta, ks, 1.0, points) + 1) / 2

    def draw(state, key, n, label=None):
        ky, kx = jax.random.split(key)
        y = jax.random.randint(ky, (n,), 0, classes or 1) if label is None else jnp.full(n, label)
        return sample(state, kx, y)

    def path(state, key, n):  # A row for each class.
        return sample(state, key, jnp.repeat(shown, n // rows), points=16)

    def bound(state, key, images):
        find = predictor(state, one_hot(jnp.full(len(images), -1)), 0.0)
        last, first = decoder()
        x = augment.to_signed(images)
        return diffusion_bound(find, levels, x, key, 16, last, first, clip=1.0)

    @functools.cache
    def decoder():  # Of the last steps of the bound, which knows the levels of pixels.
        some = train.read(subset(train, 1000))["image"]
        return last_log_prob_of_levels(level_frequencies(some)), step_to_decode_at(levels, some)

    names = [train.class_names[y] for y in shown] if classes else ()
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        sample=draw,
        evals={
            "test": generated(draw, feature_net(features), train, test),
            "samples": denoising(path, rows, names=names),
            "bound": bits(bound, train, test),
        },
    )


if __name__ == "__main__":
    main(ddpm)
