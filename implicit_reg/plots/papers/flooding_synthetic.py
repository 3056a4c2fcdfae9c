"""Losses with and without a flood, and the accuracy of each method: one row for each data set."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import FAINT, GRID, MUTED, PAPER, Axes, Figure, measured, method_color, mix

BASELINE = MUTED  # no regularization: the gray that the colored methods stand out from


def draw(record: Record) -> Figure:
    """Training and test loss over the epochs, and clean test accuracy by method.

    Args:
      record: of the reproduction `flooding-synthetic`.

    Returns:
      A figure with a row for each problem.
    """
    problems, settings = record["curves"]["problems"], record["settings"]
    widths = "-".join(str(width) for width in settings["widths"])
    note = (
        f"Left: means of n = {settings['seeds']} seeds (data, noise, initialization); full-batch Adam, step size "
        f"{settings['learning_rate']:g}, hidden layers {widths} with batch normalization, {settings['num_train']} "
        "training examples; the level with the best mean score on noisy validation data. Right: ● last epoch, ○ "
        "epoch chosen on noisy validation data; each seed chooses its own setting there, too; bars are 95 % "
        "intervals over the seeds; the gray line is no regularization at its last epoch"
    )
    with page(
        record, height=2.25 * len(problems) + 1.25, title="Flooding keeps noisy labels from being learned", note=note
    ) as figure:
        axes = figure.subplots(len(problems), 2, squeeze=False, width_ratios=(1, 0.92))
        for row, (name, problem) in enumerate(problems.items()):
            _losses(axes[row, 0], problem)
            _methods(axes[row, 1], problem, record["curves"]["titles"])
            axes[row, 0].set_title(name, fontweight="bold")
            if row == 0:
                axes[row, 1].set_title("clean test accuracy, %")
        axes[-1, 0].set_xlabel("epoch")
        for ax in axes[:, 0]:
            end_labels(ax, size=7.5)
    return figure


def _losses(ax: Axes, problem: Record) -> None:
    epoch = problem["epoch"]
    water = method_color("flooding")
    for method, words, color in (("none", "none", BASELINE), ("flooding", "flooding", water)):
        train, test = (measured(problem[method][part]) for part in ("train", "test"))
        ax.plot(epoch, train, color=mix(color, 0.35), lw=1.2, label=f"training, {words}")
        ax.plot(epoch, test, color=color, lw=2.0, label=f"test, {words}")
    if problem["level"] > 0:
        ax.axhspan(0, problem["level"], color=water, alpha=0.1, lw=0, zorder=0)
        ax.annotate(
            f"level {problem['level']:g}", (0.985, problem["level"]), (0, -4), xycoords=ax.get_yaxis_transform(),
            textcoords="offset points", ha="right", va="top", fontsize=7, color=water,
        )  # fmt: skip
    ax.set(xlim=(0, epoch[-1]), ylim=(0, None), ylabel="cross-entropy (noisy labels)")
    ax.grid(True, axis="y", color=GRID, lw=0.6)


def _methods(ax: Axes, problem: Record, titles: Record) -> None:
    bars = problem["methods"]
    none = next(bar["last"]["mean"] for bar in bars if bar["name"] == "none")
    ax.axvline(none, color=FAINT, lw=0.9, zorder=1)
    for y, bar in enumerate(bars):
        color = BASELINE if bar["name"] == "none" else method_color(bar["name"])
        for part, shift, fill in (("last", -0.17, color), ("stopped", 0.17, PAPER)):
            found = bar[part]
            ax.plot([found["low"], found["high"]], [y + shift] * 2, color=mix(color, 0.35), lw=1.6, zorder=2)
            ax.plot(found["mean"], y + shift, "o", ms=4.6, color=color, mfc=fill, mew=1.2, zorder=3)
    ax.set_yticks(range(len(bars)), [titles[bar["name"]] for bar in bars])
    for label, bar in zip(ax.get_yticklabels(), bars, strict=True):
        label.set(color=BASELINE if bar["name"] == "none" else method_color(bar["name"]), fontsize=7.5)
    ax.set_ylim(len(bars) - 0.5, -0.5)
    high = min(100.0, max(bar[part]["high"] for bar in bars for part in ("last", "stopped")) + 1)
    ax.set_xlim(min(bar[part]["low"] for bar in bars for part in ("last", "stopped")) - 1, high)
    ax.grid(True, axis="x", color=GRID, lw=0.6)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
