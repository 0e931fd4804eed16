"""Positions by a convolution over tokens, as in wav2vec 2.0."""

from functools import partial
import math
from typing import Any

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.models import Dtype
from ssljax.models.convolution import wide_kernel_gradient
from ssljax.models.dense import gelu
from ssljax.ranges import Count
from ssljax.sharding import platform

GROUPS = 16


class ConvolutionalPositions(nn.Module):
    """Tokens (n, t, width) with the GELU of a convolution over their neighbours added to them.

    Token i sees the `reach` tokens from i - reach // 2 on, in 16 groups of channels, and zeros
    beyond the ends, which tell it where it is: Mohamed et al., 2019, arXiv:1904.11660, and Baevski
    et al., 2020, arXiv:2006.11477, section 2, without the weight normalisation of the latter's
    code. InputError where the groups don't divide the width.
    """

    reach: Count = 128
    """Tokens that the convolution sees."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[-1] % GROUPS:
            raise InputError(
                f"Convolutional positions need a width that {GROUPS} divides, not {x.shape[-1]}."
            )
        half = self.reach // 2
        y = nn.Conv(
            x.shape[-1],
            (self.reach,),
            padding=[(half, self.reach - 1 - half)],
            feature_group_count=GROUPS,
            kernel_init=nn.initializers.normal(math.sqrt(4 / (self.reach * x.shape[-1]))),
            dtype=self.dtype,
            conv_general_dilated=convolve_tokens,
            name="conv",
        )(x)
        return x + gelu(y)


def convolve_tokens(
    lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any
) -> Array:
    """`jax.lax.conv_general_dilated` of tokens (n, t, c), in groups and without a stride.

    On a CPU it is one matrix product for each group, of all tokens by all tokens, where that has
    few enough numbers: XLA's took 4 to 20 times as long there (64 rows of 50 tokens of 128
    channels, kernels of 16 to 128 tokens, with gradients).
    """
    t, groups = lhs.shape[1], options["feature_group_count"]
    size, inputs, outputs = rhs.shape
    few = t * t * inputs * outputs <= 2**24
    if platform() != "cpu" or lhs.dtype != jnp.float32 or not few:
        conv = partial(
            jax.lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options
        )
        return wide_kernel_gradient(conv, lhs, rhs)
    # Of what the token s adds to token i, the place in the kernel.
    place = jnp.arange(t)[:, None] - jnp.arange(t) + padding[0][0]
    kernel = rhs.reshape(size, inputs, groups, outputs // groups)
    seen = ((place >= 0) & (place < size))[:, :, None, None, None]
    matrix = jnp.where(seen, kernel[jnp.clip(place, 0, size - 1)], 0)
    y = jnp.einsum("nsgc,sicgo->nigo", lhs.reshape(*lhs.shape[:2], groups, inputs), matrix)
    return y.reshape(*lhs.shape[:2], outputs)
