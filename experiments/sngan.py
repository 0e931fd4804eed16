"""SNGAN (Miyato et al., 2018, https://arxiv.org/abs/1802.05957): kernels over their singular values, hinge loss.

launch/local.sh experiments/sngan.py
launch/local.sh experiments/sngan.py --data cifar10 --widths 128 256 512 --lr 2e-4 --epochs 200
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import descend, ema, Experiment, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import hinge_critic_loss, linear_generator_loss
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def sngan(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 128,
    widths: tuple[int, ...] = (32, 64, 128),
    features: str = "",
    critic_steps: int = 5,
    epochs: int = 200,
    batch_size: int = 64,
    lr: float = 5e-4,
    decay: float = 0.999,
) -> Experiment:
    """SNGAN: a discriminator that can't be steep, without a penalty on its gradient.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the discriminator at each halving of the resolution; the generator's are the reverse.
        critic_steps: For one of the generator, each on a batch of its own; a step of training is all of them.
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, disc = Generator(train.shape, widths[::-1]), Discriminator(widths, "spectral")
    tx, total = optax.adam(lr, 0.0, 0.9), batch_size * critic_steps

    def apply(net, params, stats, x):
        y, new = net.apply(
            {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
        )
        return y, new["batch_stats"]

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))
        return TrainState.game(
            tx,
            {"gen": g["params"], "disc": d["params"]},
            gen=g["batch_stats"],
            disc=d["batch_stats"],
            ema=g,
        )

    def step(state, batch, key):
        g, d, opt_g, opt_d, g_stats, d_stats = (
            s[k] for s in (state.params, state.opt_state, state.extra) for k in ("gen", "disc")
        )
        reals = jnp.moveaxis(batch["image"].reshape(batch_size, critic_steps, *train.shape), 1, 0)
        *zs, z = jnp.moveaxis(
            over_batch(jax.random.normal(key, (batch_size, critic_steps + 1, latents))), 1, 0
        )
        for real, noise in zip(2 * augment.to_float(reals) - 1, zs):

            def disc_loss(d):
                on_real, stats = apply(disc, d, d_stats, real)
                on_fake, _ = apply(
                    disc, d, d_stats, apply(gen, g, g_stats, noise)[0]
                )  # The same power iteration.
                value = hinge_critic_loss(on_real, on_fake)
                return value, (value, stats)

            d, opt_d, (d_value, d_stats) = descend(tx, disc_loss, d, opt_d)

        def gen_loss(g):
            fake, stats = apply(gen, g, g_stats, z)
            return linear_generator_loss(apply(disc, d, d_stats, fake)[0]), stats

        g, opt_g, g_stats = descend(tx, gen_loss, g, opt_g)
        mean = ema(
            state.extra["ema"], {"params": g, "batch_stats": g_stats}, ema_decay(decay, state.step)
        )
        return TrainState(
            state.step,
            {"gen": g, "disc": d},
            {"gen": opt_g, "disc": opt_d},
            {"gen": g_stats, "disc": d_stats, "ema": mean},
        ), {"discriminator": d_value}

    draw = lambda state, key, n: (
        (gen.apply(state.extra["ema"], jax.random.normal(key, (n, latents))) + 1) / 2
    )

    return Experiment(
        init=init,
        step=step,
        data=feed(train, total),
        num_steps=epochs * (len(train) // total),
        evals={
            "test": generated(draw, feature_net(features), train, test),
            "samples": samples(draw),
        },
    )


if __name__ == "__main__":
    main(sngan)
