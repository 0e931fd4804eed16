"""Runs below a folder, one line each.

    python -m ssljax.runs                             # those in runs/
    python -m ssljax.runs ~/runs --experiment simclr --sort metric

| column | content |
|---|---|
| state | finished, running, failed (a metric was not finite) or stopped, with the step |
| metric | the main number at the last evaluation, ± half of the 95 % interval over seeds |
| time | that training took, without compiling and evaluating |
| date | of the last launch |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import os
import pathlib
import shutil
import sys
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from ssljax import flags, logs
from ssljax.errors import InputError
from ssljax.lock import is_locked
from ssljax.processes import wrapped
from ssljax.record import read_record, read_results
from ssljax.summary import format_row, Summary, summary

Sort = Literal["date", "name", "experiment", "data", "state", "metric", "seeds", "time"]
# Files of a run's folder, of which one without a record is a run that can't be read.
PARTS = ("metrics.jsonl", "evaluations.jsonl", "checkpoints", "record.json.part")


@dataclass(frozen=True)
class FoundRun:
    """What a run's folder says of it."""

    folder: pathlib.Path
    record: Mapping[str, Any]
    summary: Summary
    state: str  # "finished", "running", "failed" or "stopped".
    step: int  # That was trained last, as far as it is known.
    seconds: float  # Of training.

    @property
    def experiment(self) -> str:
        """Name of the experiment's file, without its end."""
        first = self.record["launches"][-1]["command"][0]
        return pathlib.Path(self.record.get("experiment") or first).stem

    @property
    def data(self) -> str:
        """`--data`, or nothing for an experiment without that flag."""
        return str(self.record["computes"].get("data", ""))

    @property
    def date(self) -> str:
        """Time of the last launch, in UTC, as "2026-11-28 10:30"."""
        return self.record["launches"][-1]["time"][:16].replace("T", " ")

    def describe_state(self) -> str:
        """As "finished", or "stopped at 500 of 2000"."""
        if self.state == "finished":
            return self.state
        return f"{self.state} at {self.step} of {self.summary.num_steps}"

    def describe_main(self) -> str:
        """The number that the run is judged by, as "knn/accuracy 44.7 ± 0.9"."""
        main = self.summary.main
        return f"{main.name} {format_row(main)['trained']}" if main else ""


def read_run(folder: str | pathlib.Path) -> FoundRun:
    """The run in a folder, finished or not; InputError where there is none, or it is damaged."""
    folder = pathlib.Path(folder).expanduser()
    found = summary(folder)
    record = read_record(folder, "train that run again")
    rows = logs.read_metrics(folder)
    seconds = max((float(np.max(r["seconds"])) for r in rows if "seconds" in r), default=0.0)
    finished = (folder / "results.json").exists()
    if finished:
        seconds = float(read_results(folder, "run its command again")["seconds"])
    saved = folder / "checkpoints"
    steps = [int(p.name) for p in saved.iterdir() if p.name.isdigit()] if saved.is_dir() else []
    if is_locked(folder):
        state = "running"
    elif finished:
        state = "finished"
    else:
        state = "failed" if (folder / "failure").exists() else "stopped"
    step = max([*steps, found.step, *(row["step"] for row in rows)], default=0)
    return FoundRun(folder, record, found, state, step, seconds)


def find_runs(top: pathlib.Path) -> Iterator[pathlib.Path]:
    """Folders below `top`, itself among them, that hold a run or parts of one, in order."""
    for path, folders, files in os.walk(top):
        if "record.json" in files or any(part in [*folders, *files] for part in PARTS):
            folders.clear()
            yield pathlib.Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def describe_seconds(seconds: float) -> str:
    """As "90 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _key(sort: Sort) -> Callable[[FoundRun], Any]:
    def metric(run: FoundRun) -> tuple:
        main = run.summary.main
        if main is None:
            return (1, "", 0.0)
        mean = float(np.mean(main.trained))
        sign = 1 if main.better == "lower" else -1
        return (0, main.name, sign * mean if np.isfinite(mean) else np.inf)

    order = ("running", "failed", "stopped", "finished")
    keys: dict[str, Callable[[FoundRun], Any]] = {
        "name": lambda run: 0,
        "experiment": lambda run: run.experiment,
        "data": lambda run: run.data,
        "state": lambda run: order.index(run.state),
        "metric": metric,
        "seeds": lambda run: -len(run.summary.seeds),
        "time": lambda run: -run.seconds,
    }
    return keys[sort]


def list_runs(
    top: str | pathlib.Path = "runs", sort: Sort = "date", experiment: str = ""
) -> tuple[list[FoundRun], list[str]]:
    """Runs below a folder, sorted, and a sentence for each one that can't be read.

    By date the last one is first; by metric, runs that are judged by the same number stand
    together, the best first. InputError where there is no such folder.
    """
    top = pathlib.Path(top).expanduser()
    if not top.is_dir():
        raise InputError(f"There is no folder {top}: give the one that runs lie in.")
    found, notes = [], []
    for folder in find_runs(top):
        try:
            run = read_run(folder)
        except InputError as e:
            notes.append(str(e))
        except OSError as e:
            notes.append(f"{folder} can't be read: {e.strerror or e} ({e.filename or folder}).")
        else:
            if experiment in ("", run.experiment):
                found.append(run)
    found.sort(key=lambda run: str(run.folder))
    if sort == "date":
        found.sort(key=lambda run: run.date, reverse=True)
    else:
        found.sort(key=_key(sort))
    return found, notes


def runs_table(runs: Sequence[FoundRun], top: pathlib.Path, most: int) -> list[str]:
    """Lines of a table of runs, whose names are relative to `top`."""
    cells = [("run", "experiment", "data", "state", "metric", "seeds", "time", "date (UTC)")]
    for run in runs:
        name = os.path.relpath(run.folder, top)
        cells.append(
            (
                str(run.folder) if name == "." else name,
                run.experiment,
                run.data,
                run.describe_state(),
                run.describe_main(),
                str(len(run.summary.seeds)),
                describe_seconds(run.seconds),
                run.date,
            )
        )
    return logs.aligned(cells, 5, most)


@dataclass(frozen=True)
class Command:
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")] = "runs"
    """Folder below which runs are looked for."""
    sort: Sort = "date"
    """Column to sort by."""
    experiment: str = ""
    """Name of the experiment whose runs are shown; empty for all."""


Command.__doc__ = __doc__


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags.run_command(Command, _run, args)


def _run(asked: Command) -> None:
    top = pathlib.Path(asked.folder).expanduser()
    runs, notes = list_runs(top, asked.sort, asked.experiment)
    of = f" of {asked.experiment}" if asked.experiment else ""
    if not (runs or notes):
        raise InputError(f"{top} holds no runs{of}: give the folder that they lie in.")
    if runs:
        wide = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else sys.maxsize
        print("\n".join(runs_table(runs, top, wide)))
    for note in notes:
        print(wrapped(f"Left out: {note}", 2))


if __name__ == "__main__":
    main()
