"""Comparison of runs: settings that differ, numbers with intervals, and where protocols differ.

    python -m ssljax.compare runs/simclr runs/moco
    python -m ssljax.compare runs/* --html compare.html     # a page with curves, of one file

Runs that differ in their seeds alone are one column. What makes a comparison unfair (other data,
splits, image sizes, settings of evaluators, unfinished runs, code that computes something else) is
said below the numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import functools
import html
import io
import itertools
import os
import pathlib
import string
from typing import Annotated, Any

import numpy as np
import tyro

from ssljax import flags, logs
from ssljax.changes import changed_code, code_of, Said
from ssljax.data.sources import HELD_OUT
from ssljax.errors import InputError
from ssljax.fingerprint import content_of
from ssljax.processes import wrapped
from ssljax.ranges import flag
from ssljax.record import flat, write_whole
from ssljax.runs import describe_seconds, FoundRun, read_run
from ssljax.stats import difference
from ssljax.summary import decimals, format_mean, Row


@dataclass(frozen=True)
class Column:
    """Runs that differ in their seeds alone, as one column of a comparison."""

    label: str
    runs: Sequence[FoundRun]

    @property
    def first(self) -> FoundRun:
        return self.runs[0]

    @functools.cached_property
    def rows(self) -> dict[str, Row]:
        """Rows of the runs' numbers, each with the seeds of all of them."""
        found: dict[str, Row] = {}
        for name in [row.name for row in self.first.summary.rows]:
            of_runs = [row for run in self.runs for row in run.summary.rows if row.name == name]
            parts = {
                kind: list(itertools.chain(*(getattr(row, kind) or [] for row in of_runs)))
                for kind in ("trained", "untrained", "floor", "real")
            }
            row = of_runs[0]
            found[name] = Row(
                name,
                parts["trained"],
                parts["untrained"] or None,
                parts["floor"] or None,
                row.floor_name,
                row.better,
                real=parts["real"] or None,
            )
        return found

    @property
    def seeds(self) -> list[int]:
        return [seed for run in self.runs for seed in run.summary.seeds]

    @property
    def seconds(self) -> list[float]:
        """Seconds of training of each run, for one of its seeds."""
        return [run.seconds / len(run.summary.seeds) for run in self.runs]

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments by dotted name, defaults of the run's version among them, without seeds."""
        record = self.first.record
        usual = record.get("defaults") or {}
        # Those of older versions have an address of memory, as of a field of all modules of Flax.
        usual = {k: v for k, v in usual.items() if " object at 0x" not in str(v)}
        found = usual | flat(record["computes"])
        return {k: v for k, v in found.items() if not k.startswith("run.")}

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl, each number with the seeds of all runs that have its step."""
        steps: dict[tuple[int, bool], dict[str, list[float]]] = {}
        for run in self.runs:
            for row in logs.read_metrics(run.folder):
                kept = steps.setdefault((row["step"], "seconds" in row), {})
                for name, value in row.items():
                    if name != "step":
                        kept[name] = [*kept.get(name, []), *np.atleast_1d(value)]
        return [{"step": key[0]} | steps[key] for key in sorted(steps)]

    def describe(self) -> str:
        """The runs of the column in words."""
        seeds = " ".join(map(str, self.seeds))
        states = {run.describe_state(): None for run in self.runs}
        return (
            f"{', '.join(str(run.folder) for run in self.runs)}: {self.first.experiment}"
            + (f" on {self.first.data}" if self.first.data else "")
            + f", seed{'s' * (len(self.seeds) > 1)} {seeds}, {', '.join(states)}"
        )


def columns_of(runs: Sequence[FoundRun]) -> list[Column]:
    """Runs as columns A, B, ..., those that differ in their seeds alone in one."""
    groups: list[list[FoundRun]] = []
    for run in runs:
        for group in groups:
            if all(_same_but_for_seeds(run, other) for other in group):
                group.append(run)
                break
        else:
            groups.append([run])
    return [Column(label, group) for label, group in zip(_labels(), groups)]


def _labels() -> Iterator[str]:
    letters = string.ascii_uppercase
    yield from letters
    yield from map("".join, itertools.product(letters, repeat=2))


def _same_but_for_seeds(a: FoundRun, b: FoundRun) -> bool:
    def what(run: FoundRun) -> tuple:
        record, evals = run.record, run.record.get("evals")
        settings = {k: v for k, v in flat(record["computes"]).items() if not k.startswith("run.")}
        read = {k: content_of(parts) for k, parts in (record.get("read") or {}).items()}
        return run.experiment, settings, record["num_steps"], read, evals, run.state

    return (
        what(a) == what(b)
        and not set(a.summary.seeds) & set(b.summary.seeds)
        and a.state == "finished"
        and not changed_code(code_of(a)[-1], code_of(b)[-1])
    )


# Settings.


def differing(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all columns, with the value in each."""
    settings = [column.settings for column in columns]
    names = dict.fromkeys(itertools.chain(*settings))
    rows = [("experiment", [column.first.experiment for column in columns])]
    rows += [(flag(name), [_value(s.get(name)) for s in settings]) for name in names]
    for name in ("num_steps", "batch_size"):
        rows.append((name.replace("_", " "), [str(c.first.record[name]) for c in columns]))
    launches = [column.first.record["launches"][-1] for column in columns]
    rows += [
        (name, [str(launch.get("versions", {}).get(name, "")) for launch in launches])
        for name in ("jax", "jaxlib", "flax", "optax")
    ]
    rows.append(("hardware", [launch["hardware"] for launch in launches]))
    rows.append(("commit", [launch["commit"] or "none" for launch in launches]))
    return [row for row in rows if len(set(row[1])) > 1]


