"""The ledger holds what runs have recorded, and nothing else; its pages are made of it."""

import hashlib
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ssljax import InputError, ledger, record, Run, train
from ssljax.ledger import charts, commands, pages
from ssljax.ledger import rows as ledger_rows
from ssljax.ledger.__main__ import write
from ssljax.ledger.commands import commands_today
from tests.conftest import ROOT
from tests.test_commands import commands as commands_in
from tests.tiny import made_with, tiny

ROWS = ledger.read_rows()
NAMES = {ledger.name_of(r): r for r in ROWS}


@pytest.fixture(scope="module")
def today():
    """Today's command of each row, by the row's name."""
    return commands_today(ROWS)


def test_the_pages_are_the_ones_of_the_rows(today):
    made = pages.render((ledger.HERE / "README.md").read_text(), ROWS, today)
    there = [f"ledger/{file.name}" for file in (ledger.HERE / "ledger").iterdir()]
    pictures = {f"ledger/{name}.png" for name, r in NAMES.items() if r.get("picture")}
    assert sorted(there) == sorted(made.keys() - {"README.md"} | pictures)
    stale = [path for path, text in made.items() if (ledger.HERE / path).read_text() != text]
    assert not stale, "run python -m ssljax.ledger"


def test_every_command_is_parsed_by_todays_flags(today):
    cannot = {name: str(found) for name, found in today.items() if isinstance(found, InputError)}
    assert not cannot
    # What must be run before is parsed too, with the folder that the row's command reads.
    for words in {tuple(words) for r in ROWS for words in r["before"]}:
        make = commands.experiment(words[0].removesuffix(".py"))
        commands.settings_today(make, words[1:])
    for r in ROWS:
        flags = [word for word in r["command"] if word.startswith("runs/")]
        folders = [words[words.index("--run.workdir") + 1] for words in r["before"]]
        assert set(folders) <= set(flags)


def test_a_page_has_the_command_by_todays_flags_and_as_it_was_measured():
    r = NAMES["simclr-fashion_mnist"]
    text = pages.row_page({**r, "before": [["bert.py", "--x", "1"]]}, ["simclr.py", "--lr", "1"])
    assert list(commands_in(text)) == [
        ("bert", ("--x", "1")),
        ("simclr", ("--lr", "1")),
        ("simclr", tuple(r["command"][1:])),
    ]
    assert text.index("by today's flags") < text.index("It was measured as")
    assert "measured as" not in pages.row_page(r, r["command"])


def test_what_must_be_run_before_is_said_by_todays_flags_too():
    first, other = NAMES["simclr-cifar10"], NAMES["finetune-cifar10-1-percent-from-simclr"]
    assert other["before"] == [[*first["command"], "--run.workdir", "runs/simclr_cifar10"]]
    today = {ledger.name_of(first): ["simclr.py", "--new", "1"], ledger.name_of(other): ["x.py"]}
    readme = f"{pages.START}{pages.END}"
    page = pages.render(readme, [first, other], today)[f"ledger/{ledger.name_of(other)}.md"]
    assert list(commands_in(page))[:2] == [
        ("simclr", ("--new", "1", "--run.workdir", "runs/simclr_cifar10")),
        ("x", ()),
    ]


def test_commands_on_pages_can_be_pasted(today):
    for name in NAMES:
        page = (ledger.HERE / "ledger" / f"{name}.md").read_text()
        block = page.partition("```sh\n")[2].partition("```")[0]
        *_, (method, words) = commands_in(block)
        assert [f"{method}.py", *words] == list(today[name])
        assert max(map(len, block.splitlines())) <= 88


