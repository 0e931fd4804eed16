"""What a run tells: lines and a progress bar, metrics.jsonl, TensorBoard, W&B, figures, and the record to repeat it."""

from collections.abc import Mapping, Sequence
import errno
import hashlib
from importlib.metadata import PackageNotFoundError, version
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ssljax.errors import InputError

IMPORTED = time.perf_counter()
PACKAGES = (
    "ssljax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-datasets",
    "grain",
)


class Log:
    """Writes what happens to the terminal and, with a `workdir`, to files; in process 0 alone."""

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
            from tensorboardX import SummaryWriter

            self._cut(start, start == total)
            self.board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=start + 1)
            if wandb:
                self.wandb = start_wandb(wandb, self.workdir)

    def _cut(self, start: int, finished: bool) -> None:
        """Drops what a killed run wrote after its last checkpoint, since those steps are done again, and of a finished
        run the last evaluation, for the same reason."""
        file = self.workdir / "metrics.jsonl"
        again = lambda row: (
            row["step"] > start or (finished and row["step"] == start and "seconds" not in row)
        )
        rows = [row for row in read_metrics(self.workdir) if not again(row)]
        write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))

    def line(self, text: str) -> None:
        """A line for a person."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self, steps: int) -> None:
        if self.bar is not None:
            self.bar.update(steps)

    def scalars(
        self, step: int, values: Mapping[str, Sequence[float]], note: str = "", show: bool = True
    ) -> None:
        """Numbers of a step, one for each seed."""
        if not self.active:
            return
        if show:
            shown = "  ".join(
                f"{k} {form(np.mean(v))}" for k, v in values.items() if k != "seconds"
            )
            self.line(f"{step:>8}  {shown}{note}")
        if self.workdir:
            row = {"step": step, **{k: v[0] if len(v) == 1 else list(v) for k, v in values.items()}}
            with open(self.workdir / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            for k, v in values.items():
                self._to_board("add_scalar", k, np.mean(v), step)
            if self.wandb and step:
                self.wandb.log({k: float(np.mean(v)) for k, v in values.items()}, step=step)
            elif self.wandb:  # The floors, which come last: W&B's steps only rise.
                self.wandb.summary.update(
                    {f"untrained/{k}": float(np.mean(v)) for k, v in values.items()}
                )

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (height, width, 3) uint8, written as figures/NAME.png: the last one of each name is kept."""
        if self.workdir:
            from PIL import Image

            Image.fromarray(np.asarray(pixels)).save(self._figure(name, "png"))
            self._to_board("add_image", name, np.asarray(pixels), step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """A text for a person, shown and written as figures/NAME.txt: the last one of each name is kept."""
        self.line(f"{step:>8}  {name}\n{text}")
        if self.workdir:
            self._figure(name, "txt").write_text(text + "\n", encoding="utf-8")
            self._to_board("add_text", name, f"```\n{text}\n```", step)

    def _figure(self, name: str, suffix: str) -> pathlib.Path:
        file = self.workdir / "figures" / f"{name.replace('/', '_')}.{suffix}"
        file.parent.mkdir(exist_ok=True)
        return file

    def _to_board(self, add: str, *args: Any, **kwargs: Any) -> None:
        """TensorBoard's events are written by a thread that dies of a full disk, and then blocks who waits for it."""
        if not self._board_lives():
            raise OSError(
                errno.ENOSPC, "No space left on device", str(self.workdir / "tensorboard")
            )
        getattr(self.board, add)(*args, **kwargs)

    def _board_lives(self) -> bool:
        writer = self.board._get_file_writer()
        worker = getattr(getattr(writer, "event_writer", None), "_worker", None)
        return worker is None or worker.is_alive()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.board is not None and self._board_lives():
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def form(x: float) -> str:
    """Four digits, for a person."""
    return f"{x:.4g}" if abs(x) < 1e4 else f"{x:.0f}"


def start_wandb(project: str, workdir: pathlib.Path):
    """The W&B run of a folder, the same one each time; `train` has made sure that the package is there."""
    import wandb

    record = json.loads((workdir / "record.json").read_text())
    name = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    return wandb.init(
        project=project,
        dir=workdir,
        name=workdir.name,
        id=name,
        resume="allow",
        config=record["computes"],
    )


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out."""
    file = workdir / "metrics.jsonl"
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


# The record of a run: record.json and source/.


def plain(x: Any) -> Any:
    """An argument as JSON: a module as its class and fields."""
    if hasattr(x, "__dataclass_fields__"):
        fields = {
            k: plain(getattr(x, k)) for k in x.__dataclass_fields__ if k not in ("parent", "name")
        }
        return {"class": type(x).__name__, **fields}
    if isinstance(x, Mapping):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if callable(x):
        return (
            f"{x.__module__}.{x.__qualname__}"
            if hasattr(x, "__qualname__")
            else type(x).__qualname__
        )
    return x if isinstance(x, (str, int, float, bool, type(None))) else repr(x)


def flat(x: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of nested dictionaries."""
    if not isinstance(x, Mapping):
        return {prefix: x}
    return {
        name: v
        for k, y in x.items()
        for name, v in flat(y, f"{prefix}.{k}" if prefix else k).items()
    }


def check_record(workdir: pathlib.Path, computes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in a folder, if any; InputError where that run computes something else than `computes` says."""
    try:
        old = json.loads((workdir / "record.json").read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as e:
        raise InputError(
            f"{workdir / 'record.json'} can't be read ({e}): choose another --run.workdir."
        ) from e
    a, b = flat(old["computes"]), flat(computes)
    differ = [
        f"  --{k.replace('_', '-')}: {a.get(k, 'not there')} in the folder, {b.get(k, 'not there')} now"
        for k in sorted(a.keys() | b.keys())
        if a.get(k) != b.get(k)
    ]
    if differ:
        raise InputError(
            f"{workdir} holds a run that computes something else:\n"
            + "\n".join(differ)
            + "\nGive the arguments of that run to go on with it, or another --run.workdir."
        )
    return old


def check_files(workdir: pathlib.Path, files: Mapping[str, str]) -> None:
    """InputError where the folder holds one of `files` with another content: the run would go on with other data."""
    for name, text in files.items():
        if (workdir / name).exists() and (workdir / name).read_text(encoding="utf-8") != text:
            raise InputError(
                f"{workdir / name} is not what this run's data gives now: restore that data to go on with "
                "the run, or choose another --run.workdir."
            )


def write_whole(file: pathlib.Path, text: str) -> None:
    """Writes a text whole or, where the disk is full or the run is killed, not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def write_record(
    workdir: pathlib.Path,
    old: dict[str, Any] | None,
    computes: Mapping[str, Any],
    source: str | None,
    start: int,
    **facts: Any,
) -> bool:
    """Adds this launch, from step `start` on, to record.json, and to source/ the experiment file and what git calls
    uncommitted; returns whether the file differs from the last launch's. No copy is overwritten by another."""
    workdir.mkdir(parents=True, exist_ok=True)
    record = old or {"computes": computes, "launches": []}
    record |= facts
    record["launches"].append(
        {
            "start": start,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
            "commit": commit(),
            "python": platform.python_version(),
            "versions": versions(),
            "hardware": hardware(),
        }
    )
    text = pathlib.Path(source).read_text() if source and os.path.exists(source) else ""
    launches, kept = len(record["launches"]), workdir / "source"
    earlier = sorted(kept.rglob("*.py"), key=lambda f: f.stat().st_mtime) if kept.exists() else []
    changed = bool(earlier) and bool(text) and earlier[-1].read_text() != text
    if text and (changed or not earlier):
        folder = kept / f"launch{launches}" if earlier else kept
        folder.mkdir(parents=True, exist_ok=True)
        (folder / pathlib.Path(source).name).write_text(text)
    if record["launches"][-1]["commit"].endswith("+"):
        (workdir / "source").mkdir(exist_ok=True)
        (workdir / "source" / f"uncommitted{launches}.diff").write_text(git("diff", "HEAD") + "\n")
    write_whole(workdir / "record.json", json.dumps(record, indent=1) + "\n")
    return changed


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def git(*args: str) -> str:
    """What git says of the checkout that this file lies in."""
    here = pathlib.Path(__file__).parent.parent
    return subprocess.run(
        ["git", "-C", here, *args], capture_output=True, text=True, check=True
    ).stdout.strip()


def commit() -> str:
    """The commit of the code that runs, with a + where code differs from it; empty outside a checkout."""
    try:
        tracked = git("ls-files", "--error-unmatch", "ssljax/logging.py")
        changed = git(
            "status", "--porcelain", "--", "ssljax", "experiments/*.py", "launch/constraints.txt"
        )
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(changed) if tracked else ""
    except (OSError, subprocess.CalledProcessError):
        return ""


def hardware() -> str:
    """As in "8 x NVIDIA A100", or "2-core CPU"."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}-core CPU"
    return f"{jax.device_count()} x {device.device_kind}"


def since_start() -> float:
    """Seconds since this process began, imports included; where the system doesn't tell, since this file's import."""
    try:  # Linux alone tells.
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - IMPORTED
