"""Which backends JAX starts where compilers for other machines are installed (`ssljax[plan]`)."""

from collections.abc import Iterator
import contextlib
import glob
import importlib.util
import os
import sys
import tempfile

import jax

# LLVM's level for programs on a CPU. At 1 they are compiled in less time than at 3, which is XLA's
# (SimCLR's initialisation in a third), and compute the same bits. Steps keep 3: at 1, GPT's was 4 %
# slower in one comparison and as fast in another.
LEVEL = "xla_backend_optimization_level"
_lowered: list[bool] = []  # Whether `start_backends` has chosen level 1.
# Of NVIDIA's GPUs, also under Windows; of AMD's; and of TPUs.
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


def start_backends() -> None:
    """Starts JAX, on the CPU where the compilers of a GPU or a TPU are installed without one.

    Else JAX looks for such devices, and prints a page on what it hasn't found. On a CPU, programs
    are then compiled in less time, but for steps, unless XLA_FLAGS says how.
    """
    if os.environ.get("JAX_PLATFORMS", "cpu") != "cpu" or any(map(glob.glob, ACCELERATORS)):
        return
    given = os.environ.get("XLA_FLAGS", "")
    if LEVEL not in given:
        os.environ["XLA_FLAGS"] = f"{given} --{LEVEL}=1".strip()
        _lowered.append(True)
    if any(map(_is_installed, ("libtpu", "jax_plugins.xla_cuda12"))):
        jax.config.update("jax_platforms", "cpu")
        with quiet():
            jax.devices()


def step_options(platform: str) -> dict[str, int]:
    """Compiler options of a program that is run many times."""
    return {LEVEL: 3} if _lowered and platform == "cpu" else {}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Its parent isn't.
        return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what libraries in C++ print on standard error; prints it where there is an error."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(before, file.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
