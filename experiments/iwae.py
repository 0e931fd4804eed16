"""Importance-weighted autoencoder (Burda et al., 2015, https://arxiv.org/abs/1509.00519).

With k = 1 it is the plain VAE.

    launch/local.sh experiments/iwae.py                 # digits: a minute on a laptop CPU
    # As the paper
    launch/local.sh experiments/iwae.py --data mnist --k 50 --batch-size 20 --epochs 3280
    # At a third of the cost
    launch/local.sh experiments/iwae.py --data mnist --k 50 --gradient one
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, PlainImages, steps_of
from ssljax.evals.features import check_shapes
from ssljax.evals.likelihood import latent_use, likelihood
from ssljax.evals.pictures import samples
from ssljax.losses.elbo import dreg_bound, iwae_bound, one_sample_bound
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import VAE
from ssljax.optim import scheduled
from ssljax.ranges import checked, Count, Positive


def paper_stages(lr: float, num_steps: int) -> optax.Schedule:
    """Learning rate in eight stages, each three times as long as the one before: section 5.

    The rate falls from stage to stage, to a tenth of `lr` in the last.
    """

    def schedule(step):
        part = (step + 0.5) / num_steps
        stage = jnp.floor(jnp.log(1 + part * (3**8 - 1)) / math.log(3))  # 0 to 7
        return lr * 10 ** (-stage / 7)

    return schedule


@checked
def iwae(
    data: PlainImages = PlainImages("digits"),
    coder: Dense | Convolutional = Dense((200, 200), "tanh"),
    latents: Count = 50,
    k: Count = 5,
    gradient: Literal["iwae", "dreg", "one"] = "iwae",
    epochs: Count = 200,
    batch_size: Count = 100,
    lr: Positive = 1e-3,
    schedule: Literal["stages", "cosine"] = "stages",
    importance: Count = 5000,
) -> Experiment:
    """Importance-weighted autoencoder of one stochastic layer, on binary pixels.

    Pixels are drawn in each step as 0 or 1, with the brightness as probability. The gradient dreg
    is the doubly reparameterised one (Tucker et al., 2018, arXiv:1810.04152). Most of the paper's
    schedule is at a low rate, too low for training far shorter than the paper's.

    Args:
        data: Images to learn from.
        coder: Networks of q(z|x) and p(x|z).
        latents: Dimensions of z.
        k: Draws of q(z|x) in the bound.
        gradient: Gradient: the bound's own, dreg's, or that of one draw, picked by its weight.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam in the first step.
        schedule: Schedule of lr: the paper's eight stages, or a cosine to 0 for shorter training.
        importance: Draws of q(z|x) for the likelihood of a test image.
    """
    train, test, *_ = data.read()
    check_shapes(train, test)
    num_steps = steps_of(epochs, train, batch_size)
    stages = optax.cosine_decay_schedule if schedule == "cosine" else paper_stages
    rate = stages(lr, num_steps)
    tx = scheduled(optax.adam(rate, eps=1e-4), rate)
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

        def log_w(z):
            return apply(params, net.log_weight, x, z, *q)

        if gradient == "iwae":
            bound = iwae_bound(log_w(z))
        elif gradient == "dreg":
            bound = dreg_bound(log_w, z)
        else:
            bound = one_sample_bound(k3, log_w, z)
        value = -bound.mean()
        return value, (state.extra, {"loss": value})

    def observe(state, key, x):
        return apply(state.params, net.observe, key, x)

    def log_weights(state, key, x, k):
        return apply(state.params, net.log_weights, key, x, k)

    def infer(state, x):
        return apply(state.params, net.infer, x)

    def draw(state, key, n):
        return apply(state.params, net.decode, jax.random.normal(key, (n, latents)))

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        sample=draw,
        evals={
            "test": likelihood(log_weights, test, importance, observe=observe),
            "latents": latent_use(infer, test),
            "prior": samples(draw),
        },
    )


if __name__ == "__main__":
    main(iwae)
