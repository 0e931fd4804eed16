"""Failures: kills, signals, full disks, dead peers; every one loses nothing that was saved."""

from dataclasses import replace
import errno
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import InputError, load, logs, main, Run, signals, train
from ssljax.errors import describe, find_os_error
from ssljax.signals import Signals, Stopped
from ssljax.tensorboard import Board, read_scalars
from tests.conftest import ROOT
from tests.test_loop import digest
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("one_device")
ENV = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def unbroken():
    """The digest of 40 steps without a workdir."""
    return digest(train(tiny()))


def command(*args: str) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "tiny.py"), *args]


def run(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), env=ENV, text=True, capture_output=True, **options)


def start_and_wait_for(step: int, workdir: pathlib.Path, *args: str) -> subprocess.Popen:
    process = subprocess.Popen(
        command("--run.workdir", str(workdir), "--delay", "0.02", *args),
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if any(r["step"] >= step for r in logs.read_metrics(workdir)):
            return process
        time.sleep(0.05)
    raise AssertionError(f"no step {step}: {process.communicate()[0]}")


# Signals.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state of an unbroken run of 100 steps as a program."""
    workdir = tmp_path_factory.mktemp("whole")
    done = run("--run.workdir", str(workdir), "--num-steps", "100")
    assert done.returncode == 0, done.stderr
    return load(workdir).state


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_resumed_after_a_signal_equals_unbroken(tmp_path, sent, whole):
    args = ["--num-steps", "100", "--run.log-every", "5", "--run.save-every", "10"]
    process = start_and_wait_for(35, tmp_path / "b", *args)
    process.send_signal(sent)
    said, _ = process.communicate(timeout=60)
    saved = max(int(p.name) for p in (tmp_path / "b" / "checkpoints").iterdir() if p.name.isdigit())
    if sent == signal.SIGKILL:
        assert process.returncode == -9 and saved >= 20 and saved % 10 == 0
    else:
        assert process.returncode == 128 + sent
        stopped = re.search(
            rf"Stopped by {sent.name} at step (\d+); all is saved .* Run the same command", said
        )
        assert stopped and int(stopped[1]) == saved, said
        assert "Traceback" not in said
    again = run("--run.workdir", str(tmp_path / "b"), "--delay", "0.02", *args)
    assert again.returncode == 0 and f"Resuming from step {saved} of 100" in again.stdout, (
        again.stdout + again.stderr
    )
    jax.tree.map(np.testing.assert_array_equal, whole, load(tmp_path / "b").state)
    rows = logs.read_metrics(tmp_path / "b")
    wanted = {(name, row["step"]) for row in rows for name in row if name != "step"}
    assert read_scalars(tmp_path / "b" / "tensorboard") == wanted


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    process = start_and_wait_for(5, tmp_path, "--num-steps", "4000", "--run.log-every", "5")
    os.kill(process.pid, signal.SIGSTOP)  # Both wait, as behind a long compilation.
    for sent in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(sent)
    os.kill(process.pid, signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert "Stopped by SIG" in said, said  # Within a moment they are one signal, as of `timeout`.
    code = (
        "import time; from ssljax.signals import Signals\n"
        "with Signals():\n"
        "    print('ready', flush=True)\n"
        "    while True: sum(range(10**6))"
    )
    stuck = subprocess.Popen(
        [sys.executable, "-c", code], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert stuck.stdout.readline() == b"ready\n"
    stuck.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert stuck.poll() is None
    stuck.send_signal(signal.SIGINT)
    _, err = stuck.communicate(timeout=60)
    assert stuck.returncode == 130 and b"Stopped at once by SIGINT" in err, err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_is_one_line(sent):
    code = (
        "import time\nfrom ssljax import main\n"
        "def slow():\n    print('reading', flush=True); time.sleep(60)\n"
        "main(slow, [])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"reading\n"
    process.send_signal(sent)
    _, err = process.communicate(timeout=50)  # It would read for 60 seconds.
    assert process.returncode == 128 + sent
    assert (
        err.strip().decode() == f"Stopped at once by {sent.name}; what was saved before is whole."
    )


def test_a_signal_ends_an_evaluator_between_two_batches(tmp_path):
    done = []

    def quick(state):
        done.append("quick")
        return {"number": 1.0}

    def slow(state):
        for batch in range(100):
            signals.check()
            done.append(batch)
            if batch == 2 and int(state.step) == 4:
                signals._active.note(signal.SIGTERM)
        return {"number": 2.0}

    exp = replace(tiny(num_steps=4), evals={"quick": quick, "slow": slow})
    with pytest.raises(Stopped) as stopped:
        train(exp, Run(workdir=str(tmp_path)))
    assert stopped.value.code == 143
    assert done[-4:] == ["quick", 0, 1, 2]
    rows = logs.read_rows(tmp_path / "evaluations.jsonl")
    assert [(r["step"], r["evaluator"]) for r in rows] == [(0, "quick"), (0, "slow"), (4, "quick")]
    done.clear()
    again = replace(exp, evals={"quick": quick, "slow": lambda state: {"number": 3.0}})
    train(again, Run(workdir=str(tmp_path)))
    assert done == []  # What was found is not repeated.
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert results == {"quick/number": [1.0], "slow/number": [3.0]}


def test_a_finished_run_evaluates_again_only_when_asked(tmp_path):
    values = iter(range(100))
    exp = replace(tiny(num_steps=4), evals={"count": lambda state: {"number": next(values)}})
    for evaluate, number in ((False, 1), (False, 1), (True, 2), (False, 2)):
        train(exp, Run(workdir=str(tmp_path), evaluate=evaluate))
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["results"]["count/number"] == [number]
        assert results["untrained"]["count/number"] == [0]


def test_results_are_json_and_a_damaged_line_drops_itself_alone(tmp_path):
    exp = replace(tiny(num_steps=20), evals={"odd": lambda state: {"nan": jnp.nan, "one": 1.0}})
    run = Run(workdir=str(tmp_path), log_every=5, save_every=5)
    train(replace(exp, num_steps=10), run)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        lines = (tmp_path / name).read_text().splitlines()
        lines.insert(1, '{"step": 3, "lo')
        lines.insert(1, "\x00\ufffd")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    train(exp, run)
    no_constants = lambda name: pytest.fail(f"{name} is not JSON")
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=no_constants)
    assert results["results"] == {"odd/nan": [None], "odd/one": [1.0]}
    steps = [r["step"] for r in logs.read_metrics(tmp_path) if "loss" in r]
    assert steps == [5, 10, 15, 20]


# TensorBoard.


def test_events_that_a_kill_has_lost_are_written_again(tmp_path):
    run = Run(workdir=str(tmp_path), log_every=5, save_every=5)
    train(replace(tiny(), num_steps=20), run)
    file = next((tmp_path / "tensorboard").iterdir())
    file.write_bytes(file.read_bytes()[:-50])
    train(tiny(), run)
    wanted = {(k, r["step"]) for r in logs.read_metrics(tmp_path) for k in r if k != "step"}
    assert read_scalars(tmp_path / "tensorboard") == wanted
    assert ("loss", 20) in wanted and ("test/error", 0) in wanted


def test_event_files_are_read_by_tensorboardx_and_earlier_steps_purged(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    board = Board(tmp_path, 0)
    board.scalars(5, {"loss": 1.5, "seeds": [1.0, 3.0]})
    board.scalars(10, {"loss": 2.5})
    board.picture(10, "picture", np.zeros((4, 4, 3), np.uint8))
    board.text(10, "text", "words")
    board.close()
    Board(tmp_path, 5).close()
    assert read_scalars(tmp_path) == {("loss", 5), ("seeds", 5)}
    data, at, events = sorted(tmp_path.iterdir())[0].read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        events.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += size + 16
    assert events[0].file_version == "brain.Event:2"
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values[:3] == [(5, "loss", 1.5), (5, "seeds", 2.0), (10, "loss", 2.5)]


# Errors of the file system.


def test_os_errors_are_found_in_what_libraries_raise():
    full = OSError(errno.ENOSPC, "No space left on device", "/a/b")
    assert find_os_error(full) is full
    wrapped = RuntimeError("a checkpoint failed")
    wrapped.__cause__ = ValueError("x")
    wrapped.__cause__.__context__ = full
    assert find_os_error(wrapped) is full
    text = "Failed to write \"/a/c\": No space left on device [os_error_code='28'] [spec='{}']"
    found = find_os_error(ValueError(text))
    assert found.errno == errno.ENOSPC and found.filename == "/a/c"
    # A bug met while a missing file was handled stays a bug.
    bug = KeyError("name")
    bug.__context__ = FileNotFoundError(errno.ENOENT, "No such file", "/a")
    assert find_os_error(bug) is None


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "Choose another --run.workdir"),
        (errno.EACCES, "Choose another --run.workdir"),
        (errno.ENAMETOOLONG, "Choose a shorter --run.workdir"),
        (errno.ENOENT, "Was it removed"),
        (errno.EIO, "has failed"),
        (errno.ESTALE, "has failed"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_advice_fits_the_error(number, words):
    said = describe(OSError(number, os.strerror(number), "/a/b"), "runs/x")
    assert words in said and os.strerror(number) in said and "/a/b" in said and "\n" not in said
    assert ("make room" in said) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_a_folder_that_vanishes_is_one_sentence(tmp_path):
    process = start_and_wait_for(
        10, tmp_path / "run", "--num-steps", "4000", "--run.log-every", "5", "--run.save-every", "9"
    )
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    said, _ = process.communicate(timeout=60)
    errors = said[said.index("error: ") :]
    assert process.returncode == 2 and errors.count("\n") == 1, said


@pytest.mark.parametrize("folder", ["x" * 300, "file/run"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, folder):
    (tmp_path / "file").touch()
    done = run("--run.workdir", folder, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_closed_reader_of_the_output_stops_the_run_and_saves_it(tmp_path):
    args = ["--run.workdir", str(tmp_path), "--num-steps", "400", "--run.log-every", "5"]
    process = subprocess.Popen(
        command(*args, "--delay", "0.01"),
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for line in process.stdout:
        if "loss" in line:
            break
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 141 and "Traceback" not in err and "Exception" not in err, err
    assert "Nobody reads standard output any more" in err
    assert int(load(tmp_path).state["step"]) < 400


@pytest.mark.skipif(os.geteuid() != 0, reason="a small tmpfs can be mounted by root alone")
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, unbroken):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        train(replace(tiny(), num_steps=20), Run(workdir=str(disk / "run")))
        often = ["--run.save-every", "10", "--run.log-every", "2", "--num-steps", "4000"]
        process = start_and_wait_for(4, disk / "run2", *often)
        _fill(disk)
        said, _ = process.communicate(timeout=60)
        errors = said[said.index("error: ") :]
        assert process.returncode == 2 and errors.count("\n") == 1, said
        assert "No space left" in errors and "ake room" in errors, said
        with pytest.raises((InputError, OSError), match="No space left"):
            train(tiny(), Run(workdir=str(disk / "run"), save_every=10))
        (disk / "ballast").unlink()
        assert digest(train(tiny(), Run(workdir=str(disk / "run"), save_every=10))) == unbroken
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _fill(disk: pathlib.Path) -> None:
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass


# Several processes.


def start_two(workdir: pathlib.Path, *args: str) -> list[subprocess.Popen]:
    """Two processes of one run, found as Slurm's are, which write to workdir.0 and workdir.1."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    slurm = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2"),
    }
    return [
        subprocess.Popen(
            command("--run.workdir", str(workdir), "--run.distributed", *args),
            env={**ENV, **slurm, "SLURM_PROCID": str(i)},
            stdout=workdir.with_name(f"{workdir.name}.{i}").open("w"),
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]


def test_two_processes_equal_one(tmp_path):
    """A run goes from one process to two, which hold half of each parameter, and back to one."""
    # Without BatchNorm, since Adam makes whole steps of gradients that it leaves to rounding.
    folder, args = tmp_path / "two", ["--no-norm", "--run.save-every", "10", "--run.keep", "3"]
    whole = jax.tree.leaves(jax.device_get(train(tiny(norm=False)).params))

    def resumes_from(step):
        """Leaves of the run what it was after a step."""
        for path in (folder / "checkpoints").iterdir():
            if int(path.name) > step:
                shutil.rmtree(path)

    def equals_one():
        for a, b in zip(jax.tree.leaves(load(folder).state["params"]), whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)

    main(tiny, [*args, "--run.workdir", str(folder)])
    resumes_from(20)
    workers = start_two(folder, *args, "--run.fsdp", "4")
    assert [w.wait(240) for w in workers] == [0, 0], (tmp_path / "two.0").read_text()
    said = [(tmp_path / f"two.{i}").read_text() for i in range(2)]
    for words in ("Resuming from step 20 of 40", "test/error", "Trained 40 steps", "report  "):
        assert words in said[0] and words not in said[1]
    equals_one()
    written = (folder / "checkpoints" / "30" / "default").glob("ocdbt.process_*")
    assert {p.name[-1] for p in written} == {"0", "1"}
    resumes_from(30)
    main(tiny, [*args, "--run.workdir", str(folder)])
    equals_one()


@pytest.mark.parametrize("dead", [0, 1])
def test_when_a_process_dies_the_other_ends_with_a_sentence(tmp_path, dead):
    workers = start_two(
        tmp_path / "two", "--num-steps", "4000", "--delay", "0.05", "--run.log-every", "5"
    )
    deadline = time.time() + 120
    while time.time() < deadline and not any(
        "loss" in r for r in logs.read_metrics(tmp_path / "two")
    ):
        time.sleep(0.1)
    workers[dead].kill()
    assert workers[1 - dead].wait(60) == 75  # By itself JAX would wait for 100 seconds.
    said = (tmp_path / f"two.{1 - dead}").read_text()
    assert f"error: Process {dead} of this run has ended" in said and "Traceback" not in said, said


def test_a_signal_to_one_process_stops_both(tmp_path):
    workers = start_two(
        tmp_path / "two", "--num-steps", "4000", "--delay", "0.05", "--run.log-every", "5"
    )
    deadline = time.time() + 120
    while time.time() < deadline and not any(
        "loss" in r for r in logs.read_metrics(tmp_path / "two")
    ):
        time.sleep(0.1)
    workers[1].terminate()
    assert [w.wait(60) for w in workers] == [143, 143], (tmp_path / "two.0").read_text()


def test_signals_are_the_callers_outside_the_main_thread():
    import threading

    failed = []

    def enter():
        try:
            with Signals():
                pass
        except Exception as e:
            failed.append(e)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not failed


def test_a_cut_entry_of_the_compilation_cache_is_replaced(tmp_path):
    env = {k: v for k, v in ENV.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env["SSLJAX_CACHE"] = str(tmp_path / "cache")
    sizes = []
    for i in range(2):
        done = subprocess.run(
            command("--run.workdir", str(tmp_path / str(i)), "--num-steps", "4"),
            env=env,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        entries = sorted((tmp_path / "cache" / "jax").glob("*-cache"))
        sizes.append({f.name: f.stat().st_size for f in entries})
        for entry in entries:
            os.truncate(entry, 50)
    assert sizes[0] and sizes[1]
    assert min(sizes[1].values()) > 50  # Cut ones are gone, or compiled once more.
