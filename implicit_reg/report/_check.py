"""The page of one prediction: what is claimed, where it speaks, the evidence, and every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from implicit_reg.plots.record import KINDS, anchor, by_statement, cases, count, curves, findings, inequality, is_number
from implicit_reg.report import _pieces
from implicit_reg.report._pieces import Figures, Record, colored, escape, number


def page(check: Record, figures: Figures, position: int, checks: Sequence[Record]) -> str:
    """The section of one check; `position` is its place among `checks`, for the links to its neighbors."""
    details, identifier = check["details"], anchor(check["name"])
    orders, criteria = cases(check, "order"), cases(check, "criterion")
    seconds = check.get("wall_seconds")
    body = [
        f'<p class="claim">{escape(details["claim"])}</p>' if details.get("claim") else "",
        f'<p class="formula"><code>{escape(details["formula"])}</code></p>' if details.get("formula") else "",
        _pieces.facts(
            {
                "Time scale": escape(details.get("time_scale") or ""),
                "Valid where": escape(details.get("validity") or ""),
                "Criterion": escape(check.get("criterion") or ""),
                "Source": f"[{escape(details['source'])}]" if details.get("source") else "derived for this library",
                "Measured in": f"{number(seconds, '.1f')} s" if is_number(seconds) else "",
            }
        ),
        reasons(check),
        _pieces.figure(figures, f"check-{check['name']}", f"{details['title']}: the evidence"),
        _validity(orders),
        *(_statement(name, found) for name, found in by_statement(orders).items()),
        _criteria(criteria),
    ]
    head = (
        f'<header><p class="kicker">{position + 1} of {len(checks)} · <code>{escape(check["name"])}</code></p>'
        f"<h2>{escape(details['title'])}</h2>{_pieces.verdict(check['verdict'])}{_neighbors(position, checks)}</header>"
    )
    return f'<section class="check" id="{identifier}">{head}{"".join(body)}</section>'


def _neighbors(position: int, checks: Sequence[Record]) -> str:
    links = [
        f'<a href="#{anchor(checks[k]["name"])}">{words}</a>' if 0 <= k < len(checks) else ""
        for k, words in ((position - 1, "← previous"), (position + 1, "next →"))
    ]
    return f'<nav>{links[0]}<a href="#contents">↑ contents</a>{links[1]}</nav>'


def reasons(check: Record) -> str:
    """Why a check does not hold: a line for each case that does not; nothing where all hold."""
    lines = [
        f"<li>{_pieces.verdict(verdict)} {escape(statement or 'main statement')} on {escape(loss)}: "
        f"{escape('; '.join(why))}</li>"
        for statement, loss, verdict, why in findings(check)
    ]
    return f'<ul class="findings">{"".join(lines)}</ul>' if lines else ""


def _validity(orders: Sequence[Record]) -> str:
    """When to trust the orders: the step size against the curvature, successive terms, the next term, the floor."""
    rows, several = [], len(by_statement(orders)) > 1
    for case in orders:
        measures = case.get("validity")
        if not measures:
            continue
        band = escape(measures["band"])
        rows.append(
            [
                *([escape(case["statement"] or "main statement")] if several else []),
                escape(case["loss"]),
                f"{escape(measures['quantity'])} = {_ends(measures['x'])}",
                f'<span class="{band}">{band}</span>',
                _ends([_times(h, measures.get("low")) for h in case["h"]]),
                _ends([_times(h, measures.get("high")) for h in case["h"]]),
                _pieces.join(measures.get("term_ratio") or [], ".2g") or "–",
                _pieces.join(measures.get("next_term") or [], ".3g") or "–",
                number(measures.get("above_floor"), ".1e"),
            ]
        )
    if not rows:
        return ""
    head = ["loss", "step size", "range", "h λ, lowest", "h λ, highest", "term ratios", "error / next term"]
    head = ["statement"] * several + head
    note = (
        "From the coarsest to the finest step size, with λ from the Hessian at the start; the range is judged at the "
        "finest. Term ratios are the sizes of successive terms of the modified equation at the finest step size. The "
        "one-step error over the size of the first term left out is near 1 where that term predicts it. The last "
        "column says how far the smallest error stands above what solver and arithmetic resolve."
    )
    made = _pieces.table([*head, "error / floor"], rows, text_columns=3 + several, wide=True)
    return f'<h3>When to trust it</h3>{made}<p class="note">{note}</p>'


def _times(h: Any, eigenvalue: Any) -> float | None:
    return h * eigenvalue if is_number(h) and is_number(eigenvalue) else None


def _ends(values: Sequence[Any]) -> str:
    """The first and the last of the values, from the coarsest to the finest step size."""
    if not values:
        return "–"
    return f"{number(values[0], '.2g')} … {number(values[-1], '.2g')}"


def _statement(name: str, found: Sequence[Record]) -> str:
    tables = "".join(_orders(case) for case in found)
    return f'<h3>{escape(name or "Main statement")}</h3><div class="side">{tables}</div>'


def _orders(case: Record) -> str:
    """The numbers of one order case: a row per step size, a column per measurement, and below them the orders."""
    columns = list(curves(case))
    at = f", t = {number(case['time'], 'g')}" if is_number(case.get("time")) else ""
    groups = "".join(
        f'<th class="group" colspan="{n}">error {label}{at if kind == "fixed_time" else ""}</th>'
        for kind, label in KINDS.items()
        if (n := sum(k == kind for k, *_ in columns))
    )
    names = "".join(f"<th>{count(terms, 'term')}</th>" for _, terms, _ in columns)
    rows = []
    for i, h in enumerate(case["h"]):
        cells = [number(h, ".4g"), *(number(curve["error"][i], ".2e") for *_, curve in columns)]
        rows.append("<tr>" + "".join(f'<td class="number">{cell}</td>' for cell in cells) + "</tr>")
    results = [
        ("order measured", [colored(c["verdict"], number(c["measured"], ".2f")) for *_, c in columns]),
        ("order expected", [number(c["expected"], "g") for *_, c in columns]),
        ("of the mutant", [number(c.get("mutant"), ".2f", "") for *_, c in columns]),
        ("verdict", [_pieces.verdict(c["verdict"]) for *_, c in columns]),
    ]
    foot = "".join(
        f'<tr><th class="text">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, cells in results
    )
    floor = f", floor {number(case['floor'], '.1e')}" if is_number(case.get("floor")) else ""
    return (
        f"<div><p><strong>{escape(case['loss'])}</strong>{_size(case)}{floor}</p>"
        f'<div class="scroll"><table><thead><tr><th></th>{groups}</tr><tr><th>h</th>{names}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody><tbody class="result">{foot}</tbody></table></div></div>'
    )


def _criteria(criteria: Sequence[Record]) -> str:
    """The numbers against their bounds: a row per case, and below them what else was measured."""
    if not criteria:
        return ""
    found = [case for group in by_statement(criteria).values() for case in group]
    rows = [
        [
            escape(case["statement"]),
            f"{escape(case['loss'])}{_size(case)}",
            escape(case.get("wanted") or ""),
            _pieces.verdict(case["verdict"]),
            colored(case["verdict"], escape(inequality(case))),
            number(case.get("mutant"), ".3g"),
        ]
        for case in found
    ]
    head = ["statement", "loss", "wanted, as fixed beforehand", "verdict", "measured", "wrong prediction"]
    further = "".join(
        f"<div><p><strong>{escape(case['statement'])}</strong>, {escape(case['loss'])}</p><dl>"
        + "".join(f"<dt>{escape(k)}</dt><dd>{escape(_pieces.plain(v))}</dd>" for k, v in case["numbers"].items())
        + "</dl></div>"
        for case in found
        if case.get("numbers")
    )
    made = _pieces.table(head, rows, text_columns=4, wide=True)
    return f"<h3>Numbers against their bounds</h3>{made}" + (f'<div class="columns">{further}</div>' if further else "")


def _size(case: Record) -> str:
    return f", {number(case['num_params'], 'd')} parameters" if is_number(case.get("num_params")) else ""
