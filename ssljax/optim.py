"""What Optax lacks: schedules by fraction of training, learning rates that are logged, a mask for
weight decay, descent by rows."""

from typing import Any, Literal

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.errors import InputError

Tree = Any
LEARNED_POSITIONS = "['places']['table']"  # Where `models.vit.ViT` keeps them.
Optimizer = Literal["adamw", "sgd", "lars", "lars-outer"]


def warmup_cosine(
    peak: float, num_steps: int, warmup: float = 0.1, end: float = 0.0
) -> optax.Schedule:
    """A linear warm-up from 0 to `peak`, then a cosine decay to `end`.

    The peak is reached after round(`warmup` · `num_steps`) steps, as in the code of Barlow Twins,
    VICReg and BYOL; DINO's and lightly's reach it a step earlier. InputError unless `warmup` is in
    [0, 1).
    """
    if not 0 <= warmup < 1:
        raise InputError(f"warmup is a fraction of training, in [0, 1), not {warmup}.")
    steps = round(warmup * num_steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, max(steps, 1)),
            optax.cosine_decay_schedule(
                peak, max(num_steps - steps, 1), end / peak if peak else 0.0
            ),
        ],
        [steps],
    )


class Scheduled(optax.GradientTransformationExtraArgs):
    """An optimizer with the schedule of its learning rate, so that a step can log it."""

    schedule: optax.Schedule


