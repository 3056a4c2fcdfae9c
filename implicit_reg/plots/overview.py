"""All checks of `verify` at a glance, and all of its pictures by name."""

from __future__ import annotations

from implicit_reg.plots.errors import KINDS, check_figure, errors_figure
from implicit_reg.plots.style import (
    FAINT,
    GRID,
    INK,
    MUTED,
    VERDICTS,
    Axes,
    Figure,
    Real,
    Record,
    method_color,
    new_figure,
    number,
    plain,
    sign,
    style,
)
from implicit_reg.plots.trajectories import trajectories_figure


def strip(record: Record, ax: Axes) -> Axes:
    """All checks at a glance: a row per method and loss, a column per statement, verdicts by shape and color.

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
      ['Gradient descent', 'holds']
    """
    columns = _columns(record)
    y = 0.0
    for check in record["checks"]:
        losses = check["details"].get("losses") or []
        ax.text(
            -4.6, y, plain(check["details"]["title"]), va="center", color=method_color(check["name"]), fontweight="bold"
        )
        if not losses:
            _mark(ax, 0, y, check["verdict"], plain(check.get("criterion") or check["verdict"]))
            y += 1.0
        for loss in losses:
            ax.text(-0.75, y, plain(loss["name"]), va="center", ha="right", color=MUTED, fontsize=8)
            cells = _cells(loss)
            for key, (x, _) in columns.items():
                if key in cells:
                    _mark(ax, x, y, *cells[key])
            y += 1.0
        ax.axhline(y - 0.35, color=GRID, lw=0.7, zorder=0)
        y += 0.3
    for x, label in columns.values():
        ax.text(x, -0.85, label, ha="center", va="bottom", fontsize=7.5, color=MUTED)
    for kind, label in KINDS.items():
        xs = [x for key, (x, _) in columns.items() if key[0] == kind]
        if xs:
            ax.plot([min(xs) - 0.35, max(xs) + 0.35], [-1.45] * 2, color=FAINT, lw=0.7)
            text = f"order {label}, measured"
            ax.text((min(xs) + max(xs)) / 2, -1.6, text, ha="center", va="bottom", fontsize=8, color=INK)
    right = max((x for x, _ in columns.values()), default=2.0)
    ax.set_xlim(-4.7, right + 0.8)
    ax.set_ylim(y - 0.3, -2.3)
    ax.axis("off")
    return ax


def _columns(record: Record) -> dict[tuple[str, int], tuple[Real, str]]:
    """Where the columns stand and what they say: `(kind, terms) -> (x, label)`, in the order of the page."""
    losses = [loss for check in record["checks"] for loss in check["details"].get("losses") or []]
    terms = sorted({row["terms"] for loss in losses for row in loss["truncations"]})
    columns, x = {}, 0.0
    for kind in KINDS:
        for n in terms:
            columns[kind, n] = (x, f"{n} term{'s' * (n != 1)}")
            x += 1.0
        x += 0.5 if terms else 0.0
    for key, label in (("update", "update is\nthe published"), ("leading", "correction is\nthe published")):
        if any(loss.get(key) for loss in losses):
            columns[key, 0] = (x + 0.15, label)
            x += 1.3
    return columns


def _cells(loss: Record) -> dict[tuple[str, int], tuple[str, str]]:
    """`(kind, terms) -> (verdict, number to print)` of one loss."""
    cells = {}
    for row in loss["truncations"]:
        for kind in KINDS:
            if row.get(kind):
                cells[kind, row["terms"]] = (row[kind]["verdict"], number(row[kind]["measured"]))
    for key in ("update", "leading"):
        if loss.get(key):
            cells[key, 0] = (loss[key]["verdict"], number(loss[key]["error"], ".0e"))
    return cells


def _mark(ax: Axes, x: Real, y: Real, verdict: str, text: str) -> None:
    ax.plot([x - 0.24], [y], **_marker(verdict), zorder=3)
    alarm = verdict == "fails"
    ink, weight = (VERDICTS[verdict][1], "bold") if alarm else (INK, "normal")
    ax.text(x - 0.08, y, text, va="center", ha="left", fontsize=7.5, color=ink, fontweight=weight)


def _marker(verdict: str) -> Record:
    shape, color, _ = VERDICTS[verdict]
    fill, rim = ("none", 1.2) if verdict == "could not measure" else (color, 0)
    return {"ls": "", "marker": shape, "ms": 7.2, "mec": color, "mfc": fill, "mew": rim}


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
    rows = sum(max(1, len(check["details"].get("losses") or [])) for check in record["checks"])
    with style():
        figure = new_figure(10.4, 0.26 * rows + 0.08 * len(record["checks"]) + 1.15)
        ax = strip(record, figure.subplots())
        present = [v for v in VERDICTS if any(v in _verdicts(check) for check in record["checks"])]
        for verdict in present:
            ax.plot([], [], **_marker(verdict), label=verdict)
        figure.legend(
            loc="outside upper left", frameon=False, ncols=3, fontsize=7.5, labelcolor=MUTED, handletextpad=0.2
        )
        sign(figure, "", record)
    return figure


def _verdicts(check: Record) -> set[str]:
    losses = check["details"].get("losses") or []
    return {verdict for loss in losses for verdict, _ in _cells(loss).values()} or {check["verdict"]}


def verify_figures(record: Record) -> dict[str, Figure]:
    """Every picture of a run of `verify`.

    Args:
      record: as `results.json` holds it.

    Returns:
      `strip`, `errors`, `trajectories` where the record has them, and `errors-NAME` per check with losses; all of them
      go into the report by these names.

    Example:
      >>> from implicit_reg.plots import verify_figures
      >>> check = {"name": "gd", "verdict": "holds", "details": {"title": "Gradient descent"}}
      >>> list(verify_figures({"checks": [check]}))
      ['strip']
    """
    figures = {"strip": strip_figure(record)}
    checks = [check for check in record["checks"] if check["details"].get("losses")]
    if checks:
        figures["errors"] = errors_figure(record)
    if (record.get("trajectories") or {}).get("runs"):
        figures["trajectories"] = trajectories_figure(record)
    return figures | {f"errors-{check['name']}": check_figure(check, record) for check in checks}
