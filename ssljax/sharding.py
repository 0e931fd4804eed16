"""Sharding: batches are split over all devices, states by a rule on path and shape."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.errors import InputError

Tree = Any

BATCH = P(("data", "fsdp"))  # Examples are split over all devices, on both axes of the mesh.


def split_cpu(n: int) -> None:
    """Simulates `n` devices on a CPU; changes nothing if n is 0.

    InputError for a negative n, and if JAX has already started with another number of devices.
    """
    if n < 0:
        raise InputError(f"--run.cpu-devices must be at least 0, not {n}.")
    try:
        if n:
            jax.config.update("jax_num_cpu_devices", n)
    except RuntimeError:
        if (found := jax.device_count("cpu")) != n:
            raise InputError(
                f"JAX has already started, with {found} CPU device{'s' * (found > 1)}, not {n}: "
                "choose cpu_devices before anything is computed."
            ) from None


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh of all devices, (data, fsdp); `fsdp=1` is plain data parallelism.

    `devices` are another machine's, to compile a program for it. InputError if `fsdp` does not
    divide their number.
    """
    n = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or n % fsdp:
        raise InputError(
            f"--run.fsdp {fsdp} does not divide the {n} device{'s' * (n > 1)} of this machine."
        )
    return jax.make_mesh(
        (n // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def platform() -> str:
    """Platform that a program is traced for (cpu, gpu or tpu): the mesh's, else JAX's default.

    The mesh may be that of another machine, for which a program is compiled on this one.
    """
    device = _mesh_device()
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """Kind of device that a program is traced for, as in "NVIDIA H100 80GB HBM3" or "TPU v5 lite".

    Of the mesh, as for `platform`, else of JAX's first device.
    """
    device = _mesh_device()
    return jax.devices()[0].device_kind if device is None else device.device_kind


def _mesh_device() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def fsdp(path: str, x: jax.ShapeDtypeStruct, mesh: Mesh, min_size: int = 2**16) -> P:
    """Splits the largest dimension that the size of the fsdp axis divides.

    Arrays of fewer than `min_size` elements are copied to every device.
    """
    n = mesh.shape["fsdp"]
    dims = [d for d in range(x.ndim) if x.shape[d] % n == 0]
    if n == 1 or math.prod(x.shape) < min_size or not dims:
        return P()
    spec: list[str | None] = [None] * x.ndim
    spec[max(dims, key=lambda d: x.shape[d])] = "fsdp"
    return P(*spec)


def over_batch(x: jax.Array) -> jax.Array:
    """Splits an array made inside a step (latents, masks) over the devices, as a batch is.

    Without it, XLA may compute the array whole on every device, or split it in a way that makes
    gradients wrong (https://github.com/jax-ml/jax/issues/16894). Outside of a mesh, and for a
    number of rows that the devices don't divide, the array is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def whole(x: jax.Array) -> jax.Array:
    """Puts an array made inside a step, such as weights after dropout, on every device, whole.

    Without it, XLA may split it as parameters are at rest, and gather it in every turn of a loop.
    Outside of a mesh it is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, P())


def shard_state(state: Tree, rule, mesh: Mesh) -> Tree:
    """Sharding of each array of `state`, a tree of shapes, by `rule(path, shape, mesh)`."""

    def sharding_of(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, rule(name, x, mesh))

    return jax.tree_util.tree_map_with_path(sharding_of, state)
