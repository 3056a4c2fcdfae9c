"""The rows past small steps: that they hold, that wrong flows fail, and what they say where they cannot speak."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reg import problems
from implicit_reg.flows import principal
from implicit_reg.predictions import edge, measure, oscillation
from implicit_reg.predictions.judging import judge_number
from implicit_reg.predictions.objective import flatten
from implicit_reg.predictions.prediction import Effort

pytestmark = pytest.mark.x64

ROWS = {row.name: row for row in edge.ROWS}


def load(name):
    return problems.load_problem(name, dtype="float64")


def criteria(row, name, effort):
    statements = ROWS[row].statements(flatten(load(name)), effort)
    return {s.name: s.measure for s in statements if hasattr(s, "measure")}


def holds(found):
    return judge_number(found.value, found.bound, found.mutant, found.at_most)[0] == "holds"


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_hold_on_their_losses(name):
    row = ROWS[name]
    result = measure.check(row, [load(loss) for loss in row.losses], Effort.QUICK)
    assert result["verdict"] == "holds", result


def test_a_wrong_third_derivative_term_fails(monkeypatch):
    right = principal.principal_terms

    def wrong(loss_fn, x, h):
        first, second = right(loss_fn, x, h)
        return first, -second

    monkeypatch.setattr(principal, "principal_terms", wrong)
    result = measure.check(ROWS["principal-flow"], [load("nonquadratic")], Effort.QUICK)
    assert result["verdict"] == "fails"
    assert abs(result["measured"][0] - 2) < 0.1
    assert abs(result["measured"][1] - 2) < 0.1


def test_the_principal_flow_beyond_one():
    found = {name: measure() for name, measure in criteria("principal-flow", "nonquadratic", Effort.STANDARD).items()}
    assert list(found) == ["exact on quadratics", "safe branch beyond h lambda = 1", "radius of convergence"]
    assert all(holds(finding) for finding in found.values())
    curves = found["safe branch beyond h lambda = 1"].series["curves"]
    assert all(len(curve) == edge.STEPS_BEYOND for curve in curves.values())


def test_loss_and_variance_of_an_oscillation_that_persists():
    found = {name: measure() for name, measure in criteria("central-flow", "edge-valley", Effort.STANDARD).items()}
    assert len(found) == 4
    assert all(holds(finding) for finding in found.values()), found
    assert found[""].numbers["persists"]
    assert found[""].value < 0.1
    length = len(found[""].series["x"])
    assert all(len(curve) == length for curve in found[""].series["curves"].values())


def test_two_critical_directions_at_once():
    assert criteria("central-flow", "edge-valley-2", Effort.QUICK) == {}
    found = {name: measure() for name, measure in criteria("central-flow", "edge-valley-2", Effort.STANDARD).items()}
    assert list(found) == [""]
    assert holds(found[""]), found
    assert found[""].numbers["critical directions at the end"] == 2


@pytest.mark.slow
def test_a_network_on_real_data_and_other_optimizers():
    found = {name: measure() for name, measure in criteria("central-flow", "diabetes-tanh", Effort.FULL).items()}
    assert {*oscillation.OTHERS, "without a prepared oscillation"} < {*found}
    assert all(holds(finding) for finding in found.values()), found
    # Without a prepared oscillation there are bursts first.
    assert found[""].value < found["without a prepared oscillation"].value


def test_a_loss_that_never_comes_to_the_edge_is_not_a_pass():
    finding = criteria("central-flow", "nonquadratic", Effort.QUICK)[""]()
    assert math.isnan(finding.value)
    assert "does not reach" in finding.numbers["reason"]
    assert judge_number(*finding[:4])[0] == "could not measure"


def test_smoothing_removes_an_oscillation_of_period_two():
    n = np.arange(100.0)[:, None]
    smooth = oscillation.smooth(2 * n + (-1.0) ** n)
    np.testing.assert_allclose(smooth, 2 * n[: 101 - oscillation.WINDOW] + oscillation.WINDOW - 1, atol=1e-11)


def test_problems_at_the_edge():
    for name in ("edge-valley", "edge-valley-2", "diabetes-tanh", "diabetes-tanh-2", "chebyshev-tanh"):
        problem = load(name)
        assert problem.name == name
        assert np.isfinite(problem.loss_fn(problem.params))
    valley = load("edge-valley")
    largest = np.linalg.eigvalsh(jax.hessian(valley.loss_fn)(valley.params))[-1]
    np.testing.assert_allclose(largest, valley.facts["start_sharpness"], rtol=1e-12)
    network = load("diabetes-tanh")
    np.testing.assert_allclose(
        network.loss_fn(network.params, jnp.arange(60)), network.loss_fn(network.params), rtol=1e-12
    )
    with pytest.raises(ValueError, match="`num_examples` must be at most"):
        problems.edge.diabetes_tanh(num_examples=10**4)
    with pytest.raises(ValueError, match="`drift` must be"):
        problems.edge.sharpening_valley(drift=0.0)
