"""The figure of each published experiment that was run again, drawn from its record alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from implicit_reg import _checks
from implicit_reg.experiments.papers import REPRODUCTIONS
from implicit_reg.plots.papers._page import MARKS, end_labels, page
from implicit_reg.plots.record import Record
from implicit_reg.plots.style import Figure

__all__ = ["FIGURES", "MARKS", "end_labels", "page", "paper_figure"]

FIGURES: Mapping[str, str] = dict(REPRODUCTIONS)
"""Name of a reproduction to file in this folder, called as its recipe is; each has `draw(record) -> Figure`."""


def paper_figure(record: Record) -> Figure:
    """The figure of a reproduction.

    Args:
      record: what `implicit_reg.experiments.reproduce` returned, or `results.json` of `implicit-reg reproduce`.

    Returns:
      The figure: `implicit_reg.plots.to_png` and `to_svg` make files of it.

    Raises:
      ValueError: the record is of no experiment that is known here.

    Example:
      >>> paper_figure({"name": "adum"})                           # docs/experiments.md draws one
      Traceback (most recent call last):
      ValueError: paper_figure: unknown experiment 'adum'. Did you mean 'adam'? Known: flooding-synthetic, ...
    """
    if record.get("name") not in FIGURES:
        raise _checks.unknown_name("paper_figure", "experiment", record.get("name"), FIGURES)
    return importlib.import_module(f"{__name__}.{FIGURES[record['name']]}").draw(record)
