"""Parts of dense layers, as a CPU computes them faster than XLA's derivatives of them."""

import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.sharding import platform


def product(lhs: Array, rhs: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` for `nn.Dense(dot_general=product)`, of inputs and a kernel.

    On a CPU the gradient of a kernel that has more rows than columns is computed transposed, which
    takes half the time (512 by 128, 768 tokens: 1.1 ms in place of 2.0 on one core). There it has
    gradients of any order by reverse mode, but no forward mode (`jax.jvp`).
    """
    tall = lhs.ndim == 2 and rhs.shape[0] > rhs.shape[1]
    if not tall or platform() != "cpu":
        return jax.lax.dot_general(lhs, rhs, dimension_numbers, **options)
    return _tall(lhs, rhs)


@jax.custom_vjp
def _tall(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    # The barrier keeps XLA from undoing the transposition.
    return dy @ kernel.T, jax.lax.optimization_barrier(dy.T @ x).T


_tall.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)


def gelu(x: Array) -> Array:
    """The exact GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415), of any shape.

    On a CPU its derivative is computed with it, from the same error function, and kept.
    """
    return _gelu(x) if platform() == "cpu" else jax.nn.gelu(x, approximate=False)


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_with_slope(x: Array) -> tuple[Array, Array]:
    below = jax.lax.erfc(-x * math.sqrt(0.5)) / 2  # Φ(x).
    return x * below, below + x * jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


_gelu.defvjp(_gelu_with_slope, lambda slope, dy: (slope * dy,))
