"""Paths of small, medium and large steps on the two-parameter loss, where they end, and what becomes of a² - b²."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import FAINT, INK, MUTED, PAPER, Axes, Figure, halo, measured, method_color, mix

SHADES = (0.5, 0.25, 0.0)  # small, medium and large step: one hue, darker and darker
PENALTY = method_color("gradient-penalty")
FLOW = method_color("heavy-ball")
DASHES = (0, (4, 2))


def draw(record: Record) -> Figure:
    """The plane with its paths, |w|² at the end against the step size, and a² - b² against time.

    Args:
      record: of the reproduction `igr-two-parameter`.

    Returns:
      A figure.
    """
    curves = record["curves"]
    colors = [mix(method_color("gd"), share) for share in SHADES]
    note = (
        "L = (0.6 - ab)²/2 from (2.8, 3.5): n = 2 parameters, float64, no randomness. |w|² = a² + b² is the sharpness "
        "at a minimum. A step of descent multiplies a² - b² by 1 - h²(ab - 0.6)²: dotted, where the first makes it 0"
    )
    with page(
        record, 8.4, 5.2, title="Larger steps end in flatter minima, until one jumps too far", note=note
    ) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.08, 1))
        _plane(figure.add_subplot(grid[:, 0]), curves, colors)
        _ends(figure.add_subplot(grid[0, 1]), curves)
        _invariants(figure.add_subplot(grid[1, 1]), curves, colors)
    return figure


def _plane(ax: Axes, curves: Record, colors: list[str]) -> None:
    grid, minima = curves["grid"], curves["minima"]
    ax.contour(
        grid["a"], grid["b"], grid["loss"], [0.02 * 1.9**k for k in range(13)], colors=FAINT, linewidths=0.6, alpha=0.6
    )
    ax.plot(minima["a"], minima["b"], color=mix(MUTED, 0.5), lw=2.6, zorder=1.5)
    ax.plot(*zip(*curves["gradient"], strict=True), color=MUTED, lw=1.5, ls=DASHES, zorder=3)
    ax.plot(*zip(*curves["penalized"]["path"], strict=True), color=PENALTY, lw=1.6, zorder=3)
    for path, color in zip(curves["paths"], colors, strict=True):
        dots = {"marker": "o", "ms": 3.6, "mec": PAPER, "mew": 0.4} if path["stride"] == 1 else {}
        ax.plot(*zip(*path["path"], strict=True), color=color, lw=1.0 if dots else 1.6, zorder=4, **dots)
        ax.plot(*path["path"][-1], "o", ms=6.5, color=color, mec=PAPER, mew=0.8, zorder=6)
    flattest = curves["flattest"]
    ax.plot(*flattest, marker="*", ms=12, color=INK, mec=PAPER, mew=0.6, zorder=7)
    ax.plot(*curves["gradient"][0], "o", ms=7, mfc=PAPER, mec=INK, zorder=7)
    text = {"fontsize": 7.5, "path_effects": halo(), "zorder": 8}
    ax.text(2.74, 3.56, "start", ha="right", va="bottom", color=INK, **text)
    ax.annotate("flattest minimum", flattest, (7, 8), textcoords="offset points", color=INK, **text)
    ax.text(1.9, 0.42, "minima, ab = 0.6", color=MUTED, **text)
    ax.set(xlim=(-0.55, 3.15), ylim=(-0.1, 3.75), aspect="equal", xlabel="a", ylabel="b")
    names = [f"descent, h = {path['h']:g}" for path in curves["paths"]]
    names = ["gradient flow", *names, f"penalty μ‖∇L‖², μ = {curves['penalized']['mu']:g}"]
    for k, (name, color) in enumerate(zip(names, [MUTED, *colors, PENALTY], strict=True)):
        ax.text(3.12, 2.25 - 0.2 * k, name, color=color, ha="right", fontsize=8, fontweight="bold", path_effects=halo())


def _ends(ax: Axes, curves: Record) -> None:
    ends, color, size = curves["ends"], method_color("gd"), curves["gradient_size"]
    ax.axhline(size, color=MUTED, lw=1.4, ls=DASHES)
    ax.axhline(curves["flattest_size"], color=FAINT, lw=0.9)
    ax.axvline(1 / curves["residual"], color=MUTED, lw=0.9, ls=":")
    flow = sorted(zip(curves["flow_ends"]["h"], measured(curves["flow_ends"]["modified"]), strict=True))
    ax.plot(*zip(*flow, strict=True), color=FLOW, lw=1.6, label="flow of\nL + (h/4)‖∇L‖²")
    ax.plot(ends["h"], measured(ends["size"]), color=color, lw=1.0, marker="o", ms=3.2, mec=PAPER, mew=0.4)
    text = {"fontsize": 7.5, "path_effects": halo()}
    ax.text(0.0, size + 0.16, "gradient flow", color=MUTED, **text)
    ax.text(0.05, 2.9, "descent", color=color, ha="right", **text)
    ax.text(0.0, curves["flattest_size"] + 0.1, "flattest minimum", color=MUTED, **text)
    ax.set(xlabel="step size h", ylabel="|w|² at the end", ylim=(0.8, 6.4))
    end_labels(ax, size=7.5)


def _invariants(ax: Axes, curves: Record, colors: list[str]) -> None:
    for path, color in zip(curves["paths"], colors, strict=True):
        dots = {"marker": "o", "ms": 3.2, "mec": PAPER, "mew": 0.4} if path["stride"] == 1 else {}
        ax.plot(path["time"], path["invariant"], color=color, lw=1.5, label=f"h = {path['h']:g}", **dots)
    ax.axhline(1.0, color=MUTED, lw=1.4, ls=DASHES)
    ax.plot([0.0, 1.0], [1.0, 1.0], color=MUTED, lw=1.4, ls=DASHES, label="gradient flow")
    ax.set(xlabel="time n h", ylabel="a² - b², of its start", xlim=(0, 0.6), ylim=(0, 1.08))
    end_labels(ax, size=7.5)
