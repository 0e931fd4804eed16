"""PacDCGAN on stacked digits (Lin et al., 2017, https://arxiv.org/abs/1712.04086, section 4.2).

An image is a random digit in each of three channels, so there are 1000 modes. How many does a
generator reach whose discriminator judges m images at once?

    launch/local.sh experiments/pacdcgan.py --pack 2    # digits, on a laptop CPU
    launch/local.sh experiments/supervised.py --data mnist --epochs 3 \
        --run.workdir runs/mnist_classifier
    launch/local.sh experiments/pacdcgan.py --data mnist --labels runs/mnist_classifier --pack 2 \
        --steps 100000
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, Experiment, InputError, main, player_variables, TrainState
from ssljax.accumulation import rows
from ssljax.data import augment, feed, PlainImages
from ssljax.data.feed import check_batch
from ssljax.evals.feature_nets import classifier, nearest_image_classifier
from ssljax.evals.features import check_shapes
from ssljax.evals.pictures import samples
from ssljax.evals.stacked import stacked_modes
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models import apply_training
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.ranges import checked, Count, Counts, FractionBelowOne, Positive
from ssljax.sharding import over_batch


@checked
def pacdcgan(
    data: PlainImages = PlainImages("digits"),
    pack: Count = 1,
    labels: str = "",
    latents: Count = 100,
    widths: Counts = (32, 64, 128),
    steps: Count = 2000,
    batch_size: Count = 64,
    lr: Positive = 2e-4,
    b1: FractionBelowOne = 0.5,
) -> Experiment:
    """DCGAN on random triples of grey images, with a discriminator of packs.

    For MNIST the paper has widths of 64 to 512 and 50 epochs of 128,000 stacks, 100,000 steps.

    Args:
        data: Grey images to learn from, whose classes say which modes are found.
        pack: m: stacks that the discriminator judges at once; 1 is DCGAN.
        labels: Classifier that counts modes: a supervised.py run's folder; nearest image if empty.
        latents: Dimensions of the generator's noise z, which is uniform in [-1, 1].
        widths: Channels of the discriminator at each halving; the generator's are reversed.
        steps: Training steps, of one update of the discriminator and two of the generator.
        batch_size: Packs in a step, which takes 3 m digits for each.
        lr: Learning rate of Adam, for both networks.
        b1: β₁ of Adam: decay of the gradient's moving average.
    """
    train, test, *_ = data.read(labels=True)
    check_shapes(train, test)
    height, width, channels = train.shape
    if channels != 1:
        raise InputError(
            f"Grey images are needed to be stacked; those of {data} have {channels} channels."
        )
    digits = 3 * pack
    check_batch(batch_size, len(train), digits, "--pack")
    gen, disc = Generator((height, width, 3), widths[::-1]), Discriminator(widths)
    classify = classifier(labels) if labels else nearest_image_classifier(train)
    tx = optax.adam(lr, b1)

    def packed(x, k):
        """Each k of the images (batch_size k, height, width, c) as one: (batch_size, ..., k c)."""
        x = x.reshape(-1, k, height, width, x.shape[-1])
        return jnp.moveaxis(x, 1, 3).reshape(-1, height, width, digits)

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, height, width, digits)))
        return TrainState.game(tx, {"gen": g.pop("params"), "disc": d.pop("params")}, gen=g, disc=d)

    def generate(g, state, key):  # The same for both players.
        z = over_batch(jax.random.uniform(key, (rows(batch_size), pack, latents), minval=-1))
        fake, stats = apply_training(gen, g, state.extra["gen"], z.reshape(-1, latents))
        return packed(fake, pack), stats

    def disc_loss(d, state, batch, key):
        real = packed(augment.to_signed(batch["image"]), digits)
        fake, _ = generate(state.params["gen"], state, key)
        on_real, stats = apply_training(disc, d, state.extra["disc"], real)
        on_fake, stats = apply_training(disc, d, stats, fake)
        value = gan_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        fake, stats = generate(g, state, key)
        on_fake, _ = apply_training(disc, state.params["disc"], state.extra["disc"], fake)
        value = nonsaturating_generator_loss(on_fake)
        return value, ({"gen": stats}, {"generator": value})

    def step(state, batch, key):  # The generator is updated twice, as in the authors' code.
        state, metrics = alternate(tx, disc=disc_loss, gen=gen_loss)(state, batch, key)
        state, _ = alternate(tx, gen=gen_loss)(state, batch, key)
        return state, metrics

    def draw(state, key, n):
        z = jax.random.uniform(key, (n, latents), minval=-1)
        return (gen.apply(player_variables(state, "gen"), z) + 1) / 2

    return Experiment(
        init=init,
        step=step,
        data=feed(train, batch_size * digits),
        num_steps=steps,
        sample=draw,
        evals={"modes": stacked_modes(draw, classify, test), "samples": samples(draw)},
    )


if __name__ == "__main__":
    main(pacdcgan)
