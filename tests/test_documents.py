"""Citations, constraints and formatting: what is written down is held to the code."""

import pathlib
import re
import subprocess
import sys

import pytest

from implicit_reg import methods

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / "implicit_reg").rglob("*.py"))
KEYS = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "references.bib").read_text(), re.MULTILINE))
CITATION = re.compile(r"\[([a-z]+\d{4}[a-z]?)(?:, [^\]]+)?\]")


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str)
def test_every_citation_has_an_entry(path):
    cited = set(CITATION.findall(path.read_text()))
    assert cited <= KEYS, f"not in references.bib: {sorted(cited - KEYS)}"


def test_every_entry_is_cited():
    text = "\n".join(path.read_text() for path in [*SOURCES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    unused = {key for key in KEYS if key not in text}
    assert not unused


def test_every_method_has_a_source():
    assert {row.source for row in methods.METHODS.values()} <= KEYS


def test_constraints_hold_no_address():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert re.search(r"^jax==\d", text, re.MULTILINE)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_lists_every_method():
    readme = (ROOT / "README.md").read_text()
    for row in methods.METHODS.values():
        assert f"`{row.name}`" in readme
