"""Plans the paper-size commands of the experiments' headers, and writes launch/plans.md.

    python -m ssljax.plan                  # those that launch/plans.json lacks, on two machines
    python -m ssljax.plan gpt bert         # of these files alone
    python -m ssljax.plan --again          # all of them
    python -m ssljax.plan --scale simclr   # also from 16 to 256 chips, the same batch on each

One command of your own: launch/local.sh experiments/NAME.py ... --run.plan MACHINE.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from ssljax import flags
from ssljax.backends import start_backends
from ssljax.errors import InputError
from ssljax.plan import headers
from ssljax.plan.report import amount


@dataclass(frozen=True)
class Command:
    """Plans the paper-size commands of the experiments' headers, and writes launch/plans.md."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Experiments; all by default."""
    machines: tuple[str, ...] = headers.MACHINES
    """Machines to plan for."""
    again: bool = False
    """Plan commands again that launch/plans.json has."""
    scale: bool = False
    """Also plan on 16, 64 and 256 chips, with the same batch on each chip."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags.run_command(Command, plan_commands, args)


def plan_commands(asked: Command) -> None:
    """Plans what the command line names, and saves each plan as it is found."""
    if unknown := set(asked.names) - {name for name, _ in headers.marked_commands()}:
        raise InputError(
            f"No header of experiments/ marks a command of {', '.join(sorted(unknown))} as "
            f'"{headers.MARK}".'
        )
    start_backends()
    for name, words in headers.marked_commands():
        if asked.names and name not in asked.names:
            continue
        key = headers.key_of(name, words)
        for machine in asked.machines:
            if machine in headers.read_plans().get(key, {}) and not asked.again:
                continue
            _plan(name, words, machine)
        if asked.scale:
            _scale(name, words)


def _plan(name: str, words: Sequence[str], machine: str, batch: int | None = None) -> None:
    key = headers.key_of(name, words)
    try:
        if batch:
            plan, parts = headers.plan_command(name, words, machine, batch), None
        else:
            plan, parts = headers.plan_command_where_it_splits(name, words, machine)
    except InputError as e:  # A batch that no such machine can split.
        found, said = {"error": str(e)}, str(e)
    else:
        found = headers.summary(plan, parts)
        verdict = "fits" if plan.fits else "does not fit"
        said = f"{amount(plan.total)}, {verdict}; compiled in {plan.compile_seconds:.0f} s"
    print(f"{key[:60]} on {found.get('machine', machine)}: {said}", flush=True)
    plans = headers.read_plans()
    of_machines = plans.setdefault(key, {})
    (of_machines.setdefault("scaled", {}) if batch else of_machines)[machine] = found
    headers.write_plans(plans)


def _scale(name: str, words: Sequence[str]) -> None:
    plans = headers.read_plans().get(headers.key_of(name, words), {})
    last = plans.get(headers.LARGEST)
    if last is None or last.get("machine") != headers.LARGEST:
        return
    each = last["batch_size"] // last["devices"]
    for machine, chips in headers.SCALED.items():
        if machine not in plans.get("scaled", {}):
            _plan(name, words, machine, each * chips)


if __name__ == "__main__":
    main()