def _value(x: Any) -> str:
    if isinstance(x, (list, tuple)):
        return " ".join(map(_value, x)) or "none"
    return "-" if x is None else str(x)


# Fairness.

SAME = "Of like with like: data, splits, evaluators and code are the same."


def differences_of_protocol(columns: Sequence[Column]) -> list[str]:
    """Sentences that say why numbers of the columns are not of like with like."""
    return [sentence for known, sentence in _protocol(columns) if known]


def unknown_of_protocol(columns: Sequence[Column]) -> list[str]:
    """Sentences that say what can't be known about numbers being of like with like."""
    return [sentence for known, sentence in _protocol(columns) if not known]


def _protocol(columns: Sequence[Column]) -> Iterator[Said]:
    for column in columns:
        for run in column.runs:
            if not run.summary.finished:
                at = f"step {run.summary.step} of {run.summary.num_steps}"
                yield True, f"{column.label} has not finished: its numbers are those of {at}."
    for other in columns[1:]:
        yield from _data(columns[0], other)
        yield from _evaluators(columns[0], other)
    yield from _code(columns)
    if len({c.first.record["launches"][-1]["hardware"] for c in columns}) > 1:
        yield True, "Times were measured on different hardware."


def _data(a: Column, b: Column) -> Iterator[Said]:
    both = f"{a.label} and {b.label}"
    names = [str(c.settings.get("judge") or c.settings.get("data") or "") for c in (a, b)]
    if len({name.endswith(f":{HELD_OUT}") for name in names}) > 1:
        yield True, f"{both} are measured on different splits: {names[0]} and {names[1]}."
    sizes = [c.settings.get("image_size") for c in (a, b)]
    if None not in sizes and sizes[0] != sizes[1]:
        shown = [str(size) if size else "the set's own size" for size in sizes]
        yield True, f"{both} have images of different sizes: {shown[0]} and {shown[1]}."
    for training, what in ((False, "measured"), (True, "trained")):
        parts = [_parts(c, training) for c in (a, b)]
        digests = [{of["digest"] for of in p.values()} for p in parts]
        if not all(digests):
            why = "a record has no fingerprint of it"
            yield False, f"Whether {both} were {what} on the same data is not known: {why}."
        elif digests[0] != digests[1]:
            shown = ["; ".join(f"{name}, {of['count']:,}" for name, of in p.items()) for p in parts]
            yield True, f"{both} were {what} on different data: {shown[0]} and {shown[1]}."