def test_a_setting_whose_default_has_changed_is_added_to_the_command():
    r = NAMES["simclr-fashion_mnist"]
    settings = {
        "temperature": 0.123,
        "data": "digits",
        "view": {"flip": 0.0, "view_size": 24},
        "head": {"norm": False},
        "encoder": {"class": "ResNet", "depth": 50},
    }
    command = ["simclr.py", "--epochs", "5", "--run.seeds", "3"]
    made = commands.command_today({**r, "command": command, "computes": settings})
    given = commands.settings_today(commands.experiment("simclr"), made[1:])
    wanted = record.flat(settings)
    assert {k: given[k] for k in wanted} == wanted
    assert made[-3:] == ["encoder:res-net", "--encoder.depth", "50"]
    assert {"--head.no-norm", "--epochs"} <= set(made)
    for lost in ({"no_such": 1}, {"view": {"no_such": 1}}):
        with pytest.raises(InputError, match="has no --.*no-such 1 today"):
            commands.command_today({**r, "command": command, "computes": lost})
    with pytest.raises(InputError, match="There is no flag --no-such"):
        commands.command_today({**r, "command": [*command, "--no-such", "1"]})


def test_a_flag_that_was_renamed_is_said_by_its_new_name(monkeypatch):
    r = NAMES["simclr-fashion_mnist"]
    old = {**r, "command": ["simclr.py", "--softness", "0.3"], "computes": {"softness": 0.3}}
    monkeypatch.setattr(commands, "RENAMED", {"simclr": {"softness": "temperature"}})
    assert commands.command_today(old) == ["simclr.py", "--temperature", "0.3"]


def test_settings_that_had_other_names():
    of_row = {"crop": 0.2, "view_size": 24, "lr": 0.1, "run": {"seed": 0}}
    assert commands.settings("simclr", of_row) == {
        "view.crop": 0.2,
        "view.view_size": 24,
        "lr": 0.1,
    }
    of_row = {"view": {"crop": 0.2}, "num_views": 2}
    assert commands.settings("lejepa", of_row) == {"crops.view.crop": 0.2, "crops.large": 2}
    assert commands.settings("byol", of_row) == {"view.crop": 0.2, "num_views": 2}


def test_no_row_was_changed_by_hand():
    for r in ledger_rows.stored_rows():
        assert r["sha256"] == ledger_rows.digest_of_row(r)
        assert len(r["seeds"]) == len(r["ours"][r["numbers"][0]]) >= 1
    for name, r in NAMES.items():
        if r.get("picture"):
            picture = (ledger.HERE / "ledger" / f"{name}.png").read_bytes()
            assert hashlib.sha256(picture).hexdigest() == r["picture"]["sha256"]


