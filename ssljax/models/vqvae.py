"""Encoder and decoder of the VQ-VAE, between images and maps of vectors."""

import functools

import flax.linen as nn
from jax import Array
import jax.numpy as jnp

from ssljax.models import Dtype
from ssljax.models.convnet import Conv, halved, Up
from ssljax.ranges import Count, CountOrZero


class VQVAE(nn.Module):
    """Images (n, H, W, C) to maps (n, H / 2^halvings, W / 2^halvings, size) and back.

    Strided convolutions, residual blocks, and their mirror image: van den Oord et al., 2017,
    arXiv:1711.00937, section 4.1.
    """

    shape: tuple[int, int, int]
    """Height, width and channels of the images."""
    width: Count = 64
    """Channels of every layer; 256 in the paper."""
    halvings: Count = 2
    """Strided convolutions, each of which halves the resolution."""
    blocks: CountOrZero = 2
    """Residual blocks in the encoder, and in the decoder."""
    size: Count = 32
    """Dimensions of a code vector, D in the paper."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    def setup(self):
        conv = functools.partial(Conv, bias=True, dtype=self.dtype)
        self.down = [conv(self.width, 4, stride=2) for _ in range(self.halvings)]
        self.before = [Block(self.width, self.dtype) for _ in range(self.blocks)]
        self.last, self.first = conv(self.size, 1), conv(self.width, 3)
        self.after = [Block(self.width, self.dtype) for _ in range(self.blocks)]
        self.up = [
            Up(self.width if i else self.shape[-1], bias=True, dtype=self.dtype)
            for i in reversed(range(self.halvings))
        ]

    def __call__(self, x: Array) -> Array:
        return self.decode(self.encode(x))

    def encode(self, x: Array) -> Array:
        for layer in self.down:
            x = nn.relu(layer(x))
        for block in self.before:
            x = block(x)
        return self.last(nn.relu(x)).astype(jnp.float32)

    def decode(self, z: Array) -> Array:
        sizes = halved(*self.shape[:2], len(self.up))
        x = self.first(z)
        for block in self.after:
            x = block(x)
        for layer, (h, w) in zip(self.up, sizes[-2::-1]):
            x = layer(nn.relu(x))[:, :h, :w]
        return x.astype(jnp.float32)


class Block(nn.Module):
    """A residual block, x + 1x1(ReLU(3x3(ReLU(x))))."""

    width: int
    """Channels."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Conv(self.width, 3, dtype=self.dtype)(nn.relu(x))
        return x + Conv(self.width, 1, dtype=self.dtype)(nn.relu(y))
