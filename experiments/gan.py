"""The first GAN (Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661): two dense networks in a game.

launch/local.sh experiments/gan.py                                            # digits, on a laptop CPU
launch/local.sh experiments/gan.py --data mnist --hidden 512 512 --lr 2e-4 --epochs 30
launch/local.sh experiments/gan.py --minimax                                  # see a sure discriminator stop it
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, ema, Experiment, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import (
    gan_critic_loss,
    minimax_generator_loss,
    nonsaturating_generator_loss,
)
from ssljax.models.coder import DenseDecoder
from ssljax.models.mlp import MLP
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def gan(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 64,
    hidden: tuple[int, ...] = (128, 128),
    minimax: bool = False,
    features: str = "",
    epochs: int = 150,
    batch_size: int = 64,
    lr: float = 5e-4,
    b1: float = 0.5,
    decay: float = 0.999,
) -> Experiment:
    """A GAN of dense networks: a step of the discriminator, then one of the generator against it, with the same noise.

    Args:
        data: digits (embedded), a TFDS image set (mnist, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        hidden: Widths between latents and pixels; the discriminator's are the reverse.
        minimax: The generator minimises log(1 - D), the game's own value, and not -log D.
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, disc = DenseDecoder(hidden, train.shape), MLP((*hidden[::-1], 1), activation="leaky_relu")
    tx, generator_loss = (
        optax.adam(lr, b1),
        minimax_generator_loss if minimax else nonsaturating_generator_loss,
    )

    def generate(params, z):
        return jax.nn.sigmoid(gen.apply({"params": params}, z))

    def judge(params, x):
        return disc.apply({"params": params}, 2 * x - 1)[:, 0]

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))["params"]
        d = disc.init(jax.random.fold_in(key, 1), augment.to_float(batch["image"][:1]))["params"]
        return TrainState.game(tx, {"gen": g, "disc": d}, ema=g)

    def latent(key):  # The same for both players, so that XLA generates once.
        return over_batch(jax.random.normal(key, (batch_size, latents)))

    def disc_loss(d, state, batch, key):
        on_real = judge(d, augment.to_float(batch["image"]))
        on_fake = judge(d, generate(state.params["gen"], latent(key)))
        value = gan_critic_loss(on_real, on_fake)
        right = ((on_real > 0).mean() + (on_fake < 0).mean()) / 2
        return value, ({}, {"discriminator": value, "right": right})

    def gen_loss(g, state, batch, key):
        value = generator_loss(judge(state.params["disc"], generate(g, latent(key))))
        return value, ({}, {"generator": value})

    def follow(state):
        return {"ema": ema(state.extra["ema"], state.params["gen"], ema_decay(decay, state.step))}

    def draw(state, key, n):
        return generate(state.extra["ema"], jax.random.normal(key, (n, latents)))

    return Experiment(
        init=init,
        step=alternate(tx, disc=disc_loss, gen=gen_loss, after=follow),
        data=feed(train, batch_size),
        num_steps=epochs * (len(train) // batch_size),
        evals={
            "test": generated(draw, feature_net(features), train, test),
            "samples": samples(draw),
        },
    )


if __name__ == "__main__":
    main(gan)
