"""The whole document: headline, strip, contents, what does not hold, a page for each prediction, how it was made."""

from __future__ import annotations

from collections.abc import Sequence

from implicit_reg.plots.record import band, cases, inequality, is_number, main_cases
from implicit_reg.report import _check, _pieces
from implicit_reg.report._pieces import CLASSES, Figures, Record, escape

FORMAT, VERSION = "implicit_reg.verify", 2

_HEADLINES = {
    "holds": "Every prediction holds",
    "fails": "A prediction fails",
    "could not measure": "Something could not be measured",
}


def verify_report(record: Record, figures: Figures) -> str:
    """The report of a run of `verify`.

    Args:
      record: what `results.json` holds: `verdict`, `checks`, `environment`, `config`, `wall_seconds`.
      figures: pictures by name, PNG files as bytes or SVG elements as text: `strip`, `errors`, `trajectories`, and
        `check-NAME` for the check NAME. Those that are missing are left out; other names are shown at the end.

    Returns:
      A whole HTML document without outside references. On paper every prediction begins on a page of its own.

    Raises:
      ValueError: where the record is not one of `verify` in version 2, a picture is neither PNG nor SVG, or an SVG
        holds scripts or outside references.

    Example:
      >>> from implicit_reg.report import verify_report
      >>> record = {"format": "implicit_reg.verify", "version": 2, "verdict": "holds", "checks": []}
      >>> "Every prediction holds" in verify_report(record, {})
      True
    """
    if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"verify_report: `record` must be of format {FORMAT!r}, version {VERSION}, got {record.get('format')!r}, "
            f"version {record.get('version')!r}; read it from results.json of `verify`"
        )
    checks = record["checks"]
    used = {"strip", "errors", "trajectories"} | {f"check-{check['name']}" for check in checks}
    parts = [
        _headline(record),
        _section_with(figures, "strip", "At a glance", "Every statement that was tested", ""),
        _contents(checks),
        _section_with(
            figures,
            "errors",
            "Error against step size",
            "Error against step size, a panel for each prediction",
            "<p>Each curve is the distance between the iterates and what is said to follow them, cut off after p "
            "terms; it must shrink with the predicted power of h.</p>",
        ),
        _section_with(
            figures,
            "trajectories",
            "Trajectories",
            "Iterates, gradient flow and modified flow",
            "<p>On a loss of two parameters the difference can be seen: the iterates leave gradient flow and follow "
            "the modified flow.</p>",
        ),
        *(_check.page(check, figures, k, checks) for k, check in enumerate(checks)),
        *(_section_with(figures, name, name, name, "") for name in figures if name not in used),
        _colophon(record),
    ]
    return _pieces.document(f"implicit_reg verify: {record['verdict']}", parts)


def _section_with(figures: Figures, name: str, title: str, description: str, words: str) -> str:
    """A section around a picture; nothing where the picture is missing."""
    return _pieces.section(title, words, _pieces.figure(figures, name, description)) if name in figures else ""


def _headline(record: Record) -> str:
    checks, verdict = record["checks"], record["verdict"]
    counts = {kind: sum(check["verdict"] == kind for check in checks) for kind in CLASSES}
    plural = {"holds": "hold", "fails": "fail"}
    said = ", ".join(f"{n} {k if n == 1 else plural.get(k, k)}" for k, n in counts.items() if n)
    seconds = record.get("wall_seconds")
    took = f" in {seconds:.0f} seconds" if is_number(seconds) else ""
    total = sum(len(cases(check)) for check in checks)
    statements = f" {total} statements on single losses were tested." if total else ""
    preset = f", preset {escape(record['preset'])}" if record.get("preset") else ""
    return (
        f'<div class="headline {CLASSES[verdict]}"><p class="kicker">implicit_reg verify{preset}</p>'
        f"<h1>{_HEADLINES[verdict]}</h1>"
        f'<p class="lead">{len(checks)} prediction{"s" * (len(checks) != 1)}{took}: {said or "nothing was tested"}.'
        f"{statements} An order of accuracy is the slope of the error between the two finest step sizes.</p>"
        f"{_troubles(checks)}</div>"
    )


def _troubles(checks: Sequence[Record]) -> str:
    """What does not hold, before anything else."""
    lines = [
        f"<li>{_pieces.verdict(check['verdict'])} {_pieces.link(check)}{_check.reasons(check)}</li>"
        for check in checks
        if check["verdict"] != "holds"
    ]
    return f'<ul class="findings">{"".join(lines)}</ul>' if lines else ""


def _contents(checks: Sequence[Record]) -> str:
    rows = []
    for k, check in enumerate(checks):
        every, word = cases(check), escape(band(check))
        held = sum(case["verdict"] == "holds" for case in every)
        rows.append(
            f'<tr><td class="text">{k + 1}</td><td class="text name">{_pieces.link(check)}<br>'
            f"<code>{escape(check['name'])}</code></td>"
            f'<td class="text claim">{escape(check["details"].get("claim") or "")}</td>'
            f'<td class="number">{f"{held} of {len(every)}" if every else ""}</td>'
            f'<td class="found">{_found(check)}</td>'
            f'<td class="text"><span class="{word}">{word}</span></td>'
            f'<td class="text">{_pieces.verdict(check["verdict"])}</td></tr>'
        )
    head = (
        '<th class="text"></th><th class="text">Prediction</th><th class="text">Claim</th><th>Hold</th>'
        '<th>Measured (expected)</th><th class="text">Range</th><th class="text">Verdict</th>'
    )
    made = f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _pieces.section("Contents", f'<div class="scroll">{made}</div>', kind="contents", identifier="contents")


def _found(check: Record) -> str:
    """The orders of the main statement, or its numbers and bounds."""
    if check["expected"]:
        pairs = zip(check["measured"], check["expected"], strict=True)
        found = [f"{_pieces.number(m, '.2f')} ({_pieces.number(e, 'g')})" for m, e in pairs]
    else:
        found = [escape(inequality(case)) for case in main_cases(check) if case["kind"] == "criterion"]
    return ", ".join(f"<span>{text}</span>" for text in found)


def _colophon(record: Record) -> str:
    command = (record.get("config") or {}).get("command") or "implicit-reg verify"
    tables = [
        f"<div><h3>{title}</h3><dl>{_pieces.items(record.get(key) or {})}</dl></div>"
        for title, key in (("Environment", "environment"), ("Configuration", "config"))
    ]
    again = f"<p>To run this again:</p><pre>{escape(command)}</pre>"
    return _pieces.section("How this was made", again, f'<div class="columns">{"".join(tables)}</div>')
