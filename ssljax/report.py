"""Report of a run: its numbers, curves, pictures and record on one page, `report.html`.

    .venv/bin/python -m ssljax.report runs/simclr     # writes it again, of a run of any age

A run writes it when the untrained net has been evaluated, at evaluations and checkpoints, and at
its end. The page needs no other file and no network.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import html
import json
import math
import pathlib
import shlex
import sys
from typing import Any

import numpy as np

from ssljax import figures, logs
from ssljax.errors import InputError
from ssljax.evals.texts import split_apart
from ssljax.record import flat, read_json, read_record, read_results, write_whole
from ssljax.summary import (
    compared_with,
    format_row,
    numbers_at,
    read_evaluations,
    Row,
    Summary,
    summary,
    summary_rows,
)

HERE = pathlib.Path(__file__).parent
POINTS = 500  # Most points of a curve; of longer ones, means of as many stretches are drawn.
SHOWN = 8  # Most steps of which a picture is shown, the first and the last among them.
EVALUATED = 3  # Fewest steps that an evaluated number is drawn as a curve for.
SPEED = "examples_per_second"
MIME = {".png": "image/png", ".gif": "image/gif"}  # Of pictures and animations.

escape = html.escape  # Quotes too.


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes report.html into a run's folder, whole or not at all; returns its path.

    InputError where the folder holds no run, or a file of it is damaged.
    """
    file = pathlib.Path(workdir) / "report.html"
    write_whole(file, page(pathlib.Path(workdir)))
    return file


