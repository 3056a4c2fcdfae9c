"""Four orders of clean and noisy examples, followed step by step."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import FAINT, GRID, MUTED, Figure, measured

PANELS = {
    "sharpness": "sharpness of the training loss",
    "test_loss": "test cross-entropy",
    "train_loss": "training loss, all examples",
    "test_accuracy": "test accuracy",
}
# Order -> color, line style: the two that the claim is about are drawn in full.
ORDERS = {
    "all-at-once": ("#0072b2", "-"),
    "clean-then-all": ("#d55e00", "-"),
    "clean-then-noisy": ("#b4478f", (0, (4, 2))),
    "noisy-then-clean": ("#3a7d54", (0, (4, 2))),
}


def draw(record: Record) -> Figure:
    """Sharpness, losses and accuracy along the runs.

    Args:
      record: of the reproduction `curriculum`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    steps = curves["step"]
    note = (
        f"Digits, {settings['num_clean']} clean training examples and {settings['num_noisy']} of which "
        f"{100 * settings['flipped']:g} % have a wrong label; test labels are clean. {curves['num_seeds']} seeds, "
        f"each with a split of its own; means with 95 % intervals. Orders change at half time; dashed: each example "
        f"is seen as often as in all at once"
    )
    with page(record, height=5.6, title="Clean examples first, noisy labels later: four orders", note=note) as figure:
        axes = figure.subplots(2, 2, sharex=True)
        for ax, (quantity, words) in zip(axes.ravel(), PANELS.items(), strict=True):
            for k, order in enumerate(curves["orders"]):
                color, style = ORDERS[order]
                band = {part: measured(curves["paths"][quantity][part][k]) for part in ("mean", "low", "high")}
                ax.fill_between(steps, band["low"], band["high"], color=color, alpha=0.1, lw=0)
                ax.plot(steps, band["mean"], color=color, ls=style, lw=1.6, label=order.replace("-", " "))
            ax.axvline(steps[-1] / 2, color=FAINT, lw=0.8, ls=":", zorder=0)
            ax.set_xlim(0, steps[-1])
            ax.set_title(words)
            ax.grid(True, axis="y", color=GRID, lw=0.6)
        for ax in axes[1]:
            ax.set_xlabel("step")
        axes[0, 0].annotate(
            "half time", (0.5, 0.02), (3, 0), xycoords="axes fraction", textcoords="offset points", fontsize=7,
            color=MUTED,
        )  # fmt: skip
        for ax in axes.ravel():
            end_labels(ax, size=7)
    return figure