def scheduled(
    tx: optax.GradientTransformation, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """`tx`, whose learning rate is logged as `lr` where it is a schedule; its updates don't change.

    `minimize` reads the schedule at the step of the state, as `tx` does that updates once a step.
    """
    if not callable(learning_rate):
        return tx
    found = Scheduled(*optax.with_extra_args_support(tx))
    found.schedule = learning_rate
    return found


def learning_rate_at(tx: optax.GradientTransformation, step: Array) -> dict[str, Array]:
    """{"lr": the learning rate of an update}, or {} for an optimizer that is not `scheduled`."""
    return {"lr": jnp.asarray(tx.schedule(step))} if isinstance(tx, Scheduled) else {}


def clipped(norm: float, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` of gradients that are scaled down to an L2 norm of `norm` where theirs is larger."""
    found = optax.chain(optax.clip_by_global_norm(norm), tx)
    return scheduled(found, tx.schedule) if isinstance(tx, Scheduled) else found


def cosine(start: float, end: float | None, num_steps: int) -> optax.ScalarOrSchedule:
    """Half a cosine from `start` at step 0 to `end` at the last; constant where `end` is None.

    The weight decay of DINO (Caron et al., 2021, arXiv:2104.14294, section 3.2) and I-JEPA, whose
    code advances the schedule before the first step rather than after.
    """
    return start if end is None else _half_cosine(start, end, num_steps)


def _half_cosine(start: float, end: float, num_steps: int) -> optax.Schedule:
    return lambda step: (
        end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.minimum(step / num_steps, 1))) / 2
    )


def ema_decay(decay: float, step: Array) -> Array:
    """min(decay, (1 + step) / (10 + step)): a moving average that forgets its start sooner."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def moving_average(decay: float) -> float:
    """`decay`, checked: InputError unless it is in [0, 1]."""
    if not 0 <= decay <= 1:
        raise InputError(f"The decay of a moving average must be in [0, 1], not {decay}.")
    return decay


def rising_decay(start: float, num_steps: int) -> optax.Schedule:
    """A teacher's decay τ at step k of K, from `start` to 1: 1 - (1 - start) (cos(π k/K) + 1)/2.

    Grill et al., 2020, arXiv:2006.07733, section 3.2. InputError if `start` is not in [0, 1].
    """
    return _half_cosine(moving_average(start), 1.0, num_steps)


def linear_rise(start: float, num_steps: int) -> optax.Schedule:
    """A teacher's decay τ, linear from `start` at step 0 to 1 at the end.

    I-JEPA (Assran et al., 2023, arXiv:2301.08243, appendix A). InputError if `start` is not in [0,
    1].
    """
    return optax.linear_schedule(moving_average(start), 1.0, num_steps)


def decay_mask(params: Tree) -> Tree:
    """True for each parameter that weight decay applies to.

    False for all of one dimension (biases, the parameters of norms, class and mask tokens) and for
    a ViT's learned positions. The latter are not decayed in timm, in MAE's fine-tuning and in MoCo
    v3, whose positions are fixed; the code of DINO decays them, and BERT and nanoGPT the positions
    of tokens, so that those of a `Transformer` are decayed here too.
    """

    def decayed(path: tuple[Any, ...], x: Array) -> bool:
        return x.ndim > 1 and not jax.tree_util.keystr(path).endswith(LEARNED_POSITIONS)

    return jax.tree_util.tree_map_with_path(decayed, params)


def optimizer_of(
    kind: Optimizer, learning_rate: optax.ScalarOrSchedule, weight_decay: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The optimizer of that name.

    - adamw: `adamw` below.
    - sgd: momentum 0.9, with PyTorch's weight decay of all parameters, as a part of the gradient.
    - lars: `lars` below; lars-outer: the same with the learning rate outside the momentum.
    """
    if kind == "adamw":
        return adamw(learning_rate, weight_decay)
    if kind == "sgd":
        sgd = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, 0.9))
        return scheduled(sgd, learning_rate)
    return lars(learning_rate, weight_decay, outer=kind == "lars-outer")


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 1e-6,
    momentum: float = 0.9,
    trust: float = 0.001,
    outer: bool = False,
) -> optax.GradientTransformation:
    """LARS, with g the gradient plus the decayed weight w, times trust · |w| / |g|.

    The learning rate γ is within the momentum, m = 0.9 m + γ g, w = w - m, in You et al., 2017,
    arXiv:1708.03888, algorithm 1, and SimCLR's code (Chen et al., 2020, appendix A). With `outer`
    it is outside, m = 0.9 m + g, w = w - γ m, as in PyTorch's SGD and the code of BYOL, Barlow
    Twins, VICReg and MoCo v3; both are equal at a constant rate. |g| is the norm of the sum, |∇ + β
    w|, as in the code of SimCLR, BYOL, Barlow Twins and VICReg; You et al., timm and lightly have
    |∇| + β |w|. What `decay_mask` leaves out gets neither weight decay nor the layerwise rate.
    """
    if outer:
        tx = optax.chain(
            optax.add_decayed_weights(weight_decay, decay_mask),
            optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust), decay_mask),
            optax.trace(momentum),
            optax.scale_by_learning_rate(learning_rate),
        )
    else:
        tx = optax.lars(
            learning_rate,
            weight_decay,
            weight_decay_mask=decay_mask,
            trust_coefficient=trust,
            trust_ratio_mask=decay_mask,
            momentum=momentum,
        )
    return scheduled(tx, learning_rate)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    **kwargs: Any,
) -> optax.GradientTransformation:
    """AdamW whose weight decay is restricted by `decay_mask`."""
    tx = optax.adamw(learning_rate, weight_decay=weight_decay, mask=decay_mask, **kwargs)
    return scheduled(tx, learning_rate)


def descend_rows(table: Array, at: Array, grads: Array, terms: Array, rate: Array) -> Array:
    """Gradient descent on the rows `at` (...) of `table` (v, d) by `grads` (..., d).

    Gradients of the same row are summed; `terms` (...) says how many terms of the loss each one
    sums. A row moves by `rate` times the sum, but by no more than the mean of all its terms, since
    the sum of a row that occurs often would overshoot.
    """
    count = jnp.zeros(len(table)).at[at].add(terms)
    each = rate / jnp.maximum(1, rate * count)
    return table.at[at].add(-each[at][..., None] * grads)
