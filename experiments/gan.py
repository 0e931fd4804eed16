"""The first GAN (Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661): two dense networks.

launch/local.sh experiments/gan.py                  # digits, on a laptop CPU
launch/local.sh experiments/gan.py --data mnist --hidden 512 512 --lr 2e-4 --epochs 30
launch/local.sh experiments/gan.py --minimax        # a confident discriminator stops learning

MNIST with `--hidden 256 256 --lr 2e-4 --epochs 12`: FID 31 ± 22 by our own classifier (untrained
193), recall .16 ± .11 where held-out digits have .94, so samples vary too little; three seeds.
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
    gan_critic_loss,
    minimax_generator_loss,
    nonsaturating_generator_loss,
)
from ssljax.models.coder import DenseDecoder
from ssljax.models.mlp import MLP
from ssljax.ranges import checked, Count, Counts, Fraction, FractionBelowOne, Positive
from ssljax.sharding import over_batch


@checked
def gan(
    data: PlainImages = PlainImages("digits"),
    latents: Count = 64,
    hidden: Counts = (128, 128),
    minimax: bool = False,
    features: str = "",
    epochs: Count = 150,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    b1: FractionBelowOne = 0.5,
    decay: Fraction = 0.999,
) -> Experiment:
    """GAN of dense networks: the discriminator is updated, then the generator, with one noise.

    Args:
        data: Images to learn from.
        latents: Dimensions of the generator's noise z, which is standard normal.
        hidden: Widths of the generator's hidden layers; the discriminator's are reversed.
        minimax: The generator minimises log(1 - D), as in eq. 1, instead of -log D.
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam, for both networks.
        b1: β₁ of Adam: decay of the gradient's moving average.
        decay: EMA decay of the generator used for sampling; lower in the first steps.
    """
    train, test, *_ = data.read()
    num_steps = steps_of(epochs, train, batch_size)
    gen = DenseDecoder(hidden, train.shape)
    disc = MLP((*hidden[::-1], 1), activation="leaky_relu")
    generator_loss = minimax_generator_loss if minimax else nonsaturating_generator_loss
    tx = optax.adam(lr, b1)

    def generate(variables, z):
        return jax.nn.sigmoid(gen.apply(variables, z))

    def judge(params, x):
        return disc.apply({"params": params}, 2 * x - 1)[:, 0]

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), augment.to_float(batch["image"][:1]))
        return TrainState.game(tx, {"gen": g["params"], "disc": d["params"]}, ema=g)

    def fakes(params, key):  # The same for both players, so that XLA generates once.
        z = over_batch(jax.random.normal(key, (rows(batch_size), latents)))
        return generate({"params": params}, z)

    def disc_loss(d, state, batch, key):
        on_real = judge(d, augment.to_float(batch["image"]))
        on_fake = judge(d, fakes(state.params["gen"], key))
        value = gan_critic_loss(on_real, on_fake)
        right = ((on_real > 0).mean() + (on_fake < 0).mean()) / 2
        return value, ({}, {"discriminator": value, "right": right})

    def gen_loss(g, state, batch, key):
        value = generator_loss(judge(state.params["disc"], fakes(g, key)))
        return value, ({}, {"generator": value})

    def draw(state, key, n):
        return generate(state.extra["ema"], jax.random.normal(key, (n, latents)))

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
    main(gan)
