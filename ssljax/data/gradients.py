"""Images as gradients, and back: a Poisson equation, solved by cosine transforms."""

from jax import Array
import jax.numpy as jnp
import jax.scipy.fft
import numpy as np


def gradient(x: Array) -> Array:
    """Differences to the pixel below and to the right, (n, h, w, c) to (n, h, w, 2 c).

    They are 0 at the last row and column.
    """
    below = jnp.diff(x, axis=1, append=x[:, -1:])
    right = jnp.diff(x, axis=2, append=x[:, :, -1:])
    return jnp.concatenate([below, right], axis=-1)


def integrate(field: Array, mean: Array) -> Array:
    """Images (n, h, w, c) of mean (n, c) whose `gradient` is nearest to `field` (n, h, w, 2 c).

    Nearest in squared error. The normal equations are a Poisson equation with free edges, diagonal
    in the cosine transform: Pérez et al., 2003, Poisson image editing; Simchony et al., 1990, IEEE
    TPAMI 12(5).
    """
    below, right = jnp.split(field, 2, axis=-1)
    h, w = field.shape[1:3]

    def transposed(g, axis):  # The transpose of a difference along one axis.
        inner = jnp.take(g, np.arange(g.shape[axis] - 1), axis)
        return -jnp.diff(inner, axis=axis, prepend=0, append=0)

    divergence = transposed(below, 1) + transposed(right, 2)
    vertical, horizontal = (2 - 2 * np.cos(np.pi * np.arange(s) / s) for s in (h, w))
    eigenvalues = vertical[:, None] + horizontal
    eigenvalues[0, 0] = 1  # Differences don't determine the mean, which is set below.
    y = jax.scipy.fft.dctn(divergence, axes=(1, 2), norm="ortho") / eigenvalues[None, :, :, None]
    y = y.at[:, 0, 0].set(mean * np.sqrt(h * w))
    return jax.scipy.fft.idctn(y, axes=(1, 2), norm="ortho")
