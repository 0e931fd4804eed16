"""What a step would take on a machine: memory, FLOPs, traffic, and a bound of its time."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
import math
from typing import Any

from ssljax.errors import InputError
from ssljax.experiment import Experiment
from ssljax.plan import hlo
from ssljax.plan.flops import count_flops
from ssljax.plan.machines import Machine
from ssljax.plan.program import bytes_of, compile_step, Step
from ssljax.run import Run

KINDS = ("parameters", "optimizer", "extra", "batch", "resident data")
MOST = 4  # Programs that are compiled to find the largest batch,
MORE = 32  # each of at most so many times the batch of one that was.


@dataclass(frozen=True)
class Plan:
    """A step of a run on a machine. Bytes, FLOPs and seconds are of one step; bytes of a device."""

    machine: str
    devices: int
    batch_size: int
    memory: dict[str, int]  # By kind; "temporaries" are what is computed in between.
    total: int
    available: int
    fits: bool
    flops: float  # Of the step, on all devices, counted from the jaxpr.
    flops_by_type: dict[str, float]  # Of products and convolutions.
    flops_per_example: float
    flops_per_device: float | None  # As the compiler counts its program; None where it doesn't.
    unknown_loops: int  # While loops in the jaxpr that are counted once.
    bytes_moved: float | None
    collectives: list[dict[str, Any]]
    seconds: dict[str, float]  # Bounds: of compute, memory, links and network.
    step_seconds: float  # The largest of these.
    examples_per_second: float
    mfu: float  # FLOPs of products over those of the devices at their bfloat16 peak.
    compile_seconds: float
    largest_batch: int | None = None  # None where it wasn't looked for.
    largest_total: int | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)  # What helps: changes and totals.

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_step(exp: Experiment, run: Run, machine: Machine) -> Plan:
    """The plan of a step, by one compilation."""
    step = compile_step(exp, run, machine)
    chip, n, k = machine.chip, machine.count, run.steps_per_call
    lanes = 1 if step.program.vmapped else len(step.program.seeds)  # Calls of the program.
    flops = count_flops(step.jaxpr)
    scale = lanes / k
    products = {kind: x * scale for kind, x in flops.products.items()}
    module = hlo.parse(step.text) if step.text else None
    moved = hlo.bytes_moved(module) * scale if module else None
    found = hlo.collectives(module, n, machine.per_node) if module else []
    peaks = {"bfloat16": chip.bfloat16, "float16": chip.bfloat16}
    seconds = {
        "compute": sum(x / n / peaks.get(kind, chip.float32) for kind, x in products.items()),
        "memory": (moved or 0.0) / chip.bandwidth,
        "links": scale * sum(c.sent_by_links for c in found) / chip.links,
        "network": scale * sum(c.sent_by_network for c in found) / chip.network,
    }
    bound = max(seconds.values())
    examples = exp.data.batch_size * len(step.program.seeds)
    counted = step.cost.get("flops")
    return Plan(
        machine=machine.name,
        devices=n,
        batch_size=exp.data.batch_size,
        memory=_kinds(step),
        total=step.total,
        available=machine.available,
        fits=bool(step.text) and step.total <= machine.available,
        flops=flops.total * scale,
        flops_by_type=products,
        flops_per_example=flops.total * scale / examples,
        flops_per_device=counted * scale if counted else None,
        unknown_loops=flops.unknown_loops,
        bytes_moved=moved,
        collectives=[
            {
                "kind": c.kind,
                "line": c.line,
                "arrays": c.arrays * scale,
                "bytes": c.bytes * scale,
                "sent_by_links": c.sent_by_links * scale,
                "sent_by_network": c.sent_by_network * scale,
                "devices": c.group,
                "nodes": c.nodes,
            }
            for c in found
        ],
        seconds=seconds,
        step_seconds=bound,
        examples_per_second=examples / bound if bound else 0.0,
        mfu=sum(products.values()) / (n * chip.bfloat16 * bound) if bound else 0.0,
        compile_seconds=step.seconds,
    )


def _kinds(step: Step) -> dict[str, int]:
    """Bytes of a device by kind; what isn't named is the compiler's."""
    kinds = {kind: bytes_of(step.arguments[kind]) for kind in KINDS}
    seeds = 1 if step.program.vmapped else len(step.program.seeds)
    for kind in ("parameters", "optimizer", "extra"):
        kinds[kind] *= seeds
    kinds["temporaries"] = max(0, step.total - sum(kinds.values()))
    return kinds


def largest_batch(
    first: Plan, plan_of: Callable[[int], Plan], say: Callable[[str], None]
) -> tuple[int, int] | None:
    """The largest batch that fits, and its bytes on a device; None where none of those tried fits.

    `plan_of` compiles a step with another batch. Memory grows almost in proportion to the batch, so
    that each of at most `MOST` programs is compiled where the line through the last two says.
    """
    known = {first.batch_size: first}
    granule = lambda per_device: 2 ** max(0, int(math.log2(max(1, per_device))) - 2)

    def rounded(batch: float) -> int:
        per_device = max(1, int(batch // first.devices))
        step = granule(per_device)
        return max(1, per_device // step * step) * first.devices

    target = first.batch_size / 2 if not first.fits else first.batch_size * 2
    best = first if first.fits else None
    for _ in range(MOST):
        batch = rounded(target)
        if batch in known:
            break
        say(f"Trying a batch of {batch:,} ...")
        try:
            found = plan_of(batch)
        except InputError as e:  # Of a set that has no such batch.
            say(f"{e}")
            break
        known[batch] = found
        if found.fits and (best is None or batch > best.batch_size):
            best = found
        fitting = [b for b, p in known.items() if p.fits]
        failing = [b for b, p in known.items() if not p.fits]
        (b1, p1), (b2, p2) = sorted(known.items())[-2:]
        slope = (p2.total - p1.total) / (b2 - b1)
        fixed = p1.total - slope * b1
        target = (first.available - fixed) / slope if slope > 0 else MORE * b2
        target = min(target, MORE * b2)
        if failing:
            target = min(target, min(failing) - 1)
        if fitting:
            target = max(target, max(fitting))
    return (best.batch_size, best.total) if best else None
