"""Backstitch's strength over its formula, what it does at equal steps, and what at an equal number of gradients."""

from __future__ import annotations

from implicit_reg.plots.papers._page import page
from implicit_reg.plots.record import Real, Record
from implicit_reg.plots.style import FAINT, INK, MUTED, PAPER, Axes, Figure, halo, method_color, mix, spread

COLOR = method_color("backstitch")
LOSS = method_color("gd")
CROWDED = 2.5  # strengths below it are close to each other


def draw(record: Record) -> Figure:
    """Measured strengths, changes at equal steps against the strength, and differences at an equal budget.

    Args:
      record: of the reproduction `backstitch`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    note = (
        f"Left: mean end of an epoch over all 24 orders of 4 minibatches and all offsets, 2-3-1 tanh network, float64, "
        f"extrapolated to h = 0. Middle and right: {settings['num_train']} digits, 64-{settings['width']}-10 tanh "
        f"network, minibatches of {settings['batch_size']}, n = {settings['num_seeds']} seeds (split, start, order), "
        f"paired; bars: 95 %. Middle: {settings['budget'] // 2} steps with h = {settings['step_sizes'][0]:g}. "
        f"Right: {settings['budget']} gradients, the step size chosen on validation data on each seed"
    )
    title = "Backstitch multiplies SGD's implicit term by κ = 1 + 2α(1 + α)/n"
    with page(record, height=4.0, title=title, note=note) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        _strength(left, curves)
        _equal_steps(middle, curves)
        _equal_gradients(right, curves)
    return figure


def _greek(name: str) -> str:
    return name.replace("alpha", "α")


def _strength(ax: Axes, curves: Record) -> None:
    top = max(curves["formula"]) * 1.12
    ax.plot([0.8, top], [0.8, top], color=FAINT, lw=1.2, zorder=1)
    points = sorted(zip(curves["formula"], curves["strength"], curves["names"], curves["recommended"], strict=True))
    # Most settings are weak ones: their names stand below the line, apart, and the others' above it.
    places = spread([y for _, y, *_ in points if y < CROWDED], 0.4, low=0.5)
    for k, (x, y, name, usual) in enumerate(points):
        ax.plot(x, y, "o", ms=9 if usual else 6, color=COLOR if usual else mix(COLOR, 0.5), mec=PAPER, mew=0.8)
        below = k < len(places)
        ax.annotate(
            _greek(name), (x, y), (CROWDED + 0.35, places[k]) if below else (x - 0.25, y + 0.12), fontsize=7.5,
            va="center", ha="left" if below else "right", color=COLOR if usual else MUTED, path_effects=halo(),
            fontweight="bold" if usual else "normal",
            arrowprops={"arrowstyle": "-", "color": mix(COLOR, 0.5), "lw": 0.7, "shrinkB": 4} if below else None,
        )  # fmt: skip
    ax.set(xlim=(0.3, top), ylim=(0.3, top), xlabel="1 + 2α(1 + α)/n", ylabel="measured strength κ")
    ax.set_title("strength (bold: recommended)", fontsize=8.5)


def _bars(ax: Axes, x: Real, found: list, color: str, marker: str) -> None:
    mean, low, high = (100 * value for value in found)
    ax.plot([x, x], [low, high], color=mix(color, 0.4), lw=2.2, zorder=2)
    ax.plot(x, mean, marker, ms=6, color=color, mec=PAPER, mew=0.7, zorder=3)


def _equal_steps(ax: Axes, curves: Record) -> None:
    ax.axhline(0, color=FAINT, lw=0.8)
    names = {"minibatch norm": ("mean ‖gₖ‖²", COLOR, "o"), "test loss": ("test loss", LOSS, "s")}
    for key, (name, color, marker) in names.items():
        for kappa, found in zip(curves["kappa"], curves["changes"][key], strict=True):
            _bars(ax, kappa, found, color, marker)
        last = 100 * curves["changes"][key][-1][0]
        ax.annotate(
            name, (max(curves["kappa"]), last), (-10, 0), textcoords="offset points", ha="right", va="center",
            color=color, fontweight="bold", path_effects=halo(),
        )  # fmt: skip
    ax.set(xlabel="strength κ", ylabel="against SGD, %")
    ax.set_title("equal steps, small h", fontsize=8.5)


def _equal_gradients(ax: Axes, curves: Record) -> None:
    rows = list(zip(curves["trained"], curves["differences"], strict=True))[1:]
    rows.append(("chosen from all", curves["chosen from all"]))
    ax.axvline(0, color=FAINT, lw=0.8)
    for k, (name, (mean, low, high)) in enumerate(rows):
        color = INK if name == "chosen from all" else COLOR
        ax.plot([low, high], [-k, -k], color=mix(color, 0.5), lw=2.2)
        ax.plot(mean, -k, "o", ms=6, color=color, mec=PAPER, mew=0.7)
        ax.text(mean, -k + 0.2, _greek(name), color=color, ha="center", fontsize=7.5, path_effects=halo())
    ax.set(yticks=[], xlabel="test loss minus SGD's", ylim=(0.4 - len(rows), 0.6))
    ax.spines["left"].set_visible(False)
    ax.set_title("equal gradients", fontsize=8.5)
