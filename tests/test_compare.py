"""Comparisons: columns of seeds, settings, differences, and what is not of like with like."""

from html.parser import HTMLParser
import json
import re
import subprocess

import numpy as np
import pytest
from scipy import stats

from ssljax import changes, compare, logs, Run, train
from ssljax.changes import changed_code, Code
from ssljax.compare import columns_of, differing, text
from ssljax.runs import read_run
from ssljax.stats import difference
from tests.runs_on_disk import EVALS, write_run
from tests.tiny import made_with, tiny


def columns(*folders):
    return columns_of([read_run(folder) for folder in folders])


def warned(*folders) -> list[str]:
    return compare.differences_of_protocol(columns(*folders))


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5)])
def test_difference_and_interval_are_welchs(sizes):
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, sizes[0]), rng.normal(1, 4, sizes[1])
    mean, half = difference(list(a), list(b))
    wanted = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((wanted.low, wanted.high))
    assert np.isnan(difference([1.0], [2.0, 3.0])[1])
    assert difference([1.0, 1.0], [2.0, 2.0]) == (1.0, 0.0)


def test_runs_that_differ_in_seeds_alone_are_one_column(tmp_path):
    a = write_run(tmp_path / "a", [44.0, 45.0])
    more = write_run(tmp_path / "more", [45.5], seed=2)
    same = write_run(tmp_path / "same", [45.5], seed=1)  # A seed that a has, too.
    other = write_run(tmp_path / "other", [40.0], seed=5, computes={"lr": 0.3})
    found = columns(a, other, more, same)
    assert [[run.folder.name for run in column.runs] for column in found] == [
        ["a", "more"],
        ["other"],
        ["same"],
    ]
    row = found[0].rows["knn/accuracy"]
    assert (row.trained, row.untrained, row.floor) == (
        [44.0, 45.0, 45.5],
        [22.0, 22.5, 22.75],
        [25.0] * 3,
    )
    assert [row["loss"] for row in found[0].metrics if row["step"] == 10] == [
        [1 / 10, 1 / 11, 1 / 10]
    ]
    assert "44.8 ± 1.9" in text(found)


def test_settings_that_differ_are_shown_with_defaults_for_those_that_a_record_lacks(tmp_path):
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", computes={"lr": 0.3, "blur": 0.1}, batch_size=64)
    assert dict(differing(columns(a, b))) == {
        "--lr": ["0.1", "0.3"],
        "--blur": ["0.5", "0.1"],
        "batch size": ["32", "64"],
    }
    for i, run in enumerate((a, b)):  # What records of older versions have of modules.
        record = json.loads((run / "record.json").read_text())
        record["defaults"]["net.parent"] = f"<flax.linen.module._Sentinel object at 0x7f{i}>"
        (run / "record.json").write_text(json.dumps(record))
    assert "--net.parent" not in dict(differing(columns(a, b)))
    lines = [line.split() for line in text(columns(a, b)).splitlines()]
    assert ["--lr", "0.1", "0.3"] in lines and ["--blur", "0.5", "0.1"] in lines


def test_numbers_have_floors_untrained_nets_and_a_difference(tmp_path):
    a = write_run(tmp_path / "a", [44.0, 45.0, 45.5])
    b = write_run(tmp_path / "b", [40.0, 40.5, 40.2], computes={"lr": 0.3})
    lines = [" ".join(line.split()) for line in text(columns(a, b)).splitlines()]
    mean, half = difference([44.0, 45.0, 45.5], [40.0, 40.5, 40.2])
    assert f"knn/accuracy 44.8 ± 1.9 40.2 ± 0.6 {mean:.1f} ± {half:.1f}" in lines
    at = lines.index("untrained 22.4 20.1")
    assert lines[at + 1] == "floor raw_pixels 25.0 25.0"
    assert "time of a seed 20 s 20 s" in lines


