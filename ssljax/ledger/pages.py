"""Pages of the ledger: experiments/README.md, and a page and charts in experiments/ledger/."""

from collections.abc import Mapping, Sequence
import re
import shlex
from typing import Any

import numpy as np

from ssljax.bands import Band
from ssljax.errors import InputError
from ssljax.ledger.charts import Bar, bar_chart, curve_chart, Panel
from ssljax.ledger.rows import data_of, floor_of, mean, name_of, Row, task_of, without_workdir
from ssljax.stats import interval

START, END = "<!-- ledger: written by python -m ssljax.ledger -->", "<!-- end of ledger -->"
COLUMNS = 8  # At most, of a table.
NARROW = 20  # Characters in the name of a number that has a column of its own, at most.
MINUTES = {False: "", True: "≤\u00a0"}  # Before the minutes of a row whose machine was shared.


def render(readme: str, rows: Sequence[Row], commands: Mapping[str, Any]) -> dict[str, str]:
    """{path below experiments/: text} of README.md and of all files in ledger/ that are made.

    `commands` has today's words of each row's command by the row's name, or an InputError.
    """
    names = [name_of(r) for r in rows]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"Two rows have the name {twice[0]}: give one of them another --variant.")
    tasks: dict[str, list[Row]] = {}
    for r in sorted(rows, key=lambda r: (not r["comparison"], task_of(r))):
        tasks.setdefault(task_of(r), []).append(r)
    pages = {}
    sections = ["## Contents", ""]
    sections += [f"- [{title}](#{anchor(title)})" for title in tasks] + [""]
    for title, of_task in tasks.items():
        chart = f"ledger/{slug(title)}.svg"
        pages[chart] = _chart(title, of_task)
        sections += [f"## {title}", "", *_about(of_task)]
        sections += [f'<img src="{chart}" alt="{title}: the table below as bars">', ""]
        sections += [*table(of_task), ""]
    before, rest = readme.split(START)
    text = "\n".join([START, *sections, END])
    pages["README.md"] = f"{before}{text}{rest.split(END)[1]}"
    for r in rows:
        name = name_of(r)
        before = [_first_today(words, rows, commands) for words in r["before"]]
        pages[f"ledger/{name}.md"] = row_page({**r, "before": before}, commands[name])
        if bands := _bands(r):
            pages[f"ledger/{name}.svg"] = curve_chart(f"{name}: training", bands)
    return pages


def _first_today(
    words: Sequence[str], rows: Sequence[Row], commands: Mapping[str, Any]
) -> Sequence[str]:
    """A command that must be run before, by today's flags where it is that of a row."""
    command, workdir = without_workdir(words), words[words.index("--run.workdir") :]
    for r in rows:
        today = commands[name_of(r)]
        if r["command"] == command and not isinstance(today, InputError):
            return [*today, *workdir]
    return words


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def slug(title: str) -> str:
    """A title as the name of a file."""
    return re.sub(r"[^\w]+", "-", title.lower()).strip("-")


