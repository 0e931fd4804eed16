"""A plan in a terminal, and in a file."""

from collections.abc import Iterable, Sequence
import json
import pathlib

from ssljax.plan.estimate import Plan
from ssljax.plan.machines import Machine
from ssljax.record import write_whole

LINES = 12  # Of collectives, the largest.
SMALL = 1e-3  # Share of all collectives' bytes below which one isn't shown.
DEFAULT_SHARE = 0.75  # Of a GPU's memory, which JAX takes at its start by default.


def amount(x: float, unit: str = "B") -> str:
    """1.23 GB; three digits."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size:
            return (
                f"{x / size:.3g} {prefix}{unit}"
                if x < 999.5 * size
                else f"{x / size:.0f} {prefix}{unit}"
            )
    return f"{x:.3g} {unit}"


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows in aligned columns, of which those in `right` are aligned at their right."""
    right = set(right)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def describe(plan: Plan, machine: Machine) -> str:
    """The tables of a plan."""
    version = machine.name.partition(":")[0].removeprefix("tpu")
    many = f"{plan.devices} x {machine.chip.title or f'TPU {version}'}"
    nodes = plan.devices // machine.per_node
    lines = [
        f"Plan for {plan.machine}: {many}{f' in {nodes} nodes' if nodes > 1 else ''}, a batch of "
        f"{plan.batch_size:,} ({plan.batch_size // plan.devices:,} a device); compiled in "
        f"{plan.compile_seconds:.0f} s. Nothing was computed."
    ]
    rows = [["memory of a device", ""]]
    rows += [[f"  {kind}", amount(size)] for kind, size in plan.memory.items()]
    rows += [["  total", amount(plan.total)], ["  available", amount(plan.available)]]
    lines += ["", *table(rows, right=[1]), f"  {_verdict(plan, machine)}"]
    rows = [["FLOPs of a step", amount(plan.flops, "FLOP")]]
    rows += [[f"  products in {kind}", amount(x, "FLOP")] for kind, x in plan.flops_by_type.items()]
    rows += [["  for an example", amount(plan.flops_per_example, "FLOP")]]
    if plan.flops_per_device:
        rows += [["  on a device, by its compiler", amount(plan.flops_per_device, "FLOP")]]
    if plan.bytes_moved is not None:
        rows += [["Memory read and written by a device", amount(plan.bytes_moved)]]
    lines += ["", *table(rows, right=[1])]
    if plan.unknown_loops:
        lines += [f"  {plan.unknown_loops} loops whose iterations aren't known are counted once."]
    if plan.collectives:
        lines += ["", *_collectives(plan)]
    if plan.step_seconds:
        rows = [["at least, of a step", ""]]
        rows += [[f"  {kind}", duration(x)] for kind, x in plan.seconds.items() if x]
        rows += [
            ["  step", duration(plan.step_seconds)],
            ["  examples per second", f"{plan.examples_per_second:,.0f}"],
            ["  MFU, of the bfloat16 peak", f"{100 * plan.mfu:.0f} %"],
        ]
        lines += ["", *table(rows, right=[1])]
        lines += ["  Bounds by peaks and bandwidths: a run is slower by what it doesn't overlap."]
    return "\n".join(lines)


def _verdict(plan: Plan, machine: Machine) -> str:
    if not plan.fits:
        return f"does not fit: {amount(plan.total - plan.available)} too much"
    if machine.is_gpu and plan.total > DEFAULT_SHARE * machine.chip.memory:
        return (
            "fits, with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment: by default JAX "
            "takes 75 % of a GPU's memory"
        )
    return "fits"


def _collectives(plan: Plan) -> list[str]:
    sent = lambda c: c["sent_by_links"] + c["sent_by_network"]
    every = sum(map(sent, plan.collectives))
    shown = [c for c in plan.collectives if sent(c) > SMALL * every][:LINES]
    rows = [["collectives of a step", "arrays", "bytes", "sent", "devices", "from"]]
    rows += [
        [
            f"  {c['kind']}",
            f"{c['arrays']:g}",
            amount(c["bytes"]),
            amount(sent(c)),
            f"{c['devices']}",
            c["line"] or "?",
        ]
        for c in shown
    ]
    if rest := [c for c in plan.collectives if c not in shown]:
        count = sum(c["arrays"] for c in rest)
        size, out = sum(c["bytes"] for c in rest), sum(map(sent, rest))
        rows.append(["  smaller ones", f"{count:g}", amount(size), amount(out), "", ""])
    return table(rows, right=[1, 2, 3, 4])


def write(plan: Plan, workdir: pathlib.Path) -> pathlib.Path:
    """Writes the plan to plan-MACHINE.json in a run's folder, and returns its path."""
    file = workdir / f"plan-{plan.machine.replace(':', '-')}.json"
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(plan.as_dict(), indent=1) + "\n")
    return file