READ = {"digits": {"training images": {"count": 9, "digest": "training"}}}


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, []),
        ({"computes": {"lr": 0.3}}, []),
        ({"computes": {"data": "/elsewhere/digits"}}, []),  # The content is the same.
        ({"computes": {"data": "digits:validation"}}, ["different splits: digits and digits:val"]),
        ({"computes": {"image_size": 64}}, ["different sizes: the set's own size and 64"]),
        (
            {
                "read": {
                    "cats": {
                        f"{p} images": {"count": 5, "digest": p + "!"} for p in ("training", "test")
                    }
                }
            },
            [
                "were measured on different data: digits (test images), 9 and cats (test images),",
                "were trained on different data: digits (training images), 9 and cats (training",
            ],
        ),
        (
            {"evals": EVALS | {"knn": EVALS["knn"] | {"settings": {"k": 5}}}},
            ["The evaluator knn has k 20 in A and 5 in B"],
        ),
        ({"floor": 31.0}, ["The floor of knn/accuracy, raw_pixels, is 25 in A and 31 in B"]),
        (
            {"results": False, "reached": 50},
            ["B has not finished: its numbers are those of step 50"],
        ),
        ({"launch": {"hardware": "8 x H100"}}, ["Times were measured on different hardware"]),
    ],
)
def test_what_is_not_of_like_with_like_is_said(tmp_path, change, said):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", **change)
    found = warned(a, b)
    assert len(found) == len(said), found
    for sentence, words in zip(found, said):
        assert words in sentence
    assert ("! Not of like with like:" in text(columns(a, b))) == bool(said)
    assert text(columns(a, b)).endswith(compare.SAME) == (not said)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"read": READ}, "Whether A and B were measured on the same data is not known"),
        ({"launch": {"commit": ""}}, "ssljax at abc and version unknown, which can't be compared"),
        (
            {"launch": {"repository": {"commit": "new", "remote": ""}}},
            "the experiments' own repository at old and new, whose other files are not compared",
        ),
    ],
)
def test_what_cant_be_known_is_no_difference(tmp_path, change, said):
    own = {"repository": {"commit": "old", "remote": ""}}
    found = columns(write_run(tmp_path / "a", launch=own), write_run(tmp_path / "b", **change))
    assert compare.differences_of_protocol(found) == []
    (sentence,) = compare.unknown_of_protocol(found)
    assert said in sentence
    assert "Not of like with like" not in text(found) and f"Not known:\n  {sentence}" in text(found)


