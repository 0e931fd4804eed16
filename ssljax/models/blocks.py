"""Work on a few examples at a time, so that what lies between its steps stays in the cache."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from ssljax.sharding import batch_parts, over_batch

Tree = Any


def per_block(n: int, most: int) -> int:
    """Examples of a block: the largest divisor up to `most` of what each device has of `n`.

    0 where the devices of the mesh do not divide n.
    """
    each, rest = divmod(n, batch_parts())
    return 0 if rest else max(b for b in range(1, each + 1) if each % b == 0 and b <= most)


def map_blocks(f: Callable[..., Tree], args: Tree, size: int) -> Tree:
    """`f(*args)` over the leading axis, by blocks of `size` examples on each device.

    `f` treats examples independently and takes any number of them. `size` is from `per_block`;
    with 0, f is called once.
    """
    n, devices = len(jax.tree.leaves(args)[0]), batch_parts()
    if size in (0, n // devices):
        return f(*args)

    def one(block: Tree) -> Tree:
        out = f(*jax.tree.map(lambda x: x.reshape(devices * size, *x.shape[2:]), block))
        return jax.tree.map(lambda x: x.reshape(devices, size, *x.shape[1:]), out)

    out = jax.lax.map(one, _split(args, size))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(n, *x.shape[3:]), out)


def sum_blocks(
    f: Callable[..., Array], args: Tree, size: int, last: Callable[[Array], Array] = lambda x: x
) -> Array:
    """`last(f(*args))` where f sums over the leading axis, by blocks of `size` on each device.

    `last` is linear; each device applies it to its own sum. `size` is from `per_block`; with 0, f
    is called once.
    """
    if not size:
        return last(f(*args))
    each = jax.vmap(f)  # Over devices.
    blocks = _split(args, size)
    if len(jax.tree.leaves(blocks)[0]) == 1:
        total = each(*jax.tree.map(lambda x: x[0], blocks))
    else:
        shape = jax.eval_shape(each, *jax.tree.map(lambda x: x[0], blocks))
        zeros = over_batch(jnp.zeros(shape.shape, shape.dtype))
        total = jax.lax.scan(lambda sum, args: (sum + each(*args), None), zeros, blocks)[0]
    return jax.vmap(last)(total).sum(0)


def _split(args: Tree, size: int) -> Tree:
    """Arrays (n, ...) as (blocks, devices, size, ...), each device with its own share of n.

    The axis that is split over devices is kept apart, so that a loop over blocks needs no
    communication.
    """
    devices = batch_parts()
    return jax.tree.map(lambda x: x.reshape(devices, -1, size, *x.shape[1:]).swapaxes(0, 1), args)
