"""What a user sees: flags, help, and the error for each thing that can be wrong."""

import os
import subprocess
import sys

import pytest

from ssljax import cli
from tests.conftest import ROOT
from tests.tiny import tiny

ENV = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """cli(function, *flags) -> (exit status, stdout, stderr), run in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(function, *flags):
        try:
            cli.main(function, flags)
            status = 0
        except SystemExit as e:
            status = e.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture(scope="module")
def simclr():
    from experiments.simclr import simclr

    return simclr


def test_help_is_worth_reading(cli, simclr):
    status, out, _ = cli(simclr, "--help")
    assert status == 0
    for word in (
        "two random views",
        "--data",
        "embedded",
        "--temperature",
        "--run.workdir",
        "--run.seeds",
        "default: 0.2",
        "encoder:res-net",
        "--head.widths",
    ):
        assert word in out, word


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("--temprature", "--temperature"),
        ("--run.sed", "--run.seed"),
        ("--batchsize", "--batch-size"),
    ],
)
def test_a_typo_gets_a_suggestion(cli, simclr, wrong, meant):
    status, out, err = cli(simclr, wrong, "3")
    assert status == 2 and "Unrecognized" in out + err and meant in out + err


def test_a_wrong_type_is_said(cli, simclr):
    status, out, err = cli(simclr, "--lr", "fast")
    assert status == 2 and "--lr" in out + err and "fast" in out + err


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data", "cifar1"], ["no data set cifar1", "cifar10", "digits"]),
        (["--data", "./nowhere"], ["no folder or .npz file ./nowhere"]),
        (
            ["--data", "cifar100"],
            ["cifar100 is not prepared", "python -m ssljax.data.prepare cifar100", "--data digits"],
        ),
        (["--batch-size", "5000"], ["batch of 5000", "1437"]),
        (["--batch-size", "0"], ["--batch-size must be at least 1, not 0"]),
        (["--temperature", "0"], ["temperature must be positive"]),
        (["--run.log-every", "0"], ["--run.log-every must be at least 1"]),
        (["--run.eval-every", "-1"], ["--run.eval-every must be at least 0"]),
        (["--run.wandb", "project"], ["pip install wandb"]),
        (["--jitter", "2.5"], ["hue"]),
        (["--solarize", "0", "2"], ["--solarize takes how often, from 0 to 1, not 0.0 2.0"]),
        (["--blur"], ["--blur takes how often, from 0 to 1, not nothing"]),
        (["--crop", "0"], ["scale must be"]),
        (
            ["encoder:res-net", "--encoder.depth", "18", "--temperature", "0"],
            ["temperature must be positive"],
        ),
        (["--run.fsdp", "3"], ["--run.fsdp 3 does not divide"]),
        (["--run.cpu-devices", "3"], ["JAX has already started, with 8 CPU devices, not 3"]),
        (["--run.cpu-devices", "-1"], ["--run.cpu-devices must be at least 0"]),
        (["--run.replay"], ["no failed step"]),
    ],
)
def test_bad_input_is_one_sentence(cli, simclr, flags, words, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    status, out, err = cli(simclr, *flags)
    assert status == 2
    assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def test_flags_reach_the_experiment_and_name_the_folder(cli, tmp_path):
    status, out, err = cli(tiny, "--num-steps", "2", "--width", "8", "--run.seed", "3")
    assert status == 0, err
    assert (tmp_path / "runs" / "tiny,width=8,num_steps=2,seed=3" / "results.json").exists()
    assert "runs/tiny,width=8,num_steps=2,seed=3" in out and "figures/" in out
    assert (
        cli(tiny, "--num-steps", "2")[0] == 0 and (tmp_path / "runs" / "tiny,num_steps=2").exists()
    )


def test_other_arguments_in_the_folder_are_shown(cli):
    assert cli(tiny, "--num-steps", "2", "--run.workdir", "here")[0] == 0
    status, _, err = cli(tiny, "--num-steps", "2", "--lr", "0.1", "--run.workdir", "here")
    assert status == 2 and "--lr: 0.01 in the folder, 0.1 now" in err and "Traceback" not in err


def test_a_finished_run_is_evaluated_again(cli):
    first = cli(tiny, "--num-steps", "2")
    second = cli(tiny, "--num-steps", "2")
    line = lambda said: next(x for x in said[1].splitlines() if x.startswith("test/error"))
    assert line(first) == line(second) and "Resuming from step 2 of 2" in second[1]


def test_the_experiment_file_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "simclr.py"), "--temperatur", "1"],
        env=ENV,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "--temperature" in done.stdout + done.stderr
