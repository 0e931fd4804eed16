"""Convolutions of ResNets: XLA's, except for what is faster otherwise on a CPU.

A 3x3 convolution of stride 1 is Winograd's F(2x2, 3x3), as Lavin and Gray, 2015
(https://arxiv.org/abs/1509.09308) apply it: sixteen matrix products with 2.25 times fewer
multiplications, for a few images at a time so that the tiles stay in the cache. Gradients are
computed in the same way. Results differ from XLA's by rounding, some 4e-6 of their standard
deviation in float32. A 1x1 convolution is one matrix product, and so is the gradient of other
kernels, of patches and gradients. On accelerators all are XLA's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ssljax.models.blocks import map_blocks, per_block, sum_blocks
from ssljax.sharding import BATCH, batch_parts, platform

Size = tuple[int, ...]
Convolution = Callable[[Array, Array], Array]  # Of images and a kernel.
Padding = tuple[tuple[int, int], ...]

ROWS = 256  # Tiles of a block, the rows of its products: these fill a core, and a cache of 1 MiB.


def convolve(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated` for `nn.Conv(conv_general_dilated=convolve)`.

    Images (n, h, w, c) and kernels (k, k, c, f) to (n, h', w', f). On a CPU there are gradients of
    any order by reverse mode, but no forward mode (`jax.jvp`) where the kernel is larger than 1x1.
    """
    plain = (
        platform() == "cpu"
        and lhs.ndim == 4
        and lhs.dtype == rhs.dtype == jnp.float32
        and options.get("feature_group_count", 1) == 1
        and all(d == 1 for k in ("lhs_dilation", "rhs_dilation") for d in options.get(k) or (1,))
    )
    if not plain:
        conv = partial(
            jax.lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options
        )
        return wide_kernel_gradient(conv, lhs, rhs)
    size, strides = rhs.shape[:2], tuple(window_strides)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], size, strides, padding)
    padding = tuple(map(tuple, padding))
    if size == (1, 1) and padding == ((0, 0), (0, 0)):
        x = lhs[:, :: strides[0], :: strides[1]]
        return (x.reshape(-1, x.shape[-1]) @ rhs[0, 0]).reshape(*x.shape[:-1], -1)
    if size == (3, 3) and strides == (1, 1) and padding == ((1, 1), (1, 1)) and _pays(lhs, rhs):
        return winograd(lhs, rhs)
    return by_patches(lhs, rhs, strides, padding)


def wide_kernel_gradient(conv: Convolution, x: Array, kernel: Array) -> Array:
    """conv(x, kernel), linear in both, of x (n, ...); the kernel's gradient is added up over
    devices in float32.

    XLA adds up that of a net of bfloat16 in bfloat16. There it has no forward mode (`jax.jvp`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if x.dtype == jnp.float32 or mesh.size == 1 or mesh.empty or len(x) % batch_parts():
        return conv(x, kernel)
    return _low(conv, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _low(conv: Convolution, x: Array, kernel: Array) -> Array:
    return conv(x, kernel)


def _low_backward(conv: Convolution, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    shape = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)

    def local(x: Array, dy: Array) -> Array:
        (dk,) = jax.linear_transpose(lambda kernel: conv(x, kernel), shape)(dy)
        return jax.lax.psum(dk.astype(jnp.float32), BATCH[0])

    dk = jax.shard_map(local, in_specs=(BATCH, BATCH), out_specs=P(), check_vma=False)(x, dy)
    (dx,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(dy)
    return dx, dk.astype(kernel.dtype)


_low.defvjp(lambda conv, x, kernel: (conv(x, kernel), (x, kernel)), _low_backward)


def _pays(x: Array, kernel: Array) -> bool:
    """Whether there are channels and tiles enough for products that outweigh the transforms."""
    rows = per_block(len(x), _images(x)) * _tiles(x)
    return min(kernel.shape[2:]) >= 32 and rows >= ROWS // 2


def _tiles(x: Array) -> int:
    """Tiles of 2x2 outputs of an image."""
    return -(-x.shape[1] // 2) * -(-x.shape[2] // 2)


def _images(x: Array) -> int:
    """Images of a block, at most."""
    return max(1, ROWS // _tiles(x))


@jax.custom_vjp
def winograd(x: Array, kernel: Array) -> Array:
    """The 3x3 convolution of `x` (n, h, w, c) by `kernel` (3, 3, c, f), stride 1, zero padding."""
    return _convolve_tiles(x, _transform_kernel(kernel), 1)


@jax.custom_vjp
def winograd_input_gradient(dy: Array, kernel: Array) -> Array:
    """The gradient (n, h, w, c) of `winograd`'s input, for that of its output (n, h, w, f)."""
    return _convolve_tiles(dy, _transform_kernel(kernel[::-1, ::-1]), 2)


