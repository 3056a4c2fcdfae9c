"""The picture of a file of results: every row that has a target, as what was measured over what was asked for."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import records

ROW, HEAD, GAP, TOP, BOTTOM = 0.19, 0.24, 0.2, 1.15, 0.6
"""Inches: of a row, of a benchmark's title and the space above it, of the page's margins."""
NAMES, AXES, VALUE, TARGET, UNIT, WIDTH = 4.3, 4.4, 9.25, 9.85, 9.95, 11.9
"""Inches from the left: where names end, the axes begin, values and targets end, units begin; and the width."""
MARGIN, AXES_END = 0.25, 8.7
MET_COLOR, MISSED_COLOR = "#0072b2", "#d55e00"
MARKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def over_target(row: Mapping[str, Any], value: float) -> float:
    """At most 1 where the target is met, for lower bounds too."""
    value, target = max(value, 1e-12), max(row["target"], 1e-12)
    return target / value if row["at_least"] else value / target


def draw(record: Mapping[str, Any]) -> Any:
    """One line for each row with a target that was measured; left of the line it is met. The tick is the limit."""
    from implicit_reg.plots.style import GRID, INK, MUTED, new_figure, place, plain, style

    groups = {
        name: [row for row in found["rows"] if row["target"] is not None and row["value"] is not None]
        for name, found in record["benchmarks"].items()
    }
    groups = {name: rows for name, rows in groups.items() if rows}
    inner = max(HEAD, sum(GAP + HEAD + ROW * len(rows) for rows in groups.values()))
    height = TOP + inner + BOTTOM
    ratios = [over_target(row, row["value"]) for rows in groups.values() for row in rows]
    low, high = min([0.5, *ratios]) / 1.15, max([2, *ratios]) * 1.15
    with style():
        figure = new_figure(WIDTH, height, layout=None)
        axes = place(figure, AXES, TOP, AXES_END - AXES, inner)
        axes.set_ylim(inner, 0)
        _scale(axes, low, high)
        axes.axvspan(1, high, color=MISSED_COLOR, alpha=0.05, linewidth=0)
        axes.axvline(1, color=INK, linewidth=0.9)

        def write(x, y, words, **look):
            return figure.text(x / WIDTH, 1 - (TOP + y) / height, plain(words), va="center", **look)

        write(MARGIN, 0.3 - TOP, records.counted(record), size=13, weight="bold")
        for k, words in enumerate(_caption(record)):
            write(MARGIN, 0.55 + 0.16 * k - TOP, words, size=8, color=MUTED)
        y = 0.0
        for name, rows in groups.items():
            y += GAP + HEAD
            met = sum(records.verdict(row) == records.MET for row in rows)
            title = write(MARGIN, y - HEAD / 2, name, weight="bold", size=9.5)
            inches = title.get_window_extent().width / figure.dpi
            write(MARGIN + inches + 0.1, y - HEAD / 2, record["benchmarks"][name]["title"], color=MUTED)
            write(UNIT, y - HEAD / 2, f"{met} of {len(rows)} met", color=MUTED, size=7.5)
            for row in rows:
                color = MET_COLOR if records.verdict(row) == records.MET else MISSED_COLOR
                axes.axhline(y + ROW / 2, color=GRID, linewidth=0.5, zorder=0)
                _mark(axes, row, y + ROW / 2, color, MUTED)
                write(NAMES, y + ROW / 2, row["work"], ha="right", size=8)
                write(VALUE, y + ROW / 2, records.number(row["value"]), ha="right", size=7.5, color=color)
                sense = "≥" if row["at_least"] else "≤"
                write(TARGET, y + ROW / 2, f"{sense} {row['target']:.3g}", ha="right", size=7.5, color=MUTED)
                write(UNIT, y + ROW / 2, row["unit"], size=7.5, color=MUTED)
                y += ROW
        for x, words, side in ((VALUE, "measured", "right"), (TARGET, "target", "right"), (UNIT, "unit", "left")):
            write(x, 0.05, words, ha=side, size=7.5, color=MUTED)
    return figure


def _scale(axes: Any, low: float, high: float) -> None:
    """A logarithmic axis of ratios, numbered above and below: the page is long."""
    from matplotlib.ticker import NullLocator

    from implicit_reg.plots.style import GRID

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    marks = (*MARKS, *((0.7, 1.5) if high / low < 8 else ()))
    ticks = sorted(x for x in marks if low <= x <= high)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([])
    axes.tick_params(top=True, labeltop=True)
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_xlabel("measured over target (for lower bounds: target over measured)")


def _mark(axes: Any, row: Mapping[str, Any], y: float, color: str, muted: str) -> None:
    """Median, quartiles and limit of a row."""
    if row["spread"] is not None:
        axes.plot([over_target(row, x) for x in row["spread"]], [y] * 2, color=color, linewidth=2.4, alpha=0.4)
    if row["limit"]:
        axes.plot([over_target(row, row["limit"])], [y], "|", color=muted, markersize=8, markeredgewidth=1.2)
    marker = "o" if records.verdict(row) == records.MET else "X"
    axes.plot([over_target(row, row["value"])], [y], marker, color=color, markersize=5, markeredgewidth=0)


def _caption(record: Mapping[str, Any]) -> tuple[str, str]:
    where, *differing = records.origin(record).splitlines()
    also = " The benchmarks differ in commit or versions: the table has them." if differing else ""
    how = "Left of the line a target is met (dot), right of it missed (cross). Bar: quartiles; tick: the limit."
    return where + also, how


def write(record: Mapping[str, Any], path: pathlib.Path) -> pathlib.Path:
    """Draws into a PNG file."""
    from implicit_reg.plots.style import to_png

    path.write_bytes(to_png(draw(record), dpi=110))
    return path
