"""Record of a run: arguments, versions, commit and hardware, in record.json and source/."""

from collections.abc import Mapping
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
        tracked = git("ls-files", "--error-unmatch", "ssljax/record.py")
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
    """Seconds since this process began, imports included.

    Where a launcher has installed packages first, in the same process, it says when Python began
    by SSLJAX_STARTED, in seconds of the system's clock.
    """
    if os.environ.get("SSLJAX_STARTED"):
        return max(0.0, time.time() - float(os.environ["SSLJAX_STARTED"]))
    try:  # Linux alone has this file.
        stat = pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1]
        ticks = int(stat.split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - IMPORTED


def facts(workdir: pathlib.Path) -> dict[str, Any]:
    """Method, data, command and commit of the last launch of a run."""
    record = json.loads((workdir / "record.json").read_text())
    launch = record["launches"][-1]
    return {
        "method": pathlib.Path(launch["command"][0]).stem,
        "data": record["computes"].get("data", ""),
        "command": launch["command"],
        "commit": launch["commit"],
    }
