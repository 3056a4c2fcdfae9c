"""One self-contained HTML page from the record of `verify`: to read on a screen, to print, to hand on.

Nothing is fetched from anywhere, and no script runs. Whatever comes from the record is escaped.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]

_HEADLINES = {
    "holds": "Every prediction holds",
    "fails": "A prediction fails",
    "could not measure": "Something could not be measured",
}
_CLASSES = {"holds": "holds", "fails": "fails", "could not measure": "unknown"}
_KINDS = {"fixed_time": "at fixed time", "one_step": "after one step"}

# What an SVG element may not hold where it stands in a page: it would run, or fetch.
_UNSAFE_SVG = re.compile(
    r"<\s*(script|foreignobject|iframe|image|object|embed|link)|\son\w+\s*=|javascript:|@import"
    r"|(href|src)\s*=\s*[\"']?\s*(?!#)[^\s\"'>]|url\(\s*[\"']?(?!#)",
    re.IGNORECASE,
)

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --page: #f6f7f9; --ink: #1f2429; --muted: #66707a; --faint: #a9b1b9; --grid: #e3e7eb;
  --holds: #2c7a31; --fails: #c2352a; --unknown: #66707a; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #181c20; --page: #101316; --ink: #e4e8ec; --muted: #9aa5af; --faint: #5f6a74; --grid: #2b3238;
    --holds: #5fbf66; --fails: #ff7a6e; --unknown: #9aa5af; --accent: #5cb3ea;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font-family: ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; font-size: .88em; }
pre { background: var(--page); border: 1px solid var(--grid); border-radius: 6px; padding: .7rem .9rem; }
pre { overflow-x: auto; }
.kicker { color: var(--muted); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; margin: 0 0 .5rem; }
.lead { color: var(--muted); font-size: 1.05rem; }
section { background: var(--paper); border: 1px solid var(--grid); border-radius: 10px; }
section { padding: 1.4rem 1.6rem; margin-top: 1.4rem; }
section > header { display: flex; gap: .9rem; align-items: baseline; flex-wrap: wrap; }
.verdict { font-weight: 600; white-space: nowrap; }
.verdict::before { margin-right: .35em; }
.holds { color: var(--holds); } .holds.verdict::before { content: "\\2713"; }
.fails { color: var(--fails); } .fails.verdict::before { content: "\\2717"; }
.unknown { color: var(--unknown); } .unknown.verdict::before { content: "?"; }
.headline { border-left: 5px solid currentColor; padding-left: 1.1rem; }
.headline h1, .headline p { color: var(--ink); }
.headline .lead { color: var(--muted); }
figure { margin: 1rem 0 0; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figure img { background: #fff; border-radius: 4px; }
@media screen and (prefers-color-scheme: dark) { figure svg { filter: brightness(1.3); } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .38rem .8rem; text-align: right; border-bottom: 1px solid var(--grid); vertical-align: baseline; }
th { color: var(--muted); font-weight: 500; }
thead th { border-bottom-color: var(--faint); white-space: nowrap; }
th.text, td.text { text-align: left; }
td.number { white-space: nowrap; }
tr > :first-child { padding-left: 0; }
tbody.result th, tbody.result td { font-weight: 600; }
tbody.result tr:first-child > * { border-top: 1px solid var(--faint); }
th.group { text-align: center; border-bottom: 1px solid var(--grid); }
table.wide { width: 100%; }
td.name { white-space: nowrap; }
td.claim { min-width: 16rem; width: 60%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; margin: .6rem 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
.formula { font-size: 1.02rem; margin: .6rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2.5rem; }
.note { color: var(--muted); font-size: .9rem; }
@media print {
  :root {
    --paper: #fff; --page: #fff; --ink: #000; --muted: #444; --faint: #999; --grid: #ddd;
    --holds: #1d5c22; --fails: #a3211a; --unknown: #444; --accent: #000;
  }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; border-top: 1px solid var(--grid); border-radius: 0; padding: .8rem 0; }
  figure, table, h2, h3 { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


def verify_report(record: Record, figures: Mapping[str, bytes | str]) -> str:
    """The report of a run of `verify`.

    Args:
      record: what `results.json` holds: `verdict`, `checks`, `environment`, `config`, `wall_seconds`.
      figures: pictures by name, PNG files as bytes or SVG elements as text: `strip`, `errors`, `trajectories`, and
        `errors-NAME` for the check NAME. Those that are missing are left out; other names are shown at the end.

    Returns:
      A whole HTML document without outside references.

    Raises:
      ValueError: where the record is not one of `verify` in version 1, a picture is neither PNG nor SVG, or an SVG
        holds scripts or outside references.

    Example:
      >>> from implicit_reg.report import verify_report
      >>> record = {"format": "implicit_reg.verify", "version": 1, "verdict": "holds", "checks": []}
      >>> "Every prediction holds" in verify_report(record, {})
      True
    """
    if (record.get("format"), record.get("version")) != ("implicit_reg.verify", 1):
        raise ValueError(
            "verify_report: `record` must be of format 'implicit_reg.verify', version 1, got "
            f"{record.get('format')!r}, version {record.get('version')!r}; read it from results.json of `verify`"
        )
    checks, verdict = record["checks"], record["verdict"]
    used = {"strip", "errors", "trajectories"} | {f"errors-{check['name']}" for check in checks}
    parts = [
        _headline(record),
        _section(
            "All checks at a glance", _figure(figures, "strip", "Every statement that was tested"), _summary(checks)
        ),
        _section(
            "Error against step size",
            "<p>Each curve is the distance between the iterates and the flow of a truncated modified equation. "
            "With p terms it must shrink as h<sup>p</sup>.</p>"
            + _figure(figures, "errors", "Error against step size, a column per method and a row per loss"),
        )
        if "errors" in figures
        else "",
        _section(
            "Trajectories",
            "<p>On a loss of two parameters the difference can be seen: the iterates leave gradient flow and follow "
            "the modified flow.</p>" + _figure(figures, "trajectories", "Iterates, gradient flow and modified flow"),
        )
        if "trajectories" in figures
        else "",
        *(_check(check, figures) for check in checks),
        *(_section(name, _figure(figures, name, name)) for name in figures if name not in used),
        _colophon(record),
    ]
    title = f"implicit_reg verify: {verdict}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        f"<title>{_e(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _headline(record: Record) -> str:
    checks, verdict = record["checks"], record["verdict"]
    counts = {kind: sum(check["verdict"] == kind for check in checks) for kind in _CLASSES}
    plural = {"holds": "hold", "fails": "fail"}
    said = ", ".join(f"{n} {k if n == 1 else plural.get(k, k)}" for k, n in counts.items() if n)
    seconds = record.get("wall_seconds")
    took = f" in {seconds:.0f} seconds" if _is_number(seconds) else ""
    return (
        f'<div class="headline {_CLASSES[verdict]}"><p class="kicker">implicit_reg verify</p>'
        f"<h1>{_HEADLINES[verdict]}</h1>"
        f'<p class="lead">{len(checks)} check{"s" * (len(checks) != 1)}{took}: {said or "nothing was tested"}. '
        "An order of accuracy is the slope of the error between the two finest step sizes.</p></div>"
    )


def _summary(checks: Sequence[Record]) -> str:
    rows = []
    for check in checks:
        details = check["details"]
        expected = _join(check["expected"], "g") or _e(check.get("criterion") or "")
        title = f'<a href="#{_anchor(check)}">{_e(details["title"])}</a><br><code>{_e(check["name"])}</code>'
        rows.append(
            f'<tr><td class="text name">{title}</td><td class="text claim">{_e(details.get("claim") or "")}</td>'
            f'<td>{expected}</td><td class="number">{_join(check["measured"], ".2f")}</td>'
            f'<td class="text">{_verdict(check["verdict"])}</td></tr>'
        )
    return (
        '<div class="scroll"><table class="wide"><thead><tr><th class="text">Method</th><th class="text">Claim</th>'
        '<th>Orders expected</th><th>measured</th><th class="text">Verdict</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _check(check: Record, figures: Mapping[str, bytes | str]) -> str:
    details = check["details"]
    name = f"errors-{check['name']}"
    body = [f"<p>{_e(details['claim'])}</p>" if details.get("claim") else ""]
    if details.get("formula"):
        body.append(f'<p class="formula"><code>{_e(details["formula"])}</code></p>')
    if check.get("criterion"):
        body.append(f"<p>Criterion: {_e(check['criterion'])}.</p>")
    if details.get("source"):
        body.append(f'<p class="note">Source: [{_e(details["source"])}]</p>')
    if name in figures:
        body.append(_figure(figures, name, f"{details['title']}: error against step size"))
    body += [_loss(loss) for loss in details.get("losses") or []]
    head = f"<header><h2>{_e(details['title'])}</h2>{_verdict(check['verdict'])}</header>"
    return f'<section id="{_anchor(check)}">{head}{"".join(body)}</section>'


def _loss(loss: Record) -> str:
    """The numbers of one loss: a row per step size, a column per measurement, and below them the orders."""
    columns = [(kind, row["terms"], row[kind]) for kind in _KINDS for row in loss["truncations"] if row.get(kind)]
    curvature = loss.get("h_lambda")
    groups = "".join(
        f'<th class="group" colspan="{n}">error {label}{_at(loss, kind)}</th>'
        for kind, label in _KINDS.items()
        if (n := sum(k == kind for k, *_ in columns))
    )
    names = "".join(f"<th>{terms} term{'s' * (terms != 1)}</th>" for _, terms, _ in columns)
    rows = []
    for i, h in enumerate(loss["h"]):
        cells = [_number(h, ".4g"), *([_number(curvature[i], ".2g")] if curvature else [])]
        cells += [_number(curve["error"][i], ".2e") for *_, curve in columns]
        rows.append("<tr>" + "".join(f'<td class="number">{cell}</td>' for cell in cells) + "</tr>")
    span = f' colspan="{1 + bool(curvature)}"'
    results = [
        ("order measured", [_colored(c["verdict"], _number(c["measured"], ".2f")) for *_, c in columns]),
        ("order expected", [_number(c["expected"], "g") for *_, c in columns]),
        ("last term scaled by 1.1", [_number(c.get("mutant"), ".2f", "") for *_, c in columns]),
        ("verdict", [_verdict(c["verdict"]) for *_, c in columns]),
    ]
    foot = "".join(
        f'<tr><th class="text"{span}>{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, cells in results
    )
    reasons = [
        f"<li>{terms} term{'s' * (terms != 1)} {_KINDS[kind]}: {_e(curve['reason'])}</li>"
        for kind, terms, curve in columns
        if curve.get("reason")
    ]
    size = f", {_number(loss['num_params'], 'd')} parameters" if _is_number(loss.get("num_params")) else ""
    return (
        f"<h3>{_e(loss['name'])}{size}</h3>"
        f'<div class="scroll"><table><thead><tr><th></th>{"<th></th>" if curvature else ""}{groups}</tr>'
        f"<tr><th>h</th>{'<th>h λ</th>' if curvature else ''}{names}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f'<tbody class="result">{foot}</tbody></table></div>'
        + (f'<ul class="note">{"".join(reasons)}</ul>' if reasons else "")
        + _exact(loss)
    )


def _exact(loss: Record) -> str:
    """The two comparisons that have no order: each is right to round-off or wrong."""
    titles = {
        "update": "Update against the published formula",
        "leading": "Leading correction against the published one",
    }
    items = [
        f"<dt>{title}</dt><dd>{_verdict(loss[key]['verdict'])} error {_number(loss[key]['error'], '.1e')}, tolerance "
        f"{_number(loss[key]['tolerance'], '.0e')}</dd>"
        for key, title in titles.items()
        if loss.get(key)
    ]
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _colophon(record: Record) -> str:
    command = (record.get("config") or {}).get("command") or "implicit-reg verify"
    tables = [
        f"<div><h3>{title}</h3><dl>{_items(record.get(key) or {})}</dl></div>"
        for title, key in (("Environment", "environment"), ("Configuration", "config"))
    ]
    again = f"<p>To run this again:</p><pre>{_e(command)}</pre>"
    return _section("How this was made", again, f'<div class="columns">{"".join(tables)}</div>')


def _items(values: Mapping[str, Any]) -> str:
    return "".join(f"<dt>{_e(key)}</dt><dd>{_e(_plain(value))}</dd>" for key, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)


def _section(title: str, *body: str) -> str:
    return f"<section><h2>{_e(title)}</h2>{''.join(body)}</section>"


def _figure(figures: Mapping[str, bytes | str], name: str, description: str) -> str:
    picture, label = figures.get(name), _e(description)
    if picture is None:
        return ""
    if isinstance(picture, bytes) and picture.startswith(b"\x89PNG\r\n\x1a\n"):
        data = base64.b64encode(picture).decode("ascii")
        return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"></figure>'
    if not isinstance(picture, str) or not picture.lstrip().startswith("<svg"):
        raise ValueError(f"verify_report: figures[{name!r}] must be a PNG file as bytes or an <svg> element as text")
    if unsafe := _UNSAFE_SVG.search(picture):
        raise ValueError(
            f"verify_report: figures[{name!r}] holds {unsafe.group().strip()!r}; a picture may neither run nor fetch "
            "anything: make it with implicit_reg.plots.to_svg, or pass a PNG"
        )
    svg = picture.lstrip().replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure>{svg}</figure>"


def _at(loss: Record, kind: str) -> str:
    return f", t = {_number(loss['time'], 'g')}" if kind == "fixed_time" and _is_number(loss.get("time")) else ""


def _verdict(verdict: str) -> str:
    return f'<span class="verdict {_CLASSES[verdict]}">{_e(verdict)}</span>'


def _colored(verdict: str, text: str) -> str:
    return f'<span class="{_CLASSES[verdict]}">{text}</span>'


def _anchor(check: Record) -> str:
    return "check-" + re.sub(r"[^A-Za-z0-9_-]", "-", str(check["name"]))


def _join(values: Sequence[Any], form: str) -> str:
    return ", ".join(_number(value, form) for value in values)


def _number(value: Any, form: str, missing: str = "–") -> str:
    return format(value, form) if _is_number(value) else missing


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _e(value: Any) -> str:
    return html.escape(str(value), quote=True)
