"""Autoencoders: plain (Hinton and Salakhutdinov, 2006, Science 313), denoising (Vincent et al.,
2010, JMLR 11), sparse, contractive (Rifai et al., 2011, ICML). Review: Bengio et al., 2012,
https://arxiv.org/abs/1206.5538.

    launch/local.sh experiments/autoencoder.py                # digits: 20 seconds on a laptop CPU
    # The widths of Hinton and Salakhutdinov
    launch/local.sh experiments/autoencoder.py --data mnist --code 30 --coder.hidden 1000 500 250
    # Deep, 784-128-64-32-16-8-4-2: a minute of training on two cores, squared error 32.4 ± 3.4
    # over three seeds (PCA 43.7)
    launch/local.sh experiments/autoencoder.py --data mnist --code 2 --epochs 15 \
        --coder.hidden 128 64 32 16 8 4
    # Denoising
    launch/local.sh experiments/autoencoder.py --data cifar10 --code 128 --noise masking \
        coder:convolutional
    launch/local.sh experiments/autoencoder.py --sigmoid-code --sparsity 0.1 --contraction 0.1
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, InputError, main, minimize, TrainState
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.average import average, linear_floor
from ssljax.evals.cluster import clusters
from ssljax.evals.compress import compression
from ssljax.evals.pictures import compared
from ssljax.evals.representation import representation
from ssljax.losses.reconstruction import (
    contractive_penalty,
    corrupt,
    cross_entropy,
    kl_sparsity_penalty,
    Noise,
    squared_error,
)
from ssljax.models.coder import Convolutional, Dense
from ssljax.ranges import checked, Count, NotNegative, Positive, ProperFraction


@checked
def autoencoder(
    data: Images = Images("digits"),
    coder: Dense | Convolutional = Dense((500, 250)),
    code: Count = 16,
    noise: Noise = "none",
    amount: NotNegative = 0.25,
    sigmoid_code: bool = False,
    sparsity: NotNegative = 0.0,
    rho: ProperFraction = 0.05,
    contraction: NotNegative = 0.0,
    epochs: Count = 100,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
) -> Experiment:
    """An autoencoder: images through a narrow code and back.

    Args:
        data: Images to learn from, and those that features are judged on.
        coder: Nets from the image to the code and back.
        code: Units of the code.
        noise: Corruption of the encoder's input; the target is the clean image.
        amount: Fraction of pixels that noise replaces, or standard deviation if gaussian.
        sigmoid_code: Pass the code through a sigmoid; it is linear otherwise.
        sparsity: Weight of KL(ρ ‖ mean activation of each unit); needs --sigmoid-code.
        rho: ρ: target for the mean activation of a unit of the code.
        contraction: λ: weight of the squared Frobenius norm of the code's Jacobian.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate.
    """
    if sparsity and not sigmoid_code:
        raise InputError(
            "--sparsity is about how often a unit of the code is on: it needs --sigmoid-code."
        )
    if noise in ("masking", "salt_and_pepper") and amount > 1:
        raise InputError(f"--amount must be at most 1 for --noise {noise}, not {amount}.")
    sets = data.read()
    train, test = sets.train, sets.test
    encoder, decoder, tx = coder.encoder(code), coder.decoder(train.shape), optax.adam(lr)

    def corrupted(key, image):
        return corrupt(noise, key, augment.to_float(image), amount)

    def squash(z):
        return jax.nn.sigmoid(z) if sigmoid_code else z

    def encode(state, image):
        return squash(encoder.apply(state.params["encoder"], augment.to_float(image)))

    def decode(state, z):
        return decoder.apply(state.params["decoder"], z)

    def reconstruct(state, image):
        """The images from a code of 16 bits a number."""
        return jax.nn.sigmoid(decode(state, encode(state, image).astype(jnp.float16)))

    def init(key, batch):
        z, e = encoder.init_with_output(key, augment.to_float(batch["image"][:2]))
        d = decoder.init(jax.random.fold_in(key, 1), z)
        return TrainState.create(tx, {"encoder": e, "decoder": d})

    def loss(params, state, batch, key):
        x, seen = augment.to_float(batch["image"]), corrupted(key, batch["image"])

        def code_of(x):
            return squash(encoder.apply(params["encoder"], x))

        z = encoder.apply(params["encoder"], seen)
        logits = decoder.apply(params["decoder"], squash(z))
        terms = {"cross_entropy": cross_entropy(x, logits).mean()}
        if sparsity:
            terms["sparsity"] = sparsity * kl_sparsity_penalty(z, rho)
        if contraction:
            penalty = contractive_penalty(jax.random.fold_in(key, 1), code_of, seen)
            terms["contraction"] = contraction * penalty.mean()
        value = sum(terms.values())
        return value, (state.extra, {"loss": value, **terms})

    def errors(state, key, x, label):
        x, logits = augment.to_float(x), decode(state, encode(state, x))
        return {
            "squared_error": squared_error(x, jax.nn.sigmoid(logits)),
            "cross_entropy": cross_entropy(x, logits),
        }

    def show(state, key, x):
        seen = corrupted(key, x)
        return [seen, reconstruct(state, seen)]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=steps_of(epochs, train, batch_size),
        encode=encode,
        evals={
            "test": average(
                errors, test, better={"squared_error": "lower", "cross_entropy": "lower"}
            ),
            "floor": linear_floor(train, test, code),
            "rate": compression(reconstruct, test, bits=16 * code),
            **({"clusters": clusters(encode, sets.queries)} if sets.labelled else {}),
            **representation(encode, sets),
            "images": compared(show, test, names=["corrupted", "reconstructed"]),
        },
    )


if __name__ == "__main__":
    main(autoencoder)
