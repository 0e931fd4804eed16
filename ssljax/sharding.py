"""Where arrays live: batches are split over all devices, states by a rule on path and shape."""

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.errors import InputError

Tree = Any

BATCH = P(("data", "fsdp"))  # Examples lie over all devices, whichever axis those are on.


def split_cpu(n: int) -> None:
    """Makes `n` devices of a CPU, or leaves it if n is 0. InputError for less, and once JAX has started with others."""
    if n < 0:
        raise InputError(f"--run.cpu-devices must be at least 0, not {n}.")
    try:
        if n:
            jax.config.update("jax_num_cpu_devices", n)
    except RuntimeError:
        if (found := jax.device_count("cpu")) != n:
            raise InputError(
                f"JAX has already started, with {found} CPU device{'s' * (found > 1)}, not {n}: choose "
                "cpu_devices before anything is computed."
            ) from None


def make_mesh(fsdp: int = 1) -> Mesh:
    """All devices as (data, fsdp); `fsdp=1` is plain data parallelism. InputError if it doesn't divide the devices."""
    n = jax.device_count()
    if fsdp < 1 or n % fsdp:
        raise InputError(
            f"--run.fsdp {fsdp} does not divide the {n} device{'s' * (n > 1)} of this machine."
        )
    return jax.make_mesh(
        (n // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def fsdp(path: str, x: jax.ShapeDtypeStruct, mesh: Mesh, min_size: int = 2**16) -> P:
    """Splits the largest dimension that the axis divides; arrays under `min_size` elements are copied everywhere."""
    n = mesh.shape["fsdp"]
    dims = [d for d in range(x.ndim) if x.shape[d] % n == 0]
    if n == 1 or math.prod(x.shape) < min_size or not dims:
        return P()
    spec: list[str | None] = [None] * x.ndim
    spec[max(dims, key=lambda d: x.shape[d])] = "fsdp"
    return P(*spec)


def over_batch(x: jax.Array) -> jax.Array:
    """Splits an array that is born inside a step (latents, masks) over the devices as a batch is; a no-op off a mesh.

    Without it XLA may compute it whole on every device, or split it in a way that makes gradients wrong
    (https://github.com/jax-ml/jax/issues/16894).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def shard_state(state: Tree, rule, mesh: Mesh) -> Tree:
    """The sharding of each array of `state`, a tree of shapes, by `rule(path, shape, mesh)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(
            mesh, rule(jax.tree_util.keystr(path, simple=True, separator="/"), x, mesh)
        ),
        state,
    )
