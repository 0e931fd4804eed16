"""Logs of a run: lines and a progress bar, metrics.jsonl, TensorBoard, W&B, and figures."""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
import math
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ssljax import signals
from ssljax.record import read_record, write_whole
from ssljax.tensorboard import Board, read_scalars


class Log:
    """Writes to the terminal and, with a `workdir`, to files; in process 0 alone.

    `start` is the step from which the run resumes: rows of later steps are dropped, since those
    steps are trained again.
    """

    def __init__(self, workdir: pathlib.Path | None, total: int, start: int, wandb: str = ""):
        self.active = jax.process_index() == 0
        self.workdir = workdir if self.active else None
        self.bar = None
        if self.active and sys.stderr.isatty():
            self.bar = tqdm(
                total=total,
                initial=start,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.05,
                leave=False,
                mininterval=0.5,
            )
        self.board = self.wandb = None
        if self.workdir:
            rows = [row for row in read_metrics(self.workdir) if row["step"] <= start]
            write_rows(self.workdir / "metrics.jsonl", rows)
            written = read_scalars(self.workdir / "tensorboard")
            self.board = Board(self.workdir / "tensorboard", start)
            for row in rows:  # A kill loses events between two writes.
                step = row["step"]
                self.board.scalars(
                    step, {k: v for k, v in _numbers(row) if (k, step) not in written}
                )
            if wandb:
                self.wandb = start_wandb(wandb, self.workdir)

    def line(self, text: str) -> None:
        """Prints a line."""
        if self.active:
            try:
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
            except BrokenPipeError:
                signals.reader_is_gone()

    def advance(self, steps: int) -> None:
        """Moves the progress bar."""
        if self.bar is not None:
            self.bar.update(steps)

    def activity(self, text: str = "") -> None:
        """Shows behind the progress bar what the run does; nothing for an empty text."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)

    def scalars(
        self, step: int, values: Mapping[str, Sequence[float]], note: str = "", show: bool = True
    ) -> None:
        """Numbers of a step, one for each seed."""
        if not self.active:
            return
        if show:
            means = {k: float(np.mean(v)) for k, v in values.items() if k != "seconds"}
            shown = "  ".join(f"{k} {format_number(v)}" for k, v in means.items())
            self.line(f"{step:>8}  {shown}{note}")
        if self.workdir and self.board:
            row = {"step": step} | {k: v[0] if len(v) == 1 else [*v] for k, v in values.items()}
            append_row(self.workdir / "metrics.jsonl", row)
            self.board.scalars(step, dict(_numbers(row)))
            if self.wandb and step:
                self.wandb.log({k: float(np.mean(v)) for k, v in values.items()}, step=step)
            elif self.wandb:
                untrained = {f"untrained/{k}": float(np.mean(v)) for k, v in values.items()}
                self.wandb.summary.update(untrained)

    def drop_evaluation(self, step: int) -> None:
        """Drops the row of an evaluation from metrics.jsonl, which is about to be replaced."""
        if self.workdir:
            rows = read_metrics(self.workdir)
            kept = [row for row in rows if row["step"] != step or "seconds" in row]
            if len(kept) < len(rows):
                write_rows(self.workdir / "metrics.jsonl", kept)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (height, width, 3) uint8, written as figures/NAME.png over the last one."""
        if self.workdir and self.board:
            from PIL import Image

            Image.fromarray(np.asarray(pixels)).save(_figure(self.workdir, name, "png"))
            self.board.picture(step, name, np.asarray(pixels))

    def text(self, step: int, name: str, text: str) -> None:
        """A text, printed and written as figures/NAME.txt over the last one."""
        self.line(f"{step:>8}  {name}\n{text}")
        if self.workdir and self.board:
            _figure(self.workdir, name, "txt").write_text(text + "\n", encoding="utf-8")
            self.board.text(step, name, text)

    def close(self) -> None:
        """Ends the progress bar, TensorBoard and W&B."""
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def _figure(workdir: pathlib.Path, name: str, suffix: str) -> pathlib.Path:
    file = workdir / "figures" / f"{name.replace('/', '_')}.{suffix}"
    file.parent.mkdir(exist_ok=True)
    return file


def format_number(x: float) -> str:
    """Four digits of a number."""
    return f"{x:.4g}" if not abs(x) >= 1e4 else f"{x:.0f}"


def start_wandb(project: str, workdir: pathlib.Path):
    """The W&B run of a folder, the same one at each launch."""
    import wandb  # pyright: ignore[reportMissingImports] - an extra

    record = read_record(workdir, "choose another --run.workdir")
    return wandb.init(
        project=project,
        dir=workdir,
        name=workdir.name,
        id=hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16],
        resume="allow",
        config=record["computes"],
    )


# Rows of JSON.


def to_json(x: Any) -> Any:
    """`x` with null in place of numbers that are not finite, which JSON doesn't have."""
    if isinstance(x, Mapping):
        return {k: to_json(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [to_json(v) for v in x]
    if isinstance(x, (float, np.floating)):
        return float(x) if math.isfinite(x) else None
    return x


def from_json(x: Any) -> Any:
    """`x` with NaN in place of null, inside lists too."""
    if isinstance(x, list):
        return [from_json(v) for v in x]
    return math.nan if x is None else x


def append_row(file: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a file of JSON lines, on a line of its own even behind a broken one."""
    text = json.dumps(to_json(row)) + "\n"
    with open(file, "ab+") as out:
        if out.tell():
            out.seek(-1, 2)
            text = text if out.read(1) == b"\n" else "\n" + text
        out.write(text.encode())


def write_rows(file: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines, whole or not at all."""
    write_whole(file, "".join(json.dumps(to_json(row)) + "\n" for row in rows))


def read_rows(file: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines with a "step"; a damaged line is left out."""
    rows = []
    lines = file.read_bytes().splitlines() if file.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # Not JSON, or not UTF-8.
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl: {"step": ..., name: a number, or a list of one for each seed}."""
    rows = []
    for row in read_rows(workdir / "metrics.jsonl"):
        row = {k: from_json(v) for k, v in row.items()}
        if all(_is_number(v) for v in row.values()):
            rows.append(row)
    return rows


def _is_number(x: Any) -> bool:
    if isinstance(x, list):
        return bool(x) and all(_is_number(v) for v in x)
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in row.items() if name != "step")
