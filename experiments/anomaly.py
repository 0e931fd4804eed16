"""Anomaly detection by a VAE that has seen one class: what it reconstructs badly or finds unlikely is strange (An & Cho,
2015, "Variational autoencoder based anomaly detection"; the VAE: Kingma & Welling, https://arxiv.org/abs/1312.6114).

    launch/local.sh experiments/anomaly.py                                 # digits, 0 the normal one: half a minute
    launch/local.sh experiments/anomaly.py --data fashion_mnist --normal 0 --epochs 50
"""

import jax
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.anomaly import anomaly_auroc, of_class
from ssljax.evals.pictures import compared
from ssljax.losses.elbo import kl_normal
from ssljax.losses.reconstruction import squared_error
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import Pixels, VAE


def anomaly(
    data: str = "digits",
    normal: int = 0,
    coder: Dense | Convolutional = Dense((500,)),
    latents: int = 20,
    pixels: Pixels = "grey",
    epochs: int = 300,
    batch_size: int = 64,
    lr: float = 1e-3,
) -> Experiment:
    """A variational autoencoder of one class, and how well it tells the others from it.

    Args:
        data: digits (embedded), a TFDS image set (mnist, fashion_mnist), a folder of class folders, or an .npz.
        normal: The class that it learns, counted from 0.
        coder: The nets of q(z|x) and p(x|z).
        latents: Dimensions of z.
        pixels: p(x|z). binary: 0 or 1, drawn anew by brightness; grey: cross-entropy with the brightness itself;
            gaussian: normal around the decoder's mean, with one learned variance.
    """
    train, test = of_class(images(data, "train"), normal), images(data, "test")
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

    again = lambda state, x: net.apply({"params": state.params}, x)
    by_error = lambda state, x: squared_error(augment.to_float(x), again(state, x))
    by_elbo = lambda state, x: sum(bound(state.params, jax.random.key(0), x))
    steps = epochs * (len(train) // batch_size)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            "error": anomaly_auroc(by_error, train, test, normal),
            "elbo": anomaly_auroc(by_elbo, train, test, normal),
            "test": compared(lambda state, key, x: [again(state, x)], test, 16),
        },
    )


if __name__ == "__main__":
    main(anomaly)
