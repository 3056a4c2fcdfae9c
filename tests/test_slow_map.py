"""States on the slow manifold, found by iteration: against closed forms, and by the runs that start there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from tolerances import ORDER, ROUND_OFF, assert_close

import implicit_reg as ir
from implicit_reg.flows import memory as closed
from implicit_reg.slow_manifold import SlowMap, slow_map
from implicit_reg.standstill import watch_frozen

pytestmark = pytest.mark.x64

X = {"a": jnp.array([1.0, -0.4]), "b": jnp.array(0.7)}
STEPS = np.array([0.0025, 0.00125, 0.000625])


def loss(params):
    fit = jnp.sum((jnp.tanh(params["a"]) * params["b"] - 0.3) ** 2)
    return fit + 0.1 * params["b"] ** 4 + 0.2 * jnp.sum(params["a"] ** 2)


def heavy_ball(h):
    return optax.sgd(h, momentum=0.5)


def nesterov(h):
    return optax.sgd(h, momentum=0.5, nesterov=True)


def adam(h):
    return optax.adam(h, b1=0.5, b2=0.6, eps=0.3)


def distance(a, b):
    return float(jnp.linalg.norm(ravel_pytree(a)[0] - ravel_pytree(b)[0]))


@pytest.mark.parametrize(
    ("method", "memory"),
    [(heavy_ball, closed.heavy_ball_memory(0.5)), (nesterov, closed.nesterov_memory(0.5))],
    ids=["heavy-ball", "nesterov"],
)
def test_momentum_has_the_trace_of_the_closed_form(method, memory):
    """m_0 = g/(1 - b) + h H g/(1 - b)^3 + O(h^2), and its next term too."""
    g, (_, hg) = jax.grad(loss)(X), ir.derivatives.hessian_vector_product(loss, X, jax.grad(loss)(X))
    slow = slow_map(method, loss, X, 0.01)
    two, three = [], []
    for h in STEPS:
        trace = slow.start(h, X).state[0].trace
        two.append(distance(trace, jax.tree.map(lambda g, hg, h=h: g / 0.5 + h * hg / 0.5**3, g, hg)))
        three.append(distance(trace, closed.slow_trace(loss, memory, 0.5, 3)(h, X)))
    assert abs(ir.observed_order(STEPS, two)[-1] - 2) < ORDER
    assert abs(ir.observed_order(STEPS, three)[-1] - 3) < ORDER


def test_each_round_gains_an_order():
    exact = [slow_map(heavy_ball, loss, X, 0.01, order=7).update(h, X) for h in STEPS]
    for order in (1, 2, 3):
        slow = slow_map(heavy_ball, loss, X, 0.01, order=order)
        error = [distance(slow.update(h, X), u) for h, u in zip(STEPS, exact, strict=True)]
        assert abs(ir.observed_order(STEPS, error)[-1] - (order + 1)) < ORDER


def test_its_modified_equation_is_the_closed_form():
    slow = SlowMap(heavy_ball, loss, 34, 2)
    found = jax.jit(ir.modified_coefficients(slow, 2))(X)
    assert_close(found, closed.memory_coefficients(loss, closed.heavy_ball_memory(0.5), 2)(X), closed_tolerance())


def closed_tolerance():
    """A gradient counts as forgotten at 1e-10."""
    return type(ROUND_OFF)(1e-4, 1e-8)


def transient(method, state, h=0.001):
    """How much rougher a run begins than it goes on: third differences of the updates, first against later."""
    run = ir.descend(method, loss, X, h, 80, state=state)
    x = np.asarray(jax.vmap(lambda p: ravel_pytree(p)[0])(run.params))
    rough = np.linalg.norm(np.diff(x, n=4, axis=0), axis=1)
    return rough[:5].max() / rough[60:65].max()


@pytest.mark.parametrize(
    "method",
    [
        heavy_ball,
        adam,
        lambda h: optax.chain(optax.clip_by_global_norm(0.4), optax.trace(0.5), optax.scale_by_learning_rate(h)),
        lambda h: optax.chain(optax.trace(0.5), optax.scale_by_schedule(lambda n: -h / (1 + h * n))),
    ],
    ids=["heavy-ball", "adam", "clipped", "scheduled"],
)
def test_a_run_from_the_slow_manifold_has_no_transient(method):
    start = slow_map(method, loss, X, 0.001, order=5).start(0.001, X)
    assert not start.ghost
    assert float(start.change) < 1e-4
    assert transient(method, start.state) < 5
    assert transient(method, None) > 100


def test_counters_stand_where_the_past_has_brought_them():
    start = slow_map(adam, loss, X, 0.005).start(0.005, X)
    assert int(start.state[0].count) == start.num_steps > 20


def test_the_ghost_point_is_the_closed_form():
    """Heavy ball from the zero trace seems to come from x + h s_1 + h^2 s_2 + O(h^3)."""
    slow = slow_map(heavy_ball, loss, X, 0.01)
    first, second = closed.ghost_shifts(loss, closed.heavy_ball_memory(0.5))(X)
    error = []
    for h in STEPS:
        found = slow.ghost(h, X)
        assert found.ghost
        assert_close(found.state, heavy_ball(h).init(X), ROUND_OFF)
        error.append(distance(found.params, jax.tree.map(lambda x, s, q, h=h: x + h * s + h**2 * q, X, first, second)))
    assert abs(ir.observed_order(STEPS, error)[-1] - 3) < ORDER


def test_the_run_meets_the_slow_run_from_the_ghost_point():
    slow, h = slow_map(adam, loss, X, 0.005, order=4), 0.005
    ghost = slow.ghost(h, X)
    fresh = ir.descend(adam, loss, X, h, 80)
    followed = ir.descend(adam, loss, ghost.params, h, 80, state=slow.start(h, ghost.params).state)
    gap = ir.discrepancy(fresh, followed).error
    assert gap[0] > 1e4 * gap[60:].max()


def test_a_state_is_where_a_run_goes_on():
    whole = ir.descend(adam, loss, X, 0.05, 6)
    state = adam(0.05).init(X)
    x = X
    for _ in range(3):
        x, state = ir.descent.optimizer_step(adam(0.05), loss, x, state)
    rest = ir.descend(adam, loss, x, 0.05, 3, state=state)
    assert_close(rest.params, jax.tree.map(lambda leaf: leaf[3:], whole.params), ROUND_OFF)
    fresh = ir.descend(adam, loss, x, 0.05, 3)
    assert distance(fresh.params, rest.params) > 1e-3


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (lambda: optax.sgd(0.1).init(X), ValueError, "`state` and `method\\(h\\).init\\(params\\)` must have the same"),
        (lambda: adam(0.1).init({"a": jnp.ones(3), "b": jnp.ones(())}), ValueError, "shape"),
        (
            lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), adam(0.1).init(X)),
            TypeError,
            "must have dtype float64",
        ),
    ],
)
def test_a_state_of_something_else_is_refused(state, error, words):
    with pytest.raises(error, match=words):
        ir.descend(adam, loss, X, 0.1, 2, state=state())


@pytest.mark.parametrize(
    ("method", "memory", "period"),
    [
        (optax.sgd, 0, None),
        (heavy_ball, 33, None),
        (lambda h: optax.chain(optax.ema(0.3, debias=False), optax.sgd(h)), 19, None),
        (lambda h: optax.sgd(ir.alternating(h, -0.25 * h)), 0, 2),
        (lambda h: optax.MultiSteps(optax.sgd(h), 3), None, 3),
    ],
    ids=["sgd", "heavy-ball", "ema", "alternating", "accumulated"],
)
def test_what_a_standstill_shows(method, memory, period):
    found = watch_frozen(method, loss, X, 0.01)
    assert found.period == period
    if period is None:
        assert found.memory == memory
        assert found.halves < 1e-9
    else:
        assert f"every {period} steps" in found.objection


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda h: optax.chain(optax.add_noise(0.1, 0.55, 0), optax.sgd(h)), "PRNG key"),
        (optax.adagrad, "still felt after 2048 steps"),
        (lambda h: optax.sgd(0.0), "vanishes"),
        (lambda h: optax.sgd(ir.alternating(h, -0.25 * h)), "num_steps=2"),
    ],
    ids=["random", "never-forgets", "no-update", "periodic"],
)
def test_where_no_slow_manifold_can_be_found_it_says_why(method, words):
    with pytest.raises(ValueError, match=words):
        slow_map(method, loss, X, 0.01)