def test_tables_are_narrow_sorted_and_lead_to_pages():
    text = (ledger.HERE / "README.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text.partition(pages.START)[2].split(pages.END)[0], re.M)
    named = []
    for lines in (t.splitlines() for t in tables):
        heads = lines[0].strip("| ").split(" | ")
        assert len(heads) <= 8
        names = [re.search(r"\(ledger/(.*)\.md\)", line)[1] for line in lines[2:]]
        named += names
        scales = {}
        for name, line in zip(names, lines[2:]):
            r = NAMES[name]
            values = r["ours"][r["numbers"][0]]
            cells = dict(zip(heads, line.strip("| ").split(" | ")))
            assert cells["ours"].startswith(f"**{np.mean(values):.2f}")
            scales.setdefault((r["numbers"][0], r["computes"].get("data")), []).append(
                np.mean(values) * (-1 if r["better"] == "higher" else 1)
            )
        assert all(means == sorted(means) for means in scales.values())
        assert max(len(re.sub(r"\(ledger/\S+?\)", "", line)) for line in lines) < 130
    assert sorted(named) == sorted(NAMES)
    links = re.findall(r"^- \[.*\]\(#(.*)\)$", text, re.M)
    heads = re.findall(r"^## (.*)$", text, re.M)
    assert set(links) <= {pages.anchor(h) for h in heads} and len(links) == len(tables)


def test_apologies_are_said_once():
    text = "".join(r["note"] + r["paper"] for r in ROWS)
    assert not re.search(r"upper bound|none published|jobs|One seed\.|on one core", text)


def test_charts_are_whole_svg_of_readable_text():
    for file in (ledger.HERE / "ledger").glob("*.svg"):
        root = ElementTree.parse(file).getroot()
        assert root.find("{*}title").text and root.find("{*}desc").text
        width, height = float(root.get("width")), float(root.get("height"))
        for text in root.findall(".//{*}text"):
            kind, x, n = text.get("class", ""), float(text.get("x")), len(text.text)
            assert 0 < float(text.get("y")) < height
            size = charts.CHARACTER * n
            left = x - size if "end" in kind else x - size / 2 if "middle" in kind else x
            if "title" not in kind:
                assert left >= -20 and left + size <= width + 20, (file.name, text.text)
        sizes = [int(s) for s in re.findall(r"(\d+)px", root.find("{*}style").text)]
        assert min(sizes) >= 12


def test_a_bar_is_as_long_as_its_gain_over_the_floor():
    bars = [
        charts.Bar("a", 80.0, 2.0, 60.0, "80.00 ± 2.00", 90.0),
        charts.Bar("b", 50.0, 0.0, 60.0, "50.00"),
    ]
    root = ElementTree.fromstring(charts.bar_chart("T", [charts.Panel("n, d", "higher", bars)]))
    a, b = [x for x in root.findall(".//{*}rect") if x.get("class") in ("better", "worse")][:2]
    assert (a.get("class"), b.get("class")) == ("better", "worse")
    number = lambda x, of: float(x.get(of))
    assert number(a, "width") == pytest.approx(2 * number(b, "width"), abs=0.2)
    assert number(a, "x") == pytest.approx(number(b, "x") + number(b, "width"), abs=0.2)
    floors = [x for x in root.findall(".//{*}line") if x.get("class") == "floor"]
    assert {number(x, "x1") for x in floors} == {number(a, "x")}
    scale = number(a, "width") / 20
    ends = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", root.find(".//{*}path").get("d"))
    assert float(ends[2]) - float(ends[1]) == pytest.approx(4 * scale, abs=0.2)
    paper = next(x for x in root.findall(".//{*}path") if x.get("class") == "paper")
    at = float(re.match(r"M([\d.]+)", paper.get("d"))[1])
    assert at - number(a, "x") == pytest.approx(30 * scale, abs=0.2)
    lower = charts.bar_chart("T", [charts.Panel("n, d", "lower", bars)])
    kinds = re.findall('rect class="(better|worse)"', lower)
    assert kinds[:2] == ["worse", "better"]


def test_commands_do_not_say_where_a_run_was_kept():
    assert not [
        word for r in ROWS for word in r["command"] if word.startswith(("--run.workdir", "/"))
    ]
    command = ["x.py", "--a", "1", "--run.workdir", "/here", "--b", "--run.workdir=/there", "c"]
    command.append("--run.evaluate")
    assert ledger_rows.without_workdir(command) == ["x.py", "--a", "1", "--b", "c"]


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
    commits = {commit for r in ROWS for commit in r["commits"]}
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
            made_with(tiny(num_steps=8), {"num_steps": 8, "data": "digits"}),
            Run(workdir=str(root / str(seed)), seed=seed),
        )
    patch.undo()
    return root


