"""Writes what `benchmarks/results/` holds into the pages that show it: this folder's README and docs/scale.md.

python benchmarks/pages.py
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import records
import scaling_model

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
SCALE, PICTURE = HERE.parent / "docs" / "scale.md", HERE.parent / "docs" / "figures" / "scaling.png"


def replaced(page: str, mark: str, text: str) -> str:
    """The page with other text between its marks, `<!-- mark -->` and `<!-- end of mark -->`."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def kept() -> list[dict[str, Any]]:
    """The records of all devices whose results are kept."""
    return [records.read(path) for path in sorted(RESULTS.glob("*.json"))]


def results(found: Sequence[Mapping[str, Any]]) -> str:
    """A section for each device: its table, and its picture."""
    return "\n\n".join(
        f"### {record['device']}\n\n{records.origin(record)}\n\n{records.document(record)}\n\n"
        f"![Measured over target, for every row that has one](results/{records.slug(record['device'])}.png)"
        for record in found
    )


def scaling_part(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the benchmarks of scaling alone; ValueError where there is none."""
    chosen = {name: found for name, found in record["benchmarks"].items() if name.startswith("scaling")}
    if not chosen:
        raise ValueError("pages: the file must hold a benchmark named scaling..., got none")
    return {**record, "benchmarks": chosen}


def scaling_data(record: Mapping[str, Any]) -> dict[str, Any]:
    """All dimensions of a record of results, in the order of the page."""
    every = scaling_part(record)["benchmarks"].values()
    return {name: dimension for found in every for name, dimension in found["data"].items()}


def scaling(record: Mapping[str, Any]) -> str:
    """Where it was measured, and a table for each dimension."""
    tables = "\n\n".join(map(scaling_model.dimension_table, scaling_data(record).values()))
    return f"{records.origin(scaling_part(record))}\n\n{tables}"


def main() -> None:
    """Writes both pages, and the picture of the second."""
    import scaling_figure

    from implicit_reg.plots import to_png

    found = kept()
    README.write_text(replaced(README.read_text(), "results", results(found)))
    SCALE.write_text(replaced(SCALE.read_text(), "scaling", scaling(found[0])))
    PICTURE.write_bytes(to_png(scaling_figure.draw_scaling(scaling_data(found[0])), dpi=130))


if __name__ == "__main__":
    main()
