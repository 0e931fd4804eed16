"""A convolutional encoder of raw waves, as matrix products."""

import math
from typing import Literal

import flax.linen as nn
from jax import Array
import jax.numpy as jnp

from ssljax.models.dense import gelu
from ssljax.ranges import Count, Counts


class Waves(nn.Module):
    """Waves (n, samples) to codes (n, samples // product of `strides`, width).

    Strided convolutions, each over twice its stride, with a norm and ReLU or GELU; a code depends
    only on samples before its end. The encoder of CPC (van den Oord et al., 2018, arXiv:1807.03748,
    section 3.1) with the norm over channels of Rivière et al., 2020, arXiv:2002.02848. As the
    kernel is twice the stride, its patches are two neighbouring stretches.
    """

    strides: Counts = (5, 4, 2, 2, 2)
    """Stride of each layer; in CPC's encoder, codes are 160 samples apart."""
    width: Count = 512
    """Channels of each layer and of a code."""
    unit: Literal["relu", "gelu"] = "relu"
    """ReLU, as in CPC, or GELU, as in wav2vec 2.0."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x[:, : x.shape[1] // math.prod(self.strides) * math.prod(self.strides), None]
        for i, stride in enumerate(self.strides, 1):
            x = x.reshape(len(x), -1, stride * x.shape[-1])
            x = jnp.concatenate([jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], x], axis=-1)
            n, time, d = x.shape
            # With biases of 0 silence has no variance in any layer, and each norm multiplies its
            # gradient by a thousand, which only ReLU ends. PyTorch draws them so.
            some = nn.initializers.uniform(2 / math.sqrt(d))
            drawn = lambda *a, some=some, d=d: some(*a) - 1 / math.sqrt(d)
            x = nn.Dense(
                self.width,
                kernel_init=nn.initializers.he_normal(),
                bias_init=drawn if self.unit == "gelu" else nn.initializers.zeros,
                name=f"conv{i}",
            )(x.reshape(-1, d))
            x = nn.LayerNorm(name=f"norm{i}")(x)
            x = (gelu(x) if self.unit == "gelu" else nn.relu(x)).reshape(n, time, self.width)
        return x