def page(workdir: pathlib.Path) -> str:
    """The page, of what a run's folder holds now."""
    found = summary(workdir)
    record = read_record(workdir, "train that run again")
    judged = record.get("evals") or {}
    rows = logs.read_metrics(workdir)
    shown = _figures(workdir, judged)
    maps = [figure for figure in shown if figure.kind == ".json"]
    method = pathlib.Path(record.get("experiment") or record["launches"][-1]["command"][0]).stem
    data = record["computes"].get("data")
    title = f"{method} · {data}" if isinstance(data, str) else method
    drawn = {
        "curves": curves(rows, judged, found.num_steps, _bands(record)),
        "maps": [_map(figure) for figure in maps],
    }
    head = _head(title, workdir, record, found, rows)
    sections = {
        "Results": _results(workdir, found, judged),
        "Curves": _curves(drawn["curves"], rows, record.get("reference") or ""),
        "Features": _maps(maps),
        "Pictures": "".join(_pictures(figure) for figure in shown if figure.kind in MIME),
        "Texts": "".join(_texts(figure) for figure in shown if figure.kind == ".txt"),
        "Settings": _settings(record),
        "Data": _data(record),
        "Record": _record(record, workdir),
    }
    sections = {name: text for name, text in sections.items() if text}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{text}</section>'
        for name, text in sections.items()
    )
    # No character that could end the element that holds it.
    content = json.dumps(logs.to_json(drawn), allow_nan=False, separators=(",", ":"))
    content = content.replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return PAGE.format(
        title=escape(title),
        css=(HERE / "report.css").read_text(encoding="utf-8"),
        js=(HERE / "report.js").read_text(encoding="utf-8"),
        head=head,
        links=links,
        body=body,
        data=content.replace("\u2029", "\\u2029"),
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<header>{head}<nav>{links}</nav></header>
<main>{body}</main>
<script type="application/json" id="drawn">{data}</script>
<script>{js}</script>
</body>
</html>
"""


# Above the sections, and results.


def _head(
    title: str,
    workdir: pathlib.Path,
    record: Mapping[str, Any],
    found: Summary,
    rows: Sequence[Mapping[str, Any]],
) -> str:
    reached = max((row["step"] for row in rows), default=0)
    state = f"step {reached:,} of {found.num_steps:,}"
    state = f"finished, {found.num_steps:,} steps" if found.finished else state
    seconds = max((np.max(row["seconds"]) for row in rows if "seconds" in row), default=0.0)
    seeds = len(found.seeds)
    facts = [
        state,
        f"{seeds} seeds" if seeds > 1 else "1 seed",
        f"batches of {record['batch_size']:,}",
        f"{_duration(float(seconds))} of training",
        record["launches"][-1]["hardware"],
        str(workdir),
    ]
    shown = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return f'<h1>{escape(title)}</h1><ul class="facts">{shown}</ul>{_verdict(workdir, found)}'


def _verdict(workdir: pathlib.Path, found: Summary) -> str:
    """The main number with what it is compared with, which numbers are worse than theirs, and what
    evaluators warn of."""
    main = found.main
    if main is None:
        return '<p class="verdict">Nothing has been evaluated since training began.</p>'
    cells = {k: escape(v) for k, v in format_row(main).items()}
    others = [
        f"{what} <b>{cells[name]}</b>"
        for name, what in (
            ("untrained", "untrained"),
            ("floor", f"floor ({escape(main.floor_name)})"),
            ("real", "held-out images"),
            ("ledger", "ledger"),
        )
        if cells[name]
    ]
    text = f'{escape(main.name)} <strong class="main">{cells["trained"]}</strong>'
    text += f"<span>{', '.join(others)}</span>" if others else ""
    worse = [row for row in found.rows if row.worse_than]
    try:
        warned = read_results(workdir, "run its command again").get("warnings", [])
    except FileNotFoundError:  # Of a run under way.
        warned = []
    for line in warned:
        text += f'<br><span class="worse">{escape(line.removeprefix("! "))}</span>'
    if worse:
        named = "; ".join(f"{row.name} than {_worse(row)}" for row in worse)
        text += f'<br><span class="worse">Worse than it should be: {escape(named)}.</span>'
    elif not warned and any(row.better for row in found.rows):
        text += '<br><span class="good">No number is worse than the untrained net’s or than its'
        text += " floor.</span>"
    return f'<p class="verdict">{text}</p>'


def _worse(row: Row) -> str:
    names = {"untrained": "the untrained net", "floor": f"its floor, {row.floor_name}"}
    return " and ".join(names[bound] for bound in row.worse_than)


def _results(workdir: pathlib.Path, found: Summary, judged: Mapping[str, Any]) -> str:
    rows, trained = list(found.rows), True
    if not rows:
        values = numbers_at(read_evaluations(workdir), 0, found.seeds)
        rows, trained = summary_rows(values, {}, judged), False
    if not rows:
        return ""
    heads = ["trained" if trained else "untrained", "untrained", "floor", "", "real"]
    heads += ["ledger", "paper"]
    table = []
    for row in rows:
        cells = format_row(row)
        arrow = {"higher": "↑", "lower": "↓"}.get(row.better or "", "")
        name = escape(row.name)
        if arrow:
            name += f' <span class="quiet" title="{row.better} is better">{arrow}</span>'
        mark = " worse" if row.worse_than else ""
        title = f' title="worse than {escape(_worse(row))}"' if mark else ""
        first = f'<td class="number first{mark}"{title}>{escape(cells["trained"])}</td>'
        others = [(cells["untrained"], "number"), (cells["floor"], "number")]
        others += [(row.floor_name if cells["floor"] else "", "quiet")]
        others += [(cells[column], "number") for column in ("real", "ledger", "paper")]
        table.append((name, first, others))
    used = [any(others[i][0] for _, _, others in table) for i in range(6)]
    head = "".join(
        f"<th{' class=number' if i != 3 else ''}>{heads[i]}</th>"
        for i in range(7)
        if i == 0 or used[i - 1]
    )
    lines = "".join(
        f"<tr><th scope=row>{name}</th>{first}"
        + "".join(f'<td class="{c}">{escape(v)}</td>' for (v, c), u in zip(others, used) if u)
        + "</tr>"
        for name, first, others in table
    )
    several = len(found.seeds) > 1
    notes = [f"At step {found.step:,}." if trained else "Of the untrained net."]
    if several:
        notes.append(f"Mean ± half of the 95 % interval over {len(found.seeds)} seeds.")
    if any(row.better for row in rows):
        notes.append("An arrow says which way is better.")
    if found.ledger:
        n = len(found.ledger["seeds"])
        notes.append(f"Ledger: {n} seed{'s' * (n > 1)} at these settings, {found.ledger['date']}.")
        if any(cells["paper"] for cells in map(format_row, rows)):
            notes.append(f"Paper: {found.ledger['paper']}.")
    return (
        f'<div class="wide"><table class="results"><thead><tr><th></th>{head}</tr></thead>'
        f'<tbody>{lines}</tbody></table></div><p class="note">{escape(" ".join(notes))}</p>'
    )


# Curves.


def curves(
    rows: Sequence[Mapping[str, Any]],
    judged: Mapping[str, Any],
    num_steps: int,
    bands: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Curves of the rows of metrics.jsonl: those of training, then evaluations at several steps.

    A curve has "steps", "mean", over the seeds, and "low" and "high", the least and the largest
    where there are seeds or where it is drawn as means of stretches. An evaluated number has its
    floors, what held-out examples have and the untrained net's as "lines": {name: value}, and these
    have no curve of their own.
    `bands` are those of a reference, by name of the number.
    """
    training = [row for row in rows if "seconds" in row]
    evaluated = [row for row in rows if "seconds" not in row]
    names = [name for name in _names(training) if name not in ("step", *logs.TIMES)]
    last = ("grad_norm", "lr")
    names = sorted(names, key=lambda name: (name.startswith(last), name != "loss"))
    if any(SPEED in row for row in training):
        names.append(SPEED)
    found: list[dict[str, Any]] = [
        {"name": n, "kind": "training", **_series(training, n, POINTS)} for n in names
    ]
    compared = compared_with(judged)
    beside = {other for _, other in compared}
    for name in _names(evaluated):
        steps = [row["step"] for row in evaluated if name in row]
        if name == "step" or name in beside or len(steps) < EVALUATED:
            continue
        lines = {}
        for number, other in compared:
            if number == name and (line := _series(evaluated, other, POINTS)["mean"]):
                lines[other.partition("/")[2]] = line[-1]
        series = _series(evaluated, name, POINTS)
        if len(set(series["mean"])) == 1:  # As a size of the net, which is in the table.
            continue
        if series["steps"][0] == 0:
            lines["untrained"] = series["mean"][0]
        found.append({"name": name, "kind": "evaluation", **series, "lines": lines})
    for curve in found:
        values = np.array([*curve["mean"], *curve.get("lines", {}).values()], float)
        values = values[np.isfinite(values)]
        curve["counts"] = bool(len(values)) and bool((values == np.round(values)).all())
        curve["end"] = num_steps
        if band := (bands or {}).get(curve["name"]):
            curve["reference"] = {k: getattr(band, k) for k in ("steps", "least", "largest")}
    return found


def _bands(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bands of the reference that the run was given, where it is still there."""
    if not record.get("reference"):
        return {}
    from ssljax.reference import reference  # It reads the ledger.

    try:
        return reference(record["reference"])
    except (InputError, OSError):
        return {}


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _series(rows: Sequence[Mapping[str, Any]], name: str, most: int) -> dict[str, Any]:
    """Mean, least and largest over the seeds of a number, or over the rows of each stretch too."""
    by_step = {row["step"]: np.atleast_1d(row[name]) for row in rows if name in row}
    steps = sorted(by_step)
    stretches = np.array_split(np.array(steps), min(most, len(steps))) if steps else []
    merged = len(steps) > most
    several = merged or any(len(v) > 1 for v in by_step.values())
    found: dict[str, Any] = {"steps": [int(s[-1]) for s in stretches], "merged": merged}
    values = [np.concatenate([by_step[int(at)] for at in s]).astype(float) for s in stretches]
    found["mean"] = [float(np.mean(v)) for v in values]
    if several:
        found["low"] = [float(np.min(v)) for v in values]
        found["high"] = [float(np.max(v)) for v in values]
    return found


def _curves(
    drawn: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], reference: str
) -> str:
    if not drawn:
        return ""
    notes = []
    if any(curve["merged"] for curve in drawn):
        notes.append(
            f"Of a curve with more than {POINTS} points, means of {POINTS} stretches are drawn, "
            "and a band from the least to the largest number in each."
        )
    elif any("low" in curve for curve in drawn):
        notes.append("Bands reach from the least to the largest seed.")
    if any("reference" in curve for curve in drawn):
        notes.append(f"The grey band is of the seeds of the reference, {reference}.")
    few = [n for n in _names(r for r in rows if "seconds" not in r) if n != "step"]
    few = [n for n in few if n not in {curve["name"] for curve in drawn}]
    if few and not any(curve["kind"] == "evaluation" for curve in drawn):
        notes.append(
            f"Numbers evaluated at fewer than {EVALUATED} steps are in the table alone; "
            "--run.eval-every N evaluates every N steps."
        )
    if any(curve["name"].startswith("grad_norm") for curve in drawn):
        notes.append("The norm of the gradient is its L2 norm before it is clipped.")
    return (
        '<div class="tools"><label>smoothing <input id="smoothing" type="range" min="0" '
        'max="0.98" step="0.02" value="0"> <output id="smoothed">off</output></label>'
        '<label><input id="logarithmic" type="checkbox"> logarithmic</label></div>'
        f'<div id="plots"></div><p class="note">{escape(" ".join(notes))}</p>'
    )


# Feature maps, pictures and texts.


@dataclass(frozen=True)
class Figure:
    """What an evaluator draws or writes under one name, at several steps."""

    kind: str  # Suffix of the files: .json of a feature map, .png, .gif or .txt.
    title: str
    caption: str
    files: Mapping[int, pathlib.Path]  # By step, in the order of steps.


def _figures(workdir: pathlib.Path, judged: Mapping[str, Any]) -> list[Figure]:
    """Figures that are kept, in the order of their evaluators."""
    order, found = list(judged), []
    for name, files in figures.kept_figures(workdir).items():
        fits = [e for e in order if name.startswith(figures.figure_name(f"{e}/"))]
        evaluator = max(fits, key=len, default="")
        caption, title = "", name
        for key, text in judged.get(evaluator, {}).get("captions", {}).items():
            if name == figures.figure_name(f"{evaluator}/{key}"):
                caption, title = text, evaluator if evaluator == key else f"{evaluator} · {key}"
        place = order.index(evaluator) if evaluator else len(order)
        kind = next(iter(files.values())).suffix
        found.append(((place, name), Figure(kind, title, caption, files)))
    return [figure for _, figure in sorted(found, key=lambda item: item[0])]


def _map(figure: Figure) -> dict[str, Any]:
    files = figure.files
    points, labels, names = {}, [], []
    for step in _few(list(files)):
        content = read_json(files[step], "remove it")
        points[step], labels, names = content["points"], content["labels"], content["names"]
    sheet = next(iter(files.values())).parent / "thumbnails.webp"
    return {
        "name": figure.title,
        "steps": list(points),
        "points": list(points.values()),
        "labels": labels,
        "names": names,
        "sheet": _url(sheet, "image/webp") if sheet.exists() else "",
        "cell": figures.CELL,
        "columns": figures.SHEET,
    }


def _maps(maps: Sequence[Figure]) -> str:
    return "".join(
        f'<figure class="map" data-map="{i}"><figcaption>{escape(figure.caption)}</figcaption>'
        "</figure>"
        for i, figure in enumerate(maps)
    )


def _pictures(figure: Figure) -> str:
    """A picture of the first and of the last step, and a strip of all where there are more."""
    files = figure.files
    steps = _few(list(files))
    content = {step: files[step].read_bytes() for step in steps}
    if len(set(content.values())) == 1:  # It does not depend on the net.
        steps = steps[-1:]
    title = escape(figure.title)
    urls = {step: _url(files[step], MIME[figure.kind]) for step in steps}
    images = {s: f'<img alt="{title} at step {s}" src="{urls[s]}">' for s in steps}

    def pane(step: int, image: str) -> str:
        when = f"<p class=when>{_when(step)}</p>" if len(steps) > 1 else ""
        return f'<div class="pane">{when}{image}</div>'

    empty = '<img alt="">'  # Filled from the strip.
    shown = [steps[0], steps[-1]] if len(steps) > 1 else steps
    panes = "".join(pane(s, images[s] if len(steps) < 3 else empty) for s in shown)
    strip = "".join(
        f'<button type="button" data-when="{_when(step)}">{image}{_when(step)}</button>'
        for step, image in images.items()
    )
    strip = f'<div class="strip">{strip}</div>' if len(steps) > 2 else ""
    return (
        f'<figure class="pictures"><h3>{title}</h3><figcaption>{escape(figure.caption)}'
        f'</figcaption><div class="panes">{panes}</div>{strip}</figure>'
    )


def _texts(figure: Figure) -> str:
    """A text of each step, the last one open."""
    files = figure.files
    steps = _few(list(files))
    parts = []
    for step in reversed(steps):
        text = files[step].read_text(encoding="utf-8", errors="replace").removesuffix("\n")
        samples = "".join(f'<pre class="sample">{_marked(s)}</pre>' for s in split_apart(text))
        is_open = " open" if step == steps[-1] else ""
        parts.append(f"<details{is_open}><summary>{_when(step)}</summary>{samples}</details>")
    return (
        f'<figure class="texts"><h3>{escape(figure.title)}</h3>'
        f"<figcaption>{escape(figure.caption)}</figcaption>{''.join(parts)}</figure>"
    )


def _marked(sample: str) -> str:
    prompt, end, rest = sample.removeprefix("⟦").partition("⟧")
    if not (sample.startswith("⟦") and end):
        return escape(sample)
    return f'<mark title="prompt">{escape(prompt)}</mark>{escape(rest)}'


def _few(steps: Sequence[int]) -> list[int]:
    """At most `SHOWN` of the steps, evenly spread from the first to the last."""
    if len(steps) <= SHOWN:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def _when(step: int) -> str:
    return f"step {step:,}" if step else "untrained"


def _url(file: pathlib.Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


# Settings, data and record.


def _settings(record: Mapping[str, Any]) -> str:
    """Arguments that differ from their defaults, and all of them below."""
    computes, defaults = flat(record["computes"]), record.get("defaults")
    usual = flat(defaults or {})
    rows = [
        (name, _value(value), _value(usual[name]) if name in usual else "")
        for name, value in computes.items()
        if defaults is not None and (name not in usual or usual[name] != value)
    ]
    rows = [row for row in rows if not _is_usual_run(row[0], computes[row[0]])]
    if defaults is None:
        first = '<p class="note">The record is of a version that kept no defaults.</p>'
    elif rows:
        first = _table(("setting", "value", "default"), rows)
    else:
        first = "<p>All settings have their defaults.</p>"
    every = _table(("setting", "value"), [(k, _value(v)) for k, v in computes.items()])
    return f"{first}<details><summary>all {len(computes)} settings</summary>{every}</details>"


def _is_usual_run(name: str, value: Any) -> bool:
    return (name, value) in (("run.seed", 0), ("run.seeds", 1))


def _value(x: Any) -> str:
    if isinstance(x, (list, tuple)):
        return " ".join(map(_value, x))
    return "" if x is None else str(x)


def _data(record: Mapping[str, Any]) -> str:
    """What was read under each name, with the number of examples and the digest of the content."""
    rows = [
        (name, part, f"{of['count']:,}", of["digest"])
        for name, parts in (record.get("read") or {}).items()
        for part, of in parts.items()
    ]
    said = "".join(f"<p>{escape(line)}</p>" for line in record.get("said") or [])
    heads = ("name", "part", "number", "digest")
    return said + (_table(heads, rows, number=2, code=3) if rows else "")


def _record(record: Mapping[str, Any], workdir: pathlib.Path) -> str:
    launches = record["launches"]
    last = launches[-1]
    pairs = [
        ("command", f"<code>{escape(shlex.join(last['command']))}</code>"),
        ("folder", f"<code>{escape(str(workdir.absolute()))}</code>"),
        ("commit", f"<code>{escape(last['commit'] or 'none: outside of a checkout')}</code>"),
        ("hardware", escape(last["hardware"])),
        ("Python", escape(last.get("python", ""))),
        ("versions", escape(", ".join(f"{k} {v}" for k, v in last["versions"].items()))),
        ("launched", escape(last["time"].replace("T", " ").replace("Z", " UTC"))),
    ]
    if last["commit"].endswith("+"):
        pairs[2] = ("commit", pairs[2][1] + " with changes that are in source/")
    if len(launches) > 1:
        starts = "; ".join(f"from step {x.get('start', 0):,} at {x['time']}" for x in launches)
        pairs.append(("launches", escape(starts)))
    lines = "".join(f"<tr><th scope=row>{name}</th><td>{text}</td></tr>" for name, text in pairs)
    return f'<table class="record"><tbody>{lines}</tbody></table>'


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], number: int = -1, code: int = -1
) -> str:
    classes = {number: ' class="number"', code: ' class="code"'}
    head = "".join(f"<th{classes.get(i, '')}>{escape(h)}</th>" for i, h in enumerate(heads))
    lines = "".join(
        "<tr>"
        + "".join(f"<td{classes.get(i, '')}>{escape(x)}</td>" for i, x in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = math.floor(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def main(args: Sequence[str]) -> int:
    """Writes the reports of the folders that are given."""
    if not args:
        print("usage: python -m ssljax.report RUN [RUN ...]", file=sys.stderr)
        return 2
    try:
        for workdir in args:
            print(write_report(workdir))
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
