"""Span corruption: spans of a text are left out, and are what a model is to answer.

Raffel et al., 2020, https://arxiv.org/abs/1910.10683, section 3.1.4.
"""

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.sharding import over_batch


def span_counts(m: Array | int, density: float, span: float) -> tuple[Array, Array]:
    """Numbers of tokens and of spans that are left out of a text of `m` tokens, 2 or more.

    round(density · m) tokens, but not all and at least one; these divided by `span`, rounded, at
    least one, and no more than the tokens that stay.
    """
    noise = jnp.clip(jnp.round(density * jnp.asarray(m)), 1, jnp.asarray(m) - 1).astype(jnp.int32)
    spans = jnp.maximum(1, jnp.round(noise / span)).astype(jnp.int32)
    return noise, jnp.minimum(spans, jnp.asarray(m) - noise).astype(jnp.int32)


def most_spans(length: int, density: float, span: float) -> tuple[int, int]:
    """`span_counts` of a full row of `length` tokens, as numbers; InputError for an impossible one.

    That is a row of fewer than 2 tokens, a density that isn't in (0, 1), or a span below 1.
    """
    if length < 2 or not 0 < density < 1 or not span >= 1:
        raise InputError(
            f"Spans of {span} tokens can't be a share of {density} of rows of {length}: rows need "
            "2 tokens, the share is between 0 and 1, and a span has at least 1 token."
        )
    with jax.ensure_compile_time_eval():
        noise, spans = span_counts(length, density, span)
        return int(noise), int(spans)


def noise_spans(key: Array, m: Array, length: int, density: float = 0.15, span: float = 3.0):
    """Which of `length` places begin a span, and which are in one: two (n, length) arrays, bool.

    Row i has `m[i]` tokens. The tokens left out are divided into spans, and those that stay into as
    many parts, each division of m into k parts of at least 1 with the same probability; a part that
    stays is first, and a span is last. This is `random_spans_noise_mask` of the authors' code, for
    rows of different lengths; rows of fewer than 2 tokens have no span.
    """
    most = most_spans(length, density, span)[1]
    noise, spans = span_counts(jnp.maximum(m, 2), density, span)
    k1, k2 = jax.random.split(key)
    left_out = _parts(k1, noise, spans, length, most)
    staying = _parts(k2, jnp.maximum(m, 2) - noise, spans, length, most)
    ends = jnp.cumsum(jnp.stack([staying, left_out], axis=2).reshape(len(m), -1), axis=1)
    place = jnp.arange(length)
    part = jnp.sum(place[None, :, None] >= ends[:, None, :], axis=2)
    inside = (part % 2 == 1) & (place < m[:, None]) & (m[:, None] > 1)
    before = jnp.pad(inside[:, :-1], ((0, 0), (1, 0)))
    return inside & ~before, inside


def _parts(key: Array, items: Array, parts: Array, length: int, most: int) -> Array:
    """Sizes (n, most) of `parts` (n,) parts of at least 1, which are `items` (n,) together."""
    n = len(items)
    place = jnp.arange(1, length)
    lot = jnp.where(place < items[:, None], over_batch(jax.random.uniform(key, (n, length - 1))), 2)
    rank = jnp.argsort(jnp.argsort(lot, axis=1, stable=True), axis=1)
    first = jnp.pad(rank < parts[:, None] - 1, ((0, 0), (1, 0)))  # Of a part other than the first.
    part = jnp.cumsum(first, axis=1)
    real = jnp.arange(length) < items[:, None]
    return jnp.sum((part[:, :, None] == jnp.arange(most)) & real[:, :, None], axis=1)


def corrupt_spans(
    key: Array,
    tokens: Array,
    sentinels: Array | np.ndarray,
    end: int,
    density: float = 0.15,
    span: float = 3.0,
) -> tuple[Array, Array]:
    """Inputs (n, a) and targets (n, b) of texts `tokens` (n, t): all three padded with -1.

    The j-th span that is left out is replaced by the token sentinels[j] in the input; the targets
    are each span after its sentinel. Both end with `end`, the target without the paper's last
    sentinel, as in the authors' code. For a full row, a is t less the tokens left out, and b these,
    each with one for each span and one for the end; shorter rows have as many or fewer.
    InputError as from `most_spans`, and for more spans than there are sentinels.
    """
    n, length = tokens.shape
    noise, spans = most_spans(length, density, span)
    if spans > len(sentinels):
        raise InputError(
            f"Rows of {length} tokens have {spans} spans, and there are {len(sentinels)} sentinels "
            "to stand for them: choose shorter rows, longer spans or a smaller share."
        )
    begins, inside = noise_spans(key, (tokens >= 0).sum(1), length, density, span)
    number = jnp.maximum(jnp.cumsum(begins, axis=1) - 1, 0)
    sentinel = jnp.asarray(sentinels, tokens.dtype)[number]
    # A place for a sentinel in front of each token, and one for the end.
    slots = jnp.stack([sentinel, tokens], axis=2).reshape(n, -1)
    slots = jnp.pad(slots, ((0, 0), (0, 1)), constant_values=end)

    def kept(which: Array, size: int) -> Array:
        keep = jnp.stack([begins, which & (tokens >= 0)], axis=2).reshape(n, -1)
        keep = jnp.pad(keep, ((0, 0), (0, 1)), constant_values=True)
        order = jnp.argsort(~keep, axis=1, stable=True)[:, :size]
        found = jnp.take_along_axis(slots, order, axis=1)
        return jnp.where(jnp.arange(size) < keep.sum(1, keepdims=True), found, -1)

    return kept(~inside, length - noise + spans + 1), kept(inside, noise + spans + 1)
