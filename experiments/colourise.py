"""Colourful image colourisation (Zhang et al., 2016, https://arxiv.org/abs/1603.08511): from lightness to colour.

    launch/local.sh experiments/colourise.py                                        # tiles of two embedded photographs
    launch/local.sh experiments/colourise.py --data cifar10 --epochs 10 --loss regression

Bins weighted by rarity make for colourful pictures, not near ones: see `psnr` beside `chroma`, the distance from grey.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import Experiment, InputError, TrainState, main, minimize
from ssljax.data import augment, feed, images
from ssljax.data.colour import gamut, lab_to_rgb, rgb_to_lab
from ssljax.evals.average import average
from ssljax.evals.features import subset
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared
from ssljax.losses.colour import annealed_mean, rare_weights, rebalanced
from ssljax.models.hourglass import Hourglass
from ssljax.optim import adamw, warmup_cosine


def colourise(
    data: str = "photos", image_size: int = 0, loss: Literal["bins", "regression"] = "bins", step: float = 10.0,
    rarity: float = 0.5, temperature: float = 0.38, epochs: int = 40, batch_size: int = 32, lr: float = 1e-3,
) -> Experiment:
    """Colours of a grey image: each pixel's, by classification over bins of the a*b* plane.

    Args:
        data: photos (embedded), a TFDS image set (cifar10), a folder of class folders, or an .npz; in colour.
        loss: bins: weighted cross-entropy; regression: squared error.
        step: The bins' width in a and b.
        rarity: How much rare colours are raised: 1 - lambda of the paper.
        temperature: Of the mean that is drawn; 1 for the mean, near 0 for the mode.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    if train.shape[2] != 3:
        raise InputError(f"The images of {data} have {train.shape[2]} channels, not 3: take photos or cifar10.")
    centres, table = gamut(step)
    to_lab, only_l = lambda x: rgb_to_lab(augment.to_float(x)), jnp.array([1.0, 0, 0])
    place = lambda u: jnp.round(u / step).astype(int) + len(table) // 2
    to_bin = lambda ab: jnp.asarray(table)[place(ab[..., 0]), place(ab[..., 1])]
    some = np.asarray(jax.jit(to_lab)(train.read(subset(train, 2000))["image"]))[..., 1:].reshape(-1, 2)
    weights = rare_weights(np.bincount(to_bin(some), minlength=len(centres)), centres, 1 - rarity)
    net = Hourglass(len(centres) if loss == "bins" else 2)
    steps = epochs * (len(train) // batch_size)
    tx = adamw(warmup_cosine(lr, steps))
    look = lambda params, lab: net.apply(params, lab[..., :1] / 50 - 1)

    def guess(state, lab):
        y = look(state.params, lab)[0]
        return lab.at[..., 1:].set(annealed_mean(y, centres, temperature) if loss == "bins" else 100 * y)

    def objective(params, state, batch, key):
        lab = to_lab(batch["image"])
        y, ab = look(params, lab)[0], lab[..., 1:]
        value = rebalanced(y, to_bin(ab), jnp.asarray(weights)) if loss == "bins" else jnp.mean((y - ab / 100) ** 2)
        return value, (state.extra, {"loss": value})

    def errors(state, key, x, label):
        lab, x = to_lab(x), augment.to_float(x)
        grey, mean, mine = lab * only_l, lab * only_l + jnp.array([0, *some.mean(0)]), guess(state, lab)
        psnr = lambda y: -10 * jnp.log10(jnp.mean((x - lab_to_rgb(y)) ** 2, axis=(1, 2, 3)) + 1e-10)
        chroma = lambda y: jnp.linalg.norm(y[..., 1:], axis=-1).mean((1, 2))
        return {"psnr": psnr(mine), "psnr_of_grey": psnr(grey), "psnr_of_mean_colour": psnr(mean),
                "chroma": chroma(mine), "chroma_of_images": chroma(lab)}

    show = lambda state, key, x: map(lab_to_rgb, (to_lab(x) * only_l, guess(state, to_lab(x))))
    init = lambda key, batch: TrainState.create(tx, net.init(key, to_lab(batch["image"][:2])[..., :1]))
    return Experiment(init=init, step=minimize(tx, objective), data=feed(train, batch_size), num_steps=steps, evals={
        "test": average(errors, test), "pictures": compared(show, test),
        "knn": knn(lambda state, x: look(state.params, to_lab(x))[1], train, test)})


if __name__ == "__main__":
    main(colourise)
