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


def order_cases(record, name):
    return [case for case in fake_records.find(record, name)["details"]["cases"] if case["kind"] == "order"]


@pytest.mark.parametrize("kind", ["fixed_time", "one_step"])
def test_error_curves_draw_the_record(record, kind):
    case = order_cases(record, "alternating")[0]
    ax = new_axes()
    assert plots.error_curves(case, ax, kind=kind, color="#d55e00") is ax
    curves = [line for line in ax.lines if line.get_marker() != "None"]
    guides = [line for line in ax.lines if line.get_marker() == "None"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert len({line.get_marker() for line in curves}) == len({line.get_color() for line in curves}) == 3
    for row, curve, guide in zip(case["truncations"], curves, guides, strict=True):
        np.testing.assert_array_equal(curve.get_xdata(), case["h"])
        np.testing.assert_array_equal(curve.get_ydata(), row[kind]["error"])
        slope = np.diff(np.log(guide.get_ydata())) / np.diff(np.log(guide.get_xdata()))
        np.testing.assert_allclose(slope, row[kind]["expected"])
        assert guide.get_ydata()[0] == row[kind]["error"][-1]
    expected = [f"{row[kind]['measured']:.2f} ✓" for row in case["truncations"]]
    assert [text.split("\n")[1] for text in texts(ax)] == expected
    assert to_hex(curves[-1].get_color()) == "#d55e00"
    left, right = ax.get_xlim()
    assert left < min(case["h"]) < max(case["h"]) < right
    ax.get_figure().draw_without_rendering()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.00625", "0.1"]


def test_error_curves_with_gaps(troubled):
    """None is left out, a failed order stands out, and what was not measured is said."""
    first, _, _, second, *_ = order_cases(troubled, "sam")
    ax = plots.error_curves(first, new_axes(), kind="one_step")
    assert texts(ax)[-1] == "3 terms\n?"
    assert len([line for line in ax.lines if line.get_marker() != "None"][-1].get_xdata()) == 3
    ax = plots.error_curves(second, new_axes())
    assert texts(ax)[-1] == "3 terms:\ncould not measure"
    ax = plots.error_curves(order_cases(troubled, "backstitch")[1], new_axes())
    (failed,) = [text for text in ax.texts if "✗" in text.get_text()]
    assert failed.get_text() == "2 terms\n1.46 ✗"
    assert (failed.get_color(), failed.get_weight()) == (VERDICTS["fails"][1], "bold")


def test_nothing_measured_at_all(record):
    case = copy.deepcopy(order_cases(record, "alternating")[0])
    for row in case["truncations"]:
        row["fixed_time"].update(
            error=[None, 0.0, float("nan"), None, None], measured=None, verdict="could not measure"
        )
    assert texts(plots.error_curves(case, new_axes())) == ["1 and 2 and 3 terms:\ncould not measure"]


def test_floor_is_shaded_where_it_is_seen(record):
    case = order_cases(record, "alternating")[0]
    shaded = plots.error_curves(case | {"floor": 1e-6}, new_axes())
    others = [plots.error_curves(case | {"floor": floor}, new_axes()) for floor in (None, 1e-15)]
    assert [len(ax.patches) for ax in (shaded, *others)] == [1, 0, 0]
    assert "round-off" in texts(shaded)


def test_labels_do_not_overlap(record):
    """Five curves in one place keep five readable labels, all of them inside."""
    case = copy.deepcopy(order_cases(record, "gd")[0])
    for row in case["truncations"]:
        row["fixed_time"]["error"] = case["truncations"][0]["fixed_time"]["error"]
    figure = Figure(figsize=(2.6, 2.2))
    ax = plots.error_curves(case, figure.subplots())
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert len(boxes) == 5
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    frame = ax.get_window_extent()
    assert frame.y0 - 2 <= boxes[0].y0
    assert boxes[-1].y1 <= frame.y1 + 6


def test_spread():
    assert spread([0.0, 1.0], 0.5) == [0.0, 1.0]
    assert spread([1.0, 1.0, 1.0], 0.5) == [0.5, 1.0, 1.5]
    assert spread([0.6, 0.5], 0.5) == pytest.approx([0.8, 0.3])
    assert spread([], 1.0) == []
    assert spread([0.0, 0.1, 0.9], 0.3, 0.1, 1.0) == pytest.approx([0.1, 0.4, 0.9])
    assert spread([0.9, 1.0], 0.3, 0.0, 1.0) == pytest.approx([0.7, 1.0])


def test_strip_shows_every_verdict_by_shape_and_color(troubled):
    ax = new_axes()
    assert plots.strip(troubled, ax) is ax
    marks = [(line.get_marker(), line.get_markeredgecolor()) for line in ax.lines if line.get_marker() != "None"]
    verdicts = [check["verdict"] for check in troubled["checks"]]
    verdicts += [case["verdict"] for check in troubled["checks"] for case in check["details"]["cases"]]
    assert sorted(marks) == sorted(VERDICTS[v][:2] for v in verdicts)
    assert len({shape for shape, *_ in VERDICTS.values()}) == len(VERDICTS)
    shown = texts(ax)
    assert {"1.46", "(2)", "?", "0.00031 ≤ 0.01", "0.074 > 0.05", "A method of one's own"} <= set(shown)
    assert "caution · h max|lambda| = 0.4" in shown
    (failed,) = [text for text in ax.texts if text.get_text() == "1.46"]
    assert failed.get_color() == VERDICTS["fails"][1]


def test_strip_of_all_rows_has_no_collisions():
    """As many rows as the table has, and more cases than quick makes: nothing overlaps, nothing leaves the page."""
    record = fake_records.full_record()
    figure = plots.strip_figure(record)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert min(one.x1, other.x1) <= max(one.x0, other.x0) + 1 or min(one.y1, other.y1) <= max(one.y0, other.y0) + 2
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    titles = {check["details"]["title"] for check in record["checks"]}
    assert titles <= set(texts(ax))
    assert 'href="#check-gd"' in plots.to_svg(figure, "strip")


def test_series_draw_the_record(record):
    principal, central = (
        fake_records.find(record, name)["details"]["cases"] for name in ("principal-flow", "central-flow")
    )
    for case, scales in (
        (principal[0], ("log", "log")),
        (central[0], ("linear", "linear")),
        (central[1], ("linear", "log")),
    ):
        ax, series = new_axes(), case["series"]
        assert plots.series_curves(case, ax, color="#008000") is ax
        assert (ax.get_xscale(), ax.get_yscale()) == scales
        drawn = [line for line in ax.lines if len(line.get_xdata()) == len(series["x"])]
        for line, values in zip(drawn, series["curves"].values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), series["x"])
            np.testing.assert_array_equal(line.get_ydata(), [np.nan if v is None else v for v in values])
        assert len({line.get_linestyle() for line in drawn}) == len(drawn)
        assert [text.replace("\n", " ") for text in texts(ax)] == list(series["curves"])
        assert ax.get_xlabel() == series["xlabel"]
        assert ax.get_ylabel().replace("\n", " ") == series["ylabel"]
    gap = copy.deepcopy(central[1])
    gap["series"]["curves"] = {"nothing": [None] * 400, "negative": [-1.0] * 400}
    assert plots.series_curves(gap, new_axes()).get_yscale() == "linear"


