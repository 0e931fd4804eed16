"""Ledger of results: experiments/ledger.json and the tables of experiments/README.md.

Rows are written from finished runs:

    python -m ssljax.ledger --runs runs/simclr,seeds=3 --paper "kNN 90.3, ResNet-18" --note "..."
    python -m ssljax.ledger                              # rewrites the tables from ledger.json
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib
import sys
from typing import Any

import numpy as np
import tyro

from ssljax.data.sources import HELD_OUT
from ssljax.errors import InputError
from ssljax.lock import lock
from ssljax.record import damaged, read_json, read_record, read_results, write_whole
from ssljax.stats import interval

HERE = pathlib.Path(__file__).parent.parent / "experiments"
START, END = "<!-- ledger: written by python -m ssljax.ledger -->", "<!-- end of ledger -->"


def row(
    runs: Sequence[pathlib.Path],
    numbers: Sequence[str],
    paper: str,
    note: str,
    floors: Sequence[str] = (),
    comparison: str = "",
) -> dict[str, Any]:
    """A row from finished runs that differ in their seeds alone.

    InputError for runs that differ in more, that aren't finished, or whose code isn't committed.
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
    missing = [n for n in (*numbers, *floors) if n not in ours or n not in untrained]
    if missing:
        raise InputError(f"The runs have no {', '.join(missing)}; they have {', '.join(ours)}.")
    if unknown := [n for n in (*numbers, *floors) if None in ours[n] + untrained[n]]:
        raise InputError(f"The runs' {', '.join(unknown)} is not a number: show others.")
    if lost := [n for n in (*numbers, *floors) if None in ours[n] + untrained[n]]:
        raise InputError(f"The runs have results that are not finite: {', '.join(lost)}.")
    content = {
        "method": pathlib.Path(launch["command"][0]).stem,
        "command": without_workdir(launch["command"]),
        "computes": what[0],
        "seeds": seeds,
        "steps": records[0]["num_steps"],
        "batch_size": records[0]["batch_size"],
        "seconds": [r["seconds"] / len(r["seeds"]) for r in results],
        "hardware": launch["hardware"],
        "versions": launch["versions"],
        "commits": commits,
        "date": launch["time"][:10],
        "numbers": list(numbers),
        "floors": list(floors),
        "ours": ours,
        "untrained": untrained,
        "paper": paper,
        "note": note,
    }
    if comparison:
        if "epochs" not in what[0]:
            raise InputError(
                "Only runs with --epochs can be compared: the table has the time of an epoch."
            )
        content |= {"comparison": comparison}
    return content | {"sha256": digest_of_row(content)}


def without_workdir(command: Sequence[str]) -> list[str]:
    """A command without --run.workdir, which is of no use to others."""
    kept, words = [], iter(command)
    for word in words:
        if word == "--run.workdir":
            next(words, None)
        elif not word.startswith("--run.workdir="):
            kept.append(word)
    return kept


