"""Report of a run: its numbers, curves, figures and record, by content and in a browser."""

import base64
from dataclasses import replace
from html.parser import HTMLParser
import io
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from ssljax import figures, logs, main, report, Run, train
from ssljax.evals.pictures import FeatureMap
from ssljax.evals.texts import set_apart, split_apart
from tests.tiny import tiny

HOSTILE = '</script><script>alert("ü")</script>'
JUDGED = {
    "knn": {
        "better": {"accuracy": "higher"},
        "floors": {"accuracy": "pixels"},
        "captions": {"nearest": "First column: the <original>."},
    }
}
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text in each; tags must be balanced."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, dict, list[str]]] = []
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def texts(self, tag, **attributes):
        wanted = {k.rstrip("_"): v for k, v in attributes.items()}
        return [
            "".join(text)
            for name, found, text in self.elements
            if name == tag and wanted.items() <= found.items()
        ]

    @property
    def data(self):
        (text,) = self.texts("script", id="drawn")
        return json.loads(text)


def cells(page, section):
    """Rows of the first table of a section, as texts."""
    at = [i for i, e in enumerate(page.elements) if e[:2] == ("section", {"id": section})]
    rows, inside = [], page.elements[at[0] :]
    for tag, _, text in inside[1:]:
        if tag in ("section", "details"):
            break
        if tag == "tr":
            rows.append([])
        elif tag in ("td", "th") and rows:
            rows[-1].append("".join(text))
    return rows


def picture(value=0, size=8):
    return np.full((size, size, 3), value, np.uint8)


def recorded(
    workdir: pathlib.Path,
    *,
    knn=(25.0, 40.0, 44.0, 47.5),
    judged=JUDGED,
    seeds=1,
    **changes,
) -> pathlib.Path:
    """Folder of a run of 300 steps that was evaluated at 0, 100, 200 and 300."""
    workdir.mkdir(parents=True)
    record = {
        "computes": {
            "data": "digits",
            "lr": 0.002,
            "view": {"class": "Views", "crop": 0.2},
            "run": {"seed": 0, "seeds": seeds},
        },
        "defaults": {"data": "digits", "lr": 0.001, "view.class": "Views", "view.crop": 0.2},
        "evals": judged,
        "launches": [
            {
                "start": 0,
                "time": "2026-11-28T10:00:00Z",
                "command": ["simclr.py", "--lr", "0.002"],
                "commit": "abc0123456",
                "python": "3.11.7",
                "versions": {"jax": "0.10.2"},
                "hardware": "2-core CPU",
            }
        ],
        "read": {"digits": {"training images": {"count": 1437, "digest": "00ff"}}},
        "lanes": "vmap",
        "num_steps": 300,
        "batch_size": 64,
        "files": {},
        "kept": None,
        "experiment": "simclr.py",
    } | changes
    (workdir / "record.json").write_text(json.dumps(record))
    for step, value in zip((0, 100, 200, 300), knn):
        of_seeds = [value + i for i in range(seeds)]
        for seed, number in enumerate(of_seeds):
            numbers = {"accuracy": number, "pixels": 46.25, "neighbours": 20.0}
            row = {"step": step, "seed": seed, "evaluator": "knn", "numbers": numbers}
            logs.append_row(workdir / "evaluations.jsonl", row)
        if step:
            row = {"step": step, "loss": [400.0 / step] * seeds, "seconds": step / 10}
            speed = {"steps_per_second": 10.0, "examples_per_second": 640.0}
            logs.append_row(workdir / "metrics.jsonl", row | speed)
        row = {"step": step, "knn/accuracy": of_seeds, "knn/pixels": [46.25] * seeds}
        logs.append_row(workdir / "metrics.jsonl", row | {"knn/neighbours": [20.0] * seeds})
    return workdir


