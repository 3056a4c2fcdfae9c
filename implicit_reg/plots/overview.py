"""All checks of `verify` at a glance, and all of its pictures by name."""

from __future__ import annotations

from implicit_reg.plots.errors import errors_figure
from implicit_reg.plots.evidence import check_figure
from implicit_reg.plots.record import (
    Real,
    Record,
    anchor,
    band,
    by_statement,
    cases,
    count,
    inequality,
    is_number,
    main_cases,
    number,
)
from implicit_reg.plots.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    VERDICTS,
    Axes,
    Figure,
    draw_in_inches,
    method_color,
    new_figure,
    place,
    sign,
    style,
    wrapped,
)
from implicit_reg.plots.trajectories import trajectories_figure

_ROW = 0.27  # inches
_TITLE, _MARKS, _ORDER = 0.34, 0.19, 0.7  # where titles begin, the width of a mark and of an order
_GAP = 0.13  # between the statements of a row
_TITLE_WIDTH, _BAND_WIDTH = 3.15, 2.0


def strip(record: Record, ax: Axes) -> Axes:
    """All checks at a glance: a row per prediction, a mark per statement and loss, the orders of the main statement.

    Verdicts are told apart by shape and color. From the left: the prediction's verdict and title; its cases, those of
    one statement side by side, one for each loss; the orders measured at fixed time with 1, 2, ... terms, each with the
    expected one in parentheses (where a row has no order, the number against its bound); and how far into its range of
    validity the finest step size lies.

    Args:
      record: of a run of `verify`.
      ax: where to draw.

    Returns:
      `ax`.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from implicit_reg.plots import strip
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent"}}
      >>> ax = strip({"checks": [check]}, Figure().subplots())
      >>> [text.get_text() for text in ax.texts]
      ['prediction', 'statements on losses', 'range of validity', 'Gradient descent']
    """
    width, _ = draw_in_inches(ax)
    checks = record["checks"]
    marks_at = _TITLE + _TITLE_WIDTH
    orders_at = marks_at + max([1.0, *(_marks_width(check) for check in checks)]) + 0.3
    bands_at = orders_at + max(2, _num_orders(checks)) * _ORDER + 0.1
    heads = [(_TITLE, "prediction"), (marks_at - 0.08, "statements on losses"), (bands_at, "range of validity")]
    heads += [(orders_at + p * _ORDER, count(p + 1, "term")) for p in range(_num_orders(checks))]
    for x, text in heads:
        ax.text(x, 0.16, text, fontsize=7.5, color=MUTED, va="center")
    ax.plot([0, width], [0.3] * 2, color=FAINT, lw=0.8)
    for k, check in enumerate(checks):
        y = 0.3 + (k + 0.5) * _ROW
        if k:
            ax.plot([0, width], [y - _ROW / 2] * 2, color=GRID, lw=0.5, zorder=0)
        ax.plot([0.14], [y], **_marker(check["verdict"], 7.6), zorder=3)
        ax.text(
            _TITLE, y, wrapped(check["details"]["title"], 42, 1), va="center", fontsize=8, fontweight="bold",
            color=method_color(check["name"]), url="#" + anchor(check["name"]),
        )  # fmt: skip
        x = marks_at
        for found in by_statement(cases(check)).values():
            for case in found:
                ax.plot([x], [y], **_marker(case["verdict"], 5.6), zorder=3)
                x += _MARKS
            x += _GAP
        _results(ax, check, orders_at, y, bands_at - orders_at)
        if word := band(check):
            ink = {"fine": INK, "caution": "#8a6a00"}.get(word, VERDICTS["fails"][1])
            ax.text(bands_at, y, f"{word}{_trust(check)}", va="center", fontsize=7.2, color=ink)
    return ax


def _marks_width(check: Record) -> Real:
    groups = by_statement(cases(check))
    return sum(len(found) * _MARKS + _GAP for found in groups.values())


def _num_orders(checks: list[Record]) -> int:
    return max((len(check.get("expected") or []) for check in checks), default=0)


