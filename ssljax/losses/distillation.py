"""Losses of a student for a teacher that gets no gradient: regressed, by cosine or by squares, or as a distribution."""

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.errors import InputError
from ssljax.losses.infonce import normalize


def negative_cosine_loss(p: Array, z: Array) -> Array:
    """The mean of -cos(p_i, z_i), (n, d), with no gradient to z: Chen and He, 2020, arXiv:2011.10566, eqs. 1 and 3."""
    if p.shape != z.shape or p.ndim != 2:
        raise InputError(
            f"Predictions and targets of the same shape (n, d) are needed, not {p.shape} and {z.shape}."
        )
    p, z = normalize(p.astype(jnp.float32)), normalize(jax.lax.stop_gradient(z).astype(jnp.float32))
    return -jnp.mean(jnp.sum(p * z, axis=-1))


def byol_loss(q: Array, z: Array) -> Array:
    """The mean of |q_i/|q_i| - z_i/|z_i||² = 2 - 2 cos(q_i, z_i), (n, d), with no gradient to z.

    Grill et al., 2020, arXiv:2006.07733, eq. 2: BYOL's, for one direction.
    """
    return 2 + 2 * negative_cosine_loss(q, z)


def cross_view_loss(target: Array, logits: Array) -> Array:
    """The mean cross-entropy of `logits`, (views, n, k), for probabilities `target`, (m, n, k), of the first m views.

    Over all pairs of different views; no gradient goes to `target`.

    Caron et al., 2021, arXiv:2104.14294, eq. 3. InputError unless there are two views, and no more targets than views.
    """
    m, v = len(target), len(logits)
    if v < 2 or not 1 <= m <= v or target.shape[1:] != logits.shape[1:]:
        raise InputError(
            f"Targets (m, n, k) of the first m of two or more views (views, n, k) are needed, not "
            f"{target.shape} and {logits.shape}."
        )
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    others = log_p.sum(0) - log_p[:m]  # Of all views but the target's own.
    return -jnp.sum(jax.lax.stop_gradient(target) * others) / (m * (v - 1) * log_p.shape[1])


def dino_loss(
    teacher: Array,
    student: Array,
    centre: Array,
    tau_teacher: float | Array = 0.04,
    tau_student: float = 0.1,
) -> Array:
    """DINO: the student's views, (views, n, k), learn from the teacher's of the first m of these, (m, n, k).

    The teacher's are centred, then sharpened: Caron et al., 2021, arXiv:2104.14294, eq. 3 and algorithm 1.
    """
    for tau in (tau_teacher, tau_student):
        if isinstance(tau, (int, float)) and tau <= 0:
            raise InputError(f"The temperature must be positive, not {tau}.")
    target = jax.nn.softmax((teacher.astype(jnp.float32) - centre) / tau_teacher)
    return cross_view_loss(target, student / tau_student)


def teacher_temperature(tau: float, steps: float) -> optax.Schedule:
    """The teacher's temperature: from 0.04 to `tau` over the first `steps`, as in DINO's section 3.2 over 30 epochs; `tau`
    all along where there are none. InputError if they are less than 0, or `tau` is not above it."""
    if tau <= 0:
        raise InputError(
            f"The teacher's temperature must be positive: choose --sharp above 0, not {tau}."
        )
    if steps < 0:
        raise InputError(
            "The teacher's temperature rises over a part of training: choose --sharpen 0 or above."
        )
    return optax.linear_schedule(0.04 if steps >= 1 else tau, tau, int(steps))


def ijepa_loss(y: Array, target: Array, weight: Array) -> Array:
    """The mean of (y - target)², (n, patches, d), over the patches that `weight`, (n, patches), counts.

    Each patch of `target` is brought to mean 0 and variance 1 before; no gradient goes to it.

    Assran et al., 2023, arXiv:2301.08243, section 3, with the normalisation of its code; divided by d.
    """
    target = jax.nn.standardize(jax.lax.stop_gradient(target).astype(jnp.float32), epsilon=1e-6)
    return jnp.sum(weight[:, :, None] * (y - target) ** 2) / (jnp.sum(weight) * y.shape[-1])
