"""The ledger holds what runs have recorded, and nothing else."""

import json
import shutil
import subprocess

import pytest

from ssljax import InputError, ledger, record, Run, train
from tests.conftest import ROOT
from tests.tiny import tiny


def rows():
    return json.loads((ledger.HERE / "ledger.json").read_text())


def test_the_table_is_the_one_of_the_rows():
    page = (ledger.HERE / "README.md").read_text()
    assert ledger.render(page, rows()) == page, "run python -m ssljax.ledger"


def test_no_row_was_changed_by_hand():
    for row in rows():
        assert row["sha256"] == ledger.digest_of_row(row)
        assert len(row["seeds"]) == len(row["ours"][row["numbers"][0]]) >= 1


def test_commands_do_not_say_where_a_run_was_kept():
    assert not [
        word for row in rows() for word in row["command"] if word.startswith(("--run.workdir", "/"))
    ]
    command = ["x.py", "--a", "1", "--run.workdir", "/here", "--b", "--run.workdir=/there", "c"]
    assert ledger.without_workdir(command) == ["x.py", "--a", "1", "--b", "c"]


def test_rows_are_of_commits_of_this_history():
    if (
        subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "--is-shallow-repository"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        != "false"
    ):
        pytest.skip("no whole git history here")
    git = ["git", "-C", ROOT]
    commits = {commit for row in rows() for commit in row["commits"]}
    there = {c for c in commits if not subprocess.run([*git, "cat-file", "-e", c]).returncode}
    if not there:
        pytest.skip("a fork without the history in which the rows were measured")
    for commit in commits:
        ancestor = subprocess.run([*git, "merge-base", "--is-ancestor", commit, "HEAD"])
        assert ancestor.returncode == 0, commit


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their seed."""
    root = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setattr(record, "commit", lambda: "0123456789")
    for seed in (0, 1):
        train(
            tiny(num_steps=8),
            Run(workdir=str(root / str(seed)), seed=seed),
            {"num_steps": 8, "data": "digits"},
        )
    patch.undo()
    return root


@pytest.fixture
def page(tmp_path):
    (tmp_path / "README.md").write_text(f"before\n{ledger.START}\n{ledger.END}\nafter\n")
    return tmp_path


def add(page, *runs, **kwargs):
    ledger.write(runs, ("test/error",), "0.1 (somebody, 2020)", "a note", here=page, **kwargs)
    return (page / "README.md").read_text()


def test_a_row_is_written_from_runs(runs, page):
    text = add(page, runs / "0", runs / "1")
    results = [
        json.loads((runs / s / "results.json").read_text())["results"]["test/error"][0]
        for s in "01"
    ]
    mean = sum(results) / 2
    half = 12.706 * abs(results[0] - results[1]) / 2  # t(0.975, 1) times s / sqrt(2).
    assert (
        f"**{mean:.2f} ± {half:.2f}**" in text
        and "2 seeds. a note" in text
        and "0.1 (somebody, 2020)" in text
    )
    assert text.startswith("before") and text.endswith("after\n")
    assert add(page, runs / "0", runs / "1") == text  # In place of the old one.
    more = add(page, runs / "0", runs / "1", floors=("test/error",))
    assert (
        f"<br>test/error {mean:.2f} ± {half:.2f} |" in more and "<br>test/error" not in text
    )  # Among the floors.


def test_a_comparison_is_a_table_of_its_own(runs, page, tmp_path):
    with pytest.raises(InputError, match="--epochs"):
        add(page, runs / "0", comparison="Digits")
    made = {name: shutil.copytree(runs / "0", tmp_path / name) for name in ("worse", "better")}
    for add_to, (name, run) in zip((5.0, 1.0), made.items()):
        edit(
            run / "record.json",
            lambda r: (
                r["computes"].update(epochs=4, lr=add_to),
                r["launches"][-1].update(command=[f"{name}.py"]),
            ),
        )
        edit(
            run / "results.json",
            lambda r: (
                r.update(seconds=8.0),
                r["results"].update({"test/error": [-add_to]}),
                r["untrained"].update({"test/error": [add_to]}),
            ),
        )
        add(page, run, comparison="Digits")
    for change, name in (
        (lambda r: r.update(seeds=[7]), "seeds"),
        (lambda r: r["computes"].update(epochs=5), "--epochs"),
        (lambda r: r["computes"].update(batch_size=7), "--batch-size"),
    ):
        other = shutil.copytree(made["worse"], tmp_path / name)
        edit(other / ("results.json" if name == "seeds" else "record.json"), change)
        with pytest.raises(
            InputError, match=f"The rows of Digits have {name} [^;]*: give this one the same"
        ):
            add(page, other, comparison="Digits")
    text = add(page, runs / "1")
    lines = text.splitlines()
    first, second = (
        next(i for i, x in enumerate(lines) if x.startswith(f"| {name} "))
        for name in ("better", "worse")
    )
    assert "### Digits" in lines[:first] and first < second < lines.index("### All other results")
    assert lines[first].startswith(
        "| better | -1.00 | 2 s | a note | `better.py`"
    )  # 8 s of 4 epochs.
    assert lines[second + 1 : second + 3] == [
        "| *untrained: better* | 1.00 |  |  |  |",
        "| *untrained: worse* | 5.00 |  |  |  |",
    ]
    assert (
        text.count("better.py") == 1
        and ledger.render(text, json.loads((page / "ledger.json").read_text())) == text
    )


def test_a_changed_number_is_noticed(runs, page):
    add(page, runs / "0")
    row = json.loads((page / "ledger.json").read_text())[0]
    assert row["sha256"] == ledger.digest_of_row(row)
    row["ours"]["test/error"][0] += 0.001
    assert row["sha256"] != ledger.digest_of_row(row)
    text = (page / "README.md").read_text()
    assert ledger.render(text.replace("digits", "imagenet"), [row]) != text.replace(
        "digits", "imagenet"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a, b: (b / "results.json").unlink(), "not a finished run: it has no results.json"),
        (
            lambda a, b: edit(b / "record.json", lambda r: r["computes"].update(data="x")),
            "differ in more than their seeds",
        ),
        (
            lambda a, b: edit(a / "results.json", lambda r: r.update(untrained={})),
            "have no test/error",
        ),
        (lambda a, b: edit(b / "results.json", lambda r: r.update(seeds=[0])), "share seeds"),
        (
            lambda a, b: edit(b / "results.json", lambda r: r.update(step=3)),
            "not reached its last step",
        ),
        (
            lambda a, b: [
                edit(x / "record.json", lambda r: r["computes"].update(data="digits:validation"))
                for x in (a, b)
            ],
            "were evaluated on held-out training images .* run the command without :validation",
        ),
        (
            lambda a, b: edit(b / "record.json", lambda r: r["launches"][0].update(commit="abc+")),
            "isn't committed",
        ),
    ],
)
def test_runs_that_make_no_row(runs, page, tmp_path, change, message):
    a, b = (shutil.copytree(runs / s, tmp_path / s) for s in "01")
    change(a, b)
    with pytest.raises(InputError, match=message):
        add(page, a, b)
    assert not (page / "ledger.json").exists()


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
