"""`--run.plan`: the plan of a command line, printed and saved."""

from collections.abc import Callable, Mapping
from dataclasses import replace
import errno
import os
import pathlib
from typing import Any

from ssljax.data.described import described
from ssljax.errors import check_local, InputError
from ssljax.experiment import Experiment
from ssljax.models import has_field, with_fields
from ssljax.plan import report
from ssljax.plan.estimate import largest_batch, Plan, plan_step
from ssljax.plan.machines import Machine, machine_of
from ssljax.run import check_together, Run, unused

PARTS = 4  # Of a batch, with which accumulation is tried.
SLOW = 5.0  # Seconds: a search by compilations that take longer is announced.


def plan(make: Callable[..., Experiment], arguments: Mapping[str, Any], run: Run) -> Plan:
    """Plans the run of `make(**arguments)` on the machine `run.plan`; prints and saves the plan.

    The data need not be there, and nothing is computed. What is found is printed and saved as
    plan-MACHINE.json in the run's folder before the largest batch is looked for, and before what
    helps is, where the step doesn't fit; both compile further programs. InputError for a machine
    that isn't known, a compiler that isn't installed, and settings that are not possible there.
    Where a path can't be a folder it is an OSError, before anything is compiled. Where the folder
    can't be written to (rights, a full disk), all is printed, and an InputError says so at the end.
    """
    check_together(run)
    check_local(run.workdir, "--run.workdir")
    machine = machine_of(run.plan)
    for line in unused(run):
        print(line, flush=True)
    workdir = pathlib.Path(run.workdir).expanduser()
    saved = _Saved(workdir)
    found = plan_of(make, arguments, run, machine)
    print(report.describe(found, machine), flush=True)
    if file := saved.write(found):
        print(f"\nSaved as {file}.", flush=True)
    each = f"about {found.compile_seconds:.0f} s each; Ctrl-C leaves them out"
    if not found.fits:
        print(f"\nLooking for what helps ({each}):", flush=True)
        tried = []
        for name, changed, changed_run in remedies(arguments, run, machine):
            try:
                other = plan_of(make, changed, changed_run, machine)
            except InputError as e:
                print(f"  {name}: not possible ({e})", flush=True)
                continue
            tried.append({"change": name, "total": other.total, "fits": other.fits})
            verdict = "fits" if other.fits else "does not fit"
            print(f"  {name}: {report.amount(other.total)}, {verdict}", flush=True)
        found = replace(found, tried=tried)
        saved.write(found)
    if "batch_size" in arguments:
        if found.compile_seconds > SLOW:
            print(f"\nLooking for the largest batch ({each}).", flush=True)
        batches = lambda n: plan_of(make, {**arguments, "batch_size": n}, run, machine)
        best = largest_batch(found, batches, lambda line: print(f"  {line}", flush=True))
        if best:
            found = replace(found, largest_batch=best[0], largest_total=best[1])
            print(
                f"The largest batch that was found to fit is {best[0]:,} "
                f"({best[0] // found.devices:,} a device: {report.amount(best[1])}).",
                flush=True,
            )
        else:
            print("No batch that was tried fits.", flush=True)
        saved.write(found)
    if saved.failed:
        raise InputError(
            f"The plan above could not be saved in {workdir} ({saved.failed}): make room there, "
            "correct the rights, or give another --run.workdir."
        )
    return found


class _Saved:
    """The file of a plan in a folder that may be full, or may not be written to."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir, self.failed = workdir, ""
        there = next((p for p in (workdir, *workdir.parents) if os.path.lexists(p)), None)
        if there and not there.is_dir():
            number = errno.EEXIST if there == workdir else errno.ENOTDIR
            raise OSError(number, os.strerror(number), str(workdir))

    def write(self, plan: Plan) -> pathlib.Path | None:
        """Writes the file, and returns its path; None, with the reason in `failed`, if it can't."""
        try:
            file = report.write(plan, self.workdir)
        except OSError as e:
            self.failed = e.strerror or str(e)
            return None
        self.failed = ""
        return file


def plan_of(
    make: Callable[..., Experiment], arguments: Mapping[str, Any], run: Run, machine: Machine
) -> Plan:
    """The plan of an experiment whose data need not be there."""
    with described():
        return plan_step(make(**arguments), run, machine)


def remedies(
    arguments: Mapping[str, Any], run: Run, machine: Machine
) -> list[tuple[str, Mapping[str, Any], Run]]:
    """What makes a step smaller: a name, arguments and options of a run with one change each."""
    fields, found = {}, []
    if has_field(arguments, "dtype"):
        fields["dtype"] = "bfloat16"
        found.append(("--dtype bfloat16", with_fields(arguments, dtype="bfloat16"), run))
    if has_field(arguments, "remat"):
        fields["remat"] = "blocks"
        found.append(("remat blocks", with_fields(arguments, remat="blocks"), run))
    changed_run = run
    if run.accumulate == 1:
        changed_run = replace(run, accumulate=PARTS)
        found.append((f"--run.accumulate {PARTS}", arguments, changed_run))
    if run.fsdp == 1 and machine.count > 1:
        n = machine.per_node if machine.is_gpu else min(machine.count, 8)
        found.append((f"--run.fsdp {n}", arguments, replace(run, fsdp=n)))
        changed_run = replace(changed_run, fsdp=n)
    found = [(name, changed, r) for name, changed, r in found if (changed, r) != (arguments, run)]
    if len(found) > 1:
        found.append(("these together", with_fields(arguments, **fields), changed_run))
    return found
