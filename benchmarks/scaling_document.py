"""Writes the tables and the picture of `docs/scale.md` from a file of results.

python benchmarks scaling-kernels scaling-runs scaling-machines --json > FILE
python benchmarks/scaling_document.py FILE
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import scaling_figure
import scaling_model

from implicit_reg.plots import to_png

DOCS = pathlib.Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- scaling -->", "<!-- end of scaling -->"


def scaling_data(record: Mapping[str, Any]) -> dict[str, Any]:
    """All dimensions of a record of results, in the order of the page; ValueError where it holds none."""
    every = [found["data"] for name, found in record["benchmarks"].items() if name.startswith("scaling")]
    merged = {name: dimension for data in every for name, dimension in data.items()}
    if not merged:
        raise ValueError("scaling_document: the file must hold a benchmark named scaling..., got none")
    return merged


def rendered(record: Mapping[str, Any]) -> str:
    """What stands between the marks: where it was measured, and a table for each dimension."""
    name, found = next((n, f) for n, f in record["benchmarks"].items() if n.startswith("scaling"))
    del name
    where = found["environment"]
    shown = ", ".join(
        f"{key} {where[key]}" for key in ("processor", "device", "cores", "load", "jax") if where.get(key)
    )
    tables = "\n\n".join(map(scaling_model.dimension_table, scaling_data(record).values()))
    return f"{shown}.\n\n{tables}"


def replaced(page: str, text: str) -> str:
    """The page with other text between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def main(path: str) -> None:
    """The command line."""
    record = json.loads(pathlib.Path(path).read_text())
    page = DOCS / "scale.md"
    page.write_text(replaced(page.read_text(), rendered(record)))
    (DOCS / "figures" / "scaling.png").write_bytes(to_png(scaling_figure.draw_scaling(scaling_data(record)), dpi=130))


if __name__ == "__main__":
    main(*sys.argv[1:])
