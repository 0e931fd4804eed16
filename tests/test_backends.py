"""Backends: commands start JAX on the CPU where compilers of other machines are installed."""

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
    if asked:
        monkeypatch.setenv("JAX_PLATFORMS", asked)
    backends.start_backends()
    assert found.get("jax_platforms") == chosen
