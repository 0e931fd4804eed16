"""Scripts for Slurm on a real Slurm: a job that is queued again, an array, GPUs and cores."""

import json
import os
import shutil
import sys
import time

import pytest

from ssljax.logs import read_metrics
from tests import slurm
from tests.conftest import ROOT

# A run whose evaluator waits, in its second half, until the test has sent a signal.
EXPERIMENT = """
import dataclasses, pathlib, time
from ssljax import Experiment, main, signals
from tests.tiny import tiny

def slow(num_steps: int = 12, wait: bool = False) -> Experiment:
    exp = tiny(num_steps=num_steps)
    def evaluate(state):
        if wait and int(state.step) == 8:
            pathlib.Path("evaluating").touch()
            while not pathlib.Path("resumed").exists():
                signals.check()
                time.sleep(0.05)
        return exp.evals["test"](state)
    return dataclasses.replace(exp, evals={"test": evaluate})

if __name__ == "__main__":
    main(slow)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A Slurm of one node; a test is skipped where there is none, but not on CI."""
    if why := slurm.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def checkout(tmp_path):
    """The launch scripts in a folder of their own, with a Python that is `python(text)`."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def write(text):
        python.write_text(f"#!/usr/bin/env bash\n{text}\n")
        python.chmod(0o755)
        return tmp_path

    return write


def submit(cluster, folder, *args):
    """The number of a job of two GPUs with two cores each."""
    wide = ("--gpus-per-node=2", "--cpus-per-gpu=2", "--output=log")
    return cluster.run("sbatch", "--parsable", *wide, *args, cwd=folder).strip()


def wait_for(condition, cluster, job, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"job {job} is {cluster.state(job)}"
        time.sleep(0.1)


def test_run_of_two_tasks_goes_on_after_a_requeue_in_an_evaluation(cluster, checkout):
    folder = checkout(f"PYTHONPATH={ROOT} JAX_PLATFORMS=cpu XLA_FLAGS= exec {sys.executable} $*")
    (folder / "slow.py").write_text(EXPERIMENT)
    flags = ("launch/slurm.sh", "slow.py", "--run.log-every=4", "--run.eval-every=8")
    job = submit(cluster, folder, *flags, "--wait", "--run.workdir=broken")
    log = folder / "log"
    wait_for((folder / "evaluating").exists, cluster, job)
    # What Slurm sends to the script before the time limit, which is a minute or more.
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, "PENDING", "FAILED", "COMPLETED") == "PENDING", log.read_text()
    (folder / "resumed").touch()
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", log.read_text()
    said = log.read_text()
    assert "2 processes, 2 parts of each batch" in said and said.count("all is saved") == 1
    assert "Resuming from step 8 of 12." in said  # And what was said before is still there.

    whole = submit(cluster, folder, *flags, "--no-wait", "--run.workdir=whole")
    assert cluster.wait(whole, "COMPLETED", "FAILED") == "COMPLETED", log.read_text()

    def numbers(name):
        rows = read_metrics(folder / name)
        timed = {"seconds", "steps_per_second", "examples_per_second"}
        return [{k: v for k, v in row.items() if k not in timed} for row in rows]

    def digests(name):
        return json.loads((folder / name / "checkpoints/12/digests/metadata").read_text())

    assert [row["step"] for row in numbers("whole")] == [0, 4, 8, 8, 12, 12]
    assert numbers("broken") == numbers("whole") and digests("broken") == digests("whole")


def test_tasks_see_all_gpus_of_the_node_and_their_cores(cluster, checkout):
    folder = checkout(
        'echo "$SLURM_LOCALID of $SLURM_NTASKS: $CUDA_VISIBLE_DEVICES,'
        ' $SLURM_CPUS_PER_TASK cores; $*"'
    )
    (folder / "x.py").touch()
    job = submit(cluster, folder, "launch/slurm.sh", "x.py", "--lr", "0.1")
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED"
    said = sorted((folder / "log").read_text().splitlines())
    end = ": 0,1, 2 cores; x.py --lr 0.1 --run.distributed"
    assert said == [f"0 of 2{end}", f"1 of 2{end}"]


def test_one_task_of_an_array_is_queued_again(cluster, checkout):
    folder = checkout(
        """echo "$# flags: $*"; trap "exit 143" TERM; touch "ready $5"
        while [ ! -e again ]; do sleep 0.1; done"""
    )
    (folder / "x.py").touch()
    (folder / "flags.txt").write_text("--name one\n--name 'number two'\n")
    array = ("--array=1-2", "--gpus-per-node=1", "--cpus-per-gpu=1", "--output=log%a")
    job = submit(cluster, folder, *array, "launch/array.sh", "flags.txt", "x.py", "--epochs", "3")
    for name in ("one", "number two"):
        wait_for((folder / f"ready {name}").exists, cluster, f"{job}_1")
    # Its number, unlike that of the other task, is the number of the array too.
    assert f"JobId={job} ArrayJobId={job} ArrayTaskId=2" in cluster.run("scontrol", "show", "job")
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_2")
    cluster.wait(f"{job}_2", "PENDING")
    assert cluster.state(f"{job}_1") == "RUNNING"
    (folder / "again").touch()
    for task in (1, 2):
        cluster.wait(f"{job}_{task}", "COMPLETED")
    said = [(folder / f"log{task}").read_text() for task in (1, 2)]
    assert said[0] == "6 flags: x.py --epochs 3 --name one --run.distributed\n"
    assert said[1].count("6 flags: x.py --epochs 3 --name number two --run.distributed\n") == 2


def test_cancelled_job_is_not_queued_again(cluster, checkout):
    folder = checkout('trap "echo saved; exit 143" TERM; touch ready; while :; do sleep 0.1; done')
    (folder / "x.py").touch()
    job = submit(cluster, folder, "launch/slurm.sh", "x.py")
    wait_for((folder / "ready").exists, cluster, job)
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED")
    wait_for(lambda: "saved" in (folder / "log").read_text(), cluster, job)
    cluster.wait(job, "CANCELLED")


def test_job_without_an_environment_installs_nothing(cluster, checkout):
    folder = checkout("")
    shutil.rmtree(folder / ".venv")
    job = submit(cluster, folder, "launch/slurm.sh", "x.py")
    assert cluster.wait(job, "FAILED") == "FAILED"
    assert (folder / "log").read_text() == (
        f"error: there is no {folder}/.venv: run launch/setup.sh cuda12 (or tpu) first.\n"
    )
