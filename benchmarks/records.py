"""Files of results: verdicts, the table, and what moved between two of them. JAX is not imported."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FORMAT, VERSION = "implicit_reg.benchmarks", 1
MET, MISSED, CLOSE = "met", "missed", 1.03
HEADER = ("benchmark", "work", "measured", "quartiles", "unit", "limit", "target", "verdict")


def verdict(row: Mapping[str, Any]) -> str:
    """`met` or `missed`; empty where there is no target, `-` where nothing was measured."""
    value, target = row["value"], row["target"]
    if value is None:
        return "-"
    if target is None:
        return ""
    return MET if (value >= target if row["at_least"] else value <= target) else MISSED


def rows_of(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All rows with the names of their benchmarks."""
    for name, found in record["benchmarks"].items():
        for row in found["rows"]:
            yield name, row


def number(x: float | None) -> str:
    """Three significant digits; three decimals of what is near one, two of what is not far."""
    if x is None:
        return "-"
    return f"{x:.3f}" if 0.9 <= abs(x) < 1.1 else f"{x:.2f}" if 0.1 <= abs(x) < 10 else f"{x:.3g}"


def cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """A line of the table, under `HEADER`."""
    spread = "-" if row["spread"] is None else " to ".join(number(x) for x in row["spread"])
    sense = "≥ " if row["at_least"] else "≤ "
    return (
        name,
        row["work"],
        number(row["value"]),
        spread,
        f"{row['unit']} ({row['clock']})" if row["clock"] != "count" else row["unit"],
        "-" if row["limit"] is None else f"{row['limit']:.3g}",
        "-" if row["target"] is None else f"{sense}{row['target']:.3g}",
        verdict(row),
    )


def document(record: Mapping[str, Any]) -> str:
    """The table of all rows, each benchmark named once; how many targets are met; what is to be said of single rows."""
    lines, last = [], None
    for name, row in rows_of(record):
        lines.append(cells(name if name != last else "", row))
        last = name
    verdicts = [verdict(row) for _, row in rows_of(record)]
    notes = [f"- {name}, {row['work']}: {row['note']}" for name, row in rows_of(record) if row["note"]]
    counted = f"{verdicts.count(MET)} of {verdicts.count(MET) + verdicts.count(MISSED)} targets met."
    return "\n".join([table(lines), "", counted, *([""] if notes else []), *notes])


def slug(device: str) -> str:
    """The name of a device as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def read(path: pathlib.Path) -> dict[str, Any]:
    """A file of results.

    Raises:
      ValueError: where it is none.
      OSError: where it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if (record["format"], record["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {record['format']!r}, version {record['version']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no results of benchmarks ({error})") from None
    return record


def write(folder: pathlib.Path, device: str, found: Mapping[str, Any]) -> pathlib.Path:
    """Writes results beside those that the file of this device already holds; each benchmark keeps its newest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(device)}.json"
    known = read(path)["benchmarks"] if path.exists() else {}
    record = {"format": FORMAT, "version": VERSION, "device": device, "benchmarks": known | dict(found)}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # Lists of numbers and words on one line; a line break is never inside a string.
    text = re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda m: "[" + re.sub(r",\n\s*", ", ", m[1]) + "]", text)
    whole = path.with_suffix(".tmp")
    whole.write_text(text + "\n", encoding="utf-8")
    whole.replace(path)
    return path


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows that two files share and that moved, with the factor and the verdicts, the largest change first.

    Moved means: by more than 3 %, which is what the same program differs by, and with quartiles that do not overlap; or
    with another verdict.
    """
    before = {(name, row["work"]): row for name, row in rows_of(old)}
    lines = []
    for name, row in rows_of(new):
        was = before.get((name, row["work"]))
        if was is None or was["value"] is None or row["value"] is None or was["unit"] != row["unit"]:
            continue
        factor = row["value"] / was["value"] if was["value"] else float("inf") if row["value"] else 1.0
        apart = was["spread"] is None or row["spread"] is None
        apart = apart or row["spread"][0] > was["spread"][1] or row["spread"][1] < was["spread"][0]
        judged = (verdict(was), verdict(row))
        if (apart and not 1 / CLOSE <= factor <= CLOSE) or judged[0] != judged[1]:
            words = judged[1] if judged[0] == judged[1] else f"{judged[0] or 'no target'} -> {judged[1] or 'no target'}"
            line = (name, row["work"], number(was["value"]), number(row["value"]), f"{factor:.2f}", row["unit"], words)
            lines.append((abs(factor - 1), line))
    return [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


def only_in(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Rows that were measured in `a` and are not in `b`, or were not measured there."""
    there = {(name, row["work"]) for name, row in rows_of(b) if row["value"] is not None}
    here = ((name, row["work"]) for name, row in rows_of(a) if row["value"] is not None)
    return [f"{name}, {work}" for name, work in here if (name, work) not in there]


def surroundings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between the machines and versions of two files, over the benchmarks that they share."""
    lines: dict[str, None] = {}
    for name in old["benchmarks"]:
        if name in new["benchmarks"]:
            a, b = (record["benchmarks"][name]["environment"] for record in (old, new))
            for key in sorted(a.keys() | b.keys()):
                if key != "load" and a.get(key) != b.get(key):
                    lines[f"{key}: {a.get(key, 'none')} -> {b.get(key, 'none')}"] = None
    return list(lines)


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> str:
    """A table in Markdown, its columns aligned."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines)
