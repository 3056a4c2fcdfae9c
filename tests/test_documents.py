"""Citations, constraints and formatting: what is written down is held to the code."""

import codeop
import math
import pathlib
import re
import subprocess
import sys

import pytest

from implicit_reg import cli, experiments, methods, predictions

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


def table_row(row: methods.Method) -> str:
    hyperparameters = ", ".join(f"`{name}={value}`" for name, value in row.hyperparameters.items()) or "none"
    follows = row.modified_loss.replace("|", "&#124;")
    cost = row.gradients_per_step(**row.hyperparameters)
    return f"| `{row.name}` | {row.title} | {hyperparameters} | {follows} | {cost:g} | [{row.source}] |"


@pytest.mark.parametrize("row", methods.METHODS.values(), ids=lambda row: row.name)
def test_the_readme_has_the_table_of_methods(row):
    assert table_row(row) in (ROOT / "README.md").read_text().splitlines()


def prediction_row(row: predictions.Prediction) -> str:
    claim, validity = (text.replace("|", "&#124;") for text in (row.claim, row.validity))
    source = f"[{row.source}]" if row.source else "derived here"
    return f"| `{row.name}` | {claim} | {row.time_scale.replace('|', '&#124;')} | {validity} | {source} |"


def test_the_theory_has_the_table_of_predictions():
    """What stands between its two marks is made from the rows."""
    text = (ROOT / "docs" / "theory.md").read_text()
    table = text.split("<!-- rows -->")[1].split("<!-- end of rows -->")[0].strip().splitlines()
    assert table[2:] == [prediction_row(row) for row in predictions.ROWS.values()]


def test_every_section_of_the_theory_names_rows_that_exist_and_every_row_has_a_section():
    headings = re.findall(r"^#{2,3} .*\((.+)\)$", (ROOT / "docs" / "theory.md").read_text(), re.MULTILINE)
    named = {name for heading in headings for name in re.findall(r"`([a-z-]+)`", heading)}
    assert named - set(predictions.ROWS) <= {"--method"}
    assert set(predictions.ROWS) <= named


def test_every_prediction_has_a_source_or_was_derived_here():
    assert {row.source for row in predictions.ROWS.values()} - {""} <= KEYS


def reproduction_row(row: experiments.Reproduction) -> str:
    claim, reported, source = (text.replace("|", "&#124;") for text in (row.claim, row.reported, row.source))
    return f"| `{row.name}` | {claim} | {reported} | {source} |"


def between(text: str, mark: str) -> list[str]:
    """The rows of the table between two marks, without its head."""
    return text.split(f"<!-- {mark} -->")[1].split(f"<!-- end of {mark} -->")[0].strip().splitlines()[2:]


def test_the_experiments_have_the_table_of_reproductions():
    rows = between((ROOT / "docs" / "experiments.md").read_text(), "reproductions")
    assert rows == [reproduction_row(experiments.load_reproduction(name)) for name in experiments.REPRODUCTIONS]


def test_the_results_of_the_reproductions_are_of_the_criteria_that_stand():
    """Each row of `table.md` names criteria of now, all that fail, and a verdict that follows from them."""
    rows = between((ROOT / "docs" / "experiments.md").read_text(), "results")
    found = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert [name.strip("`") for name, *_ in found] == list(experiments.REPRODUCTIONS)
    for name, verdict, held, failed, seconds in found:
        texts = [part.text for part in experiments.load_reproduction(name.strip("`")).criteria]
        missing = [text for text in texts if text.replace("|", "&#124;") in failed]
        assert "; ".join(missing).replace("|", "&#124;") == failed
        assert held == f"{len(texts) - len(missing)} of {len(texts)}"
        words = {0: "reproduced", len(texts): "not reproduced"}
        assert verdict == words.get(len(missing), "partly reproduced")
        assert float(seconds) > 0


def test_every_reproduction_has_a_source_that_is_known():
    for name in experiments.REPRODUCTIONS:
        row = experiments.load_reproduction(name)
        cited = CITATION.findall(row.source)
        assert cited, name
        assert set(cited) <= KEYS
        assert row.name == name
        assert row.claim.endswith(".")


class Unmeasured(dict):
    """Numbers none of which could be measured."""

    def __missing__(self, name: str) -> float:
        return math.nan


@pytest.mark.parametrize("name", experiments.REPRODUCTIONS)
def test_a_number_that_could_not_be_measured_makes_its_statement_false(name):
    for criterion in experiments.load_reproduction(name).criteria:
        assert not criterion.holds(Unmeasured()), criterion.text


def test_the_readme_shows_the_commands_that_exist():
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^implicit-reg (\w+)", readme, re.MULTILINE)) == set(cli.COMMANDS)


def test_every_link_in_the_documents_leads_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("https://") or (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("name", ["README.md", "docs/optax.md"])
def test_examples_can_be_pasted_into_an_interpreter(name):
    """A block that is followed at once by the next statement is a syntax error there, though not to doctest."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    examples = [block for block in blocks if ">>>" in block]
    assert examples
    for block in examples:
        statement = []
        for line in block.splitlines():
            if line and not line.startswith((">>>", "...")):
                continue  # what it prints
            statement.append(line[4:])
            if codeop.compile_command("\n".join(statement), symbol="single") is not None:
                statement = []
        assert not "".join(statement).strip(), statement


TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("name", TRACKED)
def test_nothing_names_a_place_that_is_not_everybodys(name):
    """No package index, no folder of one machine."""
    path = ROOT / name
    if path.suffix in {".png", ".lock"} or not path.is_file():
        return
    found = re.findall(r"index-url|extra-index|find-links|/root/|/home/\w+/|/work/\w+", path.read_text())
    assert not found or path.name == pathlib.Path(__file__).name, f"{name}: {found}"
