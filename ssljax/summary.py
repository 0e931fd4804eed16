"""Summary of a run's numbers: trained and untrained net, floor, and the ledger's row.

The last table of a run, its page, `ssljax.compare` and `ssljax.runs` show these rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
import pathlib
from typing import Any

import numpy as np

from ssljax import logs
from ssljax.errors import InputError
from ssljax.evals.evaluator import Direction, Evaluator
from ssljax.processes import wrapped
from ssljax.record import flat, read_record, read_results
from ssljax.stats import interval

Numbers = Mapping[str, Sequence[float]]  # {"evaluator/number": one for each seed}


@dataclass(frozen=True)
class Row:
    """A number of a run, with what it is compared with; each is a list of one for each seed."""

    name: str  # As "knn/accuracy".
    trained: Sequence[float]
    untrained: Sequence[float] | None = None
    floor: Sequence[float] | None = None
    floor_name: str = ""  # As "raw_pixels".
    better: Direction | None = None
    ledger: Sequence[float] | None = None  # One for each seed of the ledger's row.
    paper: float | None = None  # The paper's number, as the ledger's row has it.
    real: Sequence[float] | None = None  # What held-out examples have, which is no bound to pass.

    @property
    def worse_than(self) -> list[str]:
        """Which of "untrained" and "floor" the trained net's mean is worse than."""
        bounds = {"untrained": self.untrained, "floor": self.floor}
        return [name for name, values in bounds.items() if values and self._is_worse(values)]

    def _is_worse(self, bound: Sequence[float]) -> bool:
        trained, other = float(np.mean(self.trained)), float(np.mean(bound))
        if self.better is None or math.isnan(other):
            return False
        lower = trained < other
        return math.isnan(trained) or (lower if self.better == "higher" else trained > other)


@dataclass(frozen=True)
class Summary:
    """Rows of a run's last evaluation, the main number's first."""

    rows: Sequence[Row]
    step: int  # At which the rows were measured; 0 where nothing has been evaluated yet.
    num_steps: int
    seeds: Sequence[int]
    ledger: Mapping[str, Any] | None = None  # The ledger's row of the same settings.

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last step and was evaluated there."""
        return self.step == self.num_steps

    @property
    def main(self) -> Row | None:
        """The number that the run is judged by."""
        return self.rows[0] if self.rows else None


def summary(workdir: str | pathlib.Path) -> Summary:
    """The numbers of the run in a folder, at the last step that all its seeds were evaluated at.

    InputError where the folder holds no run, or a file of it is damaged.
    """
    workdir = pathlib.Path(workdir)
    try:
        record = read_record(workdir, "train that run again")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{workdir} is not a run's folder: it has no record.json. Give the folder that was "
            "--run.workdir, by default one in runs/."
        ) from None
    first, n = (record["computes"].get("run", {}).get(k, d) for k, d in (("seed", 0), ("seeds", 1)))
    seeds = list(range(first, first + n))
    step, results, untrained = 0, {}, {}
    try:
        found = read_results(workdir, "run its command again")
        step, seeds = found["step"], found["seeds"]
        results, untrained = (
            {k: logs.from_json(v) for k, v in found[kind].items()}
            for kind in ("results", "untrained")
        )
    except FileNotFoundError:
        evaluated = read_evaluations(workdir)
        untrained = numbers_at(evaluated, 0, seeds)
        for step in sorted({row["step"] for row in evaluated}, reverse=True):
            if results := numbers_at(evaluated, step, seeds):
                break
    ledger = ledger_row(record)
    rows = summary_rows(results, untrained, record.get("evals") or {}, ledger)
    return Summary(rows if step else [], step, record["num_steps"], seeds, ledger)


def judgements(evals: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each evaluator, which way its numbers are better, what their floors are and what held-out
    examples have, captions of its pictures and its settings, as JSON."""
    return {
        name: {
            "better": dict(evaluate.better),
            "floors": dict(evaluate.floors),
            "real": dict(evaluate.real),
            "captions": dict(evaluate.captions),
            "settings": dict(evaluate.settings),
        }
        if isinstance(evaluate, Evaluator)
        else {"better": {}, "floors": {}}
        for name, evaluate in evals.items()
    }


