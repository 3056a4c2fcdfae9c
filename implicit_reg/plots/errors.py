"""The evidence of `verify`: errors against the step size, with the orders that they show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from implicit_reg.plots.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    VERDICTS,
    Axes,
    Figure,
    Real,
    Record,
    is_number,
    measured,
    method_color,
    mix,
    new_figure,
    number,
    plain,
    sign,
    spread,
    style,
)

_MARKERS = "os^Dvph"
KINDS = {"fixed_time": "at fixed time", "one_step": "after one step"}


def error_curves(record: Record, ax: Axes, *, kind: str = "fixed_time", color: str = INK) -> Axes:
    """Errors against step size on logarithmic axes, one curve per number of terms, with the slopes at the curves' ends.

    A dashed line of the predicted slope goes through the finest point of each curve: where theory is right, the curve
    leaves it only at large steps. Curves differ by shade and marker.

    Args:
      record: one loss of a check: `h`, `truncations`, and optionally `floor`, an error below which nothing can be seen.
      ax: where to draw.
      kind: the measurement, "fixed_time" or "one_step".
      color: the method's color.

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
      ('log', ['1 term\\nslope 1.00 ✓'])
    """
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    h, truncations = measured(record["h"]), record["truncations"]
    labels = []
    for i, row in enumerate(truncations):
        curve, terms = row[kind], row["terms"]
        error = measured(curve["error"])
        points = [(x, y) for x, y in zip(h, error, strict=True) if x > 0 and y > 0 and math.isfinite(y)]
        shade = mix(color, 0.42 * (len(truncations) - 1 - i) / max(1, len(truncations) - 1))
        if points:
            (x0, y0), x1 = points[-1], points[0][0]
            ax.plot(
                [x0, x1], [y0, y0 * (x1 / x0) ** curve["expected"]], color=FAINT, lw=0.9, ls=(0, (3, 2.5)), zorder=1
            )
            path = list(zip(*points, strict=True))
            ax.plot(*path, color=shade, lw=1.6, marker=_MARKERS[i % 7], ms=5.2, mec=PAPER, mew=0.8, zorder=3)
        labels.append((points, terms, curve))

    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(True, which="major", color=GRID, lw=0.6)
    ax.yaxis.set_major_locator(LogLocator(numticks=6))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(LogFormatterSciNotation())
    ax.tick_params(which="minor", length=0)
    drawn = [(points, *rest) for points, *rest in labels if points]
    _make_room(ax, [points for points, *_ in drawn], record.get("floor"))
    heights = [_fraction(ax.get_ylim(), points[-1][1]) for points, *_ in drawn]
    finest = [_fraction(ax.get_xlim(), points[-1][0]) for points, *_ in drawn]
    for y, x, (_, terms, curve) in zip(spread(heights, 0.14), finest, drawn, strict=True):
        holds, (_, alarm, mark) = curve["verdict"] == "holds", VERDICTS[curve["verdict"]]
        text = f"{terms} term{'s' * (terms != 1)}\nslope {number(curve['measured'])} {mark}"
        ink = color if holds else alarm if curve["verdict"] == "fails" else MUTED
        ax.annotate(
            text, (x, y), (-6, 0), xycoords="axes fraction", textcoords="offset points", ha="right", va="center",
            fontsize=7, linespacing=1.15, color=ink, fontweight="normal" if holds else "bold", zorder=5,
        )  # fmt: skip
    missing = [str(terms) for points, terms, *_ in labels if not points]
    if missing:
        text = f"{' and '.join(missing)} term{'s' * (missing != ['1'])}:\ncould not measure"
        ax.text(0.97, 0.04, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=7, color=MUTED)
    return ax


def _make_room(ax: Axes, curves: Sequence[Sequence[tuple[Real, Real]]], floor: Real | None) -> None:
    """Limits that hold the points with a margin on the left for the labels, and the band below the floor."""
    xs = [x for points in curves for x, _ in points]
    ys = [y for points in curves for _, y in points]
    if not xs:
        ax.set_xticks([])
        ax.set_yticks([])
        return
    width, height = math.log(max(xs) / min(xs)) or 1.0, math.log(max(ys) / min(ys)) or 1.0
    ax.set_xlim(min(xs) * math.exp(-0.72 * width), max(xs) * math.exp(0.08 * width))
    ax.set_ylim(min(ys) * math.exp(-0.12 * height), max(ys) * math.exp(0.10 * height))
    if is_number(floor) and floor > ax.get_ylim()[0]:
        ax.axhspan(ax.get_ylim()[0], floor, color=GRID, lw=0, zorder=0)
        ax.text(
            0.98,
            floor,
            "round-off",
            transform=ax.get_yaxis_transform(),
            ha="right",
            va="top",
            fontsize=6.5,
            color=MUTED,
        )


def _fraction(limits: tuple[Real, Real], value: Real) -> Real:
    low, high = (math.log(x) for x in limits)
    return (math.log(value) - low) / (high - low)


def errors_figure(record: Record) -> Figure:
    """Errors at fixed time of every method on every loss, as small multiples.

    Args:
      record: of a run of `verify`.

    Returns:
      A figure with a column per method and a row per loss.

    Example:
      >>> from implicit_reg.plots import errors_figure
      >>> curve = {"expected": 1, "error": [2e-2, 1e-2], "measured": 1.0, "verdict": "holds"}
      >>> loss = {"name": "bowl", "h": [0.2, 0.1], "time": 1.0, "truncations": [{"terms": 1, "fixed_time": curve}]}
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent", "losses": [loss]}}
      >>> len(errors_figure({"checks": [check]}).axes)
      1
    """
    checks = [check for check in record["checks"] if check["details"].get("losses")]
    rows = max((len(check["details"]["losses"]) for check in checks), default=1)
    with style():
        figure = new_figure(max(1, len(checks)) * 2.6 + 0.5, rows * 2.45 + 0.75)
        axes = figure.subplots(rows, max(1, len(checks)), squeeze=False)
        for ax in axes.flat:
            ax.set_visible(False)
        for j, check in enumerate(checks):
            for i, loss in enumerate(check["details"]["losses"]):
                ax = axes[i, j]
                ax.set_visible(True)
                error_curves(loss, ax, color=method_color(check["name"]))
                if i == 0:
                    ax.set_title(
                        plain(check["details"]["title"]),
                        color=method_color(check["name"]),
                        fontweight="bold",
                        fontsize=9,
                    )
                if j == 0:
                    ax.set_ylabel(f"{plain(loss['name'])}\nerror at t = {number(loss.get('time'), 'g')}")
                if i == len(check["details"]["losses"]) - 1:
                    ax.set_xlabel("step size h")
        sign(figure, "Slopes are those of the two finest step sizes, dashed lines those predicted", record)
    return figure


def check_figure(check: Record, record: Record) -> Figure:
    """One method: errors at fixed time and after one step, on every loss.

    Args:
      check: one entry of the record's checks, with losses.
      record: of the run of `verify`, for the caption.

    Returns:
      A figure with a row per loss.

    Example:
      >>> from implicit_reg.plots import check_figure
      >>> curve = {"expected": 1, "error": [2e-2, 1e-2], "measured": 1.0, "verdict": "holds"}
      >>> row = {"terms": 1, "fixed_time": curve, "one_step": curve}
      >>> loss = {"name": "bowl", "h": [0.2, 0.1], "time": 1.0, "truncations": [row]}
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent", "losses": [loss]}}
      >>> len(check_figure(check, {"checks": [check]}).axes)
      2
    """
    losses = check["details"]["losses"]
    with style():
        figure = new_figure(2.85 * 2 * len(losses) + 0.3, 3.1)
        axes = figure.subplots(1, 2 * len(losses), squeeze=False)[0]
        panels = [(loss, kind) for loss in losses for kind in KINDS]
        for ax, (loss, kind) in zip(axes, panels, strict=True):
            error_curves(loss, ax, kind=kind, color=method_color(check["name"]))
            ax.set_title(plain(loss["name"]) if kind == "fixed_time" else "", fontweight="bold")
            at = f"error at t = {number(loss.get('time'), 'g')}" if kind == "fixed_time" else "error after one step"
            ax.set_ylabel(at)
            ax.set_xlabel("step size h")
        sign(figure, "Slopes are those of the two finest step sizes, dashed lines those predicted", record)
    return figure