def _convolve_tiles(x: Array, u: Array, axis: int) -> Array:
    """The convolution of x (n, h, w, c) by the transformed kernel u, whose `axis` has length c."""
    _, h, w, _ = x.shape

    def some(x: Array) -> Array:
        v = jax.lax.optimization_barrier(_transform_input(x))
        m = jax.lax.dot_general(v, u, (((2,), (axis,)), ((0,), (0,))))
        return _transform_output(jax.lax.optimization_barrier(m), h, w)

    return map_blocks(some, (x,), per_block(len(x), _images(x)))


@jax.custom_vjp
def winograd_kernel_gradient(x: Array, dy: Array) -> Array:
    """The gradient (3, 3, c, f) of `winograd`'s kernel, for that of its output (n, h, w, f)."""

    def product(x: Array, dy: Array) -> Array:
        v, d = jax.lax.optimization_barrier((_transform_input(x), _transform_gradient(dy)))
        return jax.lax.dot_general(v, d, (((1,), (1,)), ((0,), (0,))))

    # Transformed before the sum over devices, which then moves 9 numbers in place of 16.
    size = per_block(len(x), _images(x))
    return sum_blocks(product, (x, dy), size, _transpose_kernel_transform)


# Each is linear in both of its arguments, and the derivatives of each are the other two.
winograd.defvjp(
    lambda x, kernel: (winograd(x, kernel), (x, kernel)),
    lambda kept, dy: (
        winograd_input_gradient(dy, kept[1]),
        winograd_kernel_gradient(kept[0], dy),
    ),
)
winograd_input_gradient.defvjp(
    lambda dy, kernel: (winograd_input_gradient(dy, kernel), (dy, kernel)),
    lambda kept, dx: (winograd(dx, kept[1]), winograd_kernel_gradient(dx, kept[0])),
)
winograd_kernel_gradient.defvjp(
    lambda x, dy: (winograd_kernel_gradient(x, dy), (x, dy)),
    lambda kept, dk: (winograd_input_gradient(kept[1], dk), winograd(kept[0], dk)),
)


@lambda f: jax.custom_vjp(f, nondiff_argnums=(2, 3))  # A partial would have no type.
def by_patches(x: Array, kernel: Array, strides: Size, padding: Padding) -> Array:
    """XLA's convolution; its kernel's gradient is a product of patches and gradients."""
    return _xla(x, kernel, strides, padding)


