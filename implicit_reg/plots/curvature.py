"""Curvature in pictures: spectral density, sharpness along a run, the loss around a point, ways out of a saddle."""

from __future__ import annotations

import math
from collections.abc import Sequence

from implicit_reg.plots.record import Real, Record, is_number, number
from implicit_reg.plots.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    VERDICTS,
    Axes,
    Figure,
    halo,
    measured,
    method_color,
    mix,
    new_figure,
    plain,
    power_of_ten,
    spread,
    style,
)

_DECADES = 6  # of a density below its peak that are shown: what lies lower is the tail of the smoothing kernel


def spectral_density(record: Record, ax: Axes, *, color: str = "#0072b2") -> Axes:
    """The density of the eigenvalues: symmetric logarithmic abscissa, logarithmic ordinate, a band of two errors.

    Args:
      record: `grid` and `density`, lists; optionally `standard_error`, a list; `linear`, below which the abscissa is
        linear (a thousandth of the largest absolute value otherwise); and `marks`, exact eigenvalues drawn as ticks.
      ax: where to draw.
      color: of the curve.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import spectral_density
      >>> ax = spectral_density({"grid": [-1.0, 0.0, 10.0], "density": [0.1, 2.0, 0.1]}, Figure().subplots())
      >>> ax.get_xscale(), ax.get_yscale()
      ('symlog', 'log')
    """
    grid, density = measured(record["grid"]), measured(record["density"])
    error = measured(record.get("standard_error") or [0.0] * len(grid))
    seen = [y for y in density if is_number(y) and y > 0]
    top = max(seen, default=1.0)
    floor = max(min(seen, default=top), top * 10.0**-_DECADES)
    curve = [y if y >= floor else floor for y in density]
    ax.fill_between(grid, floor, curve, color=color, alpha=0.08, lw=0, zorder=1)
    band = [(max(y - 2 * e, floor), max(y + 2 * e, floor)) for y, e in zip(density, error, strict=True)]
    if any(error):
        ax.fill_between(grid, *zip(*band, strict=True), color=mix(color, 0.55), alpha=0.6, lw=0, zorder=2)
    ax.plot(grid, curve, color=color, lw=1.7, zorder=3)
    largest = max((abs(x) for x in grid if is_number(x)), default=1.0) or 1.0
    linear = record.get("linear") or 1e-3 * largest
    ax.set_xscale("symlog", linthresh=linear, linscale=0.6)
    _symmetric_ticks(ax, min(grid), max(grid), linear)
    _log_ticks(ax, top / floor)
    ax.set_ylim(floor, top * 3)
    ax.axvline(0, color=FAINT, lw=0.9, ls=(0, (3, 2.5)), zorder=1)
    marks = measured(record.get("marks") or [])
    if marks:
        ax.plot(
            marks, [0.025] * len(marks), ls="", marker="|", ms=8, mew=0.8, color=INK, alpha=0.6,
            transform=ax.get_xaxis_transform(), zorder=4, label="eigenvalues",
        )  # fmt: skip
        ax.annotate(
            "ticks: exact eigenvalues", (0.99, 0.97), xycoords="axes fraction", fontsize=7, color=INK, ha="right",
            va="top",
        )  # fmt: skip
    ax.set_xlabel("eigenvalue of the Hessian")
    ax.set_ylabel("density")
    ax.grid(True, which="major", color=GRID, lw=0.6)
    return ax


def sharpness_curve(record: Record, ax: Axes, *, name: str = "gd") -> Axes:
    """The largest eigenvalue along a run, with the line where a step of the run stops being stable.

    Args:
      record: `step` and `sharpness`, lists of equal length; `h`, the step size, or `threshold`, the largest stable
        sharpness where it is not `2 / h` (momentum, Adam).
      ax: where to draw.
      name: the method, for its color.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import sharpness_curve
      >>> ax = sharpness_curve({"step": [0, 1], "sharpness": [1.0, 3.0], "h": 0.5}, Figure().subplots())
      >>> [text.get_text() for text in ax.texts]
      ['2/h = 4']
    """
    color, values = method_color(name), measured(record["sharpness"])
    given = record.get("threshold")
    threshold = given if is_number(given) else 2 / record["h"]
    text = f"stable up to {threshold:.4g}" if is_number(given) else f"2/h = {threshold:.4g}"
    ax.plot(record["step"], values, color=color, lw=1.9, zorder=3)
    ax.axhline(threshold, color=INK, lw=1.1, ls=(0, (4, 2.5)), zorder=2)
    top = max([threshold, *(y for y in values if is_number(y))])
    low = min([0.0, *(y for y in values if is_number(y))])
    ax.set_ylim(low - 0.02 * (top - low), top * 1.2)
    ax.axhspan(threshold, top * 1.2, color=VERDICTS["fails"][1], alpha=0.05, lw=0, zorder=0)
    ax.annotate(
        text, (0, threshold), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", va="bottom",
        fontsize=8, color=INK, path_effects=halo(),
    )  # fmt: skip
    ax.set_xlabel("step")
    ax.set_ylabel("sharpness (largest eigenvalue)")
    ax.grid(True, axis="y", color=GRID, lw=0.6)
    return ax


