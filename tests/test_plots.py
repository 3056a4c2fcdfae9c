"""Pictures show the numbers of the record and nothing else: what is drawn is read back from the axes."""

from __future__ import annotations

import copy
import io
import itertools
import re
import subprocess
import sys

import fake_records
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from implicit_reg import plots
from implicit_reg.plots.style import INK, PAPER, VERDICTS, is_number, mix, spread


@pytest.fixture(scope="module")
def record():
    return fake_records.verify_record()


@pytest.fixture(scope="module")
def troubled():
    return fake_records.troubled_record()


def new_axes():
    return Figure().subplots()


def texts(ax):
    return [text.get_text() for text in ax.texts]


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_import_without_matplotlib():
    """Start-up does not wait for matplotlib; the report needs none at all."""
    code = "import sys, implicit_reg.plots, implicit_reg.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["fixed_time", "one_step"])
def test_error_curves_draw_the_record(record, kind):
    loss = record["checks"][2]["details"]["losses"][0]
    ax = new_axes()
    assert plots.error_curves(loss, ax, kind=kind, color="#d55e00") is ax
    curves = [line for line in ax.lines if line.get_marker() != "None"]
    guides = [line for line in ax.lines if line.get_marker() == "None"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert len({line.get_marker() for line in curves}) == len({line.get_color() for line in curves}) == 3
    for row, curve, guide in zip(loss["truncations"], curves, guides, strict=True):
        np.testing.assert_array_equal(curve.get_xdata(), loss["h"])
        np.testing.assert_array_equal(curve.get_ydata(), row[kind]["error"])
        slope = np.diff(np.log(guide.get_ydata())) / np.diff(np.log(guide.get_xdata()))
        np.testing.assert_allclose(slope, row[kind]["expected"])
        assert guide.get_ydata()[0] == row[kind]["error"][-1]
    expected = [f"slope {row[kind]['measured']:.2f} ✓" for row in loss["truncations"]]
    assert [text.split("\n")[1] for text in texts(ax)] == expected
    assert to_hex(curves[-1].get_color()) == "#d55e00"
    left, right = ax.get_xlim()
    assert left < min(loss["h"]) < max(loss["h"]) < right


def test_error_curves_with_gaps(troubled):
    """None is left out, a failed order stands out, and what was not measured is said."""
    loss = troubled["checks"][4]["details"]["losses"][0]
    ax = plots.error_curves(loss, new_axes(), kind="one_step")
    assert texts(ax)[-1] == "3 terms\nslope ? ?"
    assert len([line for line in ax.lines if line.get_marker() != "None"][-1].get_xdata()) == 3
    ax = plots.error_curves(troubled["checks"][4]["details"]["losses"][1], new_axes())
    assert texts(ax)[-1] == "3 terms:\ncould not measure"
    ax = plots.error_curves(troubled["checks"][2]["details"]["losses"][1], new_axes())
    (failed,) = [text for text in ax.texts if "✗" in text.get_text()]
    assert failed.get_text() == "3 terms\nslope 1.46 ✗"
    assert (failed.get_color(), failed.get_weight()) == (VERDICTS["fails"][1], "bold")


def test_nothing_measured_at_all(record):
    loss = copy.deepcopy(record["checks"][0]["details"]["losses"][0])
    for row in loss["truncations"]:
        row["fixed_time"].update(
            error=[None, 0.0, float("nan"), None, None], measured=None, verdict="could not measure"
        )
    assert texts(plots.error_curves(loss, new_axes())) == ["1 and 2 and 3 terms:\ncould not measure"]


def test_floor_is_shaded_where_it_is_seen(record):
    loss = dict(record["checks"][0]["details"]["losses"][0])
    plain = plots.error_curves(loss, new_axes())
    shaded = plots.error_curves(loss | {"floor": 1e-7}, new_axes())
    far = plots.error_curves(loss | {"floor": 1e-15}, new_axes())
    assert [len(ax.patches) for ax in (plain, shaded, far)] == [0, 1, 0]
    assert "round-off" in texts(shaded)


def test_labels_do_not_overlap(record):
    """Three curves in one place keep three readable labels."""
    loss = copy.deepcopy(record["checks"][0]["details"]["losses"][0])
    for row in loss["truncations"]:
        row["fixed_time"]["error"] = loss["truncations"][0]["fixed_time"]["error"]
    figure = Figure(figsize=(2.6, 2.4), layout="constrained")
    ax = plots.error_curves(loss, figure.subplots())
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))


