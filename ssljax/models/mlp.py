"""Multilayer perceptrons and projection heads."""

from functools import partial

import flax.linen as nn
from jax import Array

from ssljax.models import activate, Activation, Dtype


class MLP(nn.Module):
    """Dense layers with an activation between: (n, ...) flattened to (n, widths[-1]).

    With `norm` it is the projection head of the joint-embedding methods: (2048, 128) is SimCLR's.
    """

    widths: tuple[int, ...] = (2048, 128)
    """Of each layer; the last is the output."""
    norm: bool = False
    """BatchNorm before each activation."""
    last_bias: bool = True
    """A bias in the last layer: without use where a loss, or the norm of a predictor, takes features' means away."""
    last_norm: bool = False
    """BatchNorm of the output too, without a scale or bias of its own."""
    activation: Activation = "relu"
    """Between the layers."""
    dtype: Dtype = "float32"
    """To compute in; parameters stay float32."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        x = x.reshape(len(x), -1)
        for width in self.widths[:-1]:
            x = nn.Dense(width, use_bias=not self.norm, dtype=self.dtype)(x)
            x = activate(self.activation)(norm()(x) if self.norm else x)
        x = nn.Dense(
            self.widths[-1], use_bias=self.last_bias and not self.last_norm, dtype=self.dtype
        )(x)
        return norm(use_scale=False, use_bias=False, name="last_norm")(x) if self.last_norm else x


class Maxout(nn.Module):
    """Layers of units that are each the largest of `pieces` linear functions (Goodfellow et al., 2013, arXiv:1302.4389),
    and a linear one: (n, ...) flattened to (n, widths[-1])."""

    widths: tuple[int, ...]
    pieces: int = 5
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(len(x), -1)
        for width in self.widths[:-1]:
            x = (
                nn.Dense(self.pieces * width, kernel_init=self.kernel_init)(x)
                .reshape(len(x), self.pieces, width)
                .max(1)
            )
        return nn.Dense(self.widths[-1], kernel_init=self.kernel_init)(x)
