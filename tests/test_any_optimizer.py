"""Optimizers from outside: those that follow their field, and every way in which none can."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import implicit_reg as ir
from implicit_reg import problems
from implicit_reg.flows import memory as closed
from implicit_reg.predictions.any_optimizer import check_own
from implicit_reg.predictions.judging import ORDER_TOLERANCE

pytestmark = pytest.mark.x64


@pytest.fixture(scope="module")
def smooth():
    return problems.load_problem("nonquadratic", dtype="float64")


def chain(h):
    """Momentum with a clip that acts, and a schedule in the time n h."""
    momentum = optax.chain(optax.clip_by_global_norm(0.2), optax.trace(0.5))
    return optax.chain(momentum, optax.scale_by_schedule(lambda n: -h / (1 + h * n)))


def heavy_ball(h):
    return optax.sgd(h, momentum=0.5)


def dynamics(found):
    return found["details"]["dynamics"][0]


def reasons(found):
    for case in found["details"]["cases"]:
        yield case.get("reason") or ""
        for truncation in case.get("truncations", ()):
            yield from (curve["reason"] or "" for curve in (truncation["one_step"], truncation["fixed_time"]) if curve)


@pytest.mark.parametrize(
    ("method", "clock", "memories"),
    [(heavy_ball, False, (33, 34)), (chain, True, (28, 36))],
    ids=["heavy-ball", "clipped-and-scheduled"],
)
def test_an_optimizer_with_a_memory_follows_the_field_of_its_updates(method, clock, memories, smooth):
    found = check_own("mine", method, [smooth])
    assert found["verdict"] == "holds", list(reasons(found))
    np.testing.assert_allclose(found["measured"], [1, 2], atol=ORDER_TOLERANCE)
    seen = dynamics(found)
    assert memories[0] <= seen["memory"] <= memories[1]
    assert seen["clock"] == clock
    assert 5 < seen["first_step"] <= seen["memory"]  # a transient, and its end
    assert seen["opposed"] == 0
    assert seen["roughness"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_without_a_memory_three_terms_are_exact_and_there_is_no_transient(smooth):
    found = check_own("mine", optax.sgd, [smooth])
    assert found["verdict"] == "holds", list(reasons(found))
    np.testing.assert_allclose(found["measured"], [1, 2, 3], atol=ORDER_TOLERANCE)
    assert dynamics(found)["first_step"] == 0
    assert dynamics(found)["memory"] == 0


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "holds"), (1.1, "fails")])
def test_given_truncations_are_held_to_their_orders(factor, verdict, smooth):
    coefficients = closed.memory_coefficients(smooth.loss_fn, closed.heavy_ball_memory(0.5), 2)

    def first(t, x, h):
        return coefficients(x)[0]

    def second(t, x, h):
        one, two = coefficients(x)
        return jax.tree.map(lambda a, b: a + factor * h * b, one, two)

    found = check_own("mine", heavy_ball, [smooth], field=(first, second))
    assert found["verdict"] == verdict, list(reasons(found))
    assert found["expected"] == [1, 2]
    assert dynamics(found)["route"] == "given"
    if factor == 1:  # the order of a single field is found out
        found = check_own("mine", heavy_ball, [smooth], field=second)
        assert (found["verdict"], found["expected"]) == ("holds", [2])


def test_a_kink_of_the_loss_is_seen():
    def loss(x):
        return jnp.sum(0.5 * x**2 + 3 * jnp.maximum(x - 0.8, 0.0) ** 2) + 0.1 * jnp.sum(x) ** 4

    found = check_own("mine", optax.sgd, [problems.Problem("kinked", loss, np.array([1.0, 0.9]))])
    assert found["verdict"] == "fails"
    assert "kinks along the run" in dynamics(found)["roughness"]
    assert any("kinks" in reason for reason in reasons(found))


def test_an_oscillation_is_seen():
    """Beyond the edge of stability in one direction: no flow turns back at every step."""
    steep = problems.Problem("steep", lambda x: 0.5 * (39.5 * jnp.tanh(x[0]) ** 2 + x[1] ** 2), np.array([0.4, 1.0]))
    found = check_own("mine", optax.sgd, [steep], step_sizes=(0.1, 0.05))
    assert found["verdict"] != "holds"
    assert dynamics(found)["opposed"] > 0.5
    assert any("oscillation" in reason for reason in reasons(found))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda h: optax.sgd(ir.alternating(h, -0.25 * h)), "repeats itself every 2 steps"),
        (optax.adagrad, "still felt after 2048 steps"),
        (lambda h: optax.chain(optax.scale(np.nan), optax.sgd(h)), "not finite"),
    ],
    ids=["periodic", "never-forgets", "not-finite"],
)
def test_what_no_field_can_follow_could_not_be_measured(method, words, smooth):
    found = check_own("mine", method, [smooth])
    assert found["verdict"] == "could not measure"
    assert words in dynamics(found)["objection"]
    assert any(words in reason for reason in reasons(found))
    json.dumps(found, allow_nan=False)


def random_numbers(h):
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -h * g * np.random.default_rng().uniform(), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: check_own("m", lambda h: optax.noisy_sgd(h, key=0), [p]), ValueError, "order of the batches"),
        (lambda p: check_own("m", random_numbers, [p]), ValueError, "same step twice"),
        (lambda p: check_own("m", lambda h: optax.adam(1e-3), [p]), ValueError, "smaller updates for smaller step"),
        (lambda p: check_own("m", optax.adam(1e-3), [p]), TypeError, "callable"),
        (lambda p: check_own("m", lambda h: 3, [p]), TypeError, "GradientTransformation"),
        (lambda p: check_own("m", optax.sgd, []), ValueError, "at least one problem"),
        (lambda p: check_own("m", optax.sgd, [p, p]), ValueError, "different names"),
        (lambda p: check_own("m", optax.sgd, [p], field=3), TypeError, "callable"),
        (lambda p: check_own("m", optax.sgd, [p], field=lambda t, x, h: (x, x)), ValueError, "same structure"),
        (lambda p: check_own("m", optax.sgd, [p], step_sizes=(0.1,)), ValueError, "at least two"),
        (
            lambda p: check_own("m", optax.sgd, [problems.load_problem("nonquadratic", dtype="float32")]),
            ValueError,
            "enable_x64",
        ),
    ],
)
def test_bad_input_says_what_was_wanted(call, error, words, smooth):
    with pytest.raises(error, match=words):
        call(smooth)