@pytest.fixture
def page(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(f"before\n{pages.START}\n{pages.END}\nafter\n")
    # The rows' method is a program of the tests.
    monkeypatch.setattr(commands, "experiment", lambda method: tiny)
    return tmp_path


def add(page, *runs, **kwargs):
    write(
        runs,
        ("test/error",),
        **{"paper": "somebody, 2020", "note": "a note", "better": "lower"} | kwargs,
        here=page,
    )
    return (page / "README.md").read_text()


def only_page(page):
    (file,) = (page / "ledger").glob("*.md")
    return file.read_text()


def test_a_row_is_written_from_runs(runs, page):
    text = add(page, runs / "0", runs / "1", paper_numbers={"test/error": 0.5}, shared=True)
    found = [json.loads((runs / s / "results.json").read_text()) for s in "01"]
    results, untrained, seconds = (
        [of(r) for r in found]
        for of in (
            lambda r: r["results"]["test/error"][0],
            lambda r: r["untrained"]["test/error"][0],
            lambda r: r["seconds"],
        )
    )
    mean = sum(results) / 2
    half = 12.706 * abs(results[0] - results[1]) / 2  # t(0.975, 1) times s / sqrt(2).
    floor, took = sum(untrained) / 2, sum(seconds) / 2 / 60
    cells = [f"**{mean:.2f} ± {half:.2f}**", "0.5", f"{mean - 0.5:+.2f}", f"{floor:.2f}", "2"]
    name = ledger.name_of(json.loads((page / "ledger.json").read_text())[0])
    line = next(x for x in text.splitlines() if f"(ledger/{name}.md)" in x)
    line = line.replace("\u00a0", " ")
    assert line.split(" | ")[1:-1] == cells and line.endswith(f"| ≤ {took:.2f} |")
    assert text.startswith("before") and text.endswith("after\n")
    assert "## digits: test/error" in text and "`test/error`, lower is better" in text
    of_row = only_page(page)
    for part in ("somebody, 2020", "a note", "0123456789", *(f"{x:.6g}" for x in results)):
        assert part in of_row
    again = add(page, runs / "0", runs / "1", paper_numbers={"test/error": 0.5}, shared=True)
    assert again == text  # In place of the old one.


def test_a_row_keeps_its_curves_its_evaluations_time_and_a_picture(runs, page, tmp_path):
    run = shutil.copytree(runs / "0", tmp_path / "run")
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "samples_grid.png").write_bytes(b"a picture")
    add(page, run, picture="samples_grid")
    (r,) = json.loads((page / "ledger.json").read_text())
    assert list(r["curves"]) == ["loss", "grad_norm", "twice"] and r["curves"]["loss"]["steps"] == [
        8
    ]
    rows = [json.loads(x) for x in (run / "evaluations.jsonl").read_text().splitlines()]
    assert r["evaluation_seconds"] == [sum(x["seconds"] for x in rows if x["step"] == 8)]
    name = ledger.name_of(r)
    assert (page / "ledger" / f"{name}.png").read_bytes() == b"a picture"
    text = only_page(page)
    assert f"({name}.png)" in text and f'src="{name}.svg"' in text
    assert (page / "ledger" / f"{name}.svg").exists()
    with pytest.raises(InputError, match="has no picture other; it has .*samples_grid"):
        add(page, run, picture="other")
    # Of a run of an older version, which says neither.
    edit(run / "record.json", lambda r: [r.pop(k, None) for k in ("evals", "defaults")])
    (run / "evaluations.jsonl").unlink()
    (run / "metrics.jsonl").unlink()
    add(page, run)
    (r,) = json.loads((page / "ledger.json").read_text())
    assert r["curves"] == {} and r["evaluation_seconds"] == [0.0]
    assert not list((page / "ledger").glob(f"{name}.*g")) and "evaluation" not in only_page(page)