def loss_surface(record: Record, ax: Axes, *, name: str = "gd") -> Axes:
    """The loss on a line or on a plane through the parameters, with the way that a run took.

    Args:
      record: `x` and `loss`, lists, for a line; `x`, `y` and `loss[i][j]` at `(x[i], y[j])` for a plane. Optionally
        `trajectory`, a list of points `[x, y]` (`[x, loss]` on a line), `xlabel`, `ylabel`.
      ax: where to draw.
      name: the method, for the color of its trajectory.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import loss_surface
      >>> plane = {"x": [0, 1], "y": [0, 1], "loss": [[0.0, 1.0], [1.0, 2.0]], "trajectory": [[1, 1], [0, 0]]}
      >>> [text.get_text() for text in loss_surface(plane, Figure().subplots()).texts][-2:]
      ['start', 'end']
    """
    color, path = method_color(name), record.get("trajectory") or []
    if record.get("y") is None:
        values = measured(record["loss"])
        ax.plot(record["x"], values, color=color, lw=1.9, zorder=3)
        ax.axvline(0, color=FAINT, lw=0.9, ls=(0, (3, 2.5)), zorder=1)
        low, high = min(filter(is_number, values), default=0), max(filter(is_number, values), default=0)
        if low > 0 and high > 50 * low:
            _log_ticks(ax, high / low)
        ax.set_ylabel("loss")
        ax.grid(True, axis="y", color=GRID, lw=0.6)
    else:
        _contours(record, ax)
        ax.set_ylabel(plain(record.get("ylabel", "direction 2")))
    if path:
        xs, ys = zip(*(measured(point) for point in path), strict=True)
        ax.plot(xs, ys, color=PAPER, lw=3.4, zorder=4)
        ax.plot(xs, ys, color=color, lw=1.6, marker="o" if len(path) <= 60 else "", ms=3, mec=PAPER, mew=0.4, zorder=5)
        for i, text, shape in ((0, "start", "o"), (-1, "end", "*")):
            ax.plot(xs[i], ys[i], ls="", marker=shape, ms=7 + 4 * (i < 0), color=color, mec=PAPER, mew=0.9, zorder=6)
            ax.annotate(
                text, (xs[i], ys[i]), (7, 5), textcoords="offset points", fontsize=8, color=INK, zorder=7,
                path_effects=halo(),
            )  # fmt: skip
    ax.set_xlabel(plain(record.get("xlabel", "direction 1")))
    return ax


def _contours(record: Record, ax: Axes) -> None:
    """Level lines at equal ratios of the loss where that spans decades, or at equal distances."""
    rows = [measured(row) for row in record["loss"]]
    values = [list(column) for column in zip(*rows, strict=True)]  # matplotlib wants rows of equal y
    seen = sorted(v for row in values for v in row if is_number(v))
    if not seen or seen[0] == seen[-1]:
        ax.set_xlim(min(record["x"]), max(record["x"]))
        ax.set_ylim(min(record["y"]), max(record["y"]))
        return
    low, high = seen[0], seen[-1]
    if low > 0 and high > 30 * low:
        levels = [low * (high / low) ** (k / 14) for k in range(15)]
    else:
        levels = [low + (high - low) * k / 14 for k in range(15)]
    from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap

    # Valleys are dark, so that a trajectory, which ends there, is not lost in them: its rim is of the paper's color.
    shades = LinearSegmentedColormap.from_list("valley", [mix("#5b6770", 0.35), mix("#5b6770", 0.75), "#f6f7f8"])
    ax.contourf(
        record["x"], record["y"], values, levels, cmap=shades, norm=BoundaryNorm(levels, shades.N), zorder=0,
    )  # fmt: skip
    lines = ax.contour(record["x"], record["y"], values, levels[1:-1], colors=MUTED, linewidths=0.5, zorder=1)
    ax.clabel(lines, levels[2:-2:3], fmt=lambda v: f"{v:.2g}", fontsize=6.5, inline_spacing=2)
    ax.set_xlim(min(record["x"]), max(record["x"]))
    ax.set_ylim(min(record["y"]), max(record["y"]))


