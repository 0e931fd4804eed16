"""Samplers: from noise to examples by a net that predicts the noise, or a velocity.

Each returns the examples, (n, ...), or with `points` that many points of its way (all of them, if
it has fewer), evenly spread from the noise to the examples, (points, n, ...). A net is called in a
loop of the program, which is compiled once.
"""

from collections.abc import Callable
import math
from typing import Literal

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.losses.diffusion import NoiseSchedule

Method = Literal["euler", "heun"]


def ddim(
    predict: Callable[[Array, Array, Array, Array], tuple[Array, Array]],
    schedule: NoiseSchedule,
    x: Array,
    steps: int,
    eta: float = 0.0,
    key: Array | None = None,
    clip: float = math.inf,
    points: int | None = None,
) -> Array:
    """Samples from `x`, standard normal (n, ...), in `steps` of the T steps of a diffusion.

    `predict(x_t, t, a, s)` gives the example and the noise, (x, ε), that a net finds in x_t, where
    t is the step's number, and a and s are numbers. Song et al., 2020, arXiv:2010.02502, eq. 12 and
    16: with `eta` 0 sampling is deterministic, with 1 and all T steps it is the sampler of DDPM
    (Ho et al., 2020, arXiv:2006.11239, algorithm 2) with the variance β̃_t; above 0 it needs a
    `key`. Steps are spread evenly over 1, ..., T. Predicted examples are clipped to ±`clip`, as in
    the code of DDPM. InputError for more steps than T.
    """
    if steps > schedule.steps:
        raise InputError(
            f"A diffusion of {schedule.steps} steps can't be sampled in {steps}: choose as many or "
            "fewer."
        )
    if eta and key is None:
        raise InputError("A sampler that adds noise needs a key.")
    at = np.round(np.linspace(schedule.steps, 0, steps + 1)).astype(int)
    a, s = schedule.a[at], schedule.s[at]
    # The deviation σ of eq. 16, and what is left of s for the predicted noise.
    fresh = eta * s[1:] / s[:-1] * np.sqrt(np.maximum(0, 1 - (a[:-1] / a[1:]) ** 2))
    kept = np.sqrt(np.maximum(0, s[1:] ** 2 - fresh**2))
    number, table = jnp.asarray(at), jnp.asarray(np.stack([a[:-1], s[:-1], a[1:], kept, fresh], 1))

    def step(i: Array, x: Array) -> Array:
        a, s, a1, kept, fresh = table[i].astype(x.dtype)
        found, rest = predict(x, number[i], a, s)
        if math.isfinite(clip):
            found = jnp.clip(found, -clip, clip)
            rest = (x - a * found) / s
        x = a1 * found + kept * rest
        if eta and key is not None:
            x = x + fresh * jax.random.normal(jax.random.fold_in(key, i), x.shape)
        return x

    return _walk(step, x, steps, points)


def flow(
    velocity: Callable[[Array, Array], Array],
    x: Array,
    steps: int,
    method: Method = "heun",
    points: int | None = None,
    start: float = 0.0,
    end: float = 1.0,
) -> Array:
    """The solution at time `end` of dx/dt = velocity(x, t), which is `x` (n, ...) at `start`.

    `steps` equal steps of Euler, one call of `velocity` each, or of Heun, two calls each and an
    error of second order: the mean of the velocities at both ends of Euler's step (Karras et al.,
    2022, arXiv:2206.00364, algorithm 1).
    """
    h = (end - start) / steps

    def step(i: Array, x: Array) -> Array:
        t = start + i * h
        v = velocity(x, t)
        if method == "heun":
            v = (v + velocity(x + h * v, start + (i + 1) * h)) / 2
        return x + h * v

    return _walk(step, x, steps, points)


def _walk(step: Callable[[Array, Array], Array], x: Array, steps: int, points: int | None) -> Array:
    if points is None:
        return jax.lax.fori_loop(0, steps, step, x)
    kept = spread(steps + 1, points)
    # Each step writes over the next of the kept points, whose own step is the last to do so.
    slot = jnp.asarray(np.searchsorted(kept, np.arange(1, steps + 1)))

    def one(i: Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
        x, way = both
        x = step(i, x)
        return x, way.at[slot[i]].set(x)

    way = jnp.zeros((len(kept), *x.shape), x.dtype).at[0].set(x)
    return jax.lax.fori_loop(0, steps, one, (x, way))[1]


def spread(n: int, most: int) -> np.ndarray:
    """Up to `most`, at least 2, of the numbers 0, ..., n - 1, evenly spread, with both ends."""
    return np.unique(np.round(np.linspace(0, n - 1, most)).astype(int))
