"""The bracket that Adam's drift shows, over its formula, and the drift of the 1-norm at the usual step size."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Real, Record
from implicit_reg.plots.style import FAINT, INK, MUTED, PAPER, Axes, Figure, halo, method_color, mix

LESS, NONE, MORE = method_color("gradient-penalty"), MUTED, method_color("adam")


def draw(record: Record) -> Figure:
    """Measured brackets against the formula, and drifts along runs beside their prediction.

    Args:
      record: of the reproduction `adam`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    note = (
        f"Full batch, a loss of 3 parameters whose gradient keeps its signs, float64, Optax's Adam from its zero "
        f"state with bias correction, eps = 1e-8; {settings['num_starts']} random starts. Left: from the drift of "
        f"‖∇L‖₁ against the flow without the correction, extrapolated to h = 0. Right: mean over the starts at h = "
        f"{settings['usual']:g}; ‖∇L‖₁ is {curves['norm']:.2g} at first; lines: the flow with two terms, whose ages "
        f"grow with the step"
    )
    title = "Adam: b₂ < b₁ lowers ‖∇L‖₁, the usual decays raise it"
    with page(record, height=3.9, title=title, note=note) as figure:
        left, right = figure.subplots(1, 2)
        _brackets(left, curves)
        _drifts(right, curves)
        end_labels(right, size=7.5)
    return figure


def _sign(value: Real) -> str:
    return LESS if value > 0 else MORE if value < 0 else NONE


def _brackets(ax: Axes, curves: Record) -> None:
    ends = [1.6 * min(curves["formula"]), 2.2 * max(curves["formula"])]
    fine = [ends[0] + (ends[1] - ends[0]) * k / 400 for k in range(401)]
    ax.plot(fine, fine, color=FAINT, lw=1.2, zorder=1)
    ax.axhline(0, color=FAINT, lw=0.7)
    ax.axvline(0, color=FAINT, lw=0.7)
    for formula, values in zip(curves["formula"], curves["measured"], strict=True):
        ax.plot([formula] * len(values), values, "o", ms=6, color=_sign(formula), mec=PAPER, mew=0.7, zorder=3)
    for scale in (ax.set_xscale, ax.set_yscale):
        scale("symlog", linthresh=2, linscale=0.5)
    ticks = [-100, -10, 0, 10]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    text = {"fontsize": 8, "fontweight": "bold", "path_effects": halo(), "transform": ax.transAxes, "linespacing": 1.4}
    ax.text(0.97, 0.42, "b₂ < b₁\npenalizes ‖∇L‖₁", color=LESS, ha="right", **text)
    ax.text(0.05, 0.66, "b₂ > b₁\nrewards ‖∇L‖₁", color=MORE, **text)
    ax.set(xlabel="(1 + b₁)/(1 - b₁) - (1 + b₂)/(1 - b₂)", ylabel="measured bracket")
    ax.set_title(f"{len(curves['formula'])} pairs of decays", fontsize=8.5)


def _drifts(ax: Axes, curves: Record) -> None:
    ax.axhline(0, color=FAINT, lw=0.7)
    steps = [0, *curves["steps"]]
    for k, run in enumerate(curves["followed"]):
        first, second = run["pair"]
        color = NONE if first == second else LESS if second < first else mix(MORE, 0.0 if k == 0 else 0.35)
        name = f"b₁ = {first:g}, b₂ = {second:g}" + "\n(the usual ones)" * (k == 0)
        ax.plot(steps, [0, *run["predicted"]], color=color, lw=1.5, label=name)
        ax.plot(steps[1::2], run["drift"][::2], ls="", marker="o", ms=4, color=color, mec=PAPER, mew=0.5)
    ax.set(xlabel="step", ylabel="‖∇L‖₁ of Adam minus that of the flow", xlim=(0, None))
    ax.set_title("at the usual step size", fontsize=8.5, color=INK)
