"""Across the valley of a quadratic: iterates, principal flow, and the second-order flow that cannot oscillate."""

from __future__ import annotations

from implicit_reg.plots.record import Record
from implicit_reg.plots.style import FAINT, GRID, INK, MUTED, PAPER, Figure, halo, method_color, new_figure, style

SHOWN = 20  # steps in the lower row; afterwards the lines only go on
FLOOR = 1e-9


def draw(record: Record) -> Figure:
    """Position across the valley against the step, and its size.

    Args:
      record: of the reproduction `principal-flow`.

    Returns:
      A figure with a column per step size.
    """
    principal, second = method_color("principal-flow"), method_color("heavy-ball")
    panels = record["curves"]["panels"]
    with style():
        figure = new_figure(7.6, 4.9)
        axes = figure.subplots(2, len(panels), sharex="row", squeeze=False, height_ratios=(1.25, 1))
        for column, (panel, (path, size)) in enumerate(zip(panels, axes.T, strict=True)):
            fine = [k / panel["per_step"] for k in range(len(panel["principal"]))]
            path.axhline(0, color=GRID, lw=0.8)
            path.plot(fine, panel["second_order"], color=second, lw=1.8, ls=(0, (4, 1.6)))
            path.plot(fine, panel["principal"], color=principal, lw=1.8)
            path.plot(range(len(panel["iterates"])), panel["iterates"], "o", ms=5, color=INK, mec=PAPER, mew=0.6)
            path.set_title(f"h = {panel['h']:g}", fontweight="bold", pad=14)
            verdict = {True: "arrives in one step", False: "converges"}[panel["z"] == 1]
            path.text(
                0,
                1.02,
                f"h λ = {panel['z']:g}: descent {'diverges' if panel['z'] > 2 else verdict}",
                transform=path.transAxes,
                color=MUTED,
                fontsize=7.5,
            )
            path.set_ylim(-0.66, 0.66)
            path.set_xlabel("step")
            for name, color, look in (
                ("second_order", second, {"ls": (0, (4, 1.6)), "lw": 1.8}),
                ("principal", principal, {"lw": 1.8}),
                ("iterates", INK, {"ls": "", "marker": "o", "ms": 3.6, "mec": PAPER, "mew": 0.4}),
            ):
                values = [v if v is not None and v >= FLOOR else None for v in panel["size"][name]][: SHOWN + 1]
                kept = [(n, v) for n, v in enumerate(values) if v is not None]
                size.plot(*zip(*kept, strict=True), color=color, **look)
            size.set_yscale("log")
            size.set_ylim(FLOOR / 3, 4)
            size.set_xlabel("step")
            size.axhline(1e-9, color=GRID, lw=0.8)
            if column:
                for ax in (path, size):
                    ax.tick_params(labelleft=False)
        axes[0, 0].set_ylabel("position across the valley\n(real part)")
        axes[1, 0].set_ylabel("its distance from the bottom")
        last = axes[0, -1]
        last.text(3.1, 0.05, "second-order flow", color=second, fontsize=8, path_effects=halo())
        last.text(0.95, 0.46, "principal flow", color=principal, fontsize=8, ha="left", path_effects=halo())
        last.annotate(
            "gradient descent",
            (4, panels[-1]["iterates"][4]),
            (1.7, -0.6),
            color=INK,
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.8},
        )
        figure.supxlabel(
            f"x' diag(1, 0.01) x from (-0.35, -0.2); float64, no randomness; {record['scale']} scale. The principal "
            "flow -h φ(hH)g, φ(z) = -log(1 - z)/z,\npasses through every iterate; the flow of L + (h/4)‖∇L‖² "
            "contracts across the valley at every step size, also where descent diverges.",
            fontsize=7,
            color=MUTED,
            ha="left",
            x=0.01,
        )
    return figure
