"""PyTorch makes the same steps as we do, what is wrong or refused there is not timed, and its absence is reported."""

import functools

import numpy as np
import pytest


@pytest.fixture(scope="module")
def steps(benchmark):
    return benchmark("torch_steps")


@pytest.fixture(scope="module")
def measure(benchmark):
    return benchmark("measure")


@pytest.fixture(scope="module")
def torch_models(benchmark):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    return benchmark("torch_models")


@pytest.fixture
def make(benchmark, steps, torch_models, monkeypatch):
    """A route to a step on the tiny perceptron, as the benchmark builds it."""
    from implicit_reg.methods import METHODS

    model = benchmark("models").TINY["mlp"]()

    def build(method, route=""):
        step = torch_models.ROUTES[method][route] if isinstance(route, str) else route
        return functools.partial(
            torch_models.program, "mlp", model, step, steps.LEARNING_RATE, METHODS[method].hyperparameters
        )

    monkeypatch.setattr(steps, "NAMES", ("gd", "flooding", "gradient-penalty"))
    return build, steps.displacements(model)


def test_a_missing_peer_is_reported(steps, measure, monkeypatch):
    monkeypatch.setattr(measure, "peer", lambda name: None)
    report = steps.run(measure.Effort(15, False), "mlp")
    assert [row.work for row in report.rows] == [f"{name}, eager" for name in steps.NAMES]
    assert all(row.value is None and row.note == "PyTorch is not installed" for row in report.rows)


@pytest.fixture
def few(steps, torch_models, monkeypatch):
    """Leaves only these methods to the benchmark: each costs seconds to trace and to compile."""

    def leave(*methods):
        monkeypatch.setattr(steps, "NAMES", methods)
        monkeypatch.setattr(torch_models, "ROUTES", {name: torch_models.ROUTES[name] for name in methods})

    return leave


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_every_route_makes_our_step(steps, measure, torch_models, few, name):
    if name != "mlp":
        few("gradient-penalty")
    rows = steps.run(measure.Effort(0, True), name).rows
    routes = [f"{m}, {r}" if r else m for m, routes in torch_models.ROUTES.items() for r in routes]
    assert {f"{route}, {how}" for route in routes for how in ("eager", "compiled")} <= {row.work for row in rows}
    assert len({row.work for row in rows}) == len(rows)
    assert all(row.value is None and row.note == "" for row in rows)
    assert {row.target for row in rows if "alone" not in row.work} == {None if name == "conv" else 1.0}
    assert ("matrix products of a gradient alone, eager" in {row.work for row in rows}) == (name != "conv")


def test_times_are_ratios_to_our_step_of_the_same_method(steps, measure, few, monkeypatch):
    monkeypatch.setattr(steps, "SECONDS_PER_SAMPLE", 0.001)
    few("gd")
    report = steps.run(measure.Effort(2, True), "conv")
    assert {row.unit for row in report.rows} == {"our step", "our step, first layer by patches"}
    for row in report.rows:
        assert row.value > 0
        assert row.spread is not None
    assert report.data["ours"]["gd"]["ours"]["wall"] == 1.0
    assert "| gd   | compiled " in report.details


def test_a_wrong_eager_step_stops_the_benchmark(steps, measure, torch_models, make):
    build, expected = make

    def plain(gradient, loss, params, h, strength):
        return torch_models.gd(gradient, loss, params, h)

    with pytest.raises(measure.IncorrectError, match="a penalty in PyTorch, float64, is"):
        steps.eager(build("gradient-penalty", plain), "a penalty", expected["gradient-penalty"])
    # Its part of a step stands out from the wider tolerance, too.
    distance = steps._distance(expected["gd"], expected["gradient-penalty"])
    assert distance > 5 * steps.FLOAT32_TOLERANCE


def test_a_wrong_or_refused_compiled_step_is_a_note(steps, make):
    build, expected = make
    program, note = steps.compiled(build("flooding"), 1.01 * expected["flooding"], tiny=True)
    assert program is None
    assert note == "wrong under torch.compile, by 1e-02 of the step: not timed"

    def refuse(**options):
        raise RuntimeError("no graph\nand so on")

    assert steps.compiled(refuse, expected["gd"], tiny=True) == (None, "torch.compile fails: RuntimeError: no graph")
    assert steps.compiled(build("gd"), expected["gd"], tiny=True)[1] == ""


def test_a_step_of_ours_that_float32_spoils_is_not_timed(benchmark, steps, measure, monkeypatch):
    monkeypatch.setattr(steps, "NAMES", ("sam",))
    model = benchmark("models").TINY["mlp"]()
    expected = {name: np.array(x) for name, x in steps.displacements(model).items()}
    expected["sam"] *= 1.01
    with pytest.raises(measure.IncorrectError, match="sam in float32"):
        steps.our_programs(model, expected, steps.Way({}))


def test_gram_matrices_make_the_same_step(benchmark, steps, measure, monkeypatch):
    monkeypatch.setattr(steps, "NAMES", ("gradient-penalty",))
    model = benchmark("step_cost").TINY["mlp"]()
    expected = steps.displacements(model)
    assert set(steps.our_programs(model, expected, steps.Way({}, gram=True))) == {"gradient-penalty"}
    with pytest.raises(measure.IncorrectError, match="gradient-penalty in float32"):
        steps.our_programs(model, {"gradient-penalty": 1.01 * expected["gradient-penalty"]}, steps.Way({}, gram=True))
