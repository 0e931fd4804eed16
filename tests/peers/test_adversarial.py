"""Adversarial losses with a critic's parameter gradients against PyTorch, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses import adversarial
from tests.peers.torch_side import agree_with_gradients, tensor

N, D, HIDDEN = 16, 12, 24


def inputs() -> list[np.ndarray]:
    """Real and fake examples (n, d), and the critic's weights: two layers with softplus."""
    rng = np.random.default_rng(0)
    shapes = (N, D), (N, D), (D, HIDDEN), (HIDDEN,), (HIDDEN,)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def our_critic(w, b, v):
    return lambda x: jax.nn.softplus(x @ w + b) @ v / 4


def their_critic(w, b, v):
    import torch

    return lambda x: torch.nn.functional.softplus(x @ w + b) @ v / 4


def bce(logits, label):
    import torch

    target = torch.full_like(logits, label)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)


def mse(logits, label):
    import torch

    return torch.nn.functional.mse_loss(logits, torch.full_like(logits, label))


PAIRS = {
    "gan_critic_loss": lambda real, fake: bce(real, 1.0) + bce(fake, 0.0),
    "minimax_generator_loss": lambda real, fake: -bce(fake, 0.0),
    "nonsaturating_generator_loss": lambda real, fake: bce(fake, 1.0),
    "relativistic_critic_loss": lambda real, fake: bce(real - fake, 1.0),
    "relativistic_generator_loss": lambda real, fake: bce(fake - real, 1.0),
    "least_squares_critic_loss": lambda real, fake: (mse(real, 1.0) + mse(fake, 0.0)) / 2,
    "least_squares_generator_loss": lambda real, fake: mse(fake, 1.0) / 2,
    "hinge_critic_loss": lambda real, fake: (
        (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
    ),
    "wasserstein_critic_loss": lambda real, fake: fake.mean() - real.mean(),
    "linear_generator_loss": lambda real, fake: -fake.mean(),
}


@pytest.mark.parametrize("name", PAIRS, ids=lambda name: name.removesuffix("_loss"))
def test_gan_losses(row, name):
    """GAN losses with gradients by images and by the critic's weights

    Cross-entropy, squared error, hinge and means in PyTorch.
    """
    row.peer("torch")
    loss = getattr(adversarial, name)
    both = name.endswith("critic_loss") or name.startswith("relativistic")

    def ours(x, y, *weights):
        real, fake = our_critic(*weights)(x), our_critic(*weights)(y)
        return loss(real, fake) if both else loss(fake)

    theirs = lambda x, y, *w: PAIRS[name](their_critic(*w)(x), their_critic(*w)(y))
    agree_with_gradients(row, 1e-5, ours, theirs, *inputs())


def square_gradient(critic, x):
    """|∇D(x)|² of each example, which can be differentiated again."""
    import torch

    x = x.detach().requires_grad_() if x.is_leaf else x
    return torch.autograd.grad(critic(x).sum(), x, create_graph=True)[0].square().sum(1)


def test_gradient_penalty(row):
    """WGAN-GP's penalty with gradients by the critic's weights

    Double backward in PyTorch on the same points between real and fake.
    """
    row.peer("torch")
    x, y, *weights = inputs()
    key = jax.random.key(0)
    t = np.asarray(jax.random.uniform(key, (N, 1)))
    between = tensor(x + t * (y - x))
    theirs = lambda *w: (square_gradient(their_critic(*w), between).sqrt() - 1).square().mean()
    ours = lambda *w: adversarial.gradient_penalty(our_critic(*w), jnp.asarray(x), y, key)
    agree_with_gradients(row, 1e-5, ours, theirs, *weights)


def test_r1(row):
    """R1's penalty with gradients by the critic's weights

    Double backward in PyTorch.
    """
    row.peer("torch")
    x, _, *weights = inputs()
    theirs = lambda *w: square_gradient(their_critic(*w), tensor(x)).mean() / 2
    ours = lambda *w: adversarial.r1_penalty(our_critic(*w), jnp.asarray(x))
    agree_with_gradients(row, 1e-5, ours, theirs, *weights)
