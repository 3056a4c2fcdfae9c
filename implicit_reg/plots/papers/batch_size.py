"""Batch sizes at one flow time, and the full batch with an explicit penalty beside them."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import FAINT, GRID, INK, MUTED, PAPER, Axes, Figure, halo, measured, method_color, mix

PANELS = {
    "variance": "gradient variance",
    "sharpness": "sharpness",
    "test_loss": "test cross-entropy",
    "test_accuracy": "test accuracy",
}
SGD, PENALTY = method_color("sgd-shuffled"), method_color("gradient-penalty")


def draw(record: Record) -> Figure:
    """The end of the runs against the batch size, the sharpness on the way, and the time of an epoch.

    Args:
      record: of the reproduction `batch-size`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    time = settings["step"] * settings["num_steps"]
    strengths = " or ".join(f"{strength:g}×" for strength in curves["strengths"])
    note = (
        f"Digits, {curves['batch_sizes'][-1]} training examples, {curves['num_seeds']} seeds, each with a split of its "
        f"own; h = {settings['step']:g}, flow time {time:g}; differences paired by seed, means with 95 % intervals. "
        f"Green: the full batch with the penalty {strengths} (h/4) mean‖∇C_k‖² over batches of "
        f"{curves['batch_sizes'][0]}. Wall time is of one network on the machine of this record and enters no criterion"
    )
    with page(record, height=5.4, title="Batch sizes at equal flow time, and a penalty instead", note=note) as figure:
        axes = figure.subplots(2, 3).ravel()
        for ax, (quantity, words) in zip(axes[:4], PANELS.items(), strict=True):
            _ends(ax, curves, quantity)
            ax.set_title(words)
        for ax in (axes[0], axes[3]):
            ax.set_ylabel("minus the full batch's")
        _seconds(axes[4], curves)
        _on_the_way(axes[5], curves)
        end_labels(axes[5], size=7)
    return figure


def _log_sizes(ax: Axes, sizes: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("batch size")
    ax.grid(True, axis="y", color=GRID, lw=0.6)


def _ends(ax: Axes, curves: Record, quantity: str) -> None:
    sizes, against = curves["batch_sizes"], curves["against_full"]
    mean, low, high = (measured(against["batches"][quantity][part]) for part in ("mean", "low", "high"))
    ax.axhline(0, color=FAINT, lw=0.8, zorder=1)
    ax.plot(sizes, mean, color=SGD, lw=1.7, marker="o", ms=4, mec=PAPER, mew=0.5, zorder=3)
    ax.vlines(sizes, low, high, color=SGD, lw=0.9, alpha=0.7, zorder=2)
    _log_sizes(ax, sizes)
    for k, strength in enumerate(curves["strengths"]):
        mean, low, high = (measured(against["penalized"][quantity][part])[k] for part in ("mean", "low", "high"))
        color, x = mix(PENALTY, 0.35 * k / len(curves["strengths"])), sizes[-1] * 2 ** (k + 1)
        ax.vlines([x], low, high, color=color, lw=0.9, alpha=0.7, zorder=2)
        ax.plot([x], [mean], ls="", marker="D", ms=4.5, color=color, mec=PAPER, mew=0.5, zorder=4)
        ax.annotate(
            f"{strength:g}×", (x, mean), (5, 0), textcoords="offset points", va="center", fontsize=7, color=color,
            path_effects=halo(), annotation_clip=False,
        )  # fmt: skip
    ax.set_xlim(sizes[0] / 1.25, sizes[-1] * 2 ** (len(curves["strengths"]) + 1))


def _on_the_way(ax: Axes, curves: Record) -> None:
    time, sizes = curves["time"][1:], curves["batch_sizes"]
    rows = [
        (f"batches of {sizes[0]}", curves["batches"], 0, SGD),
        ("full batch", curves["batches"], -1, method_color("gd")),
        (f"full, penalty {curves['strengths'][0]:g}×", curves["penalized"], 0, PENALTY),
    ]
    for name, arm, k, color in rows:
        low, high = (measured(arm["sharpness"][part][k])[1:] for part in ("low", "high"))
        ax.fill_between(time, low, high, color=color, alpha=0.12, lw=0)
        ax.plot(time, measured(arm["sharpness"]["mean"][k])[1:], color=color, lw=1.6, label=name)
    ax.set(xlabel="flow time n h", title="sharpness on the way", xlim=(0, time[-1]))
    ax.set_ylim(bottom=0)
    ax.grid(True, axis="y", color=GRID, lw=0.6)


def _seconds(ax: Axes, curves: Record) -> None:
    sizes = curves["batch_sizes"]
    milliseconds = [1e3 * seconds for seconds in curves["seconds"]]
    ax.plot(sizes, milliseconds, color=MUTED, lw=1.6, marker="o", ms=4, mec=PAPER, mew=0.5)
    _log_sizes(ax, sizes)
    ax.set_yscale("log")
    ax.margins(x=0.12, y=0.25)
    ax.set_yticks([])
    ax.minorticks_off()
    for size, value in zip(sizes, milliseconds, strict=True):
        ax.annotate(f"{value:.2g}", (size, value), (3, 5), textcoords="offset points", ha="left", fontsize=7, color=INK)
    ax.set_title("milliseconds an epoch")