def escape_curves(record: Record, ax: Axes) -> Axes:
    """How far below the saddle's loss each method is, step by step, with the rate that linear theory gives.

    Args:
      record: `curves`, each `{"name", "step", "gap"}` with `gap` the loss at the saddle minus the loss; optionally
        `title` in place of the name. `rate`, the factor of the gap per step, `(1 - h lambda)^2` for gradient descent,
        draws a dashed line through the first positive gap of the first curve.
      ax: where to draw.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import escape_curves
      >>> curve = {"name": "gd", "step": [0, 1, 2], "gap": [1e-6, 1e-5, 1e-4]}
      >>> [text.get_text() for text in escape_curves({"curves": [curve], "rate": 10.0}, Figure().subplots()).texts]
      ['gd', 'rate 10 per step']
    """
    ends, lines, tops = [], ("-", "--", "-.", ":"), []
    for i, curve in enumerate(record["curves"]):
        gap = [y if y > 0 else math.nan for y in measured(curve["gap"])]
        color = method_color(curve["name"])
        ax.plot(curve["step"], gap, color=color, lw=1.9, ls=lines[i % 4], zorder=3 + i)
        points = [(x, y) for x, y in zip(curve["step"], gap, strict=True) if is_number(y)]
        tops += [y for _, y in points]
        ends += [(points[-1][1], plain(curve.get("title") or curve["name"]), color)] if points else []
    ax.set_yscale("log")
    if tops:
        ratio = max(tops) / min(tops)
        ax.set_ylim(min(tops) / ratio**0.08, max(tops) * ratio**0.12)
        _log_ticks(ax, ratio)
    low, high = (math.log(y) for y in ax.get_ylim())
    heights = spread([(math.log(y) - low) / (high - low) for y, *_ in ends], 0.075, 0.0, 1.0)
    for y, (_, text, color) in zip(heights, ends, strict=True):
        ax.annotate(
            text, (1, y), (5, 0), xycoords="axes fraction", textcoords="offset points", va="center", fontsize=8,
            color=color, annotation_clip=False,
        )  # fmt: skip
    _rate_line(record, ax, tops)
    ax.set_xlabel("step")
    ax.set_ylabel("loss at the saddle − loss")
    ax.grid(True, axis="y", color=GRID, lw=0.6)
    return ax


def _rate_line(record: Record, ax: Axes, tops: Sequence[Real]) -> None:
    rate = record.get("rate")
    if not (is_number(rate) and rate > 1 and record["curves"]):
        return
    first = record["curves"][0]
    positive = [(x, y) for x, y in zip(first["step"], measured(first["gap"]), strict=True) if is_number(y) and y > 0]
    if not positive:
        return
    (x, y), top = positive[0], max(tops)
    last = min(x + max(math.log(top / y), 0.0) / math.log(rate), max(first["step"]))
    ax.plot([x, last], [y, y * rate ** (last - x)], color=INK, lw=1.0, ls=(0, (3, 2.5)), zorder=2)
    middle = (x + last) / 2
    ax.annotate(
        f"rate {number(rate, '.4g')} per step", (middle, y * rate ** (middle - x)), (8, -6),
        textcoords="offset points", ha="left", va="top", fontsize=7.5, color=INK, path_effects=halo(),
    )  # fmt: skip


def curvature_figure(record: Record, *, title: str = "", note: str = "") -> Figure:
    """A page of those of the four pictures that the record has.

    Args:
      record: optionally `density`, `sharpness`, `surface`, `escape`, each the record of its picture.
      title: a heading.
      note: the line under the pictures.

    Returns:
      The figure.

    Raises:
      ValueError: where the record has none of them.

    Example:
      >>> from implicit_reg.plots import curvature_figure
      >>> len(curvature_figure({"sharpness": {"step": [0, 1], "sharpness": [1.0, 3.0], "h": 0.5}}).axes)
      1
    """
    parts = {
        "density": (spectral_density, "Spectral density"),
        "sharpness": (sharpness_curve, "Sharpness along the run"),
        "surface": (loss_surface, "Loss around the parameters"),
        "escape": (escape_curves, "Away from the saddle"),
    }
    chosen = [(key, *part) for key, part in parts.items() if record.get(key)]
    if not chosen:
        raise ValueError(f"curvature_figure: `record` must have one of {', '.join(parts)}, got {sorted(record)}")
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    with style():
        figure = new_figure(4.9 * columns + 0.5, 3.5 * rows + 0.3)
        every = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, (key, draw, heading) in zip(every, chosen, strict=False):
            draw(record[key], ax)
            ax.set_title(heading, fontweight="bold")
        for ax in every[len(chosen) :]:
            ax.remove()
        if title:
            figure.suptitle(plain(title), x=0.01, ha="left", fontweight="bold", fontsize=11)
        figure.supxlabel(plain(note), fontsize=7, color=MUTED, ha="left", x=0.01)
    return figure


def _log_ticks(ax: Axes, ratio: Real) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(NullLocator())
    if ratio > 30:
        ax.yaxis.set_major_locator(LogLocator(numticks=7))
        ax.yaxis.set_major_formatter(power_of_ten)
    else:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(lambda value, _: format(value, "g"))


def _symmetric_ticks(ax: Axes, low: Real, high: Real, linear: Real) -> None:
    """Powers of ten on both sides of zero, thinned so that their labels stand apart."""
    from matplotlib.ticker import FixedLocator, NullLocator

    first = math.ceil(math.log10(linear) - 1e-9)
    count = max(math.floor(math.log10(max(abs(low), abs(high), linear)) + 1e-9) - first + 1, 1)
    powers = [10.0 ** (first + k) for k in range(0, count, 1 + count // 6)]
    ticks = [-p for p in powers if -p >= low] + [0.0] + [p for p in powers if p <= high]
    ax.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: "0" if x == 0 else ("−" if x < 0 else "") + power_of_ten(abs(x)))
