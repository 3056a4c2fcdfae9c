"""Backstitch around any optimizer, the identities between the methods, alternation, noise, and the helpers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, STATISTICAL, assert_close
from transformation_cases import loss_fn, make_params, run, stepper

import implicit_reg.transforms as tr

GRADS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}


# --- backstitch


def half_steps(base, alpha, params, states, loss=loss_fn):
    """x1 = x - alpha u(x), then x1 + (1 + alpha) u(x1), the base's state from the second half-step."""
    first, _ = base.update(jax.grad(loss)(params), states, params)
    moved = jax.tree.map(lambda p, u: p - alpha * u, params, first)
    second, states = base.update(jax.grad(loss)(moved), states, moved)
    return jax.tree.map(lambda p, u: p + (1 + alpha) * u, moved, second), states


@pytest.mark.parametrize(
    "base",
    [
        optax.sgd(0.05, momentum=0.9),
        optax.adamw(0.05, weight_decay=0.3),
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05)),
        optax.sgd(optax.linear_schedule(0.1, 0.01, 3)),
    ],
    ids=["momentum", "adamw", "clip", "schedule"],
)
def test_backstitch_around_any_optimizer(base):
    """The state advances once, from the moved point; weight decay and clipping act in both half-steps."""
    params = make_params()
    final, state = run(tr.backstitch(base, 0.4), params, steps=3)
    states = base.init(params)
    for _ in range(3):
        params, states = half_steps(base, 0.4, params, states)
    assert_close(final, params, DERIVATIVE)
    assert_close(
        [x for x in jax.tree.leaves(state.optimizer_state) if jnp.issubdtype(x.dtype, jnp.floating)],
        [x for x in jax.tree.leaves(states) if jnp.issubdtype(x.dtype, jnp.floating)],
        DERIVATIVE,
    )


def test_backstitch_hands_the_base_the_value_and_gradient_of_where_it_is():
    seen = []

    def update(updates, state, params, *, value, grad, value_fn, batch):
        seen.append((params, updates, value, grad, value_fn, batch))
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    tx = tr.backstitch(optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update), 0.4)
    params = make_params()
    stepper(tx, batch="b")(params, tx.init(params))
    moved = jax.tree.map(lambda p, g: p + 0.4 * 0.1 * g, params, jax.grad(loss_fn)(params))
    for (at, updates, value, grad, value_fn, batch), where in zip(seen, (params, moved), strict=True):
        assert_close(at, where, ROUND_OFF)
        assert_close(value, loss_fn(where), ROUND_OFF)
        assert_close(updates, jax.grad(loss_fn)(where), DERIVATIVE)
        assert_close(grad, jax.grad(loss_fn)(where), DERIVATIVE)
        assert value_fn is loss_fn
        assert batch == "b"


def test_backstitch_of_zero_is_the_base_bit_for_bit():
    base, params = optax.adam(0.05), make_params()
    tx = tr.backstitch(base, 0.0)
    grads = jax.grad(loss_fn)(params)
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=lambda p: pytest.fail("evaluated"))
    plain, _ = base.update(grads, base.init(params), params)
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(x, y)
    traced = jax.jit(
        lambda alpha: tr.backstitch(base, alpha).update(grads, tx.init(params), params, value_fn=loss_fn)[0]
    )
    assert_close(traced(0.0), plain, ROUND_OFF)


@pytest.mark.parametrize(("interval", "offset"), [(2, 0), (3, 2), (3, 5)])
def test_backstitch_spends_the_second_gradient_only_in_its_turn(interval, offset):
    """As in Kaldi: where the count is the offset modulo the interval."""
    evaluations = []

    def loss(params):
        jax.debug.callback(lambda: evaluations.append(1))
        return loss_fn(params)

    tx, params = tr.backstitch(optax.sgd(0.01), 0.4, interval=interval, offset=offset), make_params()
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss))
    state, spent = tx.init(params), []
    for _ in range(6):
        _, state = step(params, state, params)
        jax.effects_barrier()
        spent.append(len(evaluations))
        evaluations.clear()
    assert spent == [int(count % interval == offset % interval) for count in range(6)]


def test_backstitch_keeps_a_typed_key_in_the_state_of_its_base():
    base = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(1)), optax.sgd(0.1))
    tx = tr.backstitch(base, 0.4, interval=2, offset=1)
    params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), make_params())
    states = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(stepper(tx)))
    for _ in range(2):
        params, states = step(params, states)
    key = optax.tree.get(states, "rng_key")
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    twice = jax.random.split(jax.random.split(jax.random.key(1))[0])[0]
    assert jnp.all(jax.random.key_data(key) == jax.random.key_data(twice))


# --- the identities


def test_backstitch_is_a_finite_difference_penalty_and_a_pair_of_signed_steps():
    params, alpha, h = make_params(), 0.4, 0.05
    stitched, _ = run(tr.backstitch(optax.sgd(h), alpha), params, steps=3)
    penalty = tr.add_finite_difference_penalty(alpha * (1 + alpha) * h / 2, alpha * h)
    differenced, _ = run(optax.chain(penalty, optax.sgd(h)), params, steps=3)
    twice, _ = run(optax.sgd(tr.alternating(-alpha * h, -(1 + alpha) * h)), params, steps=6)
    assert_close(stitched, twice, ROUND_OFF)
    assert_close(stitched, differenced, DERIVATIVE)


