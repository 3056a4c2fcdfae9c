"""Every transformation through every container that Optax offers for its own, with the values that must come out."""

from __future__ import annotations

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tolerances import DERIVATIVE, ROUND_OFF, assert_close
from transformation_cases import (
    CASES,
    STEPS,
    TARGETS,
    H,
    by_name,
    expected,
    holds_its_optimizer,
    loss_fn,
    make_params,
    run,
    stepper,
)

import implicit_reg.transforms as tr

COARSE = 30 * float(jnp.finfo(jnp.bfloat16).eps)  # two steps of a network in eight bits: some thirty roundings
every_case = pytest.mark.parametrize("case", CASES, ids=by_name)
cases_with_extras = pytest.mark.parametrize("case", [c for c in CASES if c.needs], ids=by_name)


@pytest.fixture(scope="module")
def reference():
    """The plain jitted run of each case, made once: what a container must reproduce."""
    made = {}

    def get(case):
        if case.name not in made:
            made[case.name] = run(case.at(H), make_params())[0]
        return made[case.name]

    return get


@every_case
def test_iterates_are_the_formula_s(case, reference):
    assert_close(reference(case), expected(case, make_params()), DERIVATIVE)


@every_case
def test_eager_is_jit(case, reference):
    assert_close(run(case.at(H), make_params(), wrap=lambda step: step)[0], reference(case), ROUND_OFF)


@every_case
def test_chains(case, reference):
    inside = optax.chain(optax.identity(), case.at(H), optax.scale(1.0))
    tx = optax.named_chain(("first", optax.identity()), ("ours", inside))
    assert_close(run(tx, make_params())[0], reference(case), ROUND_OFF)


@every_case
def test_scan_and_donated_buffers(case, reference):
    tx = case.at(H)
    step = stepper(tx)

    def scanned(params, state):
        return jax.lax.scan(lambda carry, _: (step(*carry), None), (params, state), length=STEPS)[0]

    # a donated buffer must not be one that the caller still holds, here or in the constants of the module
    params, state = jax.tree.map(jnp.copy, (make_params(), tx.init(make_params())))
    final, state = jax.jit(scanned, donate_argnums=(0, 1))(params, state)
    assert_close(final, reference(case), ROUND_OFF)


@every_case
def test_vmapped_lanes_are_single_runs(case):
    tx = case.at(H)
    members = [make_params(), jax.tree.map(lambda x: 0.5 * x, make_params())]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
    states = jax.vmap(tx.init)(stacked)
    step = jax.jit(jax.vmap(stepper(tx)))
    for _ in range(STEPS):
        stacked, states = step(stacked, states)
    for lane, member in enumerate(members):
        assert_close(jax.tree.map(lambda x: x[lane], stacked), expected(case, member), DERIVATIVE)


@every_case
def test_apply_if_finite(case, reference):
    tx = optax.apply_if_finite(case.at(H), 3)
    assert_close(run(tx, make_params())[0], reference(case), ROUND_OFF)
    params, bad = make_params(), jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), make_params())
    state = tx.init(params)
    updates, after = tx.update(bad, state, params, value=loss_fn(params), grad=bad, value_fn=loss_fn)
    assert all(bool(jnp.all(u == 0)) for u in jax.tree.leaves(updates))
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)


@every_case
def test_conditionally_mask(case):
    tx = optax.conditionally_mask(case.at(H), lambda step: step % 2 == 0)
    # masked steps neither move the parameters nor count
    assert_close(run(tx, make_params(), steps=3)[0], expected(case, make_params(), steps=2), DERIVATIVE)


@cases_with_extras
def test_masked_leaves_the_others_alone(case):
    """The block sees a loss with the other block held fixed; the other block is not moved at all."""
    tx = optax.chain(
        optax.masked(case.at(H), {"b": False, "w": True}), optax.masked(optax.set_to_zero(), {"b": True, "w": False})
    )

    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        value_fn = tr.fill_masked(loss_fn, params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step)
    params, state = make_params(), tx.init(make_params())
    for _ in range(2):
        params, state = step(params, state)
    block = expected(case, {"w": make_params()["w"]}, 2, lambda p: loss_fn({"b": make_params()["b"], **p}))
    assert_close(params, {"b": make_params()["b"], **block}, DERIVATIVE)


