"""Paths of small, medium and large steps on the two-parameter loss, where they end, and what becomes of a² - b²."""

from __future__ import annotations

import math

from implicit_reg.plots.record import Record
from implicit_reg.plots.style import (
    FAINT,
    INK,
    MUTED,
    PAPER,
    Axes,
    Figure,
    halo,
    measured,
    method_color,
    mix,
    new_figure,
    spread,
    style,
)

SHADES = (0.55, 0.28, 0.0)  # small, medium and large step: the same hue, darker


def draw(record: Record) -> Figure:
    """The plane with its paths, |w|² at the end against the step size, and a² - b² against time.

    Args:
      record: of the reproduction `igr-two-parameter`.

    Returns:
      A figure.
    """
    curves = record["curves"]
    colors = [mix(method_color("gd"), share) for share in SHADES]
    with style():
        figure = new_figure(8.4, 4.7)
        grid = figure.add_gridspec(2, 2, width_ratios=(1.12, 1))
        _plane(figure.add_subplot(grid[:, 0]), curves, colors)
        _ends(figure.add_subplot(grid[0, 1]), curves)
        _invariants(figure.add_subplot(grid[1, 1]), curves, colors)
        figure.supxlabel(
            "L = (0.6 - ab)²/2 from (2.8, 3.5); n = 2 parameters, float64, no randomness; "
            f"{record['scale']} scale. |w|² = a² + b² is the sharpness at a minimum.\nGradient flow keeps a² - b²; "
            "a step of descent multiplies it by 1 - h²(ab - 0.6)².",
            fontsize=7,
            color=MUTED,
            ha="left",
            x=0.01,
        )
    return figure


def _plane(ax: Axes, curves: Record, colors: list[str]) -> None:
    grid = curves["grid"]
    levels = [0.02 * 1.9**k for k in range(13)]
    ax.contour(grid["a"], grid["b"], grid["loss"], levels, colors=FAINT, linewidths=0.6, alpha=0.6)
    minima = [a for a in grid["a"] if a > 0.1]
    ax.plot(minima, [0.6 / a for a in minima], color=FAINT, lw=2.4, zorder=1.5)
    ax.plot(*zip(*curves["gradient"], strict=True), color=MUTED, lw=1.5, ls=(0, (4, 2)), zorder=3)
    ax.plot(*zip(*curves["penalized"]["path"], strict=True), color=method_color("gradient-penalty"), lw=1.6, zorder=3)
    for path, color in zip(curves["paths"], colors, strict=True):
        dots = path["h"] > 0.01
        ax.plot(
            *zip(*path["path"], strict=True),
            color=color,
            lw=1.0 if dots else 1.6,
            marker="o" if dots else None,
            ms=3.6,
            mec=PAPER,
            mew=0.4,
            zorder=4,
        )
        ax.plot(*path["path"][-1], "o", ms=6.5, color=color, mec=PAPER, mew=0.8, zorder=6)
    root = math.sqrt(0.6)
    ax.plot(root, root, marker="*", ms=12, color=INK, mec=PAPER, mew=0.6, zorder=7)
    ax.plot(*curves["gradient"][0], "o", ms=7, mfc=PAPER, mec=INK, zorder=7)
    text = {"fontsize": 7.5, "path_effects": halo(), "zorder": 8}
    ax.text(2.74, 3.56, "start", ha="right", va="bottom", color=INK, **text)
    ax.text(0.86, 0.93, "flattest minimum", color=INK, **text)
    ax.text(2.35, 0.35, "minima, ab = 0.6", color=MUTED, **text)
    ax.set(xlim=(-0.55, 3.15), ylim=(-0.1, 3.75), aspect="equal", xlabel="a", ylabel="b")
    ax.set_title("Larger steps leave the path of gradient flow")
    names = [f"descent, h = {path['h']:g}" for path in curves["paths"]]
    names += ["gradient flow", f"penalty, μ = {curves['penalized']['mu']:g}"]
    inks = [*colors, MUTED, method_color("gradient-penalty")]
    for k, (name, color) in enumerate(zip(names, inks, strict=True)):
        ax.text(3.12, 2.3 - 0.19 * k, name, color=color, ha="right", fontsize=8, fontweight="bold", path_effects=halo())


def _ends(ax: Axes, curves: Record) -> None:
    ends, color = curves["ends"], method_color("gd")
    ax.axhline(curves["gradient_size"], color=MUTED, lw=1.4, ls=(0, (4, 2)))
    ax.axhline(1.2, color=FAINT, lw=0.9)
    flow = sorted(zip(curves["flow_ends"]["h"], measured(curves["flow_ends"]["modified"]), strict=True))
    ax.plot(*zip(*flow, strict=True), color=method_color("heavy-ball"), lw=1.6)
    ax.plot(ends["h"], measured(ends["size"]), color=color, lw=1.0, marker="o", ms=3.4, mec=PAPER, mew=0.4)
    overshoot = 1 / curves["residual"]
    ax.axvline(overshoot, color=FAINT, lw=0.9, ls=":")
    ax.text(
        overshoot - 0.004, 5.75, "first step\nreaches ab - 0.6 ≈ 0", ha="right", va="center", fontsize=7, color=MUTED
    )
    text = {"fontsize": 7.5, "path_effects": halo()}
    ax.text(0.0, curves["gradient_size"] + 0.16, "gradient flow", color=MUTED, **text)
    ax.text(
        0.2,
        flow[-1][1] - 0.12,
        "flow of\nL + (h/4)‖∇L‖²",
        color=method_color("heavy-ball"),
        va="top",
        ha="left",
        **text,
    )
    ax.text(0.052, 3.0, "descent", color=color, ha="right", **text)
    ax.text(0.0, 1.3, "flattest minimum", color=MUTED, fontsize=7)
    ax.set(xlabel="step size h", ylabel="|w|² at the end", ylim=(0.8, 6.4))
    ax.set_title("The end is flatter, until the first step overshoots")


def _invariants(ax: Axes, curves: Record, colors: list[str]) -> None:
    first = curves["gradient"][0][0] ** 2 - curves["gradient"][0][1] ** 2
    time = curves["time"]
    lines = [("gradient flow", [1.0 for _ in time], MUTED)]
    lines += [
        (f"h = {path['h']:g}", [value / first for value in measured(path["invariant"])], color)
        for path, color in zip(curves["paths"], colors, strict=True)
    ]
    shown = [k for k, t in enumerate(time) if t <= 2.0]
    for name, values, color in lines:
        dashed = {"ls": (0, (4, 2))} if name == "gradient flow" else {}
        ax.plot([time[k] for k in shown], [values[k] for k in shown], color=color, lw=1.7, **dashed)
    places = spread([values[shown[-1]] for _, values, _ in lines], 0.1)
    for (name, _, color), place in zip(lines, places, strict=True):
        ax.text(2.04, place, name, color=color, fontsize=7.5, va="center")
    ax.set(xlabel="time n h", ylabel="a² - b², of its start", xlim=(0, 2.0), ylim=(0, 1.12))
    ax.set_title("What gradient flow conserves, descent shrinks")
