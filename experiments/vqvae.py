"""VQ-VAE (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937), with an EMA codebook.

launch/local.sh experiments/vqvae.py                # digits: a minute on a laptop CPU
launch/local.sh experiments/vqvae.py --data cifar10 --epochs 20 --width 128 --entries 512
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, PlainImages, steps_of
from ssljax.evals.codebook import codebook_use
from ssljax.evals.compress import compression
from ssljax.evals.features import check_shapes
from ssljax.evals.pictures import compared
from ssljax.losses.quantization import (
    codebook,
    codebook_perplexity,
    commitment_loss,
    nearest_code,
    straight_through,
    update_codebook,
)
from ssljax.models.vqvae import VQVAE
from ssljax.ranges import checked, Count, Fraction, NotNegative, Positive


@checked
def vqvae(
    data: PlainImages = PlainImages("digits"),
    width: Count = 64,
    halvings: Count = 2,
    size: Count = 32,
    entries: Count = 128,
    beta: NotNegative = 0.25,
    decay: Fraction = 0.99,
    epochs: Count = 100,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
) -> Experiment:
    """Vector-quantised autoencoder: images as maps of entries of a codebook.

    The commitment loss is a sum over an entry's dimensions, the reconstruction error a mean over
    pixels, divided by their variance.

    Args:
        data: Images to learn from.
        width: Channels of every layer of both networks.
        halvings: Halvings of the resolution, from image to map.
        size: D: dimensions of an entry of the codebook.
        entries: K: entries of the codebook; each place of an image's map takes log2(K) bits.
        beta: β in eq. 3: weight of the commitment loss.
        decay: γ in appendix A.1: EMA decay of the codebook.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam.
    """
    train, test, *_ = data.read()
    check_shapes(train, test)
    num_steps = steps_of(epochs, train, batch_size)
    variance = float(np.var(train.read(np.arange(min(len(train), 5000)))["image"] / 255.0))
    if not variance:
        raise InputError(f"All pixels of {data} are equal: there is nothing to encode.")
    net, tx = VQVAE(train.shape, width, halvings, size=size), optax.adam(lr)
    places = int(np.prod([-(-side // 2**halvings) for side in train.shape[:2]]))

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        x = augment.to_float(batch["image"])
        z, _ = net.init_with_output(k1, x, method=net.encode)
        rows = z.reshape(-1, size)
        first = rows[jax.random.randint(k2, (entries,), 0, len(rows))]
        return TrainState.create(tx, net.init(k1, x)["params"], book=codebook(first))

    def encode(params, book, x):
        z = net.apply({"params": params}, augment.to_float(x), method=net.encode)
        return z, nearest_code(z, book["vectors"])

    def decode(params, q):
        return net.apply({"params": params}, q, method=net.decode)

    def loss(params, state, batch, key):
        x, book = augment.to_float(batch["image"]), state.extra["book"]
        z, index = encode(params, book, x)
        q = book["vectors"][index]
        error = jnp.mean((x - decode(params, straight_through(z, q))) ** 2) / variance
        value = error + beta * commitment_loss(z, q)
        book = update_codebook(book, z.reshape(-1, size), index.ravel(), key, decay)
        perplexity = codebook_perplexity(book["counts"])
        return value, ({"book": book}, {"loss": value, "error": error, "perplexity": perplexity})

    def code(state, x):
        return encode(state.params, state.extra["book"], x)[1]

    def reconstruct(state, x):
        q = state.extra["book"]["vectors"][code(state, x)]
        return jnp.clip(decode(state.params, q), 0, 1)

    def show(state, key, x):
        return [reconstruct(state, x)]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "rate": compression(reconstruct, test, bits=places * np.log2(entries)),
            "codebook": codebook_use(code, test, entries),
            "test": compared(show, test, names=["reconstructed"]),
        },
    )


if __name__ == "__main__":
    main(vqvae)
