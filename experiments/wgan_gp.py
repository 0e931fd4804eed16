"""WGAN-GP (Gulrajani et al., 2017, https://arxiv.org/abs/1704.00028): a critic with a gradient of length 1.

launch/local.sh experiments/wgan_gp.py --data cifar10 --widths 128 256 512 --lr 1e-4 --epochs 200
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import descend, ema, Experiment, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import (
    gradient_penalty,
    linear_generator_loss,
    wasserstein_critic_loss,
)
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def wgan_gp(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 128,
    widths: tuple[int, ...] = (32, 64, 128),
    critic_steps: int = 5,
    penalty: float = 10.0,
    epochs: int = 200,
    batch_size: int = 64,
    lr: float = 5e-4,
    decay: float = 0.999,
    features: str = "",
) -> Experiment:
    """WGAN-GP: the generator shortens the Wasserstein distance that the critic estimates.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the critic at each halving of the resolution; the generator's are the reverse.
        critic_steps: For one of the generator, each on a batch of its own; a step of training is all of them.
        penalty: Of the critic's gradient, λ in the paper.
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, critic = Generator(train.shape, widths[::-1]), Discriminator(widths, "layer")
    tx, total = optax.adam(lr, 0.0, 0.9), critic_steps * batch_size

    def generate(params, stats, z):
        x, new = gen.apply(
            {"params": params, "batch_stats": stats}, z, True, mutable=["batch_stats"]
        )
        return x, new["batch_stats"]

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        c = critic.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))["params"]
        return TrainState.game(tx, {"gen": g["params"], "critic": c}, gen=g["batch_stats"], ema=g)

    def step(state, batch, key):
        g, c, opt_c, stats = (
            state.params["gen"],
            state.params["critic"],
            state.opt_state["critic"],
            state.extra["gen"],
        )
        reals = jnp.moveaxis(batch["image"].reshape(batch_size, critic_steps, *train.shape), 1, 0)
        key, *keys = jax.random.split(key, critic_steps + 1)
        *zs, last = jnp.moveaxis(
            over_batch(jax.random.normal(key, (batch_size, critic_steps + 1, latents))), 1, 0
        )
        for real, z, kt in zip(2 * augment.to_float(reals) - 1, zs, keys):

            def critic_loss(c):
                fake, judge = generate(g, stats, z)[0], lambda x: critic.apply({"params": c}, x)
                value = wasserstein_critic_loss(judge(real), judge(fake))
                return value + penalty * gradient_penalty(judge, real, fake, kt), value

            c, opt_c, value = descend(tx, critic_loss, c, opt_c)

        def gen_loss(g):
            fake, new = generate(g, stats, last)
            return linear_generator_loss(critic.apply({"params": c}, fake)), new

        g, opt_g, stats = descend(tx, gen_loss, g, state.opt_state["gen"])
        slow = ema_decay(decay, state.step)
        stats = {
            "gen": stats,
            "ema": ema(state.extra["ema"], {"params": g, "batch_stats": stats}, slow),
        }
        params, opt_state = {"gen": g, "critic": c}, {"gen": opt_g, "critic": opt_c}
        return TrainState(state.step, params, opt_state, stats), {"distance": -value}

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
    main(wgan_gp)
