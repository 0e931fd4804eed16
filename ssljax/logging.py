"""What a run tells: lines and a progress bar, metrics.jsonl, TensorBoard, W&B, figures, and the record to repeat it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from ssljax.errors import InputError

PACKAGES = "ssljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "grain"


class Log:
    """Writes what happens to the terminal and, with a `workdir`, to files; in process 0 alone."""

    def __init__(self, workdir: pathlib.Path | None, total: int, start: int, wandb: str = ""):
        self.active = jax.process_index() == 0
        self.workdir = workdir if self.active else None
        self.bar = None
        if self.active and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05, leave=False,
                            mininterval=0.5)
        self.board = self.wandb = None
        if self.workdir:
            from tensorboardX import SummaryWriter

            self._cut(start)
            self.board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=start + 1)
            if wandb:
                self.wandb = _wandb(wandb, self.workdir)

    def _cut(self, start: int) -> None:
        """Drops what a killed run wrote after its last checkpoint: those steps are done again."""
        file = self.workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(self.workdir) if row["step"] <= start]
        part = file.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        part.replace(file)

    def line(self, text: str) -> None:
        """A line for a person."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self, steps: int) -> None:
        if self.bar is not None:
            self.bar.update(steps)

    def scalars(self, step: int, values: Mapping[str, Sequence[float]], note: str = "", show: bool = True) -> None:
        """Numbers of a step, one for each seed."""
        if not self.active:
            return
        if show:
            shown = "  ".join(f"{k} {form(np.mean(v))}" for k, v in values.items() if k != "seconds")
            self.line(f"{step:>8}  {shown}{note}")
        if self.workdir:
            row = {"step": step, **{k: v[0] if len(v) == 1 else list(v) for k, v in values.items()}}
            with open(self.workdir / "metrics.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            for k, v in values.items():
                self.board.add_scalar(k, np.mean(v), step)
            if self.wandb:
                self.wandb.log({k: float(np.mean(v)) for k, v in values.items()}, step=step)

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (height, width, 3) uint8, written as figures/NAME.png: the last one of each name is kept."""
        if self.workdir:
            from PIL import Image

            file = self.workdir / "figures" / f"{name.replace('/', '_')}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(np.asarray(pixels)).save(file)
            self.board.add_image(name, np.asarray(pixels), step, dataformats="HWC")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def form(x: float) -> str:
    """Four digits, for a person."""
    return f"{x:.4g}" if abs(x) < 1e4 else f"{x:.0f}"


def _wandb(project: str, workdir: pathlib.Path):
    try:
        import wandb
    except ImportError:
        raise InputError("--run.wandb needs the package wandb: pip install wandb, or leave the flag out.") from None
    return wandb.init(project=project, dir=workdir, name=workdir.name, id=workdir.name.replace("/", "-"), resume="allow")


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
        fields = {k: plain(getattr(x, k)) for k in x.__dataclass_fields__ if k not in ("parent", "name")}
        return {"class": type(x).__name__, **fields}
    if isinstance(x, Mapping):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return x if isinstance(x, (str, int, float, bool, type(None))) else repr(x)


def flat(x: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of nested dictionaries."""
    if not isinstance(x, Mapping):
        return {prefix: x}
    return {name: v for k, y in x.items() for name, v in flat(y, f"{prefix}.{k}" if prefix else k).items()}


def check_record(workdir: pathlib.Path, computes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in a folder, if any; InputError where that run computes something else than `computes` says."""
    try:
        old = json.loads((workdir / "record.json").read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as e:
        raise InputError(f"{workdir / 'record.json'} can't be read ({e}): choose another --run.workdir.") from e
    a, b = flat(old["computes"]), flat(computes)
    differ = [f"  --{k.replace('_', '-')}: {a.get(k, 'not there')} in the folder, {b.get(k, 'not there')} now"
              for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    if differ:
        raise InputError(f"{workdir} holds a run that computes something else:\n" + "\n".join(differ) +
                         "\nGive the arguments of that run to go on with it, or another --run.workdir.")
    return old


def write_record(workdir: pathlib.Path, old: dict[str, Any] | None, computes: Mapping[str, Any],
                 source: str | None, **facts: Any) -> dict[str, Any]:
    """Adds this launch to record.json, and a copy of the experiment file to source/; returns the record."""
    workdir.mkdir(parents=True, exist_ok=True)
    record = old or {"computes": computes, "launches": []}
    record |= facts
    record["launches"].append({
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(), "python": platform.python_version(), "versions": versions(), "hardware": hardware()})
    if source and os.path.exists(source):
        (workdir / "source").mkdir(exist_ok=True)
        shutil.copy(source, workdir / "source")
    part = workdir / "record.json.part"
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(workdir / "record.json")
    return record


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def commit() -> str:
    """The commit of the code that runs, with a + where files differ from it; empty outside a checkout."""
    def git(*args: str) -> str:
        here = pathlib.Path(__file__).parent.parent
        return subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True).stdout.strip()
    try:
        tracked = git("ls-files", "--error-unmatch", "ssljax/logging.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "") if tracked else ""
    except (OSError, subprocess.CalledProcessError):
        return ""


def hardware() -> str:
    """As in "8 x NVIDIA A100", or "2-core CPU"."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}-core CPU"
    return f"{jax.device_count()} x {device.device_kind}"


def since_start() -> float:
    """Seconds since this process began, imports included; where the system doesn't tell, since now."""
    try:
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0
