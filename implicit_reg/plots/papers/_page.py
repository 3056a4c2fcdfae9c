"""What the figures of all reproductions share: one size, a title with the verdict, a caption, names at curves' ends."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator

import numpy as np

from implicit_reg.plots.record import Real, Record
from implicit_reg.plots.style import MUTED, VERDICTS, Axes, Figure, mix, new_figure, plain, spread, style

WIDTH = 7.6  # inches: the text of a page

# Verdict of a reproduction: sign, color, words.
MARKS: dict[str, tuple[str, str, str]] = {
    "reproduced": ("✓", VERDICTS["holds"][1], "reproduced"),
    "partly": ("◐", "#8a6a00", "partly reproduced"),
    "not": ("✗", VERDICTS["fails"][1], "not reproduced"),
}


@contextlib.contextmanager
def page(
    record: Record, width: Real = WIDTH, height: Real = 4.4, *, title: str = "", note: str = ""
) -> Iterator[Figure]:
    """A figure with the short claim as title, the verdict beside it, and a caption below.

    Args:
      record: of a reproduction.
      width: in inches; the standard one unless there is a reason.
      height: in inches.
      title: the claim in a few words; "" takes the whole claim of the record.
      note: the caption: how to read the picture, how many seeds, what the data are. The scale is added to it.

    Yields:
      The figure, in the library's style as long as the context is open: make the axes inside it.

    Example:
      >>> record = {"claim": "It holds.", "verdict": "partly", "scale": "fast"}
      >>> with page(record, height=2.0, note="5 seeds") as figure:
      ...     ax = figure.subplots()
      >>> figure.get_supxlabel()
      '5 seeds. Scale: fast.'
    """
    sign, color, words = MARKS[record["verdict"]]
    with style():
        figure = new_figure(width, height)
        figure.get_layout_engine().set(w_pad=6 / 72, h_pad=5 / 72)
        lines = textwrap.wrap(title or record["claim"], int(11 * width - len(words)))
        figure.suptitle(plain("\n".join(lines)), x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.text(0.99, 1 - 0.06 / height, f"{sign} {words}", color=color, ha="right", va="top", fontweight="bold")
        caption = " ".join(f"{part.rstrip('.')}." for part in (note, f"Scale: {record['scale']}") if part)
        wrapped = "\n".join(textwrap.wrap(caption, int(18 * width)))
        figure.supxlabel(plain(wrapped), fontsize=7, color=MUTED, ha="left", x=0.01)
        yield figure


def end_labels(ax: Axes, *, size: Real = 8) -> None:
    """Writes each curve's label beside its right end, in its color, moved apart where they would collide.

    Call it last, when limits and scales are set: curves are the lines of `ax` that have a label. Their ends may lie
    anywhere; a thin line leads there from a label that had to move.

    Args:
      ax: axes with labeled lines.
      size: of the font, in points.

    Example:
      >>> from matplotlib.figure import Figure
      >>> ax = Figure().subplots()
      >>> _ = ax.plot([0, 1], [1.0, 1.0], label="one"), ax.plot([0, 1], [1.0, 1.01], label="other")
      >>> end_labels(ax)
      >>> low, high = (text.xyann[1] for text in ax.texts)
      >>> bool(high - low > 0.02)
      True
    """
    from matplotlib.colors import to_hex

    figure = ax.get_figure()
    figure.draw_without_rendering()  # the layout decides how high the axes are
    box, points = ax.get_window_extent(), 72 / figure.dpi
    width, height = box.width * points, box.height * points
    ends = []
    for line in ax.get_lines():
        name, data = str(line.get_label()), np.asarray(line.get_xydata(), float)
        data = data[np.isfinite(data).all(axis=1)]
        if name.startswith("_") or not len(data):
            continue
        x, y = ax.transAxes.inverted().transform(ax.transData.transform(data[-1]))
        if math.isfinite(x) and math.isfinite(y):
            ends.append((name, min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0), to_hex(line.get_color())))
    places = spread([y * height for *_, y, _ in ends], 1.25 * size, 0.0, height)
    for (name, x, y, color), place in zip(ends, places, strict=True):
        far = abs(place - y * height) > 1.5 or (1 - x) * width > 4
        leader = {"arrowstyle": "-", "color": mix(color, 0.5), "lw": 0.7, "shrinkA": 1, "shrinkB": 2} if far else None
        ax.annotate(
            plain(name), (x, y), (1 + 9 / width, place / height), xycoords="axes fraction", textcoords="axes fraction",
            va="center", ha="left", color=color, fontsize=size, arrowprops=leader, annotation_clip=False,
        )  # fmt: skip
