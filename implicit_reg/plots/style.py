"""One look for all pictures: a color per method, verdicts by shape and color, and the way to PNG and SVG."""

from __future__ import annotations

import io
import math
import re
import textwrap
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from implicit_reg.plots.record import Real, Record, cases, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes: TypeAlias = object  # matplotlib is not imported before something is drawn
    Figure: TypeAlias = object

METHOD_COLORS: dict[str, str] = {
    "gd": "#0072b2",
    "gradient-penalty": "#00916a",
    "finite-difference-penalty": "#7a8b00",
    "weight-decay": "#3a7d54",
    "backstitch": "#d55e00",
    "backstitch-shuffled": "#b04a00",
    "alternating": "#b4478f",
    "sam": "#c08a00",
    "sam-unnormalized": "#997000",
    "flooding": "#3d97cf",
    "flooding-pair": "#2886bd",
    "flooding-minibatch-pair": "#2f7299",
    "flooding-level-set": "#4a80b5",
    "individual-flooding": "#1f6591",
    "softad": "#1d7f8e",
    "adaflood": "#5468b8",
    "label-smoothing": "#a8741a",
    "gradient-noise": "#7c6bc4",
    "heavy-ball": "#8a5bb8",
    "nesterov": "#6b4fa8",
    "ema": "#9d6cc2",
    "adam": "#c4456b",
    "adamw": "#a8325a",
    "nadam": "#cf5f80",
    "rmsprop": "#934060",
    "sgd-shuffled": "#6c7a14",
    "sgd-replacement": "#8a8420",
    "principal-flow": "#00808f",
    "central-flow": "#11707a",
    "two-player": "#94614f",
}
"""One color per method and prediction, in every picture: the hues of Okabe and Ito, for color-blind eyes, dark enough
for text; relatives are shades of one hue, and no picture tells them apart by color alone."""

_OTHER_COLORS = ("#5b6770", "#8c564b", "#4b6fae", "#a0522d", "#2f7f86")