def test_gauges_show_values_on_their_side_of_the_bound(troubled):
    cases = list(fake_records.find(troubled, "central-flow")["details"]["cases"])
    cases += fake_records.find(troubled, "principal-flow")["details"]["cases"][1:2]
    ax = Figure(figsize=(9, 4)).subplots()
    assert plots.gauges(cases, ax) is ax
    for case in cases:
        assert case["statement"] in texts(ax)
    bounds = [line for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    values = [line for line in ax.lines if line.get_marker() in ("o", "X", "s")]
    wrong = [line for line in ax.lines if line.get_marker() == "D"]
    at = {line: line.get_ydata()[0] for line in (*values, *wrong)}
    for k, case in enumerate(cases):
        (bound,) = bounds[k].get_xdata()[:1]
        y = np.mean(bounds[k].get_ydata())
        for lines, key in ((values, "value"), (wrong, "mutant")):
            found = [line.get_xdata()[0] for line in lines if at[line] == pytest.approx(y)]
            assert len(found) == (case[key] is not None)
            for x in found:
                assert (x < bound) == (case[key] < case["bound"])
    for case, line, shade in zip(cases, bounds, ax.collections, strict=True):  # the side that was asked for
        ends = shade.get_paths()[0].get_extents()
        near, far = (ends.x1, ends.x0) if case["at_most"] else (ends.x0, ends.x1)
        assert near == pytest.approx(line.get_xdata()[0])
        assert (far < near) == case["at_most"]
    assert {"0.074 > 0.05", "0.98 ≥ 0.9", "? ≤ 0.1 ?", "wrong: -0.97"} <= set(texts(ax))


def test_pages_have_a_panel_for_everything(troubled):
    figures = plots.verify_figures(troubled)
    names = [check["name"] for check in troubled["checks"]]
    assert list(figures) == ["strip", "errors", "trajectories", *(f"check-{name}" for name in names[:-1])]
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figures["errors"].axes]
    assert titles == [check["details"]["title"] for check in troubled["checks"][:5]]
    panels = {name: len(figures[f"check-{name}"].axes) for name in names[:-1]}
    # Fixed time and one step on two losses for each statement; one for all bounds; one for each series.
    assert panels == {
        "gd": 5,
        "alternating": 8,
        "backstitch": 5,
        "flooding-level-set": 2,
        "sam": 12,
        "principal-flow": 3,
        "central-flow": 5,
    }
    said = "digits-tanh: n = 610 parameters; nonquadratic: n = 3 parameters; preset quick; seed 0; float64."
    assert all(" ".join(figure.get_supxlabel().split()).endswith(said) for figure in figures.values())
    assert plt.get_fignums() == []


