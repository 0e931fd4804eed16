"""cGAN with a projection discriminator (Miyato and Koyama, 2018, https://arxiv.org/abs/1802.05637): told the class.

launch/local.sh experiments/projection.py --data cifar10 --widths 128 256 512 --lr 2e-4 --epochs 200
"""

import jax
import jax.numpy as jnp
import optax

from ssljax import alternate, ema, Experiment, main, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.losses.adversarial import hinge_critic_loss, linear_generator_loss
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def projection(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 128,
    widths: tuple[int, ...] = (32, 64, 128),
    features: str = "",
    epochs: int = 60,
    batch_size: int = 64,
    lr: float = 5e-4,
    b1: float = 0.0,
    b2: float = 0.9,
    decay: float = 0.999,
) -> Experiment:
    """A GAN told the class, through an inner product with the image's features and the generator's BatchNorms; hinge loss.

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the discriminator at each halving of the resolution; the generator's are the reverse.
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    classes, tx = train.num_classes, optax.adam(lr, b1, b2)
    gen, disc = (
        Generator(train.shape, widths[::-1], classes=classes),
        Discriminator(widths, "spectral", classes=classes),
    )
    apply = lambda net, params, stats, x, y: net.apply(
        {"params": params, **stats}, x, True, y, mutable=["batch_stats"]
    )

    def init(key, batch):
        y = batch["label"][:1]
        g = gen.init(key, jnp.zeros((1, latents)), label=y)
        d = disc.init(jax.random.fold_in(key, 1), jnp.zeros((1, *train.shape)), label=y)
        params = {
            "gen": g.pop("params"),
            "disc": d.pop("params"),
        }  # What is left are batch statistics.
        return TrainState.game(tx, params, gen=g, disc=d, ema={"params": params["gen"], **g})

    def generate(g, state, key):  # The same for both players.
        kz, ky = jax.random.split(key)
        z = over_batch(jax.random.normal(kz, (batch_size, latents)))
        y = over_batch(jax.random.randint(ky, (batch_size,), 0, classes))
        return *apply(gen, g, state.extra["gen"], z, y), y

    def disc_loss(d, state, batch, key):
        fake, _, y = generate(state.params["gen"], state, key)
        on_real, stats = apply(
            disc, d, state.extra["disc"], 2 * augment.to_float(batch["image"]) - 1, batch["label"]
        )
        on_fake, _ = apply(disc, d, state.extra["disc"], fake, y)  # The same power iteration.
        value = hinge_critic_loss(on_real, on_fake)
        return value, ({"disc": stats}, {"discriminator": value})

    def gen_loss(g, state, batch, key):
        fake, stats, y = generate(g, state, key)
        value = linear_generator_loss(
            apply(disc, state.params["disc"], state.extra["disc"], fake, y)[0]
        )
        return value, ({"gen": stats}, {"generator": value})

    follow = lambda state: {
        "ema": ema(
            state.extra["ema"],
            {"params": state.params["gen"], **state.extra["gen"]},
            ema_decay(decay, state.step),
        )
    }
    paint = lambda state, z, y: (gen.apply(state.extra["ema"], z, label=y) + 1) / 2
    draw = lambda state, key, n: paint(
        state, jax.random.normal(key, (n, latents)), jnp.arange(n) % classes
    )

    def by_class(state, key, n):  # A row for each class, a column for each latent.
        z = jnp.tile(jax.random.normal(key, (n // classes, latents)), (classes, 1))
        return paint(state, z, jnp.repeat(jnp.arange(classes), n // classes))

    return Experiment(
        init=init,
        step=alternate(tx, disc=disc_loss, gen=gen_loss, after=follow),
        data=feed(train, batch_size),
        num_steps=epochs * (len(train) // batch_size),
        evals={
            "test": generated(draw, feature_net(features), train, test),
            "classes": samples(by_class, classes, 8),
        },
    )


if __name__ == "__main__":
    main(projection)
