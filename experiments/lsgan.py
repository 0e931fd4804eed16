"""LSGAN (Mao et al., 2016, https://arxiv.org/abs/1611.04076): squared errors where the first GAN has cross-entropy, so
that what lies far on the right side of the boundary is still pulled towards the data. The nets are DCGAN's.

    launch/local.sh experiments/lsgan.py                                              # digits, on a laptop CPU
    launch/local.sh experiments/lsgan.py --data cifar10 --widths 128 256 512 --lr 2e-4 --epochs 100
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, ema, Experiment, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import least_squares_critic_loss, least_squares_generator_loss
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def lsgan(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 100,
    widths: tuple[int, ...] = (32, 64, 128),
    features: str = "",
    epochs: int = 60,
    batch_size: int = 64,
    lr: float = 5e-4,
    b1: float = 0.5,
    decay: float = 0.999,
) -> Experiment:
    """LSGAN: the discriminator's outputs are to be 1 on images and 0 on what is generated, which is to be given a 1.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the discriminator at each halving of the resolution; the generator's are the reverse.
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, disc, tx = Generator(train.shape, widths[::-1]), Discriminator(widths), optax.adam(lr, b1)
    apply = lambda net, params, stats, x: net.apply(
        {"params": params, **stats}, x, True, mutable=["batch_stats"]
    )

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))
        params = {
            "gen": g.pop("params"),
            "disc": d.pop("params"),
        }  # What is left are batch statistics.
        return TrainState.game(tx, params, gen=g, disc=d, ema={"params": params["gen"], **g})

    def generate(g, state, key):  # The same for both players.
        return apply(
            gen, g, state.extra["gen"], over_batch(jax.random.normal(key, (batch_size, latents)))
        )

    def disc_loss(d, state, batch, key):
        on_real, stats = apply(
            disc, d, state.extra["disc"], 2 * augment.to_float(batch["image"]) - 1
        )
        on_fake, stats = apply(disc, d, stats, generate(state.params["gen"], state, key)[0])
        value = least_squares_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        fake, stats = generate(g, state, key)
        value = least_squares_generator_loss(
            apply(disc, state.params["disc"], state.extra["disc"], fake)[0]
        )
        return value, ({"gen": stats}, {"generator": value})

    follow = lambda state: {
        "ema": ema(
            state.extra["ema"],
            {"params": state.params["gen"], **state.extra["gen"]},
            ema_decay(decay, state.step),
        )
    }

    draw = lambda state, key, n: (
        (gen.apply(state.extra["ema"], jax.random.normal(key, (n, latents))) + 1) / 2
    )

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
    main(lsgan)
