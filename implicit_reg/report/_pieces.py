"""The pieces that pages are put together from: escaped text, numbers, verdicts, tables, pictures."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from implicit_reg.plots.record import anchor, is_number
from implicit_reg.report._style import STYLE

Record: TypeAlias = dict[str, Any]
Figures: TypeAlias = Mapping[str, bytes | str]

CLASSES = {
    "holds": "holds",
    "fails": "fails",
    "could not measure": "unknown",
    "reproduced": "holds",
    "partly": "partly",
    "not": "fails",
}

# What an SVG element may not hold where it stands in a page: it would run, or fetch.
_UNSAFE_SVG = re.compile(
    r"<\s*(script|foreignobject|iframe|image|object|embed|link)|\son\w+\s*=|javascript:|@import"
    r"|(href|src)\s*=\s*[\"']?\s*(?!#)[^\s\"'>]|url\(\s*[\"']?(?!#)",
    re.IGNORECASE,
)
_TEXT = re.compile(r"(<text\b[^<>]*>)[^<]*(?=</text>)")  # where names of a user may stand, and nothing can run


def escape(value: Any) -> str:
    """Text that stands in a page as it is, whatever it holds."""
    return html.escape(str(value), quote=True)


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page, its parts HTML already; it runs nothing, and fetches nothing."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        "</head>\n<body>\n<main>\n" + "\n".join(part for part in parts if part) + "\n</main>\n</body>\n</html>\n"
    )


def items(values: Mapping[str, object]) -> str:
    """Names and values of a record, to stand inside a `<dl>`."""
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(plain(value))}</dd>" for key, value in values.items())


def figure(figures: Figures, name: str, description: str) -> str:
    """A picture, inside the page; nothing where there is none of this name.

    Raises:
      ValueError: it is neither PNG nor SVG, or an SVG holds scripts or outside references.
    """
    picture, label = figures.get(name), escape(description)
    if picture is None:
        return ""
    if isinstance(picture, bytes) and picture.startswith(b"\x89PNG\r\n\x1a\n"):
        data = base64.b64encode(picture).decode("ascii")
        return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"></figure>'
    if not isinstance(picture, str) or not picture.lstrip().startswith("<svg"):
        raise ValueError(f"verify_report: figures[{name!r}] must be a PNG file as bytes or an <svg> element as text")
    if unsafe := _UNSAFE_SVG.search(_TEXT.sub(r"\1", picture)):
        raise ValueError(
            f"verify_report: figures[{name!r}] holds {unsafe.group().strip()!r}; a picture may neither run nor fetch "
            "anything: make it with implicit_reg.plots.to_svg, or pass a PNG"
        )
    svg = picture.lstrip().replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure>{svg}</figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1, wide: bool = False) -> str:
    """A table of cells that are HTML already; its first columns are text, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if k < text_columns else ' class="number"' for k in range(len(cells))]
        return (
            "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"
        )

    body = "".join(line(cells, "td") for cells in rows)
    kind = ' class="wide"' if wide else ""
    return f'<div class="scroll"><table{kind}><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def facts(items: Mapping[str, str]) -> str:
    """Names and values, which are HTML already; those without a value are left out."""
    found = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in items.items() if value)
    return f'<dl class="facts">{found}</dl>' if found else ""


def section(title: str, *body: str, kind: str = "", identifier: str = "") -> str:
    """A part of the page under a heading."""
    attributes = (f' class="{kind}"' if kind else "") + (f' id="{identifier}"' if identifier else "")
    return f"<section{attributes}><h2>{escape(title)}</h2>{''.join(body)}</section>"


def verdict(value: str, words: str = "") -> str:
    """A verdict with its sign and color, in its own word or in others."""
    return f'<span class="verdict {CLASSES[value]}">{escape(words or value)}</span>'


def colored(value: str, text: str) -> str:
    """Text in the color of a verdict."""
    return f'<span class="{CLASSES[value]}">{text}</span>'


def link(check: Record) -> str:
    """The title of a check, leading to its page."""
    return f'<a href="#{anchor(check["name"])}">{escape(check["details"]["title"])}</a>'


def join(values: Sequence[Any], form: str) -> str:
    """Numbers in a row."""
    return ", ".join(number(value, form) for value in values)


def number(value: Any, form: str, missing: str = "–") -> str:
    """A number, or a dash where there is none."""
    return format(value, form) if is_number(value) else missing


def plain(value: Any) -> str:
    """Any value of a record in words: short numbers, lists with commas."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, ".4g")
    return "none" if value is None else str(value)
