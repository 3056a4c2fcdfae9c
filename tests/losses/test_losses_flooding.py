"""Flooding as a loss: exact values, the tie, higher derivatives, and agreement with the transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.losses import adaptive_level, flooded, flooded_with_log
from implicit_reg.transforms import flooding

floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def identity(x):
    return x


@jax.jit
def flood(value, level):
    return jax.value_and_grad(flooded(identity, level))(value)


@jax.jit
def transformed(value, level):
    tx = flooding(level)
    return tx.update(jnp.ones_like(value), tx.init(value), value, value=value)[0]


@given(floats, floats)
def test_value_and_sign_are_exact(value, level):
    value, level = np.float32(value), np.float32(level)
    flooded_value, grad = flood(value, level)
    assert flooded_value == (value if value > level else np.float32(2 * level - value))
    assert grad == np.sign(value - level) == transformed(value, level)


@given(floats)
def test_the_tie_is_a_rest(level):
    value, grad = flood(np.float32(level), np.float32(level))
    assert value == np.float32(level)
    assert grad == 0


@pytest.mark.parametrize("level", [-0.27, 0.0, 0.27])
def test_infinities_and_nan(level):
    value, grad = jax.vmap(flood, (0, None))(jnp.array([jnp.inf, -jnp.inf, jnp.nan]), level)
    np.testing.assert_array_equal(value, [np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(grad, [1, -1, np.nan])


def network(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2)


def problem(key, dtype=jnp.float32):
    def draw(i, *shape):
        return jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32).astype(dtype)

    w, b, v, x, y = draw(0, 3, 4), draw(1, 4), draw(2, 4), draw(3, 6, 3), draw(4, 6)
    return {"w": w, "b": b, "v": v}, x, y


def both_routes(loss_fn, params, level, compile):
    """The gradient of the wrapper, and the updates of the transformation."""

    def wrapped(params, level):
        return jax.grad(flooded(loss_fn, level))(params)

    def transformed(params, level):
        tx = flooding(level)
        value, grads = jax.value_and_grad(loss_fn)(params)
        return tx.update(grads, tx.init(params), params, value=value)[0]

    return compile(wrapped)(params, level), compile(transformed)(params, level)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_wrapper_and_transformation_agree_bitwise(key, dtype):
    params, x, y = problem(key, dtype)
    loss, plain = jax.value_and_grad(network)(params, x, y)
    for shift, sign in ((-0.1, 1), (0.1, -1), (0, 0)):
        level = loss.astype(jnp.float32) + shift
        routes = both_routes(lambda p: network(p, x, y), params, level, identity)
        for a, b, g in zip(*map(jax.tree.leaves, (*routes, plain)), strict=True):
            assert a.dtype == b.dtype == dtype
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, sign * g)


@pytest.mark.parametrize("compile", [identity, jax.jit], ids=["eager", "jit"])
def test_wrapper_and_transformation_agree_at_a_tie(compile):
    # Small integers: the loss is 14 whatever the order of the sum, compiled or not.
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    for level, sign in ((13.0, 1), (14.0, 0), (15.0, -1)):
        for route in both_routes(lambda p: jnp.sum(p["a"] ** 2) + p["b"] ** 2, params, level, compile):
            for g, p in zip(jax.tree.leaves(route), jax.tree.leaves(params), strict=True):
                np.testing.assert_array_equal(g, sign * 2 * p)


def test_compiled_programs_differ_by_round_off_alone(key):
    params, x, y = problem(key)
    a, b = both_routes(lambda p: network(p, x, y), params, network(params, x, y) + 0.1, jax.jit)
    assert_close(a, b, ROUND_OFF)


def test_nan_loss_gives_nan_everywhere(key):
    params, x, y = problem(key)
    grads = jax.grad(flooded(network, 0.1))(params, x.at[0, 0].set(jnp.nan), y)
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(grads))


def test_low_precision_is_compared_in_float32():
    # bf16(0.1) = 0.10009766 lies above 0.1, which bf16 cannot see.
    value = jnp.bfloat16(0.1)
    assert jax.grad(flooded(identity, 0.1))(value) == 1
    assert flooded(identity, 0.1)(value) == value
    assert flooded(identity, 0.2)(value).dtype == jnp.bfloat16


def test_off_is_the_loss_itself():
    assert flooded(network, None) is network
    assert flooded(identity, None, per_example=True)(jnp.array([1.0, 3.0])) == 2
    value, log = flooded_with_log(identity, None)(jnp.float32(2))
    assert value == log.raw == log.flooded == 2
    assert not log.below


def test_per_example_is_the_mean_of_floods():
    losses, levels = jnp.array([0.1, 0.5, 0.9, 0.2]), jnp.array([0.3, 0.3, 0.1, 0.2])
    value, grad = jax.value_and_grad(flooded(identity, levels, per_example=True))(losses)
    assert_close(value, jnp.mean(jnp.abs(losses - levels) + levels), ROUND_OFF)
    np.testing.assert_array_equal(grad, np.array([-1, 1, 1, 0], np.float32) / 4)
    # A scalar level is the same for every example, and the batch form differs.
    scalar = flooded(identity, 0.3, per_example=True)(losses)
    assert_close(scalar, jnp.mean(jnp.abs(losses - 0.3) + 0.3), ROUND_OFF)
    assert abs(scalar - flooded(lambda x: jnp.mean(x), 0.3)(losses)) > 0.05


def test_adaptive_levels_flood_each_example():
    losses, auxiliary = jnp.array([0.1, 2.0]), jnp.array([3.0, 0.1])
    levels = adaptive_level(auxiliary)
    grad = jax.grad(flooded(identity, levels, per_example=True))(losses)
    np.testing.assert_array_equal(grad, np.array([-0.5, 0.5], np.float32))


def test_the_level_can_be_trained():
    grad = jax.grad(lambda level, value: flooded(identity, level)(value))
    np.testing.assert_array_equal([grad(0.5, v) for v in (1.0, 0.2, 0.5)], [0, 2, 1])


@pytest.mark.parametrize("has_aux", [False, True])
def test_log_holds_raw_flooded_and_indicator(key, has_aux):
    params, x, y = problem(key)
    raw = network(params, x, y)
    loss = (lambda *args: (network(*args), {"x": x})) if has_aux else network
    (value, log), grads = jax.jit(jax.value_and_grad(flooded_with_log(loss, 2 * raw, has_aux=has_aux), has_aux=True))(
        params, x, y
    )
    assert value == log.flooded
    assert_close(log.raw, raw, ROUND_OFF)
    assert_close(value, 3 * raw, ROUND_OFF)
    assert log.below.dtype == bool
    assert log.below
    assert not flooded_with_log(network, raw / 2)(params, x, y)[1].below
    assert not flooded_with_log(network, raw)(params, x, y)[1].below
    assert (log.aux is not None) == has_aux
    if has_aux:
        np.testing.assert_array_equal(log.aux["x"], x)
    assert_close(grads, jax.tree.map(jnp.negative, jax.grad(network)(params, x, y)), ROUND_OFF)


def test_log_per_example():
    value, log = flooded_with_log(identity, 0.5, per_example=True)(jnp.array([0.25, 0.5, 1.0]))
    np.testing.assert_array_equal(log.below, [True, False, False])
    assert_close(log.raw, jnp.float32(1.75 / 3), ROUND_OFF)
    assert_close(value, jnp.float32((0.75 + 0.5 + 1.0) / 3), ROUND_OFF)


def test_aux_and_keyword_arguments_pass_through():
    def loss(x, y, *, scale):
        return x * y * scale, "aux"

    value, aux = flooded(loss, 100.0, has_aux=True)(2.0, 3.0, scale=4.0)
    assert (value, aux) == (176, "aux")


@pytest.mark.x64
@pytest.mark.parametrize(("shift", "sign"), [(-0.1, 1), (0.1, -1)])
def test_higher_derivatives(key, shift, sign):
    params, x, y = problem(key, jnp.float64)
    loss = flooded(network, network(params, x, y) + shift)
    v = jax.tree.map(jnp.cos, params)

    def second(f):
        hessian = jax.hessian(lambda b: f(dict(params, b=b), x, y))(params["b"])
        return jax.jvp(jax.grad(lambda p: f(p, x, y)), (params,), (v,))[1], hessian

    signed = jax.tree.map(lambda z: sign * z, jax.jit(lambda: second(network))())
    assert_close(jax.jit(lambda: second(loss))(), signed, DERIVATIVE)


@pytest.mark.x64
def test_second_derivatives_vanish_at_a_tie():
    loss = flooded(lambda x: jnp.sum(x**2), 5.0)
    np.testing.assert_array_equal(jax.hessian(loss)(jnp.array([1.0, 2.0])), np.zeros((2, 2)))


def test_vmap_over_levels_and_ensembles():
    value, grad = jax.vmap(flood)(jnp.array([0.25, 1.0, 0.5]), jnp.array([0.5, 0.5, 0.5]))
    np.testing.assert_array_equal(value, [0.75, 1.0, 0.5])
    np.testing.assert_array_equal(grad, [-1, 1, 0])


def test_descent_stays_at_the_level(key):
    params, x, y = problem(key)
    level = network(params, x, y) / 2
    tx = optax.sgd(0.02)

    def step(carry, _):
        params, state = carry
        (_, log), grads = jax.value_and_grad(flooded_with_log(network, level), has_aux=True)(params, x, y)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), (log.raw, log.below)

    _, (raw, below) = jax.lax.scan(step, (params, tx.init(params)), None, length=400)
    late = np.asarray(raw[200:])
    one_step = float(np.max(np.abs(np.diff(raw[200:]))))
    assert np.all(np.abs(late - level) <= one_step)
    assert 0.3 < np.mean(below[200:]) < 0.7
