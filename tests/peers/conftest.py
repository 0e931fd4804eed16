"""The `row` fixture: a test of this folder is a row of the table in README.md."""

import importlib.metadata
import pathlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MISSING = "needs {}: pip install -r tests/peers/requirements.txt"


class Row:
    """The peers of one comparison, their versions, and the largest difference found."""

    def __init__(self) -> None:
        self.peers: dict[str, str] = {}
        self.difference: float | None = None
        self.tolerance: float | None = None
        self.unconverted: str | None = None

    def peer(self, module: str, package: str = "") -> ModuleType:
        """Imports `module` and records the version of its `package`; skips where it is missing."""
        package = package or module.split(".")[0].replace("_", "-")
        found = pytest.importorskip(module, reason=MISSING.format(package), exc_type=ImportError)
        self.peers[package] = importlib.metadata.version(package)
        return found

    def file(self, package: str, name: str) -> pathlib.Path:
        """A file of an installed package, which is not imported; skips where it is missing."""
        try:
            found = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(MISSING.format(package))
        self.peers[package] = found.version
        return pathlib.Path(found.locate_file(name))

    def agree(self, ours: Any, theirs: Any, tolerance: float) -> None:
        """Asserts that the arrays differ by at most `tolerance` times the largest of `theirs`."""
        assert self.tolerance in (None, tolerance), "A row has one tolerance."
        found = difference(ours, theirs)
        self.tolerance = tolerance
        self.difference = max(found, self.difference or 0.0)
        assert found <= tolerance, f"{found:.2e} is more than {tolerance:.0e}"

    def differ(self, ours: Any, theirs: Any, least: float) -> None:
        """Records the difference of another convention, and asserts that it is still `least`."""
        found = difference(ours, theirs)
        self.unconverted = f"{found:.2g}"
        assert found >= least, f"{found:.2e} is less than {least}: is the convention the same now?"


def difference(ours: Any, theirs: Any) -> float:
    """max |ours - theirs| / max |theirs|, or max |ours - theirs| where all of `theirs` is 0."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape, f"Shapes {ours.shape} and {theirs.shape} can't be compared."
    assert np.isfinite(ours).all() and np.isfinite(theirs).all()
    largest = np.abs(theirs).max(initial=0.0)
    return float(np.abs(ours - theirs).max(initial=0.0) / (largest or 1.0))


@pytest.fixture
def row(record_property):
    """What a test compares with; its docstring is what the table says of it."""
    row = Row()
    yield row
    record_property("row", vars(row))  # Of plain types, which pytest-xdist can send.
