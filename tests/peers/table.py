"""Runs the comparisons and writes their table: `python -m tests.peers.table`, from the root."""

from collections.abc import Iterator
import importlib.metadata
import inspect
import pathlib
import platform
import sys

import pytest

HERE = pathlib.Path(__file__).parent
MARK = "<!-- Everything below is written by `python -m tests.peers.table`. -->\n"
FORMS = {
    "test_contrastive": "Contrastive losses",
    "test_joint_embedding": "Losses without negatives",
    "test_latent_models": "Latent-variable models and codebooks",
    "test_adversarial": "Adversarial losses",
    "test_masked_images": "Masked images and positions",
    "test_language": "Language",
    "test_words": "Word vectors",
    "test_convolutional": "Convolutional nets",
    "test_transformers": "Transformers and recurrent nets",
    "test_augmentations": "Augmentations",
    "test_decoding": "Image files",
    "test_optimizers": "Optimizers and schedules",
    "test_evaluations": "Evaluations",
    "test_exports": "Exported weights",
}


class Results:
    """A pytest plugin that keeps the outcome and the row of each test."""

    def __init__(self) -> None:
        self.rows: dict[str, dict] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call) -> Iterator[None]:
        report = yield
        name = f"{item.module.__name__.split('.')[-1]}::{item.originalname}"
        doc = inspect.cleandoc(item.function.__doc__)
        kept = self.rows.setdefault(name, {"doc": doc, "rows": [], "outcomes": set(), "why": ""})
        if report.when == "teardown":
            kept["rows"] += [value for key, value in report.user_properties if key == "row"]
        if report.when == "call" or report.skipped or report.failed:
            kept["outcomes"].add(report.outcome)
        if report.skipped:
            kept["why"] = report.longrepr[2].removeprefix("Skipped: ")
        return report


def number(x: float, digits: int) -> str:
    """`x` as 1.2e-7, or 0."""
    return f"{x:.{digits}e}".replace("e-0", "e-") if x else "0"


def line(kept: dict) -> str:
    """A row of the table: what, peers, difference, tolerance, note."""
    what, _, note = kept["doc"].partition("\n")
    note = " ".join(note.split()).replace("|", r"\|")
    rows = [row for row in kept["rows"] if row["difference"] is not None]
    peers = {name: version for row in kept["rows"] for name, version in row["peers"].items()}
    names = ", ".join(f"{name} {version}" for name, version in peers.items())
    if "failed" in kept["outcomes"]:
        found, tolerance = "**fails**", number(rows[0]["tolerance"], 0) if rows else ""
    elif not rows:
        return f"| {what} | | not run: {kept['why']} | | {note} |"
    else:
        largest = max(row["difference"] for row in rows)
        found = number(largest, 1)
        unconverted = [row["unconverted"] for row in rows if row["unconverted"]]
        if unconverted:
            found = f"{found}; unconverted {unconverted[0]}"
        tolerance = number(rows[0]["tolerance"], 0)
    return f"| {what} | {names} | {found} | {tolerance} | {note} |"


def table(results: Results) -> str:
    """The tables of all files, agreements before differences."""
    head = "| what | peer | largest difference | tolerance | note |\n|---|---|---|---|---|"
    parts: dict[str, list[str]] = {}
    differences = []
    for name, kept in results.rows.items():
        if any(row["unconverted"] for row in kept["rows"]):
            differences.append(line(kept))
        else:
            parts.setdefault(FORMS[name.split("::")[0]], []).append(line(kept))
    outcomes = [kept["outcomes"] for kept in results.rows.values()]
    failed = sum("failed" in o for o in outcomes)
    skipped = sum(o == {"skipped"} for o in outcomes)
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax", "numpy")
    )
    text = [
        f"{len(outcomes)} rows, of which {failed} fail and {skipped} were not run; Python "
        f"{platform.python_version()}, {versions}, on a CPU.\n",
        "## Where the conventions differ\n",
        "Each row agrees once converted as its note says; what is unconverted is ours as it "
        "stands.\n",
        "\n".join([head, *differences, ""]),
        "## Where both agree\n",
    ]
    for title in FORMS.values():
        lines = parts.get(title)
        text += ["\n".join([f"### {title}\n", head, *lines, ""])] if lines else []
    return "\n".join(text)


def main() -> int:
    """Runs the tests of this folder and rewrites the tables of README.md; pytest's exit code."""
    results = Results()
    code = pytest.main(["-q", "-p", "no:cacheprovider", str(HERE), *sys.argv[1:]], [results])
    readme = HERE / "README.md"
    before = readme.read_text(encoding="utf-8").partition(MARK)[0]
    readme.write_text(f"{before}{MARK}\n{table(results)}", encoding="utf-8")
    print(f"The table is in {readme.relative_to(HERE.parent.parent)}.")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
