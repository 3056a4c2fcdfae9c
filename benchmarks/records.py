"""Files of results: verdicts, the table, where it was measured. JAX is not imported."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FORMAT, VERSION = "implicit_reg.benchmarks", 1
MET, MISSED = "met", "missed"
HEADER = ("benchmark", "work", "measured", "quartiles", "unit", "limit", "target", "verdict")
VERSIONS = ("python", "jax", "optax", "torch", "commit")


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
    rounded = f"{x:.3f}" if 0.9 <= abs(x) < 1.1 else f"{x:.2f}" if 0.1 <= abs(x) < 10 else f"{x:.3g}"
    return f"{float(rounded):.0f}" if 1000 <= abs(x) < 1e6 else rounded


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
    notes: dict[tuple[str, str], list[str]] = {}
    for name, row in rows_of(record):
        lines.append(cells(name if name != last else "", row))
        last = name
        if row["note"]:
            notes.setdefault((name, row["note"]), []).append(row["work"])
    said = []
    for (name, note), works in notes.items():
        every = len(works) == len(record["benchmarks"][name]["rows"]) > 1
        said.append(f"- {name}, {'every row' if every else '; '.join(works)}: {note}")
    without = not_compared(record["benchmarks"])
    parts = [table(lines), f"{counted(record)}.", *([f"Not compared: {without}."] if without else []), "\n".join(said)]
    return "\n\n".join(part for part in parts if part)


def counted(record: Mapping[str, Any]) -> str:
    """How many targets are met, and of how many nothing was measured."""
    verdicts = [verdict(row) for _, row in rows_of(record) if row["target"] is not None]
    met, unknown = verdicts.count(MET), verdicts.count("-")
    words = f"{met} of {len(verdicts) - unknown} targets met"
    return f"{words}, {unknown} more not measured" if unknown else words


def not_compared(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """Why some benchmarks are without libraries to compare with, and which; empty where there is none."""
    reasons: dict[str, list[str]] = {}
    for name, found in benchmarks.items():
        for reason in found.get("missing", {}).values():
            reasons.setdefault(reason, []).append(name)
    return "; ".join(f"{reason} ({', '.join(names)})" for reason, names in reasons.items())


def origin(record: Mapping[str, Any]) -> str:
    """What the numbers were measured on and with: what all benchmarks share in a line, then where they differ."""
    each = {name: found["environment"] for name, found in record["benchmarks"].items()}
    words = [record["device"], f"{max(environment['cores'] for environment in each.values())} cores"]
    differing = []
    for key in VERSIONS:
        values: dict[str, list[str]] = {}
        for name, environment in each.items():
            values.setdefault(environment.get(key) or "none", []).append(name)
        if len(values) > 1:
            differing += [f"- {key} {value}: {', '.join(names)}" for value, names in values.items()]
        elif "none" not in values:
            words.append(f"{key} {next(iter(values))}")
    if loads := [environment["load"] for environment in each.values() if environment["load"] is not None]:
        words.append(f"load {min(loads):g} to {max(loads):g}")
    words.append(f"{duration(sum(found['seconds'] for found in record['benchmarks'].values()))} in all")
    return "\n".join([", ".join(words) + ".", *([""] if differing else []), *differing])


def duration(seconds: float) -> str:
    """As one says it."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


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


def write(
    folder: pathlib.Path, device: str, found: Mapping[str, Any], names: Sequence[str] | None = None
) -> pathlib.Path:
    """Writes results beside those that the file of this device already holds; each benchmark keeps its newest.

    Args:
      folder: of the file, whose name is that of the device.
      device: as `slug` takes it.
      found: results by the name of their benchmark.
      names: all that there are, in the order of the table; what the file holds of others is dropped. None: all stay.

    Raises:
      ValueError: the file that is there holds no results, or a number is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(device)}.json"
    every = (read(path)["benchmarks"] if path.exists() else {}) | dict(found)
    every = every if names is None else {name: every[name] for name in names if name in every}
    record = {"format": FORMAT, "version": VERSION, "device": device, "benchmarks": every}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # Lists of numbers and words on one line; a line break is never inside a string.
    text = re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda m: "[" + re.sub(r",\n\s*", ", ", m[1]) + "]", text)
    whole = path.with_suffix(".tmp")
    whole.write_text(text + "\n", encoding="utf-8")
    whole.replace(path)
    return path


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> str:
    """A table in Markdown, its columns aligned."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines)
