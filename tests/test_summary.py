"""Numbers of a run as rows: main number first, floors, digits, and the ledger's row."""

from dataclasses import replace
import json
import math
import re

import pytest

from ssljax import InputError, ledger, logs, Run, summary, train
from ssljax.evals.evaluator import Evaluator
from ssljax.ledger import commands
from ssljax.summary import format_row, Row, summary_notes, summary_rows, summary_table
from tests.tiny import made_with, tiny

pytestmark = pytest.mark.usefixtures("one_device")

JUDGED = {
    "own": {"better": {}, "floors": {}},
    "knn": {"better": {"accuracy": "higher", "plain": "higher"}, "floors": {"accuracy": "pixels"}},
    "test": {"better": {"error": "lower"}, "floors": {}, "real": {"error": "error_real"}},
}
RESULTS = {
    "own/rank": [9.0, 9.0],
    "test/error": [1.0, 3.0],
    "test/error_real": [0.5, 0.5],
    "knn/plain": [70.0, 71.0],
    "knn/pixels": [80.0, 80.0],
    "knn/accuracy": [75.0, 77.0],
}
UNTRAINED = {"own/rank": [50.0, 50.0], "knn/accuracy": [70.0, 70.0], "test/error": [8.0, 9.0]}


def test_main_number_is_the_first_with_a_direction_and_floors_have_no_row():
    rows = summary_rows(RESULTS, UNTRAINED, JUDGED)
    assert [row.name for row in rows] == ["knn/accuracy", "knn/plain", "test/error", "own/rank"]
    first = rows[0]
    assert (first.trained, first.untrained) == ([75.0, 77.0], [70.0, 70.0])
    assert (first.floor, first.floor_name, first.better) == ([80.0, 80.0], "pixels", "higher")
    assert rows[1].floor is rows[1].untrained is rows[3].better is None
    assert rows[2].real == [0.5, 0.5] and rows[1].real is None
    assert rows[2].worse_than == []  # No net should be better than real examples.


@pytest.mark.parametrize(
    "trained, untrained, better, worse",
    [
        ([75.0, 77.0], [70.0, 70.0], "higher", ["floor"]),
        ([75.0, 77.0], [90.0, 90.0], "higher", ["untrained", "floor"]),
        ([85.0, 86.0], [70.0, 70.0], "higher", []),
        ([85.0, 86.0], [70.0, 70.0], "lower", ["untrained", "floor"]),
        ([75.0, 77.0], [90.0, 90.0], None, []),
        ([math.nan, 86.0], [70.0, 70.0], "higher", ["untrained", "floor"]),
        ([75.0, 77.0], [math.nan, 70.0], "higher", ["floor"]),
    ],
)
def test_what_is_worse_than_untrained_or_floor_is_marked(trained, untrained, better, worse):
    row = Row("knn/accuracy", trained, untrained, [80.0, 80.0], "pixels", better)
    assert row.worse_than == worse
    assert ("!" in summary_table([row])[1]) == bool(worse)
    notes = " ".join(summary_notes([row]))
    assert ("worse than the floor: knn/accuracy" in notes) == ("floor" in worse)
    assert ("worse than the untrained net: knn/accuracy" in notes) == ("untrained" in worse)


@pytest.mark.parametrize(
    "trained, others, shown",
    [
        # t(0.975, 2) = 4.303; the interval of 44, 45, 45.5 is 1.897.
        ([44.0, 45.0, 45.5], [23.51], ["44.8 ± 1.9", "23.5"]),
        ([1.8833, 1.8841, 1.8822], [4.1], ["1.8832 ± 0.0024", "4.1000"]),
        ([97.78], [37.0], ["97.78", "37.00"]),
        ([-104.32], [-543.21], ["-104.3", "-543.2"]),
        ([256.0], [256.0], ["256", "256"]),
        ([7.0, 7.0], [6.5], ["7.000", "6.500"]),
        ([1e-7], [2e-3], ["0.000000", "0.002000"]),
        ([1e-8], [2e-7], ["1e-08", "2e-07"]),
        ([math.nan], [2.0], ["nan", "2"]),
        ([0.0], [0.0], ["0", "0"]),
        ([123456.7], [99.0], ["123457", "99"]),
    ],
)
def test_digits_of_a_row_are_those_that_its_interval_or_size_allows(trained, others, shown):
    cells = format_row(Row("x/y", trained, others))
    assert [cells["trained"], cells["untrained"]] == shown


