"""PyTorch makes the same steps as we do, what is wrong or refused there is not timed, and its absence is reported."""

import functools
import re

import numpy as np
import pytest

PARTS_LAST = ("all else, compiled", "sum, ours", "sum, compiled")


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


@pytest.fixture(scope="module")
def torch_parts(benchmark, torch_models):
    return benchmark("torch_parts")


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
        few("gd", "gradient-penalty")
    rows = steps.run(measure.Effort(0, True), name).rows
    routes = [f"{m}, {r}" if r else m for m, routes in torch_models.ROUTES.items() for r in routes]
    assert {f"{route}, {how}" for route in routes for how in ("eager", "compiled")} <= {row.work for row in rows}
    assert len({row.work for row in rows}) == len(rows)
    assert all(row.value is None and row.note == "" for row in rows)
    parts = [row for row in rows if row.work.startswith("parts of gd: ")]
    assert [row.work for row in parts[-3:]] == [f"parts of gd: {what}" for what in PARTS_LAST]
    assert {row.target for row in parts} == {None}
    assert {row.target for row in rows if row not in parts} == {None if name == "conv" else 1.0}


def test_times_are_ratios_to_our_step_of_the_same_method(steps, measure, few, monkeypatch):
    monkeypatch.setattr(steps, "SECONDS_PER_SAMPLE", 0.001)
    few("gd")
    report = steps.run(measure.Effort(2, True), "conv")
    *parts, ours, theirs = [row for row in report.rows if row.work.startswith("parts of gd: ")]
    whole = [row for row in report.rows if row not in (*parts, ours, theirs)]
    assert {row.unit for row in whole} == {"our step", "our step, first layer by patches"}
    for row in (*whole, *parts):
        assert row.value > 0
        assert row.spread is not None
    found = report.data["parts of gd"]
    for row, (title, costs) in zip(parts, found.items(), strict=True):
        assert (row.work, row.unit) == (f"parts of gd: {title}, compiled", "ours")
        assert row.value == costs["compiled"][row.clock]
        share, other = (costs[how][row.clock] / costs["step, ours"][row.clock] for how in ("ours", "compiled"))
        assert row.note == f"{share:.2f} of our step; PyTorch's is {other:.2f} of the same"
    for row, how in ((ours, "ours"), (theirs, "compiled")):
        assert (row.work, row.unit) == (f"parts of gd: sum, {how}", f"the whole step, {how}")
        shares = {
            title: costs[how][row.clock] / costs[f"step, {how}"][row.clock]
            for title, costs in found.items()
            if title != "convolution 1, by patches"
        }
        assert len(shares) == len(found) - 1 == 3
        assert row.value == pytest.approx(sum(shares.values()))
    assert report.data["ours"]["gd"]["ours"]["wall"] == 1.0
    assert re.search(r"\| gd +\| compiled +\|", report.details)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_the_parts_are_what_a_step_computes(benchmark, steps, measure, torch_parts, name):
    model = benchmark("models").TINY[name]()
    init, step = steps.our_step("gd")
    whole = measure.build(functools.partial(step, model.loss), dict(model.params), init(model.params), model.batch)
    found = torch_parts.parts(name, model, steps.LEARNING_RATE)
    flops = {title: torch_parts.ours(part).flops for title, part in found.items() if torch_parts.PATCHES not in title}
    # What is not in any part: residual connections, and the sums of gradients that arrive by several ways.
    assert 0.95 < sum(flops.values()) / whole.flops < 1.02
    assert min(flops.values()) > 0.03 * whole.flops


def test_a_wrong_part_stops_the_benchmark(benchmark, steps, measure, torch_models, monkeypatch):
    right = torch_models.causal_softmax
    monkeypatch.setattr(torch_models, "causal_softmax", lambda x: right(1.001 * x))
    model = benchmark("models").TINY["transformer"]()
    with pytest.raises(measure.IncorrectError, match="all else in PyTorch is"):
        steps.part_rows("transformer", model, {"ours": None, "compiled": None}, measure.Effort(0, True), "cpu")


def test_arrays_of_a_part_are_compared_in_our_layouts(benchmark, torch_parts):
    part = torch_parts.parts("mlp", benchmark("models").TINY["mlp"](), 0.1)["dense layers"]
    expected, found = torch_parts.ours(part)(), torch_parts.theirs(part)()
    assert [len(values) for values in found] == [3, 4, 4, 4][: len(part)]  # the data needs no gradient
    assert torch_parts.error(part, expected, found) < torch_parts.TOLERANCE
    value, (rows, weight, bias) = found[1][0], found[1][1:]
    assert weight.shape == (16, 16)
    turned = [found[0], (value, rows, weight.T, bias), *found[2:]]
    assert torch_parts.error(part, expected, turned) > 0.1
    scaled = [found[0], (value, 1.01 * rows, weight, bias), *found[2:]]
    assert torch_parts.error(part, expected, scaled) == pytest.approx(0.01, rel=1e-2)


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
