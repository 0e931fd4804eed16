"""Anomaly detection by a VAE trained on one class: images that it reconstructs badly or finds
unlikely are anomalous (An and Cho, 2015, "Variational autoencoder based anomaly detection"; the
VAE: Kingma and Welling, 2013, https://arxiv.org/abs/1312.6114).

    launch/local.sh experiments/anomaly.py                    # digits: half a minute; 0 is normal
    # In the ledger; with --pixels grey it is worse than the nearest neighbours of pixels
    launch/local.sh experiments/anomaly.py --data fashion_mnist --normal 0 --epochs 200 \
        --batch-size 128 --pixels gaussian coder:dense --coder.hidden 1000
"""

import jax
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, PlainImages, steps_of
from ssljax.evals.anomaly import anomaly_auroc, of_class
from ssljax.evals.pictures import compared
from ssljax.losses.elbo import kl_normal
from ssljax.losses.reconstruction import squared_error
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import Pixels, VAE
from ssljax.ranges import checked, Count, CountOrZero, Positive


@checked
def anomaly(
    data: PlainImages = PlainImages("digits"),
    normal: CountOrZero = 0,
    coder: Dense | Convolutional = Dense((500,)),
    latents: Count = 20,
    pixels: Pixels = "grey",
    epochs: Count = 300,
    batch_size: Count = 64,
    lr: Positive = 1e-3,
) -> Experiment:
    """A VAE of one class, and how well it separates the other classes from it.

    Args:
        data: Images to learn from.
        normal: Index of the class to train on, from 0.
        coder: Nets of q(z|x) and p(x|z).
        latents: Dimensions of z.
        pixels: p(x|z): Bernoulli of binarised or of grey values, or a Gaussian of one variance.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate.
    """
    every, test, *_ = data.read(labels=True)
    train = of_class(every, normal)
    net, tx = VAE(coder, latents, train.shape, pixels), optax.adam(lr)

    def apply(params, method, *args):
        return net.apply({"params": params}, *args, method=method)

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["image"][:2])["params"])

    def bound(params, key, image):
        """-log p(x|z) at one draw of z, and KL(q || p), of each image."""
        k1, k2 = jax.random.split(key)
        x = apply(params, net.observe, k1, image)
        mean, log_var = apply(params, net.posterior, x)
        z = apply(params, net.draw, k2, mean, log_var, 1)[0]
        return -apply(params, net.log_prob, x, z), kl_normal(mean, log_var).sum(-1)

    def loss(params, state, batch, key):
        rec, kl = (x.mean() for x in bound(params, key, batch["image"]))
        return rec + kl, (state.extra, {"loss": rec + kl, "reconstruction": rec, "kl": kl})

    def reconstruct(state, x):
        return net.apply({"params": state.params}, x)

    def by_error(state, x):
        return squared_error(augment.to_float(x), reconstruct(state, x))

    def by_elbo(state, x):
        rec, kl = bound(state.params, jax.random.key(0), x)
        return rec + kl

    def show(state, key, x):
        return [reconstruct(state, x)]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=steps_of(epochs, train, batch_size),
        evals={
            "error": anomaly_auroc(by_error, train, test, normal),
            "elbo": anomaly_auroc(by_elbo, train, test, normal),
            "test": compared(show, test, 16, names=["reconstructed"]),
        },
    )


if __name__ == "__main__":
    main(anomaly)
