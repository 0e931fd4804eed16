"""Diffusion and flow matching: noise schedules, what a net predicts, and the bound in nats.

A noised example is x_t = a x + s ε, with ε standard normal. In a diffusion a² + s² = 1, and a² is
the ᾱ_t of Ho et al., 2020 (https://arxiv.org/abs/2006.11239, "DDPM" below); on the straight paths
of Lipman et al., 2023 (https://arxiv.org/abs/2210.02747), a = t and s = 1 - (1 - σ_min) t. Here a
and s are numbers, or arrays that broadcast to the examples'.
"""

from collections.abc import Callable
import math
from typing import Literal, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.sharding import over_batch

Prediction = Literal["epsilon", "v"]
Schedule = Literal["linear", "cosine"]
# -L_0 of examples x, the net's x and s: (n, ...) of the same shape.
LastLogProb = Callable[[Array, Array, Array], Array]


class NoiseSchedule(NamedTuple):
    """a and s of the steps 0, ..., T of a diffusion, (T + 1,) each; step 0 is the data."""

    a: np.ndarray
    s: np.ndarray

    @property
    def steps(self) -> int:
        """T."""
        return len(self.a) - 1

    def at(self, t: Array, dims: int) -> tuple[Array, Array]:
        """a and s at steps `t`, (n,), to broadcast to examples of `dims` dimensions."""
        shape = (-1, *[1] * (dims - 1))
        a, s = (jnp.asarray(x, jnp.float32)[t].reshape(shape) for x in self)
        return a, s


def noise_schedule(kind: Schedule, steps: int) -> NoiseSchedule:
    """A schedule of `steps` T.

    - linear: β_t from 1e-4 to 0.02 for T = 1000 (DDPM, section 4), and 1000 / T times that for
      another T, as in the code of Nichol and Dhariwal.
    - cosine: ᾱ_t = f(t) / f(0) with f(t) = cos²((t/T + 0.008) / 1.008 · π/2) and β_t <= 0.999
      (Nichol and Dhariwal, 2021, arXiv:2102.09672, eq. 17).

    InputError where a linear β_t would reach 1, for T of 20 or less.
    """
    if kind == "cosine":
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    else:
        if steps <= 20:
            raise InputError(f"A linear schedule needs more than 20 steps, not {steps}.")
        beta = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    log_bar = np.concatenate([[0], np.cumsum(np.log1p(-beta))])
    return NoiseSchedule(np.exp(log_bar / 2), np.sqrt(-np.expm1(log_bar)))


def spread_times(key: Array, n: int) -> Array:
    """`n` times, uniform on [0, 1), one in each n-th of it: (n,).

    Each is uniform alone; together they vary less than n independent draws, and so does the mean of
    a loss over them (Kingma et al., 2021, arXiv:2107.00630, appendix I.1).
    """
    return over_batch((jax.random.uniform(key) + jnp.arange(n) / n) % 1)


def noised(x: Array, noise: Array, a: Array | float, s: Array | float) -> Array:
    """x_t of examples `x` and standard normal `noise` (DDPM, eq. 4)."""
    return a * x + s * noise


def target(
    x: Array, noise: Array, a: Array | float, s: Array | float, predict: Prediction
) -> Array:
    """What a net is to predict: ε (DDPM, eq. 14), or v = a ε - s x.

    v is the velocity of Salimans and Ho, 2022, arXiv:2202.00512, section 4.
    """
    return noise if predict == "epsilon" else a * noise - s * x


def denoised(
    output: Array, x_t: Array, a: Array | float, s: Array | float, predict: Prediction
) -> tuple[Array, Array]:
    """The examples and the noise, (x, ε), that a net's `output` at `x_t` stands for.

    DDPM, eq. 15; for v, x = a x_t - s v and ε = s x_t + a v, as a² + s² = 1.
    """
    if predict == "epsilon":
        return (x_t - s * output) / a, output
    return a * x_t - s * output, s * x_t + a * output


def guided(
    net: Callable[[Array, Array, Array | None], Array],
    x_t: Array,
    t: Array,
    y: Array | None,
    weight: float,
) -> Array:
    """(1 + w) times the output net(x_t, t, y), minus w times that without a class, y = 0.

    Ho and Salimans, 2022, arXiv:2207.12598, eq. 6. `y` has one-hot classes (n, k), or is None for a
    net that takes none; then, and for a `weight` w of 0, the net is called once.
    """
    out = net(x_t, t, y)
    if y is None or not weight:
        return out
    return (1 + weight) * out - weight * net(x_t, t, jnp.zeros_like(y))


def drop_classes(key: Array, y: Array, p: float) -> Array:
    """One-hot classes (n, k) of which each is replaced by zeros with probability `p`.

    So that one net also learns to predict without a class (Ho and Salimans, algorithm 1).
    """
    return y * over_batch(jax.random.bernoulli(key, 1 - p, (len(y), 1)))


# The terms of the bound on -log p(x), DDPM, eq. 5: L_T + sum of L_{t-1} over t > 1, + L_0.


def prior_kl(x: Array, a: Array | float, s: Array | float) -> Array:
    """L_T = KL(q(x_T|x) || N(0, 1)), with a and s of the last step, elementwise."""
    return 0.5 * ((a * x) ** 2 + s**2 - 1 - 2 * jnp.log(s))


def step_kl(
    x: Array,
    predicted: Array,
    now: tuple[Array | float, Array | float],
    before: tuple[Array | float, Array | float],
) -> Array:
    """L_{t-1} = KL(q(x_{t-1}|x_t, x) || p(x_{t-1}|x_t)), t > 1, elementwise.

    `now` and `before` are (a, s) of the steps t and t - 1, and `predicted` is the net's x. p has
    the variance of q, β̃_t of eq. 7, so that with the means of eq. 7 the KL of eq. 8 is
    (a²/s² at t - 1, minus a²/s² at t) · (x - predicted)² / 2.
    """
    (a, s), (a1, s1) = now, before
    return 0.5 * ((a1 / s1) ** 2 - (a / s) ** 2) * (x - predicted) ** 2


