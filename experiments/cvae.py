"""Conditional VAE (Sohn et al., 2015; Kingma et al., 2014, https://arxiv.org/abs/1406.5298).

It is the generator of M2 in the latter. As it is given the class, its codes are of the style.

    launch/local.sh experiments/cvae.py                 # digits: half a minute on a laptop CPU
    launch/local.sh experiments/cvae.py --data fashion_mnist --epochs 20
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, PlainImages, steps_of
from ssljax.evals.accuracy import accuracy
from ssljax.evals.knn import knn
from ssljax.evals.pictures import samples
from ssljax.losses.elbo import iwae_bound, kl_normal
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import Pixels, VAE
from ssljax.ranges import checked, Count, Positive


@checked
def cvae(
    data: PlainImages = PlainImages("digits"),
    coder: Dense | Convolutional = Dense((500,)),
    latents: Count = 20,
    pixels: Pixels = "binary",
    epochs: Count = 500,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
    draws: Count = 20,
) -> Experiment:
    """Variational autoencoder conditioned on the class of each image.

    It classifies an image by the class under which the image is most likely. The kinds of pixels
    are those of vae.py.

    Args:
        data: Images to learn from.
        coder: Networks of q(z|x, y) and p(x|z, y).
        latents: Dimensions of z.
        pixels: p(x|z, y) of a pixel: Bernoulli (binary or grey), or normal (gaussian).
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam.
        draws: Draws of q(z|x, y) for the likelihood of each class.
    """
    train, test, *_ = data.read(labels=True)
    num_steps = steps_of(epochs, train, batch_size)
    classes = train.num_classes
    net = VAE(coder, latents, train.shape, pixels)
    tx = optax.adam(lr)

    def apply(params, method, *args):
        return net.apply({"params": params}, *args, method=method)

    def init(key, batch):
        y = jax.nn.one_hot(batch["label"][:2], classes)
        return TrainState.create(tx, net.init(key, batch["image"][:2], y)["params"])

    def loss(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        x = apply(params, net.observe, k1, batch["image"])
        y = jax.nn.one_hot(batch["label"], classes)
        mean, log_var = apply(params, net.posterior, x, y)
        z = apply(params, net.draw, k2, mean, log_var, 1)[0]
        reconstruction = -apply(params, net.log_prob, x, z, y).mean()
        kl = kl_normal(mean, log_var).sum(-1).mean()
        value = reconstruction + kl
        return value, (state.extra, {"loss": value, "reconstruction": reconstruction, "kl": kl})

    def log_likelihoods(state, x):
        """A bound on log p(x|y) for each class y: (n, classes)."""
        x = apply(state.params, net.observe, jax.random.key(0), x)

        def log_likelihood(y):
            y = jnp.broadcast_to(jax.nn.one_hot(y, classes), (len(x), classes))
            return iwae_bound(apply(state.params, net.log_weights, jax.random.key(1), x, draws, y))

        return jax.lax.map(log_likelihood, jnp.arange(classes)).T

    def draw(state, key, n, label=None):
        ky, kz = jax.random.split(key)
        y = jax.random.randint(ky, (n,), 0, classes) if label is None else jnp.full(n, label)
        z = jax.random.normal(kz, (n, latents))
        return apply(state.params, net.decode, z, jax.nn.one_hot(y, classes))

    def draw_by_class(state, key, n):  # A column for each class, a row for each style.
        styles = n // classes
        z = jnp.repeat(jax.random.normal(key, (styles, latents)), classes, axis=0)
        return apply(state.params, net.decode, z, jnp.tile(jnp.eye(classes), (styles, 1)))

    def encode_style(state, x):  # Without the class.
        return apply(state.params, net.posterior, x, jnp.zeros((len(x), classes)))[0]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode_style,
        sample=draw,
        evals={
            "classify": accuracy(log_likelihoods, test),
            "classes": samples(draw_by_class, 8, classes),
            "style_knn": knn(encode_style, train, test),
        },
    )


if __name__ == "__main__":
    main(cvae)
