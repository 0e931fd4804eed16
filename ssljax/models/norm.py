"""BatchNorm (Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167), faster on a CPU."""

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp

from ssljax.sharding import platform


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` over the last axis, with its parameters, statistics and values.

    In training on a CPU it works on a matrix, with its gradient written out: half the time, and
    other rounding. There it has gradients of any order by reverse mode, but no forward mode
    (`jax.jvp`). It has a scale and a bias, and float32 statistics.
    """

    @nn.compact
    def __call__(
        self,
        x: Array,
        use_running_average: bool | None = None,
        *,
        mask: Array | None = None,
    ) -> Array:
        """Normalised `x` (..., channels), in `dtype`; arguments as Flax's."""
        given = nn.merge_param("average", self.use_running_average, use_running_average)
        if given or mask is not None or platform() != "cpu":
            return super().__call__(x, use_running_average, mask=mask)
        c = x.shape[-1]
        scale = self.param("scale", self.scale_init, (c,), self.param_dtype)
        bias = self.param("bias", self.bias_init, (c,), self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        y, m, v = normalize(x.reshape(-1, c), scale, bias, self.epsilon)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * m
            var.value = self.momentum * var.value + (1 - self.momentum) * v
        return y.reshape(x.shape).astype(self.dtype or x.dtype)


@lambda f: jax.custom_vjp(f, nondiff_argnums=(3,))  # A partial would have no type.
def normalize(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(variance + ε) · scale + bias, the mean and the variance (c,) of x (n, c).

    Statistics and the result are float32. The mean and the variance have no gradient.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    total, squares = _sums(x, x)
    mean = total / len(x)
    var = jnp.maximum(0, squares / len(x) - mean**2)
    root = jax.lax.rsqrt(var + epsilon)
    y = (x - mean) * (root * scale) + bias
    return (y, mean, var), (x, mean, root, scale)


def _backward(epsilon, kept, grads):
    x, mean, root, scale = kept
    dy, n = grads[0], len(x)
    total, products = _sums(dy, x)
    dscale = (products - mean * total) * root
    # scale · root · (dy - mean of dy - normalised x · mean of its product with dy).
    dx = (scale * root) * (dy - total / n - (x - mean) * (root * dscale / n))
    return dx.astype(x.dtype), dscale, total


def _sums(a: Array, b: Array) -> tuple[Array, Array]:
    """The sums of `a` and of `a b` over their rows, (c,) each, stacked for one reduction."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    both = jnp.stack([jnp.sum(a, 0), jnp.sum(a * b, 0)])
    return both[0], both[1]


normalize.defvjp(_forward, _backward)
