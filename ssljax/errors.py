"""Errors that are meant for a user's eyes: bad input, and what the file system can refuse."""

import errno
import logging
import os
import re
import sys
import threading
from types import TracebackType
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)
# Faults of a machine rather than of a program, wherever they are found.
OF_MACHINE = (
    *FULL,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.EFBIG,
    errno.ENAMETOOLONG,
)


class InputError(ValueError):
    """Bad input: one sentence that says what is wrong and what to do.

    `main` prints it without a traceback.
    """


def check_local(path: str | os.PathLike, flag: str) -> None:
    """InputError where a path is an address, as gs://bucket/run, which would become a folder "gs:".

    A run appends to its files and locks its folder, which the objects of a bucket don't allow.
    `flag` begins the sentence.
    """
    if found := re.match("([A-Za-z][A-Za-z0-9+.-]+):/+", str(path)):
        address = f"{found[1]}://{str(path)[found.end() :]}"
        raise InputError(
            f"{flag} {address} is an address, not a folder or file of this machine: mount the "
            "bucket (gcsfuse, mount-s3) and give the path there, or copy it from and to the "
            "machine (gcloud storage rsync, aws s3 sync); launch/README.md shows how."
        )


def find_os_error(error: BaseException) -> OSError | None:
    """The OSError that an exception is, was raised from, or names in its text; or None."""
    current: BaseException | None = error
    seen: list[BaseException] = []
    explicit = True  # Whether each exception so far was raised from the next one.
    while current is not None and not any(current is e for e in seen):
        seen.append(current)
        if isinstance(current, OSError) and (explicit or current.errno in OF_MACHINE):
            return current
        # TensorStore's are ValueErrors: "... No space left on device [os_error_code='28'] ...".
        if found := re.search(r"\[os_error_code='(\d+)'\]", str(current)):
            path = re.search(r'"(/[^"]*)"', str(current))
            number = int(found[1])
            return OSError(number, os.strerror(number), path[1] if path else None)
        explicit = explicit and current.__cause__ is not None
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return None


def out_of_memory(error: BaseException) -> str:
    """One sentence for a lack of memory, of the host's or of a device; empty for other errors."""
    text = " ".join(str(error).split())
    said = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
    device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and said
    if not (device or isinstance(error, MemoryError)):
        return ""
    reason = f" ({text[:150]})" if text else ""
    return (
        f"{'The device' if device else 'This machine'} has not enough memory{reason}: choose a "
        "smaller --batch-size, --image-size or net, or split the state with --run.fsdp. What was "
        "saved is whole."
    )


def describe(error: OSError, workdir: str) -> str:
    """What the file system refused a run in `workdir`, and what to do about it."""
    text = " ".join(str(error.strerror or error).split()) or type(error).__name__
    where = error.filename or f"the run's folder is {workdir}"
    return f"{text} ({where}). {advice(error)}"


def quiet_threads() -> None:
    """Errors of the file system in background threads, which the main thread raises too, are
    printed once."""
    in_thread, anywhere, ignored = threading.excepthook, sys.excepthook, sys.unraisablehook

    def thread_hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or find_os_error(args.exc_value) is None:
            in_thread(args)

    def hook(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        # In other threads: callbacks of a library in C++, whose event loop has ended by then.
        if threading.current_thread() is threading.main_thread():
            anywhere(kind, error, tb)

    def unraisable_hook(args: Any) -> None:
        if args.exc_value is None or find_os_error(args.exc_value) is None:
            ignored(args)

    threading.excepthook, sys.excepthook, sys.unraisablehook = thread_hook, hook, unraisable_hook
    for name in ("absl", "asyncio"):  # Orbax logs what it raises.
        logging.getLogger(name).setLevel(logging.CRITICAL)


def advice(error: OSError) -> str:
    """What to do about an error of the file system."""
    resume = "run the same command again to resume"
    if error.errno in FULL:
        return f"What was saved is whole: make room and {resume}."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"Raise the limit of open files (ulimit -n) and {resume}."
    if error.errno == errno.EFBIG:
        return f"Raise the limit of file sizes (ulimit -f) and {resume}."
    if error.errno in (errno.EIO, errno.ESTALE):
        return f"The disk or its connection has failed: when it works again, {resume}."
    if error.errno == errno.ENAMETOOLONG:
        return "Choose a shorter --run.workdir."
    if error.errno == errno.ENOENT:
        return f"Was it removed while the run needed it? Restore it or {resume}."
    return "Choose another --run.workdir or --data, or correct the rights of this one."
