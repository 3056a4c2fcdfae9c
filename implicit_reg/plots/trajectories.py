"""Paths on the contour of a two-parameter loss: the iterates, gradient flow, and the modified flow that they follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

from implicit_reg.plots.record import Real, Record
from implicit_reg.plots.style import (
    FAINT,
    INK,
    MUTED,
    PAPER,
    Axes,
    Figure,
    method_color,
    new_figure,
    plain,
    sign,
    style,
)

Window: TypeAlias = tuple[tuple[Real, Real], tuple[Real, Real]]


def trajectories(run: Record, grid: Record, ax: Axes, *, window: Window | None = None) -> Axes:
    """Iterates (dots), gradient flow (dashed) and modified flow (line) on the contour of the loss.

    Args:
      run: `name`, `iterates`, `gradient_flow`, `modified_flow`, each a list of pairs; a flow may be missing or None.
      grid: the loss on a grid: `a`, `b`, and `loss[j][i]` at `(a[i], b[j])`.
      ax: where to draw.
      window: limits `((a0, a1), (b0, b1))` to look closer at, such as `zoom_window(run)`; None shows the whole grid.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import trajectories
      >>> grid = {"a": [0, 1], "b": [0, 1], "loss": [[0.1, 1.0], [1.0, 2.0]]}
      >>> run = {"name": "gd", "iterates": [[1, 1], [0.5, 0.4]], "gradient_flow": None, "modified_flow": None}
      >>> ax = trajectories(run, grid, Figure().subplots())
      >>> len(ax.lines), ax.get_aspect()
      (2, 1.0)
    """
    a, b, loss = grid["a"], grid["b"], grid["loss"]
    positive = sorted(value for row in loss for value in row if value is not None and value > 0)
    if positive and positive[-1] > positive[0]:
        # Levels in equal shares of sqrt(loss): a quadratic valley gets lines at equal distances.
        top = math.sqrt(positive[-1])
        levels = [(top * k / 14) ** 2 for k in range(1, 14)]
        heights = [[math.nan if value is None else value for value in row] for row in loss]
        ax.contour(a, b, heights, levels, colors=FAINT, linewidths=0.7, alpha=0.55, zorder=1)
    color = method_color(run["name"])
    paths = {
        key: list(zip(*(run.get(key) or []), strict=True)) for key in ("gradient_flow", "modified_flow", "iterates")
    }
    close = window is not None
    if paths["gradient_flow"]:
        ax.plot(*paths["gradient_flow"], color=MUTED, lw=1.4, ls=(0, (4, 2)), zorder=3)
    if paths["modified_flow"]:
        ax.plot(*paths["modified_flow"], color=color, lw=1.8, zorder=4)
    if paths["iterates"]:
        ax.plot(*paths["iterates"], ls="", marker="o", ms=6 if close else 3.4, color=INK, mec=PAPER, mew=0.5, zorder=5)
        ax.plot(*[[c[0]] for c in paths["iterates"]], ls="", marker="o", ms=7, mfc="none", mec=INK, mew=1, zorder=5)
    (a0, a1), (b0, b1) = window or ((a[0], a[-1]), (b[0], b[-1]))
    ax.set_xlim(a0, a1)
    ax.set_ylim(b0, b1)
    ax.set_aspect("equal")
    ax.tick_params(length=2)
    for spine in ax.spines.values():
        spine.set_visible(close)
    return ax


def zoom_window(run: Record) -> Window | None:
    """The square in which iterates and gradient flow are well apart, as late in the run as that is so.

    Args:
      run: as for `trajectories`; both paths last equally long.

    Returns:
      Limits `((a0, a1), (b0, b1))`, or None without two paths that separate.

    Example:
      >>> from implicit_reg.plots import zoom_window
      >>> zoom_window({"iterates": [[0, 0], [10, 0]], "gradient_flow": [[0, 0], [10, 5]]})
      ((7.0, 13.0), (-0.5, 5.5))
    """
    iterates, flow = run.get("iterates") or [], run.get("gradient_flow") or []
    if not iterates or not flow:
        return None
    # Distance to the nearest point of the path, not to the point of equal time: what the eye sees as separate.
    near = [(math.dist(x, y), x, y) for x in iterates for y in [_nearest(x, flow)]]
    widest = max(distance for distance, *_ in near)
    if not (0 < widest < math.inf):
        return None
    # Where the gap lasts, the later place is the better one: steps are small there, so that many iterates are seen.
    distance, x, y = [row for row in near if row[0] >= 0.4 * widest][-1]
    middle = [(u + v) / 2 for u, v in zip(x, y, strict=True)]
    points = [p for path in (iterates, flow, run.get("modified_flow") or []) for p in path]
    shown = [p for p in points if math.dist(p, middle) <= 2 * distance]
    lows, highs = ([edge(p[i] for p in shown) for i in (0, 1)] for edge in (min, max))
    half = 0.6 * max(high - low for low, high in zip(lows, highs, strict=True))
    (a0, a1), (b0, b1) = (
        ((low + high) / 2 - half, (low + high) / 2 + half) for low, high in zip(lows, highs, strict=True)
    )
    return (a0, a1), (b0, b1)


def _nearest(point: Sequence[Real], path: Sequence[Sequence[Real]]) -> tuple[Real, ...]:
    """The point of a polyline that lies nearest."""
    x, y = point
    found = [tuple(path[0])]
    for (a, b), (c, d) in itertools.pairwise(path):
        length = (c - a) ** 2 + (d - b) ** 2
        along = min(1.0, max(0.0, ((x - a) * (c - a) + (y - b) * (d - b)) / length)) if length else 0.0
        found.append((a + along * (c - a), b + along * (d - b)))
    return min(found, key=lambda p: math.dist(point, p))


def trajectories_figure(record: Record) -> Figure:
    """The paths of every method: the whole of them above, and where they separate below.

    Args:
      record: of a run of `verify`, with `trajectories`.

    Returns:
      A figure with a column per method.

    Example:
      >>> from implicit_reg.plots import trajectories_figure
      >>> grid = {"a": [0, 1], "b": [0, 1], "loss": [[0.1, 1.0], [1.0, 2.0]]}
      >>> run = {"name": "gd", "h": 0.1, "iterates": [[1, 1], [0.5, 0.4]], "gradient_flow": [[1, 1], [0.5, 0.5]]}
      >>> record = {"checks": [], "trajectories": {"loss": "bowl", "grid": grid, "runs": [run]}}
      >>> len(trajectories_figure(record).axes)
      2
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    paths = record["trajectories"]
    runs = paths["runs"]
    titles = {check["name"]: check["details"]["title"] for check in record.get("checks", [])}
    with style():
        figure = new_figure(2.55 * len(runs) + 0.5, 5.4)
        axes = figure.subplots(2, len(runs), squeeze=False)
        for (whole, close), run in zip(axes.T, runs, strict=True):
            color, window = method_color(run["name"]), zoom_window(run)
            trajectories(run, paths["grid"], whole)
            whole.set_title(plain(titles.get(run["name"], run["name"])), color=color, fontweight="bold", fontsize=9)
            whole.set_xlabel("a" + (f"   (h = {run['h']:g})" if run.get("h") is not None else ""))
            if window is None:
                close.set_visible(False)
                continue
            trajectories(run, paths["grid"], close, window=window)
            (a0, a1), (b0, b1) = window
            whole.add_patch(Rectangle((a0, b0), a1 - a0, b1 - b0, fill=False, ec=FAINT, lw=0.9, zorder=6))
            close.set_xticks([])
            close.set_yticks([])
        axes[0, 0].set_ylabel("b")
        axes[1, 0].set_ylabel("where they separate")
        handles = [
            Line2D([], [], ls="", marker="o", ms=5, color=INK, label="iterates"),
            Line2D([], [], color=MUTED, lw=1.4, ls=(0, (4, 2)), label="gradient flow"),
            Line2D([], [], color=INK, lw=1.8, label="modified flow (in the method's color)"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
        sign(figure, f"Paths of (a, b) on the loss {plain(paths['loss'])}", record)
    return figure
