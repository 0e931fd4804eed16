"""Importance-weighted autoencoder (Burda et al., 2015, https://arxiv.org/abs/1509.00519); with k = 1 the plain VAE.

launch/local.sh experiments/iwae.py                                    # digits: a minute on a laptop CPU
launch/local.sh experiments/iwae.py --data mnist --k 50 --batch-size 20 --epochs 3280      # the paper's
launch/local.sh experiments/iwae.py --data mnist --k 50 --gradient one                     # at a third of the cost
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.evals.likelihood import latent_use, likelihood
from ssljax.evals.pictures import samples
from ssljax.losses.elbo import dreg_bound, iwae_bound, one_sample_bound
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import VAE


def iwae(
    data: str = "digits",
    coder: Dense | Convolutional = Dense((200, 200), "tanh"),
    latents: int = 50,
    k: int = 5,
    gradient: Literal["iwae", "dreg", "one"] = "iwae",
    epochs: int = 200,
    batch_size: int = 100,
    lr: float = 1e-3,
    schedule: Literal["stages", "cosine"] = "stages",
    importance: int = 5000,
) -> Experiment:
    """An importance-weighted autoencoder of one stochastic layer, on pixels drawn anew as 0 or 1 by their brightness.

    Args:
        data: digits (embedded), a TFDS image set (mnist), a folder of class folders, or an .npz.
        coder: The nets of q(z|x) and p(x|z).
        latents: Dimensions of z.
        k: Draws of q in the bound.
        gradient: The bound's own; the doubly reparameterised one (Tucker et al., 2018, arXiv:1810.04152); or that of one
            draw, picked by its weight.
        lr: At first.
        schedule: The paper's eight stages, each three times as long as the one before and a tenth at the end; or a cosine
            to zero, for training far shorter than the paper's, most of which is at a low rate.
        importance: Draws of q for the likelihood of a test image.
    """
    train, test = (images(data, split) for split in ("train", "test"))
    steps = epochs * (len(train) // batch_size)
    stage = lambda step: jnp.floor(
        jnp.log(1 + (step + 0.5) / steps * (3**8 - 1)) / math.log(3)
    )  # 0 to 7: section 5.
    falling = optax.cosine_decay_schedule(lr, steps)
    tx = optax.adam(
        falling if schedule == "cosine" else lambda step: lr * 10 ** (-stage(step) / 7), eps=1e-4
    )
    net = VAE(coder, latents, train.shape)

    def apply(params, method, *args):
        return net.apply({"params": params}, *args, method=method)

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["image"][:2])["params"])

    def loss(params, state, batch, key):
        k1, k2, k3 = jax.random.split(key, 3)
        x = apply(params, net.observe, k1, batch["image"])
        q = apply(params, net.posterior, x)
        z = apply(params, net.draw, k2, *q, k)
        if gradient == "dreg":
            q = jax.lax.stop_gradient(q)
        log_w = lambda z: apply(params, net.log_weight, x, z, *q)
        if gradient == "iwae":
            value = -iwae_bound(log_w(z)).mean()
        else:
            value = -(
                dreg_bound(log_w, z) if gradient == "dreg" else one_sample_bound(k3, log_w, z)
            ).mean()
        return value, (state.extra, {"loss": value})

    observe = lambda state, key, x: apply(state.params, net.observe, key, x)
    log_weights = lambda state, key, x, k: apply(state.params, net.log_weights, key, x, k)
    prior = lambda state, key, n: apply(
        state.params, net.decode, jax.random.normal(key, (n, latents))
    )
    infer = lambda state, x: apply(state.params, net.infer, x)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            "test": likelihood(log_weights, test, importance, observe=observe),
            "latents": latent_use(infer, test),
            "prior": samples(prior),
        },
    )


if __name__ == "__main__":
    main(iwae)
