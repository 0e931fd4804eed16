"""A small convolutional network that halves the resolution in every layer, and its convolutions."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.models import Dtype
from ssljax.models.convolution import wide_kernel_gradient
from ssljax.models.norm import BatchNorm
from ssljax.ranges import Count, Counts
from ssljax.sharding import platform


class ConvNet(nn.Module):
    """Images (n, height, width, channels) to features (n, widths[-1]).

    Convolutions of stride 2, each with BatchNorm and ReLU, then the mean over positions: DCGAN's
    discriminator (Radford et al., 2015, arXiv:1511.06434) as an encoder, the fast choice on a CPU.
    BatchNorm's running variance is biased (`ResNet` says what that means).
    """

    widths: Counts = (32, 64, 128, 256)
    """Channels of each layer; the last is the number of features."""
    size: Count = 4
    """Side of the kernels in pixels."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for i, width in enumerate(self.widths, 1):
            x = Conv(width, self.size, stride=2, dtype=self.dtype, name=f"conv{i}")(x)
            norm = BatchNorm(not train, momentum=0.9, dtype=self.dtype, name=f"norm{i}")
            x = nn.relu(norm(x))
        return x.mean((1, 2)).astype(jnp.float32)


class Conv(nn.Module):
    """A convolution with "SAME" padding; on a CPU a matrix product of patches."""

    width: int
    """Output channels."""
    size: int
    """Side of the kernel in pixels."""
    stride: int = 1
    """Step of the kernel in pixels."""
    bias: bool = False
    """Whether a bias is added."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    kernel_init: Callable[..., Array] = nn.initializers.he_normal()
    """Initialiser of the kernels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.width)
        )
        convolve = patch_matmul if platform() == "cpu" else lax_conv
        conv = partial(convolve, stride=self.stride)
        y = wide_kernel_gradient(conv, x.astype(self.dtype), kernel.astype(self.dtype))
        return (
            y + self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
            if self.bias
            else y
        )


class Up(nn.Module):
    """A 4x4 transposed convolution of stride 2; on a CPU one matrix product."""

    width: int
    """Output channels."""
    bias: bool = False
    """Whether a bias is added."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    kernel_init: Callable[..., Array] = nn.initializers.variance_scaling(8.0, "fan_in", "normal")
    """He's initialisation, for the 4 of the kernel's 16 places that meet in a pixel."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], self.width))
        expand = patch_matmul_transpose if platform() == "cpu" else lax_conv_transpose
        y = wide_kernel_gradient(expand, x.astype(self.dtype), kernel.astype(self.dtype))
        return (
            y + self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
            if self.bias
            else y
        )


def halved(height: int, width: int, times: int) -> list[tuple[int, int]]:
    """The `times` + 1 sizes of an image and its maps, each half the last, rounded up.

    Strided convolutions go down these sizes, and transposed ones, cropped, back up.
    """
    sizes = [(height, width)]
    for _ in range(times):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def lax_conv(x: Array, kernel: Array, stride: int) -> Array:
    """XLA's convolution of x (n, h, w, c) with `kernel` (k, k, c, f), with "SAME" padding."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def patch_matmul(x: Array, kernel: Array, stride: int) -> Array:
    """`lax_conv` as patches times the kernel as a matrix.

    Up to twice as fast on a CPU, where XLA's weight gradient of a convolution is slow.
    """
    n, h, w, c = x.shape
    k, s = len(kernel), stride
    out_h, out_w = -(-h // s), -(-w // s)
    pad_h, pad_w = max((out_h - 1) * s + k - h, 0), max((out_w - 1) * s + k - w, 0)
    x = jnp.pad(
        x, ((0, 0), (pad_h // 2, pad_h - pad_h // 2), (pad_w // 2, pad_w - pad_w // 2), (0, 0))
    )
    if k == s:
        x = x.reshape(n, out_h, s, out_w, s, c).swapaxes(2, 3)
    else:
        x = jnp.concatenate(
            [
                x[:, i : i + (out_h - 1) * s + 1 : s, j : j + (out_w - 1) * s + 1 : s]
                for i in range(k)
                for j in range(k)
            ],
            axis=-1,
        )
    return (x.reshape(n * out_h * out_w, k * k * c) @ kernel.reshape(k * k * c, -1)).reshape(
        n, out_h, out_w, -1
    )


def lax_conv_transpose(x: Array, kernel: Array) -> Array:
    """x (n, h, w, c) to (n, 2h, 2w, f) by `kernel` (4, 4, c, f): XLA's transposed convolution."""
    return jax.lax.conv_transpose(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def patch_matmul_transpose(x: Array, kernel: Array) -> Array:
    """`lax_conv_transpose` as a product: a patch of 2x2 gives the four pixels around its centre."""
    n, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate(
        [x[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)], axis=-1
    )
    # To row tap, column tap, c, row phase, column phase, f.
    taps = kernel.reshape(2, 2, 2, 2, c, -1).transpose(0, 2, 4, 1, 3, 5)
    y = (patches.reshape(-1, 4 * c) @ taps.reshape(4 * c, -1)).reshape(n, h + 1, w + 1, 2, 2, -1)
    rows = [jnp.stack([y[:, p : p + h, q : q + w, p, q] for q in (0, 1)], axis=3) for p in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(n, 2 * h, 2 * w, -1)
