"""README: what it repeats from other files is as it is there."""

import ast
import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
ROWS = re.findall(r"\[([\d.]+(?: ± [\d.]+)?)\]\((experiments/ledger/\S+\.md)\)", TEXT)


def test_ledger_rows_are_found():
    assert len(ROWS) >= 8


@pytest.mark.parametrize(("number", "page"), ROWS, ids=[page for _, page in ROWS])
def test_numbers_are_those_of_the_ledger(number, page):
    assert f"**{number}**" in (ROOT / page).read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_comparisons_are_counted_as_in_their_table():
    count = re.search(r"\[(\d+) comparisons\]", TEXT)[1]
    assert f"{count} rows, of which 0 fail" in (ROOT / "tests" / "peers" / "README.md").read_text()


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_simclr_is_shown_as_it_is():
    shown = re.search(r"```python\n(@checked\ndef simclr.*?)```", TEXT, re.S)[1]
    tree = ast.parse((ROOT / "experiments" / "simclr.py").read_text())
    kept = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.If)]
    kept[0].body = kept[0].body[1:]  # Without its docstring.
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.Module(kept, []))
