"""Commands of the ledger's rows by the flags that the experiments have today."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import functools
import importlib.util
import re
from typing import Any

from ssljax import cli
from ssljax.errors import InputError
from ssljax.ledger.rows import HERE, name_of, Row
from ssljax.ranges import flag
from ssljax.record import computes_of, flat

# Settings that have another name today, by the method; a name that ends in a dot is a prefix.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "simclr": {name: f"view.{name}" for name in ("view_size", "crop", "flip", "jitter")},
    "lejepa": {"view.": "crops.view.", "num_views": "crops.large"},
}


def commands_today(rows: Sequence[Row]) -> dict[str, list[str] | InputError]:
    """Today's command of each row, by the row's name; an InputError for what can't be said."""
    found: dict[str, list[str] | InputError] = {}
    for r in rows:
        try:
            found[name_of(r)] = command_today(r)
        except InputError as e:
            found[name_of(r)] = e
    return found


def command_today(r: Mapping[str, Any]) -> list[str]:
    """Words of a command that computes what the row's did, by today's flags and defaults.

    That is the row's own where it still has the settings in the row's record; settings whose
    default has changed are added to it. InputError where it can't be said.
    """
    make, words = experiment(r["method"]), list(r["command"][1:])
    wanted = settings(r["method"], r["computes"])
    try:
        given = settings_today(make, words)
    except InputError:
        words = [_renamed_flag(r["method"], word) for word in words]
        given = settings_today(make, words)
    for name in sorted(wanted, key=lambda n: not n.endswith(".class")):  # A net before its fields.
        if name not in given or given[name] != wanted[name]:
            words, given = _with(make, words, name, wanted[name])
    return [r["command"][0], *words]


def _renamed_flag(method: str, word: str) -> str:
    """A word of a command, or the flag that it is today."""
    name = word.removeprefix("--").replace("-", "_")
    new = RENAMED.get(method, {}).get(name)
    return flag(new) if new and word.startswith("--") else word


def settings(method: str, computes: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted name today: value} of the settings in a row's record, but for the seeds."""
    found = {}
    renamed = RENAMED.get(method, {})
    for name, value in flat(computes).items():
        if name in renamed:
            name = renamed[name]
        for old, new in renamed.items():
            if old.endswith(".") and name.startswith(old):
                name = new + name.removeprefix(old)
        if not name.startswith("run."):
            found[name] = value
    return found


@functools.cache
def experiment(method: str) -> Callable:
    """The function of an experiment's file; InputError where there is no such file."""
    file = HERE / f"{method}.py"
    spec = importlib.util.spec_from_file_location(f"experiments.{method}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise InputError(f"There is no {file}, which a row of the ledger was measured by.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, method)


def settings_today(make: Callable, words: Sequence[str]) -> dict[str, Any]:
    """{dotted name: value} of what the words of a command say; InputError for unknown flags."""
    return flat(computes_of(cli.parse(make, words)[1]))


def _with(
    make: Callable, words: Sequence[str], name: str, value: Any
) -> tuple[list[str], dict[str, Any]]:
    """The words with a setting, and what they say then; InputError where no flag sets it."""
    parts = name.split(".")
    chosen = {word.partition(":")[0] for word in words if re.match(r"[\w.-]+:[\w-]+$", word)}
    for i in range(len(parts)):  # Flags may lack the names of what they are a part of.
        if parts[-1] == "class":
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", str(value)).lower()
            tried = [*words, f"{'.'.join(parts[i:-1])}:{kind}"]
        else:
            given = _flag(".".join(parts[i:]), value)
            tried = [*words, *given] if ".".join(parts[:-1]) in chosen else [*given, *words]
        with contextlib.suppress(InputError):
            found = settings_today(make, tried)
            if found.get(name) == value:
                return tried, found
    raise InputError(f"{make.__name__}.py has no {flag(name)} {value} today")


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        name = name if value else ".".join([*name.split(".")[:-1], f"no-{name.split('.')[-1]}"])
        return [flag(name)]
    values = value if isinstance(value, list) else [value]
    return [flag(name), *map(str, values)]
