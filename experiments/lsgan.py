"""LSGAN (Mao et al., 2016, https://arxiv.org/abs/1611.04076): squared errors for cross-entropy.

Samples far on the right side of the boundary are still pulled towards the data. The networks are
DCGAN's.

    launch/local.sh experiments/lsgan.py                # digits, on a laptop CPU
    launch/local.sh experiments/lsgan.py --data cifar10 --widths 128 256 512 --lr 2e-4 \
        --epochs 100 --batch-size 64

Digits, three seeds: FID of pixels .18 ± .03 (held-out digits .15, untrained 11.5), recall .79 ± .09
(held-out digits .96).
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, Experiment, main, player_ema, TrainState
from ssljax.accumulation import rows
from ssljax.data import augment, feed, PlainImages, steps_of
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import least_squares_critic_loss, least_squares_generator_loss
from ssljax.models import apply_training
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, Fraction, FractionBelowOne, Positive
from ssljax.sharding import over_batch


@checked
def lsgan(
    data: PlainImages = PlainImages("digits"),
    latents: Count = 100,
    widths: Counts = (32, 64, 128),
    features: str = "",
    epochs: Count = 120,
    batch_size: Count = 128,
    lr: Positive = 5e-4,
    b1: FractionBelowOne = 0.5,
    decay: Fraction = 0.999,
) -> Experiment:
    """LSGAN: the discriminator's targets are 1 for images and 0 for samples.

    The generator's target is 1.

    Args:
        data: Images to learn from.
        latents: Dimensions of the generator's noise z, which is standard normal.
        widths: Channels of the discriminator at each halving; the generator's are reversed.
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam, for both networks.
        b1: β₁ of Adam: decay of the gradient's moving average.
        decay: EMA decay of the generator used for sampling; lower in the first steps.
    """
    train, test, *_ = data.read()
    num_steps = steps_of(epochs, train, batch_size)
    gen, disc = Generator(train.shape, widths[::-1]), Discriminator(widths)
    tx = optax.adam(lr, b1)

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))
        params = {"gen": g.pop("params"), "disc": d.pop("params")}
        return TrainState.game(tx, params, gen=g, disc=d, ema={"params": params["gen"], **g})

    def generate(g, state, key):  # The same for both players.
        z = over_batch(jax.random.normal(key, (rows(batch_size), latents)))
        return apply_training(gen, g, state.extra["gen"], z)

    def disc_loss(d, state, batch, key):
        real, (fake, _) = (
            augment.to_signed(batch["image"]),
            generate(state.params["gen"], state, key),
        )
        on_real, stats = apply_training(disc, d, state.extra["disc"], real)
        on_fake, stats = apply_training(disc, d, stats, fake)
        value = least_squares_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        fake, stats = generate(g, state, key)
        on_fake, _ = apply_training(disc, state.params["disc"], state.extra["disc"], fake)
        value = least_squares_generator_loss(on_fake)
        return value, ({"gen": stats}, {"generator": value})

    def draw(state, key, n):
        z = jax.random.normal(key, (n, latents))
        return (gen.apply(state.extra["ema"], z) + 1) / 2

    return Experiment(
        init=init,
        step=alternate(tx, disc=disc_loss, gen=gen_loss, after=player_ema("gen", decay)),
        data=feed(train, batch_size),
        num_steps=num_steps,
        sample=draw,
        evals={
            "test": generated(draw, feature_net(features), train, test),
            "samples": samples(draw),
        },
    )


if __name__ == "__main__":
    main(lsgan)