# Narrower than the first, with which places are reckoned, or as wide.
_FONTS = "'DejaVu Sans', Verdana, system-ui, 'Segoe UI', Arial, sans-serif"

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
    # Two ways to write text: (1) as outlines, the same everywhere; (2) as text, which readers can search and select.
    # (1) takes twice the time and the bytes, and the page around it is in the reader's fonts anyway. We do (2).
    with style(**{"svg.hashsalt": name, "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, facecolor="none")
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = text.replace("'DejaVu Sans'", _FONTS)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable}, {color})")
    # Glyphs and clips are referred to by identifiers, which must differ between the pictures of one page. What begins
    # with check- is an anchor of the page itself.
    prefix = re.sub(r"[^A-Za-z0-9]", "-", name)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(href="|url\()#(?!check-)', rf"\1#{prefix}-", text)


def style(**more: Any):
    """The context in which pictures are made; it leaves matplotlib's own settings as they were."""
    import matplotlib

    return matplotlib.rc_context(RC | more)


def new_figure(width: Real, height: Real, *, layout: str | None = "constrained") -> Figure:
    """A figure that no global state knows of: nothing to close, no window, any thread."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(width, height), layout=layout)


def place(figure: Figure, left: Real, top: Real, width: Real, height: Real) -> Axes:
    """Axes at a place in inches from the figure's upper left corner.

    Two ways to lay out many panels: (1) matplotlib's constrained layout, which draws everything twice; (2) fixed
    places. The pictures of `verify` hold a hundred panels and share its three minutes. We do (2) there, (1) elsewhere.
    """
    total_width, total_height = figure.get_size_inches()
    bottom = (total_height - top - height) / total_height
    return figure.add_axes((left / total_width, bottom, width / total_width, height / total_height))


def label(ax: Axes, *, x: str = "", y: str = "", title: str = "", pad: Real = 7, **font: Any) -> None:
    """Title and labels of axes made by `place`, at fixed distances.

    Matplotlib would look for room by measuring every tick's label; that took a third of the time of a page.
    """
    width, height = (size * share for size, share in zip(axes_size(ax), (72, 72), strict=True))
    if x:
        ax.set_xlabel(x)
        ax.xaxis.set_label_coords(0.5, -19 / height)
    if y:
        ax.set_ylabel(y, linespacing=1.1)
        ax.yaxis.set_label_coords(-31 / width, 0.5)
    if title:
        ax.set_title(title, y=1.0, pad=pad, **font)


def axes_size(ax: Axes) -> tuple[Real, Real]:
    """Width and height of axes in inches."""
    figure, box = ax.get_figure(), ax.get_position()
    return box.width * figure.get_size_inches()[0], box.height * figure.get_size_inches()[1]


def draw_in_inches(ax: Axes) -> tuple[Real, Real]:
    """Makes the axes a sheet of paper: coordinates are inches from its upper left corner; returns its size."""
    ax.axis("off")
    size = axes_size(ax)
    ax.set_xlim(0, size[0])
    ax.set_ylim(size[1], 0)
    return size


def power_of_ten(value: Real, position: int | None = None) -> str:
    """A tick's label such as 10⁻³. Matplotlib's own needs its parser of mathematics, which is slow for so many."""
    exponent = round(math.log10(value)) if value > 0 else 0
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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


def spread(positions: Sequence[Real], gap: Real, low: Real = -math.inf, high: Real = math.inf) -> list[Real]:
    """The positions, moved apart as little as needed until neighbors are `gap` apart: for labels that would collide.

    They stay between `low` and `high`; where there is no room for all, the lowest are pushed out below.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    clusters: list[tuple[Real, int]] = []  # (center, members); a cluster stands on the mean of what it holds
    for i in order:
        center, size = positions[i], 1
        while clusters and center - clusters[-1][0] < gap * (size + clusters[-1][1]) / 2:
            other, count = clusters.pop()
            center, size = (center * size + other * count) / (size + count), size + count
        clusters.append((center, size))
    placed = [center + (k - (size - 1) / 2) * gap for center, size in clusters for k in range(size)]
    # Both bounds are sequences with the same gap, so that neighbors stay apart.
    placed = [max(position, low + k * gap) for k, position in enumerate(placed)]
    placed = [min(position, high - (len(placed) - 1 - k) * gap) for k, position in enumerate(placed)]
    result = [0.0] * len(positions)
    for i, position in zip(order, placed, strict=True):
        result[i] = position
    return result


def caption(record: Record) -> str:
    """Sizes, seed and precision of a run of `verify`, for the line under a picture."""
    sizes: dict[str, int] = {}
    for check in record.get("checks", []):
        for case in cases(check):
            if is_number(case.get("num_params")):
                sizes[str(case["loss"])] = case["num_params"]
    parts = [f"{name}: n = {size} parameters" for name, size in sizes.items()]
    config, environment = record.get("config", {}), record.get("environment", {})
    if record.get("preset"):
        parts.append(f"preset {record['preset']}")
    if config.get("seed") is not None:
        parts.append(f"seed {config['seed']}")
    dtype = config.get("dtype") or environment.get("dtype")
    return "; ".join([*parts, str(dtype)] if dtype else parts)


def sign(figure: Figure, text: str, record: Record) -> None:
    """The lines under a picture: how to read it, and sizes, seed and precision."""
    text = ". ".join(part for part in (text, plain(caption(record))) if part)
    lines = textwrap.wrap(text + "." * bool(text), max(40, int(17 * figure.get_size_inches()[0])))
    figure.supxlabel("\n".join(lines), fontsize=7, color=MUTED, ha="left", x=0.01)


def plain(text: Any) -> str:
    """Text that is not to be read as mathematics, whatever a user called things."""
    return str(text).replace("$", r"\$")


def wrapped(text: Any, width: int, max_lines: int = 2) -> str:
    """The text in at most so many lines of at most so many characters, with an ellipsis where it is longer."""
    lines = textwrap.wrap(str(text), width, max_lines=max_lines, placeholder=" …")
    return plain("\n".join(lines))
