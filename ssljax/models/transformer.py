"""Transformers of tokens (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762), language models, their samples."""

from collections.abc import Sequence
import functools
import math
from typing import Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.models import Dtype
from ssljax.models.attention import attend, rotary
from ssljax.sharding import over_batch

Cache = Sequence[tuple[Array, Array]]  # Keys and values (n, room, heads, d) of each layer.


class Transformer(nn.Module):
    """Embedded tokens (n, t, width) to the same: pre-norm blocks and a last norm."""

    layers: int = 4
    """Blocks."""
    heads: int = 4
    """They divide the width."""
    width: int = 128
    """Channels of a token."""
    norm: Literal["rms", "layer"] = "rms"
    """layer: LayerNorm, and biases everywhere, as in BERT and GPT-2; rms: RMSNorm and none."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Where tokens are: turned into queries and keys, or added to the tokens."""
    unit: Literal["swiglu", "gelu"] = "swiglu"
    """Of the feed-forward layers, which have about the same number of weights with both."""
    reach: int = 512
    """The most tokens that learned positions tell apart."""
    dropout: float = 0.0
    """Of embedded tokens and of what each layer adds; attention weights are not dropped."""
    dtype: Dtype = "float32"
    """To compute in; parameters stay float32."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        causal: bool = False,
        mask: Array | None = None,
        train: bool = False,
        cache: Cache | None = None,
        at: Array | int = 0,
    ) -> tuple[Array, Cache]:
        """The last tokens, and keys and values of each layer.

        No token sees those where `mask`, (n, t), is false. With a `cache`, x is what comes from place `at` on: each
        token sees what is in the cache before it, and its own keys and values are put there.
        """
        n, t, d = x.shape
        if d % self.heads:
            raise InputError(
                f"{self.heads} heads can't share {d} channels evenly: choose a number that divides them."
            )
        if self.positions == "learned" and t > self.reach:
            raise InputError(
                f"Learned positions reach {self.reach} tokens, not {t}: choose --reach {t} or more."
            )
        bias = self.norm == "layer"
        norm = functools.partial(
            nn.LayerNorm if bias else nn.RMSNorm, epsilon=1e-6, dtype=self.dtype
        )
        normal = nn.initializers.normal
        dense = lambda size, name, scale=1.0: nn.Dense(
            size, use_bias=bias, dtype=self.dtype, kernel_init=normal(0.02 * scale), name=name
        )
        last = 1 / math.sqrt(
            2 * self.layers
        )  # So that the sum over layers has one layer's variance, as in GPT-2.
        drop = functools.partial(self.drop, train=train)
        place = at + jnp.arange(t)
        if cache is not None:
            causal, mask = False, (jnp.arange(cache[0][0].shape[1]) <= place[:, None])[None, None]
        elif mask is not None:
            mask = mask[:, None, None, :]

        x = x.astype(self.dtype)
        if self.positions == "learned":
            table = self.param("positions", normal(0.02), (self.reach, d))
            x = x + table[place].astype(x.dtype)
        x, kept = (
            drop(x.reshape(n * t, d)),
            [],
        )  # Flat between attentions: XLA on a CPU is far slower on more axes.
        for i in range(1, self.layers + 1):
            y = dense(3 * d, f"qkv{i}")(norm(name=f"norm{i}a")(x)).reshape(n, t, 3, self.heads, -1)
            q, k, v = (y[:, :, j] for j in range(3))
            if self.positions == "rotary":
                q, k = rotary(q, place), rotary(k, place)
            if cache is not None:
                k, v = (
                    jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=1)
                    for old, new in zip(cache[i - 1], (k, v))
                )
            kept.append((k, v))
            y = attend(q, k, v, causal, mask).reshape(n * t, d)
            x = x + drop(dense(d, f"out{i}", last)(y))
            y = norm(name=f"norm{i}b")(x)
            if self.unit == "swiglu":  # Shazeer, 2020, arXiv:2002.05202, eq. 6.
                hidden = -(-8 * d // 96) * 32
                y = nn.silu(dense(hidden, f"gate{i}")(y)) * dense(hidden, f"up{i}")(y)
            else:
                y = nn.gelu(dense(4 * d, f"up{i}")(y))
            x = x + drop(dense(d, f"down{i}", last)(y))
        return norm(name="norm")(x).reshape(n, t, d), kept

    def drop(self, x: Array, train: bool) -> Array:
        if not train or not self.dropout:
            return x
        keep = over_batch(jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, x.shape))
        return jnp.where(keep, x / (1 - self.dropout), 0)


class LanguageModel(nn.Module):
    """Tokens (n, t), whole numbers below `vocabulary`, to logits (n, t, vocabulary): one table embeds and predicts.

    Press and Wolf, 2016, arXiv:1608.05859. Where the table's `size` is not the net's width, a linear layer on either
    side fits them together.
    """

    net: Transformer
    vocabulary: int
    causal: bool = True
    size: int = 0

    def setup(self) -> None:
        size, dtype = self.size or self.net.width, self.net.dtype
        self.embed = nn.Embed(
            self.vocabulary, size, embedding_init=nn.initializers.normal(0.02), dtype=dtype
        )
        if size != self.net.width:
            self.into, self.onto = (
                nn.Dense(self.net.width, dtype=dtype),
                nn.Dense(size, dtype=dtype),
            )

    def __call__(self, tokens: Array, mask: Array | None = None, train: bool = False) -> Array:
        return self.logits(self.hidden(tokens, mask, train))

    def hidden(self, tokens: Array, mask: Array | None = None, train: bool = False) -> Array:
        """What is known of each token, (n, t, width); nothing of those where `mask`, (n, t), is false."""
        return self.net(self.embedded(tokens), self.causal, mask, train)[0]

    def logits(self, h: Array) -> Array:
        """(..., width) to (..., vocabulary), float32."""
        h = self.onto(h) if self.embed.features != self.net.width else h
        return (
            self.embed.attend(h.reshape(-1, h.shape[-1]))
            .reshape(*h.shape[:-1], -1)
            .astype(jnp.float32)
        )

    def logits_at(self, tokens: Array, at: Array, train: bool = False) -> Array:
        """Logits (n, k, vocabulary) at the places `at` (n, k) alone: all of them would cost more than the net."""
        return self.logits(
            jnp.take_along_axis(self.hidden(tokens, train=train), at[:, :, None], axis=1)
        )

    def pooled(self, rows: Array, train: bool = False) -> Array:
        """The mean (n, width) over the tokens of each of `rows` (n, t), which are -1 where there is none."""
        mask = rows >= 0
        h = self.hidden(jnp.maximum(rows, 0), mask, train).astype(jnp.float32)
        return jnp.sum(h * mask[:, :, None], axis=1) / jnp.maximum(mask.sum(1, keepdims=True), 1)

    def extend(self, tokens: Array, cache: Cache, at: Array | int) -> tuple[Array, Cache]:
        """Logits (n, vocabulary) of what follows `tokens` (n, t), the first at place `at`, and the cache with them."""
        h, cache = self.net(self.embedded(tokens), cache=cache, at=at)
        return self.logits(h[:, -1]), cache

    def embedded(self, tokens: Array) -> Array:
        x = self.embed(tokens)
        return self.into(x) if self.embed.features != self.net.width else x


def empty_cache(net: Transformer, n: int, room: int) -> Cache:
    """For `n` texts of up to `room` tokens."""
    zeros = jnp.zeros((n, room, net.heads, net.width // net.heads), net.dtype)
    return [(zeros, zeros)] * net.layers


def generate(
    model: LanguageModel,
    params: dict,
    key: Array,
    prompt: Array,
    length: int,
    window: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Array:
    """`length` tokens that go on from `prompt` (n, p), each drawn given those before it: (n, length). Call it jitted.

    The model never sees more than `window` tokens, as in training: when so many are there, it goes on from the last
    half of them. InputError where the prompt is empty or leaves no room in the window, or the model is not causal.
    """
    n, p = prompt.shape
    if not 0 < p < window or not model.causal:
        raise InputError(
            f"A causal model with a window of {window} tokens goes on from 1 to {window - 1}, not {p}."
        )

    def fill(key: Array, seen: Array) -> Array:
        """The tokens that fill the window after `seen`."""
        start = seen.shape[1]
        logits, cache = model.apply(
            params, seen, empty_cache(model.net, n, window), 0, method="extend"
        )

        def draw(logits, at):
            return sample_token(jax.random.fold_in(key, at), logits, temperature, top_k, top_p)

        def more(carry, at):
            token, cache = carry
            logits, cache = model.apply(params, token[:, None], cache, at, method="extend")
            return (draw(logits, at + 1), cache), token

        (last, _), tokens = jax.lax.scan(
            more, (draw(logits, start), cache), jnp.arange(start, window - 1)
        )
        return jnp.concatenate([tokens, last[None]]).T

    keep = max(1, window // 2)
    first = fill(jax.random.fold_in(key, 0), prompt)
    context = jnp.concatenate([prompt, first], axis=1)[:, -keep:]

    def turn(context, i):
        new = fill(jax.random.fold_in(key, i), context)
        return jnp.concatenate([context, new], axis=1)[:, -keep:], new

    turns = max(0, -(-(length - window + p) // (window - keep)))
    rest = jax.lax.scan(turn, context, jnp.arange(1, turns + 1))[1]
    return jnp.concatenate([first, rest.swapaxes(0, 1).reshape(n, -1)], axis=1)[:, :length]


def sample_token(
    key: Array, logits: Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Array:
    """A token (n,) of each row of `logits` (n, v) over `temperature`, among `sampling_mask`; the likeliest if it is 0."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    return jax.random.categorical(key, jnp.where(sampling_mask(logits, top_k, top_p), logits, -1e9))


def sampling_mask(logits: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Which of `logits` (n, v) may be drawn: the `top_k` largest, all if it is 0, and of these the fewest, the largest
    first, that have the share `top_p` of what all these have (Holtzman et al., 2019, arXiv:1904.09751, eq. 2 and 3)."""
    if top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"top_k must be at least 0 and top_p in (0, 1], not {top_k} and {top_p}.")
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    keep = np.arange(logits.shape[-1]) < (top_k or logits.shape[-1])
    if top_p < 1:
        p = jax.nn.softmax(jnp.where(keep, ranked, -1e9), axis=-1)
        keep = keep & (jnp.cumsum(p, axis=-1) - p < top_p)
    return jnp.take_along_axis(
        jnp.broadcast_to(keep, logits.shape), jnp.argsort(order, axis=-1), axis=-1
    )
