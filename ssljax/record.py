"""Record of a run: arguments, versions, commit and hardware, in record.json and source/."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from importlib.metadata import PackageNotFoundError, version
import inspect
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import jax
import numpy as np

import ssljax
from ssljax import fingerprint
from ssljax.errors import check_local, InputError
from ssljax.ranges import flag, names_itself

IMPORTED = time.perf_counter()
CHECKOUT = pathlib.Path(__file__).parent.parent
PACKAGES = (
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
        fields = {k: plain(getattr(x, k)) for k in x.__dataclass_fields__ if not _is_of_flax(x, k)}
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


def _number(x: Any) -> int | float:
    """A scalar of NumPy or JAX, such as a batch size that was computed, for JSON."""
    return np.asarray(x).item()


def _is_of_flax(x: Any, name: str) -> bool:
    """Whether a field is one of those of every module of Flax, which are no arguments."""
    return name in ("parent", "name") and hasattr(type(x), "init_with_output")


def computes_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's arguments as JSON, by name.

    An argument with a field of its own name, such as `data` of `Images`, is given as its fields,
    whose names are the flags.
    """
    found = {}
    for name, x in arguments.items():
        form = plain(x)
        if names_itself(name, x):
            found |= {k: v for k, v in form.items() if k != "class"}
        else:
            found[name] = form
    return found


def kept_form(kept: Callable | None, state: Any) -> dict[str, Any] | None:
    """What `Experiment.kept` says, as JSON: the net's form, and paths in the state.

    A path is that of a dictionary, as in "extra/teacher/encoder"; empty for no arrays.
    """
    if kept is None:
        return None
    found = kept(jax.tree_util.tree_map_with_path(lambda path, _: _slashes(path), state))
    parts = {"params": found.params, "stats": found.stats}
    return {"net": plain(found.net)} | {k: _common_path(tree) for k, tree in parts.items()}


