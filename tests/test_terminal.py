"""What a run prints: its header, the bar and what stands in its place, the last lines."""

from dataclasses import replace
import io
import os
import re
import sys

import jax
import pytest

from ssljax import load, processes, Run, train
from ssljax.checkpoint import flatten
from ssljax.evals.evaluator import Evaluator
from tests.tiny import made_with, tiny

pytestmark = pytest.mark.usefixtures("one_device")


class Terminal(io.StringIO):
    """A stream that is taken for a terminal."""

    def isatty(self):
        return True


def header(out: str) -> dict[str, str]:
    """The lines before the first step by their label, in order."""
    lines = out.splitlines()
    found = {}
    for line in lines[: next(i for i, line in enumerate(lines) if line[:1] == " ")]:
        assert re.match(r"\w+ {2,}\S", line) and line[9] == " " != line[10], line
        found[line[:10].strip()] = line[10:]
    return found


def test_header_says_data_device_model_training_and_folder(tmp_path, capsys):
    run = Run(workdir=str(tmp_path), seeds=2)
    train(made_with(tiny(num_steps=4), {"epochs": 3}), run)
    found = header(capsys.readouterr().out)
    size = sum(x.size for x in flatten(load(tmp_path).state["params"]).values())
    assert found == {
        "data": "digits: 1,797 images in 10 classes, 1,437 to train, 360 to test",
        "device": f"{len(os.sched_getaffinity(0))}-core CPU",
        "model": f"{size:,} parameters, 2 seeds in one batched program",
        "training": "4 steps of 32 examples (3 epochs)",
        "folder": str(tmp_path),
    }
    train(made_with(tiny(num_steps=1), {"epochs": 1}), Run())
    found = header(capsys.readouterr().out)
    assert found["training"] == "1 step of 32 examples (1 epoch)"
    assert found["folder"] == "none: nothing is saved without --run.workdir"


def test_header_says_how_devices_share_a_batch(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # Of `one_device`.
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    train(tiny(num_steps=1), Run(fsdp=2))
    n = jax.device_count()
    said = header(capsys.readouterr().out)["device"]
    assert said.endswith(f", {n} parts of each batch, large parameters split over 2")


def test_the_bar_gives_way_to_what_is_evaluated(tmp_path, monkeypatch):
    screen, shown = Terminal(), []
    monkeypatch.setattr(sys, "stderr", screen)

    def evaluate(state):
        shown.append(screen.getvalue().rpartition("\r")[2])
        return {"number": 1.0}

    exp = replace(tiny(num_steps=4), evals={"knn": evaluate, "probe": evaluate})
    train(exp, Run(eval_every=2, seeds=2))
    names = [re.sub(r": \d+ s", "", text).strip() for text in shown]
    assert names[:2] == [
        "evaluating knn of the untrained net, seed 1 of 2",
        "evaluating probe of the untrained net, seed 1 of 2",
    ]
    assert "evaluating probe at step 2, seed 2 of 2" in names and len(names) == 12
    assert not any("%|" in text for text in shown)
    assert "4/4" in screen.getvalue()  # The bar is back between evaluations.
    assert "compiling the step" in screen.getvalue()


def test_seconds_of_an_evaluation_are_counted_on_the_screen(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("ssljax.logs.TICK", 0.01)
    ticks = []

    def evaluate(state):
        while len(ticks) < 3:  # Redrawn while the evaluator computes.
            ticks[:] = re.findall(r"evaluating knn of the untrained net: 0 s", screen.getvalue())
        return {"number": 1.0}

    train(replace(tiny(num_steps=1), evals={"knn": evaluate}), Run())


def test_a_pipe_gets_whole_lines_without_control_characters(tmp_path, capfd):
    evaluate = Evaluator(lambda state: {"number": 1.0, "text": "a\nb"}, better={"number": "higher"})
    exp = replace(tiny(num_steps=4), evals={"knn": evaluate})
    train(exp, Run(workdir=str(tmp_path), eval_every=2, log_every=2))
    out, err = capfd.readouterr()
    assert err == "" and all(c.isprintable() or c == "\n" for c in out)
    assert sum("First step" in line and "compiling" in line for line in out.splitlines()) == 1


def test_last_lines_say_where_to_look(tmp_path, capsys):
    workdir = tmp_path / "with space"
    train(tiny(num_steps=2), Run(workdir=str(workdir)))
    *_, report, compare = capsys.readouterr().out.splitlines()
    assert report == f"report    {workdir}/report.html: results, curves, pictures"
    assert compare == f"compare   python -m ssljax.compare '{workdir}' OTHER_RUN"
    assert (workdir / "report.html").exists()


def test_lines_are_wrapped_on_a_terminal_alone(monkeypatch):
    text = "words " * 30 + "end"
    monkeypatch.setenv("COLUMNS", "50")
    assert processes.labelled("data", text) == f"data      {text}"
    monkeypatch.setattr(sys, "stdout", Terminal())
    lines = processes.labelled("data", text).splitlines()
    assert len(lines) > 3 and max(map(len, lines)) < 50
    assert all(line[:10] == "          " and line[10] != " " for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == f"data {text}"
    assert processes.wrapped("a" * 90, 2) == "a" * 90  # Paths stay whole.
