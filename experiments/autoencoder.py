"""Autoencoders: plain (Hinton & Salakhutdinov, 2006, Science 313), denoising (Vincent et al., 2010, JMLR 11), sparse,
contractive (Rifai et al., 2011, ICML); Bengio et al. tell of them all in https://arxiv.org/abs/1206.5538.

    launch/local.sh experiments/autoencoder.py                             # digits: 20 seconds on a laptop CPU
    launch/local.sh experiments/autoencoder.py --data mnist --code 30 --coder.hidden 1000 500 250           # Hinton's
    launch/local.sh experiments/autoencoder.py --data cifar10 --code 128 --noise masking coder:convolutional # denoises
    launch/local.sh experiments/autoencoder.py --sigmoid-code --sparsity 0.1 --contraction 0.1
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.average import average, linear_floor
from ssljax.evals.cluster import clusters
from ssljax.evals.compress import compression
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared, feature_map
from ssljax.evals.probe import linear_probe
from ssljax.losses.reconstruction import (
    contractive_penalty,
    corrupt,
    cross_entropy,
    kl_sparsity_penalty,
    Noise,
    squared_error,
)
from ssljax.models.coder import Convolutional, Dense


def autoencoder(
    data: str = "digits",
    coder: Dense | Convolutional = Dense((500, 250)),
    code: int = 16,
    noise: Noise = "none",
    amount: float = 0.25,
    sigmoid_code: bool = False,
    sparsity: float = 0.0,
    rho: float = 0.05,
    contraction: float = 0.0,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
) -> Experiment:
    """An autoencoder: images through a narrow code and back.

    Args:
        data: digits (embedded), a TFDS image set (mnist, cifar10), a folder of class folders, or an .npz.
        code: Units of the code.
        noise: What is done to the image that the encoder sees; the decoder is to give the clean one.
        amount: The share of pixels masked or salted and peppered, or the Gaussian's standard deviation.
        sigmoid_code: Put the code through a sigmoid; it is linear otherwise.
        sparsity: Weight of KL(rho || the mean of each unit of the code over the batch); it needs --sigmoid-code.
        contraction: Weight of the squared norm of the code's Jacobian, estimated by a random vector an image.
    """
    if sparsity and not sigmoid_code:
        raise InputError(
            "--sparsity is about how often a unit of the code is on: it needs --sigmoid-code."
        )
    train, test = images(data, "train"), images(data, "test")
    encoder, decoder, tx = coder.encoder(code), coder.decoder(train.shape), optax.adam(lr)
    squash = jax.nn.sigmoid if sigmoid_code else lambda z: z
    encode = lambda state, x: squash(encoder.apply(state.params["encoder"], augment.to_float(x)))
    decode = lambda state, z: decoder.apply(state.params["decoder"], z)
    redraw = lambda state, x: jax.nn.sigmoid(
        decode(state, encode(state, x).astype(jnp.float16))
    )  # 16 bits a number.
    look = lambda key, x: corrupt(noise, key, augment.to_float(x), amount)

    def init(key, batch):
        z, e = encoder.init_with_output(key, augment.to_float(batch["image"][:2]))
        return TrainState.create(
            tx, {"encoder": e, "decoder": decoder.init(jax.random.fold_in(key, 1), z)}
        )

    def loss(params, state, batch, key):
        x, seen = augment.to_float(batch["image"]), look(key, batch["image"])
        z = encoder.apply(params["encoder"], seen)
        terms = {
            "cross_entropy": cross_entropy(x, decoder.apply(params["decoder"], squash(z))).mean()
        }
        terms |= {"sparsity": sparsity * kl_sparsity_penalty(z, rho)} if sparsity else {}
        f, k = lambda x: squash(encoder.apply(params["encoder"], x)), jax.random.fold_in(key, 1)
        terms |= (
            {"contraction": contraction * contractive_penalty(k, f, seen).mean()}
            if contraction
            else {}
        )
        return sum(terms.values()), (state.extra, {"loss": sum(terms.values())} | terms)

    def errors(state, key, x, label):
        x, logits = augment.to_float(x), decode(state, encode(state, x))
        return {
            "squared_error": squared_error(x, jax.nn.sigmoid(logits)),
            "cross_entropy": cross_entropy(x, logits),
        }

    show = lambda state, key, x: [look(key, x), redraw(state, look(key, x))]
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=epochs * (len(train) // batch_size),
        evals={
            "test": average(
                errors, test, better={"squared_error": "lower", "cross_entropy": "lower"}
            ),
            "floor": linear_floor(train, test, code),
            "rate": compression(redraw, test, bits=16 * code),
            "clusters": clusters(encode, test),
            "knn": knn(encode, train, test),
            "probe": linear_probe(encode, train, test),
            "codes": feature_map(encode, test),
            "images": compared(show, test),
        },
    )


if __name__ == "__main__":
    main(autoencoder)
