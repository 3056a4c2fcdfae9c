"""The evidence of `verify`: errors against the step size, with the orders that they show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from implicit_reg.plots.record import KINDS, Real, Record, count, is_number, main_cases, number, worst_case
from implicit_reg.plots.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    VERDICTS,
    Axes,
    Figure,
    axes_size,
    label,
    measured,
    method_color,
    mix,
    new_figure,
    place,
    power_of_ten,
    sign,
    spread,
    style,
    wrapped,
)

_MARKERS = "os^Dvph"
HOW_TO_READ = "Numbers are slopes between the two finest step sizes, dashed lines have the predicted slope"


def error_curves(record: Record, ax: Axes, *, kind: str = "fixed_time", color: str = INK) -> Axes:
    """Errors against step size on logarithmic axes, one curve per number of terms, with the orders at the curves' ends.

    A dashed line of the predicted slope goes through the finest point of each curve: where theory is right, the curve
    leaves it only at large steps. Curves differ by shade and marker.

    Args:
      record: an order case: `h`, `truncations`, and optionally `floor`, an error below which nothing can be seen.
      ax: where to draw.
      kind: the measurement, "fixed_time" or "one_step".
      color: the prediction's color.

    Returns:
      `ax`.

    Raises:
      KeyError: where the record has no such measurement.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import error_curves
      >>> curve = {"expected": 1, "error": [2e-2, 1e-2], "measured": 1.0, "verdict": "holds"}
      >>> ax = error_curves({"h": [0.2, 0.1], "truncations": [{"terms": 1, "fixed_time": curve}]}, Figure().subplots())
      >>> ax.get_xscale(), [text.get_text() for text in ax.texts]
      ('log', ['1 term\\n1.00 ✓'])
    """
    h, truncations = measured(record["h"]), record["truncations"]
    drawn, missing = [], []
    for i, row in enumerate(truncations):
        curve, terms = row[kind], row["terms"]
        error = measured(curve["error"])
        points = [(x, y) for x, y in zip(h, error, strict=True) if x > 0 and y > 0 and math.isfinite(y)]
        if not points:
            missing.append(str(terms))
            continue
        shade = mix(color, 0.42 * (len(truncations) - 1 - i) / max(1, len(truncations) - 1))
        (x0, y0), x1 = points[-1], points[0][0]
        ax.plot([x0, x1], [y0, y0 * (x1 / x0) ** curve["expected"]], color=FAINT, lw=0.9, ls=(0, (3, 2.5)), zorder=1)
        path = list(zip(*points, strict=True))
        ax.plot(*path, color=shade, lw=1.6, marker=_MARKERS[i % 7], ms=5.2, mec=PAPER, mew=0.8, zorder=3)
        drawn.append((points, terms, curve))

    _scale(ax, [points for points, *_ in drawn], record.get("floor"))
    heights = [_fraction(ax.get_ylim(), points[-1][1]) for points, *_ in drawn]
    x = min((_fraction(ax.get_xlim(), points[-1][0]) for points, *_ in drawn), default=0.0)
    gap = _label_gap(ax)
    for y, (_, terms, curve) in zip(spread(heights, gap, gap / 2, 1 - gap / 4), drawn, strict=True):
        holds, (_, alarm, mark) = curve["verdict"] == "holds", VERDICTS[curve["verdict"]]
        slope = f"{number(curve['measured'])} {mark}" if is_number(curve["measured"]) else mark
        ink = color if holds else alarm if curve["verdict"] == "fails" else MUTED
        ax.annotate(
            f"{count(terms, 'term')}\n{slope}", (x, y), (-6, 0), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="center", fontsize=7, linespacing=1.1, color=ink,
            fontweight="normal" if holds else "bold", zorder=5,
        )  # fmt: skip
    if missing:
        text = f"{' and '.join(missing)} term{'s' * (missing != ['1'])}:\ncould not measure"
        ax.text(0.97, 0.04, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=7, color=MUTED)
    return ax


def _label_gap(ax: Axes) -> Real:
    """The height of a label of two lines, as a share of the axes."""
    return 0.235 / max(axes_size(ax)[1], 0.5)


def _scale(ax: Axes, curves: Sequence[Sequence[tuple[Real, Real]]], floor: Real | None) -> None:
    """Logarithmic axes that hold the points, a margin on the left for the labels, and the band below the floor."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    xs = sorted({x for points in curves for x, _ in points})
    ys = [y for points in curves for _, y in points]
    if not xs:
        ax.set_xticks([])
        ax.set_yticks([])
        return
    ax.set_xscale("log")
    ax.set_yscale("log")
    width, height = math.log(xs[-1] / xs[0]) or 1.0, math.log(max(ys) / min(ys)) or 1.0
    ax.set_xlim(xs[0] * math.exp(-0.62 * width), xs[-1] * math.exp(0.12 * width))
    ax.set_ylim(min(ys) * math.exp(-0.14 * height), max(ys) * math.exp(0.12 * height))
    ax.grid(True, which="major", color=GRID, lw=0.6)
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_major_formatter(power_of_ten)
    ax.yaxis.set_minor_locator(NullLocator())
    # The markers show the step sizes; only the ends are named, for more names do not fit.
    ax.xaxis.set_major_locator(FixedLocator([xs[0], xs[-1]]))
    ax.xaxis.set_major_formatter(lambda x, _: format(x, ".4g"))
    ax.xaxis.set_minor_locator(NullLocator())
    if is_number(floor) and floor > ax.get_ylim()[0]:
        ax.axhspan(ax.get_ylim()[0], floor, color=GRID, lw=0, zorder=0)
        if _fraction(ax.get_ylim(), floor) < 0.08:
            return
        ax.text(
            0.98, floor, "round-off", transform=ax.get_yaxis_transform(), ha="right", va="top", fontsize=6.5,
            color=MUTED,
        )  # fmt: skip


