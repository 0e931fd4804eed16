"""DCGAN (Radford et al., 2015, https://arxiv.org/abs/1511.06434): convolutional networks.

    launch/local.sh experiments/dcgan.py                # digits, on a laptop CPU
    launch/local.sh experiments/dcgan.py --data cifar10 --widths 128 256 512 --batch-size 128 \
        --lr 2e-4 --epochs 100
    # The paper's networks on its bedrooms at 64 pixels; planned in launch/plans.md
    launch/local.sh experiments/dcgan.py --data lsun/bedroom --image-size 64 \
        --widths 128 256 512 1024 --batch-size 128 --lr 2e-4 --epochs 5
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, Experiment, main, player_ema, player_variables, TrainState
from ssljax.accumulation import rows
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.evals.probe import linear_probe
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models import apply_training
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, Fraction, FractionBelowOne, Positive
from ssljax.sharding import over_batch


@checked
def dcgan(
    data: Images = Images("digits"),
    latents: Count = 100,
    widths: Counts = (32, 64, 128),
    diff_augment: bool = False,
    features: str = "",
    epochs: Count = 60,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    b1: FractionBelowOne = 0.5,
    decay: Fraction = 0.999,
) -> Experiment:
    """DCGAN: samples, and a linear probe of the discriminator's last layer.

    The paper probes all layers of the discriminator (section 5.1).

    Args:
        data: Images to learn from, and those that features are judged on.
        latents: Dimensions of the generator's noise z, which is standard normal.
        widths: Channels of the discriminator at each halving; the generator's are reversed.
        diff_augment: Augment all that the discriminator sees, for small sets (arXiv:2006.10738).
        features: Network for FID: raw pixels if empty, a supervised.py run's folder, or inception.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam, for both networks.
        b1: β₁ of Adam: decay of the gradient's moving average.
        decay: EMA decay of the generator used for sampling; lower in the first steps.
    """
    sets = data.read()
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    gen, disc = Generator(train.shape, widths[::-1]), Discriminator(widths)
    last_layer = disc.clone(head=False)
    tx = optax.adam(lr, b1)

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)))
        params = {"gen": g.pop("params"), "disc": d.pop("params")}
        return TrainState.game(tx, params, gen=g, disc=d, ema={"params": params["gen"], **g})

    def augmented(key, x):
        return augment.diff_augment(key, x) if diff_augment else x

    def views(g, state, batch, key):  # The same for both players.
        kz, kr, kf = jax.random.split(key, 3)
        z = over_batch(jax.random.normal(kz, (rows(batch_size), latents)))
        fake, stats = apply_training(gen, g, state.extra["gen"], z)
        return augmented(kr, augment.to_signed(batch["image"])), augmented(kf, fake), stats

    def disc_loss(d, state, batch, key):
        real, fake, _ = views(state.params["gen"], state, batch, key)
        # BatchNorm sees real and generated images as two batches.
        on_real, stats = apply_training(disc, d, state.extra["disc"], real)
        on_fake, stats = apply_training(disc, d, stats, fake)
        value = gan_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        _, fake, stats = views(g, state, batch, key)
        on_fake, _ = apply_training(disc, state.params["disc"], state.extra["disc"], fake)
        value = nonsaturating_generator_loss(on_fake)
        return value, ({"gen": stats}, {"generator": value})

    def draw(state, key, n):
        z = jax.random.normal(key, (n, latents))
        return (gen.apply(state.extra["ema"], z) + 1) / 2

    def encode(state, x):
        return last_layer.apply(player_variables(state, "disc"), augment.to_signed(x))

    return Experiment(
        init=init,
        step=alternate(tx, disc=disc_loss, gen=gen_loss, after=player_ema("gen", decay)),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        sample=draw,
        evals={
            "samples": samples(draw),
            "test": generated(draw, feature_net(features), train, test),
            **({"probe": linear_probe(encode, sets.bank, sets.queries)} if sets.labelled else {}),
        },
    )


if __name__ == "__main__":
    main(dcgan)