def _slashes(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _common_path(names: Any) -> str:
    """The path of a part of a state whose leaves are their paths in the state."""
    leaves = jax.tree_util.tree_flatten_with_path(names)[0]
    if all(name.endswith(f"/{_slashes(path)}") for path, name in leaves):
        found = {name.removesuffix(f"/{_slashes(path)}") for path, name in leaves}
        if len(found) <= 1:
            return "".join(found)
    raise ValueError("Experiment.kept must give parts of the state as they are there.")


def flat(x: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of nested dictionaries."""
    if not isinstance(x, Mapping):
        return {prefix: x}
    return {
        name: v
        for k, y in x.items()
        for name, v in flat(y, f"{prefix}.{k}" if prefix else k).items()
    }


def read_json(file: pathlib.Path, otherwise: str) -> Any:
    """Content of a file of JSON; InputError where it is damaged, FileNotFoundError for no file.

    `otherwise` says what to do in place of putting back a copy of the file.
    """
    try:
        return json.loads(file.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError, IsADirectoryError) as e:
        why = str(e).splitlines()[0]
    raise damaged(file, why, otherwise)


def damaged(file: pathlib.Path, why: str, otherwise: str) -> InputError:
    """The error of a file that was changed by something else than a run."""
    return InputError(f"{file} is damaged ({why}): put back a copy of it, or {otherwise}.")


def read_record(workdir: pathlib.Path, otherwise: str) -> dict[str, Any]:
    """The record of a run; InputError where it is damaged, FileNotFoundError for no record."""
    check_local(workdir, "The run")
    return _read_form(workdir / "record.json", RECORD, otherwise)


def read_results(workdir: pathlib.Path, otherwise: str) -> dict[str, Any]:
    """The results of a finished run; errors are those of `read_record`."""
    return _read_form(workdir / "results.json", RESULTS, otherwise)


def _read_form(file: pathlib.Path, form: Mapping[str, Callable], otherwise: str) -> dict[str, Any]:
    content = read_json(file, otherwise)
    if not isinstance(content, dict):
        raise damaged(file, "it holds no object", otherwise)
    for name, holds in form.items():
        if not holds(content.get(name)):
            is_there = "not what a run writes" if name in content else "missing"
            raise damaged(file, f"{name} is {is_there}", otherwise)
    return content


def _is_count(x: Any) -> bool:
    return type(x) is int and x >= 0


def _is_fingerprints(x: Any) -> bool:
    names = list(x.values()) if isinstance(x, dict) else [x]
    parts = [part for name in names if isinstance(name, dict) for part in name.values()]
    return all(isinstance(name, dict) for name in names) and all(
        isinstance(part, dict) and part.keys() - {"form"} == {"count", "digest"} for part in parts
    )


def _is_launch(x: Any) -> bool:
    return (
        isinstance(x, dict)
        and isinstance(x.get("command"), list)
        and bool(x["command"])
        and all(isinstance(word, str) for word in x["command"])
        and all(isinstance(x.get(k), str) for k in ("time", "commit", "hardware"))
        and _is_repository(x.get("repository"))
        and isinstance(x.get("versions"), dict)
        and _is_count(x.get("start", 0))
    )


def _is_repository(x: Any) -> bool:
    return x is None or (
        isinstance(x, dict)
        and x.keys() == {"commit", "remote"}
        and all(isinstance(value, str) for value in x.values())
    )


def _is_kept(x: Any) -> bool:
    return (
        isinstance(x, dict)
        and x.keys() == {"net", "params", "stats"}
        and isinstance(x["net"], dict)
        and isinstance(x["net"].get("class"), str)
        and all(isinstance(x[k], str) for k in ("params", "stats"))
    )


def _is_judgements(x: Any) -> bool:
    """Whether it is {evaluator: {"better": {number: direction}, "floors": {number: name}}}, perhaps
    with "real", as "floors", which older runs lack."""
    return isinstance(x, dict) and all(
        isinstance(of, dict)
        and all(
            isinstance(of.get(k), dict) and all(isinstance(v, str) for v in of[k].values())
            for k in ("better", "floors", *({"real"} & of.keys()))
        )
        for of in x.values()
    )


def _is_numbers(x: Any) -> bool:
    """Whether it is {name: one for each seed}, where null stands for NaN."""
    return isinstance(x, dict) and all(
        isinstance(values, list) and all(v is None or type(v) in (int, float) for v in values)
        for values in x.values()
    )


# What holds of each part of a record, and of a run's results.
RECORD: Mapping[str, Callable[[Any], bool]] = {
    "computes": lambda x: isinstance(x, dict),
    "lanes": lambda x: x in ("vmap", "loop"),
    "num_steps": _is_count,
    "batch_size": _is_count,
    "launches": lambda x: isinstance(x, list) and bool(x) and all(map(_is_launch, x)),
    "read": lambda x: x is None or _is_fingerprints(x),
    "files": lambda x: x is None or isinstance(x, dict),
    "kept": lambda x: x is None or _is_kept(x),
    "defaults": lambda x: x is None or isinstance(x, dict),
    "evals": lambda x: x is None or _is_judgements(x),
    "experiment": lambda x: x is None or isinstance(x, str),
    "reference": lambda x: x is None or isinstance(x, str),
}
RESULTS: Mapping[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "seeds": lambda x: isinstance(x, list) and bool(x) and all(type(seed) is int for seed in x),
    "seconds": lambda x: type(x) in (int, float),
    "results": _is_numbers,
    "untrained": _is_numbers,
}


def check_record(
    workdir: pathlib.Path,
    computes: Mapping[str, Any],
    *,
    read: fingerprint.Read | None = None,
    defaults: Mapping[str, Any] | None = None,
    num_steps: int | None = None,
    unnamed: Sequence[str] = (),
) -> dict[str, Any] | None:
    """The record in a folder, or None; InputError where that run computes something else.

    `computes` are the arguments now, `read` what was read under the names that are among them,
    which is compared in place of the names, and `defaults` the defaults of arguments, which are
    compared where the record, of an older version, has no such argument. Fields of `unnamed`
    arguments are flags without the argument's name.
    """
    try:
        old = read_record(workdir, "choose another --run.workdir")
    except FileNotFoundError:
        if (workdir / "checkpoints").is_dir() and any((workdir / "checkpoints").iterdir()):
            raise InputError(
                f"{workdir} holds checkpoints but no record.json, so whose they are can't be "
                "checked: put back a copy of record.json, or choose another --run.workdir."
            ) from None
        return None
    now, recorded = flat(computes), flat(old["computes"])
    given, kept = (any(not k.startswith("run.") for k in of) for of in (now, recorded))
    if given and not kept:
        raise InputError(
            f"{workdir} holds a run that train() began in Python, of an experiment whose arguments "
            "it didn't record to compare with these: choose another --run.workdir."
        )
    if kept and not given:
        raise InputError(
            f"{workdir} holds a run with arguments in its record, and this experiment has none to "
            "compare with them: make it by a function with ssljax.ranges.checked above it, or "
            "choose another workdir."
        )
    before = {k: v for k, v in (defaults or {}).items() if k in now} | recorded
    read, then = read or {}, old.get("read") or {}
    starts = tuple(f"{name}." for name in unnamed)
    shown = lambda k: flag(k.partition(".")[2] if k.startswith(starts) else k)
    value = lambda of, k: of.get(k, "not there")
    differ = {
        k: f"  {shown(k)}: {value(before, k)} in the folder, {value(now, k)} now"
        for k in sorted(before.keys() | now.keys())
        if (k in before, before.get(k)) != (k in now, now.get(k))
        and not _same_content(then, read, before.get(k), now.get(k))
    }
    if differ and num_steps not in (None, old["num_steps"]) and set(differ) <= LENGTHS:
        began = " and --pretrained with this folder to begin with its weights"
        by = ", ".join(map(shown, sorted(differ)))
        raise InputError(
            f"{workdir} holds a run of {old['num_steps']} steps, and this command has {num_steps} "
            f"({by}): the schedule of the learning rate spans all steps, so a longer run is "
            "another run from its first step on. Give another --run.workdir"
            f"{began if 'pretrained' in now else ''}."
        )
    if differ:
        raise InputError(
            f"{workdir} holds a run that computes something else:\n"
            + "\n".join(differ.values())
            + "\nGive the arguments of that run to resume it, or another --run.workdir."
        )
    names = {"": ""} | {k: v for k, v in now.items() if isinstance(v, str)}
    changed = [
        sentence
        for k, name in names.items()
        for sentence in _changes(name, then.get(before.get(k, "")), read.get(name))
    ]
    if changed:
        raise InputError(
            f"{changed[0]}: put back what the run in {workdir} began with to resume it, or choose "
            "another --run.workdir."
        )
    return old


LENGTHS = {"epochs", "steps", "num_steps"}  # Arguments that say how long a run is.


def _same_content(then: fingerprint.Read, read: fingerprint.Read, before: Any, now: Any) -> bool:
    """Whether two values of an argument are names under which the same was read."""
    names = isinstance(before, str) and isinstance(now, str) and before != now
    content = fingerprint.content_of
    return names and now in read and content(then.get(before)) == content(read[now])


def _changes(
    name: str, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> Iterator[str]:
    """A sentence for each part of what was read under a name that is not what it was."""
    before = fingerprint.content_of(then)
    for part, b in fingerprint.content_of(now).items():
        a = before.get(part, b)
        if a != b:
            what = name or "The data"
            if a[0] == b[0]:
                yield f"{what} has other {part} than when the run began"
            else:
                yield f"{what} has {b[0]} {part} now, {a[0]} when the run began"


def defaults_of(make: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted name: default} of a function's arguments and of their fields.

    Of an argument that was given an object of another class than its default's, the fields are
    those of that class, with the default's "class".
    """
    parameters = inspect.signature(make).parameters.values()
    usual = {p.name: p.default for p in parameters if p.default is not p.empty}
    found = flat(computes_of(usual))
    for name, x in arguments.items():
        if type(x) is type(usual.get(name)) or names_itself(name, x):
            continue
        found = {k: v for k, v in found.items() if not _is_field(k, name)}
        found |= flat({name: _field_defaults(x)})
    return found


def _is_field(dotted: str, name: str) -> bool:
    """Whether a dotted name is that of a field of the argument `name`, other than its class."""
    return dotted.startswith(f"{name}.") and dotted != f"{name}.class"


def _field_defaults(x: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(x) or isinstance(x, type):
        return {}
    found = {}
    for f in dataclasses.fields(x):
        if _is_of_flax(x, f.name):
            continue
        if f.default is not dataclasses.MISSING:
            found[f.name] = plain(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name] = plain(f.default_factory())
    return found


def check_files(workdir: pathlib.Path, files: Mapping[str, str]) -> None:
    """InputError where the folder holds one of `files` with another content.

    The run would resume with other data, or with a file that was changed by something else.
    """
    for name, text in files.items():
        file = workdir / name
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise InputError(
                f"{file} is not what this run's data gives now: restore that data, or the file, to "
                "resume the run, or choose another --run.workdir."
            )


def read_file(workdir: pathlib.Path, name: str, otherwise: str) -> str:
    """One of the files of a run's experiment, as the run wrote it.

    InputError where it has changed, FileNotFoundError where there is no such file or no run.
    """
    record = read_record(workdir, otherwise)
    try:
        text = (workdir / name).read_bytes().decode()
    except (UnicodeDecodeError, IsADirectoryError) as e:
        raise damaged(workdir / name, str(e).splitlines()[0], otherwise) from e
    digests = record.get("files") or {}  # None in a record of an older version.
    if name in digests and fingerprint.digest(text) != digests[name]:
        raise damaged(workdir / name, "it differs from what the run wrote", otherwise)
    return text


def write_whole(file: pathlib.Path, text: str) -> None:
    """Writes a text whole or, where the disk is full or the run is killed, not at all."""
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # Names of any bytes.
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # It takes room, and nothing reads it.
        raise


def write_record(
    workdir: pathlib.Path,
    old: dict[str, Any] | None,
    computes: Mapping[str, Any],
    source: str | None,
    start: int,
    read: fingerprint.Read,
    **facts: Any,
) -> bool:
    """Adds this launch, from step `start` on, to record.json, and its code to source/.

    That is the experiment file, and what git calls uncommitted. Returns whether the file differs
    from the last launch's; no copy is overwritten by another.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    record = old or {"computes": computes, "launches": []}
    record |= {"read": record.get("read") or read, **facts}
    record["launches"].append(
        {
            "start": start,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
            "commit": commit(),
            "repository": repository(source) if source else None,
            "python": platform.python_version(),
            "versions": versions(),
            "hardware": hardware(),
        }
    )
    text = ""
    if source and os.path.exists(source):
        text = pathlib.Path(source).read_text(encoding="utf-8", errors="replace")
    launches, kept = len(record["launches"]), workdir / "source"
    earlier = sorted(kept.rglob("*.py"), key=lambda f: f.stat().st_mtime) if kept.exists() else []
    before = earlier[-1].read_text(encoding="utf-8", errors="replace") if earlier else text
    changed = bool(text) and before != text
    if source and text and (changed or not earlier):
        folder = kept / f"launch{launches}" if earlier else kept
        folder.mkdir(parents=True, exist_ok=True)
        (folder / pathlib.Path(source).name).write_text(text, encoding="utf-8")
    if record["launches"][-1]["commit"].endswith("+"):
        (workdir / "source").mkdir(exist_ok=True)
        diff = workdir / "source" / f"uncommitted{launches}.diff"
        diff.write_text(git(CHECKOUT, "diff", "HEAD") + "\n", encoding="utf-8")
    write_whole(workdir / "record.json", json.dumps(record, indent=1, default=_number) + "\n")
    return changed


def versions() -> dict[str, str]:
    found = {"ssljax": ssljax.__version__}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git(folder: str | pathlib.Path, *args: str) -> str:
    """What git says in a folder."""
    return (
        subprocess.run(["git", "-C", folder, *args], capture_output=True, check=True)
        .stdout.decode(errors="replace")
        .strip()
    )


def commit() -> str:
    """The commit of ssljax, with a + where it has changed since; empty outside a checkout."""
    code = "ssljax", "experiments/*.py", "launch/constraints.txt"
    try:
        tracked = git(CHECKOUT, "ls-files", "--error-unmatch", "ssljax/record.py")
        changed = git(CHECKOUT, "status", "--porcelain", "--", *code)
        at = git(CHECKOUT, "rev-parse", "--short=10", "HEAD")
        return at + "+" * bool(changed) if tracked else ""
    except (OSError, subprocess.CalledProcessError):
        return ""


def repository(source: str) -> dict[str, str] | None:
    """The git repository that an experiment file lies in: its commit and its remote's address.

    The commit has a + where a file of it has changed since, or the experiment file is not in it.
    User names, passwords and tokens in the address are left out. None outside a repository, and for
    one without commits.
    """
    folder, name = os.path.split(os.path.abspath(source))
    try:
        at = git(folder, "rev-parse", "--short=10", "HEAD")
        changed = git(folder, "status", "--porcelain", "--untracked-files=no")
        tracked = git(folder, "ls-files", "--", name)
        remotes = git(folder, "remote").splitlines()
        remote = "origin" if "origin" in remotes else next(iter(remotes), "")
        url = git(folder, "remote", "get-url", remote) if remote else ""
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": at + "+" * bool(changed or not tracked), "remote": _without_secrets(url)}


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    if not (parts.scheme and parts.netloc):  # A path, or git@HOST:PATH.
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def hardware() -> str:
    """As in "8 x NVIDIA A100", or "2-core CPU"."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        linux = hasattr(os, "sched_getaffinity")
        return f"{len(os.sched_getaffinity(0)) if linux else os.cpu_count()}-core CPU"
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
    record = read_record(workdir, "choose another --run.workdir")
    launch = record["launches"][-1]
    return {
        "method": pathlib.Path(launch["command"][0]).stem,
        "data": record["computes"].get("data", ""),
        "command": launch["command"],
        "commit": launch["commit"],
    }