@cases_with_extras
def test_partition_is_block_wise(case):
    """Each block moves as if it were alone: no mixed second derivative."""
    tx = optax.partition({"w": case.at(H), "b": case.at(H)}, {"b": "b", "w": "w"})
    params = make_params()
    value, grads = jax.value_and_grad(loss_fn)(params)
    extras = {"value": value, "grad": grads, "value_fn": tr.fill_masked(loss_fn, params)}
    updates, _ = jax.jit(lambda g, s, p: tx.update(g, s, p, **extras))(grads, tx.init(params), params)
    one, other = (expected(case, {k: params[k]}, 1, lambda p, k=k: loss_fn({**params, **p})) for k in ("b", "w"))
    assert_close(optax.apply_updates(params, updates), {**one, **other}, DERIVATIVE)


@pytest.mark.parametrize("case", [c for c in CASES if c.needs and not holds_its_optimizer(c)], ids=by_name)
def test_accumulation_behind(case):
    """`chain(T, MultiSteps(sgd))` moves once, by the mean of what T made of each minibatch."""
    whole = case.at(H)
    alone = case.at(-1.0)  # the transformation alone: gradient descent with step -1 hands on what it gets
    tx = optax.chain(alone, optax.MultiSteps(optax.sgd(H), 2).gradient_transformation())
    params, state = make_params(), tx.init(make_params())
    moves = []
    for shift in (0.0, 0.5):

        def loss(params, shift=shift):
            return loss_fn(params, shift)

        after, state = jax.jit(stepper(tx, loss))(params, state)
        once, _ = jax.jit(stepper(whole, loss))(params, whole.init(params))
        moves.append(jax.tree.map(jnp.subtract, once, params))
    mean = jax.tree.map(lambda p, a, b: p + (a + b) / 2, params, *moves)
    assert_close(after, mean, ROUND_OFF)


@every_case
def test_before_a_line_search(case):
    """A search that accepts every step hands ours on; one that may not grow it only shortens it."""
    # slope_rtol -> any step decreases enough; so the first trial, of length 1, is taken
    taken = optax.chain(case.at(H), optax.scale_by_backtracking_linesearch(1, slope_rtol=-1e6, max_learning_rate=1.0))
    once = run(case.at(H), make_params(), steps=1)[0]
    assert_close(run(taken, make_params(), steps=1)[0], once, ROUND_OFF)

    tx = optax.chain(case.at(H), optax.scale_by_backtracking_linesearch(20))
    after, state = run(tx, make_params(), steps=1)
    length = optax.tree.get(state, "learning_rate")
    along = jax.tree.map(lambda p, q: p + length * (q - p), make_params(), once)
    assert_close(after, along, ROUND_OFF)


@every_case
def test_sharded_arrays(case, reference):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())
    inputs = jax.device_put(jnp.tile(jnp.arange(8.0)[:, None], (1, 2)), split)
    rows = NamedSharding(mesh, PartitionSpec(None, "batch"))
    params = {"b": jnp.ones(3), "w": jnp.linspace(-1.0, 1.0, 16).reshape(2, 8)}

    def loss(params, inputs):
        hidden = jnp.tanh(inputs @ params["w"])
        return jnp.mean((jnp.sum(hidden, 1) - jnp.sum(params["b"] ** 2)) ** 2)

    tx = case.at(0.01)

    def train(params, inputs):
        return run(tx, params, 2, lambda p: loss(p, inputs), wrap=lambda step: step)[0]

    placed = {"b": jax.device_put(params["b"], whole), "w": jax.device_put(params["w"], rows)}
    sharded = jax.jit(train, out_shardings={"b": whole, "w": rows})(placed, inputs)
    assert sharded["w"].sharding == rows
    assert len(sharded["w"].addressable_shards) == 8
    here = jax.devices()[0]
    single = jax.jit(train)(jax.device_put(params, here), jax.device_put(np.asarray(inputs), here))
    assert_close(jax.device_get(sharded), jax.device_get(single), ROUND_OFF)


