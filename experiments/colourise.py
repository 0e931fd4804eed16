"""Colourful image colourisation (Zhang et al., 2016, https://arxiv.org/abs/1603.08511): from lightness to colour.

    launch/local.sh experiments/colourise.py                                        # tiles of two embedded photographs
    launch/local.sh experiments/colourise.py --data cifar10 --epochs 10 --classifier runs/cifar10  # a supervised.py's

Bins weighted by rarity make for colourful pictures, not near ones: see `psnr` beside `chroma`, the distance from grey.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.data.colour import gamut, lab_to_rgb, occurrences, rgb_to_lab
from ssljax.evals.accuracy import accuracy_of_versions
from ssljax.evals.average import average, psnr
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.features import subset
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared
from ssljax.losses.colour import annealed_mean, rare_weights, rebalanced_loss, soft_bins
from ssljax.models.unet import UNet
from ssljax.optim import adamw, warmup_cosine


def colourise(
    data: str = "photos",
    image_size: int = 0,
    loss: Literal["bins", "regression"] = "bins",
    step: float = 10.0,
    rarity: float = 0.5,
    temperature: float = 0.38,
    classifier: str = "",
    epochs: int = 40,
    batch_size: int = 32,
    lr: float = 1e-3,
) -> Experiment:
    """Colours of a grey image: each pixel's, by classification over bins of the a*b* plane.

    Args:
        data: photos (embedded), a TFDS image set (cifar10), a folder of class folders, or an .npz; in colour.
        loss: bins: weighted cross-entropy; regression: squared error.
        step: The bins' width in a and b.
        rarity: How much rare colours are raised: 1 - lambda of the paper.
        temperature: Of the mean that is drawn; 1 for the mean, near 0 for the mode.
        classifier: A run of supervised.py, by whose accuracy on coloured images these are judged too; none if empty.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    (centres, table), to_lab = gamut(step), lambda x: rgb_to_lab(augment.to_float(x))
    some = jax.jit(to_lab)(train.read(subset(train, 2000))["image"])[..., 1:].reshape(-1, 2)
    weights = jnp.asarray(rare_weights(occurrences(some, centres), centres, 1 - rarity))
    net, steps = (
        UNet(len(centres) if loss == "bins" else 2),
        epochs * (len(train) // batch_size),
    )
    tx, look = (
        adamw(warmup_cosine(lr, steps)),
        lambda params, lab: net.apply(params, lab[..., :1] / 50 - 1),
    )

    def guess(state, lab):
        y = look(state.params, lab)[0]
        return annealed_mean(y, centres, temperature) if loss == "bins" else 100 * y

    def objective(params, state, batch, key):
        lab = to_lab(batch["image"])
        y, ab = look(params, lab)[0], lab[..., 1:]
        bins = soft_bins(ab, centres, table, step)
        value = (
            rebalanced_loss(y, *bins, weights) if loss == "bins" else jnp.mean((y - ab / 100) ** 2)
        )
        return value, (state.extra, {"loss": value})

    def versions(state, x):
        lab = to_lab(x)
        ab = {"": guess(state, lab), "_of_grey": 0.0, "_of_mean_colour": some.mean(0)}
        return {name: lab_to_rgb(lab.at[..., 1:].set(colour)) for name, colour in ab.items()}

    def errors(state, key, x, label):
        chroma = lambda ab: jnp.linalg.norm(ab, axis=-1).mean((1, 2))
        return {f"psnr{name}": psnr(x, y) for name, y in versions(state, x).items()} | {
            "chroma": chroma(guess(state, to_lab(x))),
            "chroma_of_images": chroma(to_lab(x)[..., 1:]),
        }

    judged = {}
    if classifier:
        judged["named"] = accuracy_of_versions(
            versions,
            feature_net(classifier),
            test,
            better={"accuracy": "higher"},
            floors={"accuracy": "accuracy_of_grey"},
        )
    show = lambda state, key, x: [versions(state, x)[k] for k in ("_of_grey", "")]
    init = lambda key, batch: TrainState.create(
        tx, net.init(key, to_lab(batch["image"][:2])[..., :1])
    )
    return Experiment(
        init=init,
        step=minimize(tx, objective),
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            "test": average(
                errors, test, better={"psnr": "higher"}, floors={"psnr": "psnr_of_grey"}
            ),
            **judged,
            "pictures": compared(show, test),
            "knn": knn(lambda state, x: look(state.params, to_lab(x))[1], train, test),
        },
    )


if __name__ == "__main__":
    main(colourise)