def _xla(x: Array, kernel: Array, strides: Size, padding: Padding) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def _backward(strides: Size, padding: Padding, kept: tuple[Array, Array], dy: Array):
    x, kernel = kept
    both = partial(_xla, strides=strides, padding=padding)
    if x.shape[-1] < 32:  # The patches of few channels are copied slowly.
        return jax.vjp(both, x, kernel)[1](dy)
    (dx,) = jax.vjp(lambda x: both(x, kernel), x)[1](dy)
    (h, w), (rows, columns), c = kernel.shape[:2], dy.shape[1:3], x.shape[-1]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    last = lambda n, stride: (n - 1) * stride + 1  # Of the pixels that one place of a kernel meets.

    def product(x: Array, dy: Array) -> Array:
        places = [
            x[
                :,
                i : i + last(rows, strides[0]) : strides[0],
                j : j + last(columns, strides[1]) : strides[1],
            ]
            for i in range(h)
            for j in range(w)
        ]
        patches = jax.lax.optimization_barrier(jnp.concatenate(places, -1))
        flat = lambda a: a.reshape(-1, a.shape[-1])
        return jnp.einsum("tp,tf->pf", flat(patches), flat(dy))

    most = max(1, 2 * ROWS // (rows * columns))
    return dx, sum_blocks(product, (x, dy), per_block(len(x), most)).reshape(h, w, c, -1)


by_patches.defvjp(lambda x, kernel, *how: (by_patches(x, kernel, *how), (x, kernel)), _backward)


# The transforms of F(2x2, 3x3), Lavin and Gray, eq. 7 to 10. Each is applied along the rows of a
# tile and then along its columns; the 16 places of a tile go first.


def _transform_input(x: Array) -> Array:
    """Bᵀ d B of the overlapping tiles (4, 4) of x (n, h, w, c), padded by 1: (16, n·tiles, c)."""
    n, h, w, c = x.shape
    rows, columns = -(-h // 2), -(-w // 2)
    x = jnp.pad(x, ((0, 0), (1, 2 * rows - h + 1), (1, 2 * columns - w + 1), (0, 0)))
    b = lambda d0, d1, d2, d3: (d0 - d2, d1 + d2, d2 - d1, d1 - d3)
    down = b(*[x[:, i : i + 2 * rows - 1 : 2] for i in range(4)])
    both = [b(*[r[:, :, i : i + 2 * columns - 1 : 2] for i in range(4)]) for r in down]
    return jnp.stack(sum(both, ())).reshape(16, n * rows * columns, c)


def _transform_kernel(kernel: Array) -> Array:
    """G g Gᵀ of a kernel (3, 3, c, f): (16, c, f)."""
    g = lambda g0, g1, g2: (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2)
    return jnp.stack(sum((g(*r) for r in g(*kernel)), ()))


def _transform_output(m: Array, h: int, w: int) -> Array:
    """Aᵀ m A, tiles (2, 2), of m (16, n·tiles, f): (n, h, w, f)."""
    rows, columns = -(-h // 2), -(-w // 2)
    m = m.reshape(4, 4, -1, rows, columns, m.shape[-1])
    a = lambda m0, m1, m2, m3: (m0 + m1 + m2, m1 - m2 - m3)
    y = jnp.stack([jnp.stack(a(*r), 3) for r in a(*m)], 2)
    return y.reshape(-1, 2 * rows, 2 * columns, m.shape[-1])[:, :h, :w]


def _transform_gradient(dy: Array) -> Array:
    """A dy Aᵀ, tiles (4, 4), of the tiles (2, 2) of dy (n, h, w, f): (16, n·tiles, f)."""
    n, h, w, f = dy.shape
    rows, columns = -(-h // 2), -(-w // 2)
    dy = jnp.pad(dy, ((0, 0), (0, 2 * rows - h), (0, 2 * columns - w), (0, 0)))
    a = lambda y0, y1: (y0, y0 + y1, y0 - y1, -y1)
    both = [a(r[:, :, ::2], r[:, :, 1::2]) for r in a(dy[:, ::2], dy[:, 1::2])]
    return jnp.stack(sum(both, ())).reshape(16, n * rows * columns, f)


def _transpose_kernel_transform(u: Array) -> Array:
    """Gᵀ u G of u (16, c, f): (3, 3, c, f)."""
    g = lambda u0, u1, u2, u3: (u0 + (u1 + u2) / 2, (u1 - u2) / 2, (u1 + u2) / 2 + u3)
    down = g(*u.reshape(4, 4, *u.shape[1:]))
    return jnp.stack([jnp.stack(g(*r)) for r in down])