@every_case
def test_flax_optimizer(case, reference):
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(make_params()["w"])
            self.b = nnx.Param(make_params()["b"])

        def as_dict(self):
            return {"b": self.b[...], "w": self.w[...]}

    model = Model()
    optimizer = nnx.Optimizer(model, case.at(H), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        split = tr.nnx_value_fn(model, lambda m: loss_fn(m.as_dict()))
        value, grads = jax.value_and_grad(split.value_fn)(split.params)
        optimizer.update(model, grads, value=value, value_fn=split.value_fn)

    for _ in range(STEPS):
        step(model, optimizer)
    assert_close(model.as_dict(), reference(case), ROUND_OFF)
    if case.name.startswith("flooding"):
        fraction = tr.flooded_fraction(run(case.at(H), make_params())[1])
        assert float(tr.flooded_fraction(optimizer.opt_state)) == float(fraction)


class Network(eqx.Module):
    w: jax.Array
    b: jax.Array
    activation: object
    size: int


@every_case
def test_equinox_tree_with_none_leaves(case, reference):
    whole = Network(make_params()["w"], make_params()["b"], jnp.tanh, 3)
    params, static = eqx.partition(whole, eqx.is_inexact_array)

    def loss(params):
        model = eqx.combine(params, static)
        return loss_fn({"w": model.w, "b": model.b})

    final, _ = run(case.at(H), params, loss=loss)
    assert final.activation is None
    assert_close({"b": final.b, "w": final.w}, reference(case), ROUND_OFF)


@every_case
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, "mixed"], ids=["bf16", "f16", "mixed"])
def test_leaves_keep_their_dtypes(case, dtype):
    params = make_params() if dtype == "mixed" else make_params(dtype)
    if dtype == "mixed":
        params["b"] = params["b"].astype(jnp.bfloat16)

    def loss(p):
        return loss_fn({"b": p["b"].astype(p["w"].dtype), "w": p["w"]})

    final, state = run(case.at(H), params, 2, loss)
    chex.assert_trees_all_equal_shapes_and_dtypes(final, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, case.at(H).init(params))
    exact = expected(case, make_params(), 2)
    for x, y in zip(jax.tree.leaves(final), jax.tree.leaves(exact), strict=True):
        bound = COARSE * float(jnp.max(jnp.abs(y)))
        np.testing.assert_allclose(x.astype(jnp.float32), y, rtol=0, atol=bound)


@pytest.mark.x64
@every_case
def test_float64(case):
    params = make_params(jnp.float64)
    final, _ = run(case.at(H), params)
    chex.assert_trees_all_equal_dtypes(final, params)
    assert_close(final, expected(case, params), DERIVATIVE)


@every_case
def test_complex_leaves_are_pairs_of_real_ones(case):
    """Optax's convention: a complex parameter moves as its real and imaginary part do."""
    pairs = {"re": jnp.array([0.5, -0.3]), "im": jnp.array([0.2, 0.7])}

    def loss(z):
        return jnp.sum(jnp.abs(jnp.array([1.0 + 0.5j, -0.4j]) * z**2 + z[::-1]) ** 2)

    real, _ = run(case.at(0.05), pairs, loss=lambda p: loss(p["re"] + 1j * p["im"]))
    final, _ = run(case.at(0.05), pairs["re"] + 1j * pairs["im"], loss=loss)
    assert final.dtype == jnp.complex64
    assert_close(final, real["re"] + 1j * real["im"], DERIVATIVE)


@every_case
def test_unknown_extra_arguments_are_ignored_and_nothing_is_traced_twice(case, reference):
    tx, traces = case.at(H), []
    plain = stepper(tx, batch="unknown", key=3)

    @jax.jit
    def step(params, state):
        traces.append(1)
        return plain(params, state)

    params, state = make_params(), tx.init(make_params())
    for _ in range(STEPS):
        params, state = step(params, state)
    assert_close(params, reference(case), ROUND_OFF)
    assert len(traces) == 1


@every_case
def test_states_are_safe_for_optax_tree(case):
    """No field by which `optax.tree.get` finds Optax's own in a chain."""
    tx, params = case.at(H), make_params()
    state = tx.init(params)
    for node in jax.tree.leaves(state, is_leaf=lambda node: type(node).__module__.startswith("implicit_reg")):
        assert not {"value", "grad", "learning_rate", "count"} & set(getattr(node, "_fields", ()))
    chex.assert_trees_all_equal(optax.tree.map_params(tx, lambda v: v, state), state)


@every_case
def test_empty_trees_are_left_alone(case):
    tx = case.at(H)
    for empty in ({}, (), None, {"a": {}}):
        updates, _ = tx.update(empty, tx.init(empty), empty, value=jnp.float32(1.0), value_fn=lambda p: jnp.float32(1))
        assert updates == empty


def test_targets_are_not_symmetric():
    """The loss on which all this rests is not one where wrong signs cancel."""
    assert len(set(np.sign(TARGETS))) == 2
