"""PacGAN (Lin et al., 2017, https://arxiv.org/abs/1712.04086, table 1).

A discriminator that judges m samples at once notices when they are all alike, so that a generator
has to reach every mode.

    launch/local.sh experiments/pacgan.py --epochs 4    # a hundredth of the paper's
    launch/local.sh experiments/pacgan.py --data grid --pack 2 --run.seeds 10 \
        --run.steps-per-call 20                         # as the paper
"""

from typing import Literal

import flax.linen as nn
import jax
from jax.lax import stop_gradient
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data import Rows, steps_of
from ssljax.data.mixtures import GRID, RING
from ssljax.evals.modes import modes
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models.mlp import Maxout
from ssljax.ranges import checked, Count, FractionBelowOne, Positive
from ssljax.sharding import over_batch

# These constants and BatchNorm's are of the authors' code, github.com/fjxmlzn/PacGAN.
SMALL = nn.initializers.normal(0.02)
POINTS = 100_000


class Generator(nn.Module):
    """Noise (n, 2) to points (n, 2)."""

    @nn.compact
    def __call__(self, z, train):
        for _ in range(4):
            z = nn.Dense(400, use_bias=False, kernel_init=SMALL)(z)
            z = nn.relu(nn.BatchNorm(not train, momentum=0.95, epsilon=1e-4)(z))
        return nn.Dense(2, kernel_init=SMALL)(z)


@checked
def pacgan(
    data: Literal["ring", "grid"] = "ring",
    pack: Count = 1,
    epochs: Count = 400,
    batch_size: Count = 100,
    lr: Positive = 1e-4,
    b1: FractionBelowOne = 0.8,
) -> Experiment:
    """PacGAN on a mixture of Gaussians in the plane: how many modes does the generator find?

    100,000 points are drawn and packed once, the same for all seeds.

    Args:
        data: Mixture: ring has 8 modes on a circle, grid 25 in a square.
        pack: m: points that the discriminator judges at once; 1 is an ordinary GAN.
        epochs: Passes over 100,000 packs.
        batch_size: Packs in a step, real ones and as many generated ones.
        lr: Learning rate of Adam, for both networks.
        b1: β₁ of Adam: decay of the gradient's moving average.
    """
    mixture = {"ring": RING, "grid": GRID}[data]
    packs = mixture.packs(POINTS, pack)
    num_steps = steps_of(epochs, packs, batch_size)
    gen, disc = Generator(), Maxout((200, 200, 200, 1), 5, SMALL)
    tx = optax.adam(lr, b1)

    def generate(params, stats, z, train=True):
        variables, points = {"params": params, **stats}, z.reshape(-1, 2)
        x, stats = gen.apply(variables, points, train, mutable=["batch_stats"])
        return x.reshape(z.shape), stats

    def judge(params, x):
        return disc.apply({"params": params}, x)

    def init(key, batch):
        g = gen.init(key, batch["x"][:, 0], False)
        d = disc.init(jax.random.fold_in(key, 1), batch["x"])
        params = {"gen": g.pop("params"), "disc": d["params"]}
        return TrainState.create(tx, params, gen=g)

    def loss(params, state, batch, key):
        z = over_batch(jax.random.normal(key, batch["x"].shape))
        fake, stats = generate(params["gen"], state.extra["gen"], z)
        # Both are updated at once, as in the authors' code: no player's loss has a gradient for the
        # other's parameters.
        on_real = judge(params["disc"], batch["x"])
        on_fake = judge(params["disc"], stop_gradient(fake))
        d = gan_critic_loss(on_real, on_fake)
        g = nonsaturating_generator_loss(judge(stop_gradient(params["disc"]), fake))
        return d + g, ({"gen": stats}, {"discriminator": d, "generator": g})

    def draw(state, key, n):
        z = jax.random.normal(key, (n, 2))
        return generate(state.params["gen"], state.extra["gen"], z, train=False)[0]

    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Rows({"x": packs}, batch_size),
        num_steps=num_steps,
        sample=draw,
        evals={"modes": modes(draw, mixture.centres, mixture.sigma)},
    )


if __name__ == "__main__":
    main(pacgan)
