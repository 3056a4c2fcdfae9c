"""What the terminal shows of a run: a line for each prediction within 120 columns, and why something does not hold."""

import io

import fake_records
import pytest
from rich.console import Console

from implicit_reg.cli._verify_table import reasons, verify_table


def lines(record):
    """The table's rows below its heading, by the name of the prediction."""
    stream = io.StringIO()
    Console(file=stream, width=120, highlight=False).print(verify_table(record))
    shown = stream.getvalue().splitlines()
    assert all(len(line) <= 120 for line in shown)
    return {line.split()[0]: line.rstrip() for line in shown[4:] if line.strip()}


@pytest.fixture(scope="module")
def troubled():
    return fake_records.troubled_record()


def test_a_line_for_each_prediction(troubled):
    shown = lines(troubled)
    assert list(shown) == [check["name"] for check in troubled["checks"]]
    orders = fake_records.find(troubled, "gd")["measured"]
    found = {
        "gd": "6/6 1..5 " + " ".join(f"{order:.2f}" for order in orders) + " fine holds",
        "backstitch": "5/6 1 2 1.00 1.46 fine fails",
        "sam": "4/6 1..3 1.00 2.00 ? caution could not measure",
        "principal-flow": "6/6 <= 0.01 0.00031 holds",
        "central-flow": "4/6 <= 0.05 0.074 > 0.05 fails",
        "my-method": "- - - holds",
    }
    for name, end in found.items():
        assert " ".join(shown[name].split()).endswith(end), name


def test_the_whole_table_fits():
    """Of all columns only the formula is cut."""
    shown = lines(fake_records.full_record())
    assert list(shown) == list(fake_records.NAMES)
    assert all(line.endswith("holds") for line in shown.values())
    assert "1.05 2.07 3.10 4.18 5.16" in shown["gd"]
    assert shown["sam"].count("…") == 1


def test_markup_in_a_name_is_text(troubled):
    record = {"checks": [fake_records.find(troubled, "gd") | {"name": "[bold]x[/nothing]"}]}
    assert list(lines(record)) == ["[bold]x[/nothing]"]


def test_a_line_for_each_case_that_does_not_hold(troubled):
    assert reasons(troubled) == [
        "backstitch on nonquadratic: fails: 2 terms at fixed time: order 1.46 where 2 was predicted",
        "sam on digits-tanh: could not measure: 3 terms after one step: the error 1.0e-13 is too near to the floor "
        "1.0e-13",
        "sam on nonquadratic: could not measure: 3 terms at fixed time: the run diverged",
        "central-flow on digits-tanh, distance to the iterates, per parameter: fails: 0.074 where at most 0.05 was "
        "wanted",
        "central-flow on nonquadratic, time-averaged loss: could not measure: the number is not finite: something "
        "diverged",
    ]
    assert reasons(fake_records.verify_record()) == []
