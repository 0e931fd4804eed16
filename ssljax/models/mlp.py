"""Multilayer perceptrons and projection heads."""

from functools import partial

import flax.linen as nn
from jax import Array

from ssljax.models import activate, Activation, Dtype
from ssljax.models.dense import WIDE
from ssljax.ranges import Count, Counts


class MLP(nn.Module):
    """Dense layers with activations in between: (n, ...), flattened, to (n, widths[-1]).

    With `norm` a projection head of the joint-embedding methods; SimCLR's has widths (2048, 128).
    """

    widths: Counts = (2048, 128)
    """Units of each layer; the last is the output."""
    norm: bool = False
    """BatchNorm before each activation."""
    last_bias: bool = True
    """Bias in the last layer; useless where the loss removes the mean of the features."""
    last_norm: bool = False
    """BatchNorm of the output, without scale and bias."""
    activation: Activation = "relu"
    """Activation between layers."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, **WIDE)
        x = x.reshape(len(x), -1)
        for width in self.widths[:-1]:
            x = dense(width, use_bias=not self.norm)(x)
            x = activate(self.activation)(norm()(x) if self.norm else x)
        x = dense(self.widths[-1], use_bias=self.last_bias and not self.last_norm)(x)
        return norm(use_scale=False, use_bias=False, name="last_norm")(x) if self.last_norm else x


class Maxout(nn.Module):
    """Maxout layers and a linear one: (n, ...), flattened, to (n, widths[-1]).

    A unit is the largest of `pieces` linear functions: Goodfellow et al., 2013, arXiv:1302.4389.
    """

    widths: Counts
    """Units of each layer; the last is the output."""
    pieces: Count = 5
    """Linear functions of a unit."""
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    """Initialiser of the kernels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(len(x), -1)
        for width in self.widths[:-1]:
            x = nn.Dense(self.pieces * width, kernel_init=self.kernel_init)(x)
            x = x.reshape(len(x), self.pieces, width).max(1)
        return nn.Dense(self.widths[-1], kernel_init=self.kernel_init)(x)
