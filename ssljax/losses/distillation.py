"""Self-distillation: a student predicts a teacher's features or distribution, without its
gradient."""

from typing import Literal

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.errors import InputError
from ssljax.losses.infonce import normalize


def negative_cosine_loss(p: Array, z: Array) -> Array:
    """The mean of -cos(p_i, z_i), (n, d) each, without a gradient to z.

    SimSiam: Chen and He, 2020, arXiv:2011.10566, eqs. 1 and 3.
    """
    if p.shape != z.shape or p.ndim != 2:
        raise InputError(
            "Predictions and targets of the same shape (n, d) are needed, not "
            f"{p.shape} and {z.shape}."
        )
    p, z = normalize(p.astype(jnp.float32)), normalize(jax.lax.stop_gradient(z).astype(jnp.float32))
    return -jnp.mean(jnp.sum(p * z, axis=-1))


def byol_loss(q: Array, z: Array) -> Array:
    """The mean of |q_i/|q_i| - z_i/|z_i||² = 2 - 2 cos(q_i, z_i), (n, d), without a gradient to z.

    One direction of BYOL's loss: Grill et al., 2020, arXiv:2006.07733, eq. 2.
    """
    return 2 + 2 * negative_cosine_loss(q, z)


def cross_view_loss(target: Array, logits: Array) -> Array:
    """The mean cross-entropy of probabilities `target` and `logits` over pairs of different views.

    `target`, (m, n, k), are of the first m views and get no gradient; `logits` are (views, n, k).
    Caron et al., 2021, arXiv:2104.14294, eq. 3. InputError unless there are two or more views, and
    no more targets than views.
    """
    m, v = len(target), len(logits)
    if v < 2 or not 1 <= m <= v or target.shape[1:] != logits.shape[1:]:
        raise InputError(
            "Targets (m, n, k) of the first m of two or more views (views, n, k) are needed, not "
            f"{target.shape} and {logits.shape}."
        )
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    others = log_p.sum(0) - log_p[:m]  # All views but the target's own.
    return -jnp.sum(jax.lax.stop_gradient(target) * others) / (m * (v - 1) * log_p.shape[1])


def dino_loss(
    teacher: Array,
    student: Array,
    centre: Array,
    tau_teacher: float | Array = 0.04,
    tau_student: float = 0.1,
) -> Array:
    """DINO's loss: logits of the student, (views, n, k), and of the teacher for the first m, (m, n,
    k).

    The teacher's are centred, then divided by the lower temperature τ_t (`tau_teacher`); the
    student's by τ_s (`tau_student`). Caron et al., 2021, arXiv:2104.14294, eq. 3 and algorithm 1.
    """
    for tau in (tau_teacher, tau_student):
        if isinstance(tau, (int, float)) and tau <= 0:
            raise InputError(f"The temperature must be positive, not {tau}.")
    target = jax.nn.softmax((teacher.astype(jnp.float32) - centre) / tau_teacher)
    return cross_view_loss(target, student / tau_student)


def ibot_patch_loss(
    teacher: Array,
    student: Array,
    hidden: Array,
    centre: Array,
    tau_teacher: float | Array = 0.04,
    tau_student: float = 0.1,
) -> Array:
    """iBOT's L_MIM: cross-entropy of the teacher's patches and the student's, (..., patches, k).

    The mean over images of the mean over the patches that are `hidden` from the student, (...,
    patches); an image without any counts 0, as in the authors' code. The teacher's logits are
    centred, then divided by τ_t (`tau_teacher`), as in `dino_loss`, and get no gradient.

    Zhou et al., 2022, arXiv:2111.07832, eq. 2.
    """
    target = jax.nn.softmax((teacher.astype(jnp.float32) - centre) / tau_teacher)
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / tau_student)
    each = -jnp.sum(jax.lax.stop_gradient(target) * log_p, axis=-1)
    return jnp.mean(jnp.sum(each * hidden, axis=-1) / jnp.maximum(hidden.sum(-1), 1))


def teacher_temperature(tau: float, steps: float) -> optax.Schedule:
    """DINO's τ_t: linear from 0.04 to `tau` over the first `steps`, then constant.

    30 epochs in section 3.2 of the paper; constant where `steps` is 0. InputError unless `tau` > 0
    and `steps` >= 0.
    """
    if tau <= 0:
        raise InputError(
            f"The teacher's temperature must be positive: choose --sharp above 0, not {tau}."
        )
    if steps < 0:
        raise InputError(
            "The teacher's temperature rises over a part of training: choose --sharpen 0 or above."
        )
    return optax.linear_schedule(0.04 if steps >= 1 else tau, tau, int(steps))


def ijepa_loss(
    y: Array, target: Array, weight: Array, error: Literal["squared", "smooth-l1"] = "squared"
) -> Array:
    """The mean error of `y` for `target`, (n, patches, d), over patches with `weight`, (n,
    patches).

    Each patch of `target` is standardised over its channels, as in the authors' code, and gets no
    gradient. `error` is squared in the paper (its section 3, here divided by d) and smooth-l1 in
    the authors' code: e²/2 where |e| < 1, else |e| - 1/2, so at most half the square.

    Assran et al., 2023, arXiv:2301.08243.
    """
    target = jax.nn.standardize(jax.lax.stop_gradient(target).astype(jnp.float32), epsilon=1e-6)
    each = (y - target) ** 2 if error == "squared" else optax.huber_loss(y, target)
    return jnp.sum(weight[:, :, None] * each) / (jnp.sum(weight) * y.shape[-1])
