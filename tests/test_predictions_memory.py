"""Rows of optimizers with memories: every statement holds, and another optimizer's moments make the row fail."""

import dataclasses

import pytest

from implicit_reg import predictions, problems
from implicit_reg.flows import adaptive as adaptive_flows
from implicit_reg.flows import memory as memory_flows
from implicit_reg.predictions import Effort, adaptive, memory

pytestmark = pytest.mark.x64

ROWS = {row.name: row for row in (*memory.ROWS, *adaptive.ROWS)}


def undecayed(decays, rescaling):
    return adaptive.ADAM.method(decays, rescaling._replace(weight_decay=0.0))


# Each with the moments or ages of a neighbor, which a reader of the table could take for its own.
WRONG = {
    "heavy-ball": memory._statements(memory.HEAVY_BALL._replace(memory=memory_flows.nesterov_memory)),
    "nesterov": memory._statements(memory.NESTEROV._replace(memory=memory_flows.heavy_ball_memory)),
    "ema": memory._statements(memory.AVERAGE._replace(memory=lambda b: memory_flows.LinearMemory(1.0, b, b))),
    "adam": adaptive._statements(adaptive.ADAM._replace(first_age=lambda b: 0.0)),
    "adamw": adaptive._statements(adaptive.ADAMW._replace(method=undecayed)),
    "nadam": adaptive._statements(adaptive.NADAM._replace(first_age=adaptive_flows.stationary_age)),
    "rmsprop": adaptive._statements(adaptive.RMSPROP._replace(first_age=lambda b: 1.0)),
}


@pytest.fixture(scope="module")
def smooth():
    return problems.load_problem("nonquadratic", dtype="float64")


@pytest.mark.parametrize("name", WRONG)
def test_the_moments_of_a_neighbor_fail(name, smooth):
    found = predictions.check(dataclasses.replace(ROWS[name], statements=WRONG[name]), [smooth])
    assert found["verdict"] == "fails"
    second = found["details"]["cases"][0]["truncations"][1]["fixed_time"]
    assert second["verdict"] == "fails"
    assert second["measured"] < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_statement_of_a_row_holds(name, smooth):
    found = predictions.check(ROWS[name], [smooth], Effort.FULL)
    verdicts = {case["statement"]: case["verdict"] for case in found["details"]["cases"]}
    assert set(verdicts.values()) == {"holds"}, verdicts
    assert len(verdicts) == len(found["details"]["cases"]), "two statements of one name"


def test_adams_row_reports_its_conditions(smooth):
    objective = predictions.objective.flatten(smooth)
    statement = next(s for s in ROWS["adam"].statements(objective, Effort.STANDARD) if "signs" in s.name)
    found = statement.measure()
    assert found.value < found.bound < found.mutant
    assert found.numbers["gradient components"] == 3
    assert found.numbers["that change sign during the run"] == 0
    chi, finest = ROWS["adam"].trust.of(objective, None, 1e-3), ROWS["adam"].trust.of(objective, None, 5e-4)
    assert chi == pytest.approx(2 * finest)
