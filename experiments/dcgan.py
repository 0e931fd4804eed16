"""DCGAN (Radford et al., 2015, https://arxiv.org/abs/1511.06434): convolutions that generate, and others that tell.

launch/local.sh experiments/dcgan.py                                              # digits, on a laptop CPU
launch/local.sh experiments/dcgan.py --data cifar10 --widths 128 256 512 --batch-size 128 --lr 2e-4 --epochs 100
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, ema, Experiment, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.evals.probe import linear_probe
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def dcgan(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 100,
    widths: tuple[int, ...] = (32, 64, 128),
    diff_augment: bool = False,
    features: str = "",
    epochs: int = 60,
    batch_size: int = 64,
    lr: float = 5e-4,
    b1: float = 0.5,
    decay: float = 0.999,
) -> Experiment:
    """DCGAN: its samples, and what its discriminator's last layer tells a linear probe (section 5.1: all its layers).

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the discriminator at each halving of the resolution; the generator's are the reverse.
        diff_augment: Augment what the discriminator sees, real and generated: for small sets (arXiv:2006.10738).
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, disc, tx = Generator(train.shape, widths[::-1]), Discriminator(widths), optax.adam(lr, b1)
    pixels = lambda x: 2 * augment.to_float(x) - 1
    see = augment.diff_augment if diff_augment else lambda key, x: x
    apply = lambda net, params, stats, x: net.apply(
        {"params": params, **stats}, x, True, mutable=["batch_stats"]
    )

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), pixels(batch["image"][:1]))
        params = {
            "gen": g.pop("params"),
            "disc": d.pop("params"),
        }  # What is left are batch statistics.
        return TrainState.game(tx, params, gen=g, disc=d, ema={"params": params["gen"], **g})

    def seen(g, state, batch, key):  # The same by both players.
        kz, kr, kf = jax.random.split(key, 3)
        fake, stats = apply(
            gen, g, state.extra["gen"], over_batch(jax.random.normal(kz, (batch_size, latents)))
        )
        return see(kr, pixels(batch["image"])), see(kf, fake), stats

    def disc_loss(d, state, batch, key):
        real, fake, _ = seen(state.params["gen"], state, batch, key)
        on_real, stats = apply(disc, d, state.extra["disc"], real)  # Real and generated are batches
        on_fake, stats = apply(disc, d, stats, fake)  # of their own to BatchNorm.
        value = gan_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        _, fake, stats = seen(g, state, batch, key)
        value = nonsaturating_generator_loss(
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
    bare = disc.clone(head=False)
    encode = lambda state, x: bare.apply(
        {"params": state.params["disc"], **state.extra["disc"]}, pixels(x)
    )

    return Experiment(
        init=init,
        step=alternate(tx, disc=disc_loss, gen=gen_loss, after=follow),
        data=feed(train, batch_size),
        num_steps=epochs * (len(train) // batch_size),
        evals={
            "samples": samples(draw),
            "test": generated(draw, feature_net(features), train, test),
            "probe": linear_probe(encode, train, test),
        },
    )


if __name__ == "__main__":
    main(dcgan)
