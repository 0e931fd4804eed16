"""Variational autoencoder (Kingma & Welling, 2013, https://arxiv.org/abs/1312.6114).

With another --beta it is the beta-VAE (Higgins et al., 2017).

    launch/local.sh experiments/vae.py                  # digits: half a minute on a laptop CPU
    # Drawings: samples are blurred; kNN by the code 36.4 (untrained 5.3, pixels 25.3), one seed
    launch/local.sh experiments/vae.py --data doodles:validation --epochs 30
    # As Flax's example; in the ledger
    launch/local.sh experiments/vae.py --data mnist --epochs 10 --run.seeds 3
    launch/local.sh experiments/vae.py --data cifar10 --pixels gaussian --latents 128 \
        coder:convolutional
"""

import jax
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, Images, steps_of
from ssljax.evals.cluster import clusters
from ssljax.evals.likelihood import latent_use, likelihood
from ssljax.evals.pictures import compared, interpolations, samples
from ssljax.evals.representation import representation
from ssljax.losses.elbo import kl_normal
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import Pixels, VAE
from ssljax.ranges import checked, Count, NotNegative, Positive


@checked
def vae(
    data: Images = Images("digits"),
    coder: Dense | Convolutional = Dense((500,)),
    latents: Count = 20,
    pixels: Pixels = "binary",
    beta: NotNegative = 1.0,
    epochs: Count = 500,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
    importance: Count = 1000,
) -> Experiment:
    """Variational autoencoder: images from Gaussian codes.

    Pixels are binary, drawn in each step as 0 or 1 with the brightness as probability; grey, the
    cross-entropy with the brightness itself, which is no likelihood; or gaussian, around the
    decoder's mean with one learned variance. Neighbours, clusters and reconstructions are by the
    code of the grey image in each case.

    Args:
        data: Images to learn from, and those that features are judged on.
        coder: Networks of q(z|x) and p(x|z).
        latents: Dimensions of z.
        pixels: p(x|z) of a pixel: Bernoulli (binary or grey), or normal (gaussian).
        beta: β: weight of the KL divergence; 1 is the bound on the likelihood.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam.
        importance: Draws of q(z|x) for the likelihood of a test image.
    """
    sets = data.read()
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    net = VAE(coder, latents, train.shape, pixels)
    tx = optax.adam(lr)

    def apply(params, method, *args):
        return net.apply({"params": params}, *args, method=method)

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["image"][:2])["params"])

    def loss(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        x = apply(params, net.observe, k1, batch["image"])
        mean, log_var = apply(params, net.posterior, x)
        z = apply(params, net.draw, k2, mean, log_var, 1)[0]
        reconstruction = -apply(params, net.log_prob, x, z).mean()
        kl = kl_normal(mean, log_var).sum(-1).mean()
        value = reconstruction + beta * kl
        return value, (state.extra, {"loss": value, "reconstruction": reconstruction, "kl": kl})

    def observe(state, key, x):
        return apply(state.params, net.observe, key, x)

    def log_weights(state, key, x, k):
        return apply(state.params, net.log_weights, key, x, k)

    def infer(state, x):
        return apply(state.params, net.infer, x)

    def encode(state, x):
        return apply(state.params, net.posterior, x)[0]

    def decode(state, z):
        return apply(state.params, net.decode, z)

    def draw(state, key, n):
        return decode(state, jax.random.normal(key, (n, latents)))

    def reconstruct(state, key, x):
        return [decode(state, encode(state, x))]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        sample=draw,
        evals={
            "test": likelihood(log_weights, test, importance, observe=observe),
            "latents": latent_use(infer, test),
            **representation(encode, sets, probe=False),
            **({"clusters": clusters(encode, sets.queries)} if sets.labelled else {}),
            "prior": samples(draw),
            "reconstruction": compared(reconstruct, test, names=["reconstructed"]),
            "lines": interpolations(encode, decode, test),
        },
    )


if __name__ == "__main__":
    main(vae)
