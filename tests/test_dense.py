"""Parts of dense layers as a CPU computes them, against JAX's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models.dense import gelu, product
from tests.test_convolution import agree, draw


@pytest.mark.parametrize("shape", [(7, 9, 3), (7, 3, 9), (2, 4, 9, 3)])
def test_product_equals_a_dense_layers(shape):
    *rows, d, f = shape
    x, kernel = draw((*rows, d), (d, f))
    layer = lambda dot: (
        lambda x, kernel: nn.Dense(f, use_bias=False, dot_general=dot).apply(
            {"params": {"kernel": kernel}}, x
        )
    )
    agree(layer(product), layer(None), x, kernel)


def test_gelu_equals_jaxs_also_in_its_tails():
    x = jnp.linspace(-12, 12, 1001)
    agree(gelu, lambda x: jax.nn.gelu(x, approximate=False), x)
    slope = jax.vmap(jax.grad(gelu))
    np.testing.assert_allclose(
        slope(jnp.array([-5.0, 0.0, 5.0])), [-7.1e-6, 0.5, 1 + 7.1e-6], rtol=2e-2
    )
    assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
