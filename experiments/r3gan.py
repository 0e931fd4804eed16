"""R3GAN (Huang et al., 2024, https://arxiv.org/abs/2501.05441): a relativistic pairing loss.

Real images and samples are judged in pairs, and the discriminator's gradient is penalised on both;
no other trick is needed. The loss is the paper's, the networks are DCGAN's without a norm.

    launch/local.sh experiments/r3gan.py                # digits, on a laptop CPU
    launch/local.sh experiments/r3gan.py --data fashion_mnist --epochs 5
    launch/local.sh experiments/r3gan.py --data cifar10 --widths 128 256 512 --lr 2e-4 \
        --gamma 0.05 --epochs 200
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
from ssljax.losses.adversarial import (
    r1_penalty,
    r2_penalty,
    relativistic_critic_loss,
    relativistic_generator_loss,
)
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, Fraction, FractionBelowOne, NotNegative, Positive
from ssljax.sharding import over_batch


@checked
def r3gan(
    data: PlainImages = PlainImages("digits"),
    latents: Count = 64,
    widths: Counts = (32, 64, 128),
    gamma: NotNegative = 1.0,
    diff_augment: bool = False,
    features: str = "",
    epochs: Count = 60,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    b1: FractionBelowOne = 0.0,
    b2: FractionBelowOne = 0.99,
    decay: Fraction = 0.999,
) -> Experiment:
    """R3GAN: a relativistic pairing loss with the zero-centred penalties R1 and R2.

    Args:
        data: Images to learn from.
        latents: Dimensions of the generator's noise z, which is standard normal.
        widths: Channels of the discriminator at each halving; the generator's are reversed.
        gamma: γ: weight of both penalties.
        diff_augment: Augment all that the discriminator sees, for small sets (arXiv:2006.10738).
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam, for both networks; the paper's is 2e-4 or less, for longer runs.
        b1: β₁ of Adam: decay of the gradient's moving average.
        b2: β₂ of Adam: decay of the squared gradient's moving average.
        decay: EMA decay of the generator used for sampling; lower in the first steps.
    """
    train, test, *_ = data.read()
    num_steps = steps_of(epochs, train, batch_size)
    gen, disc = Generator(train.shape, widths[::-1], "none"), Discriminator(widths, "none")
    tx = optax.adam(lr, b1, b2)

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))
        return TrainState.game(tx, {"gen": g["params"], "disc": d["params"]}, ema=g)

    def augmented(key, x):
        return augment.diff_augment(key, x) if diff_augment else x

    def pairs(g, batch, key):  # The same for both players, so that XLA generates once.
        kz, kr, kf = jax.random.split(key, 3)
        fake = gen.apply(
            {"params": g}, over_batch(jax.random.normal(kz, (rows(batch_size), latents)))
        )
        return augmented(kr, augment.to_signed(batch["image"])), augmented(kf, fake)

    def disc_loss(d, state, batch, key):
        real, fake = pairs(state.params["gen"], batch, key)

        def judge(x):
            return disc.apply({"params": d}, x)

        value = relativistic_critic_loss(judge(real), judge(fake))
        penalty = r1_penalty(judge, real) + r2_penalty(judge, fake)
        return value + gamma * penalty, ({}, {"discriminator": value, "penalty": penalty})

    def gen_loss(g, state, batch, key):
        real, fake = (disc.apply({"params": state.params["disc"]}, x) for x in pairs(g, batch, key))
        value = relativistic_generator_loss(real, fake)
        return value, ({}, {"generator": value})

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
    main(r3gan)
