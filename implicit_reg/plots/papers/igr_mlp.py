"""What a family of networks looks like where its training losses are equal, against the step size."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Record, is_number
from implicit_reg.plots.style import FAINT, GRID, MUTED, VERDICTS, Axes, Figure, halo, measured, method_color, mix

# Family -> method of its color, words, line style.
FAMILIES = {"minibatch": ("sgd-shuffled", "minibatches", "-"), "full-batch": ("gd", "full batch", (0, (4, 2)))}
PANELS = {
    "ratio": "$R_{IG}/E$",
    "slope": "slope ‖∇E‖",
    "sharpness": "sharpness",
    "rise": "rise of E under noise",
    "test_loss": "test cross-entropy",
    "test_accuracy": "test accuracy",
}


def draw(record: Record) -> Figure:
    """Six quantities against the step size, a line for each width, with minibatches and with the full batch.

    Args:
      record: of the reproduction `igr-mlp`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    note = (
        f"Digits, {settings['num_train']} training examples, {settings['num_hidden'] + 1} linear layers, "
        f"{curves['num_seeds']} seeds, each with a split of its own; change against the smallest step at the "
        f"first moment with E ≤ {curves['level']:g}, paired by seed, mean and 95 % interval. ρ: rank correlation with "
        f"the step size (minibatches), ✓ as claimed and ✗ not. Noise: {100 * curves['noise']:g} % of each filter's norm"
    )
    with page(record, height=5.2, title="What a larger step does, at equal training loss", note=note) as f:
        axes = f.subplots(2, 3)
        for ax, (quantity, words) in zip(axes.ravel(), PANELS.items(), strict=True):
            for family in FAMILIES:
                _lines(ax, curves[family], family, quantity)
            _dress(ax, record, quantity, words)
        for ax in axes[1]:
            ax.set_xlabel("step size h")
        for ax in axes[:, 2]:
            end_labels(ax, size=7)
    return f


def _lines(ax: Axes, family: Record, name: str, quantity: str) -> None:
    method, words, style = FAMILIES[name]
    widths, order = family["widths"], sorted(range(len(family["steps"])), key=lambda k: family["steps"][k])
    steps = [family["steps"][k] for k in order]
    for w, width in enumerate(widths):
        color = mix(method_color(method), 0.5 * (1 - (w + 1) / len(widths)))
        mean, low, high = (
            [measured(family["change"][quantity][part][w])[k] for k in order] for part in ("mean", "low", "high")
        )
        ax.plot(steps, mean, color=color, ls=style, lw=1.6, marker="o", ms=3, label=f"{words}, {width}", zorder=3)
        ax.vlines(steps, low, high, color=color, lw=0.9, alpha=0.6, zorder=2)


def _dress(ax: Axes, record: Record, quantity: str, words: str) -> None:
    rho = record["numbers"].get(f"minibatch/{quantity}")
    steps = sorted({step for family in FAMILIES for step in record["curves"][family]["steps"]})
    ax.set_xscale("log")
    shown = [step for k, step in enumerate(steps) if k in (0, len(steps) - 1) or step >= 1.5 * steps[k - 1]]
    ax.set_xticks(shown, [f"{step:.2g}" for step in shown])
    ax.minorticks_off()
    ax.set_title(words)
    ax.grid(True, axis="y", color=GRID, lw=0.6)
    ax.margins(y=0.2)
    ax.axhline(0, color=FAINT, lw=0.8, zorder=1)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+g} %" if value else "0")
    text, color = "not judged", MUTED
    if is_number(rho):
        held = record["parts"][_JUDGED.index(quantity)]["holds"]
        text, color = (
            (f"ρ = {rho:+.2f} ✓", VERDICTS["holds"][1]) if held else (f"ρ = {rho:+.2f} ✗", VERDICTS["fails"][1])
        )
    ax.annotate(
        text, (0.98, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=7.5, color=color, zorder=6,
        path_effects=halo(),
    )  # fmt: skip


_JUDGED = ("ratio", "slope", "rise", "test_loss", "test_accuracy")  # the criteria, in their order
