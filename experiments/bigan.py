"""BiGAN (Donahue et al., 2016, https://arxiv.org/abs/1605.09782): a discriminator of pairs, an image with its code or a
latent with its image, so that the encoder learns to invert the generator without comparing a pixel.

    launch/local.sh experiments/bigan.py --data mnist --hidden 1024 1024 --batch-size 128 --lr 2e-4 --epochs 400
"""

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import augment, feed, images
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared, samples
from ssljax.losses.adversarial import gan_critic_loss
from ssljax.models.mlp import MLP
from ssljax.sharding import over_batch


def bigan(
    data: str = "digits",
    image_size: int = 0,
    latents: int = 50,
    hidden: tuple[int, ...] = (256, 256),
    epochs: int = 150,
    batch_size: int = 64,
    lr: float = 5e-4,
    b1: float = 0.5,
) -> Experiment:
    """BiGAN of dense networks: features without reconstruction, probed by the nearest neighbour as in the paper.

    Args:
        data: digits (embedded), a TFDS image set (mnist, fashion_mnist), a folder of class folders, or an .npz.
        image_size: Pixels a side to resize images to as they are read; 0 to leave them.
        latents: Uniform in [-1, 1].
        hidden: Widths of each of the three networks.
        lr: The paper's is 2e-4, for longer training.
    """
    train, test = (images(data, split, image_size) for split in ("train", "test"))
    size, tx = train.shape[0] * train.shape[1] * train.shape[2], optax.adam(lr, b1)
    gen, enc = (MLP((*hidden, out), norm=True, activation="leaky_relu") for out in (size, latents))
    disc = MLP((*hidden, 1), activation="leaky_relu")
    flat = lambda image: 2 * augment.to_float(image).reshape(len(image), size) - 1

    def apply(net, params, stats, x, train=True):
        y, new = net.apply(
            {"params": params, "batch_stats": stats}, x, train, mutable=["batch_stats"]
        )
        return y, new["batch_stats"]

    def judge(params, x, z):
        return disc.apply({"params": params}, jnp.concatenate([x, z], 1))[:, 0]

    def init(key, batch):
        kg, ke, kd = jax.random.split(key, 3)
        g, e = gen.init(kg, jnp.zeros((1, latents))), enc.init(ke, jnp.zeros((1, size)))
        d = disc.init(kd, jnp.zeros((1, size + latents)))
        return TrainState.create(
            tx,
            {"gen": g["params"], "enc": e["params"], "disc": d["params"]},
            gen=g["batch_stats"],
            enc=e["batch_stats"],
        )

    def loss(params, state, batch, key):
        x = flat(batch["image"])
        z = over_batch(jax.random.uniform(key, (batch_size, latents), minval=-1))
        code, enc_stats = apply(enc, params["enc"], state.extra["enc"], x)
        logits, gen_stats = apply(gen, params["gen"], state.extra["gen"], z)
        # All three move at once, as in the authors' code: each side's loss is cut off from the other's parameters.
        fake, moving, fixed = jnp.tanh(logits), params["disc"], stop_gradient(params["disc"])
        d = gan_critic_loss(
            judge(moving, x, stop_gradient(code)), judge(moving, stop_gradient(fake), z)
        )
        g = gan_critic_loss(
            judge(fixed, fake, z), judge(fixed, x, code)
        )  # The labels exchanged, section 3.4.
        return d + g, (
            {"gen": gen_stats, "enc": enc_stats},
            {"discriminator": d, "generator_encoder": g},
        )

    def encode(state, image):
        return apply(enc, state.params["enc"], state.extra["enc"], flat(image), train=False)[0]

    def decode(state, z):
        pixels = apply(gen, state.params["gen"], state.extra["gen"], z, train=False)[0]
        return (jnp.tanh(pixels.reshape(-1, *train.shape)) + 1) / 2

    num_steps = epochs * (len(train) // batch_size)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        evals={
            "knn": knn(encode, train, test, k=1),
            "samples": samples(
                lambda state, key, n: decode(
                    state, jax.random.uniform(key, (n, latents), minval=-1)
                )
            ),
            "inverted": compared(
                lambda state, key, image: [decode(state, encode(state, image))], test
            ),
        },
    )


if __name__ == "__main__":
    main(bigan)
