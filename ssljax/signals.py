"""Signals that end a run: the first one saves and stops, a second one ends the process at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# GNU timeout sends its signal twice, and a terminal that closes sends SIGHUP more than once.
SAME = 0.2  # Seconds within which signals count as one.


class Stopped(SystemExit):
    """End of a run by a signal, with its state saved; the exit status is 128 + the signal."""


class Interrupted(Exception):
    """Signal noted between two batches of an evaluator."""


class Signals:
    """Context in which SIGINT, SIGTERM and SIGHUP are noted, so that a run stops between two steps.

    A second signal ends the process at once: checkpoints and results are written whole or not at
    all, so nothing that was saved can be damaged. With `at_once` the first one does.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.first = 0
        self._at_once = at_once
        self._time = 0.0
        self._outer: Signals | None = None
        self._previous: dict[int, Any] = {}
        self._previous_fd = -1

    def __enter__(self) -> "Signals":
        global _active
        try:
            for number in STOPPING:
                self._previous[number] = signal.signal(number, _leave_to_thread)
            self._previous_fd = signal.set_wakeup_fd(_thread_fd(), warn_on_full_buffer=False)
        except ValueError:  # Outside the main thread signals are the caller's business.
            pass
        self._outer, _active = _active, self
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active = self._outer
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(self._previous_fd)
        self._previous.clear()

    def note(self, number: int) -> None:
        """Notes a signal; the second one ends the process."""
        if self._at_once:
            _end(number)
        if not self.first:
            self.first, self._time = number, time.monotonic()
            if number == signal.SIGPIPE:
                _write("Nobody reads standard output any more: stopping after this step or batch.")
            else:
                _write("Stopping after this step or batch; repeat to stop at once, without saving.")
        elif number != signal.SIGHUP and time.monotonic() - self._time > SAME:
            _end(number)

    def received(self, together: bool) -> int:
        """The signal to stop by, or 0.

        Several processes must agree, which needs all of them to call this `together`.
        """
        import jax
        import numpy as np

        if jax.process_count() == 1:
            return self.first
        if not together:
            return 0
        from jax.experimental import multihost_utils

        return int(np.max(multihost_utils.process_allgather(np.int32(self.first))))


_active: Signals | None = None
_wakeup: tuple[socket.socket, socket.socket] | None = None


def check() -> None:
    """Raises Interrupted where a run has received a signal; evaluators call it between batches.

    Several processes must call it equally often.
    """
    if _active is not None and _active.received(together=True):
        raise Interrupted


def reader_is_gone() -> None:
    """Stops a run as a signal does, where nobody reads its standard output any more."""
    discard_output()
    if _active is not None:
        _active.note(signal.SIGPIPE)


def _quiet_imports() -> None:
    """Ctrl-C while modules are imported ends a program with one line instead of a traceback."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt) and _imports(tb):
            _write("Stopped at once, while Python was importing modules.")
        else:
            previous(kind, error, tb)

    sys.excepthook = hook


def _imports(tb: TracebackType | None) -> bool:
    while tb is not None:
        if tb.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        tb = tb.tb_next
    return False


def discard_output() -> None:
    """Sends standard output nowhere, since Python writes what is left of it again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Python's handlers wait for the main thread, which may compile or wait for a device for
    minutes: a thread reads the signals instead."""


def _thread_fd() -> int:
    """File descriptor to which Python writes signals, read by a thread that this call starts."""
    global _wakeup
    if _wakeup is None:
        _wakeup = socket.socketpair()
        _wakeup[1].setblocking(False)
        threading.Thread(
            target=_read_signals, args=(_wakeup[0],), daemon=True, name="signals"
        ).start()
    return _wakeup[1].fileno()


def _read_signals(reader: socket.socket) -> None:
    while numbers := reader.recv(64):
        for number in numbers:
            active = _active
            if active is not None and number in STOPPING:
                active.note(number)


def _end(number: int) -> None:
    # Unwinding would wait for checkpoints in the background, or for a device.
    name = signal.Signals(number).name
    _write(f"Stopped at once by {name}; what was saved before is whole.")
    os._exit(128 + number)


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # A terminal that has closed.
        os.write(2, f"\n{line}\n".encode())


_quiet_imports()
