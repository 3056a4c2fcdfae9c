"""The rows hold, and every way in which a prediction can be wrong makes its row fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import implicit_reg as ir
from implicit_reg import methods, predictions, problems
from implicit_reg.predictions import from_table, judging, measure, solver, validity
from implicit_reg.predictions.objective import flatten

pytestmark = pytest.mark.x64

CHEAP = {"step_sizes": (0.025, 0.0125), "time": 0.25}
NAMES = [
    "gd",
    "alternating",
    "backstitch",
    "backstitch-shuffled",
    "flooding-pair",
    "flooding-minibatch-pair",
    "flooding-level-set",
    "sam",
    "sam-unnormalized",
    "gradient-penalty",
    "weight-decay",
    "heavy-ball",
    "nesterov",
    "ema",
    "adam",
    "adamw",
    "nadam",
    "rmsprop",
    "sgd-shuffled",
    "sgd-replacement",
    "principal-flow",
    "central-flow",
    "two-player",
]


def load(name):
    return problems.load_problem(name, dtype="float64")


def cheapest(row):
    """The loss of a row that is quickest to run: the one with the fewest parameters."""
    return min((load(name) for name in row.losses), key=lambda problem: problem.num_params)


@pytest.fixture(scope="module")
def smooth():
    return load("nonquadratic")


def test_the_names_are_those_that_others_call():
    assert sorted(predictions.ROWS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_all_that_is_shown_of_it(name):
    row = predictions.find(name)
    assert row.name == name
    assert all((row.title, row.claim, row.formula, row.time_scale, row.validity))
    assert "\n" not in row.claim + row.formula
    assert row.claim.endswith(".")
    assert len(row.losses) >= 2
    assert "quadratic" not in row.losses


NETWORKS = ("gd", "flooding-level-set", "heavy-ball", "adam", "sgd-shuffled", "central-flow")  # one for each room


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loss"), [(name, 0) for name in NAMES] + [(name, 1) for name in NETWORKS], ids=lambda part: str(part)
)
def test_a_row_holds(name, loss):
    """On its smallest loss, and a row of each room on its largest, a network on real data; `verify` runs them all."""
    row = predictions.find(name)
    problem = sorted((load(name) for name in row.losses), key=lambda problem: problem.num_params)[-loss]
    found = predictions.check(row, [problem])
    assert found["verdict"] == "holds", [case for case in found["details"]["cases"] if case["verdict"] != "holds"]
    np.testing.assert_allclose(found["measured"], found["expected"], atol=judging.ORDER_TOLERANCE)
    assert found["details"]["cases"]
    for case in found["details"]["cases"]:
        if case["kind"] == "criterion":
            assert (case["value"] <= case["bound"]) == case["at_most"]
            assert case["mutant"] is None or (case["mutant"] <= case["bound"]) != case["at_most"]
            continue
        for truncation in case["truncations"]:
            for curve in filter(None, (truncation["one_step"], truncation["fixed_time"])):
                assert abs(curve["measured"] - curve["expected"]) < judging.ORDER_TOLERANCE
                assert curve["mutant"] is None or abs(curve["mutant"] - curve["expected"]) > judging.ORDER_TOLERANCE


def wrong_last_term(row):
    """The row whose main reference carries its last term 1.1 times as large."""

    def statements(objective, effort):
        main, *_ = row.statements(objective, effort)
        num_terms = len(main.expected)
        factor = np.ones(num_terms)
        factor[-1] = np.broadcast_to(main.mutation, (num_terms,))[-1]
        reference = main.reference
        start = lambda w, h, x: reference.start(w * factor, h, x)  # noqa: E731
        if isinstance(reference, predictions.Flow):
            wrong = reference._replace(start=start, field=lambda w, h, n, y: reference.field(w * factor, h, n, y))
        else:
            wrong = reference._replace(start=start, step=lambda w, h, n, y: reference.step(w * factor, h, n, y))
        return (main._replace(reference=wrong),)

    return dataclasses.replace(row, statements=statements)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gd", "flooding-level-set", "heavy-ball", "rmsprop", "sgd-shuffled", "two-player"])
def test_a_row_with_a_wrong_last_term_fails(name):
    """The mutants that every check carries are what a wrong field would be: put in its place, the row fails."""
    row = predictions.find(name)
    problem = cheapest(row)
    found = predictions.check(wrong_last_term(row), [problem])
    assert found["verdict"] == "fails", found["measured"]


@pytest.mark.parametrize("name", ["gd", "alternating", "backstitch", "gradient-penalty", "sam", "sam-unnormalized"])
def test_updates_and_corrections_are_the_published_ones(name, smooth):
    for pin in from_table.pins(name, flatten(smooth)):
        found = pin.measure()
        assert judging.judge_number(found.value, found.bound, found.mutant, found.at_most) == ("holds", None)


def test_a_wrongly_coded_update_fails_though_its_own_field_follows_it(smooth, monkeypatch):
    """Backstitch with alpha 10 % off: no longer the published update, and not what the published field says."""
    build = lambda base, h, alpha: ir.backstitch(base(h), 1.1 * alpha)  # noqa: E731
    wrong = dataclasses.replace(methods.METHODS["backstitch"], build=build)
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS, "backstitch": wrong})
    assert predictions.check(predictions.find("backstitch"), [smooth], **CHEAP)["verdict"] == "fails"
    update, leading = (pin.measure() for pin in from_table.pins("backstitch", flatten(smooth)))
    assert update.value > update.bound
    assert leading.value > leading.bound
    assert predictions.check_own("mine", wrong.at, [smooth], **CHEAP)["verdict"] == "holds"


def test_verification_leaves_the_precision_as_it_found_it(smooth):
    with jax.enable_x64(False):
        found = predictions.check(predictions.find("gd"), [smooth], **CHEAP)
        assert not jax.config.jax_enable_x64
        with pytest.raises(ValueError, match="at least two"):
            predictions.check(predictions.find("gd"), [smooth], step_sizes=(0.1,))
        assert not jax.config.jax_enable_x64
    assert all(isinstance(slope, float) for slope in found["measured"])


def test_float32_is_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"has dtype float32, in which an order cannot be seen.*enable_x64"):
        predictions.check(predictions.find("gd"), [problems.load_problem("nonquadratic", dtype="float32")])


def test_every_order_carries_its_validity(smooth):
    (case,) = predictions.check(predictions.find("gd"), [smooth], **CHEAP)["details"]["cases"]
    found = case["validity"]
    spectrum = np.linalg.eigvalsh(jax.hessian(smooth.loss_fn)(smooth.params))
    np.testing.assert_allclose([found["low"], found["high"]], spectrum[[0, -1]], rtol=1e-10)
    np.testing.assert_allclose(found["x"], [h * np.abs(spectrum).max() for h in case["h"]], rtol=1e-10)
    assert found["band"] == "fine"
    gradient = jax.grad(smooth.loss_fn)(smooth.params)
    second = 0.5 * jax.hessian(smooth.loss_fn)(smooth.params) @ gradient
    ratio = case["h"][-1] * np.linalg.norm(second) / np.linalg.norm(gradient)
    np.testing.assert_allclose(found["term_ratio"][0], ratio, rtol=0.03)
    # The next term estimates the one-step error of those before it.
    np.testing.assert_allclose(found["next_term"], 1.0, atol=0.05)
    assert found["above_floor"] > 1


@pytest.mark.parametrize(("x", "word"), [(0.0, "fine"), (0.3, "caution"), (0.8, "unreliable"), (1.0, "beyond")])
def test_bands(x, word):
    assert validity.band(x) == word


def test_a_method_that_is_not_smooth_in_the_step_size_fails(smooth):
    """With sqrt(h) h in the update the orders 2 and 3 are gone; its Taylor coefficients in h do not exist."""
    assert (
        predictions.check_own("rough", lambda h: optax.sgd(h * (1 + h**0.5)), [smooth], **CHEAP)["verdict"] != "holds"
    )


def test_a_diverging_run_could_not_be_measured():
    steep = problems.Problem("steep", lambda x: 1e3 * x**4, np.float64(3.0), {}, "Diverges at once.")
    found = predictions.check(predictions.find("gd"), [steep])
    assert found["verdict"] == "could not measure"
    assert found["measured"] == [None, None, None]
    assert "diverged" in found["details"]["cases"][0]["truncations"][0]["fixed_time"]["reason"]


def test_a_linear_loss_could_not_be_measured():
    """Gradient descent on it is its gradient flow: the error is round-off, and round-off has no order."""
    flat = problems.Problem("linear", lambda x: x.sum(), np.ones(2), {}, "No curvature.")
    assert predictions.check(predictions.find("gd"), [flat])["verdict"] == "could not measure"


def test_outside_of_its_range_a_wrong_order_could_not_be_measured():
    """At h lambda near 1 the order is not there yet; that says nothing against the theory."""
    bowl = problems.Problem("bowl", lambda x: jnp.sum(jnp.cosh(3 * x)), np.array([0.3, -0.2]), {}, "Steep.")
    found = predictions.check(predictions.find("gd"), [bowl], step_sizes=(0.1, 0.0833333333333333), time=2.5)
    reasons = [t["fixed_time"]["reason"] for t in found["details"]["cases"][0]["truncations"]]
    assert found["verdict"] == "could not measure"
    assert any("where the theory does not speak" in (reason or "") for reason in reasons)


def test_kinks_are_seen(monkeypatch):
    monkeypatch.setattr(solver, "MAX_EVALUATIONS", 3000)
    kinked = problems.Problem(
        "kinked", lambda x: jnp.sum(jnp.abs(x - 0.29) * (1 + x**2)), np.array([0.3, 1.0]), {}, "A ridge near the start."
    )
    found = predictions.check(predictions.find("gd"), [kinked], **CHEAP)
    reasons = " ".join(
        curve["reason"] or ""
        for truncation in found["details"]["cases"][0]["truncations"]
        for curve in (truncation["one_step"], truncation["fixed_time"])
    )
    assert found["verdict"] != "holds"
    assert "the gradient has kinks" in reasons
    objective = flatten(load("nonquadratic"))
    assert validity.roughness(objective, np.asarray(objective.start), np.asarray(objective.start) + 0.3) is None


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
    found = judging.judge(STEPS, error, mutant, 2, 1e-12)
    assert found["verdict"] == verdict
    assert (found["reason"] is None) == (verdict == "holds")


@pytest.mark.parametrize(
    ("value", "bound", "mutant", "at_most", "verdict"),
    [
        (1.0, 2.0, 3.0, True, "holds"),
        (2.0, 2.0, 3.0, True, "holds"),
        (2.5, 2.0, 3.0, True, "fails"),
        (1.0, 2.0, 1.5, True, "could not measure"),
        (3.0, 2.0, 1.0, False, "holds"),
        (1.0, 2.0, 1.0, False, "fails"),
        (3.0, 2.0, 2.5, False, "could not measure"),
        (np.nan, 2.0, 3.0, True, "could not measure"),
        (1.0, 2.0, np.nan, True, "could not measure"),
        (1.0, 2.0, np.inf, True, "holds"),
    ],
)
def test_judge_number(value, bound, mutant, at_most, verdict):
    found, reason = judging.judge_number(value, bound, mutant, at_most)
    assert found == verdict
    assert (reason is None) == (verdict == "holds")


def test_worst():
    assert predictions.worst(["holds", "could not measure", "fails"]) == "fails"
    assert predictions.worst(["holds", "could not measure"]) == "could not measure"
    assert predictions.worst(["holds", "holds"]) == "holds"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_sizes": (0.1,)}, "at least two positive numbers, strictly decreasing"),
        ({"step_sizes": (0.05, 0.1)}, "strictly decreasing"),
        ({"step_sizes": (0.1, 0.099)}, "must differ by a factor of at least 1.2"),
        ({"step_sizes": (0.1, 0.03)}, r"must divide time/num_records=0.1 a whole number of times, got 0.03"),
        ({"step_sizes": (0.2, 0.1)}, "got 0.2"),
        ({"time": 0.0}, "`time` must be"),
    ],
)
def test_bad_settings(settings, message, smooth):
    with pytest.raises(ValueError, match=message):
        predictions.check(predictions.find("gd"), [smooth], **settings)
    with pytest.raises(ValueError, match=message):
        predictions.check_applicable(predictions.find("gd"), [smooth], predictions.Effort.QUICK, **settings)


def test_bad_names_and_empty_lists():
    with pytest.raises(ValueError, match=r"unknown prediction 'backstich'\. Did you mean 'backstitch'"):
        predictions.find("backstich")
    with pytest.raises(ValueError, match="unknown method 'sgdd'"):
        methods.find("sgdd")
    with pytest.raises(ValueError, match="at least one problem"):
        predictions.check(predictions.find("gd"), [])
    with pytest.raises(TypeError, match="`method` must be callable"):
        predictions.check_own("mine", optax.sgd(0.1), [load("nonquadratic")])


def test_a_stochastic_row_says_that_it_needs_examples(smooth):
    with pytest.raises(ValueError, match=r"takes no examples; a problem for stochastic predictions"):
        predictions.check_applicable(predictions.find("sgd-shuffled"), [smooth], predictions.Effort.QUICK)


def test_minibatches_are_equal_parts_of_the_loss():
    problem = load("tanh-network")
    objective = flatten(problem)
    batch = objective.minibatches(4)
    parts = [batch(objective.start, k) for k in range(4)]
    np.testing.assert_allclose(np.mean(parts), objective.value(objective.start), rtol=1e-14)
    np.testing.assert_allclose(parts[1], problem.loss_fn(problem.params, jnp.array([2, 3])), rtol=1e-14)
    with pytest.raises(ValueError, match="at most the 8 examples"):
        objective.minibatches(9)


def test_one_program_serves_all_step_sizes_and_truncations(smooth):
    objective = flatten(smooth)
    traces = []

    def step(w, h, n, x):
        traces.append(1)
        return x - h * objective.gradient(x)

    run = measure.program(predictions.Recurrence(step), objective)
    for h in (0.1, 0.05):
        for w in (np.ones(2), np.zeros(2)):
            run(w, h, np.array([1, 5, 10]))
    assert len(traces) <= 3  # of one compilation: the loop's body, and its types


def test_trajectories_part_from_gradient_flow_and_follow_the_modified_one():
    record = predictions.two_parameter_trajectories([predictions.find("gd")], load("factorization"), num_grid=5)
    (run,) = record["runs"]
    ends = {key: np.asarray(run[key])[-1] for key in ("iterates", "gradient_flow", "modified_flow")}
    to_modified = np.linalg.norm(ends["iterates"] - ends["modified_flow"])
    assert to_modified < 0.35 * np.linalg.norm(ends["iterates"] - ends["gradient_flow"])
    assert np.asarray(record["grid"]["loss"]).shape == (5, 5)
    a, b = record["grid"]["a"][3], record["grid"]["b"][1]
    np.testing.assert_allclose(record["grid"]["loss"][1][3], 0.5 * (0.6 - a * b) ** 2, rtol=1e-12)
