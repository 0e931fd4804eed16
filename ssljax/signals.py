"""Signals that stop a run: the first one saves and stops, a second one ends the process at once."""

import os
import signal
from types import FrameType
from typing import Any

import jax
import numpy as np

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """End of a run by a signal, with its state saved; the exit status is 128 + the signal."""


class Interrupted(Exception):
    """Signal noted between two batches of an evaluator."""


class Signals:
    """Context in which SIGINT, SIGTERM and SIGHUP are noted, so that a run stops between two steps.

    A second signal ends the process at once: checkpoints and results are written whole or not at
    all, so nothing that was saved can be damaged.
    """

    def __init__(self) -> None:
        self.first = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        global _active
        _active = self
        try:
            for number in STOPPING:
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # Outside the main thread signals are the caller's business.
            pass
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.first:
            # Unwinding would wait for checkpoints in the background, or for a device.
            os.write(2, b"\nStopped at once; what was saved is whole.\n")
            os._exit(128 + number)
        self.first = number
        os.write(2, b"\nStopping after this step; repeat to stop at once, without saving.\n")

    def received(self, together: bool) -> int:
        """The signal to stop by, or 0.

        Several processes must agree, which needs all of them to call this `together`.
        """
        if jax.process_count() == 1:
            return self.first
        if not together:
            return 0
        from jax.experimental import multihost_utils

        return int(np.max(multihost_utils.process_allgather(np.int32(self.first))))


_active: Signals | None = None


def check() -> None:
    """Raises Interrupted where a run has received a signal; evaluators call it between batches.

    Several processes must call it equally often.
    """
    if _active is not None and _active.received(together=True):
        raise Interrupted
