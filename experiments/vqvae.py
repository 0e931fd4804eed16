"""VQ-VAE (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937), its codebook by moving averages.

launch/local.sh experiments/vqvae.py                                   # digits: a minute on a laptop CPU
launch/local.sh experiments/vqvae.py --data cifar10 --epochs 20 --width 128 --entries 512
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.compress import compression
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


def vqvae(
    data: str = "digits",
    width: int = 64,
    halvings: int = 2,
    size: int = 32,
    entries: int = 128,
    beta: float = 0.25,
    decay: float = 0.99,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
) -> Experiment:
    """A vector-quantised autoencoder: images as maps of entries of a codebook.

    Args:
        data: digits (embedded), a TFDS image set (cifar10), a folder of class folders, or an .npz.
        width: Channels of the nets.
        halvings: Of the resolution, from image to map.
        size: Numbers in an entry of the codebook.
        entries: In the codebook; an image takes log2(entries) bits for each place of its map.
        beta: Weight of the commitment, a sum over an entry's numbers, where the error is a mean over the image's.
        decay: Of the moving averages.
    """
    train, test = (images(data, split) for split in ("train", "test"))
    net, tx = VQVAE(train.shape, width, halvings, size=size), optax.adam(lr)
    variance = float(np.var(train.read(np.arange(min(len(train), 5000)))["image"] / 255.0))

    def init(key, batch):
        k1, k2 = jax.random.split(key)
        x = augment.to_float(batch["image"])
        z, v = net.init_with_output(k1, x, method=net.encode), net.init(k1, x)
        rows = z[0].reshape(-1, size)
        return TrainState.create(
            tx, v["params"], book=codebook(rows[jax.random.randint(k2, (entries,), 0, len(rows))])
        )

    def quantize(params, book, x):
        z = net.apply({"params": params}, x, method=net.encode)
        index = nearest_code(z, book["vectors"])
        return z, index, book["vectors"][index]

    def loss(params, state, batch, key):
        x, book = augment.to_float(batch["image"]), state.extra["book"]
        z, index, q = quantize(params, book, x)
        y = net.apply({"params": params}, straight_through(z, q), method=net.decode)
        error = jnp.mean((x - y) ** 2) / variance
        value = error + beta * commitment_loss(z, q)
        book = update_codebook(book, z.reshape(-1, size), index.ravel(), key, decay)
        return value, (
            {"book": book},
            {"loss": value, "error": error, "perplexity": codebook_perplexity(book["counts"])},
        )

    def reconstruct(state, x):
        q = quantize(state.params, state.extra["book"], augment.to_float(x))[2]
        return jnp.clip(net.apply({"params": state.params}, q, method=net.decode), 0, 1)

    def usage(state):
        taken = jax.jit(lambda s, x: quantize(s.params, s.extra["book"], augment.to_float(x))[1])
        index = np.concatenate(
            [
                np.ravel(taken(state, test.read(at)["image"]))
                for at in np.array_split(np.arange(len(test)), -(-len(test) // 500))
            ]
        )
        counts = np.bincount(index, minlength=entries)
        return {"perplexity": codebook_perplexity(counts), "used": np.sum(counts > 0)}

    places = int(np.prod([-(-s // 2**halvings) for s in train.shape[:2]]))
    steps = epochs * (len(train) // batch_size)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            "codebook": usage,
            "rate": compression(reconstruct, test, bits=places * np.log2(entries)),
            "test": compared(lambda state, key, x: [reconstruct(state, x)], test),
        },
    )


if __name__ == "__main__":
    main(vqvae)
