"""Momentum's coefficient over its formula, the orders of its flows, and what it does to a² - b²."""

from __future__ import annotations

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import MUTED, PAPER, Axes, Figure, halo, method_color, mix

METHODS = {"gradient descent": "gd", "heavy ball": "heavy-ball", "Nesterov": "nesterov"}
MARKERS = {"heavy ball": "o", "Nesterov": "s"}
DASHES = {"heavy ball": "-", "Nesterov": (0, (4, 1.6))}


def draw(record: Record) -> Figure:
    """The coefficient against b, errors against the step size, and the decay of a² - b² against time.

    Args:
      record: of the reproduction `momentum`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    note = (
        f"Left and middle: {settings['num_problems']} random 2-3-1 tanh networks, 12 parameters, full batch, float64; "
        f"the strength, at equal effective step η = h/(1 - b), is measured on the iterates and extrapolated to h = 0. "
        f"Middle: b = 0.9, from Optax's empty trace, the flow from its ghost point; the radius is 0.0026 and 0.0028. "
        f"Right: L = (0.6 - ab)²/2, all methods with one η, extrapolated to η = 0; nothing is random"
    )
    title = "Momentum penalizes ‖∇C‖² (1 + b)/(1 - b) times as strongly"
    with page(record, height=4.0, title=title, note=note) as figure:
        left, middle, right = figure.subplots(1, 3)
        _factors(left, curves)
        _errors(middle, curves)
        _imbalance(right, curves)
        for ax in (middle, right):
            end_labels(ax, size=7.5)
    return figure


def _factors(ax: Axes, curves: Record) -> None:
    fine = [k / 200 * 0.93 for k in range(201)]
    formulas = {"heavy ball": lambda b: (1 + b) / (1 - b), "Nesterov": lambda b: (1 - b + 2 * b**2) / (1 - b)}
    for kind, factor in formulas.items():
        color = method_color(METHODS[kind])
        ax.plot(fine, [factor(b) for b in fine], color=color, lw=1.4, ls=DASHES[kind])
        for b, values in zip(curves["decays"], curves["factors"][kind], strict=True):
            ax.plot([b] * len(values), values, MARKERS[kind], ms=5.5, color=color, mec=PAPER, mew=0.6, zorder=3)
    text = {"fontsize": 7.5, "path_effects": halo(), "linespacing": 1.4}
    ax.text(0.0, 5.2, "heavy ball\n(1 + b)/(1 - b)", color=method_color("heavy-ball"), **text)
    ax.text(0.97, 0.65, "Nesterov\n(1 - b + 2b²)/(1 - b)", color=method_color("nesterov"), ha="right", **text)
    ax.set(yscale="log", xlabel="decay b", ylabel="strength, in units of gradient descent's", ylim=(0.6, 32))
    ax.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    ax.minorticks_off()
    ax.set_title("marks: measured", fontsize=8.5)


def _errors(ax: Axes, curves: Record) -> None:
    sizes = curves["fractions"]
    for kind in MARKERS:
        for k, errors in enumerate(curves["errors"][kind]):
            color = mix(method_color(METHODS[kind]), (0.5, 0.25, 0.0)[k])
            name = {"label": f"{k + 1} term{'s' * (k > 0)}, h{('', '²', '³')[k]}"} if kind == "heavy ball" else {}
            ax.plot(
                sizes[::-1], errors[::-1], color=color, marker=MARKERS[kind], ms=4.5, mec=PAPER, mew=0.5, lw=1.4,
                ls=DASHES[kind], **name,
            )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="h, of the radius of the series", ylabel="distance from the iterates")
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.minorticks_off()
    ax.set_title("dashed: Nesterov", fontsize=8.5)


def _imbalance(ax: Axes, curves: Record) -> None:
    for run in curves["imbalance"]:
        color = method_color(METHODS[run["kind"]])
        shade = mix(color, 0.0 if run["decay"] in (0.0, 0.9) else 0.4)
        label = run["kind"] if not run["decay"] else f"{run['kind']}, b = {run['decay']:g}"
        dashes = DASHES.get(run["kind"], "-")
        ax.plot(curves["times"], run["values"], color=shade, lw=1.7, ls=dashes, label=label)
    ax.set(xlabel="time n η", ylabel="decay, -log((a² - b²)/(a₀² - b₀²))/η", ylim=(0, None))
    ax.set_title("a² - b² decays faster", fontsize=8.5)
    ax.tick_params(labelcolor=MUTED)
