"""Trace of a few training steps for XProf: what the devices and the host did, and for how long."""

import pathlib
import shlex
import time
from typing import Any

import jax

from ssljax import logs

Tree = Any
WARM = 2  # Calls of the compiled step before the trace: the first ones still allocate memory.
FIRST = WARM + 1  # Calls before a trace, with the one that compiles.


class Trace:
    """Trace of the first `steps` steps that neither compile nor warm up; none where that is 0.

    It is written to `workdir`/profile, by process 0 of several.
    """

    def __init__(self, workdir: pathlib.Path | None, steps: int, log: logs.Log):
        self.folder = workdir / "profile" if workdir else None
        self.steps = steps if self.folder and jax.process_index() == 0 else 0
        self.log, self.calls, self.since, self.asked = log, 0, -1, steps

    def begin(self, step: int, last: Tree) -> None:
        """Begins before a step, once it is due; `last` are arrays of the step before."""
        self.calls += 1
        if self.steps and self.since < 0 and self.calls > WARM:
            jax.block_until_ready(last)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Calls of Python functions would hide the rest.
            jax.profiler.start_trace(str(self.folder), profiler_options=options)
            self.since = step

    def end(self, step: int, last: Tree, stop: bool = False) -> float:
        """Ends after the last traced step, or with `stop` now; `last` are arrays of that step.

        Returns the seconds that this took.
        """
        done = step - self.since
        if not self.steps or self.since < 0 or (done < self.steps and not stop):
            return 0.0
        start = time.perf_counter()
        jax.block_until_ready(last)
        jax.profiler.stop_trace()
        self.steps = 0
        where = shlex.quote(str(self.folder))
        fewer = f", {done} of the {self.asked} asked for" if done < self.asked else ""
        self.log.line(
            f"Traced steps {self.since + 1} to {step}{fewer}. To look at them: "
            f'pip install "ssljax[profile]", then xprof --logdir {where} --port 8791 and a '
            "browser at localhost:8791."
        )
        return time.perf_counter() - start

    def close(self) -> None:
        """Says so where training ended before the trace began."""
        if self.steps and self.since < 0:
            self.log.line(f"No step was traced: training ended within {FIRST} calls.")
