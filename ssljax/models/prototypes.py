"""Head of self-distillation: a projection, and its cosines with prototypes."""

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.losses.infonce import normalize, product
from ssljax.models.mlp import MLP
from ssljax.ranges import Count
from ssljax.sharding import whole


class PrototypeHead(nn.Module):
    """Features (..., d) to the cosines (..., count) of their projection with learned prototypes.

    The head of iBOT, and of DINO (Caron et al., 2021, arXiv:2104.14294, appendix C), where
    prototypes are the rows of a weight-normalised layer.
    """

    mlp: MLP
    """Projection; its last width is that of the prototypes."""
    count: Count
    """Number of prototypes."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False, frozen: Array | bool = False) -> Array:
        """With `frozen`, the prototypes get no gradient."""
        z = self.mlp(x.reshape(-1, x.shape[-1]), train)
        c = self.param("prototypes", nn.initializers.normal(1.0), (self.count, z.shape[-1]))
        c = whole(normalize(jnp.where(frozen, jax.lax.stop_gradient(c), c)))
        return product(normalize(z), c.T).reshape(*x.shape[:-1], -1)
