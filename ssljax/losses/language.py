"""Language-model losses: the next token, masked tokens and how they are chosen, replaced tokens."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import optax

from ssljax.accumulation import mean_over_parts
from ssljax.errors import InputError
from ssljax.sharding import over_batch


def token_nll(logits: Array, targets: Array) -> Array:
    """-log p of each token of `targets` (...), whole numbers, by `logits` (..., v), in nats."""
    flat = optax.softmax_cross_entropy_with_integer_labels(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    )
    return flat.reshape(targets.shape)


def next_token_loss(logits: Array, tokens: Array) -> Array:
    """The mean of -log p(x_{i+1} | x_1 ... x_i), in nats; perplexity is its exponential.

    `logits` (n, t, v) at place i predict token i + 1 of `tokens` (n, t + 1). InputError unless the
    shapes fit. Bengio et al., 2003, JMLR 3, section 2.
    """
    if logits.shape[:2] != (len(tokens), tokens.shape[1] - 1):
        raise InputError(
            f"Logits {logits.shape} must be one place shorter than the tokens {tokens.shape}."
        )
    return token_nll(logits, tokens[:, 1:]).mean()


class MaskedTokens(NamedTuple):
    """Rows with some tokens masked, and the positions, targets and weights, each (n, k), to
    predict."""

    tokens: Array  # (n, t), with the masked tokens replaced.
    at: Array  # The k positions of each row.
    targets: Array  # The original tokens there.
    weight: Array  # 1; 0 for positions beyond a row's number of tokens to predict.


def mask_tokens(
    key: Array,
    tokens: Array,
    vocabulary: int,
    mask: int,
    special: int,
    share: float = 0.15,
    starts: Array | None = None,
    masked: float = 0.8,
) -> MaskedTokens:
    """Chooses `share` of the tokens of each row (n, t) to predict, and masks them.

    Of the chosen tokens the part `masked` becomes `mask`, half of the others a random token, and
    the rest stay: 80, 10 and 10 % in Devlin et al., 2018, arXiv:1810.04805, section 3.1. A row with
    m tokens from `special` on has round(share · m) chosen, at least 1; tokens below it ([PAD],
    [CLS], ...) are neither chosen nor drawn.

    With `starts`, (vocabulary,), true for tokens that begin a word, whole words are chosen, as in
    the authors' later models: words are visited in a random order, and each that still fits into
    the number is taken. Each token's replacement is drawn by itself. InputError unless 0 < share <
    1 and some token is not special.
    """
    n, t = tokens.shape
    if not 0 < share < 1 or not special < vocabulary:
        raise InputError(
            f"The share of masked tokens must be between 0 and 1, not {share}, and of {vocabulary} "
            f"tokens some must be no special ones, of which there are {special}."
        )
    k = max(1, round(share * t))
    k1, k2, k3 = jax.random.split(key, 3)
    may = tokens >= special
    wanted = jnp.maximum(1, jnp.round(share * may.sum(1)).astype(jnp.int32)) * may.any(1)
    lot = over_batch(jax.random.uniform(k1, (n, t)))
    if starts is None:
        at = jnp.argsort(jnp.where(may, lot, 2.0), axis=1, stable=True)[:, :k]
        weight = (jnp.arange(k) < wanted[:, None]) & jnp.take_along_axis(may, at, axis=1)
    else:
        chosen = _whole_words(lot, jnp.asarray(starts)[tokens], may, wanted)
        at = jnp.argsort(~chosen, axis=1, stable=True)[:, :k]
        weight = jnp.take_along_axis(chosen, at, axis=1)
    targets = jnp.take_along_axis(tokens, at, axis=1)
    fate = over_batch(jax.random.uniform(k2, (n, k)))
    other = over_batch(jax.random.randint(k3, (n, k), special, vocabulary, tokens.dtype))
    new = jnp.where(fate < masked, mask, jnp.where(fate < (1 + masked) / 2, other, targets))
    new = put_at(tokens, at, jnp.where(weight, new, targets))
    return MaskedTokens(new, at, targets, weight.astype(jnp.float32))


def _whole_words(lot: Array, starts: Array, may: Array, wanted: Array) -> Array:
    """The tokens (n, t) of words that are taken in a random order as long as they fit into
    `wanted`.

    The number of tokens left to take, `room`, never grows, so a word longer than it can be dropped
    for good, and of the words that remain all up to the first that doesn't fit are taken at once.
    Each round takes a word or more, and the next one's room is less than the first word left: there
    are about as many rounds as a long word has tokens, where visiting words one by one takes t.
    """
    n, t = lot.shape
    place = jnp.broadcast_to(jnp.arange(t), (n, t))
    after_special = jnp.pad(~may[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    begins = starts | ~may | after_special
    first = jax.lax.cummax(jnp.where(begins, place, 0), axis=1)  # Place of the word's first token.
    next_begin = jnp.pad(jnp.where(begins, place, t)[:, 1:], ((0, 0), (0, 1)), constant_values=t)
    end = jax.lax.cummin(next_begin, axis=1, reverse=True)
    # Sorted by the lot of the word, and within a word by place: words stay whole.
    order = jnp.argsort(jnp.take_along_axis(lot, first, axis=1), axis=1, stable=True)
    sort = lambda x: jnp.take_along_axis(x, order, axis=1)
    length = sort(end - first)  # Tokens in the word,
    behind = sort(end - 1 - place)  # and after this one in it.

    def left(carry):
        _, may, room = carry
        return may & (length <= room[:, None])

    def more(carry):
        taken, _, room = carry
        may = left(carry)
        new = may & (jnp.cumsum(may, axis=1) + behind <= room[:, None])
        return taken | new, may & ~new, room - new.sum(1)

    start = jnp.zeros((n, t), bool), sort(may), wanted
    taken, *_ = jax.lax.while_loop(lambda carry: left(carry).any(), more, start)
    return jnp.take_along_axis(taken, jnp.argsort(order, axis=1), axis=1)


def masked_lm_loss(logits: Array, targets: Array, weight: Array) -> Array:
    """The mean of -log p(target), in nats, over positions with `weight`; 0 where there are none.

    `logits` (n, k, v), `targets` and `weight` (n, k): Devlin et al., 2018, section 3.1.
    """
    count = mean_over_parts(jnp.sum(weight, dtype=jnp.float32))
    return jnp.sum(weight * token_nll(logits, targets)) / jnp.where(count > 0, count, 1)


def replace_tokens(key: Array, logits: Array, masked: MaskedTokens) -> tuple[Array, Array]:
    """The rows (n, t) with masked tokens drawn from the generator's `logits` (n, k, v), and where
    they differ from the original rows. Clark et al., 2020, arXiv:2003.10555, section 2."""
    noise = over_batch(jax.random.gumbel(key, logits.shape))
    drawn = jnp.argmax(jax.lax.stop_gradient(logits) + noise, axis=-1).astype(masked.targets.dtype)
    drawn = jnp.where(masked.weight > 0, drawn, masked.targets)
    tokens = put_at(masked.tokens, masked.at, drawn)
    original = put_at(masked.tokens, masked.at, masked.targets)
    return tokens, tokens != original


def replaced_detection_loss(logits: Array, replaced: Array) -> Array:
    """The mean of -log p(replaced or not) over all tokens; `logits` and `replaced` are (n, t).

    Clark et al., 2020, arXiv:2003.10555, section 2, where L_Disc is the sum over a row.
    """
    return optax.sigmoid_binary_cross_entropy(logits, replaced.astype(logits.dtype)).mean()


def put_at(tokens: Array, at: Array, new: Array) -> Array:
    """`tokens` (n, t) with `new` (n, k) at the positions `at` (n, k), distinct within a row."""
    return jax.vmap(lambda row, i, x: row.at[i].set(x))(tokens, at, new)
