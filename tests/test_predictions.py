"""The rows hold, and every way in which a method can be wrong makes its row fail."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import implicit_reg as ir
from implicit_reg import methods, predictions, problems
from implicit_reg.predictions import orders

QUICK = predictions.OrderCheck(step_sizes=(0.025, 0.0125), time=0.25)


@pytest.fixture(scope="module")
def smooth():
    with jax.enable_x64(True):
        return problems.load_problem("nonquadratic", dtype="float64")


def check(row, problem, settings=QUICK):
    return predictions.check_orders(row, [problem], settings)


def wrong(name, **changes):
    """The row of a method whose table entry has been tampered with."""
    return predictions.Row.from_method(dataclasses.replace(methods.METHODS[name], **changes))


@pytest.mark.parametrize("name", predictions.ROWS)
def test_row_holds_on_a_nonquadratic_loss(name, smooth):
    found = check(predictions.find(name), smooth)
    assert found["verdict"] == "holds", found["details"]["losses"]
    assert found["expected"] == [1, 2, 3]
    np.testing.assert_allclose(found["measured"], [1, 2, 3], atol=orders.ORDER_TOLERANCE)
    (loss,) = found["details"]["losses"]
    for truncation, order in zip(loss["truncations"], (1, 2, 3), strict=True):
        for kind, expected in (("fixed_time", order), ("one_step", order + 1)):
            assert abs(truncation[kind]["measured"] - expected) < orders.ORDER_TOLERANCE
            assert abs(truncation[kind]["mutant"] - expected) > orders.ORDER_TOLERANCE
    assert loss["update"]["error"] < orders.UPDATE_TOLERANCE
    assert loss["leading"]["error"] < orders.LEADING_TOLERANCE


def test_verification_leaves_the_precision_as_it_found_it(smooth):
    before = jax.config.jax_enable_x64
    found = check(predictions.find("gd"), smooth)
    assert jax.config.jax_enable_x64 == before
    assert all(isinstance(slope, float) for slope in found["measured"])


def test_a_wrongly_coded_update_fails_though_its_own_field_follows_it(smooth):
    """Backstitch with alpha 10 % off: the orders hold, for the field is derived from the update; the pins do not."""
    build = lambda base, h, alpha: ir.backstitch(base(h), 1.1 * alpha)  # noqa: E731
    found = check(wrong("backstitch", build=build), smooth)
    (loss,) = found["details"]["losses"]
    assert found["verdict"] == "fails"
    assert loss["update"]["verdict"] == loss["leading"]["verdict"] == "fails"
    assert all(t["fixed_time"]["verdict"] == "holds" for t in loss["truncations"])


def test_a_wrong_published_correction_fails(smooth):
    right = methods.METHODS["gd"].leading
    found = check(wrong("gd", leading=lambda loss, x, h: 1.1 * right(loss, x, h)), smooth)
    assert found["verdict"] == "fails"
    assert abs(found["details"]["losses"][0]["leading"]["error"] - 0.1 / 1.1) < 1e-9


def test_a_method_that_is_not_smooth_in_the_step_size_fails(smooth):
    """With sqrt(h) h in the update the orders 2 and 3 are gone; its Taylor coefficients in h do not exist."""
    row = predictions.own_method("rough", lambda h: optax.sgd(h * (1 + h**0.5)))
    assert check(row, smooth)["verdict"] != "holds"


def test_a_diverging_run_could_not_be_measured():
    with jax.enable_x64(True):
        steep = problems.Problem("steep", lambda x: 1e3 * x**4, np.float64(3.0), {}, "Diverges at once.")
    found = check(predictions.find("gd"), steep)
    assert found["verdict"] == "could not measure"
    assert found["measured"] == [None, None, None]
    assert "diverged" in found["details"]["losses"][0]["truncations"][0]["fixed_time"]["reason"]


def test_a_linear_loss_could_not_be_measured():
    """Gradient descent on it is its gradient flow: the error is round-off, and round-off has no order."""
    with jax.enable_x64(True):
        flat = problems.Problem("linear", lambda x: x.sum(), np.ones(2), {}, "No curvature.")
    found = check(predictions.find("gd"), flat)
    assert found["verdict"] == "could not measure"


STEPS = np.array([0.4, 0.2, 0.1])


@pytest.mark.parametrize(
    ("error", "mutant", "verdict"),
    [
        (STEPS**2, STEPS, "holds"),
        (STEPS**2 + 0.1 * STEPS, STEPS, "fails"),
        (STEPS**1.85, STEPS, "fails"),
        (STEPS**2, STEPS**2, "could not measure"),
        (1e-13 * STEPS**2, 1e-13 * STEPS, "could not measure"),
        (np.array([1.0, np.nan, 0.1]), STEPS, "could not measure"),
        (np.array([np.nan, 0.04, 0.01]), STEPS, "holds"),
        (np.array([1.0, 0.5, 0.0]), STEPS, "could not measure"),
    ],
)
def test_judge(error, mutant, verdict):
    found = orders.judge(STEPS, error, mutant, 2, 1e-12)
    assert found["verdict"] == verdict
    assert (found["reason"] is None) == (verdict == "holds")


def test_worst():
    assert predictions.worst(["holds", "could not measure", "fails"]) == "fails"
    assert predictions.worst(["holds", "could not measure"]) == "could not measure"
    assert predictions.worst(["holds", "holds"]) == "holds"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"step_sizes": (0.1,)}, ValueError, "at least two positive numbers, strictly decreasing"),
        ({"step_sizes": (0.05, 0.1)}, ValueError, "strictly decreasing"),
        ({"step_sizes": (0.1, 0.03)}, ValueError, "must divide time/num_records=0.1 a whole number of times, got 0.03"),
        ({"step_sizes": (0.2, 0.1)}, ValueError, "got 0.2"),
        ({"time": 0.0}, ValueError, "`time` must be"),
        ({"num_records": 0}, ValueError, "`num_records` must be an integer"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        predictions.OrderCheck(**settings)


def test_bad_names_and_empty_lists():
    with pytest.raises(ValueError, match=r"unknown prediction 'backstich'\. Did you mean 'backstitch'"):
        predictions.find("backstich")
    with pytest.raises(ValueError, match="unknown method 'sgdd'"):
        methods.find("sgdd")
    with pytest.raises(ValueError, match="at least one problem"):
        predictions.check_orders(predictions.find("gd"), [])
    with pytest.raises(TypeError, match="`method` must be callable"):
        predictions.own_method("mine", optax.sgd(0.1))


def test_trajectories_part_from_gradient_flow_and_follow_the_modified_one():
    with jax.enable_x64(True):
        problem = problems.load_problem("factorization", dtype="float64")
    record = predictions.two_parameter_trajectories([predictions.find("gd")], problem, num_grid=5)
    (run,) = record["runs"]
    ends = {key: np.asarray(run[key])[-1] for key in ("iterates", "gradient_flow", "modified_flow")}
    to_modified = np.linalg.norm(ends["iterates"] - ends["modified_flow"])
    assert to_modified < 0.35 * np.linalg.norm(ends["iterates"] - ends["gradient_flow"])
    assert np.asarray(record["grid"]["loss"]).shape == (5, 5)
    a, b = record["grid"]["a"][3], record["grid"]["b"][1]
    np.testing.assert_allclose(record["grid"]["loss"][1][3], 0.5 * (0.6 - a * b) ** 2, rtol=1e-12)
