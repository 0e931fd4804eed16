"""Plans of the paper-size commands in the headers of experiments/: launch/plans.md."""

from collections.abc import Sequence
from dataclasses import replace
import itertools
import json
import math
import pathlib
import re
import shlex
from typing import Any

from ssljax import cli, methods
from ssljax.errors import InputError
from ssljax.ledger.commands import experiment
from ssljax.plan.command import plan_of
from ssljax.plan.estimate import Plan
from ssljax.plan.machines import machine_of
from ssljax.plan.report import amount
from ssljax.record import write_whole

HERE = pathlib.Path(__file__).parents[2] / "launch"
FILE, PAGE = HERE / "plans.json", HERE / "plans.md"
MARK = "planned in launch/plans.md"  # In the comment above a command.
COMMAND = re.compile(
    r"((?:^ *# .*\n)+) *launch/local\.sh experiments/\w+\.py((?:\\\n|[^\n])*)", re.M
)
MACHINES = ("h100x8", "v5e:16x16")
# For a batch that has fewer examples than a machine has devices, the largest first.
SMALLER = {"v5e:16x16": ("v5e:8x8", "v5e:4x4")}
# Of a batch that grows with the devices: FLOPs of a device stay, and so do an all-reduce's bytes.
SCALED = {"v5e:4x4": 16, "v5e:8x8": 64}  # And
LARGEST = "v5e:16x16"
GRADIENT = "all-reduce"
PAGE_TEXT = """# Plans of the commands at the papers' sizes

Written by `python -m ssljax.plan` (`pip install "ssljax[plan]"` first), which compiles the step of
each command that the headers of `experiments/` mark. Nothing was run:

- memory is that of the compiled program; workspaces of cuDNN, cuBLAS and NCCL are not in it, for
  which 5 % of a GPU are left;
- times are bounds by peaks and bandwidths, the largest of compute, memory and interconnect, and MFU
  is the share of the bfloat16 peak that this bound allows: runs are slower;
- FLOPs are counted from the jaxpr, augmentation included;
- a batch of fewer examples than v5e:16x16 has chips is not for it: it is planned on v5e:8x8, or on
  v5e:4x4, which the row says; and so is --run.accumulate, where a chip has fewer examples than the
  command has parts;
- programs were compiled on two cores that others used as well.

`--run.plan` prints more on one command, for any machine: memory by kind, collectives by line, and
the largest batch.

{tables}
"""


def marked_commands() -> list[tuple[str, tuple[str, ...]]]:
    """(experiment, flags) of each command in a header whose comment has the `MARK`."""
    found = []
    for name in methods.names():
        header = methods.path_of(name).read_text(encoding="utf-8").split('"""')[1]
        for comment, flags in COMMAND.findall(header):
            if MARK in " ".join(comment.replace("#", " ").split()):
                words = shlex.split(re.sub(r"\\+\n", " ", flags), comments=True)
                found.append((name, tuple(words)))
    return found


def key_of(name: str, flags: Sequence[str]) -> str:
    return f"{name} {shlex.join(flags)}"


def plan_command(
    name: str,
    flags: Sequence[str],
    machine: str,
    batch: int | None = None,
    parts: int | None = None,
) -> Plan:
    """The plan of a command on a machine, with another batch, or in other `parts`, if given."""
    make = experiment(name)
    run, arguments = cli.parse(make, list(flags))
    if batch:
        arguments = {**arguments, "batch_size": batch}
    if parts:
        run = replace(run, accumulate=parts)
    return plan_of(make, arguments, run, machine_of(machine))


