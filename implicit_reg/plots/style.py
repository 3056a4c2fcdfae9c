"""One look for all pictures: a color per method, verdicts by shape and color, and the way to PNG and SVG."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes: TypeAlias = object  # matplotlib is not imported before something is drawn
    Figure: TypeAlias = object

Record: TypeAlias = dict[str, Any]
Real: TypeAlias = float | int

METHOD_COLORS: dict[str, str] = {
    "gd": "#0072b2",
    "gradient-penalty": "#00916a",
    "finite-difference-penalty": "#7a8b00",
    "backstitch": "#d55e00",
    "alternating": "#b4478f",
    "sam": "#c08a00",
    "flooding": "#3d97cf",
    "gradient-noise": "#7c6bc4",
}
"""One color per method, in every picture: the hues of Okabe and Ito, for color-blind eyes, dark enough for text."""

_OTHER_COLORS = ("#5b6770", "#8c564b", "#4b6fae", "#a0522d", "#2f7f86")

# Neutral inks. `to_svg` writes them as variables of the page, so that a picture follows a dark page.
INK, MUTED, FAINT, GRID, PAPER = "#1f2429", "#66707a", "#a9b1b9", "#e3e7eb", "#ffffff"
_VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", GRID: "--grid", PAPER: "--paper"}

# Verdict: marker, color, sign. Shape tells them apart in gray print, the sign in text.
VERDICTS: dict[str, tuple[str, str, str]] = {
    "holds": ("o", "#3a8a3e", "✓"),
    "fails": ("X", "#d03b2f", "✗"),
    "could not measure": ("s", MUTED, "?"),
}

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
}


def method_color(name: str) -> str:
    """The color of a method in every picture.

    Args:
      name: a method's name; one that is not in `METHOD_COLORS` gets a color of its own that only its name decides.

    Returns:
      A hexadecimal color.

    Example:
      >>> from implicit_reg.plots import method_color
      >>> method_color("gd")
      '#0072b2'
    """
    return METHOD_COLORS.get(name) or _OTHER_COLORS[zlib.crc32(name.encode()) % len(_OTHER_COLORS)]


def to_png(figure: Figure, *, dpi: int = 180) -> bytes:
    """A figure as a PNG file.

    Args:
      figure: from one of the `*_figure` functions.
      dpi: dots per inch.

    Returns:
      The bytes of the file; equal figures give equal bytes.

    Example:
      >>> from implicit_reg.plots import comparison_figure, to_png
      >>> record = {"metric": "test loss", "baseline": "gd", "methods": [{"name": "gd", "values": [0.3, 0.4]}]}
      >>> to_png(comparison_figure(record))[1:4]
      b'PNG'
    """
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """A figure as one `<svg>` element to stand inside a page.

    Args:
      figure: from one of the `*_figure` functions.
      name: what the page calls it; it keeps the identifiers of several pictures on one page apart.

    Returns:
      The element, without prologue and metadata. Its neutral inks are the variables --ink, --muted, --faint, --grid and
      --paper of the page where that defines them, and what they are on white paper where it does not.

    Example:
      >>> from implicit_reg.plots import comparison_figure, to_svg
      >>> record = {"metric": "test loss", "baseline": "gd", "methods": [{"name": "gd", "values": [0.3, 0.4]}]}
      >>> to_svg(comparison_figure(record), "comparison")[:4]
      '<svg'
    """
    buffer = io.StringIO()
    with style(**{"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, facecolor="none")
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable}, {color})")
    # Glyphs and clips are referred to by identifiers, which must differ between the pictures of one page.
    prefix = re.sub(r"[^A-Za-z0-9]", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(href="|url\()#', rf"\1#{prefix}-", text)


def style(**more: Any):
    """The context in which pictures are made; it leaves matplotlib's own settings as they were."""
    import matplotlib

    return matplotlib.rc_context(RC | more)


def new_figure(width: Real, height: Real) -> Figure:
    """A figure that no global state knows of: nothing to close, no window, any thread."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(width, height), layout="constrained")


def halo():
    """A rim in the color of the paper, for text that lies over curves."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.4, foreground=PAPER)]


def mix(color: str, share: Real) -> str:
    """`color` with `share` of white."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * share):02x}" for c in channels)


def measured(values: Sequence[Real | None]) -> list[Real]:
    """The values with what could not be measured as nan, which matplotlib leaves out."""
    return [math.nan if value is None else float(value) for value in values]


def number(value: Any, form: str = ".2f") -> str:
    """A number for a label; a question mark where it could not be measured."""
    return format(value, form) if is_number(value) else "?"


def is_number(value: Any) -> bool:
    """Whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def spread(positions: Sequence[Real], gap: Real) -> list[Real]:
    """The positions, moved apart as little as needed until neighbors are `gap` apart: for labels that would collide."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    clusters: list[tuple[Real, int]] = []  # (center, members); a cluster stands on the mean of what it holds
    for i in order:
        center, size = positions[i], 1
        while clusters and center - clusters[-1][0] < gap * (size + clusters[-1][1]) / 2:
            other, count = clusters.pop()
            center, size = (center * size + other * count) / (size + count), size + count
        clusters.append((center, size))
    placed = [center + (k - (size - 1) / 2) * gap for center, size in clusters for k in range(size)]
    result = [0.0] * len(positions)
    for i, position in zip(order, placed, strict=True):
        result[i] = position
    return result


def caption(record: Record) -> str:
    """Sizes, seed and precision of a run of `verify`, for the line under a picture."""
    sizes: dict[str, int] = {}
    for check in record.get("checks", []):
        for loss in check.get("details", {}).get("losses", []):
            if is_number(loss.get("num_params")):
                sizes[str(loss["name"])] = loss["num_params"]
    parts = [f"{name}: n = {size} parameters" for name, size in sizes.items()]
    config, environment = record.get("config", {}), record.get("environment", {})
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    dtype = config.get("dtype") or environment.get("dtype")
    return "; ".join([*parts, str(dtype)] if dtype else parts)


def sign(figure: Figure, text: str, record: Record) -> None:
    """The line under a picture: how to read it, and sizes, seed and precision."""
    text = ". ".join(part for part in (text, plain(caption(record))) if part)
    figure.supxlabel(text + "." * bool(text), fontsize=7, color=MUTED, ha="left", x=0.01)


def plain(text: Any) -> str:
    """Text that is not to be read as mathematics, whatever a user called things."""
    return str(text).replace("$", r"\$")
