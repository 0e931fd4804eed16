"""Agreement of several processes on what process 0 has found, and lines that it alone prints."""

from collections.abc import Iterator
import contextlib
import contextvars
import functools
import json
import shutil
import sys
import textwrap
from typing import Any

import jax
import numpy as np

from ssljax import signals

_heard: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("heard", default=None)
_muted: contextvars.ContextVar[bool] = contextvars.ContextVar("muted", default=False)


def agree(value: Any) -> Any:
    """`value`, of JSON's types, as process 0 has it; all processes must call this together."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        padded[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def wrapped(text: str, indent: int = 0) -> str:
    """A line as it is, or on a terminal over several ones, of which all but the first are indented.

    Elsewhere a line stays whole, for programs that search it.
    """
    if not sys.stdout.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    return "\n".join(
        textwrap.fill(
            line,
            width - 1,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )


def labelled(label: str, text: str) -> str:
    """A line of a run's header."""
    return wrapped(f"{label:<10}{text}", 10)


@contextlib.contextmanager
def hearing() -> Iterator[list[str]]:
    """Context that collects the lines that are said in it, whether or not they are printed.

    They are then also said in a context around it.
    """
    token = _heard.set(heard := [])
    try:
        yield heard
    finally:
        _heard.reset(token)
        if (around := _heard.get()) is not None:
            around.extend(line for line in heard if line not in around)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Context in which nothing is said: of what stands in for data, for instance."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


def is_muted() -> bool:
    return _muted.get()


def say(line: str) -> None:
    """Prints a line of a run's header on the data that was read, in process 0 and once."""
    if _muted.get():
        return
    heard = _heard.get()
    if heard is not None and line not in heard:
        heard.append(line)
    _print_once(line)


@functools.cache
def _print_once(line: str) -> None:
    if jax.process_index() == 0:
        try:
            print(labelled("data", line), flush=True)
        except BrokenPipeError:
            signals.reader_is_gone()
