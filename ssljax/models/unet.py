"""An image to an image: convolutions down and up again, with what was seen on the way down put beside, as in U-Net."""

import flax.linen as nn
from jax import Array
import jax.numpy as jnp

from ssljax.models import Dtype
from ssljax.models.convnet import Conv, Up


class UNet(nn.Module):
    """Images (n, height, width, channels) to ((n, height, width, out), (n, widths[-1])): what is drawn, and the mean
    over positions of the coarsest layer. Ronneberger et al., 2015, arXiv:1505.04597, made small."""

    out: int
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels at each resolution, each half the last."""
    dtype: Dtype = "float32"
    """To compute in; parameters stay float32."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = nn.relu(Conv(self.widths[0], 3, bias=True, dtype=self.dtype)(x))
        beside = []
        for width in self.widths[1:]:
            beside.append(x)
            x = nn.relu(Conv(width, 4, stride=2, bias=True, dtype=self.dtype)(x))
        features = x.mean((1, 2)).astype(jnp.float32)
        for width, y in zip(self.widths[-2::-1], reversed(beside)):
            x = nn.relu(Up(width, bias=True, dtype=self.dtype)(x)[:, : y.shape[1], : y.shape[2]])
            x = nn.relu(
                Conv(width, 3, bias=True, dtype=self.dtype)(jnp.concatenate([x, y], axis=-1))
            )
        return Conv(self.out, 1, bias=True, dtype=self.dtype)(x).astype(jnp.float32), features
