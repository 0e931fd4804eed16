"""The network of wav2vec 2.0 (Baevski et al., 2020, https://arxiv.org/abs/2006.11477)."""

import math

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.losses.quantization import gumbel_softmax
from ssljax.models.dense import PRODUCT
from ssljax.models.transformer import Transformer
from ssljax.models.waves import Waves
from ssljax.ranges import Count


class Quantizer(nn.Module):
    """Vectors (..., d) to codes (..., size), of an entry of each of the codebooks.

    Returns the codes; their entries, (..., groups) ints; and the probabilities of all entries,
    (..., groups, entries), without noise and temperature. With a key, entries are drawn by
    `gumbel_softmax`; else they are the likeliest. Section 2, "Quantization module". Initialised as
    in the authors' code.
    """

    groups: Count = 2
    """Codebooks (G in the paper)."""
    entries: Count = 320
    """Entries of a codebook (V in the paper)."""
    size: Count = 256
    """Dimensions of a code; the groups share them evenly."""

    @nn.compact
    def __call__(
        self, z: Array, key: Array | None = None, temperature: Array | float = 1.0
    ) -> tuple[Array, Array, Array]:
        normal, shape = nn.initializers.normal(1.0), (self.groups, self.entries)
        logits = nn.Dense(math.prod(shape), kernel_init=normal, name="logits", **PRODUCT)(z)
        logits = logits.reshape(*z.shape[:-1], *shape)
        chosen = gumbel_softmax(key, logits, temperature)
        part = -(-self.size // self.groups)
        book = self.param("codebooks", nn.initializers.uniform(1.0), (*shape, part))
        code = jnp.einsum("...gv,gvd->...gd", chosen, book).reshape(*z.shape[:-1], -1)
        q = nn.Dense(self.size, name="project", **PRODUCT)(code)
        return q, jnp.argmax(chosen, axis=-1), jax.nn.softmax(logits)


class Wav2Vec2(nn.Module):
    """Waves (n, samples) to features, their codes, and contexts of masked features."""

    waves: Waves
    context: Transformer
    quantizer: Quantizer

    def setup(self) -> None:
        self.norm = nn.LayerNorm()
        self.into = nn.Dense(self.context.width, **PRODUCT)
        self.blank = self.param("blank", nn.initializers.uniform(1.0), (self.context.width,))
        self.final = nn.Dense(self.quantizer.size, **PRODUCT)

    def features(self, x: Array) -> tuple[Array, Array]:
        """Features of waves, (n, t, waves.width), normalised, and the mean square of those before.

        Waves are given the mean 0 and the variance 1.
        """
        mean, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
        z = self.waves((x - mean) * jax.lax.rsqrt(var + 1e-7))
        return self.norm(z), jnp.mean(z**2, axis=(1, 2))

    def contexts(self, z: Array, mask: Array | None = None, train: bool = False) -> Array:
        """Features (n, t, d), blank where `mask` (n, t) is true, to contexts (n, t, width)."""
        y = self.into(z)
        if mask is not None:
            y = jnp.where(mask[:, :, None], self.blank.astype(y.dtype), y)
        return self.context(y, train=train)[0]

    def __call__(
        self,
        x: Array,
        mask: Array,
        at: Array,
        key: Array | None = None,
        temperature: Array | float = 1.0,
        train: bool = False,
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Contexts and codes (n, k, size) of the masked steps `at` (n, k), the codes' entries (n,
        k, groups), the probabilities of all entries, (n, k, groups, entries), and the mean square
        of the features, (n,)."""
        z, square = self.features(x)
        pick = lambda x: jnp.take_along_axis(x, at[:, :, None], axis=1)
        c = self.final(pick(self.contexts(z, mask, train)))
        return c, *self.quantizer(pick(z), key, temperature), square

    def encode(self, x: Array) -> Array:
        """Contexts of waves of which nothing is masked: (n, t, width)."""
        return self.contexts(self.features(x)[0])

    def entries(self, x: Array) -> Array:
        """The likeliest entries of each step: (n, t, groups)."""
        return self.quantizer(self.features(x)[0])[1]