def test_equal_rates_are_the_pair_of_flooding():
    """A level between the losses of the two points: down, then up."""
    params, h = make_params(), 0.01
    below = run(optax.sgd(h), params, steps=1)[0]
    level = (loss_fn(params) + loss_fn(below)) / 2
    flooded, state = run(optax.chain(tr.flooding(level), optax.sgd(h)), params, steps=2)
    assert_close(flooded, run(optax.sgd(tr.alternating(h, h)), params, steps=2)[0], ROUND_OFF)
    assert float(tr.flooded_fraction(state)) == 0.5


def test_a_displacement_of_twice_the_strength_is_unnormalized_sam():
    params = make_params()
    one, _ = run(optax.chain(tr.add_finite_difference_penalty(0.1, 0.2), optax.sgd(0.05)), params, steps=2)
    other, _ = run(optax.chain(tr.sam(0.2, normalize=False), optax.sgd(0.05)), params, steps=2)
    assert_close(one, other, ROUND_OFF)


# --- alternation and noise


def test_alternating_takes_schedules_and_negative_rates():
    schedule = tr.alternating(optax.linear_schedule(1.0, 0.0, 4), -0.3)
    np.testing.assert_allclose(
        [float(schedule(c)) for c in range(5)], [1.0, 0.3, 0.5, 0.3, 0.0], rtol=ROUND_OFF.float32
    )
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(2)), [1.0, 0.3], rtol=ROUND_OFF.float32)
    derivative = jax.grad(lambda h: tr.alternating(h, 0.5 * h)(jnp.int32(1)))(0.1)
    assert float(derivative) == -0.5


def test_alternating_leaves_bfloat16_alone():
    params = make_params(jnp.bfloat16)
    final, _ = run(optax.sgd(tr.alternating(np.float32(0.1), jnp.float32(0.1))), params, steps=2)
    assert {x.dtype for x in jax.tree.leaves(final)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    "key",
    [7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7)],
    ids=["seed", "numpy", "typed", "raw"],
)
def test_noise_is_optax_s(key):
    ours, theirs = tr.add_decaying_noise(0.3, 0.275, key), optax.add_noise(0.09, 0.55, jax.random.key(7))
    a, b = ours.init(GRADS), theirs.init(GRADS)
    for _ in range(2):
        x, a = ours.update(GRADS, a, GRADS, value=1.0)
        y, b = theirs.update(GRADS, b, GRADS)
        assert_close(x, y, ROUND_OFF)


def test_noise_has_the_standard_deviation_of_its_name(key):
    """c/(1 + t)^r; the variance of n draws has the relative error sqrt(2/n)."""
    n, zeros = 20_000, jnp.zeros(20_000)
    tx = tr.add_decaying_noise(0.3, 0.7, key)
    state = tx.init(zeros)
    for t in range(3):
        noise, state = tx.update(zeros, state)
        ratio = float(jnp.mean(noise**2)) / (0.3 / (1 + t) ** 0.7) ** 2
        assert abs(ratio - 1) < STATISTICAL * np.sqrt(2 / n)


def test_noise_of_zero_is_nothing_and_still_moves_the_key():
    tx = tr.add_decaying_noise(0.0, 0.5, 7)
    updates, state = tx.update(GRADS, tx.init(GRADS))
    assert all(np.all(x == y) for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(GRADS), strict=True))
    other = tr.add_decaying_noise(1.0, 0.5, 7)
    _, later = other.update(GRADS, other.init(GRADS))
    assert jnp.all(jax.random.key_data(state.rng_key) == jax.random.key_data(later.rng_key))


# --- updates wider than the parameters


@pytest.mark.parametrize(
    "tx",
    [
        tr.add_gradient_penalty(0.2),
        tr.add_finite_difference_penalty(0.2, 0.5),
        tr.sam(0.3),
        tr.backstitch(optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.float32), 0.4),
        tr.backstitch(optax.adam(0.1, mu_dtype=jnp.float32), 0.4, interval=2),
    ],
    ids=["penalty", "difference", "sam", "backstitch", "interval"],
)
def test_float32_gradients_of_bfloat16_parameters_stay_float32(tx):
    params = make_params(jnp.bfloat16)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), jax.grad(loss_fn)(params))
    state = tx.init(params)
    updates, after = jax.jit(lambda g, s, p: tx.update(g, s, p, value_fn=loss_fn))(grads, state, params)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    assert jax.tree.structure(after) == jax.tree.structure(state)


# --- filling


def test_fill_masked_lets_whole_trees_through_and_fills_subtrees():
    params = {"a": {"w": jnp.ones(2), "b": jnp.zeros(1)}, "c": jnp.array(2.0)}
    seen = []
    filled = tr.fill_masked(lambda p: seen.append(p) or jnp.zeros(()), params)
    filled(params)
    filled({"a": optax.MaskedNode(), "c": jnp.array(5.0)})
    assert_close(seen, [params, {**params, "c": jnp.array(5.0)}], ROUND_OFF)


def test_lists_of_floats_are_parameters():
    tx = optax.chain(tr.add_gradient_penalty(0.5), optax.sgd(1.0))
    x = [1.0, 2.0]

    def loss(x):
        return (x[0] ** 3 + x[1] ** 3) / 3

    updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
    assert_close(
        updates,
        [jnp.float32(-3.0), jnp.float32(-20.0)],
        ROUND_OFF,
    )
