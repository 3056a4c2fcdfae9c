"""The evidence for one prediction: its errors, its series, and its numbers against their bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from implicit_reg.plots.criteria import GAUGE_HEIGHT, gauges, series_curves
from implicit_reg.plots.errors import HOW_TO_READ, order_panel, order_panels
from implicit_reg.plots.record import Real, Record, by_statement, cases
from implicit_reg.plots.style import MUTED, Figure, label, method_color, new_figure, place, plain, sign, style, wrapped

Part: TypeAlias = tuple[Real, Callable[[Figure, Real], None]]  # its height, and what draws it below a given place

WIDTH = 11.2  # inches of a page
_PANEL, _PANEL_HEIGHT = 2.8, 2.4  # of errors against the step size, four side by side
_SERIES, _SERIES_HEIGHT = 5.6, 2.95  # two side by side
_HEADING = 0.34


def check_figure(check: Record, record: Record) -> Figure:
    """One prediction: errors of every statement on every loss, series, and numbers against their bounds.

    Args:
      check: one entry of the record's checks, with cases.
      record: of the run of `verify`, for the caption.

    Returns:
      A figure of the width of a page.

    Example:
      >>> from implicit_reg.plots import check_figure
      >>> curve = {"expected": 1, "error": [2e-2, 1e-2], "measured": 1.0, "verdict": "holds"}
      >>> case = {"kind": "order", "statement": "", "loss": "bowl", "verdict": "holds", "h": [0.2, 0.1], "time": 1.0,
      ...         "truncations": [{"terms": 1, "fixed_time": curve, "one_step": curve}]}
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent", "cases": [case]}}
      >>> len(check_figure(check, {"checks": [check]}).axes)
      2
    """
    color, criteria = method_color(check["name"]), cases(check, "criterion")
    orders = by_statement(cases(check, "order"))
    series = [case for case in criteria if _has_series(case)]
    named = len(orders) > 1 or "" not in orders
    parts: list[Part] = []
    for statement, found in orders.items():
        if named:
            parts.append((_HEADING, _heading(statement or "main statement", color)))
        panels = order_panels(found)
        # Four panels fit side by side: both measurements on two losses.
        for chunk in (panels[i : i + 4] for i in range(0, len(panels), 4)):
            parts.append((_PANEL_HEIGHT, _order_row(chunk, color)))
    parts += [(_SERIES_HEIGHT, _series_row(series[i : i + 2], color)) for i in range(0, len(series), 2)]
    if criteria:
        if orders or series:
            parts.append((_HEADING, _heading("numbers against their bounds", color)))
        parts.append((GAUGE_HEIGHT * len(criteria) + 0.05, _gauge_block(criteria, color)))
    with style():
        figure = new_figure(WIDTH, sum(height for height, _ in parts) + 0.5, layout=None)
        top = 0.08
        for height, draw in parts:
            draw(figure, top)
            top += height
        notes = [HOW_TO_READ] * bool(orders)
        notes += ["Diamonds are wrong predictions, which must miss the bound"] * bool(criteria)
        sign(figure, ". ".join(notes), record)
    return figure


def _has_series(case: Record) -> bool:
    series = case.get("series") or {}
    return bool(series.get("x")) and bool(series.get("curves"))


def _heading(text: str, color: str) -> Callable[[Figure, Real], None]:
    def draw(figure: Figure, top: Real) -> None:
        height = figure.get_size_inches()[1]
        place_y = 1 - (top + 0.2) / height
        figure.text(0.06 / WIDTH, place_y, wrapped(text, 120, 1), color=color, fontweight="bold", fontsize=9)

    return draw


def _order_row(panels: Sequence[tuple[Record, str]], color: str) -> Callable[[Figure, Real], None]:
    def draw(figure: Figure, top: Real) -> None:
        for k, (case, kind) in enumerate(panels):
            ax = place(figure, k * _PANEL + 0.72, top + 0.26, _PANEL - 0.82, _PANEL_HEIGHT - 0.74)
            order_panel(case, kind, ax, color)

    return draw


def _series_row(found: Sequence[Record], color: str) -> Callable[[Figure, Real], None]:
    def draw(figure: Figure, top: Real) -> None:
        for k, case in enumerate(found):
            ax = place(figure, k * _SERIES + 0.75, top + 0.46, _SERIES - 2.2, _SERIES_HEIGHT - 0.98)
            series_curves(case, ax, color=color)
            name = wrapped(case["statement"], 58, 1)
            label(ax, title=name, fontsize=8.5, color=color, fontweight="bold", pad=16)
            ax.annotate(
                plain(case["loss"]), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=7.5,
                color=MUTED,
            )  # fmt: skip

    return draw


def _gauge_block(criteria: Sequence[Record], color: str) -> Callable[[Figure, Real], None]:
    def draw(figure: Figure, top: Real) -> None:
        found = [case for group in by_statement(criteria).values() for case in group]
        gauges(found, place(figure, 0.06, top, WIDTH - 0.12, GAUGE_HEIGHT * len(criteria)), color=color)

    return draw
