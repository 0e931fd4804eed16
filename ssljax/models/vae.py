"""A latent-variable model of images with a Gaussian posterior: the VAE and its descendants."""

from typing import Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.data import augment
from ssljax.losses.elbo import gaussian_log_prob, log_normal
from ssljax.losses.reconstruction import cross_entropy
from ssljax.models.coder import Convolutional, Dense
from ssljax.sharding import over_batch

Pixels = Literal["binary", "grey", "gaussian"]


class VAE(nn.Module):
    """q(z|x) and p(x|z) of images x (n, *shape) and codes z (n, latents), with p(z) standard
    normal.

    A condition y (n, c) shifts the mean and variance of q and is concatenated to z for the decoder.
    """

    coder: Dense | Convolutional
    """Encoder and decoder."""
    latents: int
    """Dimensions of z."""
    shape: tuple[int, int, int]
    """Height, width and channels of the images."""
    pixels: Pixels = "binary"
    """p(x|z).

    - binary: Bernoulli; pixels are drawn by their brightness at each step.
    - grey: cross-entropy with the brightness itself, which is not a likelihood.
    - gaussian: normal around the decoder's mean with one learned variance, a density of the
      brightness with uniform noise within its 256th.
    """

    def setup(self):
        self.encoder = self.coder.encoder(2 * self.latents)
        self.decoder = self.coder.decoder(self.shape)
        self.shift = nn.Dense(2 * self.latents, use_bias=False)
        self.log_var = self.param("log_var", nn.initializers.zeros, ())

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """The reconstruction from the posterior's mean."""
        return self.decode(self.posterior(x, y)[0], y)

    def observe(self, key: Array, images: Array) -> Array:
        """uint8 images (n, *shape) as samples that p(x|z) models."""
        x = augment.to_float(images)
        if self.pixels == "gaussian":
            return (255 * x + over_batch(jax.random.uniform(key, x.shape))) / 256
        return augment.binarize(key, x) if self.pixels == "binary" else x

    def posterior(self, x: Array, y: Array | None = None) -> tuple[Array, Array]:
        """Mean and log variance of q(z|x), (n, latents) each."""
        x = augment.to_float(x)
        both = self.encoder(x) + (0 if y is None else self.shift(y))
        mean, log_var = jnp.split(both, 2, axis=-1)
        return mean, log_var

    def infer(self, images: Array, y: Array | None = None) -> tuple[Array, Array]:
        """`posterior` of uint8 images; binary pixels are drawn with a fixed key."""
        return self.posterior(self.observe(jax.random.key(0), images), y)

    def draw(self, key: Array, mean: Array, log_var: Array, k: int) -> Array:
        """k samples of q(z|x): (k, n, latents)."""
        # Examples first, the axis that is split over devices.
        noise = jax.random.normal(key, (len(mean), k, self.latents))
        return mean + jnp.exp(log_var / 2) * over_batch(noise).swapaxes(0, 1)

    def log_prob(self, x: Array, z: Array, y: Array | None = None) -> Array:
        """log p(x|z) of x (n, *shape) and z (..., n, latents): (..., n)."""
        out = self._out(z, y)
        return (
            gaussian_log_prob(x, out, self.log_var)
            if self.pixels == "gaussian"
            else -cross_entropy(x, out)
        )

    def log_weight(
        self, x: Array, z: Array, mean: Array, log_var: Array, y: Array | None = None
    ) -> Array:
        """log p(x, z) - log q(z|x), (..., n)."""
        return self.log_prob(x, z, y) + (log_normal(z) - log_normal(z, mean, log_var)).sum(-1)

    def decode(self, z: Array, y: Array | None = None) -> Array:
        """The mean image, in [0, 1] except for Gaussian pixels."""
        return self._out(z, y) if self.pixels == "gaussian" else jax.nn.sigmoid(self._out(z, y))

    def log_weights(self, key: Array, x: Array, k: int, y: Array | None = None) -> Array:
        """`log_weight` of k samples, (k, n), for `evals.likelihood`."""
        q = self.posterior(x, y)
        return self.log_weight(x, self.draw(key, *q, k), *q, y)

    def _out(self, z: Array, y: Array | None) -> Array:
        if y is not None:
            z = jnp.concatenate([z, jnp.broadcast_to(y, (*z.shape[:-1], y.shape[-1]))], axis=-1)
        # Examples first, the axis that devices share, as the decoder joins it with that of draws.
        return jnp.moveaxis(self.decoder(jnp.moveaxis(z, -2, 0)), 0, -4)
