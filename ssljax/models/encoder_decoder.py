"""Encoder and decoder of text to text, and how its answers are decoded.

Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, section 3.
"""

from typing import Any

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.models.dense import PRODUCT
from ssljax.models.transformer import (
    Cache,
    check_sampling,
    empty_cache,
    sample_token,
    Transformer,
)

PAD, END = 0, 1  # Tokens of texts: what a decoder begins with, as in T5, and what it ends with.
NEVER = -1e9  # A log-probability.


class EncoderDecoder(nn.Module):
    """Tokens (n, s) and (n, t), padded with -1, to logits (n, t, vocabulary) of the latter.

    In the form of T5 1.1 (Raffel et al., 2020, https://arxiv.org/abs/1910.10683): both sides embed
    tokens by one table, and a layer of its own predicts them. Each target token is predicted from
    the input and from the target tokens before it.
    """

    net: Transformer
    """The form of both sides."""
    vocabulary: int
    """Number of tokens."""

    def setup(self) -> None:
        normal, dtype = nn.initializers.normal(0.02), self.net.dtype
        self.embed = nn.Embed(self.vocabulary, self.net.width, embedding_init=normal)
        self.encoder, self.decoder = (self.net.clone(parent=None) for _ in range(2))
        self.head = nn.Dense(
            self.vocabulary, use_bias=False, kernel_init=normal, dtype=dtype, **PRODUCT
        )

    def __call__(self, inputs: Array, targets: Array, train: bool = False) -> Array:
        memory = self.encode(inputs, train)
        before = jnp.pad(jnp.maximum(targets, 0)[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)
        h, _ = self.decoder(
            self.embed(before), causal=True, train=train, memory=memory, memory_mask=inputs >= 0
        )
        return self.logits(h)

    def encode(self, inputs: Array, train: bool = False) -> Array:
        """Features (n, s, width) of the input."""
        return self.encoder(self.embed(jnp.maximum(inputs, 0)), mask=inputs >= 0, train=train)[0]

    def pooled(self, inputs: Array) -> Array:
        """The mean feature (n, width) of the tokens of each input."""
        mask = (inputs >= 0)[:, :, None]
        h = self.encode(inputs).astype(jnp.float32)
        return jnp.sum(h * mask, axis=1) / jnp.maximum(mask.sum(1), 1)

    def start(self, inputs: Array, length: int) -> tuple[Array, Cache]:
        """Logits (n, vocabulary) of the first target token, and a cache for `length` of them."""
        n = len(inputs)
        first = jnp.full((n, 1), PAD, jnp.int32)
        cache = empty_cache(self.net, n, length)
        return self._next(first, cache, 0, inputs >= 0, memory=self.encode(inputs))

    def extend(self, token: Array, cache: Cache, at: Array, mask: Array) -> tuple[Array, Cache]:
        """Logits (n, vocabulary) of what follows `token` (n,), which is before place `at`.

        `mask`, (n, s), has the places of the input that hold tokens.
        """
        return self._next(token[:, None], cache, at, mask)

    def _next(
        self,
        tokens: Array,
        cache: Cache,
        at: Array | int,
        mask: Array,
        memory: Array | None = None,
    ) -> tuple[Array, Cache]:
        h, cache = self.decoder(
            self.embed(tokens), cache=cache, at=at, memory=memory, memory_mask=mask
        )
        return self.logits(h[:, -1]), cache

    def logits(self, h: Array) -> Array:
        """Features (..., width) to logits (..., vocabulary), float32."""
        flat = self.head(h.reshape(-1, h.shape[-1])).astype(jnp.float32)
        return flat.reshape(*h.shape[:-1], -1)


def decode(
    model: EncoderDecoder,
    params: Any,
    key: Array,
    inputs: Array,
    length: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Array:
    """Answers to `inputs` (n, s), up to `length` tokens each drawn given all before: (n, length).

    Call it jitted. By default each is the most likely token; else as `sample_token` draws. -1 from
    the end of an answer on. InputError for a length below 1 or beyond learned positions, and as
    from `check_sampling`.
    """
    check_sampling(temperature, top_k, top_p)
    _check_length(model, length)

    def draw(logits: Array, at: Array | int) -> Array:
        return sample_token(jax.random.fold_in(key, at), logits, temperature, top_k, top_p)

    def more(carry, at):
        token, cache = carry
        logits, cache = model.apply(params, token, cache, at, inputs >= 0, method="extend")
        return (draw(logits, at), cache), token

    logits, cache = model.apply(params, inputs, length, method="start")
    (last, _), tokens = jax.lax.scan(more, (draw(logits, 0), cache), jnp.arange(1, length))
    return _until_end(jnp.concatenate([tokens, last[None]]).T)


def beam_search(
    model: EncoderDecoder,
    params: Any,
    inputs: Array,
    length: int,
    beams: int = 4,
    penalty: float = 0.0,
) -> tuple[Array, Array]:
    """The answers to `inputs` (n, s) with the highest scores found, (n, length), and these, (n,).

    Call it jitted. The score of an answer is log p / ((5 + tokens) / 6)^penalty, its end counted:
    Wu et al., 2016, https://arxiv.org/abs/1609.08144, eq. 14 without coverage. At each place, the
    `beams` likeliest beginnings and the `beams` best answers that have ended are kept. An answer
    that has not ended after `length` tokens is given only where none has. -1 from the end on.
    InputError for a length or a number of beams below 1, and a length beyond learned positions.
    """
    _check_length(model, length)
    if beams < 1:
        raise InputError(f"A search needs at least 1 beam, not {beams}.")
    n, v = len(inputs), model.vocabulary
    row = jnp.arange(n)[:, None]
    spread = lambda x: jnp.repeat(x, beams, axis=0)
    mask = spread(inputs >= 0)
    logits, cache = model.apply(params, inputs, length, method="start")
    logits, cache = spread(logits), jax.tree.map(spread, cache)
    best = lambda score, k: jax.lax.top_k(score, k)

    def advance(logits: Array, at: Array | int, alive: tuple, ended: tuple):
        """Both sets with one token more, and the beam that each of the alive ones comes from."""
        logp, tokens = alive
        new = logp[:, :, None] + jax.nn.log_softmax(logits).reshape(n, beams, v)
        # Each beginning can end in one way: of twice as many continuations, enough go on. An end is
        # an answer if it is among the best `beams`: with one beam, if it is the likeliest.
        found, i = best(new.reshape(n, -1), min(2 * beams, beams * v))
        beam, token = i // v, i % v
        tokens = tokens[row, beam].at[:, :, at].set(token)
        ends = token == END
        answers = ends & (jnp.arange(ends.shape[1]) < beams)
        score = jnp.where(answers, found / ((6.0 + at) / 6) ** penalty, NEVER)
        score = jnp.concatenate([ended[0], score], axis=1)
        score, i = best(score, beams)
        ended = score, jnp.concatenate([ended[1], tokens], axis=1)[row, i]
        logp, i = best(jnp.where(ends, NEVER, found), beams)
        return (logp, tokens[row, i]), ended, beam[row, i]

    def more(carry, at):
        cache, alive, ended = carry
        last = alive[1][:, :, at - 1].reshape(-1)
        found: Any = model.apply(params, last, cache, at, mask, method="extend")
        logits, cache = found
        alive, ended, beam = advance(logits, at, alive, ended)
        return (_of_beams(cache, beam), alive, ended), None

    empty = jnp.full((n, beams, length), -1, jnp.int32)
    first = jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)  # All beams are one at the start.
    alive, ended = (jnp.tile(first, (n, 1)), empty), (jnp.full((n, beams), NEVER), empty)
    alive, ended, _ = advance(logits, 0, alive, ended)
    carry = cache, alive, ended
    (_, alive, ended), _ = jax.lax.scan(more, carry, jnp.arange(1, length))
    none = ended[0][:, 0] <= NEVER / 2
    score = jnp.where(none, alive[0][:, 0] / ((5.0 + length) / 6) ** penalty, ended[0][:, 0])
    tokens = jnp.where(none[:, None], alive[1][:, 0], ended[1][:, 0])
    return _until_end(tokens), score


def _of_beams(cache: Cache, beam: Array) -> Cache:
    """The cache of the beams `beam` (n, beams); the memory is that of the row for all of them."""
    n, beams = beam.shape
    at = (jnp.arange(n)[:, None] * beams + beam).reshape(-1)
    return [(k[at], v[at], *memory) for k, v, *memory in cache]


def _until_end(tokens: Array) -> Array:
    """Tokens (n, t), with -1 from the first END on."""
    return jnp.where(jnp.cumsum(tokens == END, axis=1) > 0, -1, tokens)


def _check_length(model: EncoderDecoder, length: int) -> None:
    net = model.net
    if length < 1 or (net.positions == "learned" and length > net.reach):
        most = f", and at most the {net.reach} whose positions are learned"
        raise InputError(
            f"An answer has at least 1 token{most if net.positions == 'learned' else ''}, not "
            f"{length}."
        )
