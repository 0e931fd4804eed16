"""SNGAN (Miyato et al., 2018, https://arxiv.org/abs/1802.05957): spectral normalization.

Each kernel of the discriminator is divided by its largest singular value; the loss is the hinge.

    launch/local.sh experiments/sngan.py                # digits, on a laptop CPU
    launch/local.sh experiments/sngan.py --data cifar10 --widths 128 256 512 --lr 2e-4 --epochs 200

Digits, three seeds: FID of pixels .30 ± .04 (held-out digits .15, untrained 11.5), recall .74 ± .03
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
from ssljax.losses.adversarial import hinge_critic_loss, linear_generator_loss
from ssljax.models import apply_training
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, Fraction, Positive
from ssljax.sharding import over_batch


@checked
def sngan(
    data: PlainImages = PlainImages("digits"),
    latents: Count = 128,
    widths: Counts = (32, 64, 128),
    features: str = "",
    critic_steps: Count = 5,
    epochs: Count = 200,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    decay: Fraction = 0.999,
) -> Experiment:
    """SNGAN: a Lipschitz discriminator without a penalty on its gradient.

    Args:
        data: Images to learn from.
        latents: Dimensions of the generator's noise z, which is standard normal.
        widths: Channels of the discriminator at each halving; the generator's are reversed.
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        critic_steps: n_dis: updates of the discriminator, each on its own batch, in a step.
        epochs: Passes over the training set.
        batch_size: Images in an update of the discriminator.
        lr: Learning rate of Adam, for both networks.
        decay: EMA decay of the generator used for sampling; lower in the first steps.
    """
    train, test, *_ = data.read()
    num_steps = steps_of(epochs, train, batch_size, critic_steps)
    gen, disc = Generator(train.shape, widths[::-1]), Discriminator(widths, "spectral")
    tx = optax.adam(lr, 0.0, 0.9)

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))
        params = {"gen": g.pop("params"), "disc": d.pop("params")}
        return TrainState.game(tx, params, gen=g, disc=d, ema={"params": params["gen"], **g})

    def disc_loss(d, state, batch, key):
        fake, _ = apply_training(gen, state.params["gen"], state.extra["gen"], batch["z"])
        # Both start from one state of the power iteration: of two new ones, the first is kept.
        old = state.extra["disc"]
        on_real, stats = apply_training(disc, d, old, augment.to_signed(batch["image"]))
        on_fake, _ = apply_training(disc, d, old, fake)
        value = hinge_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        fake, stats = apply_training(gen, g, state.extra["gen"], batch["z"])
        on_fake, _ = apply_training(disc, state.params["disc"], state.extra["disc"], fake)
        return linear_generator_loss(on_fake), ({"gen": stats}, {})

    disc_step = alternate(tx, disc=disc_loss)
    gen_step = alternate(tx, gen=gen_loss, after=player_ema("gen", decay))

    def step(state, batch, key):
        real = batch["image"].reshape(batch_size, critic_steps, *train.shape)
        z = over_batch(jax.random.normal(key, (batch_size, critic_steps + 1, latents)))
        for i in range(critic_steps):
            state, metrics = disc_step(state, {"image": real[:, i], "z": z[:, i]}, key)
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
    main(sngan)
