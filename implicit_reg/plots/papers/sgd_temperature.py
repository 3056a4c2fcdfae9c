"""One set of coefficients against three laws: the points collapse on a line against h/B alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Real, Record
from implicit_reg.plots.style import MUTED, PAPER, Axes, Figure, halo, method_color, mix

MARKERS = ("o", "s", "D", "^", "v", "P")
LAWS: Mapping[str, Callable[[Real, Real], Real]] = {
    "h/B": lambda h, b: h / b,
    "h alone": lambda h, b: h,
    "1/B alone": lambda h, b: 1 / b,
}


def draw(record: Record) -> Figure:
    """The measured coefficient against h/B, against h and against 1/B.

    Args:
      record: of the reproduction `sgd-temperature`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    note = (
        f"c: coefficient of the variance of example gradients that shuffled minibatches add to full-batch descent, "
        f"from the mean end of one epoch, without its factor (N - B)/(N - 1). {settings['num_examples']} digits, a "
        f"64-{settings['width']}-10 tanh network at its start, float64; mean over n = {settings['num_seeds']} seeds of "
        f"{2 * settings['num_pairs']} orders; shades: step sizes, marks: batch sizes"
    )
    with page(record, height=3.7, title="Temperature: the implicit term goes as h/B", note=note) as figure:
        axes = figure.subplots(1, 3, sharey=True, width_ratios=(1.25, 1, 1))
        for ax, (name, law) in zip(axes, LAWS.items(), strict=True):
            _panel(ax, curves, law, right=name == "h/B")
            ax.set_title(f"against {name}: residual {curves['residuals'][name]:.2g}", fontsize=8.5)
            ax.set_xlabel(name.removesuffix(" alone"))
        axes[0].set_ylabel("measured coefficient c")
        sizes, batches = curves["step_sizes"], curves["batch_sizes"]
        most = [(f"B = {b}", (max(sizes), curves["coefficients"][-1][j])) for j, b in enumerate(batches)]
        least = [(f"h = {h:g}", (1 / min(batches), curves["coefficients"][i][0])) for i, h in enumerate(sizes)]
        _names(axes[1], most)
        _names(axes[2], least)
    return figure


def _panel(ax: Axes, curves: Record, law: Callable[[Real, Real], Real], *, right: bool) -> None:
    color = method_color("sgd-shuffled")
    sizes, batches = curves["step_sizes"], curves["batch_sizes"]
    if right:
        ends = [min(sizes) / max(batches) / 1.6, max(sizes) / min(batches) * 1.6]
        ax.plot(ends, [x / 4 for x in ends], color=MUTED, lw=1.2, zorder=1)
        ax.text(ends[1] / 8, ends[1] / 16, "c = h/(4B)", color=MUTED, ha="right", path_effects=halo())
    for i, h in enumerate(sizes):
        for j, b in enumerate(batches):
            shade = mix(color, 0.6 * (1 - i / max(1, len(sizes) - 1)))
            value = curves["coefficients"][i][j]
            ax.plot(law(h, b), value, MARKERS[j], ms=6.5, color=shade, mec=PAPER, mew=0.7, zorder=3)
    ax.set(xscale="log", yscale="log")


def _names(ax: Axes, marks: list[tuple[str, tuple[Real, Real]]]) -> None:
    """Names beside the marks at the right edge, which stand one above the other."""
    for name, (x, y) in marks:
        ax.plot([x], [y], alpha=0, color=MUTED, label=name)
    end_labels(ax, size=7.5)
