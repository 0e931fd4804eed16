"""Recurrent layers (LSTM, GRU, tanh) that take and return their state, and a language model."""

from collections.abc import Callable
import math
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.losses.softmax import output_cross_entropy
from ssljax.ranges import check_value, Count, FractionBelowOne, NotNegative, Number
from ssljax.sharding import over_batch, whole

Cell = Literal["lstm", "gru", "tanh"]
Tree = Any
Carry = Any  # A tuple of arrays (batch, width) for each layer: (c, h) of an LSTM, else (h,).


class RNN(nn.Module):
    """Stacked recurrent layers: inputs (batch, time, d) to outputs (batch, time, width).

    Returns the outputs, the new carry, and the outputs before dropout. A carry of None is zeros;
    there is dropout where there is a key. InputError for fields out of their ranges.
    """

    cell: Cell = "lstm"
    """Kind of layer: lstm, gru, or tanh, a plain recurrent layer."""
    width: Count = 200
    """Units of a layer."""
    layers: Count = 2
    """Number of layers."""
    dropout: FractionBelowOne = 0.0
    """Dropout of the inputs of each layer and of the outputs of the last."""
    variational: bool = False
    """Drop the same units at all times."""
    recurrent_dropout: FractionBelowOne = 0.0
    """Dropout of a layer's state on its way to the next time, the same units at all times."""
    weight_dropout: FractionBelowOne = 0.0
    """Dropout of the recurrent weights, the same at all times (DropConnect)."""
    forget_bias: Number = 0.0
    """Added to the initial bias of an LSTM's forget gate; 1 to remember longer (Jozefowicz et al.,
    2015)."""
    scale: NotNegative = 0.0
    """Weights are initialised uniformly in [-scale, scale]; 0 for 1 / sqrt(width)."""

    @nn.compact
    def __call__(
        self, x: Array, carry: Carry = None, key: Array | None = None
    ) -> tuple[Array, Carry, Array]:
        check_value("rnn", self, type(self))
        carry = self.zeros(len(x)) if carry is None else carry
        advance, gates = CELLS[self.cell]
        scale = self.scale or 1 / math.sqrt(self.width)
        draw = lambda key, shape: jax.random.uniform(key, shape, minval=-scale, maxval=scale)
        n = 3 * self.layers + 1
        keys = [None] * n if key is None else jax.random.split(key, n)
        new = []
        for i in range(self.layers):
            x = self.drop(keys[3 * i], x)
            w = self.param(f"input{i}", draw, (x.shape[-1], gates * self.width))
            u = self.param(f"recurrent{i}", draw, (self.width, gates * self.width))
            is_forget = jnp.arange(gates * self.width) // self.width == 1
            added = self.forget_bias * is_forget if self.cell == "lstm" else 0.0
            bias = lambda *a, added=added: draw(*a) + added
            b = self.param(f"bias{i}", bias, (gates * self.width,))
            # The inputs' part of all time steps at once; time goes first for the scan.
            p = (x.reshape(-1, x.shape[-1]) @ w + b).reshape(*x.shape[:2], -1).swapaxes(0, 1)
            # A GRU candidate's recurrent part has its own bias, within the reset gate.
            if self.cell == "gru":
                inner = self.param(f"inner_bias{i}", draw, (self.width,))
                candidate, r, z = jnp.split(p, 3, axis=-1)
                p = jnp.concatenate([r, z, jnp.broadcast_to(inner, r.shape), candidate], axis=-1)
            if (k := keys[3 * i + 1]) is not None and self.weight_dropout:
                keep = 1 - self.weight_dropout
                u = whole(u * jax.random.bernoulli(k, keep, u.shape) / keep)
            mask = jnp.ones(())
            if (k := keys[3 * i + 2]) is not None and self.recurrent_dropout:
                keep = 1 - self.recurrent_dropout
                mask = jax.random.bernoulli(k, keep, (len(x), self.width))
                mask = over_batch(mask) / keep
            last, h = recur(advance, p, u, carry[i], mask)
            new.append(last)
            x = h.swapaxes(0, 1)
        return self.drop(keys[-1], x), tuple(new), x

    def drop(self, key: Array | None, x: Array) -> Array:
        """Dropout, where there is a key: of elements or, variational, of units at all times."""
        if key is None or not self.dropout:
            return x
        shape = (len(x), 1, x.shape[-1]) if self.variational else x.shape
        keep = over_batch(jax.random.bernoulli(key, 1 - self.dropout, shape))
        return jnp.where(keep, x / (1 - self.dropout), 0)

    def zeros(self, batch: int) -> Carry:
        """The carry before any input."""
        layer = (jnp.zeros((batch, self.width)),) * (2 if self.cell == "lstm" else 1)
        return (layer,) * self.layers


def lstm(carry: tuple[Array, Array], a: Array) -> tuple[Array, Array]:
    """c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(c'), where `a` (batch, 4 width) is i, f, g, o.

    Hochreiter & Schmidhuber, 1997; in this form Zaremba et al., 2014, arXiv:1409.2329, section 3.
    """
    c, _ = carry
    i, f, g, o = jnp.split(a, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def gru(carry: tuple[Array], a: Array) -> tuple[Array]:
    """h' = σ(z) h + (1 - σ(z)) tanh(n + σ(r) v), where `a` (batch, 4 width) is r, z, v, n.

    v = h U + b. Cho et al., 2014, arXiv:1406.1078, with the reset after the product, as in
    cuDNN: one product a step.
    """
    r, z, v, n = jnp.split(a, 4, axis=-1)
    z = jax.nn.sigmoid(z)
    return (z * carry[0] + (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r) * v),)