def _parts(column: Column, training: bool) -> dict[str, dict[str, Any]]:
    """Fingerprints of what was read to train on, or to measure on, by name and part."""
    return {
        f"{name} ({part})": of
        for name, parts in (column.first.record.get("read") or {}).items()
        for part, of in parts.items()
        if not part.startswith("weights") and part.startswith("training") == training
    }


def _evaluators(a: Column, b: Column) -> Iterator[Said]:
    evals = [c.first.record.get("evals") or {} for c in (a, b)]
    explained = any(known for known, _ in _data(a, b))  # Floors differ then, too.
    for name in [name for name in evals[0] if name in evals[1]]:
        settings = [e[name].get("settings") or {} for e in evals]
        for key in dict.fromkeys([*settings[0], *settings[1]]):
            x, y = (_value(s.get(key)) for s in settings)
            if x != y:
                explained = True
                yield True, f"The evaluator {name} has {key} {x} in {a.label} and {y} in {b.label}."
    for name in [name for name in a.rows if name in b.rows and not explained]:
        x, y = a.rows[name], b.rows[name]
        if x.floor and y.floor and x.floor_name == y.floor_name:
            p, q = float(np.mean(x.floor)), float(np.mean(y.floor))
            if abs(p - q) > 5e-3 * max(abs(p), abs(q)):  # More than rounding.
                yield (
                    True,
                    f"The floor of {name}, {x.floor_name}, is {p:.4g} in {a.label} and {q:.4g} in "
                    f"{b.label}, so that they are not measured in the same way.",
                )


def _code(columns: Sequence[Column]) -> Iterator[Said]:
    """Sentences on code that differs between runs, or between the launches of one."""
    for column in columns:
        for run in column.runs:
            for a, b in itertools.pairwise(code_of(run)):
                for known, changed in changed_code(a, b):
                    yield known, f"Code changed between launches of {run.folder}: {changed}."
    first = columns[0]
    for other in columns[1:]:
        a, b = (code_of(column.first)[-1] for column in (first, other))
        for known, changed in changed_code(a, b):
            yield known, f"The code of {first.label} and {other.label} differs: {changed}."


# Tables.


