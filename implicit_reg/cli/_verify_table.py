"""What `verify` prints: a line for each prediction, and a line for each case that does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from implicit_reg.plots.record import band, cases, findings, inequality, main_cases, number

STYLES = {"holds": "green", "fails": "bold red", "could not measure": "yellow"}
_BANDS = {"caution": "yellow", "unreliable": "red", "beyond": "red"}


def verify_table(record: dict[str, Any]) -> Table:
    """One line for each prediction, in at most 120 columns.

    Args:
      record: of a run of `verify`.

    Returns:
      A table of name, formula, cases that hold, orders of the main statement (or its number and bound), the range of
      validity that its step sizes lie in, and the verdict. What does not fit is cut from the formula.

    Example:
      >>> from implicit_reg.cli._verify_table import verify_table
      >>> check = {"name": "gd", "verdict": "holds", "expected": [1, 2], "measured": [1.0, 2.01], "details": {}}
      >>> verify_table({"checks": [check]}).row_count
      1
    """
    table = Table(
        title="Do the iterates follow what theory predicts?", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for name in ("prediction", "formula", "hold", "expected", "measured", "range", "verdict"):
        # Rich takes what is missing from the columns that may wrap: only the formula's, whose text is then cut instead.
        table.add_column(name, no_wrap=name != "formula", justify="right" if name == "hold" else "left")
    for check in record["checks"]:
        every = cases(check)
        held, word = sum(case["verdict"] == "holds" for case in every), band(check)
        expected, measured = _results(check)
        table.add_row(
            Text(check["name"]),
            Text(_formula(check), no_wrap=True, overflow="ellipsis"),
            f"{held}/{len(every)}" if every else "-",
            expected,
            Text(measured),
            Text(word, style=_BANDS.get(word, "")),
            Text(check["verdict"], style=STYLES[check["verdict"]]),
        )
    return table


def _formula(check: dict[str, Any]) -> str:
    return " ".join((check["details"].get("formula") or check["details"].get("title") or "").split())


def _results(check: dict[str, Any]) -> tuple[str, str]:
    """Expected and measured orders of the main statement; of a criterion the number that comes nearest to failing."""
    if check["expected"]:
        return _orders(check["expected"]), " ".join(number(order) for order in check["measured"])
    found = [case for case in main_cases(check) if case["kind"] == "criterion"]
    if not found:
        return "-", "-"
    case = min(found, key=lambda case: ["fails", "could not measure", "holds"].index(case["verdict"]))
    value, relation, bound = inequality(case).replace("≤", "<=").replace("≥", ">=").split()
    wanted = "<=" if case["at_most"] else ">="
    return f"{wanted} {bound}", value if relation == wanted else f"{value} {relation} {bound}"


def _orders(orders: Sequence[float | int]) -> str:
    """`1..5` for three or more in sequence, else all of them."""
    if len(orders) >= 3 and all(order == orders[0] + k for k, order in enumerate(orders)):
        return f"{orders[0]:g}..{orders[-1]:g}"
    return " ".join(f"{order:g}" for order in orders)


def reasons(record: dict[str, Any]) -> list[str]:
    """Why something does not hold: a line for each case that does not.

    Args:
      record: of a run of `verify`.

    Returns:
      Lines such as `backstitch on nonquadratic: fails: 2 terms at fixed time: order 1.46 where 2 was predicted`.

    Example:
      >>> from implicit_reg.cli._verify_table import reasons
      >>> case = {"kind": "criterion", "statement": "mean", "loss": "bowl", "verdict": "fails", "value": 3.0,
      ...         "bound": 1.0, "at_most": True, "reason": None}
      >>> reasons({"checks": [{"name": "gd", "details": {"cases": [case]}}]})
      ['gd on bowl, mean: fails: 3 > 1']
    """
    return [
        f"{check['name']} on {loss}{f', {statement}' if statement else ''}: {verdict}: {'; '.join(why)}"
        for check in record["checks"]
        for statement, loss, verdict, why in findings(check)
    ]
