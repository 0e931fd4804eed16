"""Adversarial losses: a critic tells real from generated, and a generator learns from what it tells.

`real` and `fake` are the critic's outputs on real and generated examples: logits for the first three pairs, unbounded
scores for the others. What the critic minimises is `*_critic_loss`; what the generator minimises is `*_generator_loss`.
"""

from collections.abc import Callable

import jax
from jax import Array
from jax.nn import relu, softplus
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.sharding import over_batch


def gan_critic_loss(real: Array, fake: Array) -> Array:
    """-E log D(x) - E log(1 - D(G(z))), with D the sigmoid: Goodfellow et al., 2014, arXiv:1406.2661, eq. 1."""
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_generator_loss(fake: Array) -> Array:
    """E log(1 - D(G(z))): Goodfellow et al., 2014, eq. 1. Its gradient vanishes where the critic is sure."""
    return -softplus(fake).mean()


def nonsaturating_generator_loss(fake: Array) -> Array:
    """-E log D(G(z)): Goodfellow et al., 2014, section 3. Minimax's fixed point, with stronger gradients early on."""
    return softplus(-fake).mean()


def relativistic_critic_loss(real: Array, fake: Array) -> Array:
    """E f(D(G(z)) - D(x)) over pairs, f softplus: Huang et al., 2024, arXiv:2501.05441, eq. 2.

    Each real example is compared with the fake one of its row; InputError if there are not as many.
    """
    if real.shape != fake.shape:
        raise InputError(
            f"Real and generated are compared in pairs: {real.shape} and {fake.shape} must be the same "
            "shape."
        )
    return softplus(fake - real).mean()


def relativistic_generator_loss(real: Array, fake: Array) -> Array:
    """E f(D(x) - D(G(z))) over pairs: the non-saturating form of Huang et al., 2024, eq. 2, with the signs changed."""
    return relativistic_critic_loss(fake, real)


def least_squares_critic_loss(real: Array, fake: Array) -> Array:
    """E (D(x) - 1)² / 2 + E D(G(z))² / 2: LSGAN, Mao et al., 2016, arXiv:1611.04076, eq. 9."""
    return (jnp.mean((real - 1) ** 2) + jnp.mean(fake**2)) / 2


def least_squares_generator_loss(fake: Array) -> Array:
    """E (D(G(z)) - 1)² / 2: Mao et al., 2016, eq. 9."""
    return jnp.mean((fake - 1) ** 2) / 2


def hinge_critic_loss(real: Array, fake: Array) -> Array:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))): Lim and Ye, 2017, arXiv:1705.02894; Miyato et al., 2018,
    arXiv:1802.05957, eq. 16."""
    return relu(1 - real).mean() + relu(1 + fake).mean()


def wasserstein_critic_loss(real: Array, fake: Array) -> Array:
    """E D(G(z)) - E D(x), for a critic held to be 1-Lipschitz: Arjovsky et al., 2017, arXiv:1701.07875, eq. 2.

    Its negative estimates the Wasserstein distance.
    """
    return fake.mean() - real.mean()


def linear_generator_loss(fake: Array) -> Array:
    """-E D(G(z)): the generator's loss with `hinge_critic_loss` (Miyato et al., 2018, eq. 17) and `wasserstein_critic_loss`."""
    return -fake.mean()


# Penalties of the critic's gradient. `critic` takes examples (n, ...) to outputs (n,), each of its own example alone:
# a BatchNorm that trains would mix them, and the gradient of one output would not be what the papers mean.

Critic = Callable[[Array], Array]


def gradient_penalty(critic: Critic, real: Array, fake: Array, key: Array) -> Array:
    """E (|∇D(x)| - 1)², x uniform on the lines from `real[i]` to `fake[i]`, to be multiplied by λ, 10 in the paper:
    Gulrajani et al., 2017, arXiv:1704.00028, eq. 3. InputError if `real` and `fake` differ in shape."""
    if real.shape != fake.shape:
        raise InputError(
            f"Lines between {real.shape} and {fake.shape} can't be drawn: they must be the same shape."
        )
    t = over_batch(jax.random.uniform(key, (len(real),) + (1,) * (real.ndim - 1)))
    square = _square_gradient(critic, real + t * (fake - real))
    norm = jnp.sqrt(
        jnp.maximum(square, 1e-24)
    )  # A gradient of exactly 0 stays so, where the root's own is infinite.
    return jnp.mean((norm - 1) ** 2)


def r1_penalty(critic: Critic, real: Array) -> Array:
    """E |∇D(x)|² / 2 on real examples, to be multiplied by γ: Mescheder et al., 2018, arXiv:1801.04406, eq. 9."""
    return _square_gradient(critic, real).mean() / 2


def r2_penalty(critic: Critic, fake: Array) -> Array:
    """E |∇D(x)|² / 2 on generated examples, to be multiplied by γ: Mescheder et al., 2018, eq. 10."""
    return r1_penalty(critic, fake)


def _square_gradient(critic: Critic, x: Array) -> Array:
    """|∇D(x)|², (n,)."""
    gradient = jax.grad(lambda x: critic(x).sum())(x)
    return jnp.sum(gradient**2, axis=tuple(range(1, x.ndim)))