@pytest.fixture
def history(tmp_path, monkeypatch):
    """A repository, and a function that commits files and returns the commit."""

    def git(folder, *args):
        identity = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", folder, *identity, *args], capture_output=True, check=True, text=True
        )
        return done.stdout.strip()

    def commit(**files):
        for name, content in files.items():
            file = tmp_path / (name.replace("__", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-qm", "x")
        return Code(git(tmp_path, "rev-parse", "HEAD"))

    git(tmp_path, "init", "-q")
    monkeypatch.setattr(changes, "CHECKOUT", tmp_path)
    return commit


def test_code_differs_where_statements_that_compute_do(history):
    first = history(ssljax__losses__a='"""Text."""\nx = 1\n')
    words = history(ssljax__losses__a='"""Other."""\nx = 1  # Why.\n', ssljax__logs="z = 1\n")
    assert changed_code(first, words) == []
    loss = history(ssljax__losses__a="x = 2\n")
    changed = f"ssljax/losses/a.py changed between {words.commit} and {loss.commit}"
    assert changed_code(words, loss) == [(True, changed)]
    new = history(ssljax__models__b="z = 1\n")
    assert "ssljax/models/b.py changed" in changed_code(loss, new)[0][1]
    for unknown in (Code("0" * 40), Code("", "0.2")):
        ((known, said),) = changed_code(first, unknown)
        assert not known and "which can't be compared here" in said
    wheels = Code("", "0.1"), Code("", "0.2")
    assert changed_code(*wheels) == [(True, "versions 0.1 and 0.2 of ssljax")]
    assert changed_code(wheels[0], wheels[0]) == []


def test_uncommitted_changes_differ_where_they_touch_what_computes():
    diff = "--- a/ssljax/{0}\n+++ b/ssljax/{0}\n+x\n".format
    clean, loss, log = (
        Code("a", uncommitted=x) for x in ("", diff("losses/a.py"), diff("logs.py"))
    )
    assert changed_code(clean, loss) == [(True, "uncommitted changes of ssljax/losses/a.py")]
    assert changed_code(loss, loss) == changed_code(clean, log) == []


def test_experiment_files_in_the_runs_are_compared(tmp_path):
    a, b, c = (write_run(tmp_path / name, computes={"lr": i}) for i, name in enumerate("abc"))
    for folder, code in ((a, "x = 1\n"), (b, "x = 1  # One.\n"), (c, "x = 1\n")):
        (folder / "source").mkdir()
        (folder / "source" / "simclr.py").write_text(code)
    (c / "source" / "launch2").mkdir()
    (c / "source" / "launch2" / "simclr.py").write_text("x = 2\n")
    assert warned(a, b, c) == []  # c's second copy is of a launch that is not in its record.
    record = json.loads((c / "record.json").read_text())
    record["launches"] += [record["launches"][0] | {"start": at} for at in (50, 70)]
    (c / "record.json").write_text(json.dumps(record))
    assert warned(a, b, c) == [
        f"Code changed between launches of {c}: simclr.py is not the same.",
        "The code of A and C differs: simclr.py is not the same.",
    ]


def test_tables_of_many_runs_stay_within_80_columns(tmp_path):
    folders = [
        write_run(tmp_path / str(i), [40.0 + i, 41.0, 42.0], computes={"lr": i / 10})
        for i in range(9)
    ]
    found = columns(*folders)
    tables = text(found).split("\n\n", 1)[1]
    assert max(map(len, tables.splitlines())) < 80
    assert [column.label for column in found] == list("ABCDEFGHI")
    heads = [line.split() for line in tables.splitlines() if re.fullmatch(r"[A-I ]+", line)]
    assert [label for head in heads for label in head] == list("ABCDEFGHI")


class Page(HTMLParser):
    """Tags, text and addresses of a page."""

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.said, self.addresses = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.said.append(data)


def test_page_holds_all_numbers_curves_and_warnings_and_needs_no_other_file(tmp_path, capsys):
    a = write_run(tmp_path / "a<b>&", [44.0, 45.0, 45.5])
    b = write_run(tmp_path / "b", [40.0], computes={"image_size": 64}, batch_size=64)
    file = tmp_path / "page.html"
    compare.main([str(a), str(b), "--html", str(file)])
    assert str(file) in capsys.readouterr().out
    page = Page(file.read_text())
    said = " ".join(page.said)
    assert f"{a}: simclr on digits, seeds 0 1 2, finished" in said
    for words in ("44.8 ± 1.9", "40.0", "Not of like with like", "--image-size"):
        assert words in said
    assert page.tags.count("svg") == 1  # The loss; evaluations are at two steps alone.
    assert "examples" in said  # Batches differ in size.
    assert all(x.startswith(("data:", "#")) for x in page.addresses)


def test_curves_are_the_rows_of_metrics(tmp_path, monkeypatch):
    a = write_run(tmp_path / "a", [44.0, 45.0])
    b = write_run(tmp_path / "b", [40.0], computes={"lr": 0.3})
    evaluated = {"step": 50, "knn/accuracy": 33.0, "knn/raw_pixels": 25.0}
    logs.append_row(b / "metrics.jsonl", evaluated)
    drawn, real, found = [], compare._panel, columns(a, b)

    def panel(columns, lines, examples):
        drawn.append((lines, examples))
        return real(columns, lines, examples)

    monkeypatch.setattr(compare, "_panel", panel)
    named = list(compare.curve_panels(found))
    assert [name for name, _ in named] == ["knn/accuracy", "loss"]
    accuracy, lines = drawn[0][0], drawn[1][0]
    assert not drawn[1][1] and [i for i, _ in lines] == [0, 1]
    steps = list(range(10, 101, 10))
    assert lines[0][1]["steps"] == steps
    np.testing.assert_allclose(lines[0][1]["mean"], [(1 / s + 1 / (s + 1)) / 2 for s in steps])
    np.testing.assert_allclose(lines[1][1]["mean"], [1 / s for s in steps])
    assert [(i, curve["mean"]) for i, curve in accuracy] == [(1, [20.0, 33.0, 40.0])]
    for i in range(2):
        assert compare.COLOURS[i] in named[1][1]


def test_runs_that_cant_be_read_are_named_and_others_compared(tmp_path, capsys):
    a, bad = write_run(tmp_path / "a"), write_run(tmp_path / "bad")
    (bad / "record.json").write_text("{")
    with open(a / "metrics.jsonl", "a") as file:
        file.write('{"step": 110, "lo')
    compare.main([str(a), str(bad), str(tmp_path / "none")])
    out = capsys.readouterr().out
    assert "knn/accuracy" in out
    assert f"Left out: {bad}/record.json is damaged" in out
    assert f"Left out: {tmp_path}/none is not a run's folder" in out
    assert f"1 line is left out of {a}/metrics.jsonl, which can't be read." in out
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(tmp_path / "none")])
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err
    for file in (tmp_path, tmp_path / "nowhere" / "x.html"):
        with pytest.raises(SystemExit):
            compare.main([str(a), "--html", str(file)])
        assert f"--html {file} must be the name of a file" in capsys.readouterr().err


@pytest.mark.usefixtures("one_device")
def test_compares_real_runs(tmp_path, capsys):
    for name, seeds, lr in (("a", 2, 1e-2), ("b", 1, 1e-3)):
        run = Run(workdir=str(tmp_path / name), seeds=seeds)
        train(made_with(tiny(num_steps=3, lr=lr), {"lr": lr}, defaults={"lr": 1e-2}), run)
    capsys.readouterr()
    compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "b" / "results.json").read_text())["results"]["test/error"]
    line = next(line for line in out.splitlines() if line.startswith("test/error")).split()
    assert float(line[4]) == pytest.approx(results[0], abs=1e-3)
    assert ["--lr", "0.01", "0.001"] in [line.split() for line in out.splitlines()]
    assert "Not of like with like" not in out
