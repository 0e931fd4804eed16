"""Values and gradients of the same function in JAX, float32, and in PyTorch, float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def tensor(x: Any, grad: bool = False) -> Any:
    """A float64 tensor, or one of whole numbers where `x` has those."""
    import torch

    t = torch.tensor(np.asarray(x))
    return t.double().requires_grad_(grad) if t.is_floating_point() else t


def ours_with_gradients(f: Callable, *xs: np.ndarray) -> list[np.ndarray]:
    """The value of `f` and its gradients by all `xs`."""
    xs = [jnp.asarray(x, jnp.float32) for x in xs]
    value, grads = jax.jit(jax.value_and_grad(f, argnums=tuple(range(len(xs)))))(*xs)
    return [np.asarray(value), *map(np.asarray, grads)]


def theirs_with_gradients(f: Callable, *xs: np.ndarray) -> list[np.ndarray]:
    """The same of a function of tensors; the gradient is zeros where there is none."""
    tensors = [tensor(x, grad=True) for x in xs]
    value = f(*tensors)
    value.sum().backward()
    grads = [np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in tensors]
    return [value.detach().numpy().reshape(()), *grads]


def agree_with_gradients(row: Any, tolerance: float, ours: Callable, theirs: Callable, *xs) -> None:
    """Compares the values and the gradients by all `xs`."""
    found = zip(ours_with_gradients(ours, *xs), theirs_with_gradients(theirs, *xs))
    for mine, other in found:
        row.agree(mine, other, tolerance)
