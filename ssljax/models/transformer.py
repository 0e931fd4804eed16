"""Transformers of tokens, language models and their samples.

Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.
"""

from collections.abc import Sequence
import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.errors import InputError
from ssljax.models import Dtype, recomputed, Remat
from ssljax.models.attention import attend, BUCKETS, distance_buckets, Projections, rotary
from ssljax.models.dense import gelu, PRODUCT, product
from ssljax.models.positions import ConvolutionalPositions
from ssljax.ranges import Count, CountOrZero, FractionBelowOne, NotNegative
from ssljax.sharding import over_batch

# Of each layer the keys and values (n, room, heads, d) of its tokens, and in a decoder those of the
# memory, (n, s, heads, d).
Cache = Sequence[tuple[Array, ...]]


class Transformer(nn.Module):
    """Embedded tokens (n, t, width) to features of the same shape.

    By default in the form of Llama (Touvron et al., 2023, arXiv:2302.13971). GPT-2's is norm
    "layer", positions "learned", unit "gelu-tanh". BERT's is norm "layer", positions "learned",
    unit "gelu", blocks "post-norm", segments 2. T5's (version 1.1) is positions "relative", unit
    "geglu". Weights can be exchanged with the published nets.
    """

    layers: Count = 4
    """Number of blocks."""
    heads: Count = 4
    """Attention heads; the width must be a multiple."""
    width: Count = 128
    """Channels of a token."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm without biases anywhere, or LayerNorm with biases everywhere, as in BERT and
    GPT-2."""
    positions: Literal["rotary", "learned", "relative", "convolutional"] = "rotary"
    """Rotations of queries and keys, learned vectors added to the embedded tokens, a learned bias
    of attention for each distance, as in T5, or a convolution over tokens, as in wav2vec 2.0."""
    unit: Literal["swiglu", "gelu", "gelu-tanh", "geglu"] = "swiglu"
    """Feed-forward unit: SwiGLU, GELU as in BERT, its tanh approximation as in GPT-2, or that with
    gates as in T5."""
    reach: Count = 512
    """Number of learned positions, the most tokens of a row; or the tokens that convolutional ones
    see at once."""
    dropout: FractionBelowOne = 0.0
    """Dropout of embedded tokens and of each layer's output; attention weights are not dropped."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    blocks: Literal["pre-norm", "post-norm"] = "pre-norm"
    """Norms before each layer and at the end; or after each layer and the embedding, as in BERT."""
    segments: CountOrZero = 0
    """Learned vectors for the segments of a row, such as a pair of sentences: 2 in BERT."""
    epsilon: NotNegative = 0.0
    """ε in the norms; 0 for 1e-6 with rms, 1e-5 with layer (GPT-2), 1e-12 with post-norm (BERT)."""
    head_width: CountOrZero = 0
    """Channels of a head; 0 for the width divided by the heads."""
    hidden: CountOrZero = 0
    """Channels in the feed-forward unit; 0 for 4 times the width, or with gates 8/3 of it, rounded
    up to a multiple of 32."""
    remat: Remat = "none"
    """Compute blocks a second time for the gradient, which takes less memory and more time: whole
    blocks, or all but their matrix products."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        causal: bool = False,
        mask: Array | None = None,
        train: bool = False,
        cache: Cache | None = None,
        at: Array | int = 0,
        segment: Array | None = None,
        memory: Array | None = None,
        memory_mask: Array | None = None,
    ) -> tuple[Array, Cache]:
        """Features (n, t, width), and the keys and values of each layer.

        Tokens where `mask`, (n, t), is false are not attended to. `segment`, (n, t), has the number
        of each token's segment, by default 0. With a `cache`, x begins at position `at`: each token
        attends to what is in the cache before it, and its keys and values are added there.

        With `memory`, (n, s, width), each layer also attends to it, after its own tokens, where
        `memory_mask`, (n, s), is true: the decoder of Vaswani et al., section 3.1. The keys and
        values of the memory are in the cache that is returned; given that cache they are not
        computed again, and `memory` is left out.
        """
        n, t, d = x.shape
        if not self.head_width and d % self.heads:
            raise InputError(
                f"{self.heads} heads can't share {d} channels evenly: choose a divisor of {d}."
            )
        if self.positions == "learned" and t > self.reach:
            raise InputError(
                f"Learned positions reach {self.reach} tokens, not {t}: choose --reach {t} or more."
            )
        if self.positions == "convolutional" and (causal or cache is not None):
            raise InputError(
                "Convolutional positions see the tokens that follow: choose others for a net that "
                "is not to, such as --positions rotary."
            )
        post, normal = self.blocks == "post-norm", nn.initializers.normal
        inner = self.heads * (self.head_width or d // self.heads)
        across = memory is not None or (cache is not None and len(cache[0]) > 2)
        same = {"use_bias": self.norm == "layer", "dtype": self.dtype, **PRODUCT}
        dense = lambda size, name, scale=1.0: nn.Dense(
            size, kernel_init=normal(0.02 * scale), name=name, **same
        )
        project = lambda name, parts: Projections(
            parts * inner,
            kernel_init=normal(0.02),
            name=name,
            parts=parts,
            heads=self.heads,
            **same,
        )
        # Before norms, the sum over layers then has one layer's variance, as in GPT-2.
        last = 1 if post else 1 / math.sqrt((3 if across else 2) * self.layers)
        place = at + jnp.arange(t)
        first: Any = cache and cache[0]
        keys = jnp.arange(t if cache is None else first[0].shape[1])  # Their places.
        bias = None
        if self.positions == "relative":
            table = self.param("distances", normal(0.02), (BUCKETS, self.heads))
            bucket = distance_buckets(keys - place[:, None], not causal and cache is None)
            bias = table[bucket].transpose(2, 0, 1)[None]
        if cache is not None:
            causal, mask = False, (keys <= place[:, None])[None, None]
        elif mask is not None:
            mask = mask[:, None, None, :]
        if memory is not None:
            memory = memory.astype(self.dtype).reshape(-1, memory.shape[-1])
        if memory_mask is not None:
            memory_mask = memory_mask[:, None, None, :]

        def block(net, x, old: Any, memory, mask, bias, memory_mask, i):
            y = x if post else norm_of(net, f"norm{i}a")(x)
            y = project(f"qkv{i}", 3)(y).reshape(n, t, 3, net.heads, -1)
            q, k, v = (y[:, :, j] for j in range(3))
            if net.positions == "rotary":
                q, k = rotary(q, place), rotary(k, place)
            if old is not None:
                k, v = (
                    jax.lax.dynamic_update_slice_in_dim(room, new.astype(room.dtype), at, axis=1)
                    for room, new in zip(old, (k, v))
                )
            new = (k, v)
            y = attend(q, k, v, causal, mask, bias).reshape(n * t, inner)
            x = x + net.drop(dense(d, f"out{i}", last)(y), train)
            x = norm_of(net, f"norm{i}a")(x) if post else x
            if across:
                y = x if post else norm_of(net, f"norm{i}c")(x)
                q = project(f"q{i}", 1)(y).reshape(n, t, net.heads, -1)
                if memory is None:
                    k, v = old[2:]  # pyright: ignore[reportOptionalSubscript]
                else:
                    size = (2, net.heads, inner // net.heads)
                    y = project(f"kv{i}", 2)(memory).reshape(n, -1, *size)
                    k, v = y[:, :, 0], y[:, :, 1]
                new = *new, k, v
                y = attend(q, k, v, mask=memory_mask).reshape(n * t, inner)
                x = x + net.drop(dense(d, f"cross{i}", last)(y), train)
                x = norm_of(net, f"norm{i}c")(x) if post else x
            y = x if post else norm_of(net, f"norm{i}b")(x)
            if net.unit in ("swiglu", "geglu"):  # Shazeer, 2020, arXiv:2002.05202, eq. 6.
                hidden = net.hidden or -(-8 * d // 96) * 32
                gate = dense(hidden, f"gate{i}")(y)
                gate = nn.silu(gate) if net.unit == "swiglu" else nn.gelu(gate)
                y = gate * dense(hidden, f"up{i}")(y)
            else:
                y = dense(net.hidden or 4 * d, f"up{i}")(y)
                y = gelu(y) if net.unit == "gelu" else nn.gelu(y)
            x = x + net.drop(dense(d, f"down{i}", last)(y), train)
            x = norm_of(net, f"norm{i}b")(x) if post else x
            return x, new

        x = x.astype(self.dtype)
        if self.positions == "learned":
            table = self.param("positions", normal(0.02), (self.reach, d))
            x = x + table[place].astype(x.dtype)
        if self.positions == "convolutional":
            x = ConvolutionalPositions(self.reach, self.dtype, name="positions")(x)
        if self.segments:
            table = self.param("segments", normal(0.02), (self.segments, d)).astype(x.dtype)
            x = x + (table[0] if segment is None else table[segment])
        x, kept = x.reshape(n * t, d), []  # Flat: XLA on a CPU is far slower on more axes.
        x = self.drop(norm_of(self, "embed_norm")(x) if post else x, train)
        for i in range(1, self.layers + 1):
            old = None if cache is None else cache[i - 1]
            one = recomputed(functools.partial(block, i=i), self, self.remat)
            x, new = one(x, old, memory, mask, bias, memory_mask)
            kept.append(new)
        x = x if post else norm_of(self, "norm")(x)
        return x.reshape(n, t, d), kept

    def drop(self, x: Array, train: bool) -> Array:
        """Dropout in training."""
        if not train or not self.dropout:
            return x
        keep = over_batch(jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, x.shape))
        return jnp.where(keep, x / (1 - self.dropout), 0)


def norm_of(net: Transformer, name: str | None = None) -> nn.Module:
    """A new norm as `net` has them."""
    usual = 1e-6 if net.norm == "rms" else 1e-12 if net.blocks == "post-norm" else 1e-5
    kind = nn.RMSNorm if net.norm == "rms" else nn.LayerNorm
    return kind(epsilon=net.epsilon or usual, dtype=net.dtype, name=name)


class LanguageModel(nn.Module):
    """Tokens (n, t), integers below `vocabulary`, to logits (n, t, vocabulary).

    One table embeds and predicts: Press and Wolf, 2016, arXiv:1608.05859. A linear layer on either
    side fits a table of `size` channels to a net of another width. Where the net is not causal and
    has post-norm blocks, the head is BERT's: a dense layer, GELU and a norm before the table, and a
    bias.
    """

    net: Transformer
    """Transformer that computes the features."""
    vocabulary: int
    """Number of tokens."""
    causal: bool = True
    """Whether a token attends only to those before it."""
    size: int = 0
    """Channels of the table; 0 for the net's width."""

    def setup(self) -> None:
        size, dtype, normal = self.size or self.net.width, self.net.dtype, nn.initializers.normal
        self.embed = nn.Embed(self.vocabulary, size, embedding_init=normal(0.02), dtype=dtype)
        if size != self.net.width:
            self.into = nn.Dense(self.net.width, dtype=dtype, **PRODUCT)
        if self.transforms:
            self.transform = nn.Dense(size, dtype=dtype, kernel_init=normal(0.02), **PRODUCT)
            self.transform_norm = norm_of(self.net)
            self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        elif size != self.net.width:
            self.onto = nn.Dense(size, dtype=dtype, **PRODUCT)

    @property
    def transforms(self) -> bool:
        """Whether the head is BERT's."""
        return not self.causal and self.net.blocks == "post-norm"

    def __call__(
        self,
        tokens: Array,
        mask: Array | None = None,
        train: bool = False,
        segment: Array | None = None,
    ) -> Array:
        return self.logits(self.hidden(tokens, mask, train, segment))

    def hidden(
        self,
        tokens: Array,
        mask: Array | None = None,
        train: bool = False,
        segment: Array | None = None,
    ) -> Array:
        """Features (n, t, width); tokens where `mask`, (n, t), is false are not attended to."""
        x = self.embedded(tokens)
        return self.net(x, self.causal, mask, train, segment=segment)[0]

    def logits(self, h: Array) -> Array:
        """Features (..., width) to logits (..., vocabulary), float32."""
        h, shape = h.reshape(-1, h.shape[-1]), h.shape[:-1]
        if self.transforms:
            h = self.transform_norm(nn.gelu(self.transform(h), approximate=False))
        elif self.embed.features != self.net.width:
            h = self.onto(h)
        h, table = (a.astype(self.net.dtype) for a in (h, self.embed.embedding))
        y = product(h, table.T, (((1,), (0,)), ((), ()))).astype(jnp.float32)
        return (y + self.bias if self.transforms else y).reshape(*shape, -1)

    def logits_at(self, tokens: Array, at: Array, train: bool = False) -> Array:
        """Logits (n, k, vocabulary) at the positions `at` (n, k), cheaper than those at all."""
        h = self.hidden(tokens, train=train)
        return self.logits(jnp.take_along_axis(h, at[:, :, None], axis=1))

    def pooled(self, rows: Array, train: bool = False) -> Array:
        """The mean feature (n, width) of each of `rows` (n, t), whose padding is -1."""
        mask = rows >= 0
        h = self.hidden(jnp.maximum(rows, 0), mask, train).astype(jnp.float32)
        return jnp.sum(h * mask[:, :, None], axis=1) / jnp.maximum(mask.sum(1, keepdims=True), 1)

    def extend(self, tokens: Array, cache: Cache, at: Array | int) -> tuple[Array, Cache]:
        """Logits (n, vocabulary) of what follows `tokens` (n, t) from position `at`, and the
        cache."""
        h, cache = self.net(self.embedded(tokens), cache=cache, at=at)
        return self.logits(h[:, -1]), cache

    def embedded(self, tokens: Array) -> Array:
        """Tokens (n, t) to the net's inputs (n, t, width)."""
        x = jnp.take(self.embed.embedding, tokens, axis=0)  # In float32, and so is its gradient.
        return self.into(x) if self.embed.features != self.net.width else x


def empty_cache(net: Transformer, n: int, room: int) -> Cache:
    """Zeros, for `n` texts of up to `room` tokens."""
    size = net.head_width or net.width // net.heads
    zeros = jnp.zeros((n, room, net.heads, size), net.dtype)
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
    """`length` tokens that continue `prompt` (n, p), each drawn given all before: (n, length).

    Call it jitted. The model never sees more than `window` tokens, as in training: at that many, it
    continues from the last half of them. InputError where the prompt is empty or leaves no room in
    the window, the model is not causal, and as from `check_sampling`.
    """
    check_sampling(temperature, top_k, top_p)
    n, p = prompt.shape
    if not 0 < p < window or not model.causal:
        raise InputError(
            f"A causal model with a window of {window} tokens continues 1 to {window - 1} tokens, "
            f"not {p}."
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
    """A token (n,) drawn from softmax(logits / temperature) of each row of `logits` (n, v).

    Among the tokens of `sampling_mask`; the most likely token at a temperature of 0. InputError as
    from `check_sampling`.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    return jax.random.categorical(key, jnp.where(sampling_mask(logits, top_k, top_p), logits, -1e9))


def sampling_mask(logits: Array, top_k: int = 0, top_p: float = 1.0) -> Array:
    """Which of `logits` (n, v) may be drawn, (n, v) bool.

    The `top_k` largest (all if it is 0), and of these the fewest, the largest first, that have the
    share `top_p` of their probability: Holtzman et al., 2019, arXiv:1904.09751, eq. 2 and 3.
    InputError as from `check_sampling`.
    """
    check_sampling(1.0, top_k, top_p)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    keep = np.arange(logits.shape[-1]) < (top_k or logits.shape[-1])
    if top_p < 1:
        p = jax.nn.softmax(jnp.where(keep, ranked, -1e9), axis=-1)
        keep = keep & (jnp.cumsum(p, axis=-1) - p < top_p)
    return jnp.take_along_axis(
        jnp.broadcast_to(keep, logits.shape), jnp.argsort(order, axis=-1), axis=-1
    )


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """InputError for a temperature below 0, top_k below 0, or top_p that is not in (0, 1]."""
    if not 0 <= temperature < math.inf:
        raise InputError(
            f"A temperature must be at least 0, which takes the likeliest token, not {temperature}."
        )
    if top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"top_k must be at least 0 and top_p in (0, 1], not {top_k} and {top_p}.")
