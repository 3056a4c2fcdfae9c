"""Losses, accuracy over the epochs, and accuracy by flood level beside the loss where overfitting begins."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import GRID, INK, MUTED, PAPER, Axes, Figure, measured, method_color, mix

NAMES = {"none": "no flooding", "flooding": "flooding", "alternating": "alternating"}


def draw(record: Record) -> Figure:
    """One row for each data set and recipe: losses, accuracy, and the levels.

    Args:
      record: of the reproduction `flooding-digits`.

    Returns:
      A figure with three panels in each row.
    """
    data, settings = record["curves"]["data"], record["settings"]
    widths = "-".join(str(width) for width in settings["widths"])
    note = (
        f"n = {settings['seeds']} seeds (split, noise, initialization, order); {settings['noise']:.0%} of the training "
        f"and validation labels are wrong, test labels are right; ReLU layers {widths}; plain SGD with step size "
        f"{settings['sgd_step']:g}, or Adam with {settings['adam_step']:g} and batch normalization; batches of "
        f"{settings['batch_size']}. Curves are means; the flooded ones have the level with the best mean score on "
        "noisy validation data. Alternating: descent 10 times the ascent, the same net step. Right: last epoch, 95 % "
        "intervals; ticks: the level that each seed chose (blue) and the training loss at which its validation loss "
        "begins to rise without a flood (dark); the line is their mean, dashed half of it"
    )
    title = "Where the flood level lies on real data with noisy labels"
    with page(record, height=2.3 * len(data) + 1.5, title=title, note=note) as figure:
        axes = figure.subplots(len(data), 3, squeeze=False, width_ratios=(1, 0.9, 1))
        for row, (name, found) in zip(axes, data.items(), strict=True):
            _losses(row[0], found)
            _accuracies(row[1], found)
            _levels(row[2], found)
            row[0].set_title(name, fontweight="bold")
        for ax, title in zip(axes[0, 1:], ("clean test accuracy, %", "by flood level, %"), strict=True):
            ax.set_title(title, pad=14)
        for ax, label in zip(axes[-1], ("epoch", "epoch", "level, training loss (nats)"), strict=True):
            ax.set_xlabel(label)
        for ax in axes[:, :2].flat:
            end_labels(ax, size=7)
    return figure


def _color(method: str) -> str:
    return MUTED if method == "none" else method_color(method)


def _losses(ax: Axes, found: Record) -> None:
    for method, curves in found["methods"].items():
        if method == "alternating":
            continue  # its losses lie near those of plain steps; its accuracy is in the next panel
        color, words = _color(method), NAMES[method]
        ax.plot(found["epoch"], measured(curves["train"]), color=mix(color, 0.35), lw=1.2, label=f"training, {words}")
        ax.plot(found["epoch"], measured(curves["test"]), color=color, lw=2.0, label=f"test, {words}")
    ax.axhspan(0, found["level"], color=method_color("flooding"), alpha=0.1, lw=0, zorder=0)
    ax.set(xlim=(0, found["epoch"][-1]), ylim=(0, None), ylabel="cross-entropy (nats)")
    ax.grid(True, axis="y", color=GRID, lw=0.6)


def _accuracies(ax: Axes, found: Record) -> None:
    for method, curves in found["methods"].items():
        values = [100 * value for value in measured(curves["accuracy"])]
        ax.plot(found["epoch"], values, color=_color(method), lw=1.8, label=NAMES[method])
    shown = [value for curves in found["methods"].values() for value in measured(curves["accuracy"])[2:]]
    ax.set(xlim=(0, found["epoch"][-1]), ylim=(100 * min(shown) - 2, 100 * max(shown) + 1.5))
    ax.grid(True, axis="y", color=GRID, lw=0.6)


def _levels(ax: Axes, found: Record) -> None:
    color, bars = method_color("flooding"), found["accuracy_by_level"]
    levels = found["levels"]
    for level, bar in zip(levels, bars, strict=True):
        ink = MUTED if level == 0 else color
        ax.plot([level] * 2, [100 * bar["low"], 100 * bar["high"]], color=mix(ink, 0.4), lw=2.2, zorder=2)
        ax.plot(level, 100 * bar["mean"], "o", ms=5, color=ink, mec=PAPER, mew=0.6, zorder=3)
    rises = found["rises_at"]["loss"]
    mean = sum(rises) / len(rises)
    low = min(100 * bar["low"] for bar in bars)
    high = max(100 * bar["high"] for bar in bars)
    ax.set_ylim(low - 0.22 * (high - low), high + 0.08 * (high - low))
    ax.set_xlim(-0.04, 1.06 * max(*levels, *rises))
    for values, ink, place in ((found["chosen"], color, 0.075), (rises, INK, 0.02)):
        ax.plot(
            values, [place] * len(values), "|", ms=7, mew=1.4, color=ink, alpha=0.75, clip_on=False,
            transform=ax.get_xaxis_transform(), zorder=4,
        )  # fmt: skip
    ax.axvline(mean, color=INK, lw=0.9, zorder=1)
    ax.axvline(mean / 2, color=INK, lw=0.9, ls=(0, (4, 3)), zorder=1)
    for x, words in ((mean, "rises"), (mean / 2, "half")):
        ax.text(x, 1.01, words, transform=ax.get_xaxis_transform(), fontsize=6.5, color=INK, ha="center", va="bottom")
    ax.grid(True, axis="y", color=GRID, lw=0.6)
