"""The step of a run, compiled for a machine that isn't there, by the code that compiles runs."""

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, replace
import re
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding
import numpy as np

from ssljax import sharding
from ssljax.backends import quiet
from ssljax.errors import InputError
from ssljax.experiment import Experiment
from ssljax.models.attention import assumed_cudnn
from ssljax.plan.machines import Machine
from ssljax.program import Program
from ssljax.run import Run

Tree = Any


@dataclass(frozen=True)
class Step:
    """A compiled program of `run.steps_per_call` steps, or why there is none."""

    program: Program
    mesh: Mesh
    arguments: dict[str, Tree]  # Shapes with shardings: params, optimizer, extra, batch, resident.
    jaxpr: Any
    memory: dict[str, int]  # Bytes per device: arguments, output, alias, temporaries, code.
    text: str  # HLO; empty where the program needs too much memory to be compiled.
    cost: dict[str, float]  # What the compiler counts, if it counts.
    seconds: float  # That compiling took.

    @property
    def total(self) -> int:
        """Bytes that a device needs at once."""
        m = self.memory
        other_seeds = 0 if self.program.vmapped else len(self.program.seeds) - 1
        state = sum(bytes_of(self.arguments[kind]) for kind in ("parameters", "optimizer", "extra"))
        return (
            m["arguments"] + m["output"] - m["alias"] + m["temporaries"] + m["code"]
        ) + other_seeds * state


def compile_step(exp: Experiment, run: Run, machine: Machine) -> Step:
    """The step of `exp` for `machine`, from the shapes of its data; nothing is computed.

    InputError for settings that are not possible there.
    """
    mesh = sharding.make_mesh(run.fsdp, list(machine.devices), run.tensor)
    if exp.data.batch_size % (n := sharding.batch_parts(mesh)):
        raise InputError(
            f"A batch of {exp.data.batch_size} can't be split over the {n} devices of "
            f"{machine.name}: choose a --batch-size that is a multiple of {n}."
        )
    fed, resident = shapes_of_data(exp.data, mesh)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), _without_cache(), assumed_cudnn():
        program = Program(exp, run, mesh, fed, resident)
        lead = (run.seeds,) if program.vmapped else ()

        def lane(x):
            spec = (None, *x.sharding.spec) if lead and x.sharding is not None else None
            along = NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)) if spec else x.sharding
            return jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=along)

        shapes = program.shapes()
        state = shapes[0] if isinstance(shapes, list) else shapes
        new = jax.eval_shape(program.new_accumulator)
        every = sharding.replicated(mesh)
        accumulators = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=every),
            new[0] if isinstance(new, list) else new,
        )
        keys = jax.eval_shape(
            lambda: program.stacked_keys if program.vmapped else jax.random.key(0)
        )
        steps = (jax.tree.map(lane, fed),) * run.steps_per_call
        start = time.perf_counter()
        compiled: Any = program.compiled  # A jitted function.
        traced = compiled.trace(state, accumulators, keys, resident, steps)
        try:
            with quiet():
                done = traced.lower().compile(compiler_options=machine.options)
        except jax.errors.JaxRuntimeError as e:
            memory, text, cost = _memory_of(str(e)), "", {}
            if memory is None:
                raise
        else:
            memory, text = _memory(done.memory_analysis()), done.as_text() or ""
            found = done.cost_analysis() or {}
            cost = {k: float(v) for k, v in found.items() if k in ("flops", "bytes accessed")}
    arguments = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "extra": state.extra,
        "batch": steps,
        "resident data": resident,
    }
    seconds = time.perf_counter() - start
    return Step(program, mesh, arguments, traced.jaxpr, memory, text, cost, seconds)


def shapes_of_data(data: Any, mesh: Mesh) -> tuple[Tree, Tree]:
    """What a step is sent and what lies on the devices, as shapes with shardings.

    The shapes are those of two small batches, whose axes that differ grow with the batch: one of a
    pod's size would not fit in this machine's memory.
    """
    one = sharding.make_mesh(1, devices=jax.devices("cpu")[:1])
    small = [4, 8]
    feeds = [replace(data, batch_size=n).feed(0, 0, one) for n in small]
    first, second = (next(feed) for feed in feeds)

    def shape(a, b):
        grown = [
            n + (m - n) // (small[1] - small[0]) * (data.batch_size - small[0])
            for n, m in zip(a.shape, b.shape, strict=True)
        ]
        spec = getattr(a.sharding, "spec", None) if isinstance(a, jax.Array) else None
        along = None if spec is None else NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(tuple(grown), a.dtype, sharding=along)

    everywhere = sharding.replicated(mesh)
    resident = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), data.resident()
    )
    return jax.tree.map(shape, first, second), resident


def bytes_of(tree: Tree) -> int:
    """Bytes of a tree of shapes on one device."""
    total = 0
    for x in jax.tree.leaves(tree):
        part = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        total += int(np.prod(part, dtype=np.int64)) * x.dtype.itemsize
    return total


def _memory(found: Any) -> dict[str, int]:
    return {
        "arguments": found.argument_size_in_bytes,
        "output": found.output_size_in_bytes,
        "alias": found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }


UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _memory_of(error: str) -> dict[str, int] | None:
    """Bytes that a TPU's program needs, which its compiler refuses; None of another error."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", error) or re.search(
        r"memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds", error
    )
    if not found:
        return None
    used = round(float(found[1]) * UNITS[found[2]])
    return {"arguments": 0, "output": 0, "alias": 0, "temporaries": used, "code": 0}


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """JAX's cache of compiled programs is of programs for this machine."""
    options: Any = jax.config  # Its attributes are made when JAX is imported.
    before = options.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # It remembers whether it is used.
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
