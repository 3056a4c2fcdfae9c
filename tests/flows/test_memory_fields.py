"""Fields of linear memories against what the iterates themselves say, and against the exact roots on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ORDER, SOLVER, assert_close

import implicit_reg as ir
from implicit_reg.flows import memory

pytestmark = pytest.mark.x64

START = jnp.array([0.7, -0.4, 0.5])
MIX = jnp.array(((0.5, -0.3, 0.2), (0.1, 0.4, -0.6), (-0.2, 0.3, 0.5)))
DECAY = 0.4
KERNEL = (0.7, -0.2, 0.3, 0.15)
CENTRAL = np.array([0.0, 4 / 5, -1 / 5, 4 / 105, -1 / 280])  # of the first derivative, order 8


def loss(x):
    return jnp.sum(jnp.exp(MIX @ x)) + 0.25 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * x**2)


def from_kernel(h):
    """`x_{n+1} = x_n - h sum_j k_j g_{n-j}` with a written-out history: what `weighted_memory` is about."""
    k = jnp.array(KERNEL)

    def update(updates, state, params=None):
        state = jnp.concatenate([updates[None], state[:-1]])
        return -h * jnp.einsum("j,jd->d", k, state), state

    return optax.GradientTransformation(lambda x: jnp.zeros((k.size, x.size)), update)


CASES = {
    "heavy-ball": (lambda h: optax.sgd(h, momentum=DECAY), memory.heavy_ball_memory(DECAY)),
    "nesterov": (lambda h: optax.sgd(h, momentum=DECAY, nesterov=True), memory.nesterov_memory(DECAY)),
    "ema": (lambda h: optax.chain(optax.ema(DECAY, debias=False), optax.scale(-h)), memory.averaged_memory(DECAY)),
    "kernel": (from_kernel, memory.weighted_memory(KERNEL)),
}


TIME = 0.4  # by then the transient has shrunk below round-off


def run(method, h, num_steps):
    """Iterates and states after every step, in a plain loop over Optax's update."""

    @jax.jit
    def go():
        tx = method(h)

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jax.grad(loss)(x), state, x)
            return (x + updates, state), (x + updates, state)

        return jax.lax.scan(step, (START, tx.init(START)), length=num_steps)[1]

    return go()


@pytest.mark.parametrize("name", CASES)
def test_the_field_is_the_one_that_the_iterates_trace(name):
    """Central differences along the iterates differ from one, two, three terms by h^2, h^3, h^4."""
    method, moments = CASES[name]
    errors = []
    for h in (0.01, 0.005):
        middle = round(TIME / h) - 1
        x = np.asarray(run(method, h, middle + 5)[0])
        advance = sum(c * (x[middle + k] - x[middle - k]) for k, c in enumerate(CENTRAL))
        terms = memory.memory_coefficients(loss, moments)(jnp.asarray(x[middle]))
        partial = np.cumsum([h ** (p + 1) * np.asarray(f) for p, f in enumerate(terms)], axis=0)
        errors.append(np.linalg.norm(partial - advance, axis=1))
    slopes = np.log2(errors[0] / errors[1])
    assert np.all(np.abs(slopes - (2, 3, 4)) < ORDER), slopes


