"""Command `ssljax`: trains experiments, and reads, compares and exports their runs."""

from collections.abc import Callable, Sequence
import difflib
import importlib
import pathlib
import runpy
import shlex
import shutil
import signal
import sys
import textwrap

import ssljax
from ssljax import methods
from ssljax.errors import InputError
from ssljax.signals import discard_output

USAGE = """usage: ssljax COMMAND ...

{commands}

Arguments of a command: ssljax COMMAND --help; of an experiment: ssljax run NAME --help.
"""
FORK_USAGE = """usage: ssljax fork NAME FILE.py

Copies the file of an experiment, to change it. FILE.py must not exist.
"""
PLAN_USAGE = """usage: ssljax plan MACHINE NAME|FILE.py ...

Compiles the step of an experiment for a machine that need not be there, and prints and saves what
it needs there: memory, FLOPs, traffic, a bound of its time, and the largest batch. MACHINE is
h100x8, a100x16, v5e:16x16, ...; the data need not be there either.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    command, *rest = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    try:
        if command in ("-h", "--help"):
            lines = {name: line for name, (line, _) in COMMANDS.items()}
            print(USAGE.format(commands=_table(lines)), end="")
        elif command in ("-V", "--version"):
            print(f"ssljax {ssljax.__version__}")
        elif command in COMMANDS:
            COMMANDS[command][1](rest)
        else:
            near = difflib.get_close_matches(command, COMMANDS, 1, 0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            if command in methods.names():
                hint = f"did you mean ssljax run {command}? "
            raise InputError(f"There is no command {command}: {hint}`ssljax --help` lists them.")
        sys.stdout.flush()
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        discard_output()
        sys.exit(128 + signal.SIGPIPE)


def _table(lines: dict[str, str]) -> str:
    """Names and what they are, a line each, cut at the width of the terminal."""
    column = 2 + max(map(len, lines))
    width = max(60, shutil.get_terminal_size((100, 24)).columns) - column - 3
    return "\n".join(
        f"  {name:<{column}}{textwrap.shorten(line, width, placeholder=' ...')}"
        for name, line in lines.items()
    )


def _run(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print("usage: ssljax run NAME|FILE.py ...\n")
        print(_table({name: methods.summary(name) for name in methods.names()}))
        return
    name, *flags = args
    file = pathlib.Path(name).expanduser() if _is_path(name) else methods.path_of(name)
    if not file.is_file():
        raise InputError(f"There is no file {name}: check the path.")
    # As `python FILE` does it.
    sys.argv = [str(file), *flags]
    sys.path.insert(0, str(file.resolve().parent))
    runpy.run_path(str(file), run_name="__main__")


def _plan(args: Sequence[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(PLAN_USAGE, end="")
        return
    machine, name, *flags = args if len(args) > 1 else (*args, "")
    if not name or _is_path(machine) or machine in methods.names():
        raise InputError("Give a machine, then an experiment: ssljax plan h100x8 simclr.")
    _run([name, *flags, "--run.plan", machine])


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _fork(args: Sequence[str]) -> None:
    if {"-h", "--help"} & {*args}:
        print(FORK_USAGE, end="")
        return
    if len(args) != 2:
        raise InputError("Give an experiment and a new file: ssljax fork simclr my_method.py.")
    name, file = args
    methods.fork(name, pathlib.Path(file).expanduser())
    quoted = shlex.quote(file)
    print(f"{file} is a copy of {name}: `ssljax run {quoted}` or `python {quoted}` runs it.")


def _of(module: str) -> Callable[[Sequence[str]], None]:
    """The `main` of a module, which is imported when it is called."""

    def run(args: Sequence[str]) -> None:
        sys.argv = [f"ssljax {module.rpartition('.')[2]}", *args]  # What its usage begins with.
        importlib.import_module(module).main(args)

    return run


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "run": ("train an experiment, or resume or show its run; without a name: list them", _run),
    "plan": ("say what an experiment needs on a GPU or TPU that you don't have", _plan),
    "fork": ("copy an experiment's file, to write a method of your own", _fork),
    "runs": ("list the runs in a folder", _of("ssljax.runs")),
    "compare": ("compare runs in a table or a page", _of("ssljax.compare")),
    "features": (
        "write the features of a folder's files by a run's encoder",
        _of("ssljax.features"),
    ),
    "sample": (
        "draw pictures or texts from a run, with other settings of sampling if you like",
        _of("ssljax.sample"),
    ),
    "export": (
        "write a run's weights for safetensors, timm, torchvision or transformers",
        _of("ssljax.export"),
    ),
    "prepare": (
        "download a data set, or write a folder of images as shards",
        _of("ssljax.data.prepare"),
    ),
}

if __name__ == "__main__":
    main()