def elman(carry: tuple[Array], a: Array) -> tuple[Array]:
    """h' = tanh(a): Elman, 1990."""
    return (jnp.tanh(a),)


CELLS: dict[Cell, tuple[Callable, int]] = {"lstm": (lstm, 4), "gru": (gru, 3), "tanh": (elman, 1)}


def recur(
    advance: Callable[[Carry, Array], Carry],
    x: Array,
    u: Array,
    carry: Carry,
    mask: Array | float = 1.0,
) -> tuple[Carry, Array]:
    """carry = advance(carry, x_t + (h * mask) u) over time, h the last array of the carry.

    x (time, batch, k), u (d, j); where j < k the product is added to the first j alone. Returns the
    last carry and all h, (time, batch, d).
    """
    return _recur(advance, x, u, carry, jnp.asarray(mask, x.dtype))


def _run(advance, x, u, carry, mask):
    j = u.shape[1]
    # The carry of a step is kept as a part of the state, whose layout the loop must not take over.
    shared = lambda carry: jax.tree.map(over_batch, carry)

    def step(carry, x):
        product = (carry[-1] * mask if mask.ndim else carry[-1]) @ u
        a = (
            x + product
            if x.shape[-1] == j
            else jnp.concatenate([x[:, :j] + product, x[:, j:]], axis=-1)
        )
        carry = advance(carry, a)
        return carry, carry[-1]

    last, h = jax.lax.scan(step, shared(carry), x)
    return shared(last), h


_recur = jax.custom_vjp(_run, nondiff_argnums=(0,))


def _forward(advance, x, u, carry, mask):
    (last, h), back = jax.vjp(lambda x, carry: _run(advance, x, u, carry, mask), x, carry)
    return (last, h), (back, jnp.concatenate([carry[-1][None], h[:-1]]), u, mask)


def _backward(advance, kept, grads):
    # The gradient of u from the gradients of x_t, to which its product was added: one product over
    # all time steps, where the scan's own derivative would have one in each step.
    back, before, u, mask = kept
    dx, dcarry = back(grads)
    before = before * mask if mask.ndim else before
    du = jnp.einsum("tbd,tbj->dj", before, dx[..., : u.shape[1]])
    return dx, du, dcarry, jnp.zeros_like(mask)


_recur.defvjp(_forward, _backward)


class RNNLanguageModel(nn.Module):
    """Tokens (batch, time) and a carry to features (batch, time, d) for the output layer.

    Returns the features, the new carry, and the features before dropout. `logits` takes features
    (n, d) to (n, vocabulary).
    """

    vocabulary: int
    rnn: RNN
    tied: bool = False
    """One table for input and output (Press & Wolf, 2016, arXiv:1608.05859; Inan et al., 2016)."""
    word_dropout: float = 0.0
    """Fraction of the vocabulary whose vectors are zero in a step (Gal & Ghahramani, 2015)."""

    def setup(self) -> None:
        scale = self.rnn.scale or 1 / math.sqrt(self.rnn.width)
        draw = lambda key, shape: jax.random.uniform(key, shape, minval=-scale, maxval=scale)
        self.embedding = self.param("embedding", draw, (self.vocabulary, self.rnn.width))
        self.kernel = (
            None if self.tied else self.param("kernel", draw, (self.rnn.width, self.vocabulary))
        )
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))

    def __call__(
        self, tokens: Array, carry: Carry = None, key: Array | None = None
    ) -> tuple[Array, Carry, Array]:
        x = self.embedding[tokens]
        if key is not None and self.word_dropout:
            k, key = jax.random.split(key)
            keep = 1 - self.word_dropout
            x = x * (jax.random.bernoulli(k, keep, (self.vocabulary,))[tokens][..., None] / keep)
        return self.rnn(x, carry, key)

    def logits(self, h: Array) -> Array:
        """Features (n, d) to logits (n, vocabulary)."""
        kernel, bias = self.output()
        return h @ kernel + bias

    def output(self) -> tuple[Array, Array]:
        """The output layer: (d, vocabulary) and (vocabulary,)."""
        return (self.embedding.T if self.kernel is None else self.kernel), self.bias


def nats(
    net: RNNLanguageModel,
    params: Tree,
    tokens: Array,
    carry: Carry = None,
    key: Array | None = None,
) -> tuple[Array, tuple[Array, Array], Carry]:
    """-log p in nats of each of `tokens` (batch, time + 1) but the first, given those before it.

    Returns (batch, time) nats; the features they were predicted from, (batch, time, d), and the
    same before dropout; and the carry. There is dropout where there is a key.
    """
    out: Any = net.apply(params, tokens[:, :-1], carry, key)
    (h, carry, whole), (w, b) = out, net.apply(params, method="output")
    found = output_cross_entropy(h.reshape(-1, h.shape[-1]), w, b, tokens[:, 1:].reshape(-1))
    return found.reshape(h.shape[:2]), (h, whole), carry


def generate(net: RNNLanguageModel, params: Tree, key: Array, prompt: Array, length: int) -> Array:
    """`length` tokens that continue `prompt` (n, p), each drawn given all before: (n, length)."""

    def step(carried, key):
        token, carry = carried
        out: Any = net.apply(params, token[:, None], carry)
        h, carry, _ = out
        logits: Any = net.apply(params, h[:, 0], method="logits")
        token = jax.random.categorical(key, logits)
        return (token, carry), token

    carry = net.rnn.zeros(len(prompt))
    if prompt.shape[1] > 1:
        out: Any = net.apply(params, prompt[:, :-1], carry)
        carry = out[1]
    start = prompt[:, -1].astype(jnp.int32), carry
    return jax.lax.scan(step, start, jax.random.split(key, length))[1].T
