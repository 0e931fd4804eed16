"""Rows of the ledger: what finished runs have recorded, and what was written by hand about them."""

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib
import re
import shlex
from typing import Any, Literal

import numpy as np

from ssljax import logs, methods
from ssljax.bands import bands_of
from ssljax.data.sources import HELD_OUT
from ssljax.errors import InputError
from ssljax.record import damaged, flat, read_json, read_record, read_results
from ssljax.stats import interval

HERE = methods.FOLDER
Row = dict[str, Any]
# What is written by hand, each with what an older row, which lacks it, has.
WRITTEN: Mapping[str, Any] = {
    "paper": "",
    "paper_numbers": {},
    "note": "",
    "task": "",
    "comparison": "",
    "variant": "",
    "better": "",
    "floor": "",
    "floors": [],
    "shared": False,
    "before": [],
}


def row(
    runs: Sequence[pathlib.Path],
    numbers: Sequence[str],
    *,
    better: Literal["higher", "lower", ""] = "",
    before: Sequence[str] = (),
    **written: Any,
) -> Row:
    """A row from finished runs that differ in their seeds alone.

    `written` are further values of `WRITTEN`. InputError for runs that differ in more, that aren't
    finished, or whose code isn't committed.
    """
    records, results = [], []
    for run in runs:
        try:
            records.append(read_record(run, "train that run again"))
            results.append(read_results(run, "run its command again"))
        except FileNotFoundError as e:
            raise InputError(
                f"{run} is not a finished run: it has no {pathlib.Path(str(e.filename)).name}."
            ) from e
    what = [{k: v for k, v in r["computes"].items() if k != "run"} for r in records]
    if any(w != what[0] for w in what):
        raise InputError("The runs differ in more than their seeds: give each its own row.")
    if any(str(v).endswith(f":{HELD_OUT}") for v in what[0].values()):
        raise InputError(
            f"The runs were evaluated on held-out training images (:{HELD_OUT}), and the ledger's "
            f"numbers are of the test split: run the command without :{HELD_OUT}."
        )
    seeds = [s for r in results for s in r["seeds"]]
    if len(set(seeds)) != len(seeds):
        raise InputError(f"The runs share seeds: {seeds}.")
    if any(r["step"] != d["num_steps"] for r, d in zip(results, records)):
        raise InputError("A run has not reached its last step: run its command again.")
    launch = records[0]["launches"][-1]
    commits = sorted(
        {x["commit"] for r in records for x in r["launches"] if x.get("start", 0) < r["num_steps"]}
    )
    if "" in commits or any(c.endswith("+") for c in commits):
        raise InputError(
            f"The code of the runs isn't committed ({', '.join(c or 'none' for c in commits)}): "
            "commit it, then run them again."
        )

    def gather(kind: str) -> dict[str, list[float]]:
        return {k: [v for r in results for v in r[kind].get(k, [])] for k in results[0][kind]}

    ours, untrained = gather("results"), gather("untrained")
    floor = written.get("floor", "")
    shown = [*numbers, *written.get("floors", ()), *written.get("paper_numbers", ())]
    shown += [floor] * bool(floor)
    missing = [n for n in shown if n not in ours or n not in untrained]
    if missing:
        raise InputError(f"The runs have no {', '.join(missing)}; they have {', '.join(ours)}.")
    if unknown := [n for n in shown if None in ours[n] + untrained[n]]:
        raise InputError(f"The runs' {', '.join(unknown)} is not a number: show others.")
    if written.get("comparison") and "epochs" not in what[0]:
        raise InputError(
            "Only runs with --epochs can be compared: the rows of a comparison have the same."
        )
    evaluator, _, number = numbers[0].partition("/")
    judged = (records[0].get("evals") or {}).get(evaluator, {"better": {}, "floors": {}})
    better = better or judged["better"].get(number, "")
    if not better:
        raise InputError(
            f"The runs' record doesn't say which way {numbers[0]} is better: give --better."
        )
    of_record = judged["floors"].get(number)
    if not floor and of_record and f"{evaluator}/{of_record}" in ours:
        floor = f"{evaluator}/{of_record}"
    metrics = [logs.read_metrics(run) for run in runs]
    content = {
        "method": pathlib.Path(launch["command"][0]).stem,
        "command": without_workdir(launch["command"]),
        "before": [shlex.split(line) for line in before] or first_commands(what[0]),
        "computes": what[0],
        "seeds": seeds,
        "steps": records[0]["num_steps"],
        "batch_size": records[0]["batch_size"],
        "seconds": [r["seconds"] / len(r["seeds"]) for r in results],
        "evaluation_seconds": [
            _evaluation_seconds(run, r["step"]) / len(r["seeds"]) for run, r in zip(runs, results)
        ],
        "hardware": launch["hardware"],
        "versions": launch["versions"],
        "commits": commits,
        "date": launch["time"][:10],
        "numbers": list(numbers),
        "ours": ours,
        "untrained": untrained,
        "curves": bands_of(metrics, numbers[0]),
    }
    content |= written | {"better": better, "floor": floor}
    return content | {"sha256": digest_of_row(content)}


