"""Statements without an order: series over time or step size, and numbers against their bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from implicit_reg.plots.record import Real, Record, inequality, is_number, number
from implicit_reg.plots.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    VERDICTS,
    Axes,
    draw_in_inches,
    label,
    measured,
    mix,
    power_of_ten,
    spread,
    wrapped,
)

GAUGE_HEIGHT = 0.56  # inches of a criterion's line

_LINES: tuple[tuple[str, Real], ...] = (("-", 1.9), ("--", 1.6), (":", 1.8), ("-.", 1.4))


def series_curves(case: Record, ax: Axes, *, color: str = INK) -> Axes:
    """The series of a criterion case: its curves, named at their ends.

    Args:
      case: a criterion case with a `series`: `x`, `xlabel`, `ylabel`, `log` (of the ordinate; the abscissa is
        logarithmic too where its values are a geometric sequence) and `curves`, label to values. None is a gap.
      ax: where to draw; the labels stand in a margin at its right.
      color: the prediction's color; the first curve has it.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import series_curves
      >>> series = {"x": [0, 1], "xlabel": "step", "ylabel": "loss", "log": False, "curves": {"measured": [2.0, 1.0]}}
      >>> [text.get_text() for text in series_curves({"series": series}, Figure().subplots()).texts]
      ['measured']
    """
    series = case["series"]
    x, ends = measured(series["x"]), []
    values = [measured(curve) for curve in series["curves"].values()]
    seen = [v for curve in values for v in curve if math.isfinite(v)]
    log = bool(series.get("log")) and any(v > 0 for v in seen)
    inks = (color, INK, MUTED, mix(color, 0.4))
    for i, (name, curve) in enumerate(zip(series["curves"], values, strict=True)):
        points = [(a, b if b > 0 or not log else math.nan) for a, b in zip(x, curve, strict=True)]
        (dash, width), ink = _LINES[i % 4], inks[i % 4]
        dots = {"marker": "osD^"[i % 4], "ms": 4.2, "mec": PAPER, "mew": 0.6} if len(points) <= 24 else {}
        ax.plot(*zip(*points, strict=True), color=ink, ls=dash, lw=width, zorder=3 + i, **dots)
        finite = [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]
        if finite:
            ends.append((max(finite)[1], wrapped(name, 20), ink, dash))
    geometric = _is_geometric(x)
    for axis, wanted in ((ax.xaxis, geometric), (ax.yaxis, log)):
        _ticks(ax, axis, wanted, x if axis is ax.xaxis else seen)
    ax.grid(True, which="major", color=GRID, lw=0.6)
    label(ax, x=wrapped(series.get("xlabel", ""), 60, 1), y=wrapped(series.get("ylabel", ""), 34))
    low, high = ax.get_ylim()
    scale: Callable[[Real], Real] = math.log if log else float
    heights = [(scale(b) - scale(low)) / (scale(high) - scale(low)) for b, *_ in ends]
    gap = 0.13 if any("\n" in name for _, name, *_ in ends) else 0.085
    for y, (_, name, ink, dash) in zip(spread(heights, gap, 0.0, 1.0), ends, strict=True):
        ax.plot([1.015, 1.07], [y] * 2, color=ink, ls=dash, lw=1.5, transform=ax.transAxes, clip_on=False)
        ax.annotate(
            name, (1.08, y), (2, 0), xycoords="axes fraction", textcoords="offset points", va="center",
            fontsize=7.5, linespacing=1.1, color=ink, annotation_clip=False,
        )  # fmt: skip
    return ax


def _is_geometric(x: Sequence[Real]) -> bool:
    """Whether the values are positive and their successive ratios one number, as step sizes are."""
    if len(x) < 3 or not all(math.isfinite(a) and a > 0 for a in x):
        return False
    ratios = [b / a for a, b in itertools.pairwise(x)]
    return all(math.isclose(ratio, ratios[0], rel_tol=0.02) for ratio in ratios) and abs(ratios[0] - 1) > 0.15


def _ticks(ax: Axes, axis: object, log: bool, values: Sequence[Real]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    name = axis.axis_name
    if not log:
        axis.set_major_locator(MaxNLocator(6))
        return
    getattr(ax, f"set_{name}scale")("log")
    positive = [value for value in values if value > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 0
    axis.set_minor_locator(NullLocator())
    if decades > 1.5:
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(power_of_ten)
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: format(value, "g"))


def gauges(found: Sequence[Record], ax: Axes, *, color: str = INK) -> Axes:
    """Criterion cases against their bounds: a line each with a scale of its own, the side that was asked for shaded.

    The mark is the value that was measured, by its verdict; the hollow diamond is the wrong prediction, which must lie
    on the other side of the bound.

    Args:
      found: criterion cases.
      ax: where to draw.
      color: the prediction's color.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import gauges
      >>> case = {"kind": "criterion", "statement": "mean", "loss": "bowl", "verdict": "holds", "value": 0.1,
      ...         "bound": 1.0, "at_most": True, "mutant": 9.0}
      >>> [text.get_text() for text in gauges([case], Figure(figsize=(9, 2)).subplots()).texts]
      ['mean', 'bowl', '0.1 ≤ 1', '0.1', 'wrong: 9']
    """
    width, _ = draw_in_inches(ax)
    left, right = 3.5, width - 1.75
    for k, case in enumerate(found):
        y = (k + 0.5) * GAUGE_HEIGHT
        shape, verdict_ink, _ = VERDICTS[case["verdict"]]
        ax.plot([0, width], [y + GAUGE_HEIGHT / 2] * 2, color=GRID, lw=0.6)
        ax.text(0.05, y - 0.085, wrapped(case["statement"], 48, 1), fontsize=8, color=color, va="center")
        ax.text(0.05, y + 0.095, wrapped(case["loss"], 50, 1), fontsize=7, color=MUTED, va="center")
        weight = "bold" if case["verdict"] == "fails" else "normal"
        said = inequality(case) if case["verdict"] != "could not measure" else f"{inequality(case)} ?"
        ax.text(
            width - 0.05, y, said, ha="right", va="center", fontsize=8, fontweight=weight,
            color=INK if case["verdict"] == "holds" else verdict_ink,
        )  # fmt: skip
        numbers = [case.get("value"), case.get("bound"), case.get("mutant")]
        at = _place_on_line(numbers)
        value, bound, mutant = (None if p is None else left + p * (right - left) for p in at)
        ax.plot([left, right], [y] * 2, color=FAINT, lw=0.8, zorder=1)
        if bound is not None:
            good = (left, bound) if case["at_most"] else (bound, right)
            ax.fill_between(good, y - 0.09, y + 0.09, color=VERDICTS["holds"][1], alpha=0.16, lw=0, zorder=1)
            ax.plot([bound] * 2, [y - 0.13, y + 0.13], color=INK, lw=1.3, zorder=2)
        if mutant is not None:
            ax.plot([mutant], [y], ls="", marker="D", ms=5, mfc=PAPER, mec=MUTED, mew=1.1, zorder=3)
        if value is not None:
            filled = verdict_ink if case["verdict"] != "could not measure" else PAPER
            ax.plot([value], [y], ls="", marker=shape, ms=7, mfc=filled, mec=verdict_ink, mew=1.0, zorder=4)
            text = number(numbers[0], ".3g")
            ax.text(value, y - 0.175, text, ha="center", va="center", fontsize=6.8, color=verdict_ink)
        if mutant is not None:
            text = f"wrong: {number(numbers[2], '.3g')}"
            ax.text(mutant, y + 0.185, text, ha="center", va="center", fontsize=6.8, color=MUTED)
    return ax


def _place_on_line(numbers: Sequence[Real | None]) -> list[Real | None]:
    """Where on a line from 0 to 1 these numbers lie: on a logarithmic scale where one exceeds another thirtyfold."""
    known = [x for x in numbers if is_number(x)]
    if not known:
        return [None] * len(numbers)
    positive = [x for x in known if x > 0]
    log = min(known) >= 0 and bool(positive) and max(positive) > 30 * min(positive)
    floor = min(positive) / 10 if positive else 1.0  # a zero lies a decade to the left of what can be seen
    scale: Callable[[Real], Real] = (lambda x: math.log(max(x, floor))) if log else float
    low, high = scale(min(known)), scale(max(known))
    spread_of = (high - low) or 1.0
    return [0.08 + 0.84 * (scale(x) - low) / spread_of if is_number(x) else None for x in numbers]
