"""Projection discriminator (Miyato and Koyama, 2018, https://arxiv.org/abs/1802.05637).

A class-conditional GAN: the discriminator's output has an inner product of the image's features
with a vector of the class, and the class chooses scale and shift of the generator's BatchNorms.

    launch/local.sh experiments/projection.py           # digits, on a laptop CPU
    launch/local.sh experiments/projection.py --data cifar10 --widths 128 256 512 --lr 2e-4 \
        --epochs 200

Digits, three seeds: FID of pixels .60 ± .21 (held-out digits .15), recall .18 ± .18 (held-out
digits .96): each class has its digit, which hardly varies.
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
from ssljax.losses.adversarial import hinge_critic_loss, linear_generator_loss
from ssljax.models import apply_training
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, Fraction, FractionBelowOne, Positive
from ssljax.sharding import over_batch


@checked
def projection(
    data: PlainImages = PlainImages("digits"),
    latents: Count = 128,
    widths: Counts = (32, 64, 128),
    features: str = "",
    epochs: Count = 60,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    b1: FractionBelowOne = 0.0,
    b2: FractionBelowOne = 0.9,
    decay: Fraction = 0.999,
) -> Experiment:
    """Class-conditional GAN with a projection discriminator, spectral norm and the hinge loss.

    Args:
        data: Images to learn from.
        latents: Dimensions of the generator's noise z, which is standard normal.
        widths: Channels of the discriminator at each halving; the generator's are reversed.
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam, for both networks.
        b1: β₁ of Adam: decay of the gradient's moving average.
        b2: β₂ of Adam: decay of the squared gradient's moving average.
        decay: EMA decay of the generator used for sampling; lower in the first steps.
    """
    train, test, *_ = data.read(labels=True)
    num_steps = steps_of(epochs, train, batch_size)
    classes = train.num_classes
    gen = Generator(train.shape, widths[::-1], classes=classes)
    disc = Discriminator(widths, "spectral", classes=classes)
    tx = optax.adam(lr, b1, b2)

    def init(key, batch):
        y = batch["label"][:1]
        g = gen.init(key, jnp.zeros((1, latents)), label=y)
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)), label=y)
        params = {"gen": g.pop("params"), "disc": d.pop("params")}
        return TrainState.game(tx, params, gen=g, disc=d, ema={"params": params["gen"], **g})

    def generate(g, state, key):  # The same for both players.
        kz, ky = jax.random.split(key)
        z = over_batch(jax.random.normal(kz, (rows(batch_size), latents)))
        y = over_batch(jax.random.randint(ky, (rows(batch_size),), 0, classes))
        return *apply_training(gen, g, state.extra["gen"], z, y), y

    def disc_loss(d, state, batch, key):
        fake, _, y = generate(state.params["gen"], state, key)
        real, old = augment.to_signed(batch["image"]), state.extra["disc"]
        # Both start from one state of the power iteration: of two new ones, the first is kept.
        on_real, stats = apply_training(disc, d, old, real, batch["label"])
        on_fake, _ = apply_training(disc, d, old, fake, y)
        value = hinge_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        fake, stats, y = generate(g, state, key)
        on_fake, _ = apply_training(disc, state.params["disc"], state.extra["disc"], fake, y)
        value = linear_generator_loss(on_fake)
        return value, ({"gen": stats}, {"generator": value})

    def sample(state, z, y):
        return (gen.apply(state.extra["ema"], z, label=y) + 1) / 2

    def draw(state, key, n, label=None):
        y = jnp.arange(n) % classes if label is None else jnp.full(n, label)
        return sample(state, jax.random.normal(key, (n, latents)), y)

    def draw_by_class(state, key, n):  # A row for each class, a column for each latent.
        z = jnp.tile(jax.random.normal(key, (n // classes, latents)), (classes, 1))
        return sample(state, z, jnp.repeat(jnp.arange(classes), n // classes))

    return Experiment(
        init=init,
        step=alternate(tx, disc=disc_loss, gen=gen_loss, after=player_ema("gen", decay)),
        data=feed(train, batch_size),
        num_steps=num_steps,
        sample=draw,
        evals={
            "test": generated(draw, feature_net(features), train, test),
            "classes": samples(draw_by_class, classes, 8),
        },
    )


if __name__ == "__main__":
    main(projection)
