"""Hyperparameters that are not Python numbers: injected, scheduled, mapped over, differentiated, in any dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close
from transformation_cases import loss_fn, make_params, run, stepper

import implicit_reg.transforms as tr

SGD = optax.sgd(0.05)
# name -> (constructor, the hyperparameter by name, the other arguments, a value)
FAMILIES = {
    "flooding": (tr.flooding, "level", {}, 7.0),
    "penalty": (tr.add_gradient_penalty, "strength", {}, 0.2),
    "difference-strength": (tr.add_finite_difference_penalty, "strength", {"displacement": 0.5}, 0.2),
    "difference-displacement": (tr.add_finite_difference_penalty, "displacement", {"strength": 0.2}, 0.5),
    "sam": (tr.sam, "radius", {}, 0.3),
    "unnormalized-sam": (tr.sam, "radius", {"normalize": False}, 0.3),
    "backstitch": (tr.backstitch, "alpha", {"optimizer": SGD}, 0.4),
    "interval": (tr.backstitch, "alpha", {"optimizer": SGD, "interval": 2, "offset": 1}, 0.4),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def on_sgd(name, transformation):
    return transformation if FAMILIES[name][0] is tr.backstitch else optax.chain(transformation, SGD)


def build(name, value):
    factory, argument, others, _ = FAMILIES[name]
    return on_sgd(name, factory(**others, **{argument: value}))


@every_family
def test_injected_constants_and_schedules(name):
    factory, argument, others, value = FAMILIES[name]
    params = make_params()
    constant = optax.inject_hyperparams(factory)(**others, **{argument: value})
    final, state = run(on_sgd(name, constant), params, steps=2)
    assert_close(final, run(build(name, value), params, steps=2)[0], ROUND_OFF)
    assert float(optax.tree.get(state, argument)) == np.float32(value)

    schedule = optax.linear_schedule(value, 3 * value, 1)
    scheduled = optax.inject_hyperparams(factory)(**others, **{argument: schedule})
    final, _ = run(on_sgd(name, scheduled), params, steps=2)
    state = build(name, value).init(params)
    step = jax.jit(lambda now, params, state: stepper(build(name, now))(params, state))
    for now in (value, 3 * value):
        params, state = step(now, params, state)
    assert_close(final, params, DERIVATIVE)


@every_family
def test_a_map_over_the_hyperparameter_is_one_run_for_each(name):
    value, params = FAMILIES[name][3], make_params()
    values = jnp.array([0.5 * value, value, 2 * value])

    def final(v):
        return run(build(name, v), params, steps=2, wrap=lambda step: step)[0]

    finals = jax.jit(jax.vmap(final))(values)
    one = jax.jit(final)
    for lane, v in enumerate(values):
        assert_close(jax.tree.map(lambda x: x[lane], finals), one(v), DERIVATIVE)


@every_family
def test_a_sweep_sees_its_hyperparameter(name):
    """Every option changes the result: the derivative by it is not zero (the level acts by its sign alone)."""
    value = FAMILIES[name][3]
    derivative = jax.jit(jax.jacfwd(lambda v: run(build(name, v), make_params(), 2, wrap=lambda step: step)[0]))(value)
    moved = sum(float(jnp.sum(jnp.abs(d))) for d in jax.tree.leaves(derivative))
    assert np.isfinite(moved)
    assert (moved == 0) == (name == "flooding")


@every_family
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64], ids=str)
def test_strict_promotion_and_strongly_typed_hyperparameters(name, dtype):
    """Our own arithmetic mixes no dtypes: alone, on leaves of any dtype, by a number of any type."""
    factory, argument, others, value = FAMILIES[name]
    others = {**others, **({"optimizer": tr.sam(0.1)} if "optimizer" in others else {})}
    x = jnp.array([0.5, -0.3], dtype)

    def loss(x):
        return jnp.sum(jnp.abs(jnp.tanh(x)) ** 2)

    with jax.numpy_dtype_promotion("strict"):
        level, grads = jax.value_and_grad(loss)(x)
        for typed in (value, np.float64(value), np.float32(value), jnp.float32(value), jnp.bfloat16(value)):
            tx = factory(**others, **{argument: typed})
            updates, _ = jax.eval_shape(
                lambda g, s, x: tx.update(g, s, x, value=level, value_fn=loss), grads, tx.init(x), x
            )
            assert updates.dtype == dtype


def test_alternating_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        schedule = tr.alternating(jnp.bfloat16(0.5), optax.constant_schedule(jnp.float32(0.25)))
        assert [float(schedule(jnp.int32(count))) for count in range(2)] == [0.5, -0.25]


def test_an_injected_mask_is_named_static():
    params = make_params()
    mask = lambda p: {"b": False, "w": True}  # noqa: E731
    injected = optax.inject_hyperparams(tr.add_gradient_penalty, static_args="mask")(0.2, mask=mask)
    plain = tr.add_gradient_penalty(0.2, mask=mask)
    for steps in (1, 2):
        one, other = (run(optax.chain(tx, SGD), params, steps)[0] for tx in (injected, plain))
        assert_close(one, other, ROUND_OFF)


def test_injected_noise():
    injected = optax.inject_hyperparams(tr.add_decaying_noise)(c=0.1, r=0.5, key=3)
    typed = optax.inject_hyperparams(tr.add_decaying_noise, static_args="key")(c=0.1, r=0.5, key=jax.random.key(3))
    wanted, _ = run(optax.chain(tr.add_decaying_noise(0.1, 0.5, 3), SGD), make_params(), 2)
    for tx in (injected, typed):
        assert_close(run(optax.chain(tx, SGD), make_params(), 2)[0], wanted, ROUND_OFF)


def test_injected_rates_alternate():
    injected = optax.inject_hyperparams(optax.sgd)(tr.alternating(0.05, optax.constant_schedule(0.02)))
    wanted, _ = run(optax.sgd(tr.alternating(0.05, 0.02)), make_params(), 3)
    assert_close(run(injected, make_params(), 3)[0], wanted, ROUND_OFF)


def test_the_loss_of_these_runs_moves():
    assert float(loss_fn(make_params())) > float(loss_fn(run(build("penalty", 0.2), make_params(), 2)[0]))
