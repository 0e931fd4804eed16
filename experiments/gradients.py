"""Colourisation in the gradient domain: a net predicts the gradients of an image's three channels
from its luminance, and a Poisson equation integrates them (Pérez et al., 2003, "Poisson image
editing"). The task is that of Zhang et al., 2016, https://arxiv.org/abs/1603.08511.

    launch/local.sh experiments/gradients.py                  # tiles of two embedded photographs
    launch/local.sh experiments/gradients.py --data cifar10 --epochs 5
"""

import flax.linen as nn
import jax.numpy as jnp

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.data.gradients import gradient, integrate
from ssljax.evals.average import average, psnr
from ssljax.evals.pictures import compared
from ssljax.evals.representation import representation
from ssljax.models.unet import UNet
from ssljax.optim import adamw, warmup_cosine
from ssljax.ranges import checked, Count, Counts, NotNegative, Positive


class Net(nn.Module):
    """Luminance (n, h, w, 1) to gradients (n, h, w, 6) and mean (n, 3) of colours, and features."""

    widths: Counts
    """Channels at each resolution."""

    @nn.compact
    def __call__(self, grey):
        # The net predicts the difference from a grey image.
        field, features = UNet(6, self.widths)(2 * grey - 1)
        mean = nn.Dense(3)(features)
        return field + jnp.repeat(gradient(grey), 3, axis=-1), mean + grey.mean((1, 2)), features


@checked
def gradients(
    data: Images = Images("photos"),
    widths: Counts = (32, 64, 128),
    weight: NotNegative = 0.1,
    epochs: Count = 40,
    batch_size: Count = 32,
    lr: Positive = 1e-3,
) -> Experiment:
    """Predicts the gradients of a grey image's colours, and integrates them.

    Args:
        data: Images to learn from, and those that features are judged on.
        widths: Channels of the net at each resolution.
        weight: Weight of the mean colour's error, which gradients don't determine.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Peak learning rate, after a warm-up over a tenth of training.
    """
    sets = data.read()
    train, test = sets.train, sets.test
    if train.shape[2] != 3:
        raise InputError(
            f"The images of {data} have {train.shape[2]} channels, not 3: choose --data photos or "
            "another set in colour."
        )
    net, num_steps = Net(widths), steps_of(epochs, train, batch_size)
    tx = adamw(warmup_cosine(lr, num_steps))

    def grey(x):
        return x @ jnp.array(augment.GRAY)[:, None]

    def init(key, batch):
        return TrainState.create(tx, net.init(key, grey(augment.to_float(batch["image"][:2]))))

    def loss(params, state, batch, key):
        x = augment.to_float(batch["image"])
        field, mean, _ = net.apply(params, grey(x))
        slope = jnp.mean((field - gradient(x)) ** 2)
        level = jnp.mean((mean - x.mean((1, 2))) ** 2)
        value = slope + weight * level
        return value, (state.extra, {"loss": value, "gradient": slope, "mean": level})

    def colour(state, x):
        field, mean, _ = net.apply(state.params, grey(x))
        return jnp.clip(integrate(field, mean), 0, 1)

    def errors(state, key, x, label):
        x = augment.to_float(x)
        return {"psnr": psnr(x, colour(state, x)), "psnr_of_grey": psnr(x, grey(x))}

    def show(state, key, x):
        x = augment.to_float(x)
        return [grey(x), colour(state, x)]

    def encode(state, x):
        return net.apply(state.params, grey(augment.to_float(x)))[2]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        evals={
            "test": average(
                errors, test, better={"psnr": "higher"}, floors={"psnr": "psnr_of_grey"}
            ),
            "images": compared(show, test, names=["grey", "coloured"]),
            **representation(encode, sets, probe=False),
        },
    )


if __name__ == "__main__":
    main(gradients)