def _scales(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of a table by their first number and data, each group with its best first."""
    found: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        found.setdefault((r["numbers"][0], data_of(r)), []).append(r)
    for (number, _), group in found.items():
        ways = {r["better"] for r in group}
        if len(ways) > 1 or not ways <= {"higher", "lower"}:
            raise InputError(
                f"Rows of {name_of(group[0])} don't agree which way {number} is better: "
                "write them again with --better."
            )
        sign = -1 if ways == {"higher"} else 1
        group.sort(key=lambda r: (sign * np.mean(r["ours"][number]), name_of(r)))
    return dict(sorted(found.items()))


def _about(rows: Sequence[Row]) -> list[str]:
    """What the table's numbers are, in a line."""
    scales = _scales(rows)
    said = []
    if len(scales) == 1:
        (number, _), _ = next(iter(scales.items()))
        said.append(f"`{number}`, {rows[0]['better']} is better.")
    floors = {floor_of(r)[0] for r in rows}
    named = [f"`{f}`" if f != "untrained" else "the untrained net" for f in sorted(floors)]
    said.append(f"Floor: {', '.join(named)}.")
    if rows[0]["comparison"]:
        r = rows[0]
        seeds, hardware = _seeds(r), sorted({r["hardware"] for r in rows})
        said.append(
            f"All: {r['computes']['epochs']} epochs, batches of {r['batch_size']}, seeds {seeds}, "
            f"{', '.join(hardware)}."
        )
    return [" ".join(said), ""]


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a task's table, at most eight columns, the best first.

    Columns that all rows leave empty are left out; further numbers, which all rows have, take
    their place.
    """
    scales = _scales(rows)
    ordered = [r for group in scales.values() for r in group]
    columns: dict[str, list[str]] = {"method": [_link(r) for r in ordered]}
    if len(scales) > 1:
        columns |= _apart(ordered)
    columns["ours"] = [f"**{_unbroken(r, r['numbers'][0])}**" for r in ordered]
    others = [n for n in ordered[0]["numbers"][1:] if all(n in r["numbers"] for r in ordered)]
    others = [n for n in others if len(n) <= NARROW]
    columns["paper"] = [_paper(r) for r in ordered]
    columns["difference"] = [_difference(r) for r in ordered]
    columns["floor"] = [f"{np.mean(floor_of(r)[1]):.2f}" for r in ordered]
    columns["seeds"] = [str(len(r["seeds"])) for r in ordered]
    columns["minutes"] = [MINUTES[r["shared"]] + minutes(r["seconds"]) for r in ordered]
    if not any(columns["paper"]):
        del columns["paper"], columns["difference"]
        more = others[: COLUMNS - len(columns)]
        extra = {f"`{n}`": [_unbroken(r, n) for r in ordered] for n in more}
        head = list(columns)[: list(columns).index("ours") + 1]
        columns = {k: columns[k] for k in head} | extra | columns
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in zip(*columns.values(), strict=True)]
    return lines


def _apart(rows: Sequence[Row]) -> dict[str, list[str]]:
    """A column of what tells the scales of a table apart: number, data or both."""
    numbers = [f"`{r['numbers'][0]}`" for r in rows]
    data = [data_of(r) for r in rows]
    if len(set(numbers)) == 1:
        return {"data": data}
    if len(set(data)) == 1:
        return {"number": numbers}
    return {"number": [", ".join(both) for both in zip(numbers, data, strict=True)]}


def _unbroken(r: Row, number: str) -> str:
    return mean(r["ours"][number]).replace(" ", "\u00a0")


def _label(r: Row) -> str:
    return f"{r['method']}, {r['variant']}" if r["variant"] else r["method"]


def _link(r: Row) -> str:
    of_variant = f", {r['variant']}" if r["variant"] else ""
    return f"[{r['method']}](ledger/{name_of(r)}.md){of_variant}"


def _paper(r: Row) -> str:
    number = r["paper_numbers"].get(r["numbers"][0])
    return "" if number is None else f"{number:g}"


def _difference(r: Row) -> str:
    number = r["paper_numbers"].get(r["numbers"][0])
    return "" if number is None else f"{np.mean(r['ours'][r['numbers'][0]]) - number:+.2f}"


def minutes(seconds: Sequence[float]) -> str:
    """Mean of seconds in minutes, with two digits or more."""
    x = float(np.mean(seconds)) / 60
    return f"{x:.0f}" if x >= 10 else f"{x:.1f}" if x >= 1 else f"{x:.2f}"


def _chart(title: str, rows: Sequence[Row]) -> str:
    scales = _scales(rows)
    panels = []
    for (number, data), group in scales.items():
        bars = []
        for r in group:
            values = r["ours"][number]
            half = interval(values) if len(values) > 1 else 0.0
            floor = float(np.mean(floor_of(r)[1]))
            paper = r["paper_numbers"].get(number)
            label = _label(r)
            bars.append(Bar(label, float(np.mean(values)), half, floor, mean(values), paper))
        panels.append(Panel(f"{number}, {data}", group[0]["better"], bars))
    return bar_chart(title, panels)


# A page for each row.


def row_page(r: Row, command: Sequence[str] | InputError) -> str:
    """Everything that is known of a row."""
    name, title = name_of(r), task_of(r)
    data = data_of(r)
    lines = [f"# {_label(r)}{f' on {data}' if data else ''}", ""]
    lines += [f"A row of [{title}](../README.md#{anchor(title)}).", ""]
    if r["note"]:
        lines += [r["note"], ""]
    if r["paper"]:
        lines += [f"**Paper:** {r['paper']}.", ""]
    lines += _numbers(r)
    if r.get("curves"):
        lines += ["## Training", ""]
        lines += [f'<img src="{name}.svg" alt="Curves of training, as bands over the seeds">', ""]
    if r.get("picture"):
        lines += ["## Picture", "", f"![{r['picture']['name']}]({name}.png)", ""]
    lines += _commands(r, command)
    lines += _record(r)
    return "\n".join(lines)


def _numbers(r: Row) -> list[str]:
    floor = floor_of(r)[0]
    first = [*r["numbers"], *r["floors"]]
    first += [floor] * (floor in r["ours"] and floor not in first)
    rest = [n for n in r["ours"] if n not in first]
    papers = bool(r["paper_numbers"])
    seeds = _seeds(r)
    heads = ["number", "ours", "untrained", *["paper"] * papers, f"by seed ({seeds})"]
    lines = ["## Numbers", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for number in [*first, *rest]:
        ours, untrained = r["ours"][number], r["untrained"].get(number, [])
        show = mean if number in first else _digits
        paper = r["paper_numbers"].get(number)
        cells = [f"`{number}`" + (", the floor" if number == floor else "")]
        shown = show(ours).replace(" ", "\u00a0")
        cells += [f"**{shown}**" if number in r["numbers"] else shown]
        before = show(untrained) if untrained and untrained != ours else ""
        cells += [before.replace(" ", "\u00a0")]
        cells += ["" if paper is None else f"{paper:g}"] * papers
        same = len(set(ours)) == 1 and len(ours) > 1
        cells += ["the same" if same else ", ".join(_one(x) for x in ours)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _seeds(r: Row) -> str:
    """As in "0 to 9", or "3, 5"."""
    seeds = r["seeds"]
    in_order = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if in_order else ", ".join(map(str, seeds))


def _digits(values: Sequence[float | None]) -> str:
    known = [x for x in values if x is not None]
    return _one(float(np.mean(known))) if known else ""


def _one(x: float | None) -> str:
    return "not finite" if x is None else f"{x:.6g}"


def _commands(r: Row, today: Sequence[str] | InputError) -> list[str]:
    lines, measured = ["## Command", ""], list(r["command"])
    if isinstance(today, InputError):
        lines += [f"{today}: check out commit {r['commits'][-1]} for this command.", ""]
        command = measured
    else:
        command = list(today)
    if command != measured:
        lines += ["The command by today's flags and defaults:", ""]
    block = [_line(words) for words in r["before"]]
    lines += ["```sh", *block, *[""] * bool(block), _line(command), "```", ""]
    if command != measured:
        lines += ["It was measured as:", "", "```sh", _line(measured), "```", ""]
    if len(r["seconds"]) > 1:
        lines += [f"One run for each of the seeds {_seeds(r)}.", ""]
    return lines


def _line(words: Sequence[str]) -> str:
    """A command in lines of at most 88 characters."""
    lines = [f"launch/local.sh experiments/{words[0]}"]
    groups: list[str] = []
    for word in words[1:]:
        if groups and not word.startswith("--") and groups[-1].startswith("--"):
            groups[-1] += f" {shlex.quote(word)}"
        else:
            groups.append(shlex.quote(word))
    for group in groups:
        if len(lines[-1]) + 1 + len(group) > 86:
            lines[-1] += " \\"
            lines.append(f"    {group}")
        else:
            lines[-1] += f" {group}"
    return "\n".join(lines)


def _record(r: Row) -> list[str]:
    seeds = "a seed" if len(r["seeds"]) > 1 else "the seed"
    took = f"{MINUTES[r['shared']]}{_time(r['seconds'])} {seeds}"
    versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
    facts = {
        "training": f"{took}, compiling left out: {r['steps']:,} steps of {r['batch_size']:,}",
        "evaluation": "",
        "hardware": r["hardware"],
        "date": r["date"],
        "commit": ", ".join(r["commits"]),
        "versions": versions,
    }
    if any(r.get("evaluation_seconds", ())):
        facts["evaluation"] = f"{_time(r['evaluation_seconds'])} {seeds}, compiling included"
    return ["## Record", "", *(f"- {k}: {v}" for k, v in facts.items() if v), ""]


def _time(seconds: Sequence[float]) -> str:
    x = float(np.mean(seconds))
    return f"{x / 60:.1f} min" if x >= 60 else f"{x:.2g} s"


def _bands(r: Row) -> dict[str, Band]:
    return {name: Band(**band) for name, band in r.get("curves", {}).items()}