def plan_command_where_it_splits(
    name: str, flags: Sequence[str], machine: str
) -> tuple[Plan, int | None]:
    """The plan of a command on a machine, or on a smaller one if its batch has too few examples.

    Where a device has fewer examples than the command's --run.accumulate has parts, it is planned
    with the most parts that split them: the second value, else None.
    """
    run, arguments = cli.parse(experiment(name), list(flags))
    refused: InputError | None = None
    for place in (machine, *SMALLER.get(machine, ())):
        parts = None
        if run.accumulate > 1:
            each = max(1, arguments["batch_size"] // machine_of(place).count)
            most = math.gcd(each, run.accumulate)
            parts = most if most < run.accumulate else None
        try:
            return plan_command(name, flags, place, parts=parts), parts
        except InputError as e:
            if "can't be split" not in str(e):
                raise
            refused = refused or e
    assert refused
    raise refused


def read_plans() -> dict[str, dict[str, Any]]:
    """{command: {machine: plan}} of launch/plans.json."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def write_plans(plans: dict[str, dict[str, Any]]) -> None:
    """Writes launch/plans.json and launch/plans.md, of the marked commands alone."""
    kept = {key_of(*c): plans[key_of(*c)] for c in marked_commands() if key_of(*c) in plans}
    write_whole(FILE, json.dumps(kept, indent=1) + "\n")
    write_whole(PAGE, page(kept))


def summary(plan: Plan, parts: int | None = None) -> dict[str, Any]:
    """What launch/plans.json keeps of a plan: collectives are added up by kind.

    `parts` are those of --run.accumulate, where they are not the command's.
    """
    kinds: dict[str, list[float]] = {}
    for c in plan.collectives:
        entry = kinds.setdefault(c["kind"], [0.0, 0.0])
        entry[0] += c["bytes"]
        entry[1] += c["sent_by_links"] + c["sent_by_network"]
    found = plan.as_dict()
    found["collectives"] = {kind: {"bytes": b, "sent": s} for kind, (b, s) in kinds.items()}
    dropped = ("largest_batch", "largest_total", "tried", "flops_by_type")
    found = {k: v for k, v in found.items() if k not in dropped}
    return found | ({"accumulate": parts} if parts else {})


def page(plans: dict[str, dict[str, Any]]) -> str:
    """launch/plans.md."""
    tables = [_machine_table(plans, machine) for machine in MACHINES]
    if rows := _scaling_rows(plans):
        tables.append(
            "## From 16 to 256 chips\n\n"
            "The same batch on each chip; FLOPs as the TPU's compiler counts them, without those "
            "of its attention kernel. A chip's FLOPs stay, and so do its gradients' bytes: "
            "in an all-reduce of B bytes each of n devices sends 2 B (n - 1) / n. What a loss "
            "gathers grows with the batch.\n\n"
            + _markdown(
                [
                    [
                        "command",
                        "chips",
                        "batch",
                        "FLOPs of a chip",
                        "all-reduce: bytes",
                        "sent",
                        "2 B (n - 1) / n",
                        "other collectives: bytes",
                    ],
                    *rows,
                ]
            )
        )
    return PAGE_TEXT.format(tables="\n\n".join(tables))


def _machine_table(plans: dict[str, dict[str, Any]], machine: str) -> str:
    head = [
        "command",
        "batch",
        "memory of a device",
        "FLOPs of an example",
        "sent by a device",
        "step at least",
        "bound by",
        "examples/s at most",
        "MFU at most",
        "compiled in",
    ]
    rows = [head]
    for key in (key_of(*c) for c in marked_commands()):
        p = plans.get(key, {}).get(machine, {"error": "not planned yet"})
        if "error" in p:
            rows.append([f"`{key.partition(' ')[0]}` {_what(key)}", "", p["error"], *[""] * 7])
            continue
        bound = max(p["seconds"], key=lambda kind: p["seconds"][kind])
        place = "" if p["machine"] == machine else f" on {p['machine']}"
        place += f", --run.accumulate {p['accumulate']}" if "accumulate" in p else ""
        rows.append(
            [
                f"`{key.partition(' ')[0]}` {_what(key)}{place}",
                f"{p['batch_size']:,}",
                f"{amount(p['total'])}" + ("" if p["fits"] else " **does not fit**"),
                amount(p["flops_per_example"], "FLOP"),
                amount(sum(c["sent"] for c in p["collectives"].values())),
                f"{1e3 * p['step_seconds']:.0f} ms",
                bound,
                f"{p['examples_per_second']:,.0f}",
                f"{100 * p['mfu']:.0f} %",
                f"{p['compile_seconds']:.0f} s",
            ]
        )
    available = next(
        (m[machine]["available"] for m in plans.values() if "total" in m.get(machine, {})), 0
    )
    size = f", {amount(available)} a device" if available else ""
    return f"## {machine}{size}\n\n" + _markdown(rows)


def _what(key: str) -> str:
    """The net of a command, by the sizes that its flags name."""
    words = key.split()
    flags = dict(itertools.pairwise(words))
    sizes = {
        name: flags[flag]
        for name in ("layers", "depth", "width", "widths")
        for flag in (f"--{name}", f"--encoder.{name}", f"--vit.{name}")
        if flag in flags
    }
    net = next((w.partition(":")[2] for w in words if w.startswith("encoder:")), "")
    return ", ".join(filter(None, [net, *(f"{k} {v}" for k, v in sizes.items())]))


def _scaling_rows(plans: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for key, of_machines in plans.items():
        scaled = of_machines.get("scaled", {})
        if scaled and LARGEST in of_machines:
            scaled = {**scaled, LARGEST: of_machines[LARGEST]}
        for machine, p in sorted(scaled.items(), key=lambda item: item[1]["devices"]):
            n = p["devices"]
            reduced = p["collectives"].get(GRADIENT, {"bytes": 0.0, "sent": 0.0})
            rest = sum(c["bytes"] for k, c in p["collectives"].items() if k != GRADIENT)
            rows.append(
                [
                    f"`{key.partition(' ')[0]}` {_what(key)}, {machine}",
                    f"{n}",
                    f"{p['batch_size']:,}",
                    amount(p["flops_per_device"] or 0, "FLOP"),
                    amount(reduced["bytes"]),
                    amount(reduced["sent"]),
                    amount(2 * reduced["bytes"] * (n - 1) / n),
                    amount(rest),
                ]
            )
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])
