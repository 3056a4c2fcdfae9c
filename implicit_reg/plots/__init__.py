"""Pictures of records: each function takes a record and an `ax`, draws, returns the `ax`, and computes no result.

A record is the plain dictionary that a command wrote as JSON; a number that could not be measured is None there and is
left out of the picture. Matplotlib is imported when something is drawn. `verify_figures` and the other `*_figure`
functions lay out whole pages; `to_png` and `to_svg` make files of them, the latter in colors that follow a page.
"""

from __future__ import annotations

from implicit_reg.plots.criteria import gauges, series_curves
from implicit_reg.plots.curvature import (
    curvature_figure,
    escape_curves,
    loss_surface,
    sharpness_curve,
    spectral_density,
)
from implicit_reg.plots.errors import error_curves, errors_figure
from implicit_reg.plots.evidence import check_figure
from implicit_reg.plots.overview import strip, strip_figure, verify_figures
from implicit_reg.plots.style import METHOD_COLORS, method_color, to_png, to_svg
from implicit_reg.plots.training import accuracy_curve, comparison, comparison_figure, learning_curves, training_figure
from implicit_reg.plots.trajectories import trajectories, trajectories_figure, zoom_window

__all__ = [
    "METHOD_COLORS",
    "accuracy_curve",
    "check_figure",
    "comparison",
    "comparison_figure",
    "curvature_figure",
    "error_curves",
    "errors_figure",
    "escape_curves",
    "gauges",
    "learning_curves",
    "loss_surface",
    "method_color",
    "series_curves",
    "sharpness_curve",
    "spectral_density",
    "strip",
    "strip_figure",
    "to_png",
    "to_svg",
    "training_figure",
    "trajectories",
    "trajectories_figure",
    "verify_figures",
    "zoom_window",
]