@pytest.mark.parametrize("name", ["nesterov", "kernel"])
def test_the_ghost_start_is_where_the_run_seems_to_come_from(name):
    """The flow of so many terms from the ghost point meets the iterates after their transient."""
    method, moments = CASES[name]
    shifts = jax.jit(memory.ghost_shifts(loss, moments))(START)
    fields = {order: memory.memory_vector_field(loss, moments, order) for order in (1, 2, 3)}
    errors = []
    for h in (0.01, 0.005):
        num_steps = round(TIME / h)
        end = run(method, h, num_steps)[0][-1]
        found = []
        for order, field in fields.items():
            start = START + sum(h ** (k + 1) * s for k, s in enumerate(shifts[: order - 1]))
            flow = ir.integrate(field, start, [h * num_steps], h).params[-1]
            found.append(float(jnp.linalg.norm(flow - end)))
        errors.append(found)
    slopes = np.log2(np.array(errors[0]) / np.array(errors[1]))
    assert np.all(np.abs(slopes - (1, 2, 3)) < ORDER), slopes


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov", "ema"])
def test_on_a_quadratic_the_coefficients_are_those_of_the_slow_root(name):
    """`z^2 - (1 + b - h k_0 s) z + b - ... = 0` in closed form: the slow root's logarithm, expanded by differences."""
    b, s = DECAY, 0.8
    moments = CASES[name][1]

    def exponent(h):  # log of the slow root, per step
        if name == "nesterov":
            p, q = (1 + b) * (1 - h * s), b * (1 - h * s)
        else:
            p, q = 1 + b - (h if name == "heavy-ball" else h * (1 - b)) * s, b
        return jnp.log((p + jnp.sqrt(p**2 - 4 * q)) / 2)

    taylor = [exponent]
    for _ in range(3):
        taylor.append(jax.grad(taylor[-1]))
    expected = [float(taylor[1](0.0)), float(taylor[2](0.0)) / 2, float(taylor[3](0.0)) / 6]
    found = memory.memory_coefficients(lambda x: 0.5 * s * x**2, moments)(jnp.array(1.0))
    for f, e in zip(found, expected, strict=True):
        assert_close(f, jnp.array(e), DERIVATIVE)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_slow_trace_is_the_one_of_a_long_run(nesterov, order):
    moments = (memory.nesterov_memory if nesterov else memory.heavy_ball_memory)(DECAY)
    trace = memory.slow_trace(loss, moments, DECAY, order)
    method, errors = lambda h: optax.sgd(h, momentum=DECAY, nesterov=nesterov), []
    for h in (0.01, 0.005):
        x, state = jax.tree.map(lambda leaf: leaf[-1], run(method, h, round(TIME / h)))
        errors.append(float(jnp.linalg.norm(trace(h, x) - state[0].trace)))
    assert abs(np.log2(errors[0] / errors[1]) - order) < ORDER


def test_plain_gradient_descent_has_no_age():
    moments = memory.weighted_memory([1.0])
    assert moments == memory.LinearMemory(1.0, 0.0, 0.0) == memory.heavy_ball_memory(0.0)
    expected = ir.modified_coefficients(ir.update_map(optax.sgd, loss), 3)(START)
    for f, e in zip(memory.memory_coefficients(loss, moments)(START), expected, strict=True):
        assert_close(f, e, DERIVATIVE)


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov", "ema"])
def test_moments_are_those_of_the_weights(name):
    """The weights of an update, read off by feeding one unit gradient and then zeros."""
    method = CASES[name][0](1.0)
    state, weights = method.init(jnp.zeros(1)), []
    for n in range(200):
        updates, state = method.update(jnp.full(1, float(n == 0)), state)
        weights.append(-float(updates[0]))
    for found, expected in zip(CASES[name][1], memory.weighted_memory(weights), strict=True):
        assert found == pytest.approx(expected, rel=SOLVER.float64)


def test_any_tree_will_do():
    tree = {"a": START[:1], "b": START[1:]}
    moments = memory.heavy_ball_memory(DECAY)
    split = lambda x: {"a": x[:1], "b": x[1:]}  # noqa: E731
    join = lambda p: loss(jnp.concatenate([p["a"], p["b"]]))  # noqa: E731
    flat, found = (
        f(p)
        for f, p in (
            (memory.memory_coefficients(loss, moments), START),
            (memory.memory_coefficients(join, moments), tree),
        )
    )
    for f, e in zip(found, flat, strict=True):
        assert_close(f, split(e), DERIVATIVE)
    trace = memory.slow_trace(join, moments, DECAY)(0.1, tree)
    assert_close(trace, split(memory.slow_trace(loss, moments, DECAY)(0.1, START)), DERIVATIVE)
    field = memory.memory_vector_field(join, moments)(0.0, tree, 0.1)
    assert_close(field, split(sum(0.1**k * f for k, f in enumerate(flat))), DERIVATIVE)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
@pytest.mark.parametrize("make", [memory.heavy_ball_memory, memory.nesterov_memory, memory.averaged_memory])
def test_a_decay_that_is_none_is_refused(make, decay):
    with pytest.raises(ValueError, match=f"{make.__name__}: `decay` must be"):
        make(decay)


def test_what_cannot_be_a_memory_is_refused():
    with pytest.raises(ValueError, match="sum other than 0"):
        memory.weighted_memory([1.0, -1.0])
    with pytest.raises(ValueError, match="`order` must be at most 3, got 4"):
        memory.memory_coefficients(loss, memory.heavy_ball_memory(0.5), 4)
    with pytest.raises(TypeError, match="memory_coefficients: `loss_fn`"):
        memory.memory_coefficients(0.5, memory.heavy_ball_memory(0.5))
    with pytest.raises(ValueError, match="slow_trace: `decay`"):
        memory.slow_trace(loss, memory.heavy_ball_memory(0.5), 1.5)
