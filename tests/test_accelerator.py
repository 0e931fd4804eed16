"""The program for a new accelerator, here on a CPU, and what carries it to a machine."""

from dataclasses import replace
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import time
import zipfile

import jax
import numpy as np
import pytest

from ssljax.record import read_record
from tests import accelerator, carry, small
from tests.conftest import ROOT
from tests.tiny import tiny


@pytest.fixture
def first_two(monkeypatch):
    """The accelerator and the host, both CPUs here, with the smallest experiment on them."""
    monkeypatch.setattr(small, "make_in", lambda file, dtype: tiny(norm=False))
    host, ours = jax.devices()[:2]
    return ours, host


def test_equal_devices_have_equal_steps(first_two):
    found = accelerator.compare("tiny", "float32", *first_two)
    assert found["metrics"] == found["optimizer"] == 0 and accelerator.passes(found, "float32")


@pytest.mark.parametrize("wrong", ["metrics", "optimizer", "nan"])
def test_differences_are_found(wrong, first_two, monkeypatch):
    """A device whose loss, or whose gradient, is 2 % too large, and one that computes no number."""
    ours, host = first_two

    def make_in(file, dtype):
        exp = small_make_in(file, dtype)

        def step(state, batch, key):
            new, metrics = exp.step(state, batch, key)
            if jax.config.jax_default_device == ours:
                if wrong == "optimizer":
                    scaled = jax.tree.map(lambda x: x * 1.02 if x.ndim else x, new.opt_state)
                    new = new.replace(opt_state=scaled)
                else:
                    factor = float("nan") if wrong == "nan" else 1.02
                    metrics = metrics | {"loss": factor * metrics["loss"]}
            return new, metrics

        return replace(exp, step=step)

    small_make_in = small.make_in
    monkeypatch.setattr(small, "make_in", make_in)
    found = accelerator.compare("tiny", "float32", ours, host)
    assert not accelerator.passes(found, "float32")
    if wrong == "optimizer":
        np.testing.assert_allclose(found["optimizer"], 0.02, rtol=1e-3)
    else:
        assert "loss of step" in found["worst"]
        assert found["metrics"] == (
            float("inf") if wrong == "nan" else pytest.approx(0.02, rel=1e-3)
        )


def test_every_command_is_of_today(monkeypatch):
    from ssljax import cli
    from ssljax.ledger.commands import experiment

    commands = [*accelerator.ROWS.values(), *accelerator.SMALL_ROWS.values()]
    commands += [
        s.command for s in [*accelerator.SPEED.values(), *accelerator.SMALL_SPEED.values()]
    ]
    for command in commands:
        name, *flags = command.split()
        cli.parse(experiment(name), flags)


def test_speed_and_flops_of_a_step(monkeypatch):
    monkeypatch.setattr("ssljax.ledger.commands.experiment", lambda name: tiny)
    found = accelerator.measure(accelerator.Speed("tiny --no-norm --batch-size 16"), 0.01)
    assert found["unit"] == "images" and found["mfu"] is None  # No peak of this CPU is known.
    np.testing.assert_allclose(found["per_second"], 16 / found["step_seconds"])
    # 64 -> 16 -> 64: two products forward, their weights' gradients, and one of their inputs'.
    assert found["flops"] == 2 * 16 * (64 * 16) * (2 + 2 + 1)


def test_all_parts_at_the_size_of_a_test_and_a_second_call(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    command = ["--out", str(tmp_path), "--small", "--experiments", "autoencoder", "--workers", "1"]
    plans = tmp_path / "plans.json"
    plans.write_text(json.dumps({"GPT, small": {"machine": "h200x1", "step_seconds": 0.00125}}))
    accelerator.main([*command, "--minutes", "8", "--plans", str(plans)])
    text = (tmp_path / "report.md").read_text()
    assert "| autoencoder | float32 | 0.0e+00 (" in text and "differs" not in text
    assert "| GPT, small | cpu |" in text and " 1.2 ms (h200x1) |" in text
    assert "- gpt: finished (`gpt --steps 30" in text
    assert read_record(tmp_path / "runs" / "gpt", "")["num_steps"] == 30
    with tarfile.open(tmp_path / "results.tar.gz") as tar:
        names = tar.getnames()
    assert {"report.md", "numerics/autoencoder.json", "speed/GPT--small.json"} <= {*names}
    assert {"runs/gpt/record.json", "runs/gpt/results.json", "runs/gpt/metrics.jsonl"} <= {*names}
    assert not any("checkpoints" in name for name in names)
    written = {f: f.stat().st_mtime_ns for f in tmp_path.glob("*/*.json")}
    start = time.monotonic()
    accelerator.main([*command, "--minutes", "8"])  # Nothing is left to do.
    assert time.monotonic() - start < 5
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("*/*.json")} == written
    assert "Speed of" not in capsys.readouterr().out.partition("Written to")[2]


def test_differences_and_errors_end_with_status_1(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "_start", lambda *_: subprocess.Popen(["true"]))
    folder = tmp_path / "numerics"
    folder.mkdir()
    good = {"metrics": 1e-7, "worst": "loss of step 3", "optimizer": 1e-6}
    results = {
        "gan": {"float32": good, "bfloat16": None},
        "vae": {"float32": good, "bfloat16": {**good, "metrics": 0.1}},
        "gpt": {"float32": {"error": "JaxRuntimeError: no | algorithm"}, "bfloat16": good},
    }
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    command = ["--out", str(tmp_path), "--parts", "numerics", "--experiments"]
    accelerator.main([*command, "gan"])
    with pytest.raises(SystemExit) as stopped:
        accelerator.main([*command, *results])
    assert stopped.value.code == 1
    text = (tmp_path / "report.md").read_text()
    assert "| gan | float32 | 1.0e-07 (loss of step 3) | 1.0e-06 |  |" in text
    assert "| vae | bfloat16 | 1.0e-01 (loss of step 3) | 1.0e-06 | **differs** |" in text
    assert "**JaxRuntimeError: no / algorithm**" in text and "gan | bfloat16" not in text