def test_errors_show_the_loss_that_does_worst(troubled):
    ax = plots.errors_figure(troubled).axes[2]
    assert ax.get_title(loc="left") == "Backstitch"
    assert {"nonquadratic", "2 terms\n1.46 ✗"} <= set(texts(ax))


def test_figures_without_cases_or_trajectories(troubled):
    bare = troubled | {"checks": troubled["checks"][-1:], "trajectories": None}
    assert list(plots.verify_figures(bare)) == ["strip"]
    criteria = troubled | {"checks": [fake_records.find(troubled, "central-flow")], "trajectories": None}
    assert list(plots.verify_figures(criteria)) == ["strip", "check-central-flow"]


def test_trajectories_draw_the_record(record):
    paths = record["trajectories"]
    run, ax = paths["runs"][1], new_axes()
    assert plots.trajectories(run, paths["grid"], ax) is ax
    flow, modified, iterates = ax.lines[:3]
    for line, key in ((flow, "gradient_flow"), (modified, "modified_flow"), (iterates, "iterates")):
        np.testing.assert_array_equal(np.column_stack(line.get_data()), run[key])
    assert modified.get_color() == plots.METHOD_COLORS["alternating"]
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
    assert set(fake_records.NAMES) <= set(colors)
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
        anchors = {f"check-{check['name']}" for check in record["checks"]}  # these are on the page
        assert anchors < used
        assert used <= known | anchors


def test_settings_are_left_alone(record):
    before = dict(matplotlib.rcParams)
    plots.to_svg(plots.check_figure(record["checks"][0], record), "x")
    assert dict(matplotlib.rcParams) == before


def test_names_are_not_mathematics(record):
    """A user's names may hold dollar signs, which matplotlib would read as formulas."""
    record = copy.deepcopy(record)
    record["checks"] = record["checks"][:1]
    record["checks"][0]["details"]["title"] = "costs $5 and $\\frac{$"
    for case in record["checks"][0]["details"]["cases"]:
        case.update(loss="a$b_{$", statement="$\\sqrt{" * bool(case["statement"]))
    for figure in plots.verify_figures(record | {"trajectories": None}).values():
        assert plots.to_png(figure, dpi=40)
