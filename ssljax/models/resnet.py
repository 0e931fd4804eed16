"""ResNet-18, -34 and -50 (He et al., 2015, https://arxiv.org/abs/1512.03385)."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
from jax import Array
import jax.numpy as jnp

from ssljax.models import Dtype

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """Images (n, height, width, channels) to features (n, 8·width), or (n, 32·width) at depth 50."""

    depth: Literal[18, 34, 50] = 18
    """Of basic blocks (18, 34) or bottlenecks (50)."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """"cifar": a 3x3 convolution, for images of about 32 pixels; "imagenet": 7x7 with stride 2, then max pooling."""
    width: int = 64
    """Channels of the first stage."""
    dtype: Dtype = "float32"
    """To compute in; parameters stay float32."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = partial(
            nn.Conv,
            use_bias=False,
            dtype=self.dtype,
            padding="SAME",
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        )
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype)
        pad = lambda k: (
            [(k // 2, k // 2)] * 2
        )  # As in PyTorch; "SAME" would pad strided convolutions unevenly.
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), (2, 2), padding=pad(7), name="stem")(x)
        else:
            x = conv(self.width, (3, 3), name="stem")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(
                jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2)
            )  # After a ReLU, 0 is no value.
        block = self.bottleneck if self.depth == 50 else self.basic
        for stage, blocks in enumerate(STAGES[self.depth]):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                x = block(
                    x,
                    self.width * 2**stage,
                    stride,
                    conv,
                    norm,
                    pad,
                    f"stage{stage + 1}_block{i + 1}",
                )
        return x.mean((1, 2)).astype(jnp.float32)

    def basic(
        self,
        x: Array,
        width: int,
        stride: int,
        conv: Callable,
        norm: Callable,
        pad: Callable,
        name: str,
    ) -> Array:
        y = conv(width, (3, 3), (stride, stride), padding=pad(3), name=f"{name}_conv1")(x)
        y = nn.relu(norm(name=f"{name}_norm1")(y))
        y = conv(width, (3, 3), name=f"{name}_conv2")(y)
        # A last scale of 0 makes each block the identity at first (Goyal et al., 2017, arXiv:1706.02677, section 5.1).
        y = norm(name=f"{name}_norm2", scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + self.shortcut(x, y, stride, conv, norm, name))

    def bottleneck(
        self,
        x: Array,
        width: int,
        stride: int,
        conv: Callable,
        norm: Callable,
        pad: Callable,
        name: str,
    ) -> Array:
        y = nn.relu(norm(name=f"{name}_norm1")(conv(width, (1, 1), name=f"{name}_conv1")(x)))
        y = conv(width, (3, 3), (stride, stride), padding=pad(3), name=f"{name}_conv2")(y)
        y = nn.relu(norm(name=f"{name}_norm2")(y))
        y = conv(4 * width, (1, 1), name=f"{name}_conv3")(y)
        y = norm(name=f"{name}_norm3", scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + self.shortcut(x, y, stride, conv, norm, name))

    def shortcut(
        self, x: Array, y: Array, stride: int, conv: Callable, norm: Callable, name: str
    ) -> Array:
        if x.shape == y.shape:
            return x
        x = conv(y.shape[-1], (1, 1), (stride, stride), name=f"{name}_shortcut")(x)
        return norm(name=f"{name}_shortcut_norm")(x)