def compared_with(judged: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of a number and its floor, or what held-out examples have, each by its whole name.

    `judged` is what `judgements` gives, also of an older version, without "real".
    """
    return [
        (f"{evaluator}/{number}", f"{evaluator}/{other}")
        for evaluator, of in judged.items()
        for number, other in [*of["floors"].items(), *of.get("real", {}).items()]
    ]


def summary_rows(
    results: Numbers,
    untrained: Numbers,
    judged: Mapping[str, Mapping[str, Mapping[str, Any]]],
    ledger: Mapping[str, Any] | None = None,
) -> list[Row]:
    """One row for each number, but for floors and what held-out examples have, which stand in the
    row of the number that they are compared with.

    `judged` is what `judgements` gives. The main number is the first one with a direction, of the
    first evaluator with one; others with a direction follow, then those without.
    """
    beside = {other for _, other in compared_with(judged)}
    order = list(judged)
    rows = []
    for name, values in results.items():
        if name in beside:
            continue
        evaluator, _, number = name.partition("/")
        of = judged.get(evaluator, {"better": {}, "floors": {}})
        floor, real = of["floors"].get(number, ""), of.get("real", {}).get(number)
        row = Row(
            name,
            values,
            untrained.get(name),
            results.get(f"{evaluator}/{floor}") if floor else None,
            floor,
            of["better"].get(number),
            (ledger or {}).get("ours", {}).get(name),
            (ledger or {}).get("paper_numbers", {}).get(name),
            results.get(f"{evaluator}/{real}") if real else None,
        )
        place = order.index(evaluator) if evaluator in order else len(order)
        numbers = list(of["better"])
        rank = numbers.index(number) if number in numbers else len(numbers)
        rows.append(((row.better is None, place, rank, len(rows)), row))
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def ledger_row(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ledger's row of a record's settings, or None.

    Settings that one of them lacks are compared by the defaults in the record.
    """
    # The ledger's pages are made of runs, too.
    from ssljax import ledger
    from ssljax.ledger.commands import settings

    try:
        rows = ledger.read_rows(ledger.HERE)
    except (FileNotFoundError, InputError):
        return None
    defaults = {k: v for k, v in (record.get("defaults") or {}).items() if not _is_of_run(k)}
    method = pathlib.Path(record.get("experiment") or record["launches"][-1]["command"][0]).stem
    mine = defaults | {k: v for k, v in flat(record["computes"]).items() if not _is_of_run(k)}
    same = (record["num_steps"], record["batch_size"])
    for row in rows:
        alike = row["method"] == method and (row["steps"], row["batch_size"]) == same
        if alike and defaults | settings(method, row["computes"]) == mine:
            return row
    return None


def _is_of_run(name: str) -> bool:
    return name.startswith("run.")


# Tables.


def summary_table(rows: Sequence[Row]) -> list[str]:
    """Lines of a table of rows: trained and untrained net, floor, held-out examples, the ledger's
    number and the paper's.

    A mean that is worse than the untrained net's or than the floor is marked with `!`.
    """
    columns = ("untrained", "floor", "real", "ledger", "paper")
    cells: list[tuple[str, ...]] = [("", "trained", "", *columns)]
    for row in rows:
        of = format_row(row)
        mark = "!" if row.worse_than else ""
        cells.append((row.name, of["trained"], mark, *(of[column] for column in columns)))
    return logs.aligned(cells)


def summary_notes(rows: Sequence[Row], ledger: Mapping[str, Any] | None = None) -> list[str]:
    """Lines below the table: what intervals and floors are, the paper's number, and what is worse
    than it should be."""
    notes = []
    if seeds := max((len(row.trained) for row in rows), default=1) - 1:
        notes.append(f"Mean ± half of the 95 % interval over {seeds + 1} seeds.")
    floors: dict[str, list[str]] = {}
    for row in rows:
        if row.floor:
            floors.setdefault(row.floor_name, []).append(row.name)
    if floors:
        named = (f"{floor} ({', '.join(names)})" for floor, names in floors.items())
        notes.append(f"Floors: {'; '.join(named)}.")
    if any(row.real for row in rows):
        notes.append("Real: the same of held-out images in the place of samples.")
    if ledger:
        from ssljax.ledger import name_of

        seeds = f"{len(ledger['seeds'])} seed{'s' * (len(ledger['seeds']) > 1)}"
        page = f"experiments/ledger/{name_of(ledger)}.md"
        notes.append(f"Ledger: {seeds} at these settings, {ledger['date']}; {page} has more.")
        if ledger["paper"]:
            notes.append(f"Paper: {ledger['paper']}.")
    worse = {
        bound: [row.name for row in rows if bound in row.worse_than]
        for bound in ("untrained", "floor")
    }
    said = [
        f"worse than the {what}: {', '.join(worse[bound])}"
        for bound, what in (("untrained", "untrained net"), ("floor", "floor"))
        if worse[bound]
    ]
    if said:
        notes.append(
            f"! {'; '.join(said)}. Usual causes are a learning rate that is too high, too few "
            "steps, and collapse (see the curves), or a floor that is high, as raw pixels of small "
            "digits."
        )
    return [wrapped(note, 2) for note in notes]


# Evaluations of a run under way.


def read_evaluations(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of evaluations.jsonl: {"step", "seed", "evaluator", "numbers": {name: number}}.

    Damaged rows are left out; NaN is null.
    """
    return [row for row in logs.read_rows(workdir / "evaluations.jsonl") if _is_evaluation(row)]


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    return (
        isinstance(row.get("evaluator"), str)
        and type(row.get("seed")) is int
        and isinstance(row.get("numbers"), dict)
    )


def numbers_at(
    rows: Sequence[Mapping[str, Any]], step: int, seeds: Sequence[int]
) -> dict[str, list[float]]:
    """{"evaluator/number": one for each seed} of a step, where all seeds have one."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["step"] == step:
            for name, value in row["numbers"].items():
                of_seed = found.setdefault(f"{row['evaluator']}/{name}", {})
                of_seed[row["seed"]] = logs.from_json(value)
    return {
        name: [values[seed] for seed in seeds]
        for name, values in found.items()
        if all(seed in values for seed in seeds)
    }


# Numbers as text.


def format_row(row: Row) -> dict[str, str]:
    """The numbers of a row, with as many decimals each as the row's precision allows.

    The names are "trained", "untrained", "floor", "real", "ledger" and "paper"; "" where there is
    none.
    `trained` and `ledger` have half of a 95 % interval where there are seeds.
    """
    values = {
        "trained": row.trained,
        "untrained": row.untrained,
        "floor": row.floor,
        "real": row.real,
        "ledger": row.ledger,
    }
    places = decimals([v for v in values.values() if v], row.trained)
    cells = {
        name: format_mean(v, places, name in ("trained", "ledger")) if v else ""
        for name, v in values.items()
    }
    return cells | {"paper": "" if row.paper is None else f"{row.paper:g}"}


def decimals(numbers: Sequence[Sequence[float]], measured: Sequence[float]) -> int | None:
    """Decimals of several means, or None where six are not enough.

    They show two digits of the interval of `measured`, and three of the largest number; four of it
    where there is no interval.
    """
    spread = interval(measured) if len(measured) > 1 else math.nan
    means = [abs(float(np.mean(v))) for v in numbers]
    largest = max((x for x in means if math.isfinite(x)), default=0.0)
    whole = all(float(x).is_integer() for v in numbers for x in v if math.isfinite(x))
    if whole and not spread > 0:
        return 0
    if spread > 0 and math.isfinite(spread):
        places = 2 - math.floor(math.log10(max(largest, spread)))
        places = max(places, 1 - math.floor(math.log10(spread)))
    elif largest:
        places = 3 - math.floor(math.log10(largest))
    else:
        places = 0
    return max(0, places) if places <= 6 else None


def format_mean(values: Sequence[float], places: int | None, spread: bool = True) -> str:
    """Mean of numbers, and half its 95 % interval where there are several that differ."""

    def show(x: float) -> str:
        return f"{x:.4g}" if places is None else f"{x:.{places}f}"

    half = interval(values) if spread and len(values) > 1 else 0.0
    return show(float(np.mean(values))) + (f" ± {show(half)}" if half > 0 else "")