def _evaluation_seconds(run: pathlib.Path, step: int) -> float:
    """Seconds that the evaluators took at a step, of all seeds; 0 where they were not recorded."""
    rows = logs.read_rows(run / "evaluations.jsonl")
    return float(sum(r.get("seconds") or 0.0 for r in rows if r["step"] == step))


def first_commands(computes: Mapping[str, Any]) -> list[list[str]]:
    """Commands of the runs whose folders are among the settings of a run, those still there."""
    found = []
    for value in flat(computes).values():
        if isinstance(value, str) and value and (pathlib.Path(value) / "record.json").is_file():
            record = read_record(pathlib.Path(value), "train that run again")
            command = without_workdir(record["launches"][-1]["command"])
            found.append([*command, "--run.workdir", value])
    return found


def without_workdir(command: Sequence[str]) -> list[str]:
    """A command without --run.workdir and --run.evaluate, which are of no use to others."""
    kept, words = [], iter(command)
    for word in words:
        if word == "--run.workdir":
            next(words, None)
        elif word != "--run.evaluate" and not word.startswith("--run.workdir="):
            kept.append(word)
    return kept


def digest_of_row(content: Mapping[str, Any]) -> str:
    """sha256 of a row without its own sha256, so that a number changed by hand is found."""
    plain = json.dumps({k: v for k, v in content.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def stored_rows(here: pathlib.Path = HERE) -> list[Row]:
    """Rows of ledger.json as they are there; InputError where it is damaged."""
    file = here / "ledger.json"
    rows = read_json(file, "take the one that is committed") if file.exists() else []
    if not (isinstance(rows, list) and all(isinstance(r, dict) for r in rows)):
        raise damaged(file, "it holds no rows", "take the one that is committed")
    return rows


def read_rows(here: pathlib.Path = HERE) -> list[Row]:
    """Rows of ledger.json, each with all of `WRITTEN`; InputError where it is damaged."""
    return [{**WRITTEN, **r} for r in stored_rows(here)]


def rows_as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Text of ledger.json: lists of numbers take one line."""
    text = json.dumps(rows, indent=1)
    return re.sub(r"\[\n[\d\s.,eE+-]+\]", lambda m: " ".join(m[0].split()), text) + "\n"


def name_of(r: Mapping[str, Any]) -> str:
    """Name of a row's page, as simclr-cifar10-8-epochs: method, data and variant."""
    words = [r["method"], data_of(r), r["variant"].replace("%", "percent")]
    return "-".join(re.sub(r"[^\w]+", "-", w.lower()).strip("-") for w in words if w)


def data_of(r: Mapping[str, Any]) -> str:
    """Name of a row's data; empty where it has none."""
    return re.sub(r"\.txt\b", "", str(r["computes"].get("data", "")))


def task_of(r: Mapping[str, Any]) -> str:
    """Title of a row's table: that of its comparison or task, or its data and first number."""
    return r["comparison"] or r["task"] or f"{data_of(r)}: {r['numbers'][0]}"


def floor_of(r: Mapping[str, Any]) -> tuple[str, Sequence[float]]:
    """Name and values of the floor of a row's first number.

    It is the one that the row names, or raw pixels under the same evaluator, or the untrained net.
    """
    first = r["numbers"][0]
    name = r["floor"] or f"{first.rpartition('/')[0]}/raw_pixels"
    return (name, r["ours"][name]) if name in r["ours"] else ("untrained", r["untrained"][first])


def mean(values: Sequence[float]) -> str:
    """Mean of numbers, and half its 95 % interval where there are several."""
    spread = f" ± {interval(values):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"
