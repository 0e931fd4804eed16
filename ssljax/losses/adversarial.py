"""Adversarial losses of a critic (discriminator) and a generator, and gradient penalties.

`real` and `fake` are the critic's outputs for real and generated examples: logits for the first
three pairs of losses, unbounded scores for the others. The critic minimises `*_critic_loss`, the
generator `*_generator_loss`.
"""

from collections.abc import Callable

import jax
from jax import Array
from jax.nn import relu, softplus
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.sharding import over_batch


def gan_critic_loss(real: Array, fake: Array) -> Array:
    """-E log D(x) - E log(1 - D(G(z))), with D the sigmoid of the logit.

    Goodfellow et al., 2014, arXiv:1406.2661, eq. 1.
    """
    return softplus(-real).mean() + softplus(fake).mean()


def minimax_generator_loss(fake: Array) -> Array:
    """E log(1 - D(G(z))): Goodfellow et al., 2014, eq. 1.

    Its gradient vanishes where the critic is sure.
    """
    return -softplus(fake).mean()


def nonsaturating_generator_loss(fake: Array) -> Array:
    """-E log D(G(z)): Goodfellow et al., 2014, section 3.

    The same fixed point as minimax, with stronger gradients early in training.
    """
    return softplus(-fake).mean()


def relativistic_critic_loss(real: Array, fake: Array) -> Array:
    """E f(D(G(z)) - D(x)) with f softplus, over pairs of a real example and the fake one of its
    row.

    Huang et al., 2024, arXiv:2501.05441, eq. 2. InputError for different shapes.
    """
    if real.shape != fake.shape:
        raise InputError(
            f"Real and generated examples are compared in pairs: {real.shape} and {fake.shape} "
            "must be the same shape."
        )
    return softplus(fake - real).mean()


def relativistic_generator_loss(real: Array, fake: Array) -> Array:
    """E f(D(x) - D(G(z))) over pairs: the non-saturating form of Huang et al., 2024, eq. 2."""
    return relativistic_critic_loss(fake, real)


def least_squares_critic_loss(real: Array, fake: Array) -> Array:
    """E (D(x) - 1)² / 2 + E D(G(z))² / 2: LSGAN, Mao et al., 2016, arXiv:1611.04076, eq. 9."""
    return (jnp.mean((real - 1) ** 2) + jnp.mean(fake**2)) / 2


def least_squares_generator_loss(fake: Array) -> Array:
    """E (D(G(z)) - 1)² / 2: Mao et al., 2016, eq. 9."""
    return jnp.mean((fake - 1) ** 2) / 2


def hinge_critic_loss(real: Array, fake: Array) -> Array:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))).

    Lim and Ye, 2017, arXiv:1705.02894; Miyato et al., 2018, arXiv:1802.05957, eq. 16.
    """
    return relu(1 - real).mean() + relu(1 + fake).mean()


def wasserstein_critic_loss(real: Array, fake: Array) -> Array:
    """E D(G(z)) - E D(x) of a 1-Lipschitz critic; its negative estimates the Wasserstein distance.

    Arjovsky et al., 2017, arXiv:1701.07875, eq. 2.
    """
    return fake.mean() - real.mean()


def linear_generator_loss(fake: Array) -> Array:
    """-E D(G(z)): with `hinge_critic_loss` (Miyato et al., 2018, eq. 17) and
    `wasserstein_critic_loss`."""
    return -fake.mean()


# Penalties on the critic's gradient. `critic` maps examples (n, ...) to outputs (n,), each from its
# own example alone: a BatchNorm in training mode would mix them, and the gradient of one output
# would not be what the papers mean.

Critic = Callable[[Array], Array]


def gradient_penalty(critic: Critic, real: Array, fake: Array, key: Array) -> Array:
    """E (|∇D(x)| - 1)², with x uniform on the line from `real[i]` to `fake[i]`; without λ.

    Gulrajani et al., 2017, arXiv:1704.00028, eq. 3. InputError for different shapes.
    """
    if real.shape != fake.shape:
        raise InputError(
            f"Real and generated examples can't be interpolated: {real.shape} and {fake.shape} "
            "must be the same shape."
        )
    t = over_batch(jax.random.uniform(key, (len(real),) + (1,) * (real.ndim - 1)))
    square = _square_gradient(critic, real + t * (fake - real))
    norm = jnp.sqrt(jnp.maximum(square, 1e-24))  # The root's own derivative at 0 is infinite.
    return jnp.mean((norm - 1) ** 2)


def r1_penalty(critic: Critic, real: Array) -> Array:
    """E |∇D(x)|² / 2 on real examples, without γ: Mescheder et al., 2018, arXiv:1801.04406, eq.
    9."""
    return _square_gradient(critic, real).mean() / 2


def r2_penalty(critic: Critic, fake: Array) -> Array:
    """E |∇D(x)|² / 2 on generated examples, without γ: Mescheder et al., 2018, eq. 10."""
    return r1_penalty(critic, fake)


def _square_gradient(critic: Critic, x: Array) -> Array:
    """|∇D(x)|², (n,)."""
    gradient = jax.grad(lambda x: critic(x).sum())(x)
    return jnp.sum(gradient**2, axis=tuple(range(1, x.ndim)))