def digest_of_row(content: Mapping[str, Any]) -> str:
    """sha256 of a row without its own sha256, so that a number changed by hand is found."""
    plain = json.dumps({k: v for k, v in content.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | data | paper | ours | floors: untrained, raw pixels and others | a seed takes "
        "| command, commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ours = "<br>".join(f"{n} **{_mean(r['ours'][n])}**" for n in r["numbers"])
        floors = "<br>".join(
            [f"{n} {_mean(r['untrained'][n])}" + _raw(r, n) for n in r["numbers"]]
            + [f"{n} {_mean(r['ours'][n])}" for n in r.get("floors", ())]
        )
        seeds = f"{len(r['seeds'])} seed{'s' * (len(r['seeds']) > 1)}"
        data = r["computes"].get("data", "")
        steps = f"{r['steps']} steps of {r['batch_size']}"
        took = f"{_time(np.mean(r['seconds']))}, {r['hardware']}; {steps}"
        ours = f"{ours}<br>{seeds}. {r['note']}"
        cells = [r["method"], data, r["paper"], ours, floors, took, _command(r)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def protocol(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one protocol as Markdown: numbers as columns, the best first, floors last."""
    numbers = rows[0]["numbers"]

    def line(name: str, values: Sequence[Sequence[float]], *more: str) -> str:
        return f"| {' | '.join((name, *(_mean(v) if v else '' for v in values), *more))} |"

    heads = ["method", *numbers, "an epoch takes", "settings", "command, commit"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    ordered = sorted(rows, key=lambda r: -np.mean(r["ours"][numbers[0]]))
    for r in ordered:
        epoch = _time(np.mean(r["seconds"]) / r["computes"]["epochs"])
        ours = [r["ours"][n] for n in numbers]
        lines.append(line(r["method"], ours, epoch, r["note"], _command(r)))
    nets: dict[tuple[str, ...], list] = {}  # Rows with the same untrained net share a floor.
    for r in ordered:
        nets.setdefault(tuple(_mean(r["untrained"][n]) for n in numbers), []).append(r)
    for same in nets.values():
        floor = [same[0]["untrained"][n] for n in numbers]
        lines.append(
            line(f"*untrained: {', '.join(r['method'] for r in same)}*", floor, "", "", "")
        )
    raw = [rows[0]["ours"].get(n.rsplit("/", 1)[0] + "/raw_pixels", [])[:1] for n in numbers]
    lines.append(line("*raw pixels*", raw, "", "", ""))
    seeds, hardware = (", ".join(sorted({str(r[k]) for r in rows})) for k in ("seeds", "hardware"))
    return "\n".join([f"Means with 95 % intervals over seeds {seeds}; {hardware}.", "", *lines])


def _command(r: Mapping[str, Any]) -> str:
    return f"`{' '.join(r['command'])}`<br>{r['date']}, {', '.join(r['commits'])}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.2g} s"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {interval(values):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def _raw(r: Mapping[str, Any], name: str) -> str:
    raw = r["ours"].get(name.rsplit("/", 1)[0] + "/raw_pixels")
    return f", {np.mean(raw):.2f}" if raw else ""


def render(readme: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with new tables: one for each comparison, and one of all other rows."""
    before, rest = readme.split(START)
    named: dict[str, list[Mapping[str, Any]]] = {}
    for r in rows:
        named.setdefault(r.get("comparison", ""), []).append(r)
    tables = [f"### {name}\n\n{protocol(rs)}\n" for name, rs in named.items() if name]
    tables += [
        f"{'### All other results' if tables else ''}\n\n{table(named.get('', []))}".lstrip("\n")
    ]
    return f"{before}{START}\n{chr(10).join(tables)}\n{END}{rest.split(END)[1]}"


def write(
    runs: tuple[pathlib.Path, ...] = (),
    numbers: tuple[str, ...] = ("knn/accuracy", "probe/accuracy"),
    paper: str = "",
    note: str = "",
    floors: tuple[str, ...] = (),
    comparison: str = "",
    here: pathlib.Path = HERE,
) -> None:
    """Adds a row to the ledger, in place of one with the same command, and writes the table.

    Args:
        runs: Folders of finished runs of one command that differ in their seeds; without any, only
            the tables are written.
        numbers: Names of the numbers that the row shows.
        paper: Number and setting of the paper.
        note: Every deviation from the paper, and the reason of a result below it.
        floors: Names of further numbers of the runs to show with the floors, as test/fid_floor.
        comparison: Title of the table of one protocol that the row belongs to, as "Fashion-MNIST".
            Its rows share data, epochs, batch size, seeds and numbers; the table is sorted by the
            first number, highest first, and shows neither paper nor floors.
        here: Folder of ledger.json and README.md.
    """
    with lock(here, "--here"):
        file = here / "ledger.json"
        rows = read_json(file, "take the one that is committed") if file.exists() else []
        if not (isinstance(rows, list) and all(isinstance(r, dict) for r in rows)):
            raise damaged(file, "it holds no rows", "take the one that is committed")
        if runs:
            new = row(runs, numbers, paper, note, floors, comparison)
            for r in rows:
                if comparison and r.get("comparison") == comparison and _shared(r) != _shared(new):
                    theirs = _shared(r)
                    other = "; ".join(f"{k} {v}" for k, v in theirs.items() if v != _shared(new)[k])
                    raise InputError(
                        f"The rows of {comparison} have {other}: give this one the same, or "
                        "another table."
                    )
            what = (new["method"], new["computes"])
            rows = [r for r in rows if (r["method"], r["computes"]) != what] + [new]
        page = here / "README.md"
        text = render(page.read_text(), rows)
        write_whole(file, json.dumps(rows, indent=1) + "\n")
        write_whole(page, text)


def _shared(r: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a comparison have in common, by flag."""
    names = ("data", "epochs", "batch_size")
    flags = {f"--{k.replace('_', '-')}": r["computes"].get(k) for k in names}
    return {"--numbers": r["numbers"], "seeds": r["seeds"]} | flags


if __name__ == "__main__":
    try:
        tyro.cli(write)
    except InputError as e:
        sys.exit(f"error: {e}")
