"""Images from their gradients: exact where the field is a gradient, and the nearest otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data import images
from ssljax.data.gradients import gradient, integrate


@pytest.mark.parametrize("shape", [(32, 32), (8, 13), (1, 6)])
def test_integrate_inverts_gradient(shape):
    x = jnp.asarray(images("photos", "test").image[::9, : shape[0], : shape[1]] / 255, jnp.float32)
    np.testing.assert_allclose(integrate(gradient(x), x.mean((1, 2))), x, atol=1e-4)


def test_gradient_is_differences_of_neighbours():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    g = np.asarray(gradient(jnp.asarray(x)))
    for n, i, j, c in np.ndindex(x.shape):
        assert g[n, i, j, c] == (x[n, i + 1, j, c] - x[n, i, j, c] if i < 2 else 0)
        assert g[n, i, j, 2 + c] == (x[n, i, j + 1, c] - x[n, i, j, c] if j < 3 else 0)


def test_integrate_is_least_squares():
    h, w = 4, 5
    field = np.random.default_rng(1).normal(size=(1, h, w, 2)).astype(np.float32)
    basis = jax.vmap(lambda e: gradient(e.reshape(1, h, w, 1)).ravel())(jnp.eye(h * w))
    target = np.array(field)
    target[:, -1, :, 0] = target[:, :, -1, 1] = 0  # No difference reaches over the far edges.
    u = np.linalg.lstsq(np.float64(basis.T), np.float64(target.ravel()), rcond=None)[0]
    found = np.asarray(integrate(jnp.asarray(field), jnp.array([[0.3]]))).ravel()
    np.testing.assert_allclose(found, u - u.mean() + 0.3, atol=1e-5)
