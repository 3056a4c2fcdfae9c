"""Another step size, level, strength, seed or start is the same program: nothing is traced or compiled again."""

from __future__ import annotations

import contextlib
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import implicit_reg as ir
from implicit_reg import curvature, flows, transforms
from implicit_reg.experiments import run_steps, sweep
from implicit_reg.methods import METHODS
from implicit_reg.training.program import Knobs, Program, to_arrays

START = {"a": jnp.array([0.3, -0.2]), "b": jnp.array(0.5)}
OTHER = jax.tree.map(lambda leaf: 2 * leaf, START)


class Counted:
    """A loss that counts how often Python runs it; `weight` scales it, as data would."""

    def __init__(self) -> None:
        self.traces = 0

    def __call__(self, params, weight=1.0):
        self.traces += 1
        leaves = [jnp.sum(jnp.cosh(leaf)) for leaf in jax.tree.leaves(params)]
        return weight * (functools.reduce(jnp.add, leaves) + leaves[0] * leaves[-1])


@contextlib.contextmanager
def counted(loss: Counted, *, traces: int = 0, compilations: int = 0):
    """What is traced and compiled inside must be at most as said; JAX's own log of its compilations is read."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger, before = logging.getLogger("jax._src.dispatch"), loss.traces
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield
    finally:
        logger.removeHandler(handler)
    assert loss.traces - before <= traces
    compiled = [line for line in seen if "XLA compilation" in line]
    assert len(compiled) <= compilations, compiled


def test_the_count_sees_what_it_is_to_see():
    loss = Counted()
    for changed in ({"traces": 1}, {"compilations": 9}):
        with pytest.raises(AssertionError), counted(loss, **changed):
            jax.jit(lambda p: loss(p))(START)


def momentum(rate):
    return optax.sgd(rate, momentum=0.5)


@pytest.mark.parametrize("method", [momentum, lambda h: transforms.backstitch(optax.adam(h), 0.3)])
def test_descend(method):
    loss = Counted()
    run = lambda h, start: ir.descend(method, loss, start, h, 6, every=2)  # noqa: E731
    first = run(0.1, START)
    with counted(loss):
        second = run(0.05, OTHER)
        run(np.float64(0.025), START)
        run(np.float32(0.0125), START)
    assert not np.allclose(first.params["a"][-1], second.params["a"][-1])
    for other in (1, jnp.asarray(0.1)):  # an integer, an array: one more program each, none by value
        run(other, START)
    with counted(loss):
        run(2, START)
        run(jnp.asarray(0.2), OTHER)


def test_fields_and_integrate():
    loss = Counted()
    make = {
        "exact": lambda: ir.modified_vector_field(ir.update_map(optax.sgd, loss), 2),
        "interpolated": lambda: ir.interpolated_vector_field(ir.update_map(optax.sgd, loss), 3),
    }
    for field in make.values():
        ir.integrate(field(), START, [0.0, 0.5], 0.1)
        with counted(loss):  # made anew, it is an equal field
            ir.integrate(field(), OTHER, [0.0, 0.7], 0.05)
            ir.integrate(field(), START, np.array([0.1, 0.5]), np.float64(0.025))
        ir.integrate(field(), START, [0.0, 0.5], 1)
        with counted(loss):
            ir.integrate(field(), START, [0.0, 0.5], 2)


def test_fields_inside_jit():
    loss = Counted()
    for field in (
        ir.modified_vector_field(ir.update_map(optax.sgd, loss), 3),
        ir.interpolated_vector_field(ir.update_map(optax.sgd, loss), 4),
    ):
        compiled = jax.jit(field)
        compiled(0.0, START, 0.1)
        with counted(loss):
            compiled(0.5, OTHER, 0.05)


def test_levels_of_the_floods_flows():
    loss = Counted()
    losses = lambda x: jnp.stack([loss({"a": x, "b": s}) for s in (0.0, 0.5)])  # noqa: E731

    @jax.jit
    def slides(x, h, level, decay):
        on_level = flows.project_to_levels(losses, x, level)
        return flows.level_set_terms(lambda x: loss({"a": x, "b": 0.1}), on_level, h, decay)

    slides(jnp.array([0.5, 1.0]), 0.1, 5.0, 0.0)
    with counted(loss):
        slides(jnp.array([0.6, 1.1]), 0.05, 6.0, 0.5)


@pytest.mark.parametrize("name", METHODS)
def test_traced_hyperparameters(name):
    loss, row = Counted(), METHODS[name]

    @jax.jit
    def step(params, rate, hyper):
        tx = optax.with_extra_args_support(row.build(momentum, rate, **hyper))
        value, grad = jax.value_and_grad(loss)(params)
        return tx.update(grad, tx.init(params), params, value=value, grad=grad, value_fn=loss)[0]

    hyper = dict(row.hyperparameters)
    first = step(START, 0.1, hyper)
    with counted(loss):
        second = step(START, 0.2, {k: v + 1 if isinstance(v, int) else 2 * v for k, v in hyper.items()})
    assert not np.allclose(first["a"], second["a"])


def test_injected_hyperparameters():
    loss = Counted()
    make = optax.inject_hyperparams(
        lambda alpha, level, rate: transforms.backstitch(optax.chain(transforms.flooding(level), momentum(rate)), alpha)
    )

    @jax.jit
    def step(tx_state, params):
        value, grad = jax.value_and_grad(loss)(params)
        tx = make(alpha=lambda count: 0.3 / (1 + count), level=1.0, rate=0.1)
        updates, tx_state = tx.update(grad, tx_state, params, value=value, grad=grad, value_fn=loss)
        return tx_state, optax.apply_updates(params, updates)

    state, params = make(alpha=lambda count: 0.3 / (1 + count), level=1.0, rate=0.1).init(START), START
    for _ in range(2):  # Optax's own first state holds the numbers as Python's, its second one as arrays
        state, params = step(state, params)
    2 * state.hyperparams["rate"]  # a program of its own
    with counted(loss):
        state.hyperparams.update({name: 2 * state.hyperparams[name] for name in ("level", "rate")})
        for _ in range(3):
            state, params = step(state, params)


def test_eigenvalues():
    loss = Counted()

    def pairs(params, weight, seed):
        operator = curvature.hessian_operator(loss, params, (weight,))
        key = jax.random.key(seed)
        curvature.extreme_eigenvalues(operator, num_steps=3, key=key)
        curvature.largest_eigenpairs(operator, 1, key=key)
        curvature.sharpness(loss, params, (weight,), num_steps=3, key=key)

    pairs(START, jnp.asarray(1.0), 0)
    with counted(loss):
        pairs(OTHER, jnp.asarray(2.0), 1)


def test_a_sweep_traces_once_whatever_its_values_are_and_however_many():
    counts = []
    for runs in (3, 9):
        loss = Counted()

        def fn(key, h, level, loss=loss):
            tx = optax.chain(transforms.flooding(level), optax.sgd(h))
            start = {"a": jax.random.normal(key, (2,)), "b": jnp.asarray(0.0)}
            return run_steps(tx, lambda p: loss(p), start, None, 4, every=4, observe=lambda p, _: p["a"]).observed

        axes = {"h": np.linspace(0.01, 0.1, runs), "level": [0.5, 3.0], "seed": range(2)}
        sweep(fn, axes, key=jax.random.key(0), width=4)
        counts.append(loss.traces)
    assert counts[0] == counts[1]


def test_the_training_loop():
    from implicit_reg.problems import build_model, load_dataset

    data, loss = load_dataset("wine"), Counted()

    def method(rate, hyper, key):
        loss.traces += 1
        return METHODS["gradient-penalty"].build(momentum, rate, **hyper)

    program = Program(
        build_model=lambda rngs: build_model("mlp", data, widths=[3], rngs=rngs),
        build_method=method,
        shape=None,
        task="classification",
        num_examples=106,
        batch_size=53,
    )
    arrays = to_arrays(data, jnp.float32)
    init, epoch = jax.jit(program.init), jax.jit(program.epoch)

    def train(seed, rate, strength, epochs):
        knobs = Knobs(jnp.float32(rate), {"strength": jnp.float32(strength)}, jnp.int32(2))
        state = init(jax.random.key(seed), knobs)
        for _ in range(epochs):
            state, record = epoch(state, arrays, knobs, program.order(state.key, state.epoch))
        return record

    first = train(0, 0.1, 0.01, 1)
    with counted(loss):
        second = train(1, 0.2, 0.02, 3)
    assert float(first["train_loss"]) != float(second["train_loss"])
