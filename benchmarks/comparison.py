"""What moved between two files of results: verdicts, ratios, rows that cannot be compared. JAX is not imported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import records

CLOSE = 1.03
"""What one program differs by from itself; quartiles must be apart as well."""
LOOSE = 1.10
"""Where a time has no quartiles: twice half the distance that those of a row in the middle have."""
HEADER = ("benchmark", "work", "old", "new", "new / old", "unit", "verdict")


def report(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Everything that differs, as Markdown."""
    changed, moved, shared = differences(old, new)
    parts = ["\n".join(surroundings(old, new))]
    if changed:
        parts += ["Other verdicts, those that moved first:", records.table(changed, HEADER)]
    if moved:
        parts += ["The same verdict, and moved:", records.table(moved, HEADER)]
    unlike = incomparable(old, new)
    if unlike:
        parts += ["Not compared:", "\n".join(f"- {line}" for line in unlike)]
    counts = (
        f"{shared} rows compared: {_many(len(changed), 'verdict')} changed, {_many(len(moved), 'other row')} moved."
    )
    rule = (
        f"Moved means by more than {CLOSE - 1:.0%} with quartiles apart; a time without quartiles, "
        f"by more than {LOOSE - 1:.0%}."
    )
    return "\n\n".join(part for part in [*parts, f"{counts} {rule}"] if part)


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]], int]:
    """Lines under `HEADER` of rows with other verdicts and of rows that only moved, and how many rows were compared.

    The largest factor comes first; rows whose verdict changed without moving come last among theirs.
    """
    before = {(name, row["work"]): row for name, row in records.rows_of(old)}
    changed: list[tuple[Any, tuple[str, ...]]] = []
    moved: list[tuple[Any, tuple[str, ...]]] = []
    shared = 0
    for name, row in records.rows_of(new):
        was = before.get((name, row["work"]))
        if was is None or was["value"] is None or row["value"] is None or was["unit"] != row["unit"]:
            continue
        shared += 1
        far, (earlier, now) = has_moved(was, row), (records.verdict(was), records.verdict(row))
        factor = row["value"] / was["value"] if was["value"] else math.inf if row["value"] else 1.0
        words = now if earlier == now else f"{earlier or 'no target'} -> {now or 'no target'}"
        if was["target"] != row["target"] and None not in (was["target"], row["target"]):
            words += f" (target {was['target']:.3g} -> {row['target']:.3g})"
        elif earlier != now and not far:
            words += " (not moved)"
        line = (name, row["work"], _cell(was), _cell(row), f"{factor:.2f}", row["unit"], words)
        size = abs(math.log(factor)) if 0 < factor < math.inf else math.inf
        if earlier != now:
            changed.append(((not far, -size), line))
        elif far:
            moved.append((-size, line))
    return [line for _, line in sorted(changed)], [line for _, line in sorted(moved)], shared


def has_moved(was: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a row is elsewhere by more than noise."""
    low, high = sorted((was["value"], row["value"]))
    if was["spread"] is None or row["spread"] is None:
        return high > (LOOSE if row["clock"] in ("cpu", "wall") else CLOSE) * low
    apart = row["spread"][0] > was["spread"][1] or row["spread"][1] < was["spread"][0]
    return apart and high > CLOSE * low


def incomparable(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Rows that only one file has or has measured, and rows in another unit: a line for each kind and benchmark."""
    lines = []
    for name in old["benchmarks"] | new["benchmarks"]:
        rows = [
            {row["work"]: row for row in record["benchmarks"].get(name, {"rows": ()})["rows"]} for record in (old, new)
        ]
        sides = ("old", "new")
        if name not in old["benchmarks"] or name not in new["benchmarks"]:
            where = sides[name in new["benchmarks"]]
            lines.append(f"{name}: only in {where} ({_many(max(map(len, rows)), 'row')})")
            continue
        for here, there, side in ((*rows, "old"), (*rows[::-1], "new")):
            if alone := [work for work in here if work not in there]:
                lines.append(f"{name}, only in {side}: {'; '.join(alone)}")
        for measured, other, side in ((*rows, "new"), (*rows[::-1], "old")):
            reasons: dict[str, list[str]] = {}
            for work, row in other.items():
                if row["value"] is None and measured.get(work, row)["value"] is not None:
                    reasons.setdefault(row["note"] or "no reason is given", []).append(work)
            lines += [f"{name}, not measured in {side} ({why}): {'; '.join(works)}" for why, works in reasons.items()]
        lines += [
            f"{name}, {work}: the unit was {rows[0][work]['unit']}, and is {row['unit']}"
            for work, row in rows[1].items()
            if work in rows[0] and rows[0][work]["unit"] != row["unit"]
        ]
    return lines


def surroundings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between the machines, versions and rounds of two files; named where not all benchmarks do."""
    shared = [name for name in old["benchmarks"] if name in new["benchmarks"]]
    found: dict[tuple[str, Any, Any], list[str]] = {}
    if old["device"] != new["device"]:
        found["device", old["device"], new["device"]] = shared
    for name in shared:
        a, b = (
            record["benchmarks"][name]["environment"] | {"rounds": record["benchmarks"][name]["rounds"]}
            for record in (old, new)
        )
        for key in sorted((a.keys() | b.keys()) - {"load"}):
            if a.get(key) != b.get(key):
                found.setdefault((key, a.get(key, "none"), b.get(key, "none")), []).append(name)
    return [
        f"- {key}: {was} -> {now}" + (f" ({', '.join(names)})" if len(names) < len(shared) else "")
        for (key, was, now), names in sorted(found.items(), key=lambda item: item[0][0])
    ]


def _cell(row: Mapping[str, Any]) -> str:
    spread: Sequence[float] | None = row["spread"]
    quartiles = "" if spread is None else f" ({' to '.join(map(records.number, spread))})"
    return records.number(row["value"]) + quartiles


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