def numbers_table(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """(name, a cell for each column) of every number, with the untrained net's, floors, and what
    held-out examples have.

    Of two columns there is a third cell, the difference of their means.
    """
    names = dict.fromkeys(itertools.chain(*(column.rows for column in columns)))
    table: list[tuple[str, list[str]]] = []
    for name in names:
        rows = [column.rows.get(name) for column in columns]
        there = [row for row in rows if row]
        better = there[0].better
        places = decimals([row.trained for row in there], max(there, key=_spread).trained)
        cells = [format_mean(row.trained, places) if row else "" for row in rows]
        if len(columns) == 2:
            cells.append(_difference(there, places) if len(there) == 2 else "")
        table.append((name, cells))
        if better:
            for kind in ("untrained", "floor", "real"):
                values = [getattr(row, kind) if row else None for row in rows]
                shown = [format_mean(v, places, spread=False) if v else "" for v in values]
                floors = {row.floor_name for row in there if row.floor_name}
                label = f"floor {', '.join(sorted(floors))}" if kind == "floor" else kind
                if any(shown):
                    table.append((f"  {label}", shown + [""] * (len(columns) == 2)))
    times = [describe_seconds(float(np.mean(column.seconds))) for column in columns]
    table.append(("time of a seed", times + [""] * (len(columns) == 2)))
    return table


def _spread(row: Row) -> float:
    return float(np.std(row.trained)) if len(row.trained) > 1 else -1.0


def _difference(rows: Sequence[Row], places: int | None) -> str:
    mean, half = difference(rows[0].trained, rows[1].trained)
    if not np.isfinite(mean):
        return ""
    shown = [f"{x:.4g}" if places is None else f"{x:.{places}f}" for x in (mean, half)]
    sign = "+" if mean > 0 else ""
    return f"{sign}{shown[0]}" + (f" ± {shown[1]}" if half > 0 else "")


def _heads(columns: Sequence[Column]) -> list[str]:
    labels = [column.label for column in columns]
    return [*labels, " - ".join(reversed(labels))] if len(labels) == 2 else labels


def text(columns: Sequence[Column], most: int = 79) -> str:
    """The comparison for a terminal of `most` columns."""
    parts = ["\n".join(wrapped(f"{c.label}  {c.describe()}", 3) for c in columns)]
    labels = [column.label for column in columns]
    if rows := differing(columns):
        parts.append(_chunked([("differs", labels), *rows], most))
    elif len(columns) > 1:
        parts.append("All settings are the same.")
    parts.append(_chunked([("", _heads(columns)), *numbers_table(columns)], most))
    parts.append("\n".join(wrapped(note, 2) for note in _notes(columns)))
    said, unknown = differences_of_protocol(columns), unknown_of_protocol(columns)
    for head, sentences in (("! Not of like with like:", said), ("Not known:", unknown)):
        if sentences:
            lines = [head, *(f"  {sentence}" for sentence in sentences)]
            parts.append("\n".join(wrapped(line, 4) for line in lines))
    if len(columns) > 1 and not said and not unknown:
        parts.append(SAME)
    return "\n\n".join(part for part in parts if part)


def _notes(columns: Sequence[Column]) -> list[str]:
    notes = []
    if any(len(column.seeds) > 1 for column in columns):
        notes.append(
            "Mean ± half of the 95 % interval over seeds"
            + (", of a difference by Welch's t." if len(columns) == 2 else ".")
        )
    for column in columns:
        for run in column.runs:
            file = run.folder / "metrics.jsonl"
            lines = file.read_bytes().splitlines() if file.exists() else []
            bad = len(lines) - len(logs.read_metrics(run.folder))
            if bad > 0:
                s = "s are" if bad > 1 else " is"
                notes.append(f"{bad} line{s} left out of {file}, which can't be read.")
    return notes


def _chunked(rows: Sequence[tuple[str, Sequence[str]]], most: int) -> str:
    """A table whose columns, where they need more room, go on in further tables below."""
    count = len(rows[0][1])
    for size in range(count, 0, -1):
        tables = [
            logs.aligned([(name, *cells[i : i + size]) for name, cells in rows], most=most)
            for i in range(0, count, size)
        ]
        if size == 1 or all(len(line) <= most for table in tables for line in table):
            return "\n\n".join("\n".join(table) for table in tables)
    return ""


# Page.

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#888888")


def page(columns: Sequence[Column]) -> str:
    """The comparison as one page of HTML that needs no other file and no network."""
    css = (pathlib.Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    labels = [column.label for column in columns]
    said = differences_of_protocol(columns)
    warning = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in said)
    unknown = "".join(f"<li>{html.escape(x)}</li>" for x in unknown_of_protocol(columns))
    legend = "".join(
        f'<p><i style="display:inline-block;width:11px;height:11px;border-radius:50%;'
        f'background:{_colour(i)}"></i> <b>{column.label}</b> {html.escape(column.describe())}</p>'
        for i, column in enumerate(columns)
    )
    settings = differing(columns)
    panels = "".join(
        f'<div class="card"><div class="top"><b>{html.escape(name)}</b></div>{svg}</div>'
        for name, svg in curve_panels(columns)
    )
    notes = " ".join(_notes(columns))
    sections = {
        "Not of like with like": f'<ul class="worse">{warning}</ul>' if warning else "",
        "Not known": f"<ul>{unknown}</ul>" if unknown else "",
        "Of like with like": f"<p>{html.escape(SAME)}</p>"
        if not (warning or unknown) and columns[1:]
        else "",
        "Numbers": _html_table(["", *_heads(columns)], numbers_table(columns))
        + f'<p class="note">{html.escape(notes)}</p>',
        "Settings that differ": _html_table(["", *labels], settings),
        "Curves": f'<div id="plots">{panels}</div>' if panels else "",
    }
    body = "".join(
        f"<section><h2>{name}</h2>{content}</section>"
        for name, content in sections.items()
        if content
    )
    title = " and ".join(dict.fromkeys(column.first.experiment for column in columns))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<title>Comparison: {html.escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{css}</style>\n</head>\n<body>\n"
        f"<header><h1>Comparison: {html.escape(title)}</h1>{legend}</header>\n"
        f"<main>{body}</main>\n</body>\n</html>\n"
    )


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _html_table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th class="number">{html.escape(x)}</th>' for x in heads[1:])
    lines = "".join(
        f'<tr><th scope="row"{" class=quiet" if name.startswith(" ") else ""}>'
        f"{html.escape(name).replace('  ', '&emsp;')}</th>"
        + "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    return (
        f'<div class="wide"><table class="results"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def curve_panels(columns: Sequence[Column]) -> Iterator[tuple[str, str]]:
    """(name, SVG) of each curve of metrics.jsonl, overlaid, those of evaluations first."""
    from ssljax.report import curves  # And Matplotlib, which a table does not need.

    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    examples = len({column.first.record["batch_size"] for column in columns}) > 1
    for i, column in enumerate(columns):
        judged = column.first.record.get("evals") or {}
        for curve in curves(column.metrics, judged, column.first.summary.num_steps):
            if len(curve["steps"]) > 1:
                found.setdefault(curve["name"], []).append((i, curve))
    for name in sorted(found, key=lambda name: found[name][0][1]["kind"] != "evaluation"):
        yield name, _panel(columns, found[name], examples)


def _panel(
    columns: Sequence[Column], lines: Sequence[tuple[int, Mapping[str, Any]]], examples: bool
) -> str:
    """Curves over the steps, or over the examples seen, with bands from least to largest."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.8), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for i, curve in lines:
        per_step = columns[i].first.record["batch_size"] if examples else 1
        x = np.array(curve["steps"]) * per_step
        dot = "." if len(x) < 20 else None
        axes.plot(x, curve["mean"], marker=dot, lw=1.5, color=_colour(i), label=columns[i].label)
        if "low" in curve:
            axes.fill_between(x, curve["low"], curve["high"], color=_colour(i), alpha=0.15, lw=0)
        if "untrained" not in curve.get("lines", {}):
            continue
        for bound, value in curve["lines"].items():
            if bound != "untrained":
                axes.axhline(value, color=_colour(i), ls="--", lw=0.8)
    axes.set_xlabel("examples" if examples else "step", fontsize=8)
    axes.tick_params(labelsize=8, color="#8a929b")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8a929b")
    axes.grid(alpha=0.25)
    if len(columns) > 1:
        axes.legend(fontsize=8, frameon=False)
    out = io.StringIO()
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "ssljax", "font.family": "sans-serif"}
    ):
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    return out.getvalue()[out.getvalue().index("<svg") :]


# Command line.


@dataclass(frozen=True)
class Command:
    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Folders of runs."""
    html: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Page to write as well, with curves."""


Command.__doc__ = __doc__


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    flags.run_command(Command, _run, args)


def _run(asked: Command) -> None:
    file = pathlib.Path(asked.html).expanduser()
    if asked.html and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"--html {asked.html} must be the name of a file in a folder that exists.")
    found, notes = [], []
    for folder in dict.fromkeys(os.path.normpath(name) for name in asked.runs):
        try:
            found.append(read_run(folder))
        except InputError as e:
            notes.append(str(e))
        except OSError as e:
            notes.append(f"{folder} can't be read: {e.strerror or e} ({e.filename or folder}).")
    if not found:
        raise InputError(notes[0] if notes else "Give the folders of runs, as runs/a runs/b.")
    columns = columns_of(found)
    print(text(columns))
    for note in notes:
        print(wrapped(f"\nLeft out: {note}", 2))
    if asked.html:
        write_whole(file, page(columns))
        print(f"\n{asked.html} has the curves, too.")


if __name__ == "__main__":
    main()