def _fraction(limits: tuple[Real, Real], value: Real) -> Real:
    low, high = (math.log(x) for x in limits)
    return (math.log(value) - low) / (high - low)


def errors_figure(record: Record) -> Figure:
    """Errors at fixed time of every prediction with an order, as small multiples.

    Each shows the main statement on the loss where the measured orders are farthest from the predicted ones; all losses
    and statements are on the pictures of the single checks.

    Args:
      record: of a run of `verify`.

    Returns:
      A figure with a panel per prediction.

    Example:
      >>> from implicit_reg.plots import errors_figure
      >>> curve = {"expected": 1, "error": [2e-2, 1e-2], "measured": 1.0, "verdict": "holds"}
      >>> case = {"kind": "order", "statement": "", "loss": "bowl", "verdict": "holds", "h": [0.2, 0.1], "time": 1.0,
      ...         "truncations": [{"terms": 1, "fixed_time": curve}]}
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent", "cases": [case]}}
      >>> len(errors_figure({"checks": [check]}).axes)
      1
    """
    shown = [
        (check, worst_case(orders))
        for check in record["checks"]
        if (orders := [case for case in main_cases(check) if case["kind"] == "order"])
    ]
    columns = max(1, min(5, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    wide, high = 2.26, 2.36
    with style():
        total = rows * high + 0.62
        figure = new_figure(max(columns * wide + 0.35, 4.0), total, layout=None)
        for k, (check, case) in enumerate(shown):
            row, column = divmod(k, columns)
            ax = place(figure, 0.25 + column * wide + 0.34, row * high + 0.58, wide - 0.5, high - 0.96)
            error_curves(case, ax, color=method_color(check["name"]))
            title(ax, check["details"]["title"], case["loss"], method_color(check["name"]), 25)
            last = row == rows - 1 or k + columns >= len(shown)
            label(ax, x="step size h" * last, y="error at fixed time" * (column == 0))
        sign(figure, f"The main statement of each prediction, on the loss where it does worst. {HOW_TO_READ}", record)
    return figure


def title(ax: Axes, head: str, line: str, color: str, width: int) -> None:
    """Two lines above a panel: what it shows, in bold, and on which loss."""
    label(ax, title=wrapped(head, width), color=color, fontweight="bold", fontsize=8, pad=15)
    ax.annotate(
        wrapped(line, width + 6, 1), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=7,
        color=MUTED,
    )  # fmt: skip


def order_panels(found: Sequence[Record]) -> list[tuple[Record, str]]:
    """`(case, kind)` of every picture that these order cases have: both measurements side by side."""
    return [(case, kind) for case in found for kind in KINDS if any(row.get(kind) for row in case["truncations"])]


def order_panel(case: Record, kind: str, ax: Axes, color: str) -> None:
    """One measurement of an order case, with axes that say what it is."""
    rows = [row for row in case["truncations"] if row.get(kind)]
    error_curves(case | {"truncations": rows}, ax, kind=kind, color=color)
    at = f"error at t = {number(case.get('time'), 'g')}" if kind == "fixed_time" else "error after one step"
    label(ax, x="step size h", y=at, title=wrapped(case["loss"], 30, 1), fontweight="bold", fontsize=8)
