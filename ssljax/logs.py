"""Logs of a run: lines and a progress bar, metrics.jsonl, TensorBoard, W&B, and figures."""

from collections.abc import Iterator, Mapping, Sequence
import hashlib
import html
import json
import math
import pathlib
import sys
import threading
import time
from typing import Any, TYPE_CHECKING

import jax
import numpy as np
from tqdm import tqdm

from ssljax import figures, processes, signals
from ssljax.record import flat, read_record, write_whole
from ssljax.tensorboard import Board, read_scalars

if TYPE_CHECKING:
    from ssljax.evals.pictures import FeatureMap

TICK = 1.0  # Seconds after which the seconds of an activity are shown again.
# What a row of metrics.jsonl has of training's time, in seconds and per second.
TIMES = ("seconds", "steps_per_second", "examples_per_second")


class Log:
    """Writes to the terminal and, with a `workdir`, to files; in process 0 alone.

    `start` is the step from which the run resumes: rows of later steps are dropped, since those
    steps are trained again.
    """

    def __init__(self, workdir: pathlib.Path | None, total: int, start: int, wandb: str = ""):
        self.active = jax.process_index() == 0
        self.workdir = workdir if self.active else None
        self.bar: tqdm | None = None
        self._activity: Activity | None = None
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
            figures.drop_after(self.workdir, start)
            written = read_scalars(self.workdir / "tensorboard")
            self.board = Board(self.workdir / "tensorboard", start)
            record = read_record(self.workdir, "choose another --run.workdir")
            self.board.settings((record.get("defaults") or {}) | flat(record["computes"]))
            for row in rows:  # A kill loses events between two writes.
                step = row["step"]
                self.board.scalars(
                    step, {k: v for k, v in _numbers(row) if (k, step) not in written}
                )
            if wandb:
                self.wandb = start_wandb(wandb, self.workdir)

    def line(self, text: str) -> None:
        """Prints a line, on a terminal over as many as it needs."""
        self._print(processes.wrapped(text, 2))

    def _print(self, text: str) -> None:
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
        """Shows in place of the progress bar what the run does, and for how long already; the bar
        again for an empty text."""
        if self._activity is not None:
            self._activity.end()
            self._activity = None
        if self.bar is not None and text:
            self._activity = Activity(self.bar, text)

    def scalars(
        self,
        step: int,
        values: Mapping[str, Sequence[float]],
        note: str = "",
        show: Sequence[str] | None = None,
    ) -> None:
        """Numbers of a step, one for each seed; `show` names those that are printed, if not all."""
        if not self.active:
            return
        names = [k for k in values if k not in TIMES] if show is None else show
        if names:
            shown = "  ".join(f"{k} {format_number(float(np.mean(values[k])))}" for k in names)
            self._print(processes.wrapped(f"{step:>8}  {shown}{note}", 10))
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
        """A picture (height, width, 3) uint8, written as a figure (`figures`).

        Of an animation, (frames, height, width, 3), TensorBoard and W&B have the last frame.
        """
        if self.workdir and self.board:
            figures.write_picture(self.workdir, step, name, np.asarray(pixels))
            still = np.asarray(pixels if np.ndim(pixels) == 3 else pixels[-1])
            self.board.picture(step, name, still)
            self._wandb_picture(step, name, still)

    def text(self, step: int, name: str, text: str) -> None:
        """A text, written as a figure and, but for the untrained net's, printed."""
        if step:
            self._print(f"{step:>8}  {name}\n{text}")
        if self.workdir and self.board:
            figures.write_text(self.workdir, step, name, text)
            self.board.text(step, name, text)
            if self.wandb:
                import wandb  # pyright: ignore[reportMissingImports] - an extra

                shown = wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
                self.wandb.log({name: shown}, step=step)

    def _wandb_picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        if self.wandb:
            import wandb  # pyright: ignore[reportMissingImports] - an extra

            self.wandb.log({name: wandb.Image(pixels)}, step=step)

    def finished(self, step: int) -> None:
        """Notes that the run has reached its last step."""
        if self.board:
            self.board.finished(step)

    def feature_map(self, step: int, name: str, found: "FeatureMap") -> None:
        """A feature map, written as a picture and as points with thumbnails."""
        if self.workdir and self.board:
            pixels = found.picture()
            figures.write_map(self.workdir, step, name, found, pixels)
            self.board.picture(step, name, pixels)
            if step:  # The projector has one step alone.
                self.board.features(name, found)
            self._wandb_picture(step, name, pixels)

    def close(self) -> None:
        """Ends the progress bar, TensorBoard and W&B."""
        self.activity()
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


class Activity:
    """Name of what a run does besides training, with its seconds, in place of the progress bar."""

    def __init__(self, bar: tqdm, text: str):
        self._bar, self._text, self._since = bar, text, time.monotonic()
        self._ended = threading.Event()
        self._form, bar.bar_format = bar.bar_format, "{desc}"
        self._show()
        self._thread = threading.Thread(target=self._tick, name="activity", daemon=True)
        self._thread.start()

    def _show(self) -> None:
        self._bar.set_description_str(f"{self._text}: {time.monotonic() - self._since:.0f} s")

    def _tick(self) -> None:
        while not self._ended.wait(TICK):
            self._show()

    def end(self) -> None:
        """Shows the bar again, whose rate leaves the time since out."""
        self._ended.set()
        self._thread.join()
        self._bar.bar_format = self._form
        self._bar.unpause()
        self._bar.set_description_str("")


def aligned(rows: Sequence[Sequence[str]], left: int = 1, most: int = 79) -> list[str]:
    """Lines of a table whose first `left` columns are aligned to the left, others to the right.

    Intervals of a column stand below one another. Columns without any text are left out. The first
    cell of a row has a line of its own where the row would be longer than `most` characters.
    """
    head, *body = rows
    ends = [max(map(_interval_size, column)) for column in zip(*body)]
    body = [
        [x and x + " " * (end - _interval_size(x)) for x, end in zip(row, ends)] for row in body
    ]
    rows = [head, *body]
    kept = [i for i in range(len(rows[0])) if i == 0 or any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    room = most - sum(2 + widths[i] for i in kept[1:])
    widths[0] = max([len(row[0]) for row in rows if len(row[0]) <= room], default=0)
    lines = []
    for row in rows:
        first = row[0]
        if len(first) > widths[0]:
            lines.append(first)
            first = ""
        cells = [row[i].ljust(widths[i]) if i < left else row[i].rjust(widths[i]) for i in kept[1:]]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def _interval_size(cell: str) -> int:
    _, sign, half = cell.partition(" ± ")
    return len(sign + half)


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
