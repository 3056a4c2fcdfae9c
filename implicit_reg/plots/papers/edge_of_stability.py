"""Sharpness up to the edge, what the iterates follow from there on, and the loss that oscillates about its mean."""

from __future__ import annotations

from implicit_reg.plots.papers._page import page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import INK, MUTED, Axes, Figure, halo, measured, method_color, mix

CENTRAL, GRADIENT, DESCENT = method_color("central-flow"), MUTED, method_color("gd")


def draw(record: Record) -> Figure:
    """A column per step size: sharpness, distance of the flows from the averaged iterates, loss.

    Args:
      record: of the reproduction `edge-of-stability`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    runs = curves["runs"]
    note = (
        f"1-{settings['width']}-1 tanh network ({3 * settings['width']} parameters) on the Chebyshev polynomial of "
        f"degree 5 at 20 points; seed {settings['seed']}, full batch, float64. Averages over {curves['window']} steps; "
        "the flows start where the sharpness first is 2/h. The central flow's loss is its prediction of the average"
    )
    with page(record, 8.2, 6.2, title="The sharpness stops at 2/h, and so does the central flow", note=note) as figure:
        axes = figure.subplots(3, len(runs), sharex="col", squeeze=False, height_ratios=(1.35, 1, 1))
        for column, (run, (sharp, distance, loss)) in enumerate(zip(runs, axes.T, strict=True)):
            _sharpness(sharp, run, curves)
            _distances(distance, run, curves)
            _losses(loss, run, curves)
            sharp.set_title(f"h = {run['h']:g}: 2/h = {2 / run['h']:g}", fontweight="bold")
            loss.set_xlabel("step")
            loss.set_xlim(0, curves["every"] * len(run["sharpness"]))
            if column == 0:
                _names(distance, loss, run["reached"] > 0.4 * settings["num_steps"])
                sharp.set_ylabel("sharpness")
                distance.set_ylabel("distance from the\naveraged iterates")
                loss.set_ylabel("loss")
    return figure


def _names(distance: Axes, loss: Axes, left: bool) -> None:
    """What the colors are, at the side where less is drawn."""
    names = (
        (distance, "gradient flow", GRADIENT),
        (distance, "central flow", CENTRAL),
        (loss, "descent, and its average", DESCENT),
        (loss, "central flow, predicted average", CENTRAL),
        (loss, "gradient flow", GRADIENT),
    )
    lines = {distance: 0, loss: 0}
    for ax, name, color in names:
        place = {"x": 0.03, "ha": "left"} if left else {"x": 0.98, "ha": "right"}
        ax.text(y=0.9 - 0.13 * lines[ax], s=name, color=color, fontsize=8, va="center", transform=ax.transAxes, **place)
        lines[ax] += 1


def _steps(run: Record, curves: Record, values: list) -> list[int]:
    """The steps of a flow's curve, which begins at the edge."""
    return [run["reached"] + curves["thin"] * k for k in range(len(values))]


def _sharpness(ax: Axes, run: Record, curves: Record) -> None:
    edge = 2 / run["h"]
    steps = [curves["every"] * k for k in range(len(run["sharpness"]))]
    ax.axhline(edge, color=INK, lw=0.9, ls=":")
    ax.plot(steps, measured(run["sharpness"]), color=DESCENT, lw=0.9)
    for kind, color, look in (("gradient", GRADIENT, (0, (4, 2))), ("central", CENTRAL, "-")):
        values = measured(run[kind]["sharpness"])
        ax.plot(_steps(run, curves, values), values, color=color, lw=2.0, ls=look)
    top = 1.9 * edge
    ax.set_ylim(0, top)
    text = {"fontsize": 8, "path_effects": halo()}
    flow = measured(run["gradient"]["sharpness"])
    place = next((k for k, value in enumerate(flow) if value > 1.55 * edge), len(flow) - 1)
    x = _steps(run, curves, flow)[place]
    right = x > 0.6 * steps[-1]
    ax.text(
        x,
        min(flow[place], top),
        "gradient flow  " if right else "   gradient flow",
        color=GRADIENT,
        ha="right" if right else "left",
        va="center",
        **text,
    )
    ax.text(steps[-1], 1.27 * edge, "descent", color=DESCENT, ha="right", **text)
    ax.text(steps[-1], 0.84 * edge, "central flow: 2/h", color=CENTRAL, ha="right", **text)


def _distances(ax: Axes, run: Record, curves: Record) -> None:
    for kind, color, look in (("gradient", GRADIENT, (0, (4, 2))), ("central", CENTRAL, "-")):
        values = measured(run[kind]["distance"])
        ax.plot(_steps(run, curves, values), values, color=color, lw=1.8, ls=look)
    ax.set_ylim(0, None)
    ax.axvline(run["reached"], color=mix(INK, 0.7), lw=0.8, ls=":")


def _losses(ax: Axes, run: Record, curves: Record) -> None:
    ax.plot(
        [curves["thin"] * k for k in range(len(run["loss"]))], measured(run["loss"]), color=mix(DESCENT, 0.55), lw=0.7
    )
    for values, color, width in ((run["averaged"], DESCENT, 1.5), (run["central"]["predicted"], CENTRAL, 1.8)):
        half = curves["window"] // 2
        ax.plot([step + half for step in _steps(run, curves, values)], measured(values), color=color, lw=width)
    gradient = run["gradient"]["loss"]
    ax.plot(_steps(run, curves, gradient), measured(gradient), color=GRADIENT, lw=1.5, ls=(0, (4, 2)))
    ax.set_yscale("log")
