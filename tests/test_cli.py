"""What a user sees: flags, help, and the error for each thing that can be wrong."""

import os
import subprocess
import sys

import pytest

from ssljax import main, Run
from ssljax.cli import default_workdir
from ssljax.data import Images
from tests.conftest import ROOT
from tests.tiny import tiny

ENV = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """cli(function, *flags) -> (exit status, stdout, stderr), in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(function, *flags):
        try:
            main(function, flags)
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


def test_help_lists_flags_and_their_texts(cli, simclr):
    status, out, _ = cli(simclr, "--help")
    assert status == 0
    for word in (
        "two views of an image",
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
        ("--no-head.norm", "--head.no-norm"),
    ],
)
def test_a_typo_gets_a_suggestion(cli, simclr, wrong, meant):
    status, _, err = cli(simclr, wrong, "3")
    assert status == 2 and err == f"error: There is no flag {wrong}: did you mean {meant}?\n"
    status, _, err = cli(simclr, "--head.norm", "False")
    assert status == 2 and "There is no False: " in err and "--NAME or --no-NAME alone." in err


def test_a_wrong_type_names_the_flag(cli, simclr):
    status, _, err = cli(simclr, "--lr", "fast")
    assert status == 2 and err == "error: --lr must be a number, not 'fast'.\n"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--data", "cifar1"], ["no data set cifar1", "cifar10", "doodles"]),
        (["--data", "./nowhere"], ["no folder or .npz file ./nowhere"]),
        (
            ["--data", "cifar100"],
            [
                "cifar100 is not prepared",
                "python -m ssljax.data.prepare cifar100",
                "--data doodles",
            ],
        ),
        (["--batch-size", "9000"], ["batch of 9000", "8000"]),
        (["--batch-size", "0"], ["--batch-size must be at least 1, not 0"]),
        (["--temperature", "0"], ["--temperature must be above 0, not 0"]),
        (["--run.log-every", "0"], ["--run.log-every must be at least 1"]),
        (["--run.eval-every", "-1"], ["--run.eval-every must be at least 0"]),
        (["--run.wandb", "project"], ['pip install "ssljax[wandb]"']),
        (["--jitter", "2.5"], ["--jitter must be at least 0 and at most 2, not 2.5"]),
        (["--jitter", "1", "1", "1", "0.6"], ["--jitter must be at least 0 and at most 0.5"]),
        (["--solarize", "0", "2"], ["--solarize must be at least 0 and at most 1, not 2.0"]),
        (["--blur"], ["--blur must be one number or more, not empty"]),
        (["--crop", "0"], ["--crop must be above 0 and at most 1, not 0"]),
        (["--view-size", "29"], ["--view-size must be at most the images' 28 pixels, not 29"]),
        (
            ["encoder:res-net", "--encoder.depth", "18", "--temperature", "0"],
            ["--temperature must be above 0"],
        ),
        (["--run.fsdp", "3"], ["--run.fsdp 3 does not divide"]),
        (["--run.cpu-devices", "3"], ["JAX has already started, with 8 CPU devices, not 3"]),
        (["--run.cpu-devices", "-1"], ["--run.cpu-devices must be at least 0"]),
        (["--run.replay"], ["no failed step"]),
    ],
)
def test_bad_input_is_one_sentence(cli, simclr, flags, words, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    status, _, err = cli(simclr, *flags)
    assert status == 2
    assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def test_flags_reach_the_experiment_and_name_the_folder(cli, tmp_path):
    status, out, err = cli(tiny, "--num-steps", "2", "--width", "8", "--run.seed", "3")
    assert status == 0, err
    assert (tmp_path / "runs" / "tiny,width=8,num_steps=2,seed=3" / "results.json").exists()
    assert "runs/tiny,width=8,num_steps=2,seed=3/report.html" in out
    assert (
        cli(tiny, "--num-steps", "2")[0] == 0 and (tmp_path / "runs" / "tiny,num_steps=2").exists()
    )


def test_default_folder_has_a_name_that_file_systems_take(simclr, tmp_path):
    found = set()
    for path in ("花/" * 30, "花" * 90, "花" * 91, "a" * 300, "é" * 119):
        workdir = default_workdir(simclr, {"data": Images(path)}, Run())
        (tmp_path / workdir).mkdir(parents=True)
        assert workdir.startswith(f"runs/simclr,data={path[:20].replace('/', '-')}")
        found.add(workdir)
    assert len(found) == 5


def test_other_arguments_in_the_folder_are_shown(cli):
    assert cli(tiny, "--num-steps", "2", "--run.workdir", "here")[0] == 0
    status, _, err = cli(tiny, "--num-steps", "2", "--lr", "0.1", "--run.workdir", "here")
    assert status == 2 and "--lr: 0.01 in the folder, 0.1 now" in err and "Traceback" not in err


def test_a_finished_run_is_evaluated_again(cli):
    first = cli(tiny, "--num-steps", "2")
    second = cli(tiny, "--num-steps", "2")
    line = lambda said: next(x for x in said[1].splitlines() if x.startswith("test/error"))
    assert line(first) == line(second) and "Finished at step 2" in second[1]


def test_the_experiment_file_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "simclr.py"), "--temperatur", "1"],
        env=ENV,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "--temperature" in done.stdout + done.stderr


def test_out_of_memory_is_one_sentence(cli):
    status, _, err = cli(tiny, "--width", "2000000000")
    assert status == 2 and len(err.strip().splitlines()) == 1
    assert "not enough memory" in err and "smaller --batch-size" in err
