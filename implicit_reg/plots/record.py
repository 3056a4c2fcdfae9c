"""How the record of `verify` is read: cases, the main statement of a check, what does not hold, names for pages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
Real: TypeAlias = float | int

KINDS = {"fixed_time": "at fixed time", "one_step": "after one step"}
HOLDS = "holds"
BANDS = ("fine", "caution", "unreliable", "beyond")


def cases(check: Record, kind: str | None = None) -> list[Record]:
    """The cases of a check: one statement on one loss each; of one kind, "order" or "criterion", where it is given."""
    found = check["details"].get("cases") or []
    return [case for case in found if kind in (None, case["kind"])]


def main_cases(check: Record) -> list[Record]:
    """The cases of the main statement: the orders without a name, or else what comes first."""
    every = cases(check)
    orders = [case for case in every if case["kind"] == "order" and case["statement"] == ""]
    return orders or [c for c in every if (c["kind"], c["statement"]) == (every[0]["kind"], every[0]["statement"])]


def by_statement(found: Sequence[Record]) -> dict[str, list[Record]]:
    """The cases of each statement, in the order of the record."""
    groups: dict[str, list[Record]] = {}
    for case in found:
        groups.setdefault(case["statement"], []).append(case)
    return groups


def worst_case(found: Sequence[Record]) -> Record:
    """The order case that is farthest from its predicted orders at fixed time; one without a number is farther."""

    def deviation(case: Record) -> Real:
        curves = [row["fixed_time"] for row in case["truncations"]]
        gaps = [abs(c["measured"] - c["expected"]) if is_number(c["measured"]) else math.inf for c in curves]
        return max(gaps, default=math.inf)

    return max(found, key=lambda case: (case["verdict"] == "fails", deviation(case)))


def curves(case: Record) -> Iterator[tuple[str, int, Record]]:
    """`(kind, number of terms, curve)` of an order case: first all at fixed time, then those after one step."""
    for kind in KINDS:
        for row in case["truncations"]:
            if row.get(kind):
                yield kind, row["terms"], row[kind]


def findings(check: Record) -> list[tuple[str, str, str, list[str]]]:
    """What does not hold: `(statement, loss, verdict, reasons)` for each such case."""
    found = []
    for case in cases(check):
        if case["verdict"] == HOLDS:
            continue
        if case["kind"] == "order":
            reasons = [
                f"{count(terms, 'term')} {KINDS[kind]}: {curve['reason'] or curve['verdict']}"
                for kind, terms, curve in curves(case)
                if curve["verdict"] != HOLDS
            ]
        else:
            reasons = [case.get("reason") or inequality(case)]
        found.append((case["statement"], case["loss"], case["verdict"], reasons))
    return found


def inequality(case: Record) -> str:
    """What a criterion found, such as `0.012 ≤ 0.05` or, where it does not hold, `0.07 > 0.05`."""
    value, bound = (number(case.get(key), ".3g") for key in ("value", "bound"))
    wanted, other = ("≤", ">") if case["at_most"] else ("≥", "<")
    return f"{value} {wanted if within(case) or value == '?' else other} {bound}"


def within(case: Record) -> bool:
    """Whether the value of a criterion lies on the side of its bound that was asked for."""
    value, bound = case.get("value"), case.get("bound")
    if not (is_number(value) and is_number(bound)):
        return False
    return value <= bound if case["at_most"] else value >= bound


def band(check: Record) -> str:
    """The worst band of validity among the main statement's cases; "" where none is recorded."""
    found = [validity["band"] for case in main_cases(check) if (validity := case.get("validity"))]
    return max(found, key=lambda name: BANDS.index(name) if name in BANDS else len(BANDS), default="")


def anchor(name: Any) -> str:
    """The identifier of a check's page in a report."""
    return "check-" + re.sub(r"[^A-Za-z0-9_-]", "-", str(name))


def count(n: Any, noun: str) -> str:
    """`1 term`, `2 terms`."""
    return f"{n} {noun}{'s' * (n != 1)}"


def number(value: Any, form: str = ".2f") -> str:
    """A number for a label; a question mark where it could not be measured."""
    return format(value, form) if is_number(value) else "?"


def is_number(value: Any) -> bool:
    """Whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
