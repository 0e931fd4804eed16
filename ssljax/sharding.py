"""Sharding: batches are split over devices, states by a rule on path and shape."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import functools
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.errors import InputError

Tree = Any

BATCH = P(("data", "fsdp"))  # Examples are split over both axes; those of tensor share them.
# Parameters of ViTs and Transformers that are split over the axis tensor: Shoeybi et al., 2019,
# arXiv:1909.08053, section 3. A product of columns and one of rows need one sum over devices.
COLUMNS = re.compile(r"(^|/)(up|gate|q)\d+/kernel$")
ROWS = re.compile(r"(^|/)(out|down|cross|qkv|kv)\d+/kernel$")
BIASES = re.compile(r"(^|/)(up|gate)\d+/bias$")


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


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None, tensor: int = 1) -> Mesh:
    """Mesh of all devices, (data, fsdp); `fsdp=1` is plain data parallelism.

    With `tensor` above 1 it has a third axis of that name, of devices that share their examples.
    `devices` are another machine's, to compile a program for it. InputError if `fsdp` times
    `tensor` does not divide their number.
    """
    n = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or tensor < 1 or n % (fsdp * tensor):
        times = f" times --run.tensor {tensor}" if tensor > 1 else ""
        raise InputError(
            f"--run.fsdp {fsdp}{times} does not divide the {n} device{'s' * (n > 1)} of "
            f"{'this' if devices is None else 'that'} machine."
        )
    sizes = {"data": n // (fsdp * tensor), "fsdp": fsdp}
    # Last, so that the devices that communicate most are neighbours.
    sizes |= {"tensor": tensor} if tensor > 1 else {}
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def batch_parts(mesh: Any = None) -> int:
    """Number of parts into which a batch is split on a mesh, by default that of the context."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH[0])


def tensor_parts(mesh: Any = None) -> int:
    """Number of parts into which heads and hidden channels are split on a mesh, as above."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return mesh.shape.get("tensor", 1)


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


def tensor(path: str, x: Any, mesh: Any, other: Any = fsdp) -> P:
    """Splits the layers of ViTs and Transformers over the axis tensor, and all by `other`.

    `x` is an array or its shape, and `mesh` may be abstract.

    That is by columns what heads and hidden units are computed by, and by rows what they are summed
    by (Megatron). Queries, keys and values of one kernel are split by its rows at rest, as its
    columns are not in the order of the heads. InputError where a dimension is not divisible.
    """
    n = tensor_parts(mesh)
    at = 1 if COLUMNS.search(path) else 0 if ROWS.search(path) or BIASES.search(path) else None
    if n == 1 or at is None or x.ndim != (1 if BIASES.search(path) else 2):
        return other(path, x, mesh)
    if x.shape[at] % n:
        raise InputError(f"--run.tensor {n} does not divide the {x.shape[at]} channels of {path}.")
    spec: list[str | None] = [None] * x.ndim
    spec[at] = "tensor"
    if x.ndim == 2:
        splits = other(path, x, mesh) != P() and x.shape[1 - at] % mesh.shape["fsdp"] == 0
        spec[1 - at] = "fsdp" if splits else None
    return P(*spec)


_rule: contextvars.ContextVar[Callable] = contextvars.ContextVar("rule", default=fsdp)


@contextlib.contextmanager
def splitting(rule: Callable[[str, Any, Any], P]) -> Iterator[None]:
    """Context in which a step is traced whose parameters are split by `rule(path, x, mesh)`."""
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)


def gathered(params: Tree) -> Tree:
    """Parameters as a step computes with them: whole on every device but for the axis tensor.

    They are split at rest, and XLA would otherwise split activations by channel wherever a
    parameter, or its gradient, is split. A gradient is summed over the devices whole, too, and only
    then split as the optimizer's state is, but for the kernels of ViTs and Transformers, which have
    most parameters: those are split as the rule of `splitting` says, so that XLA sums each part
    where it is wanted. Of GPT 124M on 8 H100 with --run.fsdp 4 a device then sends 1.20 GB a step,
    1.51 where all are summed whole. With all gradients split, an LSTM moved activations in each
    turn of its loop, and DINO's head gathered its weights once more. Outside of a mesh they are
    returned as they are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params
    rule = _rule.get()

    def gather(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = _name(path)
        spec = tensor(name, x, mesh, other=lambda *_: P())
        splits = x.ndim == 2 and (COLUMNS.search(name) or ROWS.search(name))
        return _laid_out(x, spec, tensor(name, x, mesh, other=rule) if splits else spec)

    return jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _laid_out(x: jax.Array, spec: P, gradient: P) -> jax.Array:
    """`x` laid out by one specification, and its gradient by another."""
    # This constrains nothing, but without it XLA may name the gather after the line of a user.
    free = jax.lax.with_sharding_constraint(x, P(*[P.UNCONSTRAINED] * x.ndim))
    return jax.lax.with_sharding_constraint(free, spec)


_laid_out.defvjp(
    lambda x, spec, gradient: (_laid_out(x, spec, gradient), None),
    lambda spec, gradient, _, g: (jax.lax.with_sharding_constraint(g, gradient),),
)


def over_batch(x: jax.Array) -> jax.Array:
    """Splits an array made inside a step (latents, masks) over the devices, as a batch is.

    Without it, XLA may compute the array whole on every device, or split it in a way that makes
    gradients wrong (https://github.com/jax-ml/jax/issues/16894). Outside of a mesh, and for a
    number of rows that the devices don't divide, the array is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % batch_parts():
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
        return NamedSharding(mesh, rule(_name(path), x, mesh))

    return jax.tree_util.tree_map_with_path(sharding_of, state)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
