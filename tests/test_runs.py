"""The list of runs: states, order, filters, and folders that can't be read."""

import contextlib
import fcntl
import subprocess
import sys

import pytest

from ssljax import runs
from ssljax.runs import list_runs, read_run
from tests.runs_on_disk import write_run


@contextlib.contextmanager
def locked(folder):
    with open(folder / "lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def names(found) -> list[str]:
    return [run.folder.name for run in found[0]]


def test_states_are_what_the_folders_say(tmp_path):
    done = write_run(tmp_path / "done")
    stopped = write_run(tmp_path / "stopped", results=False, reached=50)
    failed = write_run(tmp_path / "failed", results=False, reached=70)
    (failed / "failure").mkdir()
    (stopped / "lock").write_text("process 1")  # Left by a kill.
    assert [read_run(folder).describe_state() for folder in (done, stopped, failed)] == [
        "finished",
        "stopped at 50 of 100",
        "failed at 70 of 100",
    ]
    with locked(stopped):
        assert read_run(stopped).describe_state() == "running at 50 of 100"
    with locked(done):  # It is evaluated again.
        assert read_run(done).state == "running"
    assert (read_run(done).seconds, read_run(stopped).seconds) == (60.0, 30.0)
    assert read_run(done).describe_main() == "knn/accuracy 44"
    assert read_run(stopped).describe_main() == "knn/accuracy 44"


def test_order_and_filter(tmp_path):
    write_run(tmp_path / "a", [50.0], launch={"time": "2026-01-03T00:00:00Z"})
    write_run(tmp_path / "b" / "c", [60.0, 61.0], launch={"time": "2026-01-05T00:00:00Z"})
    write_run(tmp_path / "d", [40.0], experiment="moco.py", results=False, reached=90)
    write_run(tmp_path / "a" / "checkpoints" / "copy")  # What lies in a run's folder is the run's.
    assert names(list_runs(tmp_path)) == ["d", "c", "a"]
    assert names(list_runs(tmp_path, "name")) == ["a", "c", "d"]
    assert names(list_runs(tmp_path, "metric")) == ["c", "a", "d"]
    assert names(list_runs(tmp_path, "seeds")) == ["c", "a", "d"]
    assert names(list_runs(tmp_path, "experiment")) == ["d", "a", "c"]
    assert names(list_runs(tmp_path, "state")) == ["d", "a", "c"]
    assert names(list_runs(tmp_path, "time")) == ["a", "c", "d"]
    assert names(list_runs(tmp_path, experiment="moco")) == ["d"]


def test_metrics_that_should_be_low_are_sorted_the_other_way(tmp_path):
    evals = {"knn": {"better": {"accuracy": "lower"}, "floors": {}}}
    for name, value in (("a", 3.0), ("b", 1.0), ("c", float("nan")), ("d", 2.0)):
        write_run(tmp_path / name, [value], evals=evals)
    assert names(list_runs(tmp_path, "metric")) == ["b", "d", "a", "c"]


def test_one_line_a_run_in_a_pipe_and_names_apart_on_a_narrow_terminal(tmp_path, capsys):
    name = "simclr,encoder.widths=-32--64--128-,temperature=0.5,epochs=100"
    write_run(tmp_path / name, [44.0, 45.0, 45.5])
    runs.main([str(tmp_path)])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "experiment", "data"] and "\x1b" not in line
    cells = "simclr digits finished knn/accuracy 44.8 ± 1.9 3 60 s 2026-11-28 10:30"
    assert " ".join(line.split()) == f"{name} {cells}"
    lines = runs.runs_table([read_run(tmp_path / name)], tmp_path, 110)
    assert lines[1] == name and " ".join(lines[2].split()) == cells and len(lines[2]) <= 110


def test_what_cant_be_read_is_a_sentence_and_others_are_shown(tmp_path, capsys):
    write_run(tmp_path / "good")
    cut = write_run(tmp_path / "cut", results=False, reached=50)
    with open(cut / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "lo')
    (write_run(tmp_path / "half") / "record.json").write_text('{"computes": {')
    (write_run(tmp_path / "lost") / "record.json").unlink()
    (write_run(tmp_path / "other") / "results.json").write_text("[]")
    runs.main([str(tmp_path), "--sort", "name"])
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[1:3]] == ["cut", "good"]
    assert "stopped at 50 of 100" in out[1]
    notes = " ".join(out[3:])
    assert len(out) == 6 and all(line.startswith("Left out: ") for line in out[3:])
    assert f"{tmp_path}/half/record.json is damaged" in notes
    assert f"{tmp_path}/lost is not a run's folder: it has no record.json" in notes
    assert f"{tmp_path}/other/results.json is damaged (it holds no object)" in notes


@pytest.mark.parametrize(
    "args, said",
    [
        (["nowhere"], "There is no folder nowhere"),
        (["."], "holds no runs: give the folder that they lie in"),
        ([".", "--sort", "size"], "--sort must be one of date, name"),
        (["--experiment", "moco", "made"], "made holds no runs of moco"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, args, said):
    monkeypatch.chdir(tmp_path)
    if "made" in args:
        write_run(tmp_path / "made" / "a")
    with pytest.raises(SystemExit) as stopped:
        runs.main(args)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and said in err and len(err.splitlines()) == 1


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    for i in range(3):
        write_run(tmp_path / f"{i}{'x' * 200}")
    command = [sys.executable, "-m", "ssljax.runs", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
