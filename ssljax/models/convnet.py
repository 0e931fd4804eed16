"""A small residual convolutional network, built from matrix products: the fast choice on a CPU."""

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.models import Dtype


class ConvNet(nn.Module):
    """Images (n, height, width, channels) to features (n, widths[-1]), by stages that halve the resolution.

    A stem of overlapping patches, then for each stage a 2x2 patch convolution (but in the first) and residual blocks of
    two 3x3 convolutions, BatchNorm and ReLU throughout, and the mean over positions.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each stage; the last is the number of features."""
    blocks: tuple[int, ...] = (0, 0, 1, 1)
    """Residual blocks in each stage."""
    patch: int = 4
    """Pixels a side of a patch of the stem."""
    stride: int = 2
    """Of the stem."""
    dtype: Dtype = "float32"
    """To compute in; parameters stay float32."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        if len(self.widths) != len(self.blocks):
            raise InputError(f"{len(self.widths)} widths need as many blocks, not {len(self.blocks)}.")
        x = self.layer(x, self.widths[0], self.patch, self.stride, train, "stem")
        for i, (width, blocks) in enumerate(zip(self.widths, self.blocks)):
            if i:
                x = self.layer(x, width, 2, 2, train, f"stage{i + 1}")
            for j in range(blocks):
                name = f"stage{i + 1}_block{j + 1}"
                y = self.layer(x, width, 3, 1, train, f"{name}_1")
                x = nn.relu(x + self.layer(y, width, 3, 1, train, f"{name}_2", act=False))
        return x.mean((1, 2)).astype(jnp.float32)

    def layer(self, x: Array, width: int, size: int, stride: int, train: bool, name: str, act: bool = True) -> Array:
        x = Conv(width, size, stride, self.dtype, name=name)(x)
        # Normalised as a matrix: XLA on a CPU is far slower on four dimensions.
        y = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name=f"{name}_norm")(x.reshape(-1, width))
        return (nn.relu(y) if act else y).reshape(x.shape)


class Conv(nn.Module):
    """A convolution without bias, padded to ceil(size / stride): as a matrix product of patches on a CPU."""

    width: int
    size: int
    stride: int = 1
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        convolve = patch_matmul if jax.default_backend() == "cpu" else lax_conv
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def lax_conv(x: Array, kernel: Array, stride: int) -> Array:
    """x (n, h, w, c) * kernel (k, k, c, f), padded to ceil(size / stride): XLA's convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def patch_matmul(x: Array, kernel: Array, stride: int) -> Array:
    """What `lax_conv` computes, as patches side by side times the kernel as a matrix: up to three times as fast on a CPU,
    where XLA's weight gradient of a convolution is slow."""
    n, h, w, c = x.shape
    k, s = len(kernel), stride
    out_h, out_w = -(-h // s), -(-w // s)
    pad_h, pad_w = max((out_h - 1) * s + k - h, 0), max((out_w - 1) * s + k - w, 0)
    x = jnp.pad(x, ((0, 0), (pad_h // 2, pad_h - pad_h // 2), (pad_w // 2, pad_w - pad_w // 2), (0, 0)))
    if k == s:
        x = x.reshape(n, out_h, s, out_w, s, c).swapaxes(2, 3)
    else:
        x = jnp.concatenate([x[:, i:i + (out_h - 1) * s + 1:s, j:j + (out_w - 1) * s + 1:s]
                             for i in range(k) for j in range(k)], axis=-1)
    return (x.reshape(n * out_h * out_w, k * k * c) @ kernel.reshape(k * k * c, -1)).reshape(n, out_h, out_w, -1)
