"""GAN with the R1 penalty (Mescheder et al., 2018, https://arxiv.org/abs/1801.04406).

The losses are the first GAN's. The discriminator's gradient on real images is penalised, so that
training converges near the data. The networks are DCGAN's without a norm.

    launch/local.sh experiments/r1gan.py                # digits, on a laptop CPU
    launch/local.sh experiments/r1gan.py --data cifar10 --widths 128 256 512 --lr 1e-4 --gamma 10 \
        --epochs 200

Digits, three seeds: FID of pixels .17 ± .03 (held-out digits .15, untrained 10.4), recall .86 ± .06
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
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss, r1_penalty
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, Fraction, FractionBelowOne, NotNegative, Positive
from ssljax.sharding import over_batch


@checked
def r1gan(
    data: PlainImages = PlainImages("digits"),
    latents: Count = 64,
    widths: Counts = (32, 64, 128),
    gamma: NotNegative = 1.0,
    features: str = "",
    epochs: Count = 60,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    b1: FractionBelowOne = 0.0,
    b2: FractionBelowOne = 0.99,
    decay: Fraction = 0.999,
) -> Experiment:
    """Non-saturating GAN with a penalty on the discriminator's gradient on real images.

    Args:
        data: Images to learn from.
        latents: Dimensions of the generator's noise z, which is standard normal.
        widths: Channels of the discriminator at each halving; the generator's are reversed.
        gamma: γ in eq. 9: weight of the penalty; 10 in the paper for its larger images.
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam, for both networks.
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

    def generate(g, key):  # The same for both players, so that XLA generates once.
        return gen.apply(
            {"params": g}, over_batch(jax.random.normal(key, (rows(batch_size), latents)))
        )

    def disc_loss(d, state, batch, key):
        real, fake = augment.to_signed(batch["image"]), generate(state.params["gen"], key)

        def judge(x):
            return disc.apply({"params": d}, x)

        value = gan_critic_loss(judge(real), judge(fake))
        penalty = r1_penalty(judge, real)
        return value + gamma * penalty, ({}, {"discriminator": value, "penalty": penalty})

    def gen_loss(g, state, batch, key):
        on_fake = disc.apply({"params": state.params["disc"]}, generate(g, key))
        value = nonsaturating_generator_loss(on_fake)
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
    main(r1gan)