def test_spread():
    assert spread([0.0, 1.0], 0.5) == [0.0, 1.0]
    assert spread([1.0, 1.0, 1.0], 0.5) == [0.5, 1.0, 1.5]
    assert spread([0.6, 0.5], 0.5) == pytest.approx([0.8, 0.3])
    assert spread([], 1.0) == []


def test_strip_shows_every_verdict_by_shape_and_color(troubled):
    ax = new_axes()
    assert plots.strip(troubled, ax) is ax
    marks = [(line.get_marker(), line.get_markeredgecolor()) for line in ax.lines if line.get_marker() != "None"]
    losses = [loss for check in troubled["checks"] for loss in check["details"].get("losses", [])]
    verdicts = [row[kind]["verdict"] for x in losses for kind in ("fixed_time", "one_step") for row in x["truncations"]]
    verdicts += [loss[key]["verdict"] for loss in losses for key in ("update", "leading")] + ["holds"]
    assert sorted(marks) == sorted(VERDICTS[v][:2] for v in verdicts)
    assert len({shape for shape, *_ in VERDICTS.values()}) == len(VERDICTS)
    shown = texts(ax)
    assert {"1.46", "?", "Flooding", "the mean loss stays within 1 % of the level", "1e-16"} <= set(shown)


def test_pages_have_a_panel_for_everything(troubled):
    figures = plots.verify_figures(troubled)
    names = [check["name"] for check in troubled["checks"]]
    assert list(figures) == ["strip", "errors", "trajectories", *(f"errors-{name}" for name in names[:-1])]
    visible = [ax for ax in figures["errors"].axes if ax.get_visible()]
    assert len(visible) == 10
    titles = [ax.get_title(loc="left") for ax in visible if ax.get_title(loc="left")]
    assert titles == [check["details"]["title"] for check in troubled["checks"][:-1]]
    assert len(figures["errors-gd"].axes) == 4
    assert len(figures["trajectories"].axes) == 10
    captions = [figure.get_supxlabel() for figure in figures.values()]
    assert all("digits: n = 810 parameters; factorization: n = 2 parameters; seed 0; float64" in c for c in captions)
    assert plt.get_fignums() == []


def test_figures_without_losses_or_trajectories(troubled):
    bare = troubled | {"checks": troubled["checks"][-1:], "trajectories": None}
    assert list(plots.verify_figures(bare)) == ["strip"]


def test_trajectories_draw_the_record(record):
    paths = record["trajectories"]
    run, ax = paths["runs"][1], new_axes()
    assert plots.trajectories(run, paths["grid"], ax) is ax
    flow, modified, iterates = ax.lines[:3]
    for line, key in ((flow, "gradient_flow"), (modified, "modified_flow"), (iterates, "iterates")):
        np.testing.assert_array_equal(np.column_stack(line.get_data()), run[key])
    assert modified.get_color() == plots.METHOD_COLORS["gradient-penalty"]
    assert flow.get_linestyle() == "--"
    assert (ax.get_xlim(), ax.get_ylim()) == ((0.2, 2.4), (0.1, 1.9))
    assert len(ax.collections) == 1


def test_zoom_window_holds_the_gap(record):
    for run in record["trajectories"]["runs"]:
        (a0, a1), (b0, b1) = plots.zoom_window(run)
        assert a1 - a0 == pytest.approx(b1 - b0)
        inside = {
            key: [a0 < a < a1 and b0 < b < b1 for a, b in run[key]]
            for key in ("iterates", "gradient_flow", "modified_flow")
        }
        assert all(map(any, inside.values()))
        zoomed = plots.trajectories(run, record["trajectories"]["grid"], new_axes(), window=((a0, a1), (b0, b1)))
        assert zoomed.get_xlim() == (a0, a1)
    still = {"iterates": [[0, 0], [1, 1]], "gradient_flow": [[0, 0], [1, 1]]}
    assert plots.zoom_window(still) is None
    assert plots.zoom_window({"iterates": [[0, 0]], "gradient_flow": None}) is None


def test_learning_curves():
    history, ax = fake_records.history(), new_axes()
    tests = [{"epoch": 60, "loss": 0.31, "label": "last"}, {"epoch": 3, "loss": None, "label": "best"}]
    assert plots.learning_curves(history, ax, name="flooding", level=0.03, tests=tests) is ax
    training, validation = ax.lines[:2]
    np.testing.assert_array_equal(training.get_ydata(), history["train_loss"])
    np.testing.assert_array_equal(validation.get_ydata(), history["validation_loss"])
    assert validation.get_color() == plots.METHOD_COLORS["flooding"]
    assert set(texts(ax)) == {"training", "validation", "flood level 0.03", "test, last: 0.31"}
    assert ax.get_ylim()[0] < 0.03
    plain = plots.learning_curves(history, new_axes())
    assert set(texts(plain)) == {"training", "validation"}
    assert not plain.patches


