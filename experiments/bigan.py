"""BiGAN (Donahue et al., 2016, https://arxiv.org/abs/1605.09782).

The discriminator judges pairs, an image with its code or a sample with its latents, so that the
encoder learns to invert the generator without comparing pixels.

    launch/local.sh experiments/bigan.py                # digits, on a laptop CPU
    launch/local.sh experiments/bigan.py --data mnist --hidden 1024 1024 --batch-size 128 \
        --lr 2e-4 --epochs 400
"""

import math

import jax
from jax.lax import stop_gradient
import jax.numpy as jnp
import optax

from ssljax import Experiment, main, minimize, player_variables, TrainState
from ssljax.accumulation import rows
from ssljax.data import augment, feed, Images, steps_of
from ssljax.evals.knn import knn
from ssljax.evals.pictures import compared, samples
from ssljax.losses.adversarial import gan_critic_loss
from ssljax.models import apply_training
from ssljax.models.mlp import MLP
from ssljax.ranges import checked, Count, Counts, FractionBelowOne, Positive
from ssljax.sharding import over_batch


@checked
def bigan(
    data: Images = Images("digits"),
    latents: Count = 50,
    hidden: Counts = (256, 256),
    epochs: Count = 150,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    b1: FractionBelowOne = 0.5,
) -> Experiment:
    """BiGAN of dense networks: features without reconstruction, evaluated by the nearest neighbour.

    Args:
        data: Images to learn from, and those that features are judged on.
        latents: Dimensions of z, which is uniform in [-1, 1], and of the encoder's features.
        hidden: Widths of the hidden layers of each of the three networks.
        epochs: Passes over the training set.
        batch_size: Images in a step.
        lr: Learning rate of Adam, for all networks; the paper's is 2e-4, for longer training.
        b1: β₁ of Adam: decay of the gradient's moving average.
    """
    sets = data.read()
    train, test = sets.train, sets.test
    num_steps = steps_of(epochs, train, batch_size)
    size = math.prod(train.shape)
    gen = MLP((*hidden, size), norm=True, activation="leaky_relu")
    enc = MLP((*hidden, latents), norm=True, activation="leaky_relu")
    disc = MLP((*hidden, 1), activation="leaky_relu")
    tx = optax.adam(lr, b1)

    def flat(image):
        return augment.to_signed(image).reshape(len(image), size)

    def judge(params, x, z):
        return disc.apply({"params": params}, jnp.concatenate([x, z], 1))[:, 0]

    def init(key, batch):
        kg, ke, kd = jax.random.split(key, 3)
        g = gen.init(kg, jnp.zeros((1, latents)))
        e = enc.init(ke, jnp.zeros((1, size)))
        d = disc.init(kd, jnp.zeros((1, size + latents)))
        params = {"gen": g.pop("params"), "enc": e.pop("params"), "disc": d["params"]}
        return TrainState.create(tx, params, gen=g, enc=e)

    def loss(params, state, batch, key):
        x = flat(batch["image"])
        z = over_batch(jax.random.uniform(key, (rows(batch_size), latents), minval=-1))
        code, enc_stats = apply_training(enc, params["enc"], state.extra["enc"], x)
        logits, gen_stats = apply_training(gen, params["gen"], state.extra["gen"], z)
        fake = jnp.tanh(logits)
        # All three are updated at once, as in the authors' code: neither loss has a gradient for
        # the other side's parameters.
        moving, fixed = params["disc"], stop_gradient(params["disc"])
        d = gan_critic_loss(
            judge(moving, x, stop_gradient(code)), judge(moving, stop_gradient(fake), z)
        )
        g = gan_critic_loss(judge(fixed, fake, z), judge(fixed, x, code))  # Section 3.4.
        extra = {"gen": gen_stats, "enc": enc_stats}
        return d + g, (extra, {"discriminator": d, "generator_encoder": g})

    def encode(state, image):
        return enc.apply(player_variables(state, "enc"), flat(image))

    def decode(state, z):
        logits = gen.apply(player_variables(state, "gen"), z)
        return (jnp.tanh(logits.reshape(-1, *train.shape)) + 1) / 2

    def draw(state, key, n):
        return decode(state, jax.random.uniform(key, (n, latents), minval=-1))

    def reconstruct(state, key, image):
        return [decode(state, encode(state, image))]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=feed(train, batch_size),
        num_steps=num_steps,
        encode=encode,
        sample=draw,
        evals={
            **({"knn": knn(encode, sets.bank, sets.queries, k=1)} if sets.labelled else {}),
            "samples": samples(draw),
            "inverted": compared(reconstruct, test, names=["reconstructed"]),
        },
    )


if __name__ == "__main__":
    main(bigan)
