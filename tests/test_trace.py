"""Traces of training steps."""

import os
import subprocess
import sys

import jax
import pytest

from ssljax import InputError, Run, train
from tests.conftest import ROOT
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def steps_of(folder) -> list[int]:
    """Numbers of the training steps in the one trace of a folder."""
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    events = (e for plane in planes for line in plane.lines for e in line.events)
    return sorted(int(dict(e.stats)["step_num"]) for e in events if e.name == "train")


def test_trace_has_the_steps_after_the_first_ones(tmp_path, capsys):
    train(tiny(num_steps=12), Run(workdir=str(tmp_path / "a run"), profile=5, save_every=5))
    assert steps_of(tmp_path / "a run" / "profile") == [4, 5, 6, 7, 8]
    said = capsys.readouterr().out
    assert "Traced steps 4 to 8. To look at them: pip install" in said
    assert f"xprof --logdir '{tmp_path}/a run/profile' --port" in said


def test_trace_ends_with_training(tmp_path, capsys):
    train(tiny(num_steps=6), Run(workdir=str(tmp_path / "short"), profile=100))
    assert steps_of(tmp_path / "short" / "profile") == [4, 5, 6]
    assert "Traced steps 4 to 6, 3 of the 100 asked for." in capsys.readouterr().out
    # Of its four calls, the first one and that of a single step compile.
    uneven = Run(workdir=str(tmp_path / "uneven"), profile=1, steps_per_call=2, log_every=5)
    train(tiny(num_steps=7), uneven)
    assert "No step was traced: training ended within 3 calls." in capsys.readouterr().out
    assert not (tmp_path / "uneven" / "profile").exists()


def test_trace_is_written_when_a_signal_stops_the_run(tmp_path):
    command = [sys.executable, "-m", "tests.tiny", "--delay=0.05", "--num-steps=4000"]
    command += [f"--run.workdir={tmp_path}", "--run.profile=3000", "--run.log-every=5"]
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if line.split()[:2] == ["15", "loss"]:
                run.terminate()
            if "Traced steps 4 to" in line:
                traced = int(line.split(" to ")[1].split(",")[0])
    assert run.returncode == 143
    assert steps_of(tmp_path / "profile") == list(range(4, traced + 1))


def test_trace_needs_a_folder():
    with pytest.raises(InputError, match="--run.profile writes into the run's folder"):
        train(tiny(), Run(profile=3))
