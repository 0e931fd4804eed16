"""PacDCGAN on stacked digits (Lin et al., 2017, https://arxiv.org/abs/1712.04086, section 4.2): an image is a random digit
in each of three channels, so it has 1000 modes; how many does a generator reach whose discriminator judges m at once?

    launch/local.sh experiments/pacdcgan.py --pack 2                                      # digits, on a laptop CPU
    launch/local.sh experiments/supervised.py --data mnist --epochs 3 --run.workdir runs/mnist_classifier
    launch/local.sh experiments/pacdcgan.py --data mnist --labels runs/mnist_classifier --pack 2 --steps 100000
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, Experiment, InputError, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import classifier, nearest_image_classifier
from ssljax.evals.pictures import samples
from ssljax.evals.stacked import stacked_modes
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.sharding import over_batch


def pacdcgan(
    data: str = "digits",
    pack: int = 1,
    labels: str = "",
    latents: int = 100,
    widths: tuple[int, ...] = (32, 64, 128),
    steps: int = 2000,
    batch_size: int = 64,
    lr: float = 2e-4,
    b1: float = 0.5,
) -> Experiment:
    """DCGAN on random triples of grey images, with a discriminator of packs.

    Args:
        data: digits (embedded), a TFDS set of grey images (mnist), a folder of class folders, or an .npz.
        pack: Stacks that the discriminator judges at once, m in the paper; 1 is DCGAN.
        labels: What names digits to count modes: the folder of a run of supervised.py; the nearest in pixels if empty.
        widths: Channels of the discriminator at each halving of the resolution; the paper's for MNIST are 64 to 512.
        steps: Of both players; the paper takes 50 epochs of 128,000 stacks, 100,000 steps.
        batch_size: Packs: a step takes 3m times as many digits.
    """
    train, test = (images(data, split) for split in ("train", "test"))
    if train.shape[2] != 1 or pack < 1:
        raise InputError(
            f"Grey images are stacked, in packs of at least 1; {data} has {train.shape[2]} channels."
        )
    (h, w, _), count = train.shape, 3 * pack
    gen, disc = Generator((h, w, 3), widths[::-1]), Discriminator(widths)
    tx, names = optax.adam(lr, b1), classifier(labels) if labels else nearest_image_classifier(train)
    apply = lambda net, params, stats, x: net.apply(
        {"params": params, **stats}, x, True, mutable=["batch_stats"]
    )
    packed = lambda x, k: jnp.moveaxis(x.reshape(batch_size, k, h, w, -1), 1, 3).reshape(
        batch_size, h, w, count
    )

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, h, w, count)))
        return TrainState.game(tx, {"gen": g.pop("params"), "disc": d.pop("params")}, gen=g, disc=d)

    def generate(g, state, key):  # The same for both players.
        z = over_batch(jax.random.uniform(key, (batch_size, pack, latents), minval=-1))
        fake, stats = apply(gen, g, state.extra["gen"], z.reshape(-1, latents))
        return packed(fake, pack), stats

    def disc_loss(d, state, batch, key):
        on_real, stats = apply(
            disc, d, state.extra["disc"], packed(2 * augment.to_float(batch["image"]) - 1, count)
        )
        on_fake, stats = apply(disc, d, stats, generate(state.params["gen"], state, key)[0])
        value = gan_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        fake, stats = generate(g, state, key)
        value = nonsaturating_generator_loss(
            apply(disc, state.params["disc"], state.extra["disc"], fake)[0]
        )
        return value, ({"gen": stats}, {"generator": value})

    def step(state, batch, key):  # The generator moves twice, as in the authors' code.
        state, metrics = alternate(tx, disc=disc_loss, gen=gen_loss)(state, batch, key)
        return alternate(tx, gen=gen_loss)(state, batch, key)[0], metrics

    def draw(state, key, n):
        z = jax.random.uniform(key, (n, latents), minval=-1)
        return (gen.apply({"params": state.params["gen"], **state.extra["gen"]}, z) + 1) / 2

    return Experiment(
        init=init,
        step=step,
        data=feed(train, batch_size * count),
        num_steps=steps,
        evals={"modes": stacked_modes(draw, names, test), "samples": samples(draw)},
    )


if __name__ == "__main__":
    main(pacdcgan)
