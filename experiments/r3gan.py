"""R3GAN (Huang et al., 2024, https://arxiv.org/abs/2501.05441): real and generated judged in pairs, with the gradient
penalised on both; no other trick is needed. The loss is the paper's, the nets are DCGAN's without a norm.

    launch/local.sh experiments/r3gan.py                                              # digits, on a laptop CPU
    launch/local.sh experiments/r3gan.py --data fashion_mnist --epochs 5
    launch/local.sh experiments/r3gan.py --data cifar10 --widths 128 256 512 --lr 2e-4 --gamma 0.05 --epochs 200
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
    r1_penalty,
    r2_penalty,
    relativistic_critic_loss,
    relativistic_generator_loss,
)
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def r3gan(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 64,
    widths: tuple[int, ...] = (32, 64, 128),
    gamma: float = 1.0,
    diff_augment: bool = False,
    features: str = "",
    epochs: int = 60,
    batch_size: int = 64,
    lr: float = 5e-4,
    b1: float = 0.0,
    b2: float = 0.99,
    decay: float = 0.999,
) -> Experiment:
    """R3GAN: a relativistic pairing loss, and the zero-centred penalties R1 and R2.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the discriminator at each halving of the resolution; the generator's are the reverse.
        gamma: Of both penalties.
        diff_augment: Augment what the discriminator sees, real and generated: for small sets (arXiv:2006.10738).
        lr: The paper's is 2e-4 and less, for longer training.
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, disc = Generator(train.shape, widths[::-1], "none"), Discriminator(widths, "none")
    tx = optax.adam(lr, b1, b2)
    see = augment.diff_augment if diff_augment else lambda key, x: x

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))["params"]
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))["params"]
        return TrainState.game(tx, {"gen": g, "disc": d}, ema=g)

    def pairs(g, batch, key):  # The same for both players, so that XLA generates once.
        kz, kr, kf = jax.random.split(key, 3)
        fake = gen.apply({"params": g}, over_batch(jax.random.normal(kz, (batch_size, latents))))
        return see(kr, 2 * augment.to_float(batch["image"]) - 1), see(kf, fake)

    def disc_loss(d, state, batch, key):
        judge, (real, fake) = (
            lambda x: disc.apply({"params": d}, x),
            pairs(state.params["gen"], batch, key),
        )
        value, penalty = (
            relativistic_critic_loss(judge(real), judge(fake)),
            r1_penalty(judge, real) + r2_penalty(judge, fake),
        )
        return value + gamma * penalty, ({}, {"discriminator": value, "penalty": penalty})

    def gen_loss(g, state, batch, key):
        real, fake = (disc.apply({"params": state.params["disc"]}, x) for x in pairs(g, batch, key))
        value = relativistic_generator_loss(real, fake)
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
    main(r3gan)