def log_mass_of_level(x: Array, predicted: Array, s: Array | float) -> Array:
    """log of N(predicted, s²) within half a level, 1/255, of pixels `x`, elementwise (eq. 13).

    Pixels are in [-1, 1] and have 256 levels; those at both ends have all that lies beyond them.
    """
    upper = jnp.where(x > 0.999, jnp.inf, (x + 1 / 255 - predicted) / s)
    lower = jnp.where(x < -0.999, -jnp.inf, (x - 1 / 255 - predicted) / s)
    # On the side where both are negative, no digits cancel.
    flip = lower + upper > 0
    upper, lower = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)
    high, low = jax.scipy.special.log_ndtr(upper), jax.scipy.special.log_ndtr(lower)
    return high + jnp.log1p(-jnp.exp(jnp.minimum(low - high, -1e-7)))


def last_log_prob_of_levels(frequency: np.ndarray) -> LastLogProb:
    """-L_0 of pixels in [-1, 1] whose 256 levels have these frequencies (256,), elementwise.

    The probability of each level is that of DDPM's eq. 13, `log_mass_of_level`, times its
    frequency, divided by the sum of these products. With equal frequencies it is eq. 13; otherwise
    it knows of levels that no image has, as the frequencies of single pixels do.
    """

    def last(x: Array, predicted: Array, s: Array) -> Array:
        log_f = jnp.log(jnp.asarray(frequency, jnp.float32))

        def add(total: Array, level: Array) -> tuple[Array, None]:
            mass = log_mass_of_level(level / 127.5 - 1, predicted, s)
            return total + jnp.exp(log_f[level] + mass), None

        total = jax.lax.scan(add, jnp.zeros_like(predicted), jnp.arange(256))[0]
        level = jnp.round((x + 1) * 127.5).astype(jnp.int32)
        return log_f[level] + log_mass_of_level(x, predicted, s) - jnp.log(total)

    return last


def level_frequencies(images: np.ndarray) -> np.ndarray:
    """Frequencies (256,) of the levels of uint8 `images`, one added to each count."""
    counts = np.bincount(images.ravel(), minlength=256) + 1
    return counts / counts.sum()


def step_to_decode_at(schedule: NoiseSchedule, images: np.ndarray) -> int:
    """The last step whose noise s/a is below half the gap between levels of uint8 `images`.

    The noise before it says little of a pixel's level. 1 for photographs, which have all levels;
    14 for digits, with their 17 levels, by the linear schedule with T = 1000.
    """
    gap = 2 / 255 * int(np.diff(np.unique(images)).min(initial=255))
    return max(1, int(np.sum(schedule.s[1:] / schedule.a[1:] < gap / 2)))


def diffusion_bound(
    predict: Callable[[Array, Array, Array, Array], tuple[Array, Array]],
    schedule: NoiseSchedule,
    x: Array,
    key: Array,
    draws: int,
    last: LastLogProb,
    first: int = 1,
    clip: float = math.inf,
) -> Array:
    """An unbiased estimate of the bound on log p(x) in nats, (n,), of examples `x` (n, ...).

    `predict(x_t, t, a, s)` gives (x, ε) as `denoised` does. L_T is exact, L_0 has one draw of
    noise, and the sum over t = 2, ..., T has `draws`, spread over t: with T - 1 of them each term
    is computed. `last` is -L_0 as a function of x, the net's x at step 1, and s. With `first` above
    1 the steps before it are left out: the sum begins at first + 1, and x follows from the net's x
    at step `first` directly. Predicted examples are clipped to ±`clip`, as by the sampler.
    """
    axes, n, middle = tuple(range(1, x.ndim)), len(x), schedule.steps - first

    def one(carry: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], None]:
        ku, kn = jax.random.split(jax.random.fold_in(key, j))
        u = (j + spread_times(ku, n)) / draws
        t = first + 1 + jnp.minimum((middle * u).astype(jnp.int32), middle - 1)
        t = jnp.where(j < draws, t, first)  # The last of all is L_0's, whose net's x is kept.
        a, s = schedule.at(t, x.ndim)
        x_t = noised(x, over_batch(jax.random.normal(kn, x.shape)), a, s)
        found = jnp.clip(predict(x_t, t, a, s)[0], -clip, clip)
        kl = step_kl(x, found, (a, s), schedule.at(jnp.maximum(t - 1, 1), x.ndim)).sum(axes)
        return (carry[0] + jnp.where(j < draws, kl, 0), found), None

    total, found = jax.lax.scan(one, (jnp.zeros(n), x), jnp.arange(draws + 1))[0]
    s = jnp.float32(schedule.s[first])
    a_end, s_end = (jnp.float32(v[-1]) for v in schedule)
    sums = total * middle / draws + prior_kl(x, a_end, s_end).sum(axes)
    return last(x, found, s).sum(axes) - sums


# Flow matching, from noise at time 0 to data at time 1.


def straight(t: Array | float, sigma_min: float) -> tuple[Array | float, Array | float]:
    """a and s of the paths ψ_t of optimal transport (Lipman et al., eq. 20 and 22)."""
    return t, 1 - (1 - sigma_min) * t


def flow_target(x: Array, noise: Array, sigma_min: float) -> Array:
    """The velocity dψ_t/dt = x - (1 - σ_min) ε of a path (Lipman et al., eq. 23)."""
    return x - (1 - sigma_min) * noise
