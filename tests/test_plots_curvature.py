"""Pictures of curvature show the numbers of the record: what is drawn is read back from the axes."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from implicit_reg.plots import (
    curvature_figure,
    escape_curves,
    loss_surface,
    sharpness_curve,
    spectral_density,
    to_png,
    to_svg,
)

GRID = np.linspace(-1, 10, 111)
DENSITY = {
    "grid": GRID.tolist(),
    "density": (np.exp(-(GRID**2) / 0.1) + 1e-3 * np.exp(-((GRID - 8) ** 2) / 0.1)).tolist(),
    "standard_error": [1e-4] * 111,
    "marks": [-0.1, 0.2, 8.0],
}
SHARPNESS = {"step": [0, 5, 10], "sharpness": [1.0, None, 9.0], "h": 0.25}
PLANE = {
    "x": [-1.0, 0.0, 1.0, 2.0],
    "y": [0.0, 1.0, 2.0],
    "loss": [[x**2 + 10 * y for y in (0.0, 1.0, 2.0)] for x in (-1.0, 0.0, 1.0, 2.0)],
    "trajectory": [[1.0, 2.0], [0.5, 1.0], [0.0, 0.0]],
}
ESCAPE = {
    "curves": [
        {"name": "gd", "step": [0, 1, 2, 3], "gap": [1e-8, 1e-7, 1e-6, 1e-5]},
        {"name": "gradient-noise", "title": "noise", "step": [0, 1, 2, 3], "gap": [0.0, -1e-9, None, 1e-4]},
    ],
    "rate": 10.0,
}


def new_axes():
    return Figure().subplots()


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_spectral_density_draws_the_record():
    ax = spectral_density(DENSITY, new_axes())
    curve = ax.lines[0].get_ydata()
    peak = max(DENSITY["density"])
    shown = np.array(DENSITY["density"]) > 1e-6 * peak
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), GRID)
    np.testing.assert_allclose(curve[shown], np.array(DENSITY["density"])[shown])
    np.testing.assert_allclose(curve[~shown], 1e-6 * peak)  # nothing is drawn below six decades
    assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "log")
    marks = next(line for line in ax.lines if line.get_label() == "eigenvalues")
    np.testing.assert_array_equal(marks.get_xdata(), DENSITY["marks"])
    band = ax.collections[1].get_paths()[0].vertices
    near_zero = band[np.isclose(band[:, 0], 0.0, atol=1e-9), 1]
    assert np.isclose(near_zero.max() - near_zero.min(), 4e-4)  # two standard errors to either side


def test_sharpness_curve_draws_the_threshold():
    ax = sharpness_curve(SHARPNESS, new_axes())
    assert np.isnan(ax.lines[0].get_ydata()[1])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [8.0, 8.0])
    assert texts(ax) == ["2/h = 8"]
    other = sharpness_curve({"step": [0, 1], "sharpness": [1.0, 2.0], "threshold": 38.0}, new_axes())
    assert texts(other) == ["stable up to 38"]
    assert other.get_ylim()[1] > 38


def test_loss_surface_is_not_transposed():
    ax = loss_surface(PLANE, new_axes())
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1.0, 2.0), (0.0, 2.0))
    # The loss rises along y: at equal x the level lines are crossed one after the other.
    lines = next(c for c in ax.collections if len(c.get_paths()) == 13)
    heights = [path.vertices[:, 1].mean() for path in lines.get_paths() if len(path.vertices)]
    assert heights == sorted(heights)
    np.testing.assert_array_equal(np.array(ax.lines[1].get_data()).T, PLANE["trajectory"])
    assert texts(ax)[-2:] == ["start", "end"]


def test_loss_on_a_line():
    ax = loss_surface({"x": [-1, 0, 1], "loss": [2.0, 1.0, None], "xlabel": "sharpest"}, new_axes())
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2.0, 1.0, np.nan])
    assert (ax.get_xlabel(), ax.get_yscale()) == ("sharpest", "linear")
    assert loss_surface({"x": [0, 1], "loss": [1e-4, 1.0]}, new_axes()).get_yscale() == "log"
    flat = {"x": [0, 1], "y": [0, 1], "loss": [[1.0, 1.0], [1.0, None]]}
    assert loss_surface(flat, new_axes()).get_xlim() == (0.0, 1.0)


def test_escape_curves_and_their_rate():
    ax = escape_curves(ESCAPE, new_axes())
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), ESCAPE["curves"][0]["gap"])
    assert np.isnan(ax.lines[1].get_ydata()[:3]).all()  # what is not below the saddle has no logarithm
    rate = ax.lines[2]
    slope = np.diff(np.log10(rate.get_ydata())) / np.diff(rate.get_xdata())
    np.testing.assert_allclose(slope, 1.0)
    assert texts(ax) == ["gd", "noise", "rate 10 per step"]


@pytest.mark.parametrize("missing", [[], ["density"], ["density", "surface"], ["density", "sharpness", "escape"]])
def test_figure_has_what_the_record_has(missing):
    record = {"density": DENSITY, "sharpness": SHARPNESS, "surface": PLANE, "escape": ESCAPE}
    figure = curvature_figure({k: v for k, v in record.items() if k not in missing}, title="tanh", note="seed $0")
    assert len(figure.axes) == 4 - len(missing)
    assert to_png(figure, dpi=40)[1:4] == b"PNG"
    assert "var(--ink" in to_svg(figure, "curvature")


def test_an_empty_record_is_refused():
    with pytest.raises(ValueError, match="one of density, sharpness, surface, escape"):
        curvature_figure({"density": None})
