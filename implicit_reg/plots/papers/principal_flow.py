"""Across the valley of a quadratic: iterates, principal flow, and the second-order flow that cannot oscillate."""

from __future__ import annotations

from implicit_reg.plots.papers._page import page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import GRID, INK, MUTED, PAPER, Axes, Figure, halo, method_color

SHOWN = 20  # steps in the lower row; afterwards the lines only go on
FLOOR = 1e-9
PRINCIPAL, SECOND = method_color("principal-flow"), method_color("heavy-ball")
LOOKS = {
    "second_order": {"color": SECOND, "ls": (0, (4, 1.6)), "lw": 1.8},
    "principal": {"color": PRINCIPAL, "lw": 1.8},
    "iterates": {"color": INK, "ls": "", "marker": "o", "mec": PAPER, "mew": 0.5},
}


def draw(record: Record) -> Figure:
    """Position across the valley against the step, and its size.

    Args:
      record: of the reproduction `principal-flow`.

    Returns:
      A figure with a column per step size.
    """
    panels = record["curves"]["panels"]
    note = (
        "L = x' diag(1, 0.01) x, n = 2 parameters, float64, no randomness. Principal flow: -h φ(hH)g, "
        "φ(z) = -log(1-z)/z, its real part above and modulus below; second-order flow: of L + (h/4)‖∇L‖². At h = 0.5 "
        "descent is at 0 after one step"
    )
    title = "Only the principal flow oscillates and diverges with descent"
    with page(record, height=5.2, title=title, note=note) as figure:
        axes = figure.subplots(2, len(panels), sharex="row", sharey="row", squeeze=False, height_ratios=(1.3, 1))
        for panel, (path, size) in zip(panels, axes.T, strict=True):
            _path(path, panel)
            _size(size, panel)
        axes[0, 0].set_ylabel("position across the valley")
        axes[1, 0].set_ylabel("distance from the bottom")
        text = {"fontsize": 8, "path_effects": halo()}
        axes[0, 0].text(0.75, -0.24, "second-order flow", color=SECOND, **text)
        axes[0, 1].text(1.25, 0.3, "principal flow", color=PRINCIPAL, **text)
        axes[0, 1].text(1.0, -0.36, "descent", color=INK, ha="center", **text)
    return figure


def _path(ax: Axes, panel: Record) -> None:
    fate = "diverges" if panel["z"] > 2 else "arrives in one step" if panel["z"] == 1 else "converges"
    fine = [k / panel["per_step"] for k in range(len(panel["principal"]))]
    ax.axhline(0, color=GRID, lw=0.8)
    ax.plot(fine, panel["second_order"], **LOOKS["second_order"])
    ax.plot(fine, panel["principal"], **LOOKS["principal"])
    ax.plot(range(len(panel["iterates"])), panel["iterates"], ms=5.5, **LOOKS["iterates"])
    ax.set_title(f"h = {panel['h']:g}", fontweight="bold", pad=16)
    ax.text(0, 1.03, f"hλ = {panel['z']:g}: descent {fate}", transform=ax.transAxes, color=MUTED, fontsize=7.5)
    ax.set(ylim=(-0.66, 0.66), xlabel="step")


def _size(ax: Axes, panel: Record) -> None:
    for name, look in LOOKS.items():
        values = panel["size"][name][: SHOWN + 1]
        kept = [(n, value) for n, value in enumerate(values) if value is not None and value >= FLOOR]
        ax.plot(*zip(*kept, strict=True), ms=3.8, **look)
    ax.set(yscale="log", ylim=(FLOOR, 4), xlabel="step")