def test_what_fails_is_said_and_tried_again_after_the_rest(tmp_path, monkeypatch):
    """Out of memory in one step, and a package that PyTorch's needs."""
    speeds = {"A": accelerator.Speed("gpt --batch-size 4", "gpt2"), "B": accelerator.Speed("gpt")}

    def fails(*args):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory | 9 GB")

    monkeypatch.setattr(accelerator, "measure", fails)
    monkeypatch.setattr(accelerator, "measure_torch", lambda *_: {"step_seconds": 1, "version": 2})
    monkeypatch.setattr(accelerator, "_has_torch", lambda: True)
    for part, title in (("speed", "A"), ("torch", "A")):
        asked = accelerator._parse(["--child", part, title, "0.1"])
        accelerator._child(asked, tmp_path, speeds)
    text = accelerator.report(tmp_path, [], speeds, {}, {})
    assert "**A, ours, failed**: RuntimeError: RESOURCE_EXHAUSTED: Out of memory | 9 GB" in text
    started = []

    def start(asked, out, part, title, seconds):
        started.append((part, title))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(accelerator, "_start", start)
    accelerator._speed(speeds, tmp_path, time.monotonic() + 60, asked)
    assert started == [("speed", "B"), ("speed", "A")]  # PyTorch's A is there.


def test_a_signal_stops_what_runs_and_packs_the_results(tmp_path):
    program = (
        "import os, signal, subprocess, threading; from tests import accelerator as a\n"
        "a._start = lambda *_: subprocess.Popen(['sleep', '60'])\n"
        "threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()\n"
        f"a.main(['--out', {str(tmp_path)!r}, '--small', '--experiments', 'gan', 'vae'])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 143 and time.monotonic() - start < 30, done.stderr
    assert "Not compared yet: gan, vae." in (tmp_path / "report.md").read_text()
    assert (tmp_path / "results.tar.gz").exists() and "Speed of" not in done.stdout


def test_a_tpu_has_one_process(monkeypatch):
    for there, least, most in (("/dev/accel0", 1, 1), ("/dev/nvidia0", 1, 12)):
        pattern = f"{there[:-1]}[0-9]*"
        monkeypatch.setattr("glob.glob", lambda p, pattern=pattern: [p] if p == pattern else [])
        monkeypatch.setattr(os, "cpu_count", lambda: 32)
        assert least <= accelerator._workers() <= most
    assert accelerator._workers() == 12


def test_what_runs_at_the_end_is_told_to_stop():
    program = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(143))\n"
    program += "print('ready', flush=True)\ntime.sleep(60)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        accelerator._wait(process, time.monotonic() + 0.1)
    assert process.returncode == 143


def test_rows_without_their_data_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "DATA", {"mnist": (str(tmp_path / "a"), str(tmp_path / "b"))})
    words = ["iwae", "--data", "mnist", "--k", "5"]
    assert accelerator._with_data(words) is None
    (tmp_path / "b").mkdir()  # A prepared set, which has its name.
    assert accelerator._with_data(words) == words
    (tmp_path / "a").touch()  # A file, which is read by its path.
    assert accelerator._with_data(words) == ["iwae", "--data", str(tmp_path / "a"), "--k", "5"]
    assert accelerator._with_data(["pacgan", "--data", "grid"]) == ["pacgan", "--data", "grid"]


def test_parts_bring_the_commit_the_wheels_and_the_data(tmp_path, monkeypatch):
    def wheels(python, have, to):
        to.mkdir()
        with zipfile.ZipFile(to / "carried-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("carried.py", "x = 3\n")
            info = "carried-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        return ["carried==1.0"]

    monkeypatch.setattr(carry, "wheels", wheels)
    monkeypatch.setattr(carry, "SETS", tmp_path / "sets")
    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "sets" / "tiny").mkdir(parents=True)
    (tmp_path / "sets" / "tiny" / "data").write_bytes(content)
    (tmp_path / "text.txt").write_text("words")
    data = ["tiny", str(tmp_path / "text.txt")]
    carry.main(["--to", str(tmp_path / "parts"), "--mib", "1", "--data", *data])
    sizes = [f.stat().st_size for f in tmp_path.glob("parts/*/archive.*")]
    assert len(sizes) >= 10 and max(sizes) <= 2**20

    where, home = tmp_path / "where", tmp_path / "home"
    home.mkdir()
    bin = pathlib.Path(sys.executable).parent
    env = {**os.environ, "HOME": str(home), "PATH": f"{bin}:{os.environ['PATH']}"}
    unpack = ["bash", tmp_path / "parts" / "01" / "unpack.sh", tmp_path / "parts", where]
    done = subprocess.run(unpack, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def head(checkout):
        command = ["git", "-C", checkout, "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert head(where / "ssljax") == head(ROOT)
    assert (where / "ssljax" / "data" / "text.txt").read_text() == "words"
    assert (home / "tensorflow_datasets" / "tiny" / "data").read_bytes() == content
    assert (where / "site" / "carried.py").read_text() == "x = 3\n"
    assert f"cd {where}/ssljax && PYTHONPATH={where}/site python3 -m tests.accel" in done.stdout


def test_packages_that_are_there_are_not_carried():
    needs = carry._needs(set())
    assert {"jax", "flax", "numpy", "grain", "docstring-parser", "tensorflow-datasets"} <= {*needs}
    without = carry._needs({"jax", "flax", "tyro"})
    assert not {"treescope", "typeguard"} & {*without} and "grain" in without
