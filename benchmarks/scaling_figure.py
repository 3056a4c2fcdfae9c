"""The scaling benchmark as one picture: a panel for each axis and kind of cost, measured solid, from a model dashed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import scaling_model

from implicit_reg.plots.style import FAINT, GRID, MUTED, Axes, Figure, new_figure, spread, style

# Dimension, unit, what stands over the panel; drawn where there is something to draw.
PANELS = (
    ("parameters", "cpu s", "Time of a call"),
    ("parameters", "bytes", "Memory of a call, everything"),
    ("order", "gradients", "Cost of a field in gradients"),
    ("order", "equations", "Size of its program"),
    ("step-sizes", "cpu s", "Many step sizes"),
    ("runs", "cpu s", "A sweep, from call to result"),
    ("minibatches", "steps", "Steps of an epoch's mean"),
    ("minibatches", "cpu s", "Time of an epoch's mean"),
    ("devices", "bytes", "A divided step, on each device"),
    ("devices", "wall s", "A run of a sweep on several devices"),
    ("processes", "wall s", "A sweep by several processes"),
)
COLORS = ("#0072b2", "#d55e00", "#00916a", "#b4478f", "#5b6770")
LABELS = {"cpu s": "CPU time", "wall s": "time", "bytes": "memory"}
COLUMNS, WIDTH, HEIGHT = 3, 4.0, 2.7
GAP, LONG = 0.085, 24  # between two labels, of the height; letters of a line
SMOOTH = 40  # pieces of a curve that a model draws


def draw_scaling(data: Mapping[str, Any]) -> Figure:
    """All dimensions that `data` holds.

    Args:
      data: of `scaling.run`; one that was read from a file of results is as good.

    Returns:
      A figure: logarithmic axes, points where something was measured or counted by the compiler, dashes where a model
      is read beyond, dotted lines for limits.
    """
    panels = [(data[name], unit, title) for name, unit, title in PANELS if name in data and _chosen(data[name], unit)]
    if not panels:
        raise ValueError(f"draw_scaling: `data` must hold measured dimensions of {sorted({p[0] for p in PANELS})}")
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with style():
        figure = new_figure(WIDTH * columns, HEIGHT * rows + 0.35)
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.axis("off")
        for ax, (dimension, unit, title) in zip(axes.flat, panels, strict=False):
            _panel(ax, _chosen(dimension, unit), dimension["axis"], unit)
            ax.set_title(title)
        figure.supxlabel(
            "Points: measured, or counted by the compiler. Dashes: read from the fitted model. Dotted: the limit.",
            fontsize=7, color=MUTED, ha="left", x=0.01,
        )  # fmt: skip
    return figure


def _chosen(dimension: Mapping[str, Any], unit: str) -> list[scaling_model.Series]:
    return [s for s in scaling_model.series_of(dimension) if s.unit == unit and "compilation" not in s.name]


def _panel(ax: Axes, curves: Sequence[scaling_model.Series], axis: str, unit: str) -> None:
    few = max(x for s in curves for x in (*s.x, *s.beyond)) <= 8
    ax.set_xscale("log", base=2) if axis in ("devices", "processes") else None if few else ax.set_xscale("log")
    ax.set_yscale("log")
    ends = []
    for s, color in zip(curves, COLORS, strict=False):
        ax.plot(s.x, s.y, color=color, marker="o", markersize=3, linewidth=1.3, zorder=3)
        place, value = s.x[-1], s.y[-1]
        further = [x for x in s.beyond if x > place] if s.model else []
        if further:
            ratio = further[-1] / place
            path = [place * ratio ** (k / SMOOTH) for k in range(SMOOTH)] + [further[-1]]
            ax.plot(path, [s.model(x) for x in path], color=color, linestyle=(0, (4, 2)), linewidth=1.2)
            place, value = path[-1], s.model(path[-1])
        if s.limit:
            ax.plot(s.x, s.limit, color=color, linestyle=":", linewidth=1.2, alpha=0.8)
        ends.append((value, color, s.name.removesuffix(", memory").removesuffix(", steps")))
    if axis in ("devices", "processes", "order", "minibatches") and few:
        places = sorted({x for s in curves for x in s.x})
        ax.set_xticks(places, [f"{x:g}" for x in places])
        ax.minorticks_off()
    if axis == "minibatches":
        ax.set_xticks([2, 3, 4, 6, 8, 16, 32, 64], ["2", "3", "4", "6", "8", "16", "32", "64"])
        ax.minorticks_off()
    ax.set_xlabel(axis)
    ax.set_ylabel(LABELS.get(unit, unit))
    ax.grid(color=GRID, linewidth=0.6)
    ax.tick_params(which="minor", length=0)
    low, high = ax.get_ylim()
    if high / low < 12:  # a decade at least, so that nothing flat looks steep
        middle = math.sqrt(low * high)
        low, high = middle / 3.5, middle * 3.5
        ax.set_ylim(low, high)
    heights = [math.log(value / low) / math.log(high / low) for value, *_ in ends]
    gap = GAP * (1.7 if any(len(name) > LONG for *_, name in ends) else 1)  # a long one takes two lines
    for (_, color, name), there, at in zip(ends, heights, spread(heights, gap, 0.02, 0.98), strict=True):
        ax.annotate(
            name.replace(", ", ",\n", 1) if len(name) > LONG else name,
            (1.0, there), (1.06, at), xycoords="axes fraction", textcoords="axes fraction", color=color, fontsize=7,
            va="center", linespacing=0.95, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
    _ticks(ax, unit, low, high)


def _ticks(ax: Axes, unit: str, low: float, high: float) -> None:
    """Numbers with units; three to a decade where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,)))
    ax.yaxis.set_minor_locator(NullLocator())
    if unit in LABELS:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _amount(y, unit)))
    else:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: scaling_model.count(y)))


def _amount(y: float, unit: str) -> str:
    """Decimal, as the places of the ticks are."""
    if unit != "bytes":
        return f"{y:g} s" if y >= 1 else scaling_model.quantity(y, unit)
    factor, name = next((f, n) for f, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if y >= f or f == 1)
    return f"{y / factor:g} {name}"