def test_learning_curves_of_a_negative_loss_stay_linear():
    history = {"epoch": [1, 2, 3], "train_loss": [0.5, None, -0.5], "validation_loss": [0.6, 0.1, None]}
    ax = plots.learning_curves(history, new_axes(), level=-0.2)
    assert ax.get_yscale() == "linear"
    assert "flood level -0.2" in texts(ax)


def test_accuracy_and_training_figure():
    history = fake_records.history()
    ax = plots.accuracy_curve(history, new_axes())
    assert texts(ax) == [f"{100 * history['validation_accuracy'][-1]:.1f} %"]
    assert len(plots.training_figure(history).axes) == 2
    without = {key: value for key, value in history.items() if key != "validation_accuracy"}
    figure = plots.training_figure(without, title="Digits", note="seed 0")
    assert len(figure.axes) == 1
    assert (figure.axes[0].get_title(loc="left"), figure.get_supxlabel()) == ("Digits", "seed 0")


def test_comparison():
    record, ax = fake_records.comparison_record(), new_axes()
    assert plots.comparison(record, ax) is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == [m["name"] for m in record["methods"]]
    base = np.array(record["methods"][0]["values"])
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    for method, dot, diamond in zip(record["methods"][1:], dots, diamonds, strict=True):
        np.testing.assert_array_equal(dot.get_xdata(), np.array(method["values"]) - base)
        difference = method["difference"]
        clear = difference["low"] > 0 or difference["high"] < 0
        assert diamond.get_xdata() == [difference["mean"]]
        assert (diamond.get_markerfacecolor() != PAPER) == clear
        assert any(list(line.get_xdata()) == [difference["low"], difference["high"]] for line in ax.lines)
    assert any(f"{record['methods'][3]['mean']:.4g}" in text for text in texts(ax))
    figure = plots.comparison_figure(record, note="digits")
    assert "n = 8" in figure.get_supxlabel()
    assert figure.get_supxlabel().endswith("digits")


def test_comparison_with_failed_seeds():
    record = fake_records.comparison_record()
    record["methods"][1].update(values=[None] * 8, mean=None, difference={"mean": None, "low": None, "high": None})
    ax = plots.comparison(record, new_axes())
    assert len([line for line in ax.lines if line.get_marker() == "D"]) == 3


def test_one_color_per_method():
    colors = plots.METHOD_COLORS
    assert len(set(colors.values())) == len(colors)
    assert plots.method_color("my-method") == plots.method_color("my-method")
    assert plots.method_color("my-method") not in colors.values()
    for color in colors.values():  # readable as text on white paper, and not as dark as the ink
        contrast = 1.05 / (luminance(color) + 0.05)
        assert 2.9 < contrast < 9
    assert mix("#000000", 0.5) == "#808080"
    assert [is_number(x) for x in (1, 1.5, True, None, "1", float("nan"))] == [True, True, *[False] * 4]


def test_png_and_svg(record):
    figure = plots.strip_figure(record)
    png, again = plots.to_png(figure), plots.to_png(figure)
    assert png == again
    wide = matplotlib.image.imread(io.BytesIO(plots.to_png(figure, dpi=90)))
    assert matplotlib.image.imread(io.BytesIO(png)).shape[1] == pytest.approx(2 * wide.shape[1], abs=2)
    one, other = plots.to_svg(figure, "one"), plots.to_svg(figure, "the other")
    assert one.startswith("<svg")
    assert one.endswith("</svg>")
    assert f"var(--ink, {INK})" in one
    assert "<metadata" not in one
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, known in zip((one, other), ids, strict=True):
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
        assert used
        assert used <= known


def test_settings_are_left_alone(record):
    before = dict(matplotlib.rcParams)
    plots.to_svg(plots.check_figure(record["checks"][0], record), "x")
    assert dict(matplotlib.rcParams) == before


def test_names_are_not_mathematics(record):
    """A user's names may hold dollar signs, which matplotlib would read as formulas."""
    record = copy.deepcopy(record)
    record["checks"] = record["checks"][:1]
    record["checks"][0]["details"]["title"] = "costs $5 and $\\frac{$"
    record["checks"][0]["details"]["losses"][0]["name"] = "a$b_{$"
    for figure in plots.verify_figures(record | {"trajectories": None}).values():
        assert plots.to_png(figure, dpi=40)