def test_runs_that_a_run_starts_from_are_named(runs, page, tmp_path, monkeypatch):
    run = shutil.copytree(runs / "0", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "1", tmp_path / "runs" / "first")
    edit(
        run / "record.json",
        lambda r: (
            r["computes"].update(pretrained="runs/first"),
            r["launches"][-1].update(command=["tiny.py", "--num-steps", "8"]),
        ),
    )
    command = json.loads((runs / "1" / "record.json").read_text())["launches"][-1]["command"]
    (before,) = ledger_rows.first_commands({"pretrained": "runs/first", "data": "digits"})
    assert before == [*ledger_rows.without_workdir(command), "--run.workdir", "runs/first"]
    add(page, run, before=("a.py --b 'c d' --run.workdir runs/first",))
    (r,) = json.loads((page / "ledger.json").read_text())
    assert r["before"] == [["a.py", "--b", "c d", "--run.workdir", "runs/first"]]
    text = only_page(page)
    assert "experiments/a.py --b 'c d' --run.workdir runs/first\n" in text
    # The function has no such argument.
    assert "tiny.py has no --data digits today: check out commit 0123456789" in text
    assert "experiments/tiny.py --num-steps 8\n" in text


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
                r["results"].update({"test/error": [-add_to]}),
                r["untrained"].update({"test/error": [add_to]}),
            ),
        )
        add(page, run, comparison="Digits", better="higher")
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
    text = add(page, runs / "1", task="All others")
    lines = text.splitlines()
    first, second = (
        next(i for i, x in enumerate(lines) if x.startswith(f"| [{name}]"))
        for name in ("better", "worse")
    )
    assert lines.index("## Digits") < first == second - 1 < lines.index("## All others")
    assert lines[first].split(" | ")[1:3] == ["**-1.00**", "1.00"]  # Ours, and its floor.
    assert lines[second].split(" | ")[1:3] == ["**-5.00**", "5.00"]
    assert "All: 4 epochs, batches of 32, seeds 0" in text


def test_a_changed_number_is_noticed(runs, page):
    add(page, runs / "0")
    (r,) = json.loads((page / "ledger.json").read_text())
    assert r["sha256"] == ledger_rows.digest_of_row(r)
    r["ours"]["test/error"][0] += 0.001
    assert r["sha256"] != ledger_rows.digest_of_row(r)
    (r,) = ledger.read_rows(page)
    name = ledger.name_of(r)
    made = pages.render((page / "README.md").read_text(), [r], commands_today([r]))
    on_disk = {path: (page / path).read_text() for path in made}
    assert made == on_disk
    number = f"{r['ours']['test/error'][0]:.2f}"
    assert all(number in on_disk[path] for path in made if not path.endswith(f"{name}.svg"))
    edited = on_disk["README.md"].replace(number, "9.87")
    assert pages.render(edited, [r], commands_today([r]))["README.md"] == on_disk["README.md"]


def test_files_of_no_row_are_removed(runs, page):
    add(page, runs / "0", variant="first")
    files = {file.name for file in (page / "ledger").iterdir()}
    add(page, runs / "0", variant="second")
    there = {file.name for file in (page / "ledger").iterdir()}
    assert {f.replace("first", "second") for f in files} == there


def test_rows_need_names_of_their_own(runs, page, tmp_path):
    add(page, runs / "0")
    run = shutil.copytree(runs / "1", tmp_path / "run")
    edit(run / "record.json", lambda r: r["computes"].update(width=16))
    before = (page / "ledger.json").read_text()
    with pytest.raises(InputError, match="Two rows have the name .*: give one .* --variant"):
        add(page, run)
    assert (page / "ledger.json").read_text() == before
    assert "of width 16" in add(page, run, variant="of width 16")
    with pytest.raises(InputError, match="don't agree which way test/error is better"):
        add(page, run, variant="of width 16", better="higher")
    with pytest.raises(InputError, match="doesn't say which way test/error is better"):
        add(page, run, better="")


def test_names_of_pages():
    r = {"method": "word2vec", "computes": {"data": "brown.txt,gutenberg.txt"}, "variant": ""}
    assert ledger.name_of(r) == "word2vec-brown-gutenberg"
    r = {"method": "iwae", "computes": {"data": "mnist"}, "variant": "k = 5, 10 % of labels"}
    assert ledger.name_of(r) == "iwae-mnist-k-5-10-percent-of-labels"


def test_the_file_of_rows_keeps_lists_of_numbers_on_a_line():
    stored = ledger_rows.stored_rows()
    text = ledger_rows.rows_as_json(stored)
    assert text == (ledger.HERE / "ledger.json").read_text()
    assert json.loads(text) == stored
    odd = [{"a": [1, -2.5e-07], "b": ["[1,  2]", "x"], "c": [[1, 2], [3]], "d": [None, 1.0]}]
    assert json.loads(ledger_rows.rows_as_json(odd)) == odd


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
