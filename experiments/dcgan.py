"""DCGAN (Radford et al., 2015, https://arxiv.org/abs/1511.06434): convolutions that generate, and others that tell.

    launch/local.sh experiments/dcgan.py                                              # digits, on a laptop CPU
    launch/local.sh experiments/dcgan.py --data cifar10 --widths 128 256 512 --batch-size 128 --lr 2e-4 --epochs 100
"""

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp
import optax

from ssljax import Experiment, TrainState, ema, main, minimize
from ssljax.data import augment, feed, images
from ssljax.evals.feature_nets import feature_net
from ssljax.evals.fid import generated
from ssljax.evals.pictures import samples
from ssljax.evals.probe import linear_probe
from ssljax.losses.adversarial import gan_critic, nonsaturating_generator
from ssljax.models.dcgan import Discriminator, Generator
from ssljax.optim import ema_decay
from ssljax.sharding import over_batch


def dcgan(
    data: str = "digits", image_size: int = 0, latents: int = 100, widths: tuple[int, ...] = (32, 64, 128),
    diff_augment: bool = False, features: str = "", epochs: int = 60, batch_size: int = 64, lr: float = 5e-4,
    b1: float = 0.5, decay: float = 0.999,
) -> Experiment:
    """DCGAN: its samples, and what its discriminator has learned of the classes (section 5.1 of the paper).

    Args:
        data: digits (embedded), a TFDS image set (cifar10, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        widths: Channels of the discriminator at each halving of the resolution; the generator's are the reverse.
        diff_augment: Augment what the discriminator sees, real and generated: for small sets (arXiv:2006.10738).
        features: What FID is measured by: pixels if empty, the folder of a run of supervised.py, or inception.
        decay: Of the mean of the generator's weights that samples are drawn with; less at the start.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    gen, disc, tx = Generator(train.shape, widths[::-1]), Discriminator(widths), optax.adam(lr, b1)
    pixels = lambda x: 2 * augment.to_float(x) - 1
    see = augment.diff_augment if diff_augment else lambda key, x: x

    def apply(net, params, stats, x):
        y, new = net.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return y, new["batch_stats"]

    def init(key, batch):
        g = gen.init(key, jnp.zeros((1, latents)))
        d = disc.init(jax.random.fold_in(key, 1), pixels(batch["image"][:1]))
        return TrainState.create(tx, {"gen": g["params"], "disc": d["params"]},
                                 gen=g["batch_stats"], disc=d["batch_stats"], ema=g)

    def loss(params, state, batch, key):
        kz, kr, kf = jax.random.split(key, 3)
        z = over_batch(jax.random.normal(kz, (batch_size, latents)))
        fake, g_stats = apply(gen, params["gen"], state.extra["gen"], z)
        real, fake = see(kr, pixels(batch["image"])), see(kf, fake)
        # Each player's loss is cut off from the other's parameters, so their sum moves both, at once.
        on_real, stats = apply(disc, params["disc"], state.extra["disc"], real)  # Real and generated are batches
        on_fake, stats = apply(disc, params["disc"], stats, stop_gradient(fake))  # of their own to BatchNorm.
        told, _ = apply(disc, stop_gradient(params["disc"]), stats, fake)
        d, g = gan_critic(on_real, on_fake), nonsaturating_generator(told)
        mean = ema(state.extra["ema"], {"params": params["gen"], "batch_stats": g_stats}, ema_decay(decay, state.step))
        return d + g, ({"gen": g_stats, "disc": stats, "ema": mean}, {"discriminator": d, "generator": g})

    def draw(state, key, n):
        return (gen.apply(state.extra["ema"], jax.random.normal(key, (n, latents))) + 1) / 2

    def encode(state, x):
        variables = {"params": state.params["disc"], "batch_stats": state.extra["disc"]}
        return disc.clone(head=False).apply(variables, pixels(x))

    num_steps, test_gan = epochs * (len(train) // batch_size), generated(draw, feature_net(features), train, test)
    return Experiment(init=init, step=minimize(tx, loss), data=feed(train, batch_size), num_steps=num_steps, evals={
        "test": test_gan, "samples": samples(draw), "probe": linear_probe(encode, train, test)})


if __name__ == "__main__":
    main(dcgan)
