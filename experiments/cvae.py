"""Conditional VAE (Sohn et al., 2015; the generator of M2, Kingma et al., 2014, https://arxiv.org/abs/1406.5298).

launch/local.sh experiments/cvae.py                                    # digits: half a minute on a laptop CPU
launch/local.sh experiments/cvae.py --data fashion_mnist --epochs 20
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.evals.knn import knn
from ssljax.evals.pictures import samples
from ssljax.losses.elbo import iwae_bound, kl_normal
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import Pixels, VAE


def cvae(
    data: str = "digits",
    coder: Dense | Convolutional = Dense((500,)),
    latents: int = 20,
    pixels: Pixels = "binary",
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    draws: int = 20,
) -> Experiment:
    """A variational autoencoder told the class of each image: its codes are left with the style.

    Args:
        data: digits (embedded), a TFDS image set (fashion_mnist), a folder of class folders, or an .npz.
        coder: The nets of q(z|x, y) and p(x|z, y).
        latents: Dimensions of z.
        pixels: p(x|z, y). binary: 0 or 1, drawn anew by brightness; grey: cross-entropy with the brightness itself,
            which is no likelihood; gaussian: normal around the decoder's mean, with one learned variance.
        draws: Of q, for the likelihood of each class by which the generator classifies.
    """
    train, test = (images(data, split) for split in ("train", "test"))
    classes, net, tx = train.num_classes, VAE(coder, latents, train.shape, pixels), optax.adam(lr)

    def apply(params, method, *args):
        return net.apply({"params": params}, *args, method=method)

    def init(key, batch):
        y = jax.nn.one_hot(batch["label"][:2], classes)
        return TrainState.create(tx, net.init(key, batch["image"][:2], y)["params"])

    def loss(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        x, y = (
            apply(params, net.observe, k1, batch["image"]),
            jax.nn.one_hot(batch["label"], classes),
        )
        mean, log_var = apply(params, net.posterior, x, y)
        z = apply(params, net.draw, k2, mean, log_var, 1)[0]
        rec = -apply(params, net.log_prob, x, z, y).mean()
        kl = kl_normal(mean, log_var).sum(-1).mean()
        return rec + kl, (state.extra, {"loss": rec + kl, "reconstruction": rec, "kl": kl})

    def log_classes(state, x):
        """A bound on log p(x|y) for each class y: (n, classes)."""
        x = apply(state.params, net.observe, jax.random.key(0), x)

        def one(y):
            y = jnp.broadcast_to(jax.nn.one_hot(y, classes), (len(x), classes))
            return iwae_bound(apply(state.params, net.log_weights, jax.random.key(1), x, draws, y))

        return jax.lax.map(one, jnp.arange(classes)).T

    def generative(state):
        """Percent of the test set whose own class makes it likeliest: a classifier made of generators."""
        name, right = jax.jit(lambda state, x: log_classes(state, x).argmax(-1)), 0
        for start in range(0, len(test), 200):
            at = range(start, min(start + 200, len(test)))
            right += int(
                (name(state, test.read(at)["image"]) == test.labels[start : start + 200]).sum()
            )
        return {"accuracy": 100 * right / len(test)}

    def by_class(state, key, n):  # A column for each class, a row for each style.
        z = jnp.repeat(jax.random.normal(key, (n // classes, latents)), classes, axis=0)
        return apply(state.params, net.decode, z, jnp.tile(jnp.eye(classes), (n // classes, 1)))

    blind = lambda state, x: apply(state.params, net.posterior, x, jnp.zeros((len(x), classes)))[0]
    steps = epochs * (len(train) // batch_size)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            "classify": generative,
            "classes": samples(by_class, 8, classes),
            "style_knn": knn(blind, train, test),
        },
    )


if __name__ == "__main__":
    main(cvae)
