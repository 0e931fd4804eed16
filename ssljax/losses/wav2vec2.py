"""wav2vec 2.0: spans of a recording are masked, and each masked step picks its own code among
those of other masked steps.

Baevski et al., 2020, https://arxiv.org/abs/2006.11477.
"""

import math

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.accumulation import mean_over_parts
from ssljax.errors import InputError
from ssljax.sharding import over_batch


def masked_at_most(length: int, share: float, span: int) -> int:
    """Masked steps of a recording of `length` steps at most, as a number.

    InputError unless a span has at least 2 steps, and fits, and the share of starts is in (0, 1].
    """
    if not 2 <= span <= length or not 0 < share <= 1:
        raise InputError(
            f"Spans of {span} steps can't begin at a share of {share} of {length} steps: a span "
            "has 2 steps or more and fits into a recording, and the share is in (0, 1]."
        )
    return min(length, max(1, math.floor(share * length) + 1) * span)


def span_mask(key: Array, steps: Array, length: int, share: float = 0.065, span: int = 10) -> Array:
    """Which of `length` steps are masked, (n, length) bool, in recordings of `steps` (n,) steps.

    Of m steps, share · m are drawn to begin a span, without replacement and with the same
    probability, of those from which a whole span fits; a number that isn't whole is rounded up or
    down at random, and is at least 1. Spans may overlap: section 4.2. Steps beyond a recording's
    end, but for those of a recording shorter than one span, are not masked. InputError as from
    `masked_at_most`.
    """
    masked_at_most(length, share, span)
    n = len(steps)
    k1, k2 = jax.random.split(key)
    steps = jnp.maximum(steps, span)
    lot = over_batch(jax.random.uniform(k1, (n, length)))
    lot = jnp.where(jnp.arange(length) <= (steps - span)[:, None], lot, 2.0)
    rank = jnp.argsort(jnp.argsort(lot, axis=1), axis=1)
    count = jnp.floor(share * steps + over_batch(jax.random.uniform(k2, (n,))))
    starts = (rank < jnp.maximum(count, 1)[:, None]) & (lot < 2)
    begun = jnp.cumsum(starts, axis=1)
    return begun > jnp.pad(begun, ((0, 0), (span, 0)))[:, :length]


def masked_steps(mask: Array, most: int) -> tuple[Array, Array]:
    """Places of the masked steps of each row of `mask` (n, t), and which of them are real: each (n,
    most), in order, the real ones first."""
    at = jnp.argsort(~mask, axis=1, stable=True)[:, :most]
    return at, jnp.take_along_axis(mask, at, axis=1)


def draw_distractors(key: Array, count: Array, most: int, distractors: int) -> Array:
    """For each of the first `count` (n,) of `most` masked steps, `distractors` others of them.

    (n, most, distractors) ints below count, none that of the step itself, each drawn by itself with
    the same probability, as in the authors' code. Counts are 2 or more.
    """
    shape = (len(count), most, distractors)
    lot = over_batch(jax.random.uniform(key, shape))
    others = jnp.maximum(count - 1, 1)[:, None, None]
    drawn = jnp.minimum(jnp.floor(lot * others).astype(jnp.int32), others - 1)
    return drawn + (drawn >= jnp.arange(most)[:, None])


def contrastive_loss(
    c: Array, q: Array, entry: Array, distractors: Array, real: Array, kappa: float = 0.1
) -> tuple[Array, Array]:
    """The loss of eq. 3, in nats, and the fraction of masked steps that pick their own code.

    -log exp(sim(c_i, q_i) / κ) / sum over j of exp(sim(c_i, q_j) / κ), sim the cosine and j the
    step itself and its `distractors` (n, k, K), of contexts `c` and codes `q` (n, k, d) of the
    masked steps, of which those are `real`, (n, k), that there are. As in the authors' code, a
    distractor of the same entries, `entry` (n, k, groups), is no wrong answer and is left out; the
    loss of a step without any other is 0, and it counts as wrong. Both are means over real steps.
    """
    nll, right = contrasts(c, q, entry, distractors, kappa)
    weight = real.astype(nll.dtype)
    count = jnp.maximum(mean_over_parts(jnp.sum(weight)), 1)
    return jnp.sum(weight * nll) / count, jnp.sum(weight * right) / count


def contrasts(
    c: Array, q: Array, entry: Array, distractors: Array, kappa: float
) -> tuple[Array, Array]:
    """-log p of each step's own code, and whether it is the likeliest: (n, k) each."""
    c, q = c.astype(jnp.float32), q.astype(jnp.float32)
    own = jnp.arange(q.shape[1])
    same = jnp.all(entry[:, :, None] == entry[:, None], axis=-1)
    unit = lambda x: x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-12))
    sim = jnp.einsum("nid,njd->nij", unit(c), unit(q), precision="highest") / kappa
    other = jnp.take_along_axis(sim, distractors, axis=2)
    other = jnp.where(jnp.take_along_axis(same, distractors, axis=2), -jnp.inf, other)
    true = sim[:, own, own][..., None]
    nll = jax.nn.logsumexp(jnp.concatenate([true, other], axis=-1), axis=-1) - true[..., 0]
    best = jnp.max(other, axis=-1)
    return nll, (true[..., 0] > best) & (best > -jnp.inf)


def real_steps(x: Array, stride: int) -> Array:
    """Codes (n,) of waves `x` (n, samples) that begin before the zeros at a wave's end."""
    last = x.shape[1] - jnp.argmax(x[:, ::-1] != 0, axis=1)
    return -(-jnp.where(jnp.any(x != 0, axis=1), last, 0) // stride)
