"""Variational autoencoder (Kingma & Welling, 2013, https://arxiv.org/abs/1312.6114); beta-VAE (Higgins et al., 2017).

launch/local.sh experiments/vae.py                                     # digits: half a minute on a laptop CPU
launch/local.sh experiments/vae.py --data mnist --epochs 10 --run.seeds 3       # as Flax's example; in the ledger
launch/local.sh experiments/vae.py --data cifar10 --pixels gaussian --latents 128 coder:convolutional
"""

import jax
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import feed, images
from ssljax.evals.cluster import clusters
from ssljax.evals.knn import knn
from ssljax.evals.likelihood import latent_use, likelihood
from ssljax.evals.pictures import compared, feature_map, interpolations, samples
from ssljax.losses.elbo import kl_normal
from ssljax.models.coder import Convolutional, Dense
from ssljax.models.vae import Pixels, VAE


def vae(
    data: str = "digits",
    coder: Dense | Convolutional = Dense((500,)),
    latents: int = 20,
    pixels: Pixels = "binary",
    beta: float = 1.0,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    importance: int = 1000,
) -> Experiment:
    """A variational autoencoder: images from Gaussian codes.

    Args:
        data: digits (embedded), a TFDS image set (mnist, cifar10), a folder of class folders, or an .npz.
        coder: The nets of q(z|x) and p(x|z).
        latents: Dimensions of z.
        pixels: binary: 0 or 1, drawn anew by brightness; grey: cross-entropy with the brightness itself, which is no
            likelihood; gaussian: normal around the decoder's mean, with one learned variance. Neighbours, clusters and
            reconstructions are by the code of the grey image, whichever it is.
        beta: Weight of the KL; 1 for the bound on the likelihood.
        importance: Draws of q for the likelihood of a test image.
    """
    train, test = (images(data, split) for split in ("train", "test"))
    net, tx = VAE(coder, latents, train.shape, pixels), optax.adam(lr)

    def apply(params, method, *args):
        return net.apply({"params": params}, *args, method=method)

    def init(key, batch):
        return TrainState.create(tx, net.init(key, batch["image"][:2])["params"])

    def loss(params, state, batch, key):
        k1, k2 = jax.random.split(key)
        x = apply(params, net.observe, k1, batch["image"])
        mean, log_var = apply(params, net.posterior, x)
        z = apply(params, net.draw, k2, mean, log_var, 1)[0]
        rec = -apply(params, net.log_prob, x, z).mean()
        kl = kl_normal(mean, log_var).sum(-1).mean()
        return rec + beta * kl, (
            state.extra,
            {"loss": rec + beta * kl, "reconstruction": rec, "kl": kl},
        )

    observe = lambda state, key, x: apply(state.params, net.observe, key, x)
    log_weights = lambda state, key, x, k: apply(state.params, net.log_weights, key, x, k)
    infer = lambda state, x: apply(state.params, net.infer, x)
    encode = lambda state, x: apply(state.params, net.posterior, x)[0]
    decode = lambda state, z: apply(state.params, net.decode, z)
    steps = epochs * (len(train) // batch_size)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=steps,
        evals={
            "test": likelihood(log_weights, test, importance, observe=observe),
            "latents": latent_use(infer, test),
            "knn": knn(encode, train, test),
            "clusters": clusters(encode, test),
            "codes": feature_map(encode, test),
            "prior": samples(
                lambda state, key, n: decode(state, jax.random.normal(key, (n, latents)))
            ),
            "reconstruction": compared(
                lambda state, key, x: [decode(state, encode(state, x))], test
            ),
            "lines": interpolations(encode, decode, test),
        },
    )


if __name__ == "__main__":
    main(vae)
