"""The scaling benchmark: its models, its counts, that it refuses what is wrong, and its picture; no time is judged."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="module")
def scaling(benchmark):
    return benchmark("scaling")


@pytest.fixture(scope="module")
def model(benchmark):
    return benchmark("scaling_model")


@pytest.fixture(scope="module")
def tiny(benchmark):
    return benchmark("measure").Effort(0, True)


def rows_of(report):
    return {row.work: row for row in report.rows}


def test_models_find_what_made_the_points(model):
    x = (1e3, 1e4, 1e5, 1e6)
    line = model.linear(x, [2e-4 + 3e-9 * n for n in x])
    assert (line.a, line.b) == (pytest.approx(2e-4), pytest.approx(3e-9))
    assert line.residual < 1e-9
    assert line(1e8) == pytest.approx(2e-4 + 0.3)
    bent = model.linear(x, [5.0 + 7 * n**0.5 + 2 * n for n in x], root=True)
    assert bent(1e8) == pytest.approx(5 + 7e4 + 2e8)
    assert model.linear(x, [1.0, 5.0, 50.0, 500.0], since=1e4).residual < 1e-9
    assert model.linear(x, [1.0, 5.0, 50.0, 500.0]).residual > 0.01
    assert model.linear((1e3,), (1.0,)) is None
    power = model.geometric((1, 2, 3), (2.0, 6.0, 18.0))
    assert (power.a, power.b) == (pytest.approx(2 / 3), pytest.approx(3))


def test_quantities_read_well(model):
    assert [model.count(x) for x in (8, 4096, 1e4, 3e6, 1e8)] == ["8", "4096", "10^4", "3*10^6", "10^8"]
    wanted = {(0.25, "cpu s"): "250 ms", (3e-6, "wall s"): "3 us", (7200.0, "cpu s"): "2 h", (2**31, "bytes"): "2 GiB"}
    assert {given: model.quantity(*given) for given in wanted} == wanted


def test_sizes_are_those_asked_for(scaling):
    for n in (*scaling.DECADES, scaling.LARGEST):
        shapes, _ = scaling.perceptron(n)
        assert sum(math.prod(s.shape) for s in shapes.values()) == pytest.approx(n, rel=0.05)


def test_kernels_are_right_and_counted(scaling, tiny):
    report = scaling.run(tiny, "parameters", "order")
    rows = rows_of(report)
    assert rows["order: interpolated: program at order 8 over order 2"].value == 1
    memory = {work: row.value for work, row in rows.items() if "memory" in work}
    assert len(memory) == 2
    # Parameters and results at least; at most three more copies, and activations, which are as large here.
    assert all(2 <= copies <= 7 for copies in memory.values()), memory
    assert all(row.value is None and row.note == "not timed" for row in report.rows if row.clock == "cpu")
    assert json.loads(json.dumps(report.data)) == report.data
    assert "| gradient step, memory, bytes" in report.details


def test_step_sizes_share_programs(scaling, tiny):
    rows = rows_of(scaling.run(tiny, "step-sizes"))
    assert rows["step-sizes: descend: traces for 8 step sizes, one after the other"].value == 1


def test_runs_do_not_see_each_other(scaling, tiny):
    assert rows_of(scaling.run(tiny, "runs"))["runs: memory of the results"].value == 12  # two losses, one step


def test_minibatches(scaling, tiny):
    rows = rows_of(scaling.run(tiny, "minibatches"))
    assert rows["minibatches: all orders, shared beginnings, m = 3: steps"].value == 15
    assert rows["minibatches: 64 orders: worst entry, m = 3"].value <= 6


def test_devices_share_the_memory(scaling, tiny):
    row = rows_of(scaling.run(tiny, "devices"))["devices: penalty step: bytes on each of 2 devices"]
    assert row.limit == 0.5
    assert 0.5 <= row.value <= 0.65  # activations and the batch are everywhere


def test_processes_end_with_the_same_numbers(scaling, tiny):
    report = scaling.run(tiny, "processes")
    assert [row.value for row in report.rows] == [None]


def test_what_is_wrong_is_not_timed(scaling, benchmark, tiny, monkeypatch):
    wrong = benchmark("measure").IncorrectError
    runs, right = benchmark("scaling_runs"), benchmark("scaling_runs").ir.mean_epoch

    def biased(*arguments, **more):
        mean = right(*arguments, **more)
        return mean._replace(displacement=jax.tree.map(lambda x: 1.01 * x, mean.displacement))

    monkeypatch.setattr(runs.ir, "mean_epoch", biased)
    with pytest.raises(wrong, match="3 minibatches: the two ways end"):
        scaling.run(tiny, "minibatches")
    with pytest.raises(wrong, match="off is 1"):
        scaling.check("off", {"a": jnp.ones(2)}, {"a": np.full(2, 0.9)})


def test_the_page_gets_what_the_file_holds(benchmark, model):
    pages = benchmark("pages")
    curve = model.Series("step", "cpu s", (1e3, 1e4), (1e-3, 2e-3), model.linear((1e3, 1e4), (1e-3, 2e-3)), (1e8,))
    data = {"parameters": model.as_data(model.Dimension("P", "parameters", (curve,), ()))}
    where = {"device": "cpu", "cores": 2, "load": None, "commit": "abc", "jax": "0.10"}
    every = {
        "descent": {"data": {}, "environment": {**where, "commit": "def"}, "seconds": 9},
        "scaling-kernels": {"data": data, "environment": where, "seconds": 3},
    }
    record = json.loads(json.dumps({"device": "a processor", "benchmarks": every}))
    text = pages.scaling(record)
    assert text.startswith("a processor, 2 cores, jax 0.10, commit abc, 3 s in all.\n\nP\n\n| parameters")
    assert "| step, cpu s | 1 ms | 2 ms | (11.1 s) | 0.000889 + 1.11e-07 x; from 1000 on" in text
    page = pages.replaced(pages.SCALE.read_text(), "scaling", text)
    assert page.count(text) == 1
    assert pages.replaced(page, "scaling", "other") == pages.replaced(pages.SCALE.read_text(), "scaling", "other")
    with pytest.raises(ValueError, match="named scaling"):
        pages.scaling_data({"benchmarks": {}})


def test_the_pages_show_the_results_that_are_kept(benchmark):
    pages = benchmark("pages")
    found = pages.kept()
    assert found
    readme, scale = pages.README.read_text(), pages.SCALE.read_text()
    assert pages.replaced(readme, "results", pages.results(found)) == readme
    assert pages.replaced(scale, "scaling", pages.scaling(found[0])) == scale


def test_the_picture_shows_what_was_measured_and_what_was_not(benchmark, model, monkeypatch):
    figure = benchmark("scaling_figure")
    x, beyond = (1e3, 1e4, 1e5), (1e8,)
    curve = model.Series("step", "cpu s", x, (1e-4, 2e-4, 1e-3), model.linear(x, (1e-4, 2e-4, 1e-3)), beyond)
    shares = model.Series("sweep", "wall s", (1, 2, 4), (1.0, 0.6, 0.6), limit=(1.0, 0.5, 0.5))
    data = {
        "parameters": model.as_data(model.Dimension("P", "parameters", (curve,), ())),
        "devices": model.as_data(model.Dimension("D", "devices", (shares,), ())),
    }
    drawn = figure.draw_scaling(json.loads(json.dumps(data)))
    panels = [ax for ax in drawn.axes if ax.lines]
    assert [ax.get_title(loc="left") for ax in panels] == ["Time of a call", "A run of a sweep on several devices"]
    solid, dashed = panels[0].lines
    assert list(solid.get_xdata()) == list(x)
    assert dashed.get_xdata()[-1] == 1e8
    assert dashed.get_ydata()[-1] == pytest.approx(curve.model(1e8))
    assert list(panels[1].lines[1].get_ydata()) == [1.0, 0.5, 0.5]
    assert [text.get_text() for text in panels[0].texts] == ["step"]
    with pytest.raises(ValueError, match="`data` must hold"):
        figure.draw_scaling({})
