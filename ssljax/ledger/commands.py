"""Commands of the ledger's rows by the flags that the experiments have today."""

from collections.abc import Callable, Mapping, Sequence
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
    make, command = experiment(r["method"]), list(r["command"])
    wanted = settings(r["method"], r["computes"])
    given = settings_today(make, command[1:])
    if lost := [flag(k) for k in wanted if k not in given]:
        raise InputError(f"{r['method']}.py has no {', '.join(lost)} today")
    differ = {k: v for k, v in wanted.items() if given[k] != v}
    if differ:
        command = [command[0], *_as_flags(differ, command[1:])]
        given = settings_today(make, command[1:])
    if left := [flag(k) for k, v in wanted.items() if given.get(k) != v]:
        raise InputError(f"{r['method']}.py can't be given the row's {', '.join(left)} today")
    return command


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


def _as_flags(differ: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """The words with flags for settings: those of a net that a subcommand chooses come last."""
    chosen = {word.partition(":")[0] for word in words if re.match(r"[\w.-]+:[\w-]+$", word)}
    first, last = [], []
    for name, value in differ.items():
        net = name.rpartition(".")[0]
        if name.endswith(".class"):
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", str(value)).lower()
            last.insert(0, f"{net}:{kind}")
            continue
        (last if net in chosen or f"{net}.class" in differ else first).extend(_flag(name, value))
    return [*first, *words, *last]


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        name = name if value else ".".join([*name.split(".")[:-1], f"no-{name.split('.')[-1]}"])
        return [flag(name)]
    values = value if isinstance(value, list) else [value]
    return [flag(name), *map(str, values)]
