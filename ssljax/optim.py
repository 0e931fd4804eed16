"""What Optax lacks for this field: schedules by fraction of training, LARS that leaves biases be, descent by rows."""

from typing import Any, Literal

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.errors import InputError

Tree = Any
Optimizer = Literal["adamw", "sgd", "lars"]


def warmup_cosine(
    peak: float, num_steps: int, warmup: float = 0.1, end: float = 0.0
) -> optax.Schedule:
    """Rises linearly from 0 to `peak` over the fraction `warmup` of `num_steps`, then falls by a cosine to `end`."""
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


def cosine(start: float, end: float | None, num_steps: int) -> optax.ScalarOrSchedule:
    """From `start` at step 0 to `end` at the last by half a cosine; `start` all along where `end` is None.

    The weight decay of DINO (Caron et al., 2021, arXiv:2104.14294, section 3.2) and I-JEPA.
    """
    if end is None:
        return start
    return lambda step: (
        end + (start - end) * (1 + jnp.cos(jnp.pi * jnp.minimum(step / num_steps, 1))) / 2
    )


def ema_decay(decay: float, step: Array) -> Array:
    """The decay of a moving average at `step`, less at the start, where the mean would be of the first weights alone."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def moving_average(decay: float) -> float:
    """The decay itself of a moving average. InputError unless it is in [0, 1]."""
    if not 0 <= decay <= 1:
        raise InputError(f"The decay of a moving average must be in [0, 1], not {decay}.")
    return decay


def rising_decay(start: float, num_steps: int) -> optax.Schedule:
    """A teacher's decay τ, by a cosine from `start` at step 0 to 1 at the end: 1 - (1 - start) (cos(π k/K) + 1)/2.

    Grill et al., 2020, arXiv:2006.07733, section 3.2. InputError if `start` is not in [0, 1].
    """
    return cosine(moving_average(start), 1.0, num_steps)


def linear_rise(start: float, num_steps: int) -> optax.Schedule:
    """A teacher's decay τ, by a line from `start` at step 0 to 1 at the end: I-JEPA's (Assran et al., 2023, appendix A).

    InputError if `start` is not in [0, 1].
    """
    return optax.linear_schedule(moving_average(start), 1.0, num_steps)


def no_bias_or_norm(params: Tree) -> Tree:
    """True for each array of two or more dimensions: biases and the scales of norms have one."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def optimizer_of(
    kind: Optimizer, learning_rate: optax.ScalarOrSchedule, weight_decay: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """`adamw` or `lars` as below, or SGD with momentum 0.9 whose weight decay, of all weights, is PyTorch's: a part of
    the gradient."""
    if kind == "sgd":
        return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, 0.9))
    return {"adamw": adamw, "lars": lars}[kind](learning_rate, weight_decay)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 1e-6,
    momentum: float = 0.9,
    trust: float = 0.001,
) -> optax.GradientTransformation:
    """LARS (You et al., 2017, arXiv:1708.03888, algorithm 1), as SimCLR uses it (Chen et al., 2020, appendix A).

    Biases and the parameters of norms get neither weight decay nor the layerwise rate.
    """
    return optax.lars(
        learning_rate,
        weight_decay,
        weight_decay_mask=no_bias_or_norm,
        trust_coefficient=trust,
        trust_ratio_mask=no_bias_or_norm,
        momentum=momentum,
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    **kwargs: Any,
) -> optax.GradientTransformation:
    """AdamW that does not decay biases and the parameters of norms."""
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=no_bias_or_norm, **kwargs)


def descend_rows(table: Array, at: Array, grads: Array, terms: Array, rate: Array) -> Array:
    """Gradient descent of the rows `at` (...) of `table` (v, d) by `grads` (..., d), of which equal rows' are summed.

    `terms` (...) says of how many terms of the loss each is the sum. A row goes by `rate` times the sum of all, but by
    no more than their mean: the sum of a row that occurs often goes too far.
    """
    count = jnp.zeros(len(table)).at[at].add(terms)
    each = rate / jnp.maximum(1, rate * count)
    return table.at[at].add(-each[at][..., None] * grads)
