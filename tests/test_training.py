"""Results of a run: kept one by one, compared with the untrained net and with floors."""

from concurrent import futures
from dataclasses import dataclass, replace
import json
import math
import re
import threading
import time
from types import SimpleNamespace

import pytest

from ssljax import logs, Run, train, training
from ssljax.data.feed import Data
from ssljax.evals.evaluator import Evaluator
from ssljax.training import Results
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def test_finished_run_evaluates_again_only_when_asked(tmp_path):
    calls = []

    def count(state):
        calls.append(int(state.step))
        return {"number": float(len(calls))}

    exp = replace(tiny(num_steps=4), evals={"count": count})
    run = Run(workdir=str(tmp_path))
    train(exp, run)
    assert calls == [0, 4]
    first = json.loads((tmp_path / "results.json").read_text())["results"]
    train(exp, run)
    assert calls == [0, 4]
    assert json.loads((tmp_path / "results.json").read_text())["results"] == first
    train(exp, replace(run, evaluate=True))
    assert calls == [0, 4, 4]
    assert json.loads((tmp_path / "results.json").read_text())["results"] == {"count/number": [3.0]}
    rows = [r for r in logs.read_metrics(tmp_path) if "count/number" in r]
    assert [(r["step"], r["count/number"]) for r in rows] == [(0, 1.0), (4, 3.0)]


def test_evaluator_added_to_a_finished_run_is_run_alone(tmp_path):
    run = Run(workdir=str(tmp_path))
    train(replace(tiny(num_steps=4), evals={"old": lambda state: {"number": 1.0}}), run)

    def fails(state):
        raise AssertionError("evaluated again")

    evals = {"old": fails, "new": lambda state: {"number": 2.0}}
    train(replace(tiny(num_steps=4), evals=evals), run)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert results == {"old/number": [1.0], "new/number": [2.0]}


def test_pictures_are_made_for_the_first_seed_alone(tmp_path):
    made = []
    shows = Evaluator(lambda state: made.append(int(state.step)) or {"text": "x"}, pictures=True)
    train(replace(tiny(num_steps=4), evals={"shows": shows}), Run(workdir=str(tmp_path), seeds=2))
    assert made == [0, 4]


def test_results_read_rows_of_damaged_files(tmp_path):
    results = Results(tmp_path, 10)
    for step in (0, 5, 20):
        results.add(step, 0, "test", {"error": math.nan if step == 5 else 1.0}, 0.1)
    file = tmp_path / "evaluations.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b'{"step": 3, "see\xff\n[1]\n' + lines[1] + lines[2] + b'{"st')
    again = Results(tmp_path, 10)
    assert [row["step"] for row in again.rows] == [0, 5]
    assert again.has(5, 0, "test") and not again.has(20, 0, "test")
    assert math.isnan(again.numbers(5, [0])["test/error"][0])
    assert again.numbers(5, [0, 1]) == {}


@dataclass(frozen=True)
class Slow:
    """A training set whose batches take a while."""

    data: Data
    seconds: float

    def __getattr__(self, name):
        return getattr(self.data, name)

    def feed(self, *args):
        for fed in self.data.feed(*args):
            time.sleep(self.seconds)
            yield fed


def test_a_run_says_once_that_it_waits_for_input(tmp_path, capsys):
    exp = tiny(num_steps=80)
    exp = replace(exp, data=Slow(exp.data, 0.03))
    train(exp, Run(workdir=str(tmp_path), log_every=40))
    said = capsys.readouterr().out
    shares = re.findall(r"(\d+)% waiting for input", said)
    assert len(shares) == 2 and all(60 <= int(x) <= 100 for x in shares), shares
    assert said.count("python -m ssljax.data.prepare") == 1
    train(tiny(num_steps=80), Run(workdir=str(tmp_path / "resident"), log_every=40))
    assert "waiting for input" not in capsys.readouterr().out


@pytest.mark.parametrize("step, idle", [(0.0, 0.04), (0.03, 0.01), (0.06, 0.0)])
def test_waiting_while_the_devices_have_work_does_not_count(monkeypatch, step, idle):
    now, input_is_there = 0.0, threading.Event()  # A clock of our own: machines may be loaded.

    def end_of(end):
        if step > 0.04:
            input_is_there.wait(60)
        return end

    def read():
        nonlocal now
        now += 0.04
        if step <= 0.04:
            futures.wait([waits.end])

    monkeypatch.setattr(training, "_end_of", end_of)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now))
    waits, feed = training.Waits(), iter(read, 0)
    futures.wait([waits.end])
    waits.take([feed], 1, now + step)
    assert waits.idle == 0  # Whether input is slow is not known yet.
    for i in range(6):
        waits.take([feed], 1, now + step)
        assert waits.idle == pytest.approx((i + 1) * idle)
        input_is_there.set()
        now += 0.03
        futures.wait([waits.end])  # The devices are done by the next step.
        input_is_there.clear()