def test_table_is_aligned_within_80_columns_and_has_no_empty_columns():
    name = "test/coverage_mnist_classifier_99.4"
    of_ledger = {"ours": {"knn/accuracy": [76.0, 78.0]}, "paper_numbers": {"knn/accuracy": 90.3}}
    rows = [*summary_rows(RESULTS, UNTRAINED, JUDGED, of_ledger), Row(name, [60.0, 62.0])]
    lines = summary_table(rows)
    assert max(map(len, lines)) < 80
    first, long = (" ".join(line.split()) for line in (lines[1], lines[lines.index(name) + 1]))
    assert lines[0].split() == ["trained", "untrained", "floor", "real", "ledger", "paper"]
    assert (
        first == "knn/accuracy 76.0 ± 12.7 ! 70.0 80.0 77.0 ± 12.7 90.3" and long == "61.0 ± 12.7"
    )
    assert {line.index("±") for line in lines if "±" in line[:40]} == {lines[1].index("±")}
    assert lines[0].index("floor") + len("floor") == lines[1].index("80.0") + len("80.0")
    assert summary_table(rows[2:3])[0].split() == ["trained", "untrained", "real"]
    assert summary_table(rows[3:4])[0].split() == ["trained", "untrained"]
    assert any(note.startswith("Real: ") for note in summary_notes(rows))


def test_a_run_is_summed_up_while_it_goes_on_and_when_it_is_finished(tmp_path):
    knn = Evaluator(
        lambda state: {"accuracy": float(state.step), "pixels": 80.0},
        better={"accuracy": "higher"},
        floors={"accuracy": "pixels"},
    )
    exp = replace(tiny(num_steps=4), evals={"own": lambda state: {"number": 1.0}, "knn": knn})
    run = Run(workdir=str(tmp_path), seeds=2, seed=3, eval_every=2)
    train(made_with(exp, {"width": 16}, defaults={"width": 8}), run)
    found = summary.summary(tmp_path)
    assert (found.step, found.finished, list(found.seeds)) == (4, True, [3, 4])
    assert (found.main.name, found.main.trained, found.main.untrained, found.main.floor) == (
        "knn/accuracy",
        [4.0, 4.0],
        [0.0, 0.0],
        [80.0, 80.0],
    )
    assert json.loads((tmp_path / "record.json").read_text())["defaults"] == {"width": 8}
    (tmp_path / "results.json").unlink()
    assert summary.summary(tmp_path) == found
    rows = [row for row in logs.read_rows(tmp_path / "evaluations.jsonl") if row["step"] < 4]
    logs.write_rows(tmp_path / "evaluations.jsonl", rows)
    under_way = summary.summary(tmp_path)
    assert (under_way.step, under_way.finished) == (2, False)
    assert under_way.main.trained == [2.0, 2.0]
    logs.write_rows(tmp_path / "evaluations.jsonl", rows[:1])
    assert summary.summary(tmp_path).main is None


def test_folders_without_a_run_are_an_input_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not a run's folder: it has no record.json"):
            summary.summary(folder)


def test_ledgers_row_is_the_one_of_the_same_settings(tmp_path, monkeypatch):
    row = {
        "method": "simclr",
        "computes": {"data": "digits", "head": {"class": "MLP", "widths": [8]}, "lr": 0.1},
        "steps": 10,
        "batch_size": 32,
    }
    (tmp_path / "ledger.json").write_text(json.dumps([{**row, "steps": 11}, row]))
    monkeypatch.setattr("ssljax.ledger.HERE", tmp_path)
    record = {
        "experiment": "simclr.py",
        "computes": row["computes"] | {"blur": 0.0, "run": {"seed": 5, "seeds": 1}},
        "defaults": {"blur": 0.0, "lr": 0.2},
        "num_steps": 10,
        "batch_size": 32,
    }
    found = summary.ledger_row(record)
    assert found and {k: found[k] for k in row} == row
    for change in (
        {"experiment": "moco.py"},
        {"num_steps": 12},
        {"batch_size": 64},
        {"computes": record["computes"] | {"blur": 0.5}},
        {"computes": record["computes"] | {"head": {"class": "MLP", "widths": [9]}}},
        {"defaults": {}},  # Whether a setting that the ledger lacks is as it was, isn't known.
    ):
        assert summary.ledger_row(record | change) is None, change
    (tmp_path / "ledger.json").unlink()
    assert summary.ledger_row(record) is None


def test_a_row_of_the_ledger_is_found_by_todays_command():
    rows = [row for row in ledger.read_rows() if row["method"] == "simclr"]
    make = commands.experiment("simclr")
    for row in rows:
        given = commands.settings_today(make, commands.command_today(row)[1:])
        record = {
            "experiment": "simclr.py",
            "computes": given,
            "defaults": commands.settings_today(make, []),
            "num_steps": row["steps"],
            "batch_size": row["batch_size"],
        }
        found = summary.ledger_row(record)
        assert found and found["computes"] == row["computes"]
        notes = summary_notes([], found)
        note = next(note for note in notes if note.startswith("Ledger: 3 seeds"))
        assert any(note.startswith("Paper: ") for note in notes) == bool(row["paper_numbers"])
        assert (ledger.HERE / re.search(r"ledger/\S+\.md", note)[0]).exists()
        assert summary.ledger_row(record | {"computes": given | {"lr": 0.123}}) is None