def with_figures(workdir: pathlib.Path, names=("cat", "dog"), text="alone") -> pathlib.Path:
    rng = np.random.default_rng(0)
    for step in (0, 100, 200, 300):
        figures.write_picture(workdir, step, "knn/nearest", picture(step // 2))
        figures.write_text(workdir, step, "knn/words", f"{text} {step}")
        points, labels = rng.normal(size=(20, 2)), np.arange(20) % len(names)
        images = rng.integers(0, 256, (20, 8, 8, 1), np.uint8)
        found = FeatureMap(points.astype(np.float32), labels, names, images)
        figures.write_map(workdir, step, "features/map", found, picture())
    return workdir


def read_page(workdir) -> Page:
    return Page(report.write_report(workdir).read_text(encoding="utf-8"))


# Numbers and curves.


def test_results_have_floors_untrained_numbers_and_directions(tmp_path):
    page = read_page(recorded(tmp_path / "run"))
    heads, first, second = cells(page, "results")
    assert heads == ["", "trained", "untrained", "floor", ""]
    assert first == ["knn/accuracy ↑", "47.50", "25.00", "46.25", "pixels"]
    assert second == ["knn/neighbours", "20", "20", "", ""]
    (verdict,) = page.texts("p", class_="verdict")
    assert "47.50" in verdict and "No number is worse" in verdict


def test_what_held_out_examples_have_is_a_column_and_a_line(tmp_path):
    judged = {"knn": JUDGED["knn"] | {"real": {"accuracy": "neighbours"}}}
    page = read_page(recorded(tmp_path / "run", judged=judged))
    heads, *rows = cells(page, "results")
    assert heads == ["", "trained", "untrained", "floor", "", "real"]
    assert rows == [["knn/accuracy ↑", "47.50", "25.00", "46.25", "pixels", "20.00"]]
    assert "held-out images 20.00" in page.texts("p", class_="verdict")[0]
    knn = page.data["curves"][-1]
    assert knn["lines"] == {"pixels": 46.25, "neighbours": 20, "untrained": 25}


def test_what_is_worse_than_its_floor_is_named(tmp_path):
    page = read_page(recorded(tmp_path / "run", knn=(25.0, 40.0, 44.0, 30.0)))
    (verdict,) = page.texts("p", class_="verdict")
    assert "Worse than it should be: knn/accuracy than its floor, pixels." in verdict
    assert page.texts("td", class_="number first worse") == ["30.00"]


def test_warnings_of_evaluators_are_shown(tmp_path):
    """As of a collapse, which no number may be worse for."""
    workdir = recorded(tmp_path / "run")
    content = {"step": 300, "seeds": [0], "seconds": 1.0, "untrained": {}}
    content |= {"results": {"knn/accuracy": [50.0], "knn/pixels": [46.25]}}
    content |= {"warnings": ["! The features have <collapsed>."]}
    (workdir / "results.json").write_text(json.dumps(content))
    (verdict,) = read_page(workdir).texts("p", class_="verdict")
    assert "The features have <collapsed>." in verdict and "No number is worse" not in verdict


def test_intervals_over_seeds(tmp_path):
    page = read_page(recorded(tmp_path / "run", seeds=3))
    # 48.5 ± t(2, .975) · 1 / √3
    assert cells(page, "results")[1][1] == "48.5 ± 2.5"
    (curve,) = [c for c in page.data["curves"] if c["name"] == "knn/accuracy"]
    assert curve["low"] == [25, 40, 44, 47.5] and curve["high"] == [27, 42, 46, 49.5]
    assert curve["mean"] == [26, 41, 45, 48.5]


def test_numbers_of_the_ledger_and_the_paper_are_columns(tmp_path, monkeypatch):
    row = {"seeds": [0, 1, 2], "date": "2026-01-02", "paper": "49.1 (<their> table 1)"}
    row |= {"ours": {"knn/accuracy": [46.0, 47.0, 48.0]}, "paper_numbers": {"knn/accuracy": 49.1}}
    monkeypatch.setattr("ssljax.summary.ledger_row", lambda record: row)
    page = read_page(recorded(tmp_path / "run"))
    heads, first, second = cells(page, "results")
    assert heads == ["", "trained", "untrained", "floor", "", "ledger", "paper"]
    assert first[-2:] == ["47.00 ± 2.48", "49.1"] and second[-2:] == ["", ""]
    note = page.texts("p", class_="note")[0]
    assert "3 seeds at these settings, 2026-01-02. Paper: 49.1 (<their> table 1)." in note


def test_curves_of_training_come_first_and_have_floors_as_lines(tmp_path):
    found = read_page(recorded(tmp_path / "run")).data["curves"]
    assert [c["name"] for c in found] == [
        "loss",
        "examples_per_second",
        "knn/accuracy",
    ]  # Not the number of neighbours, which never changes.
    loss, speed, knn = found
    assert loss["steps"] == [100, 200, 300] and loss["mean"] == [4, 2, pytest.approx(4 / 3)]
    assert knn["mean"] == [25, 40, 44, 47.5] and "low" not in knn
    assert knn["lines"] == {"pixels": 46.25, "untrained": 25}
    assert speed["counts"] and not knn["counts"]


def test_numbers_of_two_evaluations_are_in_the_table_alone(tmp_path):
    page = read_page(recorded(tmp_path / "run", knn=(25.0, 40.0)))
    assert [c["name"] for c in page.data["curves"]] == ["loss", "examples_per_second"]
    assert cells(page, "results")[1][1] == "40.00"
    assert any("step 100 of 300" in fact for fact in page.texts("li"))
    assert any("--run.eval-every N" in note for note in page.texts("p", class_="note"))


def test_long_curves_are_means_of_stretches_with_a_band():
    rng = np.random.default_rng(0)
    values = rng.normal(size=1234).tolist()
    values[700] = float("nan")
    rows = [{"step": i + 1, "loss": v, "seconds": 1.0} for i, v in enumerate(values)]
    (curve,) = report.curves(rows, {}, 1234)
    assert len(curve["steps"]) == report.POINTS and curve["steps"][-1] == 1234
    start = 0
    for step, mean, low, high in zip(*(curve[k] for k in ("steps", "mean", "low", "high"))):
        part = values[start:step]
        np.testing.assert_allclose(mean, np.mean(part))
        np.testing.assert_allclose([low, high], [np.min(part), np.max(part)])
        assert len(part) in (2, 3)
        start = step


def test_report_before_the_first_step_has_the_untrained_numbers(tmp_path):
    page = read_page(recorded(tmp_path / "run", knn=(25.0,)))
    assert cells(page, "results")[0] == ["", "untrained", "floor", ""]
    assert cells(page, "results")[1] == ["knn/accuracy ↑", "25.00", "46.25", "pixels"]
    assert "Nothing has been evaluated since training began" in page.texts("p", class_="verdict")[0]


def test_settings_that_differ_and_what_was_read(tmp_path):
    page = read_page(recorded(tmp_path / "run"))
    assert cells(page, "settings") == [["setting", "value", "default"], ["lr", "0.002", "0.001"]]
    assert cells(page, "data")[1] == ["digits", "training images", "1,437", "00ff"]
    record = dict(cells(page, "record"))
    assert record["command"] == "simclr.py --lr 0.002" and record["commit"] == "abc0123456"
    assert record["versions"] == "jax 0.10.2" and record["hardware"] == "2-core CPU"


def test_band_of_the_reference_is_drawn(tmp_path):
    """As of a run with seeds, in a folder; where that has gone, nothing is drawn."""
    other = recorded(tmp_path / "other", seeds=3)
    page = read_page(recorded(tmp_path / "run", reference=str(other)))
    loss = page.data["curves"][0]
    assert loss["reference"] == {k: [4, 2, 1.3333] for k in ("least", "largest")} | {
        "steps": [100, 200, 300]
    }
    assert any(f"the reference, {other}." in note for note in page.texts("p", class_="note"))
    shutil.rmtree(other)
    assert "reference" not in read_page(tmp_path / "run").data["curves"][0]


# Figures.


def test_figures_of_many_steps_are_thinned_out(tmp_path):
    for step in range(0, 1000, 10):
        figures.write_picture(tmp_path, step, "a/b", picture(step // 10))
        kept = list(figures.kept_figures(tmp_path)["a_b"])
        assert kept[0] == 0 and kept[-1] == step and len(kept) <= figures.MOST
        assert len(kept) == min(step // 10 + 1, figures.MOST)
        gaps = np.diff(kept)
        assert not step or gaps.max() <= 2.5 * max(10, step / (figures.MOST - 1)), kept
    for step, file in figures.kept_figures(tmp_path)["a_b"].items():
        assert np.asarray(Image.open(file)).max() == step // 10
    assert np.asarray(Image.open(tmp_path / "figures" / "a_b.png")).max() == 99
    figures.drop_after(tmp_path, 500)
    assert max(figures.kept_figures(tmp_path)["a_b"]) <= 500


def test_thumbnails_are_the_images_in_their_order():
    images = np.arange(50, dtype=np.uint8)[:, None, None, None] * 5 + np.zeros((1, 4, 2, 3), "u1")
    sheet = np.asarray(figures.thumbnails(images))
    assert sheet.shape == (2 * figures.CELL, figures.SHEET * figures.CELL, 3)
    for i in range(50):
        row, column = divmod(i, figures.SHEET)
        cell = sheet[row * figures.CELL :, column * figures.CELL :][: figures.CELL, : figures.CELL]
        assert (cell[:, 8:24] == 5 * i).all()  # Twice as high as wide.
        assert not cell[:, :8].any() and not cell[:, 24:].any()


def test_feature_maps_keep_their_shape(tmp_path):
    points = np.array([[0, 0], [10, 0], [10, 5], [0, 5]], np.float32)
    found = FeatureMap(points, np.zeros(4, int), ["a"])
    figures.write_map(tmp_path, 3, "features/map", found, picture())
    (file,) = figures.kept_figures(tmp_path)["features_map"].values()
    content = json.loads(file.read_text())
    assert content["points"] == [[0, 0.25], [1, 0.25], [1, 0.75], [0, 0.75]]
    one = FeatureMap(np.ones((1, 2)), np.zeros(1, int), ["a"])  # All points in one place.
    figures.write_map(tmp_path, 3, "features/map", one, picture())
    assert json.loads(file.read_text())["points"] == [[0.5, 0.5]]


def test_pictures_of_the_first_and_last_steps_are_embedded(tmp_path):
    workdir = recorded(tmp_path / "run")
    for step in range(0, 300, 20):
        figures.write_picture(workdir, step, "knn/nearest", picture(step // 2))
        figures.write_picture(workdir, step, "knn/views", picture(7))
    page = read_page(workdir)
    images = [a for tag, a, _ in page.elements if tag == "img" and "src" in a]
    steps, seen = [], 0
    for image in images:
        kind, content = image["src"].split(",")
        assert kind == "data:image/png;base64"
        level = int(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).max())
        if "nearest" in image["alt"]:
            steps.append(2 * level)
            assert f"step {2 * level}" in image["alt"]
        else:
            seen += level == 7
    assert len(steps) == report.SHOWN and (steps[0], steps[-1]) == (0, 280) and seen == 1
    assert "First column: the <original>." in page.texts("figcaption")


def test_animations_of_the_first_and_last_steps_are_embedded(tmp_path):
    workdir = recorded(tmp_path / "run")
    for step in (0, 300):
        frames = np.stack([picture(level + step // 4) for level in (10, 20, 30)])
        figures.write_picture(workdir, step, "knn/moving", frames)
    images = [a for tag, a, _ in read_page(workdir).elements if tag == "img" and "src" in a]
    assert len(images) == 2
    for image, step in zip(images, (0, 300), strict=True):
        kind, content = image["src"].split(",")
        assert kind == "data:image/gif;base64" and f"step {step}" in image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(content))) as file:
            levels = []
            for i in range(file.n_frames):
                file.seek(i)
                levels.append(int(np.asarray(file.convert("L")).max()))
        np.testing.assert_allclose(levels, np.array([10, 20, 30]) + step // 4, atol=1)


def test_prompts_are_marked_and_samples_set_apart(tmp_path):
    texts = ["⟦import n⟧umpy", "a ⟦b⟧ c", "― 1 of 2 ―", "⟦never"]
    assert split_apart(set_apart(texts)) == texts and split_apart("one") == ["one"]
    workdir = recorded(tmp_path / "run")
    figures.write_text(workdir, 100, "knn/words", set_apart(texts))
    figures.write_text(workdir, 200, "knn/words", "later")
    page = read_page(workdir)
    assert page.texts("mark") == ["import n"]
    assert page.texts("pre") == ["later", "import numpy", *texts[1:]]
    opened = [a for tag, a, _ in page.elements if tag == "details" and "open" in a]
    assert len(opened) == 1 and page.texts("details", **opened[0])[0] == "step 200later"


# Hostile names.


def test_hostile_names_are_shown_as_they_are(tmp_path):
    """A class, a folder, an evaluator, a setting and a text cannot end the element they are in."""
    judged = {HOSTILE: JUDGED["knn"] | {"captions": {"nearest": HOSTILE}}} | JUDGED
    workdir = recorded(
        tmp_path / "it's \"ü\" <b>&amp; 'x'",
        judged=judged,
        computes={"data": HOSTILE, "run": {"seed": 0, "seeds": 1}},
        read={HOSTILE: {"training images": {"count": 1, "digest": "x"}}},
    )
    with_figures(workdir, names=(HOSTILE, 'a"b'), text=HOSTILE)
    logs.append_row(workdir / "metrics.jsonl", {"step": 300, HOSTILE: 1.0, "seconds": 1.0})
    page = read_page(workdir)
    assert [a for tag, a, _ in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "drawn"},
        {},
    ]
    assert page.texts("title") == [f"simclr · {HOSTILE}"] and str(workdir) in page.texts("li")
    assert page.data["maps"][0]["names"] == [HOSTILE, 'a"b']
    assert HOSTILE in [curve["name"] for curve in page.data["curves"]]
    assert f"{HOSTILE} 300" in page.texts("pre")
    assert dict(cells(page, "record"))["folder"] == str(workdir.absolute())
    assert ["data", HOSTILE, "digits"] in cells(page, "settings")


def test_page_needs_nothing_else(tmp_path):
    page = read_page(with_figures(recorded(tmp_path / "run")))
    for tag, attributes, _ in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (tag, value)
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text and not re.search(r"url\((?!\$)", text)
    assert "default-src 'none'" in text


# In a run.


@pytest.mark.usefixtures("one_device")
def test_run_writes_its_report_as_it_goes_on(tmp_path, capsys):
    seen = []

    def sample(state):
        file = tmp_path / "report.html"
        seen.append(Page(file.read_text()).texts("li")[0] if file.exists() else "")
        return {"picture": picture(int(state.step)), "words": f"⟦step⟧ {int(state.step)}"}

    def sampled(num_steps: int = 10):
        exp = tiny(num_steps=num_steps)
        return replace(exp, evals={**exp.evals, "sample": sample})

    flags = ["--num-steps", "40", "--run.log-every", "5", "--run.eval-every", "10"]
    main(sampled, [*flags, "--run.workdir", str(tmp_path)])
    page = read_page(tmp_path)
    assert cells(page, "settings")[1:] == [["num_steps", "40", "10"]]
    assert "digits: 1,797 images in 10 classes, 1,437 to train, 360 to test" in page.texts("p")
    found = {c["name"]: c for c in page.data["curves"]}
    assert list(found) == ["loss", "twice", "grad_norm", "examples_per_second", "test/error"]
    assert found["loss"]["steps"] == list(range(5, 41, 5))
    assert found["test/error"]["steps"] == [0, 10, 20, 30, 40]
    assert all(x > 0 for x in found["grad_norm"]["mean"] + found["examples_per_second"]["mean"])
    rows = [r for r in logs.read_metrics(tmp_path) if "seconds" in r]
    for row in rows:
        np.testing.assert_allclose(row["examples_per_second"], 32 * row["steps_per_second"])
    spent = np.diff([0, *(r["seconds"] for r in rows)])[1:]
    np.testing.assert_allclose([5 / r["steps_per_second"] for r in rows[1:]], spent, rtol=1e-3)
    assert seen == ["", *(f"step {i} of 40" for i in (0, 10, 20, 30))]
    assert page.texts("li")[0] == "finished, 40 steps"
    assert page.texts("summary")[:5] == ["step 40", "step 30", "step 20", "step 10", "untrained"]
    assert "report.html" in capsys.readouterr().out


@pytest.mark.usefixtures("one_device")
def test_error_in_the_report_is_one_line(tmp_path, capsys, monkeypatch):
    def page(workdir):
        raise ValueError("several\nlines")

    monkeypatch.setattr(report, "page", page)
    train(tiny(num_steps=4), Run(workdir=str(tmp_path)))
    out = capsys.readouterr().out
    assert "Note: report.html was not written: ValueError: several lines\n" in out
    assert (tmp_path / "results.json").exists() and not (tmp_path / "report.html").exists()


def test_command_line(tmp_path, capsys):
    assert report.main([str(recorded(tmp_path / "run"))]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "report.html")
    assert report.main([str(tmp_path)]) == 2 and report.main([]) == 2
    assert "not a run's folder" in capsys.readouterr().err


# In a browser.

BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
ACT = """<script>
const card = document.querySelector(".card"), svg = card.querySelector("svg");
const before = svg.querySelector(".curve").getAttribute("d");
const at = svg.getBoundingClientRect();
const move = (clientX, clientY, to) =>
  to.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY}));
move(at.left + 52 + (at.width - 62) / 3, at.top + 50, svg);
const said = [card.querySelector(".top span").textContent];
const slider = document.getElementById("smoothing");
slider.value = "0.5";
slider.dispatchEvent(new Event("input"));
said.push(svg.querySelectorAll(".raw").length);
said.push(svg.querySelector(".curve").getAttribute("d") !== before);
const check = document.getElementById("logarithmic");
const linear = svg.querySelector(".curve").getAttribute("d");
check.click();
said.push(svg.querySelector(".curve").getAttribute("d") !== linear);
const map = document.querySelector(".map svg"), dot = map.querySelectorAll("circle")[5];
const place = dot.getBoundingClientRect();
move(place.left + place.width / 2, place.top + place.height / 2, map);
said.push(getComputedStyle(document.getElementById("tip")).display);
said.push(document.getElementById("tip").textContent);
said.push(document.querySelectorAll("circle.chosen").length);
const shown = document.querySelectorAll(".pictures .panes img");
document.querySelector(".strip button:nth-child(2)").click();
said.push(shown[1].alt, shown[0].alt);
document.body.setAttribute("data-said", JSON.stringify(said));
</script></body>"""


def browse(file: pathlib.Path, profile: pathlib.Path, *options: str) -> tuple[str, str]:
    """What headless Chromium prints of a page, and what is written to its console."""
    assert BROWSER
    base = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    base += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--window-size=1200,3000"]
    command = [BROWSER, *base, "--virtual-time-budget=2000", *options, file.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120)
    said = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), "\n".join(said)


@pytest.mark.skipif(not BROWSER, reason="needs chromium, Debian's package of that name")
def test_report_in_a_browser(tmp_path):
    """No error in the console; curves, maps and pictures are drawn, and answer the pointer."""
    workdir = with_figures(recorded(tmp_path / "a 'run' ü"), names=(HOSTILE, "dog"))
    file = report.write_report(workdir)
    acting = tmp_path / "acting.html"
    acting.write_text(file.read_text(encoding="utf-8").replace("</body>", ACT), encoding="utf-8")
    dom, said = browse(acting, tmp_path / "profile", "--dump-dom")
    assert said == ""
    page = Page(re.sub(r"<(/?)svg", r"<\1svg", dom))
    heard = json.loads(next(a["data-said"] for t, a, _ in page.elements if "data-said" in a))
    value, raw, smoothed, logarithmic, display, name, chosen, picked, first = heard
    assert value == "4 at 100" and raw == 1 and smoothed and logarithmic
    assert display == "block" and name == "dog" and chosen == 2
    assert "step 100" in picked and "step 0" in first
    curves = [a["d"] for t, a, _ in page.elements if t == "path" and a.get("class") == "curve"]
    assert len(curves) == 3 and all(len(d) > 20 and "NaN" not in d for d in curves)
    bounds = [a["class"] for t, a, _ in page.elements if t == "line" and "bound" in a["class"]]
    assert sorted(bounds) == ["bound", "bound untrained"]
    assert sum(t == "circle" and "fill-opacity" in a for t, a, _ in page.elements) == 40

    screenshot = tmp_path / "page.png"
    assert browse(file, tmp_path / "profile", f"--screenshot={screenshot}")[1] == ""
    pixels = np.asarray(Image.open(screenshot).convert("RGB")).astype(int)
    for colour in ((37, 99, 168), (180, 85, 29)):  # Of curves, and of floors.
        assert (abs(pixels - colour).sum(-1) < 150).sum() > 200
