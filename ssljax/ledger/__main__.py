"""Command that adds a row to the ledger and writes its pages."""

from collections.abc import Mapping
import hashlib
import pathlib
import shutil
import sys
from typing import Any, Literal

import tyro

from ssljax.backends import start_backends
from ssljax.errors import InputError
from ssljax.ledger.commands import commands_today
from ssljax.ledger.pages import render
from ssljax.ledger.rows import (
    digest_of_row,
    HERE,
    name_of,
    Row,
    row,
    rows_as_json,
    stored_rows,
    WRITTEN,
)
from ssljax.lock import lock
from ssljax.record import write_whole


def write(
    runs: tuple[pathlib.Path, ...] = (),
    numbers: tuple[str, ...] = ("knn/accuracy", "probe/accuracy"),
    task: str = "",
    variant: str = "",
    paper: str = "",
    paper_numbers: dict[str, float] = {},  # noqa: B006  # tyro reads it, and nobody changes it.
    note: str = "",
    better: Literal["higher", "lower", ""] = "",
    floor: str = "",
    floors: tuple[str, ...] = (),
    comparison: str = "",
    shared: bool = False,
    before: tuple[str, ...] = (),
    picture: str = "",
    here: pathlib.Path = HERE,
) -> None:
    """Adds a row to the ledger, in place of one with the same settings, and writes its pages.

    Args:
        runs: Folders of finished runs of one command that differ in their seeds; without any, only
            the pages are written.
        numbers: Names of the numbers that the row shows; the table is sorted by the first.
        task: Title of the row's table; by default its data and first number.
        variant: What tells the row from others of its method and data, as "1 %, from scratch".
        paper: Source and setting of the paper's number.
        paper_numbers: The paper's numbers on the same data, as knn/accuracy 90.3.
        note: Every deviation from the paper, and the reason of a result below it.
        better: Which way the first number is better; by default what the runs' record says.
        floor: Name of the floor of the first number, as test/psnr_of_grey; by default what the
            runs' record says, or raw pixels, or the untrained net.
        floors: Names of further numbers of the runs that are shown as floors.
        comparison: Title of a table in place of `task` whose rows share data, epochs, batch size,
            seeds and numbers.
        shared: Whether other jobs used the machine, so that the time is an upper bound.
        before: Commands that must be run before, as "simclr.py --run.workdir runs/simclr"; by
            default those of the runs that the settings name.
        picture: Name of a figure of the first run that the page shows, as samples_grid.
        here: Folder of ledger.json, README.md and ledger/.
    """
    with lock(here, "--here"):
        rows = stored_rows(here)
        if runs:
            new = row(
                runs,
                numbers,
                better=better,
                before=before,
                task=task,
                variant=variant,
                paper=paper,
                paper_numbers=dict(paper_numbers),
                note=note,
                floor=floor,
                floors=list(floors),
                comparison=comparison,
                shared=shared,
            )
            for r in rows:
                if comparison and r.get("comparison") == comparison and _shared(r) != _shared(new):
                    theirs = _shared(r)
                    other = "; ".join(f"{k} {v}" for k, v in theirs.items() if v != _shared(new)[k])
                    raise InputError(
                        f"The rows of {comparison} have {other}: give this one the same, or "
                        "another table."
                    )
            if picture:
                new = _with_picture(new, runs[0], picture, here)
            what = (new["method"], new["computes"])
            rows = [r for r in rows if (r["method"], r["computes"]) != what] + [new]
        full = [{**WRITTEN, **r} for r in rows]
        pages = render((here / "README.md").read_text(), full, commands_today(full))
        if runs:
            write_whole(here / "ledger.json", rows_as_json(rows))
        (here / "ledger").mkdir(exist_ok=True)
        for path, text in pages.items():
            write_whole(here / path, text)
        pictures = {f"ledger/{name_of(r)}.png" for r in full if r.get("picture")}
        for file in (here / "ledger").iterdir():
            if f"ledger/{file.name}" not in pages.keys() | pictures:
                file.unlink()


def _with_picture(new: Row, run: pathlib.Path, name: str, here: pathlib.Path) -> Row:
    """The row with a picture of a run's figures/, which is copied to its page."""
    file = run / "figures" / f"{name}.png"
    if not file.is_file():
        there = ", ".join(sorted(f.stem for f in file.parent.glob("*.png")))
        raise InputError(f"{run} has no picture {name}; it has {there or 'none'}.")
    (here / "ledger").mkdir(exist_ok=True)
    shutil.copyfile(file, here / "ledger" / f"{name_of(new)}.png")
    content = new | {
        "picture": {"name": name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    }
    return content | {"sha256": digest_of_row(content)}


def _shared(r: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a comparison have in common, by flag."""
    names = ("data", "epochs", "batch_size")
    flags = {f"--{k.replace('_', '-')}": r["computes"].get(k) for k in names}
    return {"--numbers": r["numbers"], "seeds": r["seeds"]} | flags


if __name__ == "__main__":
    start_backends()
    try:
        tyro.cli(write)
    except InputError as e:
        sys.exit(f"error: {e}")
