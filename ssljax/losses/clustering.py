"""Online clustering: codes that assign a batch evenly to prototypes, and SwAV's loss on them."""

import math

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.accumulation import whole_batch
from ssljax.errors import InputError
from ssljax.losses.distillation import cross_view_loss


def sinkhorn(scores: Array, eps: float = 0.05, steps: int = 3) -> Array:
    """The codes Q* = Diag(u) exp(scores / ε) Diag(v) of `scores`, (n, k), by Sinkhorn-Knopp.

    Rows sum to 1; columns approach n/k with more `steps`. Caron et al., 2020, arXiv:2006.09882,
    eqs. 3 to 5, computed in logarithms. InputError unless ε (`eps`) and `steps` are positive.
    """
    whole_batch()
    if eps <= 0 or steps < 1:
        raise InputError(
            f"Sinkhorn's algorithm needs a positive epsilon and a step, not {eps} and {steps}."
        )
    n, k = scores.shape
    log_q = scores.astype(jnp.float32) / eps
    for _ in range(steps):
        log_q = log_q - jax.nn.logsumexp(log_q, axis=0) + math.log(n / k)
        log_q = log_q - jax.nn.logsumexp(log_q, axis=1, keepdims=True)
    return jnp.exp(log_q)


def swav_loss(
    scores: Array, large: int = 2, tau: float = 0.1, eps: float = 0.05, steps: int = 3
) -> Array:
    """Swapped prediction: each view predicts the codes of the first `large` views other than
    itself.

    `scores`, (views, n, k), are cosines with k prototypes, at temperature τ (`tau`); codes are
    their `sinkhorn` and get no gradient. Caron et al., 2020, arXiv:2006.09882, eqs. 1, 2 and 6.
    """
    if tau <= 0:
        raise InputError(f"The temperature must be positive, not {tau}.")
    codes = jnp.stack([sinkhorn(jax.lax.stop_gradient(s), eps, steps) for s in scores[:large]])
    return cross_view_loss(codes, scores / tau)
