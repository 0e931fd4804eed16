"""DCGAN's nets (Radford et al., 2015, https://arxiv.org/abs/1511.06434), for images of any size."""

from collections.abc import Callable
import math
from typing import Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.errors import InputError
from ssljax.models import activate, Dtype
from ssljax.models.convnet import Conv, halved, Up
from ssljax.models.dense import WIDE

Norm = Literal["batch", "layer", "spectral", "none"]


class Generator(nn.Module):
    """Latents (n, d) to images (n, *shape) in [-1, 1].

    A dense layer to a small map, then transposed convolutions; every layer but the last is followed
    by `norm` and ReLU. With `classes`, each image's `label`, (n,), chooses the scale and shift of
    the BatchNorms (Dumoulin et al., 2017, arXiv:1610.07629).
    """

    shape: tuple[int, ...]
    """Height, width and channels of the images."""
    widths: tuple[int, ...] = (256, 128, 64)
    """Channels from the smallest map up; each further layer doubles the resolution."""
    norm: Norm = "batch"
    """Norm after each layer, or spectral normalisation of its kernel."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    classes: int = 0
    """Number of classes; 0 for an unconditional generator."""

    @nn.compact
    def __call__(self, z: Array, train: bool = False, label: Array | None = None) -> Array:
        layer, norm = _layers(self.norm, train, self.dtype, _one_hot(label, self.classes))
        height, width, channels = self.shape
        sizes = halved(height, width, len(self.widths))
        x = layer(nn.Dense, math.prod(sizes[-1]) * self.widths[0])(z)
        x = nn.relu(norm(x.reshape(-1, *sizes[-1], self.widths[0])))
        for of_layer, (h, w) in zip(self.widths[1:], sizes[-2:0:-1]):
            x = nn.relu(norm(layer(Up, of_layer)(x)[:, :h, :w]))
        x = layer(Up, channels, last=True)(x)[:, :height, :width]
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images (n, height, width, channels) to outputs (n,).

    Convolutions that halve the resolution, each followed by `norm`, except the first, and leaky
    ReLU, then a dense layer. "spectral" divides every kernel, as the matrix from a patch to its
    outputs, by its largest singular value (Miyato et al., 2018, arXiv:1802.05957, algorithm 1),
    with one power iteration in each training step, whose state is in the collection "batch_stats".

    With `classes` and each image's `label`, (n,), the output is vᵧ·φ(x) + ψ(φ(x)), with φ the input
    of the dense layer ψ and v a vector of each class: the projection of Miyato and Koyama, 2018,
    arXiv:1802.05637, eq. 3.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    """Channels at each halving of the resolution."""
    norm: Norm = "batch"
    """Norm after each layer, or spectral normalisation of its kernel."""
    head: bool = True
    """Whether to apply the dense layer; else its inputs, (n, d), are returned."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""
    classes: int = 0
    """Number of classes; 0 for an unconditional discriminator."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False, label: Array | None = None) -> Array:
        layer, norm = _layers(self.norm, train, self.dtype)
        for i, width in enumerate(self.widths):
            x = layer(Conv, width, 4, 2, last=not i)(x)
            x = activate("leaky_relu")(norm(x) if i else x)
        x = x.reshape(len(x), -1)
        if not self.head:
            return x.astype(jnp.float32)
        out, y = layer(nn.Dense, 1, last=True)(x)[:, 0], _one_hot(label, self.classes)
        if y is not None:
            out += jnp.sum(layer(nn.Dense, x.shape[1], bias=False)(y) * x, axis=1)
        return out.astype(jnp.float32)


def _one_hot(label: Array | None, classes: int) -> Array | None:
    """(n, classes), or None for an unconditional net; InputError if labels are missing or
    unused."""
    if (label is None) == bool(classes):
        raise InputError(
            f"A net of {classes} classes must be called {'with' if classes else 'without'} labels."
        )
    return None if label is None else jax.nn.one_hot(label, classes)


def _layers(
    norm: Norm, train: bool, dtype: Dtype, y: Array | None = None
) -> tuple[Callable, Callable]:
    """`layer(kind, *sizes, last)`, which makes a layer, and the function that normalises its
    output.

    `last` is true where no norm follows. `y`, (n, classes), chooses the scale and shift of
    BatchNorms; InputError for another norm.
    """
    # DCGAN's small weights rely on a norm after each layer; other nets have the layers' own.
    small = nn.initializers.normal(0.02) if norm == "batch" else None
    if y is not None and norm != "batch":
        raise InputError(f"Only BatchNorms can depend on a class, and this net's norm is {norm}.")

    def layer(kind, *sizes, last=False, bias=True):
        biased = bias and (last or norm in ("spectral", "none"))
        uses = {"use_bias": biased, **WIDE} if kind is nn.Dense else {"bias": biased}
        made = kind(*sizes, dtype=dtype, **uses, **({"kernel_init": small} if small else {}))
        return (
            (lambda x: nn.SpectralNorm(made)(x, update_stats=train)) if norm == "spectral" else made
        )

    def normalise(x):
        if norm == "batch":  # As a matrix: XLA on a CPU is far slower on four dimensions.
            own, width = y is None, x.shape[-1]
            bn = nn.BatchNorm(not train, momentum=0.9, dtype=dtype, use_scale=own, use_bias=own)
            out = bn(x.reshape(-1, width)).reshape(x.shape)
            if own:
                return out
            scale, shift = (
                nn.Dense(
                    width, use_bias=False, dtype=dtype, kernel_init=start, name=f"{bn.name}_{name}"
                )(y)
                for name, start in (
                    ("scale", nn.initializers.ones),
                    ("shift", nn.initializers.zeros),
                )
            )
            return out * scale[:, None, None] + shift[:, None, None]
        return nn.LayerNorm(reduction_axes=(1, 2, 3), dtype=dtype)(x) if norm == "layer" else x

    return layer, normalise
