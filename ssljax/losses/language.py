"""Language: what comes next, what was masked and how it is masked, and what was replaced."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.errors import InputError
from ssljax.sharding import over_batch


def token_nll(logits: Array, targets: Array) -> Array:
    """-log p of each token of `targets` (...), whole numbers, by `logits` (..., v), in nats."""
    flat = optax.softmax_cross_entropy_with_integer_labels(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    )
    return flat.reshape(targets.shape)


def next_token_loss(logits: Array, tokens: Array) -> Array:
    """The mean of -log p(x_{i+1} | x_1 ... x_i): `logits` (n, t, v) are of what follows `tokens` (n, t + 1), in turn.

    Bengio et al., 2003 (JMLR 3, section 2); perplexity is its exponential.
    """
    if logits.shape[:2] != (len(tokens), tokens.shape[1] - 1):
        raise InputError(
            f"Logits {logits.shape} must be one place shorter than the tokens {tokens.shape}."
        )
    return token_nll(logits, tokens[:, 1:]).mean()


class MaskedTokens(NamedTuple):
    """Rows of tokens with some hidden, (n, t), and `at` which k places what is to be told, (n, k) thrice."""

    tokens: Array
    at: Array
    targets: Array  # What was there.
    weight: Array  # 1, or 0 in a row with fewer to tell.


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
    """Chooses `share` of each row's tokens (n, t) to be told: of them the part `masked` become `mask`, half of the others
    a random token, and the rest stay. Devlin et al., 2018, arXiv:1810.04805, section 3.1, with 80, 10 and 10 %.

    Tokens below `special` ([PAD], [CLS] ...) are neither chosen nor drawn. As many are chosen as round(share · those of
    the row that may be), at least 1. With `starts`, (vocabulary,), which says what tokens begin a word, whole words are
    chosen (the authors' later models), in a random order as long as they fit into that number; each token's fate is its
    own. InputError unless some token may be chosen and some drawn.
    """
    n, t = tokens.shape
    if not 0 < share < 1 or not special < vocabulary:
        raise InputError(
            f"The share of masked tokens must be between 0 and 1, not {share}, and of {vocabulary} tokens "
            f"some must be no special ones, of which there are {special}."
        )
    k = max(1, round(share * t))
    k1, k2, k3 = jax.random.split(key, 3)
    may = tokens >= special
    budget = jnp.maximum(1, jnp.round(share * may.sum(1, keepdims=True))) * may.any(
        1, keepdims=True
    )
    lot = over_batch(jax.random.uniform(k1, (n, t)))
    if starts is not None:
        word = jnp.cumsum(
            jnp.asarray(starts)[tokens] | ~may, axis=1
        )  # A special token is a word of its own.
        lot = jnp.take_along_axis(lot, word % t, axis=1)
    at = jnp.argsort(jnp.where(may, lot, 2.0), axis=1, stable=True)[:, :k]
    weight = (jnp.arange(k) < budget) & jnp.take_along_axis(may, at, axis=1)
    if starts is not None:  # The last word, if not all of it was taken, is left out.
        mine = jnp.take_along_axis(word, at, axis=1)
        whole = jax.vmap(lambda w, m: (w[None] == m[:, None]).sum(1))(
            jnp.where(may, word, -1), mine
        )
        taken = ((mine[:, :, None] == mine[:, None]) & weight[:, None]).sum(2)
        weight = weight & (taken == whole)
    targets = jnp.take_along_axis(tokens, at, axis=1)
    fate = over_batch(jax.random.uniform(k2, (n, k)))
    other = over_batch(jax.random.randint(k3, (n, k), special, vocabulary, tokens.dtype))
    new = jnp.where(fate < masked, mask, jnp.where(fate < (1 + masked) / 2, other, targets))
    return MaskedTokens(
        put_at(tokens, at, jnp.where(weight, new, targets)), at, targets, weight.astype(jnp.float32)
    )


def masked_lm_loss(logits: Array, targets: Array, weight: Array) -> Array:
    """The mean of -log p(target) over the places with `weight`: `logits` (n, k, v), `targets` and `weight` (n, k)."""
    return jnp.sum(weight * token_nll(logits, targets)) / jnp.maximum(weight.sum(), 1)


def replace_tokens(key: Array, logits: Array, masked: MaskedTokens) -> tuple[Array, Array]:
    """The rows (n, t) with a draw from the generator's `logits` (n, k, v) at each place to be told, and where they are
    not what was there. Clark et al., 2020, arXiv:2003.10555, section 2."""
    noise = over_batch(jax.random.gumbel(key, logits.shape))
    drawn = jnp.argmax(jax.lax.stop_gradient(logits) + noise, axis=-1).astype(masked.targets.dtype)
    told = masked.weight > 0
    tokens = put_at(masked.tokens, masked.at, jnp.where(told, drawn, masked.targets))
    original = put_at(masked.tokens, masked.at, masked.targets)
    return tokens, tokens != original


def replaced_detection_loss(logits: Array, replaced: Array) -> Array:
    """The mean of -log p(replaced or not) over all tokens, (n, t) both.

    Clark et al., 2020, arXiv:2003.10555, section 2, where L_Disc is the sum over a row.
    """
    return optax.sigmoid_binary_cross_entropy(logits, replaced.astype(logits.dtype)).mean()


def put_at(tokens: Array, at: Array, new: Array) -> Array:
    """`tokens` (n, t) with `new` (n, k) at the places `at` (n, k), which differ within a row."""
    return jax.vmap(lambda row, i, x: row.at[i].set(x))(tokens, at, new)


def word_starts(tokens: list[str], prefix: str = "##") -> np.ndarray:
    """Which tokens of a WordPiece vocabulary begin a word: those without the `prefix` of those that go on."""
    return np.array([not token.startswith(prefix) for token in tokens])
