"""The cloud of the ends of an epoch's orders with its mean and the predictions, and how the errors shrink."""

from __future__ import annotations

from collections.abc import Mapping

from implicit_reg.plots.papers._page import end_labels, page
from implicit_reg.plots.record import Real, Record
from implicit_reg.plots.style import FAINT, GRID, INK, MUTED, PAPER, Axes, Figure, halo, method_color, mix

KINDS = {"without replacement": "sgd-shuffled", "with replacement": "sgd-replacement"}
COLORS = {
    "gradient flow": MUTED,
    "GD-modified": method_color("gd"),
    "SGD-modified": method_color("sgd-shuffled"),
    "third order": method_color("principal-flow"),
}
MARKERS = {"gradient flow": "v", "GD-modified": "s", "SGD-modified": "D", "third order": "P"}
POWERS = {2: "h²", 3: "h³", 4: "h⁴"}
# Where the names stand, in points from their marks: among the points of a cloud no rule finds room for them.
PLACES: Mapping[str, Mapping[str, tuple[Real, Real]]] = {
    "without replacement": {
        "gradient flow": (-3, 11),
        "GD-modified": (-10, 24),
        "SGD-modified": (-16, -38),
        "third order": (26, -26),
        "mean": (20, 24),
    },
    "with replacement": {
        "gradient flow": (-14, 15),
        "GD-modified": (-26, -20),
        "SGD-modified": (8, -18),
        "mean": (10, 20),
    },
}


def draw(record: Record) -> Figure:
    """The ends of all orders in a plane, and the errors of the flows against the step size, for both ways to draw.

    Args:
      record: of the reproduction `sgd-permutations`.

    Returns:
      A figure.
    """
    curves, settings = record["curves"], record["settings"]
    note = (
        f"2-3-1 tanh network, n = 12 examples in m = 4 minibatches, float64. Above: the plane through the ends of one "
        f"epoch on one problem (seed 0), h = {curves['cloud']['h']:g}; all orders and sequences are equally likely, so "
        f"that means are exact; unit: from the GD-modified to the SGD-modified end. Below: mean over "
        f"{settings['num_problems']} random problems"
    )
    title = "The mean over all orders of an epoch follows C + (h/4m) Σ ‖∇Cₖ‖²"
    with page(record, height=6.9, title=title, note=note) as figure:
        axes = figure.subplots(2, 2, height_ratios=(1.15, 1))
        for column, (kind, method) in enumerate(KINDS.items()):
            cloud, color = curves["cloud"], method_color(method)
            ax = axes[0, column]
            _cloud(ax, cloud, kind, color)
            names = {key: cloud["flows"][key] for key in PLACES[kind] if key != "mean"}
            close = ax if column == 0 else _inset(ax, cloud, kind, color)
            _predictions(close, names, cloud, kind)
            ax.set_title(f"{kind}: {len(cloud[kind])} ends", color=color, fontweight="bold")
            _errors(axes[1, column], curves, kind)
        axes[0, 0].set_ylabel("where single orders differ most")
        axes[1, 0].set_ylabel("distance from the mean end")
        for ax in axes[1]:
            end_labels(ax, size=7.5)
    return figure


def _units(cloud: Record, places: list) -> list[tuple[Real, Real]]:
    unit = cloud["flows"]["SGD-modified"][0]
    return [(x / unit, y / unit) for x, y in places]


def _cloud(ax: Axes, cloud: Record, kind: str, color: str) -> None:
    points = _units(cloud, cloud[kind])
    ax.axhline(0, color=GRID, lw=0.8, zorder=0)
    ax.axvline(0, color=GRID, lw=0.8, zorder=0)
    ax.plot(*zip(*points, strict=True), ls="", marker="o", ms=4.4, color=mix(color, 0.45), mec=PAPER, mew=0.4)
    ax.set_xlabel("along the variance term")


def _inset(ax: Axes, cloud: Record, kind: str, color: str) -> Axes:
    """The middle of a cloud that is much wider than the distance of the predictions."""
    half = 2.3
    inset = ax.inset_axes((0.5, 0.52, 0.5, 0.48))
    _cloud(inset, cloud, kind, color)
    inset.set(xlim=(-half, half), ylim=(-half, half), xlabel="", xticks=[], yticks=[], facecolor=PAPER)
    for spine in inset.spines.values():
        spine.set_visible(True)
    highest = max(y for _, y in _units(cloud, cloud[kind]))
    ax.set_ylim(top=highest * 2.1)
    ax.indicate_inset_zoom(inset, edgecolor=FAINT, alpha=1)
    return inset


def _predictions(ax: Axes, names: Record, cloud: Record, kind: str) -> None:
    marks = dict(zip(names, _units(cloud, list(names.values())), strict=True))
    points = _units(cloud, cloud[kind])
    marks["mean"] = tuple(sum(values) / len(points) for values in zip(*points, strict=True))
    for name, (x, y) in marks.items():
        color, marker = COLORS.get(name, INK), MARKERS.get(name, "o")
        if name == "mean":
            ax.plot(x, y, marker="o", ms=13, mfc="none", mec=INK, mew=1.5, zorder=6)
        else:
            ax.plot(x, y, marker=marker, ms=6.5, color=color, mec=PAPER, mew=0.8, zorder=5)
        ax.annotate(
            {"mean": f"mean of {len(points)}"}.get(name, name), (x, y), PLACES[kind][name], textcoords="offset points",
            ha="right" if PLACES[kind][name][0] < -5 else "left", va="center", color=color, fontsize=7.5,
            fontweight="bold", path_effects=halo(), zorder=7,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkB": 6},
        )  # fmt: skip


def _errors(ax: Axes, curves: Record, kind: str) -> None:
    sizes, labels = curves["step_sizes"], curves["labels"][kind]
    for name, order in labels.items():
        errors = curves["errors"][kind][name]
        ax.plot(
            sizes[::-1], errors[::-1], color=COLORS[name], marker=MARKERS[name], ms=5, mec=PAPER, mew=0.5, lw=1.6,
            label=f"{name}, {POWERS[order]}",
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="step size h")
    ax.set_xticks(sizes, [f"{h:g}" for h in sizes])
    ax.minorticks_off()
