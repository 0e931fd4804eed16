"""WGAN-GP (Gulrajani et al., 2017, https://arxiv.org/abs/1704.00028): the gradient has norm 1.

    launch/local.sh experiments/wgan_gp.py              # digits, on a laptop CPU
    launch/local.sh experiments/wgan_gp.py --data cifar10 --widths 128 256 512 --lr 1e-4 \
        --epochs 200

Digits, three seeds: FID of pixels .12 ± .01 (held-out digits .15, untrained 11.5), recall .91 ± .04
(held-out digits .96).
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, Experiment, main, player_ema, TrainState
from ssljax.data import augment, feed, PlainImages, steps_of
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import (
    gradient_penalty,
    linear_generator_loss,
    wasserstein_critic_loss,
)
from ssljax.models import apply_training
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, Fraction, NotNegative, Positive
from ssljax.sharding import over_batch


@checked
def wgan_gp(
    data: PlainImages = PlainImages("digits"),
    latents: Count = 128,
    widths: Counts = (32, 64, 128),
    critic_steps: Count = 5,
    penalty: NotNegative = 10.0,
    epochs: Count = 200,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    decay: Fraction = 0.999,
    features: str = "",
) -> Experiment:
    """WGAN-GP: the generator reduces the Wasserstein distance that the critic estimates.

    Args:
        data: Images to learn from.
        latents: Dimensions of the generator's noise z, which is standard normal.
        widths: Channels of the critic at each halving; the generator's are reversed.
        critic_steps: n_critic: updates of the critic, each on its own batch, in a step.
        penalty: λ in eq. 3: weight of the critic's gradient penalty.
        epochs: Passes over the training set.
        batch_size: Images in an update of the critic.
        lr: Learning rate of Adam, for both networks.
        decay: EMA decay of the generator used for sampling; lower in the first steps.
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
    """
    train, test, *_ = data.read()
    num_steps = steps_of(epochs, train, batch_size, critic_steps)
    gen, critic = Generator(train.shape, widths[::-1]), Discriminator(widths, "layer")
    tx = optax.adam(lr, 0.0, 0.9)

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        c = critic.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))["params"]
        params = {"gen": g.pop("params"), "critic": c}
        return TrainState.game(tx, params, gen=g, ema={"params": params["gen"], **g})

    def critic_loss(c, state, batch, key):
        real = augment.to_signed(batch["image"])
        fake, _ = apply_training(gen, state.params["gen"], state.extra["gen"], batch["z"])

        def judge(x):
            return critic.apply({"params": c}, x)

        value = wasserstein_critic_loss(judge(real), judge(fake))
        total = value + penalty * gradient_penalty(judge, real, fake, key)
        return total, ({}, {"distance": -value})

    def gen_loss(g, state, batch, key):
        fake, stats = apply_training(gen, g, state.extra["gen"], batch["z"])
        on_fake = critic.apply({"params": state.params["critic"]}, fake)
        return linear_generator_loss(on_fake), ({"gen": stats}, {})

    critic_step = alternate(tx, critic=critic_loss)
    gen_step = alternate(tx, gen=gen_loss, after=player_ema("gen", decay))

    def step(state, batch, key):
        real = batch["image"].reshape(batch_size, critic_steps, *train.shape)
        key, *keys = jax.random.split(key, critic_steps + 1)
        z = over_batch(jax.random.normal(key, (batch_size, critic_steps + 1, latents)))
        for i in range(critic_steps):
            own = {"image": real[:, i], "z": z[:, i]}
            state, metrics = critic_step(state, own, keys[i])
        state, of_gen = gen_step(state, {"z": z[:, -1]}, key)
        return state, metrics | of_gen

    def draw(state, key, n):
        z = jax.random.normal(key, (n, latents))
        return (gen.apply(state.extra["ema"], z) + 1) / 2

    return Experiment(
        init=init,
        step=step,
        data=feed(train, batch_size * critic_steps),
        num_steps=num_steps,
        sample=draw,
        evals={
            "test": generated(draw, feature_net(features), train, test),
            "samples": samples(draw),
        },
    )


if __name__ == "__main__":
    main(wgan_gp)
