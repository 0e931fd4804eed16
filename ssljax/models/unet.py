"""U-Net, from images to images (Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597)."""

import flax.linen as nn
from jax import Array
import jax.numpy as jnp

from ssljax.models import Dtype
from ssljax.models.convnet import Conv, Up
from ssljax.ranges import Counts


class UNet(nn.Module):
    """Images (n, height, width, channels) to (images (n, height, width, out), features).

    Features, (n, widths[-1]), are the mean over positions of the coarsest layer. A small version:
    one convolution at each resolution, and no norms.
    """

    out: int
    """Channels of the output."""
    widths: Counts = (32, 64, 128)
    """Channels at each resolution, each half the last."""
    dtype: Dtype = "float32"
    """Precision of computation; parameters are float32."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = nn.relu(Conv(self.widths[0], 3, bias=True, dtype=self.dtype)(x))
        skips = []
        for width in self.widths[1:]:
            skips.append(x)
            x = nn.relu(Conv(width, 4, stride=2, bias=True, dtype=self.dtype)(x))
        features = x.mean((1, 2)).astype(jnp.float32)
        for width, y in zip(self.widths[-2::-1], reversed(skips)):
            x = nn.relu(Up(width, bias=True, dtype=self.dtype)(x)[:, : y.shape[1], : y.shape[2]])
            x = nn.relu(
                Conv(width, 3, bias=True, dtype=self.dtype)(jnp.concatenate([x, y], axis=-1))
            )
        return Conv(self.out, 1, bias=True, dtype=self.dtype)(x).astype(jnp.float32), features
