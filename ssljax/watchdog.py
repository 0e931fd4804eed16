"""Watch over the other processes of a run: when one dies, the others end within seconds.

Without it they would wait for the dead one for 100 s and abort. Each process keeps a connection to
process 0, which the operating system closes when a process dies.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import threading
import time
from typing import Any

import jax

from ssljax.errors import InputError

STATUS = 75  # Of a process that ends because another one died; EX_TEMPFAIL of sysexits.h.
PATIENCE = 1.0  # Seconds in which the death of a process is known to the others.
GOODBYE = 2**32 - 1
_KEY = "ssljax/watchdog"

_members: dict[int, socket.socket] = {}  # Connections by process; of process 0, to each other.
_state: dict[str, Any] = {"watching": False, "round": 0}


def initialize() -> None:
    """`jax.distributed.initialize`, and a watch over the other processes.

    JAX knows the processes of Slurm and of TPU pods. Elsewhere JAX_COORDINATOR_ADDRESS (HOST:PORT
    of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it; each process then uses all devices
    of its machine. InputError where no cluster is found, or not all of its processes.
    """
    try:
        jax.distributed.initialize(**_from_environment())
    except Exception as e:  # ValueError without a cluster, JaxRuntimeError after its timeout.
        reason = " ".join(str(e).split())[:200]
        raise InputError(
            f"--run.distributed: the processes of this run don't find each other ({reason}). Start "
            "all of them, as launch/README.md says for Slurm, TPU pods, Kubernetes and others, or "
            "leave the flag out."
        ) from e
    start()


def _from_environment() -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` that environment variables give, if any."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, number = (os.environ.get(name, "") for name in names)
    if count or number:
        if not (address and count.isdecimal() and number.isdecimal()):
            raise ValueError(f"{', '.join(names)} must all be given: HOST:PORT and two numbers")
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(number),
            "cluster_detection_method": "deactivate",
        }
    # JAX takes one GPU for a task of Slurm: that of the task's number on its node. Where Slurm
    # shows a task its own GPU only (--gpus-per-task), that has the number 0. A task that is alone
    # on its node is for all GPUs there.
    visible = [x for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    if "SLURM_LOCALID" in os.environ and (len(visible) == 1 or (alone and visible)):
        return {"local_device_ids": [*range(len(visible))]}
    return {}


def start() -> None:
    """Begins to watch the other processes, where there are some; all must call this together."""
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None or jax.process_count() == 1 or _state["watching"]:
        return
    _state["watching"] = True
    _state["round"] += 1
    key = f"{_KEY}/{_state['round']}"
    if jax.process_index() == 0:
        server = socket.create_server(("", 0), backlog=jax.process_count())
        client.key_value_set(key, str(server.getsockname()[1]))
        for _ in range(jax.process_count() - 1):
            member, _ = server.accept()
            _members[_receive(member)] = member
        server.close()
    else:
        address = str(distributed.global_state.coordinator_address)
        host = address.rsplit(":", 1)[0].strip("[]")
        port = int(client.blocking_key_value_get(key, 300_000))
        _members[0] = socket.create_connection((host, port))
        _send(_members[0], jax.process_index())
        _catch_abort()
    for member in _members.values():
        _keep_alive(member)
    threading.Thread(target=_watch, daemon=True, name="watchdog").start()


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Context in which the processes of a run watch each other.

    At its end a process says goodbye, also where a signal stops the run; not where it fails.
    """
    start()
    try:
        yield
    except Exception:
        raise
    except BaseException:  # SystemExit by a signal, which all processes have agreed on.
        _say_goodbye()
        raise
    else:
        _say_goodbye()


def await_verdict() -> None:
    """Waits until it is known whether an error comes from a process that has died, which ends this
    one."""
    if _state["watching"]:
        time.sleep(PATIENCE)


def active() -> bool:
    """Whether other processes are watched."""
    return bool(_state["watching"])


def _say_goodbye() -> None:
    _state["watching"] = False
    for member in _members.values():
        with contextlib.suppress(OSError):
            _send(member, GOODBYE)
            member.shutdown(socket.SHUT_WR)
    _members.clear()


def _watch() -> None:
    """Reads what the others send: a goodbye, the number of a dead process, or the end of a line."""
    members = dict(_members)
    with selectors.DefaultSelector() as selector:
        for process, member in members.items():
            selector.register(member, selectors.EVENT_READ, process)
        while selector.get_map():
            for key, _ in selector.select():
                try:
                    message = _receive(members[key.data])
                except OSError:  # It was reset, or the other machine has vanished.
                    message = key.data
                if message != GOODBYE and _state["watching"]:
                    for process, member in members.items():
                        if process != key.data:
                            with contextlib.suppress(OSError):
                                _send(member, message)
                    _end(f"Process {message}")
                selector.unregister(key.fileobj)


def _catch_abort() -> None:
    """Ends this process with a sentence where JAX aborts because process 0 has died.

    JAX notices that as soon as the watchdog does, and can't be given another way to react.
    """

    def handle(_: int) -> None:
        with contextlib.suppress(OSError):  # Nothing to read: process 0 is alive.
            if not _members[0].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                _end("Process 0")

    # Python's own handlers wait for the main thread.
    _state["handler"] = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    ctypes.CDLL(None).signal(signal.SIGABRT, _state["handler"])


def _end(name: str) -> None:
    """Ends this process because another one is gone."""
    line = (
        f"error: {name} of this run has ended, so that this one can't continue. What was saved is "
        "whole: start all processes again with the same command to resume.\n"
    )
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(STATUS)


def _keep_alive(member: socket.socket) -> None:
    """Notices a machine that has vanished after 20 + 4 · 5 seconds."""
    member.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            member.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _send(member: socket.socket, number: int) -> None:
    member.sendall(number.to_bytes(4, "big"))


def _receive(member: socket.socket) -> int:
    data = member.recv(4, socket.MSG_WAITALL)
    if len(data) < 4:
        raise ConnectionResetError("the other process has closed the connection")
    return int.from_bytes(data, "big")
