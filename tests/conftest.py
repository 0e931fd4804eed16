"""Fixtures; tests run on eight simulated CPU devices, with a persistent compilation cache.

Tests spend most of their time compiling. Programs in their process are compiled without XLA's
costly passes: seven tests that train small nets took 18 to 38 CPU seconds with XLA's defaults and
take 6 to 17 so. How programs are split over devices is decided before these passes; numbers differ
by rounding. Commands that tests start as processes of their own are compiled as users' are.
"""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path("~/.cache/ssljax/jax").expanduser())
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

from ssljax import processes, sharding
from ssljax.backends import start_backends

start_backends()  # What the compilers of ssljax[plan] print is no test's.
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def lines_are_new():
    """Lines on data are printed once in a process, and here once in a test."""
    processes._print_once.cache_clear()


@pytest.fixture(autouse=True)
def command_line(monkeypatch):
    """What `ssljax run` changes in its process is not there in the next test."""
    monkeypatch.setattr("sys.argv", sys.argv[:])
    monkeypatch.setattr("sys.path", sys.path[:])


@pytest.fixture
def devices(monkeypatch):
    """devices(n): from here on, runs use n of the eight devices."""

    def use(n: int) -> None:
        def make_mesh(fsdp: int = 1, devices=None, tensor: int = 1):
            return whole(fsdp, devices or jax.devices()[:n], tensor)

        monkeypatch.setattr(sharding, "make_mesh", make_mesh)

    whole = sharding.make_mesh

    return use


@pytest.fixture
def one_device(devices):
    """Runs use a single device."""
    devices(1)


def pytest_addoption(parser):
    """--long runs the costly tests of every experiment, rather than of some."""
    parser.addoption("--long", action="store_true", help="all costly tests of all experiments")


@pytest.fixture
def costly(request):
    """costly(number): skips two of three tests of a kind, unless --long or -k asks for them.

    costly(number, of=n) skips n - 1 of n.
    """

    def skip(number: int, of: int = 3) -> None:
        option = request.config.option
        if number % of and not (option.long or option.keyword):
            pytest.skip("only some of these run unless --long or -k is given")

    return skip
