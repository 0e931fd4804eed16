"""Backends: commands start JAX on the CPU where compilers of other machines are installed."""

import os

import jax
import pytest

from ssljax import backends, export, features
from ssljax.errors import InputError


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (features, ["run", "folder", "-o", "z.npz"]),
        (export, ["run", "--to", "safetensors", "-o", "weights"]),
    ],
)
def test_commands_start_backends_before_they_read_a_run(command, args, monkeypatch, capsys):
    def start():
        raise InputError("Backends are started.")

    monkeypatch.setattr(command, "start_backends", start)
    with pytest.raises(SystemExit):
        command.main(args)
    assert "Backends are started." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("compilers", "device", "asked", "chosen"),
    [
        (True, "", None, "cpu"),
        (True, "", "cuda", None),
        (True, "/dev/null", None, None),
        (False, "", None, None),
    ],
    ids=["no device", "asked for", "a device", "no compilers"],
)
def test_cpu_is_chosen_where_there_are_compilers_alone(
    compilers, device, asked, chosen, monkeypatch
):
    found = {}
    monkeypatch.setattr(backends, "_is_installed", lambda module: compilers)
    monkeypatch.setattr(backends, "ACCELERATORS", (device,))
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(backends, "_lowered", [])
    monkeypatch.setenv("XLA_FLAGS", "--other=2")
    if asked:
        monkeypatch.setenv("JAX_PLATFORMS", asked)
    backends.start_backends()
    assert found.get("jax_platforms") == chosen
    faster = not asked and not device  # A GPU's programs keep XLA's own level.
    assert os.environ["XLA_FLAGS"] == "--other=2" + f" --{backends.LEVEL}=1" * faster
    assert backends.step_options("cpu") == ({backends.LEVEL: 3} if faster else {})
    assert backends.step_options("gpu") == {}


def test_a_level_of_the_users_own_is_kept(monkeypatch):
    monkeypatch.setattr(backends, "_lowered", [])
    monkeypatch.setenv("XLA_FLAGS", f"--{backends.LEVEL}=2")
    monkeypatch.setattr(backends, "ACCELERATORS", ())
    backends.start_backends()
    assert os.environ["XLA_FLAGS"] == f"--{backends.LEVEL}=2" and not backends.step_options("cpu")
