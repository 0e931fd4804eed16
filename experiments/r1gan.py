"""GAN with the penalty R1 (Mescheder et al., 2018, https://arxiv.org/abs/1801.04406): the first GAN's losses, with the
discriminator held flat on the data, near which training then converges. The nets are DCGAN's without a norm.

    launch/local.sh experiments/r1gan.py                                              # digits, on a laptop CPU
    launch/local.sh experiments/r1gan.py --data cifar10 --widths 128 256 512 --lr 1e-4 --gamma 10 --epochs 200
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, ema, Experiment, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss, r1_penalty
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def r1gan(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 64,
    widths: tuple[int, ...] = (32, 64, 128),
    gamma: float = 1.0,
    features: str = "",
    epochs: int = 60,
    batch_size: int = 64,
    lr: float = 5e-4,
    b1: float = 0.0,
    b2: float = 0.99,
    decay: float = 0.999,
) -> Experiment:
    """The non-saturating GAN, with the discriminator's squared gradient on real images as a penalty.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the discriminator at each halving of the resolution; the generator's are the reverse.
        gamma: Of the penalty, γ in the paper, which takes 10 for its larger images.
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, disc = Generator(train.shape, widths[::-1], "none"), Discriminator(widths, "none")
    tx = optax.adam(lr, b1, b2)

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))["params"]
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))["params"]
        return TrainState.game(tx, {"gen": g, "disc": d}, ema=g)

    def generate(g, key):  # The same for both players, so that XLA generates once.
        return gen.apply({"params": g}, over_batch(jax.random.normal(key, (batch_size, latents))))

    def disc_loss(d, state, batch, key):
        judge, real = (
            lambda x: disc.apply({"params": d}, x),
            2 * augment.to_float(batch["image"]) - 1,
        )
        value, penalty = (
            gan_critic_loss(judge(real), judge(generate(state.params["gen"], key))),
            r1_penalty(judge, real),
        )
        return value + gamma * penalty, ({}, {"discriminator": value, "penalty": penalty})

    def gen_loss(g, state, batch, key):
        value = nonsaturating_generator_loss(
            disc.apply({"params": state.params["disc"]}, generate(g, key))
        )
        return value, ({}, {"generator": value})

    def follow(state):
        return {"ema": ema(state.extra["ema"], state.params["gen"], ema_decay(decay, state.step))}

    def draw(state, key, n):
        return (
            gen.apply({"params": state.extra["ema"]}, jax.random.normal(key, (n, latents))) + 1
        ) / 2

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
    main(r1gan)