def _results(ax: Axes, check: Record, x: Real, y: Real, room: Real) -> None:
    """The measured orders beside the expected ones, or a number beside its bound."""
    if not check.get("expected"):
        numbers = [case for case in main_cases(check) if case["kind"] == "criterion"]
        if numbers:
            worst = min(numbers, key=lambda case: ["fails", "could not measure", "holds"].index(case["verdict"]))
            alarm = worst["verdict"] == "fails"
            ax.text(
                x, y, inequality(worst), va="center", fontsize=7.5, color=VERDICTS["fails"][1] if alarm else INK,
                fontweight="bold" if alarm else "normal",
            )  # fmt: skip
            if room > 2.4 and worst["statement"]:
                words = wrapped(worst["statement"], int(17 * (room - 1.3)), 1)
                ax.text(x + 1.3, y, words, va="center", fontsize=7, color=MUTED)
        return
    for p, (expected, found) in enumerate(zip(check["expected"], check["measured"], strict=True)):
        curves = [case["truncations"][p]["fixed_time"] for case in main_cases(check) if case["kind"] == "order"]
        alarm = any(curve["verdict"] == "fails" for curve in curves)
        ink, weight = (VERDICTS["fails"][1], "bold") if alarm else (INK if is_number(found) else MUTED, "normal")
        at = x + p * _ORDER
        ax.text(at, y, number(found), va="center", fontsize=7.5, color=ink, fontweight=weight)
        ax.text(at + 0.3, y, f"({expected:g})", va="center", fontsize=7, color=FAINT)


def _trust(check: Record) -> str:
    """The largest value, over the main statement's losses, of the number by which a row is trusted."""
    found = [case["validity"] for case in main_cases(check) if case.get("validity")]
    found = [validity for validity in found if validity.get("x") and is_number(validity["x"][-1])]
    if not found:
        return ""
    most = max(found, key=lambda validity: validity["x"][-1])
    return f" · {wrapped(most['quantity'], 22, 1)} = {most['x'][-1]:.2g}"


def _marker(verdict: str, size: Real) -> Record:
    shape, color, _ = VERDICTS[verdict]
    fill, rim = ("none", 1.2) if verdict == "could not measure" else (color, 0)
    return {"ls": "", "marker": shape, "ms": size, "mec": color, "mfc": fill, "mew": rim}


def strip_figure(record: Record) -> Figure:
    """The strip with a key to its shapes.

    Args:
      record: of a run of `verify`.

    Returns:
      The figure.

    Example:
      >>> from implicit_reg.plots import strip_figure
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent"}}
      >>> len(strip_figure({"checks": [check]}).axes)
      1
    """
    checks = record["checks"]
    with style():
        marks = max([1.0, *(_marks_width(check) for check in checks)])
        width = _TITLE + _TITLE_WIDTH + marks + 0.4 + max(2, _num_orders(checks)) * _ORDER + _BAND_WIDTH
        height = 0.32 + _ROW * len(checks)
        figure = new_figure(width + 0.2, height + 0.8, layout=None)
        ax = strip(record, place(figure, 0.1, 0.3, width, height))
        present = {check["verdict"] for check in checks} | {c["verdict"] for check in checks for c in cases(check)}
        for verdict in VERDICTS:
            if verdict in present:
                ax.plot([], [], **_marker(verdict, 7), label=verdict)
        figure.legend(
            loc="upper left", bbox_to_anchor=(0.0, 1.0), frameon=False, ncols=3, fontsize=7.5, labelcolor=MUTED,
            handletextpad=0.2, borderaxespad=0.25,
        )  # fmt: skip
        text = "Marks in a group: one statement on its losses. Numbers: orders measured at fixed time (expected)"
        sign(figure, text, record)
    return figure


def verify_figures(record: Record) -> dict[str, Figure]:
    """Every picture of a run of `verify`.

    Args:
      record: as `results.json` holds it.

    Returns:
      `strip`, `errors` where a main statement has an order, `trajectories` where the record has them, and `check-NAME`
      for each check with cases; all of them go into the report by these names.

    Example:
      >>> from implicit_reg.plots import verify_figures
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent"}}
      >>> list(verify_figures({"checks": [check]}))
      ['strip']
    """
    figures = {"strip": strip_figure(record)}
    if any(case["kind"] == "order" for check in record["checks"] for case in main_cases(check)):
        figures["errors"] = errors_figure(record)
    if (record.get("trajectories") or {}).get("runs"):
        figures["trajectories"] = trajectories_figure(record)
    checks = [check for check in record["checks"] if cases(check)]
    return figures | {f"check-{check['name']}": check_figure(check, record) for check in checks}
