"""Flooding on the level set: the picture of the slide, the decay that it predicts, and the orders."""

from __future__ import annotations

from implicit_reg.plots.papers._page import page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import FAINT, INK, MUTED, PAPER, Axes, Figure, halo, measured, method_color, mix

FLOW, FREE = method_color("flooding-level-set"), method_color("gradient-penalty")
DOTS = method_color("flooding")


def draw(record: Record) -> Figure:
    """The plane with the level set, `a² - b²` along it, and the distances against the step size.

    Args:
      record: of the reproduction `flooding-slow-flow`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    note = (
        f"Left: L = (0.6 - ab)²/2, level b = {curves['level']['value']:g}, e = {settings['picture']:g}. Right: mean "
        f"over {settings['phases']} starts between the level and one step above it, on this loss (n = 2 parameters) "
        "and on a tanh network (n = 17); float64, no randomness. The flow is -(e²/2)PHg with P = I - gg'/‖g‖²"
    )
    with page(
        record, 8.2, 5.0, title="At its level flooding slides to where the gradient is small", note=note
    ) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.05, 1))
        _plane(figure.add_subplot(grid[:, 0]), curves)
        _decay(figure.add_subplot(grid[0, 1]), curves)
        _orders(figure.add_subplot(grid[1, 1]), curves)
    return figure


def _plane(ax: Axes, curves: Record) -> None:
    grid = curves["grid"]
    levels = [0.5 * (k / 5) ** 2 for k in (1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 14, 16)]
    ax.contour(grid["a"], grid["b"], grid["loss"], levels, colors=FAINT, linewidths=0.6, alpha=0.6)
    ax.plot(curves["level"]["a"], curves["level"]["b"], color=mix(FLOW, 0.72), lw=5, zorder=1.5)
    ax.plot(curves["minima"]["a"], curves["minima"]["b"], color=FAINT, lw=1.6, zorder=1.5)
    ax.plot(*zip(*curves["free"], strict=True), color=FREE, lw=1.8, ls=(0, (4, 1.6)), zorder=3)
    ax.plot(*zip(*curves["flow"], strict=True), color=PAPER, lw=4.0, zorder=5.5)
    ax.plot(*zip(*curves["flow"], strict=True), color=FLOW, lw=2.2, zorder=5.6)
    points = curves["iterates"]
    ax.plot(*zip(*points, strict=True), color=mix(DOTS, 0.35), lw=0.5, zorder=4.5)
    ax.plot(*zip(*points, strict=True), ls="", marker="o", ms=2.4, color=INK, mec=PAPER, mew=0.25, zorder=5)
    ax.plot(*points[0], "o", ms=7, mfc=PAPER, mec=INK, zorder=6)
    balanced = curves["level"]["balanced"]
    ax.plot(balanced, balanced, marker="*", ms=11, color=FLOW, mec=PAPER, mew=0.6, zorder=6)
    ax.set(xlim=(0.2, 2.1), ylim=(0.7, 2.6), xlabel="a", ylabel="b", aspect="equal")
    text = {"fontsize": 8, "path_effects": halo(), "zorder": 8}
    ax.annotate("start", points[0], (8, 2), textcoords="offset points", color=INK, **text)
    ax.annotate("least ‖g‖ at this level", (balanced, balanced), (7, 6), textcoords="offset points", color=FLOW, **text)
    end = curves["free"][-1]
    ax.annotate("free descent\nof ‖g‖²", end, (4, -26), textcoords="offset points", color=FREE, **text)
    ax.text(0.5, 0.85, "minima", color=MUTED, ha="left", **text)
    ax.text(1.7, 1.0, "level set L = b", color=MUTED, ha="left", **text)


def _decay(ax: Axes, curves: Record) -> None:
    decay = curves["decay"]
    ax.plot(decay["time"], decay["exact"], color=FLOW, lw=1.8)
    shades = [0.65, 0.45, 0.25, 0.0, 0.0, 0.0]
    for k, values in enumerate(decay["measured"]):
        ax.plot(
            decay["measured_time"],
            measured(values),
            "o",
            ms=4.5,
            color=mix(INK, shades[k]),
            mec=PAPER,
            mew=0.5,
            zorder=3,
        )
    ax.text(0.75, 0.56, "exp(-2b n e²)", color=FLOW, fontsize=8)
    ax.text(0.75, 0.68, "flooding, every e", color=INK, fontsize=8)
    ax.set(xlabel="slow time n e²", ylabel="a² - b², of its start", ylim=(0, 1.02), xlim=(0, None))
    ax.set_title("The slide has a closed form on this loss")


def _orders(ax: Axes, curves: Record) -> None:
    kinds = (
        ("projected", FLOW, "projected flow"),
        ("projected, times 1.1", MUTED, "1.1 times it"),
        ("free", FREE, "free descent"),
    )
    for marker, errors in zip("os", curves["errors"].values(), strict=True):
        for kind, color, _ in kinds:
            ax.plot(errors["e"], errors[kind], color=color, lw=1.3, marker=marker, ms=4.2, mec=PAPER, mew=0.5)
            ax.set(xscale="log", yscale="log")
    first = curves["errors"]["two parameters"]
    for kind, color, label in kinds:
        ax.text(
            first["e"][-1] * 0.97,
            first[kind][-1] * (12 if kind == "projected" else 1.5),
            label,
            color=color,
            fontsize=8,
            path_effects=halo(),
        )
    low = first["e"][-1]
    ends = (low * 2.5, low * 7)
    slope = [first["projected"][-1] * 0.3 * (e / low) ** 2 for e in ends]
    ax.plot(ends, slope, color=FAINT, lw=1.2)
    ax.text(ends[1] * 1.05, slope[1] * 0.8, "order 2", color=MUTED, fontsize=7.5, va="center")
    ax.set(xlabel="step size e   (circles: 2 parameters, squares: 17)", ylabel="distance / displacement")
    ax.set_ylim(1e-5, 8)
    ax.set_title("Only the projected flow is right, at order 2")
