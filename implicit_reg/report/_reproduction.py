"""The page of a published experiment that was run again: verdict, criterion, figure, tables, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from implicit_reg.report import _pieces
from implicit_reg.report._pieces import CLASSES, Figures, Record, escape

FORMAT, VERSION = "implicit_reg.reproduce", 1

HEADLINES = {"reproduced": "Reproduced", "partly": "Partly reproduced", "not": "Not reproduced"}


def reproduction_report(record: Record, figures: Figures) -> str:
    """The report of a published experiment that was run again.

    Args:
      record: what `results.json` of `implicit-reg reproduce` holds.
      figures: pictures by name, PNG files as bytes or SVG elements as text, all of which are shown.

    Returns:
      A whole HTML document without outside references.

    Raises:
      ValueError: where the record is of another format, a picture is neither PNG nor SVG, or an SVG holds scripts or
        outside references.

    Example:
      >>> from implicit_reg.report import reproduction_report
      >>> part = {"text": "the order is 2", "holds": True}
      >>> record = {"format": "implicit_reg.reproduce", "version": 1, "name": "x", "claim": "It is of order 2.",
      ...           "source": "[smith2021]", "reported": "2", "verdict": "reproduced", "parts": [part], "numbers": {},
      ...           "tables": [], "notes": [], "scale": "fast", "settings": {}, "seconds": 1.0, "environment": {}}
      >>> "<h1>Reproduced</h1>" in reproduction_report(record, {})
      True
    """
    if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"reproduction_report: `record` must be of format {FORMAT!r}, version {VERSION}, got "
            f"{record.get('format')!r}, version {record.get('version')!r}; read it from results.json of `reproduce`"
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in record["notes"])
    parts = [
        _headline(record),
        _criterion(record),
        *(
            _pieces.section("Figure", _pieces.figure(figures, name, record["claim"]), kind="picture")
            for name in figures
        ),
        _pieces.section("What else was seen, and what is not shown", f"<ul>{notes}</ul>") if notes else "",
        *(_table(table["title"], table["columns"], table["rows"]) for table in record["tables"]),
        _table("Numbers that were judged", ["", "value"], list(record["numbers"].items())),
        _colophon(record),
    ]
    return _pieces.document(f"implicit_reg reproduce {record['name']}: {record['verdict']}", parts)


def reproductions_report(records: Sequence[Record], failed: Mapping[str, str]) -> str:
    """The contents of a folder of many reproductions.

    Args:
      records: of each; the page of NAME is expected in the folder NAME beside this page.
      failed: names of those that could not be run, with the reason.

    Returns:
      A whole HTML document that leads to the others.

    Example:
      >>> from implicit_reg.report import reproductions_report
      >>> "0 of 1 reproduced" in reproductions_report([], {"adam": "out of memory"})
      True
    """
    rows = []
    for record in records:
        held = sum(part["holds"] for part in record["parts"])
        name = escape(record["name"])
        rows.append(
            [
                f'<a href="{name}/report.html">{name}</a>',
                escape(record["claim"]),
                _pieces.verdict(record["verdict"], HEADLINES[record["verdict"]].lower()),
                f"{held} of {len(record['parts'])}",
                _pieces.number(record["seconds"], ".0f"),
            ]
        )
    count = sum(record["verdict"] == "reproduced" for record in records)
    scales = ", ".join(sorted({record["scale"] for record in records}))
    head = (
        f'<div class="headline"><p class="kicker">implicit_reg reproduce all, scale {escape(scales)}</p>'
        f"<h1>{count} of {len(records) + len(failed)} reproduced</h1></div>"
    )
    columns = ["Experiment", "Claim", "Verdict", "Criteria that hold", "Seconds"]
    table = _pieces.table(columns, rows, text_columns=3, wide=True)
    lines = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in failed.items())
    parts = [
        head,
        _pieces.section("Experiments", table, kind="findings"),
        _pieces.section("Could not be run", f"<ul>{lines}</ul>") if failed else "",
    ]
    return _pieces.document("implicit_reg reproduce all", parts)


def reproductions_table(records: Sequence[Record]) -> str:
    """The verdicts of many reproductions as a table in Markdown, with what does not hold in words.

    Args:
      records: of each.

    Returns:
      The lines of the table.

    Example:
      >>> from implicit_reg.report import reproductions_table
      >>> part = {"text": "the order is 2", "holds": False}
      >>> record = {"name": "x", "verdict": "not", "parts": [part], "seconds": 9.4}
      >>> print(reproductions_table([record]).splitlines()[2])
      | `x` | not reproduced | 0 of 1 | the order is 2 | 9 |
    """
    lines = ["| experiment | verdict | criteria that hold | what does not hold | seconds |", "|---|---|---|---|---|"]
    for record in records:
        failed = "; ".join(part["text"] for part in record["parts"] if not part["holds"]).replace("|", "&#124;")
        held = sum(part["holds"] for part in record["parts"])
        lines.append(
            f"| `{record['name']}` | {HEADLINES[record['verdict']].lower()} | {held} of {len(record['parts'])} | "
            f"{failed} | {record['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _headline(record: Record) -> str:
    held = sum(part["holds"] for part in record["parts"])
    word = "criterion" if len(record["parts"]) == 1 else "criteria"
    facts = {
        "Source": escape(record["source"]),
        "Reported there": escape(record["reported"]),
        "Here": f"{escape(record['scale'])} scale, {_pieces.number(record['seconds'], '.0f')} seconds",
    }
    verdict = record["verdict"]
    return (
        f'<div class="headline {CLASSES[verdict]}">'
        f'<p class="kicker">implicit_reg reproduce {escape(record["name"])}</p><h1>{HEADLINES[verdict]}</h1>'
        f'<p class="claim">{escape(record["claim"])}</p>'
        f'<p class="lead">{held} of {len(record["parts"])} {word} hold{"s" * (len(record["parts"]) == 1)}.</p>'
        f"{_pieces.facts(facts)}</div>"
    )


def _criterion(record: Record) -> str:
    lines = "".join(
        f"<li>{_pieces.verdict('holds' if part['holds'] else 'fails')} {escape(part['text'])}</li>"
        for part in record["parts"]
    )
    words = (
        '<p class="note">Fixed before the numbers were seen, unless a note below says otherwise, and judged from them '
        "alone. Reproduced: all hold; not reproduced: none does; partly: anything else.</p>"
    )
    return _pieces.section("Criterion", words, f'<ul class="findings">{lines}</ul>')


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    texts = 0  # columns on the left that hold words
    while texts < len(columns) and any(isinstance(row[texts], str) for row in rows):
        texts += 1
    cells = [[_cell(value) for value in row] for row in rows]
    made = _pieces.table([escape(name) for name in columns], cells, text_columns=texts)
    return _pieces.section(title, made, kind="findings") if rows else ""


def _cell(value: Any) -> str:
    return "–" if value is None else escape(_pieces.plain(value))


def _colophon(record: Record) -> str:
    again = f"<p>To run this again:</p><pre>{escape(command(record))}</pre>"
    tables = [
        f"<div><h3>{title}</h3><dl>{_pieces.items(record[key])}</dl></div>"
        for title, key in (("Environment", "environment"), ("Settings", "settings"))
    ]
    return _pieces.section("How this was made", again, f'<div class="columns">{"".join(tables)}</div>')


def command(record: Record) -> str:
    """The command that repeats a reproduction.

    Args:
      record: of a reproduction.

    Returns:
      One line for a shell.

    Example:
      >>> command({"name": "adam", "scale": "full"})
      'implicit-reg reproduce adam --scale full'
    """
    return f"implicit-reg reproduce {record['name']}" + (
        f" --scale {record['scale']}" if record["scale"] != "fast" else ""
    )
