"""PacGAN (Lin et al., 2017, https://arxiv.org/abs/1712.04086, table 1): a discriminator that judges m samples at once
sees that they are all alike, so a generator has to reach every mode.

    launch/local.sh experiments/pacgan.py --epochs 4                                    # a hundredth of the paper's
    launch/local.sh experiments/pacgan.py --data grid --pack 2 --run.seeds 10 --run.steps-per-call 20      # all of it
"""

from typing import Literal

import flax.linen as nn
import jax
from jax.lax import stop_gradient
import optax

from ssljax import Experiment, main, minimize, TrainState
from ssljax.data.feed import Rows
from ssljax.data.mixtures import GRID, RING
from ssljax.evals.modes import modes
from ssljax.losses.adversarial import gan_critic_loss, nonsaturating_generator_loss
from ssljax.models.mlp import Maxout
from ssljax.sharding import over_batch

SMALL = nn.initializers.normal(
    0.02
)  # This and BatchNorm's constants: the authors' code, github.com/fjxmlzn/PacGAN.


class Generator(nn.Module):
    @nn.compact
    def __call__(self, z, train):
        for _ in range(4):
            z = nn.Dense(400, use_bias=False, kernel_init=SMALL)(z)
            z = nn.relu(nn.BatchNorm(not train, momentum=0.95, epsilon=1e-4)(z))
        return nn.Dense(2, kernel_init=SMALL)(z)


def pacgan(
    data: Literal["ring", "grid"] = "ring",
    pack: int = 1,
    epochs: int = 400,
    batch_size: int = 100,
    lr: float = 1e-4,
    b1: float = 0.8,
) -> Experiment:
    """PacGAN on a mixture of Gaussians in the plane: how many of its modes does the generator find?

    Args:
        data: ring: 8 modes on a circle; grid: 25 in a square. 100,000 points are drawn and packed once, for all seeds.
        pack: Points that the discriminator judges at once, m in the paper; 1 is the plain GAN.
        epochs: Of 100,000 packs.
        batch_size: Packs: a step takes so many times m real points, and as many generated ones.
    """
    mixture, tx = {"ring": RING, "grid": GRID}[data], optax.adam(lr, b1)
    gen, disc, packs = (
        Generator(),
        Maxout((200, 200, 200, 1), 5, SMALL),
        mixture.packs(100_000, pack),
    )

    def generate(params, stats, z, train=True):
        x, new = gen.apply(
            {"params": params, "batch_stats": stats},
            z.reshape(-1, 2),
            train,
            mutable=["batch_stats"],
        )
        return x.reshape(z.shape), new["batch_stats"]

    def init(key, batch):
        g, d = (
            gen.init(key, batch["x"][:, 0], False),
            disc.init(jax.random.fold_in(key, 1), batch["x"]),
        )
        return TrainState.create(
            tx, {"gen": g["params"], "disc": d["params"]}, stats=g["batch_stats"]
        )

    def loss(params, state, batch, key):
        z = over_batch(jax.random.normal(key, batch["x"].shape))
        fake, stats = generate(params["gen"], state.extra["stats"], z)
        judge = lambda disc_params, x: disc.apply({"params": disc_params}, x)
        # Both move at once, as in the authors' code: each player's loss is cut off from the other's parameters.
        d = gan_critic_loss(
            judge(params["disc"], batch["x"]), judge(params["disc"], stop_gradient(fake))
        )
        g = nonsaturating_generator_loss(judge(stop_gradient(params["disc"]), fake))
        return d + g, ({"stats": stats}, {"discriminator": d, "generator": g})

    def draw(state, key, n):
        return generate(
            state.params["gen"], state.extra["stats"], jax.random.normal(key, (n, 2)), train=False
        )[0]

    num_steps = epochs * (len(packs) // batch_size)
    return Experiment(
        init=init,
        step=minimize(tx, loss),
        data=Rows({"x": packs}, batch_size),
        num_steps=num_steps,
        evals={"modes": modes(draw, mixture.centres, mixture.sigma)},
    )


if __name__ == "__main__":
    main(pacgan)
