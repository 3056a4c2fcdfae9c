"""The notebooks as committed: run from top to bottom, with outputs, without a trace of the machine they ran on.

That they still run is checked by nbmake (`pytest notebooks`).
"""

import ast
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KEYS = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "references.bib").read_text(), re.MULTILINE))

SHOWS = re.compile(r"\bprint\(|\bdisplay\(|\bplt\.show\(")
FOREIGN_PATH = re.compile(r"(?<![\w.])/(?:root|home|tmp|work|Users|usr|opt|var|mnt)\b|\b[A-Z]:\\\w")
COMPLAINT = re.compile(r"Traceback|Warning\b|\bWARNING\b|(?i:deprecat)")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def text_outputs(cell):
    """Every text among the outputs of a cell; pictures are left out."""
    for output in cell["outputs"]:
        yield "".join(output.get("text", []))
        yield from ("".join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def python_of(cell):
    """The source of a cell without its magics."""
    return "".join(line for line in cell["source"] if not line.startswith("%"))


def test_there_is_a_notebook():
    assert NOTEBOOKS


@each_notebook
def test_any_installation_can_run_it(path):
    metadata = json.loads(path.read_text())["metadata"]
    assert metadata["kernelspec"] == {"name": "python3", "display_name": "Python 3", "language": "python"}
    for cell in code_cells(path):
        assert not re.search(r"^\s*(!|%pip|%conda)", "".join(cell["source"]), re.MULTILINE)


@each_notebook
def test_it_was_run_once_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_what_it_shows_is_there(path):
    cells = [cell for cell in code_cells(path) if SHOWS.search("".join(cell["source"]))]
    assert cells
    for cell in cells:
        assert cell["outputs"], cell["id"]
        if "plt.show(" in "".join(cell["source"]):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), cell["id"]


@each_notebook
def test_outputs_hold_no_complaint_and_no_path(path):
    for cell in code_cells(path):
        assert not any(output["output_type"] == "error" for output in cell["outputs"]), cell["id"]
        assert not any(output.get("name") == "stderr" for output in cell["outputs"]), cell["id"]
        for text in text_outputs(cell):
            assert not COMPLAINT.search(text), (cell["id"], text)
            assert not FOREIGN_PATH.search(text), (cell["id"], text)
    for cell in json.loads(path.read_text())["cells"]:
        assert not FOREIGN_PATH.search("".join(cell["source"])), cell["id"]


@each_notebook
def test_it_asserts_what_it_prints(path):
    """Every cell that prints a measurement holds an assertion."""
    printing = [cell for cell in code_cells(path) if re.search(r"\bprint\(|\bdisplay\(", "".join(cell["source"]))]
    assert printing
    for cell in printing:
        nodes = list(ast.walk(ast.parse(python_of(cell))))
        named = {
            node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert any(isinstance(node, ast.Assert) for node in nodes) or "assert_allclose" in named, cell["id"]


@each_notebook
def test_the_quick_mode_is_read_once(path):
    source = "".join("".join(cell["source"]) for cell in code_cells(path))
    assert source.count("IMPLICIT_REG_QUICK") == 1


@each_notebook
def test_it_carries_nothing_of_the_run_but_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert all(cell["metadata"] == {} for cell in cells)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", cell["id"]) for cell in cells)


@each_notebook
def test_its_citations_have_entries(path):
    prose = "".join(
        "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"
    )
    assert set(re.findall(r"\[([a-z]+\d{4}[a-z]?)\]", prose)) <= KEYS


@each_notebook
def test_the_index_lists_it(path):
    assert f"({path.name})" in (ROOT / "notebooks" / "README.md").read_text()
