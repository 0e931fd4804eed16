"""Colourisation (Zhang et al., 2016, https://arxiv.org/abs/1603.08511): predict colour from
lightness.

    launch/local.sh experiments/colourise.py                  # tiles of two embedded photographs
    # runs/cifar10 is a run of supervised.py
    launch/local.sh experiments/colourise.py --data cifar10 --epochs 10 --classifier runs/cifar10

Bins weighted by rarity make pictures more colourful (`chroma`, the distance from grey), not more
accurate (`psnr`).
"""

from typing import Literal

import jax
import jax.numpy as jnp

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.data.colour import gamut, lab_to_rgb, occurrences, rgb_to_lab
from ssljax.evals.accuracy import accuracy_of_versions
from ssljax.evals.average import average, psnr
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.features import subset
from ssljax.evals.pictures import compared
from ssljax.evals.representation import representation
from ssljax.losses.colour import annealed_mean, rare_weights, rebalanced_loss, soft_bins
from ssljax.models.unet import UNet
from ssljax.optim import adamw, warmup_cosine
from ssljax.ranges import checked, Count, Fraction, Positive, PositiveFraction


@checked
def colourise(
    data: Images = Images("photos"),
    loss: Literal["bins", "regression"] = "bins",
    step: Positive = 10.0,
    rarity: Fraction = 0.5,
    temperature: PositiveFraction = 0.38,
    classifier: str = "",
    epochs: Count = 40,
    batch_size: Count = 32,
    lr: Positive = 1e-3,
) -> Experiment:
    """Colours of a grey image: for each pixel a distribution over bins of the a*b* plane.

    Args:
        data: Images to learn from, and those that features are judged on.
        loss: Weighted cross-entropy over bins (eq. 2), or squared error (eq. 1).
        step: Width of the bins in a and b.
        rarity: 1 - λ in eq. 4: how much rare colours are weighted up.
        temperature: T in eq. 5, of the annealed mean: 1 for the mean, near 0 for the mode.
        classifier: Run of supervised.py that also classifies the coloured images; empty for none.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Peak learning rate, after a warm-up over a tenth of training.
    """
    sets = data.read()
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    tx = adamw(warmup_cosine(lr, num_steps))

    def to_lab(image):
        return rgb_to_lab(augment.to_float(image))

    centres, table = gamut(step)
    sample = train.read(subset(train, 2000))["image"]
    sample_ab = jax.jit(to_lab)(sample)[..., 1:].reshape(-1, 2)
    weights = jnp.asarray(rare_weights(occurrences(sample_ab, centres), centres, 1 - rarity))
    net = UNet(len(centres) if loss == "bins" else 2)

    def apply(params, lab):
        return net.apply(params, lab[..., :1] / 50 - 1)

    def predict_ab(state, lab):
        y, _ = apply(state.params, lab)
        return annealed_mean(y, centres, temperature) if loss == "bins" else 100 * y

    def init(key, batch):
        return TrainState.create(tx, net.init(key, to_lab(batch["image"][:2])[..., :1]))

    def objective(params, state, batch, key):
        lab = to_lab(batch["image"])
        (y, _), ab = apply(params, lab), lab[..., 1:]
        if loss == "bins":
            value = rebalanced_loss(y, *soft_bins(ab, centres, table, step), weights)
        else:
            value = jnp.mean((y - ab / 100) ** 2)
        return value, (state.extra, {"loss": value})

    def encode(state, x):
        return apply(state.params, to_lab(x))[1]

    def versions(state, x):
        """The image in the predicted colours, in grey, and in the training set's mean colour."""
        lab = to_lab(x)
        ab = {"": predict_ab(state, lab), "_of_grey": 0.0, "_of_mean_colour": sample_ab.mean(0)}
        return {name: lab_to_rgb(lab.at[..., 1:].set(colour)) for name, colour in ab.items()}

    def errors(state, key, x, label):
        lab = to_lab(x)

        def chroma(ab):
            return jnp.linalg.norm(ab, axis=-1).mean((1, 2))

        found = {f"psnr{name}": psnr(x, y) for name, y in versions(state, x).items()}
        found["chroma"] = chroma(predict_ab(state, lab))
        found["chroma_of_images"] = chroma(lab[..., 1:])
        return found

    def show(state, key, x):
        pictures = versions(state, x)
        return [pictures["_of_grey"], pictures[""]]

    evals = {
        "test": average(errors, test, better={"psnr": "higher"}, floors={"psnr": "psnr_of_grey"}),
        "pictures": compared(show, test, names=["grey", "coloured"]),
        **representation(encode, sets, probe=False),
    }
    if classifier and sets.labelled:
        evals["named"] = accuracy_of_versions(
            versions,
            feature_net(classifier),
            test,
            better={"accuracy": "higher"},
            floors={"accuracy": "accuracy_of_grey"},
        )
    return Experiment(
        init=init,
        step=minimize(tx, objective),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        evals=evals,
    )


if __name__ == "__main__":
    main(colourise)
