"""Lock of a folder, so that one run at a time writes in it."""

from collections.abc import Iterator
import contextlib
import fcntl
import getpass
import os
import pathlib
import socket
import sys
import time
from typing import BinaryIO

import jax

from ssljax.errors import InputError
from ssljax.processes import agree


@contextlib.contextmanager
def lock(folder: pathlib.Path | None, option: str = "--run.workdir") -> Iterator[None]:
    """Context in which no other process writes in a folder; nothing for None.

    The kernel releases the lock when the process ends, however it does. InputError says who holds
    it. Of several processes, the first holds it for all; all must call this together.
    """
    held, why, error = None, "", None
    made = folder is not None and not folder.exists()
    if folder and jax.process_index() == 0:
        try:
            held, why = _acquire(folder, option)
        except OSError as e:
            error, why = e, str(e)
    why = agree(why) if folder else ""
    if why:
        raise error or InputError(why)
    try:
        yield
    finally:
        if held:
            with contextlib.suppress(OSError):
                os.unlink(held.name)
            held.close()
        if held and folder and made:
            with contextlib.suppress(OSError):  # Left empty by a run that was refused.
                folder.rmdir()


def is_locked(folder: pathlib.Path) -> bool:
    """Whether another process of this machine, or of its file system's, writes in a folder."""
    try:
        with open(folder / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # Nobody does, or the file system has no locks.
        return False
    return False


def _acquire(folder: pathlib.Path, option: str) -> tuple[BinaryIO | None, str]:
    """The locked file, or None and who holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    tries = 0
    while True:
        tries += 1
        file = open(folder / "lock", "a+b", buffering=0)  # noqa: SIM115 - the lock's life
        file.seek(0)
        text = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None, (
                f"{folder} is in use by {_owner(text)}: wait until that ends, stop it, or choose "
                f"another {option}."
            )
        except OSError:  # A file system without locks.
            print(f"Note: {folder} can't be locked: start no second run in it.")
        if tries > 100 or _is_there(file):  # Not all file systems keep the number of a file.
            break
        file.close()  # It was removed by the process that held it.
    if text and f"on {host}" not in _owner(text):  # Not every network file system has one lock.
        print(f"Note: {folder} was not released by {_owner(text)}: stop it if it still runs.")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    command = " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    owner = f"process {os.getpid()} of {user} on {host}, since {now}, `{command}`\n"
    with contextlib.suppress(OSError):  # A full disk: who holds it is not known then.
        file.truncate(0)
        file.write(owner.encode(errors="replace"))
    return file, ""


def _is_there(file: BinaryIO) -> bool:
    """Whether an open file is the one that its name stands for now."""
    try:
        return os.fstat(file.fileno()).st_ino == os.stat(file.name).st_ino
    except FileNotFoundError:
        return False


def _owner(text: bytes) -> str:
    line = text.decode(errors="replace").partition("\n")[0]
    return "".join(c if c.isprintable() else "?" for c in line)[:300] or "another process"
