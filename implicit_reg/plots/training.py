"""What `train` and `compare` show: curves over epochs, and paired differences to a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from implicit_reg.plots.record import Real, Record, is_number, number
from implicit_reg.plots.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    PAPER,
    Axes,
    Figure,
    halo,
    measured,
    method_color,
    mix,
    new_figure,
    plain,
    style,
)


def learning_curves(
    history: Record, ax: Axes, *, name: str = "gd", level: Real | None = None, tests: Sequence[Record] = ()
) -> Axes:
    """Training and validation loss per epoch, named at their ends.

    Args:
      history: `epoch`, `train_loss`, `validation_loss`, lists of equal length; None where there is no value.
      ax: where to draw.
      name: the method, for its color.
      level: the flood level, drawn as a waterline; None for none.
      tests: evaluations on test data, each `{"epoch", "loss", "label"}`, drawn as stars.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import learning_curves
      >>> history = {"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_loss": [1.1, 0.7]}
      >>> ax = learning_curves(history, Figure().subplots(), level=0.1)
      >>> sorted(text.get_text() for text in ax.texts)
      ['flood level 0.1', 'training', 'validation']
    """
    color = method_color(name)
    curves = [("training", measured(history["train_loss"]), mix(color, 0.45), 1.6, "-")]
    curves.append(("validation", measured(history["validation_loss"]), color, 2.0, "-"))
    _curves(history["epoch"], curves, ax)
    ax.set_ylabel("loss")
    low = min((y for _, ys, *_ in curves for y in ys if is_number(y)), default=1.0)
    if low > 0:
        ax.set_yscale("log")
        _plain_log_ticks(ax)
    if level is not None:
        bottom, top = ax.get_ylim()
        ax.set_ylim(min(bottom, level * 0.8) if level > 0 else bottom, top)
        ax.axhspan(ax.get_ylim()[0], level, color=method_color("flooding"), alpha=0.13, lw=0, zorder=0)
        ax.axhline(level, color=method_color("flooding"), lw=1, zorder=1)
        ax.annotate(
            f"flood level {level:g}", (0, level), (4, 3), xycoords=("axes fraction", "data"), va="bottom",
            textcoords="offset points", fontsize=7, color=method_color("flooding"),
        )  # fmt: skip
    for test in tests:
        if not is_number(test["loss"]):
            continue
        ax.plot(test["epoch"], test["loss"], marker="*", ms=11, color=INK, mec=PAPER, mew=0.8, ls="", zorder=6)
        # The label lies away from the axis on the star's side.
        offset, side = ((-4, 8), "right") if test["epoch"] > 0.5 * max(history["epoch"]) else ((4, 8), "left")
        ax.annotate(
            f"test, {plain(test['label'])}: {test['loss']:.3g}", (test["epoch"], test["loss"]), offset, ha=side,
            textcoords="offset points", fontsize=7.5, color=INK, zorder=6, path_effects=halo(),
        )  # fmt: skip
    return ax


def accuracy_curve(history: Record, ax: Axes, *, name: str = "gd") -> Axes:
    """Validation accuracy per epoch.

    Args:
      history: `epoch`, `validation_accuracy`, lists of equal length.
      ax: where to draw.
      name: the method, for its color.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import accuracy_curve
      >>> history = {"epoch": [1, 2], "validation_accuracy": [0.5, 0.75]}
      >>> [text.get_text() for text in accuracy_curve(history, Figure().subplots()).texts]
      ['75.0 %']
    """
    values = measured(history["validation_accuracy"])
    last = next((f"{100 * y:.1f} %" for y in reversed(values) if is_number(y)), "")
    _curves(history["epoch"], [(last, values, method_color(name), 2.0, "-")], ax)
    ax.set_ylabel("validation accuracy")
    ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    return ax


def training_figure(
    history: Record,
    *,
    name: str = "gd",
    title: str = "",
    level: Real | None = None,
    tests: Sequence[Record] = (),
    note: str = "",
) -> Figure:
    """The curves of one training run: losses and, where there is one, accuracy.

    Args:
      history: as for `learning_curves`, optionally with `validation_accuracy`.
      name: the method, for its color.
      title: a heading.
      level: as for `learning_curves`.
      tests: as for `learning_curves`.
      note: the line under the picture: sizes, seed.

    Returns:
      The figure.

    Example:
      >>> from implicit_reg.plots import training_figure
      >>> history = {"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_loss": [1.1, 0.7]}
      >>> len(training_figure(history).axes)
      1
    """
    accuracy = any(is_number(value) for value in history.get("validation_accuracy") or [])
    with style():
        figure = new_figure(9.2 if accuracy else 5.6, 3.5)
        axes = figure.subplots(1, 1 + accuracy, squeeze=False, width_ratios=[1.35, 1][: 1 + accuracy])[0]
        learning_curves(history, axes[0], name=name, level=level, tests=tests)
        if accuracy:
            accuracy_curve(history, axes[1], name=name)
        axes[0].set_title(plain(title), fontweight="bold", color=method_color(name))
        figure.supxlabel(plain(note), fontsize=7, color=MUTED, ha="left", x=0.01)
    return figure


def comparison(record: Record, ax: Axes) -> Axes:
    """Paired differences to the baseline: a dot per seed, the mean with its interval, a row per method.

    Args:
      record: `metric`, `baseline`, `methods`, each `{"name", "values", "mean", "standard_error", "difference"}` with
        `difference` holding `mean`, `low` and `high`, or None for the baseline. `values` are paired by position.
      ax: where to draw.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import comparison
      >>> record = {"metric": "test loss", "baseline": "gd", "methods": [{"name": "gd", "values": [0.3, 0.4]}]}
      >>> comparison(record, Figure().subplots()).get_xlabel()
      'test loss, difference to gd on the same seed'
    """
    methods = record["methods"]
    base = next((measured(m["values"]) for m in methods if m["name"] == record["baseline"]), [])
    for y, method in enumerate(methods):
        color, difference = method_color(method["name"]), method.get("difference")
        if difference:
            values = [v - b for v, b in zip(measured(method["values"]), base, strict=False)]
            # Dots of equal value would hide each other: they stand apart by a small fixed pattern, not by chance.
            heights = [y + 0.1 + 0.05 * (i % 4) for i in range(len(values))]
            ax.plot(values, heights, ls="", marker="o", ms=4, color=mix(color, 0.35), mec=PAPER, mew=0.5, zorder=3)
            if all(is_number(difference.get(key)) for key in ("low", "high", "mean")):
                clear = difference["low"] > 0 or difference["high"] < 0
                ax.plot([difference["low"], difference["high"]], [y - 0.12] * 2, color=color, lw=2.6, zorder=4)
                ax.plot(
                    difference["mean"], y - 0.12, marker="D", ms=7, color=color, mfc=color if clear else PAPER, mew=1.6,
                    zorder=5,
                )  # fmt: skip
        else:
            ax.plot(0, y, marker="|", ms=16, color=color, mew=2.4, zorder=4)
        mean = f"{number(method.get('mean'), '.4g')} ± {number(method.get('standard_error'), '.2g')}"
        if is_number(method.get("mean")):
            ax.annotate(
                mean, (1, y), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
                fontsize=7.5, color=MUTED,
            )  # fmt: skip
    ax.axvline(0, color=FAINT, lw=0.9, zorder=1)
    ax.set_yticks(range(len(methods)), [plain(m.get("title") or m["name"]) for m in methods])
    for label, method in zip(ax.get_yticklabels(), methods, strict=True):
        label.set(color=method_color(method["name"]), fontweight="bold", fontsize=8.5)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.grid(True, axis="x", color=GRID, lw=0.6)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"{plain(record['metric'])}, difference to {plain(record['baseline'])} on the same seed")
    return ax


def comparison_figure(record: Record, *, note: str = "") -> Figure:
    """The comparison as a page of its own, with the means in a column on the right.

    Args:
      record: as for `comparison`.
      note: what the line under the picture says besides how to read it: data set, budget.

    Returns:
      The figure.

    Example:
      >>> from implicit_reg.plots import comparison_figure
      >>> record = {"metric": "test loss", "baseline": "gd", "methods": [{"name": "gd", "values": [0.3, 0.4]}]}
      >>> len(comparison_figure(record).axes)
      1
    """
    seeds = max((len(method["values"]) for method in record["methods"]), default=0)
    with style():
        figure = new_figure(7.6, 0.52 * len(record["methods"]) + 1.3)
        ax = comparison(record, figure.subplots())
        ax.annotate("mean ± s.e.", (1, 1), (8, 2), "axes fraction", "offset points", fontsize=7.5, color=MUTED)
        text = f"A dot per seed (n = {seeds}); diamonds: means with intervals, filled where the interval excludes 0."
        figure.supxlabel(f"{text} {plain(note)}".strip(), fontsize=7, color=MUTED, ha="left", x=0.01)
    return figure


def _curves(epoch: Sequence[Real], curves: Sequence[tuple], ax: Axes) -> None:
    """Curves over epochs with their names at the right ends, kept apart."""
    ends = []
    for text, values, color, width, line in curves:
        ax.plot(epoch, values, color=color, lw=width, ls=line, zorder=3)
        last = [(x, y) for x, y in zip(epoch, values, strict=True) if is_number(y)][-1:]
        ends += [(x, y, text, color) for x, y in last]
    for x, y, text, _ in ends:
        ax.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", color=curves[-1][2], fontsize=8)
    ax.set_xlabel("epoch")
    ax.grid(True, axis="y", color=GRID, lw=0.6)


def _plain_log_ticks(ax: Axes) -> None:
    """Numbers such as 0.05 and not powers of ten: a loss spans one or two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_minor_locator(LogLocator(subs=()))
