"""Colour in the gradient domain: from the luminance of an image the gradient of its three channels is predicted, and
integrated to an image by a Poisson equation (Pérez et al., 2003, Poisson image editing). The task is colourisation's:
Zhang et al., 2016, https://arxiv.org/abs/1603.08511.

    launch/local.sh experiments/gradients.py                                # tiles of two embedded photographs
    launch/local.sh experiments/gradients.py --data cifar10 --epochs 5
"""

import flax.linen as nn
import jax.numpy as jnp

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.data.gradients import gradient, integrate
from ssljax.evals.average import average, psnr
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared
from ssljax.models.unet import UNet
from ssljax.optim import adamw, warmup_cosine


class Net(nn.Module):
    """Luminance (n, h, w, 1) to the gradient (n, h, w, 6) and mean (n, 3) of the colours, and features (n, d)."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, grey):
        # What a grey image would have is there from the start; the net adds the difference to it.
        field, features = UNet(6, self.widths)(2 * grey - 1)
        mean = nn.Dense(3)(features)
        return field + jnp.repeat(gradient(grey), 3, axis=-1), mean + grey.mean((1, 2)), features


def gradients(
    data: str = "photos",
    widths: tuple[int, ...] = (32, 64, 128),
    weight: float = 0.1,
    epochs: int = 40,
    batch_size: int = 32,
    lr: float = 1e-3,
) -> Experiment:
    """Predicts the colours' gradients of a grey image, and integrates them.

    Args:
        data: photos (embedded), a TFDS image set (cifar10), a folder of class folders, or an .npz; in colour.
        widths: Channels of the net at each resolution.
        weight: Of the mean colour's error, which gradients know nothing of.
    """
    train, test = (images(data, split) for split in ("train", "test"))
    if train.shape[2] != 3:
        raise InputError(
            f"The images of {data} have {train.shape[2]} channels, not 3: take photos or cifar10."
        )
    net, num_steps = Net(widths), epochs * (len(train) // batch_size)
    tx = adamw(warmup_cosine(lr, num_steps))
    grey = lambda x: x @ jnp.array(augment.GRAY)[:, None]

    def init(key, batch):
        return TrainState.create(tx, net.init(key, grey(augment.to_float(batch["image"][:2]))))

    def loss(params, state, batch, key):
        x = augment.to_float(batch["image"])
        field, mean, _ = net.apply(params, grey(x))
        slope, level = jnp.mean((field - gradient(x)) ** 2), jnp.mean((mean - x.mean((1, 2))) ** 2)
        value = slope + weight * level
        return value, (state.extra, {"loss": value, "gradient": slope, "mean": level})

    def colour(state, x):
        return jnp.clip(integrate(*net.apply(state.params, grey(x))[:2]), 0, 1)

    def errors(state, key, x, label):
        x = augment.to_float(x)
        return {"psnr": psnr(x, colour(state, x)), "psnr_of_grey": psnr(x, grey(x))}

    def show(state, key, x):
        x = augment.to_float(x)
        return [grey(x), colour(state, x)]

    encode = lambda state, x: net.apply(state.params, grey(augment.to_float(x)))[2]
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "test": average(
                errors, test, better={"psnr": "higher"}, floors={"psnr": "psnr_of_grey"}
            ),
            "images": compared(show, test),
            "knn": knn(encode, train, test),
        },
    )


if __name__ == "__main__":
    main(gradients)
