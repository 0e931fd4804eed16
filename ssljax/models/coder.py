"""Pairs of an encoder, image to code, and a decoder, code to image: dense or convolutional."""

from dataclasses import dataclass
import math

import flax.linen as nn
from jax import Array
import jax.numpy as jnp

from ssljax.models import activate, Activation, Dtype
from ssljax.models.convnet import Conv, halved, Up
from ssljax.models.dense import WIDE
from ssljax.models.mlp import MLP
from ssljax.ranges import Counts


@dataclass(frozen=True)
class Dense:
    """Dense layers: `hidden` from the image to the code, and back in reverse."""

    hidden: Counts = (500,)
    """Widths of the hidden layers, from image to code; the decoder's are reversed."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    def encoder(self, size: int) -> nn.Module:
        """Images (n, height, width, channels) to (n, size)."""
        return MLP((*self.hidden, size), activation=self.activation, dtype=self.dtype)

    def decoder(self, shape: tuple[int, ...]) -> nn.Module:
        """Codes (..., d) to unbounded outputs (..., *shape): logits or means."""
        return DenseDecoder(self.hidden[::-1], tuple(shape), self.activation, self.dtype)


@dataclass(frozen=True)
class Convolutional:
    """Convolutions that each halve the resolution, a dense layer to the code, and back."""

    widths: Counts = (32, 64, 128)
    """Channels at each halving of the resolution; the decoder's are reversed."""
    activation: Activation = "relu"
    """Activation of the convolutions."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    def encoder(self, size: int) -> nn.Module:
        """Images (n, height, width, channels) to (n, size)."""
        return ConvEncoder(self.widths, size, self.activation, self.dtype)

    def decoder(self, shape: tuple[int, ...]) -> nn.Module:
        """Codes (..., d) to unbounded outputs (..., *shape): logits or means."""
        return ConvDecoder(self.widths[::-1], tuple(shape), self.activation, self.dtype)


class DenseDecoder(nn.Module):
    """Codes (..., d) to (..., *shape)."""

    hidden: tuple[int, ...]
    """Units of the hidden layers."""
    shape: tuple[int, ...]
    """Height, width and channels of the images."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        widths = (*self.hidden, math.prod(self.shape))
        x = MLP(widths, activation=self.activation, dtype=self.dtype)(z.reshape(-1, z.shape[-1]))
        return x.reshape(*z.shape[:-1], *self.shape).astype(jnp.float32)


class ConvEncoder(nn.Module):
    """Images (n, height, width, channels) to (n, out)."""

    widths: tuple[int, ...]
    """Channels of each convolution."""
    out: int
    """Dimensions of the code."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths:
            x = activate(self.activation)(Conv(width, 4, stride=2, bias=True, dtype=self.dtype)(x))
        dense = nn.Dense(self.out, dtype=self.dtype, **WIDE)
        return dense(x.reshape(len(x), -1)).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """Codes (..., d) to (..., *shape).

    A dense layer to a small map, then transposed convolutions, cut to size.
    """

    widths: tuple[int, ...]
    """Channels of each convolution."""
    shape: tuple[int, ...]
    """Height, width and channels of the images."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.shape
        sizes = halved(height, width, len(self.widths))
        x = z.reshape(-1, z.shape[-1])
        units = math.prod(sizes[-1]) * self.widths[0]
        x = nn.Dense(units, dtype=self.dtype, **WIDE)(x)
        x = activate(self.activation)(x.reshape(-1, *sizes[-1], self.widths[0]))
        for of_layer, (h, w) in zip(self.widths[1:], sizes[-2:0:-1]):
            x = activate(self.activation)(Up(of_layer, bias=True, dtype=self.dtype)(x)[:, :h, :w])
        x = Up(channels, bias=True, dtype=self.dtype)(x)[:, :height, :width]
        return x.reshape(*z.shape[:-1], *self.shape).astype(jnp.float32)


class Tied(nn.Module):
    """One layer with tied weights: h = sigmoid(x W + b), and back h Wᵀ + c, as logits."""

    inputs: int
    """Dimensions of the input."""
    units: int
    """Dimensions of the code."""

    def setup(self) -> None:
        self.w = self.param("w", nn.initializers.glorot_uniform(), (self.inputs, self.units))
        self.b = self.param("b", nn.initializers.zeros, (self.units,))
        self.c = self.param("c", nn.initializers.zeros, (self.inputs,))

    def __call__(self, x: Array) -> Array:
        """Inputs (n, inputs) to codes (n, units)."""
        return nn.sigmoid(x @ self.w + self.b)

    def decode(self, h: Array) -> Array:
        """Codes (n, units) to logits (n, inputs)."""
        return h @ self.w.T + self.c
