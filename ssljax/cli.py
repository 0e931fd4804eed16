"""Command line: every argument of an experiment, and every field of `Run`, is a flag."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
import hashlib
import inspect
import os
import signal
import sys
import time
import traceback
from typing import Annotated, Any, get_type_hints, NoReturn

import tyro

from ssljax import flags, record, sharding, watchdog
from ssljax.backends import start_backends
from ssljax.errors import describe, find_os_error, InputError, out_of_memory, quiet_threads
from ssljax.experiment import Experiment
from ssljax.memory import keep_freed_memory
from ssljax.models import Dtype, has_field, with_fields
from ssljax.ranges import check_arguments, check_value, checked, is_unnamed
from ssljax.run import Run
from ssljax.signals import discard_output, Signals
from ssljax.training import train

PRECISION = Annotated[
    Dtype | None,
    tyro.conf.arg(
        help="Precision in which all nets compute, in place of their own; parameters, losses and "
        "the optimizer stay in float32."
    ),
]

MOST_BYTES = 255  # Of a file's name, on the usual file systems.


def main(make: Callable[..., Experiment], args: Sequence[str] | None = None) -> None:
    """Trains `make(...)`, with each of its arguments and each field of `Run` as a flag."""
    started = time.perf_counter() - record.since_start()
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # Closed by the caller.
    if make.__module__ == "__main__":  # A program, rather than a call from a test or a notebook.
        Signals(at_once=True).__enter__()
        quiet_threads()
        keep_freed_memory()
    run = Run()
    try:
        run, arguments = parse(make, args)
        check_value("run", run, Run)
        check_arguments(make, arguments)
        if not run.workdir:
            run = replace(run, workdir=default_workdir(make, arguments, run))
        if run.plan:
            from ssljax.plan.command import plan  # Its compilers are an extra.

            start_backends()
            plan(make, arguments, run)
            return
        if run.distributed:
            watchdog.initialize()
        sharding.split_cpu(run.cpu_devices)
        start_backends()
        train(checked(make)(**arguments), run, started=started)
        sys.stdout.flush()
    except InputError as e:
        watchdog.await_verdict()
        _exit(2, f"error: {e}")
    except KeyboardInterrupt:
        _exit(130, "Stopped at once; what was saved before is whole.")
    except BrokenPipeError:
        discard_output()
        _exit(128 + signal.SIGPIPE, "Nobody reads standard output any more: stopped at once.")
    except Exception as e:
        watchdog.await_verdict()
        if sentence := out_of_memory(e):
            _exit(2, f"error: {sentence}")
        error = find_os_error(e)
        if error is None:
            if watchdog.active():
                traceback.print_exc()
                _exit(1, "This process of the run has failed.")
            raise
        _exit(2, f"error: {describe(error, run.workdir)}")


def parse(
    make: Callable[..., Experiment],
    args: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Run, dict[str, Any]]:
    """The runtime options and the arguments of `make` that a command line gives.

    `defaults` are those of some arguments in place of their own. Nothing is computed. InputError
    for flags that don't exist, and for values of a wrong type.
    """
    signature = inspect.signature(make)

    hints = get_type_hints(make, include_extras=True)

    def entry(run: Run, dtype: Dtype | None = None, **arguments: Any) -> tuple[Run, dict[str, Any]]:
        if dtype is None:
            return run, arguments
        if not has_field(arguments, "dtype"):
            raise InputError(
                f"--dtype sets the precision of nets, and those of {make.__name__} have float32 "
                "alone: leave it out."
            )
        return run, with_fields(arguments, dtype=dtype)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        p.replace(kind=keyword, default=(defaults or {}).get(name, p.default))
        for name, p in signature.parameters.items()
    ]
    own = {"dtype": (None, PRECISION), "run": (Run(), Run)}
    if any(is_unnamed(hints.get(p.name)) and has_field(p.default, "dtype") for p in parameters):
        del own["dtype"]  # A net whose flags have no prefix has one.
    for name, (default, kind) in own.items():
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=kind))
    entry.__signature__ = signature.replace(
        parameters=parameters, return_annotation=signature.empty
    )
    kinds = {name: kind for name, (_, kind) in own.items()}
    entry.__annotations__ = {**hints, **kinds}
    entry.__annotations__.pop("return", None)
    entry.__doc__, entry.__name__ = make.__doc__, make.__name__
    entry.__module__ = make.__module__
    return flags.parse(entry, args)


def _exit(status: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    if watchdog.active():  # At exit, JAX waits for the other processes, which wait for this one.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def default_workdir(make: Callable, arguments: Mapping[str, Any], run: Run) -> str:
    """runs/NAME, with the arguments that differ from their defaults in NAME.

    The same command finds the same folder.
    """
    defaults = {k: p.default for k, p in inspect.signature(make).parameters.items()}
    usual = record.flat(record.computes_of(defaults))
    given = record.flat(record.computes_of(arguments))
    changed = {k: v for k, v in given.items() if v != usual.get(k)}
    changed |= {
        f.name: getattr(run, f.name)
        for f in fields(Run)
        if f.name in ("seed", "seeds") and getattr(run, f.name) != f.default
    }
    name = ",".join([make.__name__, *(f"{k}={v}" for k, v in changed.items())])
    name = "".join(c if c.isalnum() or c in "=,.-_" else "-" for c in name)
    if len(name) > 120 or len(name.encode()) > MOST_BYTES:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        start = name[:100].encode()[: MOST_BYTES - len(digest) - 1].decode(errors="ignore")
        name = f"{start}-{digest}"
    return os.path.join("runs", name)
