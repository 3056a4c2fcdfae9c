"""The picture of a file of results: every row that has a target, as what was measured over what was asked for."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import records

ROW, HEAD, WIDTH, LEFT, RIGHT, TOP, BOTTOM = 0.19, 0.42, 11.0, 4.3, 2.4, 0.95, 0.75
"""Inches: of a row, of a benchmark's title, of the page and its margins."""
MET_COLOR, MISSED_COLOR = "#0072b2", "#d55e00"


def over_target(row: Mapping[str, Any], value: float) -> float:
    """At most 1 where the target is met, for lower bounds too."""
    value, target = max(value, 1e-12), max(row["target"], 1e-12)
    return target / value if row["at_least"] else value / target


def draw(record: Mapping[str, Any]) -> Any:
    """One line for each row with a target; left of the line it is met. The tick is the theoretical limit."""
    from implicit_reg.plots.style import GRID, INK, MUTED, new_figure, place, style

    groups = {
        name: [row for row in found["rows"] if row["target"] is not None and row["value"] is not None]
        for name, found in record["benchmarks"].items()
    }
    groups = {name: rows for name, rows in groups.items() if rows}
    height = TOP + BOTTOM + max(HEAD, sum(HEAD + ROW * len(rows) for rows in groups.values()))
    with style():
        figure = new_figure(WIDTH, height, layout=None)
        axes = place(figure, LEFT, TOP, WIDTH - LEFT - RIGHT, height - TOP - BOTTOM)
        axes.set_ylim(height - TOP - BOTTOM, 0)
        ratios = [over_target(row, row["value"]) for rows in groups.values() for row in rows]
        low, high = min([0.5, *ratios]) / 1.15, max([1.5, *ratios]) * 1.15
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        marks = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5) if high / low < 8 else (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
        ticks = [x for x in marks if low <= x <= high]
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.xaxis.set_minor_locator(_nothing())
        axes.set_yticks([])
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="x", color=GRID, linewidth=0.6)
        axes.axvspan(1, high, color=MISSED_COLOR, alpha=0.05, linewidth=0)
        axes.axvline(1, color=INK, linewidth=0.9)
        axes.set_xlabel("measured over target (for lower bounds: target over measured)")
        y = 0.0
        for name, rows in groups.items():
            y += HEAD
            title = record["benchmarks"][name]["title"]
            axes.text(-0.02, y - 0.14, f"{name}: {title}", transform=_across(axes), ha="right", weight="bold")
            for row in rows:
                _line(axes, row, y, MUTED)
                y += ROW
        met = sum(records.verdict(row) == records.MET for rows in groups.values() for row in rows)
        figure.text(0.02, 1 - 0.25 / height, f"{met} of {len(ratios)} targets met", size=13, weight="bold", va="top")
        figure.text(0.02, 1 - 0.55 / height, _caption(record), size=8, color=MUTED, va="top")
    return figure


def _line(axes: Any, row: Mapping[str, Any], y: float, muted: str) -> None:
    met = records.verdict(row) == records.MET
    color = MET_COLOR if met else MISSED_COLOR
    middle = y + ROW / 2
    if row["spread"] is not None:
        axes.plot([over_target(row, x) for x in row["spread"]], [middle] * 2, color=color, linewidth=2.2, alpha=0.4)
    if row["limit"]:
        axes.plot([over_target(row, row["limit"])], [middle], "|", color=muted, markersize=8, markeredgewidth=1.2)
    axes.plot([over_target(row, row["value"])], [middle], "o" if met else "X", color=color, markersize=5)
    axes.text(-0.02, middle, row["work"], transform=_across(axes), ha="right", va="center")
    sense = "≥" if row["at_least"] else "≤"
    words = f"{records.number(row['value'])} {row['unit']}, target {sense} {row['target']:.3g}"
    axes.text(1.02, middle, words, transform=_across(axes), ha="left", va="center", size=7.5, color=color)


def _across(axes: Any) -> Any:
    """x in the width of the axes, y in data."""
    return axes.get_yaxis_transform()


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _caption(record: Mapping[str, Any]) -> str:
    each = [found["environment"] for found in record["benchmarks"].values()]
    commits = sorted({environment["commit"] for environment in each})
    versions = f"jax {each[0]['jax']}, Python {each[0]['python']}"
    where = f"{record['device']}, {max(environment['cores'] for environment in each)} cores"
    commit = f"commit {commits[0]}" if len(commits) == 1 else f"{len(commits)} commits"
    return f"{where}; {versions}; {commit}. Dot: median, bar: quartiles, tick: theoretical limit."


def write(record: Mapping[str, Any], path: pathlib.Path) -> pathlib.Path:
    """Draws into a PNG file."""
    from implicit_reg.plots.style import to_png

    path.write_bytes(to_png(draw(record), dpi=110))
    return path
