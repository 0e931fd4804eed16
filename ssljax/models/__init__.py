"""Networks in Flax Linen. A net computes in its `dtype`; its parameters are float32."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

Dtype = Literal["float32", "bfloat16"]
Activation = Literal["relu", "leaky_relu", "tanh", "gelu", "silu"]


def activate(name: Activation) -> Callable[[Array], Array]:
    """The function of that name: leaky_relu with DCGAN's slope 0.2, gelu exact, as in PyTorch."""
    return {
        "relu": jax.nn.relu,
        "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
        "tanh": jnp.tanh,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "silu": jax.nn.silu,
    }[name]


def apply_training(
    net: nn.Module, params: Any, stats: Any, x: Array, *args: Any
) -> tuple[Array, Any]:
    """Output of `net(x, True, *args)`, and its batch statistics after this batch.

    `stats` is {"batch_stats": ...} or empty, as what is returned.
    """
    return net.apply({"params": params, **stats}, x, True, *args, mutable=["batch_stats"])
