"""Flow matching (Lipman et al., 2023, https://arxiv.org/abs/2210.02747): images by a velocity.

A net learns the velocity of straight paths from noise to images, and samples follow it, in the
steps of Euler or Heun. Guided towards a class as in Ho and Salimans, 2022,
https://arxiv.org/abs/2207.12598.

    launch/local.sh experiments/flow.py                 # digits, on a laptop CPU
    # The paper's sizes, for 390,000 steps; planned in launch/plans.md. In the paper the learning
    # rate falls by a polynomial, no class is given, attention is on maps of 16 pixels alone, and
    # samples are drawn by an adaptive solver.
    launch/local.sh experiments/flow.py --data cifar10 --unet.widths 256 512 512 512 \
        --unet.blocks 2 --unet.attention 16 --unet.heads 8 --unet.groups 32 --flip \
        --batch-size 256 --lr 5e-4 --warmup 0.115 --decay 0.9999 --epochs 2000 \
        --sampling-steps 50

Digits, three seeds: the FID of pixels is 0.130 ± 0.004 (untrained net 11.23, held-out digits
0.151), coverage 0.947 ± 0.007 (held-out digits 0.953).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import ema, Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, PlainImages, steps_of
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import denoising
from ssljax.losses.diffusion import (
    drop_classes,
    flow_target,
    guided,
    noised,
    spread_times,
    straight,
)
from ssljax.models.sampler import flow as follow
from ssljax.models.sampler import Method
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
def flow(
    data: PlainImages = PlainImages("digits"),
    unet: TimeUNet = TimeUNet(),
    sigma_min: FractionBelowOne = 1e-4,
    method: Method = "heun",
    sampling_steps: Count = 10,
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
    """Flow matching: a U-Net learns the velocity from noise to images along straight paths.

    With labels the net is given the class, and draws each class equally often; without, it learns
    and draws images of any kind.

    Args:
        data: Images to learn from.
        unet: Network that is given a point of a path, the time and the class.
        sigma_min: σ_min: standard deviation of the noise that is left at the end of a path.
        method: Steps of samples: euler calls the net once, heun twice.
        sampling_steps: Steps of a sample.
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
        t = spread_times(kt, len(x))
        noise = over_batch(jax.random.normal(kn, x.shape))
        x_t = noised(x, noise, *straight(t[:, None, None, None], sigma_min))
        y = drop_classes(ky, one_hot(batch["label"]), drop) if classes else None
        v = unet.apply({"params": params}, x_t, t, y, True, rngs={"dropout": kd})
        value = jnp.mean((v - flow_target(x, noise, sigma_min)) ** 2)
        slow = ema(state.extra["ema"], params, ema_decay(decay, state.step))
        return value, ({"ema": slow}, {"loss": value})

    def sample(state, key, y, points=None):
        x, y = jax.random.normal(key, (len(y), *train.shape)), one_hot(y)

        def net(x, t, y):
            return unet.apply({"params": state.extra["ema"]}, x, jnp.broadcast_to(t, len(x)), y)

        def velocity(x, t):
            return guided(net, x, t, y, guidance)

        return (follow(velocity, x, sampling_steps, method, points) + 1) / 2

    def draw(state, key, n, label=None):
        ky, kx = jax.random.split(key)
        y = jax.random.randint(ky, (n,), 0, classes or 1) if label is None else jnp.full(n, label)
        return sample(state, kx, y)

    def path(state, key, n):  # A row for each class.
        return sample(state, key, jnp.repeat(shown, n // rows), points=16)

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
        },
    )


if __name__ == "__main__":
    main(flow)
