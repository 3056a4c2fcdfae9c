"""Discrete dynamics against a Python loop, and every way to call them wrongly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import loops_around
from tolerances import ROUND_OFF, SOLVER, assert_close

import implicit_reg as ir
from implicit_reg import descent


def loss(params):
    return jnp.sum((params["a"] * jnp.tanh(params["b"]) - 0.6) ** 2) + 0.1 * jnp.sum(params["a"] ** 4)


PARAMS = {"a": jnp.array([1.0, 0.5]), "b": jnp.array([0.3, 0.9])}


def python_loop(transformation, loss_fn, params, num_steps, batches=()):
    """The loop that everybody writes."""
    state, visited = transformation.init(params), [params]
    for n in range(num_steps):
        batch = jax.tree.map(lambda leaf, n=n: leaf[n], batches)
        gradient = jax.grad(loss_fn)(params, *batch)
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        visited.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *visited)


@pytest.mark.parametrize(
    "method",
    [optax.sgd, optax.adam, lambda h: optax.sgd(h, momentum=0.9, nesterov=True)],
    ids=["sgd", "adam", "nesterov"],
)
def test_descend_is_the_python_loop(method):
    run = ir.descend(method, loss, PARAMS, 0.1, 6)
    assert_close(run.params, python_loop(method(0.1), loss, PARAMS, 6), ROUND_OFF)
    np.testing.assert_allclose(run.t, 0.1 * np.arange(7), rtol=0, atol=1e-15)
    assert run.t.dtype == np.float64
    assert np.all(run.finite)
    assert run.observed is None


def test_every_keeps_each_so_manieth_record_and_observes_it():
    full = ir.descend(optax.adam, loss, PARAMS, 0.1, 6, observe=loss)
    thin = ir.descend(optax.adam, loss, PARAMS, 0.1, 6, every=3, observe=loss)
    assert_close(thin.params, jax.tree.map(lambda leaf: leaf[::3], full.params), ROUND_OFF)
    assert_close(thin.observed, full.observed[::3], ROUND_OFF)
    assert_close(full.observed, jax.vmap(loss)(full.params), ROUND_OFF)
    np.testing.assert_array_equal(thin.t, full.t[::3])


def test_batches_reach_the_loss_in_order():
    batched = lambda p, scale, shift: scale * loss(p) + jnp.sum(p["a"]) * shift["s"]  # noqa: E731
    batches = (jnp.array([1.0, -1.0, 2.0, 0.5]), {"s": jnp.array([0.0, 3.0, 1.0, -1.0])})
    run = ir.descend(optax.sgd, batched, PARAMS, 0.1, 4, batches=batches)
    assert_close(run.params, python_loop(optax.sgd(0.1), batched, PARAMS, 4, batches), ROUND_OFF)
    swapped = ir.descend(optax.sgd, batched, PARAMS, 0.1, 4, batches=jax.tree.map(lambda leaf: leaf[::-1], batches))
    assert abs(float(swapped.params["a"][-1, 0] - run.params["a"][-1, 0])) > 1e-3


def test_extra_arguments_are_passed_to_the_transformation():
    """Flooding needs `value`, backstitch `value_fn`, both on the minibatch at hand."""
    batched = lambda p, scale: scale * loss(p)  # noqa: E731
    scales = jnp.array([1.0, 0.2, 1.0])
    level = 0.5
    run = ir.descend(
        lambda h: optax.chain(ir.flooding(level), optax.sgd(h)), batched, PARAMS, 0.1, 3, batches=(scales,)
    )
    flooded = lambda p, scale: jnp.abs(batched(p, scale) - level)  # noqa: E731
    assert_close(run.params, python_loop(optax.sgd(0.1), flooded, PARAMS, 3, (scales,)), ROUND_OFF)


def test_step_sizes_with_equally_many_records_share_one_compilation():
    before = descent._jitted_run._cache_size()
    fresh = lambda p: loss(p) + 0.0  # noqa: E731
    for n in (8, 12, 16):
        run = ir.descend(optax.sgd, fresh, PARAMS, 0.8 / n, n, every=n // 4)
        np.testing.assert_allclose(run.t, 0.2 * np.arange(5), rtol=0, atol=1e-15)
    assert descent._jitted_run._cache_size() == before + 1


def test_divergence_is_recorded():
    run = ir.descend(optax.sgd, lambda x: jnp.sum(x**4), jnp.array([1.0]), 10.0, 6)
    assert np.array_equal(run.finite, np.isfinite(np.asarray(run.params)[:, 0]))
    assert run.finite[0]
    assert not run.finite[-1]


def test_no_steps_leave_the_start():
    run = ir.descend(optax.sgd, loss, PARAMS, 0.1, 0)
    assert_close(run.params, jax.tree.map(lambda leaf: leaf[None], PARAMS), ROUND_OFF)


def test_python_numbers_are_parameters():
    run = ir.descend(optax.sgd, lambda p: p[0] ** 2 + p[1] ** 2, [1.0, 2.0], 0.25, 1)
    assert_close([leaf[1] for leaf in run.params], [jnp.array(0.5), jnp.array(1.0)], ROUND_OFF)


def test_descend_can_be_vmapped_and_differentiated_in_the_step_size():
    end = lambda h: loss(jax.tree.map(lambda leaf: leaf[-1], ir.descend(optax.sgd, loss, PARAMS, h, 4, every=2).params))  # noqa: E731
    step_sizes = jnp.array([0.05, 0.1])
    ends = jax.vmap(end)(step_sizes)
    assert_close(ends, jnp.stack([end(0.05), end(0.1)]), ROUND_OFF)
    slope = jax.grad(end)(0.1)
    assert abs(float(slope) - float(end(0.101) - end(0.099)) / 0.002) < 1e-3


@pytest.mark.x64
def test_dtypes_of_leaves_survive_a_wide_step_size():
    params = {"wide": jnp.ones(2), "narrow": jnp.ones(2, jnp.bfloat16)}
    fn = lambda p: jnp.sum(p["wide"] ** 2) + jnp.sum(p["narrow"].astype(jnp.float32) ** 2).astype(jnp.float64)  # noqa: E731
    run = ir.descend(optax.sgd, fn, params, np.float64(0.125), 2)
    assert {k: v.dtype.name for k, v in run.params.items()} == {"wide": "float64", "narrow": "bfloat16"}
    assert_close(run.params["wide"][-1], jnp.full(2, 0.75**2), ROUND_OFF)


def test_update_map_is_one_step_and_offers_raw_updates():
    phi = ir.update_map(optax.sgd, loss)
    after = phi(0.1, PARAMS)
    assert_close(after, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, jax.grad(loss)(PARAMS)), ROUND_OFF)
    assert_close(phi.update(0.1, PARAMS), jax.tree.map(lambda g: -0.1 * g, jax.grad(loss)(PARAMS)), ROUND_OFF)


def test_update_map_of_a_pair_is_two_steps_of_the_schedule():
    method = lambda h: optax.sgd(ir.alternating(h, 0.25 * h))  # noqa: E731
    phi = ir.update_map(method, loss, num_steps=2)
    run = ir.descend(method, loss, PARAMS, 0.1, 2)
    assert_close(phi(0.1, PARAMS), jax.tree.map(lambda leaf: leaf[-1], run.params), ROUND_OFF)
    assert_close(optax.apply_updates(PARAMS, phi.update(0.1, PARAMS)), phi(0.1, PARAMS), ROUND_OFF)
    below = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, jax.grad(loss)(PARAMS))
    assert_close(phi(0.1, PARAMS), jax.tree.map(lambda p, g: p + 0.025 * g, below, jax.grad(loss)(below)), ROUND_OFF)


@pytest.mark.parametrize(
    "method",
    [
        lambda h: optax.inject_hyperparams(optax.sgd)(learning_rate=h),
        lambda h: optax.chain(optax.clip_by_global_norm(10.0), optax.sgd(optax.linear_schedule(1.0, 0.5, 10))),
        lambda h: optax.chain(ir.flooding(0.1), optax.sgd(h)),
        lambda h: optax.apply_if_finite(optax.sgd(h), 3),
    ],
    ids=["inject_hyperparams", "schedule", "flooding", "apply_if_finite"],
)
def test_counters_and_hyperparameters_are_no_memory(method):
    phi = ir.update_map(method, loss)
    transformation = method(0.1)
    updates, _ = optax.with_extra_args_support(transformation).update(
        jax.grad(loss)(PARAMS), transformation.init(PARAMS), PARAMS, value=loss(PARAMS)
    )
    assert_close(phi(0.1, PARAMS), optax.apply_updates(PARAMS, updates), ROUND_OFF)


@pytest.mark.parametrize(
    ("method", "leaf"),
    [
        (lambda h: optax.sgd(h, momentum=0.9), r"a memory of dtype float32 at state\[0\].trace\['a'\]"),
        (optax.adam, r"a memory of dtype float32 at state\[0\].mu\['a'\]"),
        (lambda h: optax.inject_hyperparams(optax.adam)(h), r"a memory of dtype float32 at state.inner_state\[0\].mu"),
        (lambda h: optax.chain(optax.add_noise(0.1, 0.55, 0), optax.sgd(h)), r"a PRNG key at state\[0\].rng_key"),
        (
            lambda h: optax.chain(optax.add_noise(0.1, 0.55, jax.random.key(0)), optax.sgd(h)),
            r"a PRNG key at state\[0\]",
        ),
    ],
    ids=["momentum", "adam", "injected-adam", "raw-key", "typed-key"],
)
def test_memory_has_no_modified_equation(method, leaf):
    with pytest.raises(ValueError, match=leaf + ".*compare trajectories only"):
        ir.update_map(method, loss)(0.1, PARAMS)


GOOD = {"method": optax.sgd, "loss_fn": loss, "params": PARAMS, "h": 0.1, "num_steps": 4}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": optax.sgd(0.1)}, TypeError, "`method` must be callable"),
        ({"method": lambda h: h}, TypeError, r"`method\(h\)` must be an optax.GradientTransformation"),
        ({"method": lambda h: optax.sgd}, TypeError, r"Did you mean sgd\(learning_rate\)"),
        ({"loss_fn": 1.0}, TypeError, "`loss_fn` must be callable"),
        ({"loss_fn": lambda p: p["a"]}, ValueError, r"must be a scalar loss, got shape \(2,\)"),
        ({"loss_fn": lambda p: jnp.sum(p["a"])[None]}, ValueError, r"must be a scalar loss, got shape \(1,\)"),
        ({"loss_fn": lambda p: jnp.array(1)}, TypeError, "real floating scalar, got dtype int32"),
        ({"params": {"a": jnp.array([1, 2])}}, TypeError, r"params\['a'\] has dtype int32"),
        ({"params": {"a": "x"}}, TypeError, r"params\['a'\] must be a floating array, got str"),
        ({"params": {}}, ValueError, "must have at least one leaf"),
        ({"h": 0.0}, ValueError, "`h` must be a finite real number, greater than 0, got 0.0"),
        ({"h": -0.1}, ValueError, "got -0.1"),
        ({"h": float("inf")}, ValueError, "got inf"),
        ({"h": True}, TypeError, "got True of type bool"),
        ({"h": None}, TypeError, "`h` must be a finite real number"),
        ({"num_steps": -1}, ValueError, "`num_steps` must be an integer, at least 0"),
        ({"num_steps": 4.0}, TypeError, "`num_steps` must be an integer"),
        ({"every": 0}, ValueError, "`every` must be an integer, at least 1"),
        ({"every": 3}, ValueError, "`every` must divide `num_steps`, got every=3 and num_steps=4"),
        ({"batches": jnp.ones(4)}, TypeError, r"`batches` must be a tuple.*\(batch,\)"),
        ({"batches": (jnp.ones(3),)}, ValueError, r"batches\[0\] must have leading axis num_steps=4, got shape \(3,\)"),
        ({"observe": "loss"}, TypeError, "`observe` must be callable"),
    ],
)
def test_bad_input_of_descend(changes, error, message):
    with pytest.raises(error, match=message):
        ir.descend(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": None}, TypeError, "`method` must be callable"),
        ({"loss_fn": None}, TypeError, "`loss_fn` must be callable"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be an integer, at least 1"),
        ({"num_steps": 2.0}, TypeError, "`num_steps` must be an integer"),
    ],
)
def test_bad_input_of_update_map(arguments, error, message):
    with pytest.raises(error, match=message):
        ir.update_map(**{"method": optax.sgd, "loss_fn": loss, **arguments})


def test_update_map_judges_its_arguments_when_called():
    phi = ir.update_map(optax.sgd, loss)
    with pytest.raises(ValueError, match="`h` must be a finite real number, got nan"):
        phi(float("nan"), PARAMS)
    with pytest.raises(ValueError, match="at least one leaf"):
        phi(0.1, {})


def test_what_a_method_closes_over_can_be_differentiated():
    """Traced values reach the loops through closures too; the loops are static then, and reverse mode works."""

    def end(strength):
        method = lambda h: optax.chain(ir.add_gradient_penalty(strength), optax.sgd(h))  # noqa: E731
        return loss(jax.tree.map(lambda leaf: leaf[-1], ir.descend(method, loss, PARAMS, 0.1, 4).params))

    slope = jax.grad(end)(0.1)
    assert abs(float(slope) - float(end(0.101) - end(0.099)) / 0.002) < 1e-3 * abs(float(slope)) + 1e-4
    assert_close(jax.jit(jax.grad(end))(0.1), slope, ROUND_OFF)


class Quadratic(eqx.Module):
    """A loss with arrays in it, which cannot be hashed."""

    center: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.sum((x - self.center) ** 2)


def test_a_loss_that_cannot_be_hashed():
    module = Quadratic(jnp.array([1.0, 2.0]))
    x = jnp.zeros(2)
    run = ir.descend(optax.sgd, module, x, 0.5, 1, observe=module)
    assert_close(run.params[1], 0.5 * module.center, ROUND_OFF)
    phi = ir.update_map(optax.sgd, module)
    assert_close(jax.jit(phi)(0.5, x), 0.5 * module.center, ROUND_OFF)
    for field in (ir.gradient_field(module), ir.modified_vector_field(phi, 1), ir.interpolated_vector_field(phi, 1)):
        assert_close(field(0.0, x, 0.5), module.center, ROUND_OFF)
        end = ir.integrate(field, x, [1.0], 0.5).params[0]
        assert_close(end, module.center * (1 - np.exp(-1.0)).astype(np.float32), SOLVER)


def test_no_steps_with_batches():
    run = ir.descend(optax.sgd, lambda x, y: jnp.sum((x - y) ** 2), jnp.ones(2), 0.1, 0, batches=(jnp.zeros((0, 2)),))
    assert_close(run.params, jnp.ones((1, 2)), ROUND_OFF)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda p: (loss(p), {"a": 1.0}), r"must be a scalar loss, got a tuple; .*lambda \*args: loss\(\*args\)\[0\]"),
        (lambda p: (loss(p), loss(p)), "must be a scalar loss, got a tuple"),
        (lambda p: None, "must be a scalar loss, got a NoneType"),
    ],
)
def test_a_loss_that_returns_something_else(bad, message):
    with pytest.raises(TypeError, match=message):
        ir.descend(optax.sgd, bad, PARAMS, 0.1, 2)
    with pytest.raises(TypeError, match=message):
        ir.gradient_field(bad)(0.0, PARAMS, 0.1)


def test_a_loss_without_its_batches_is_told_about_them():
    with pytest.raises(TypeError) as caught:
        ir.descend(optax.sgd, lambda p, scale: scale * loss(p), PARAMS, 0.1, 2)
    assert any("with 0 batch arguments (`batches`)" in note for note in caught.value.__notes__)


def test_a_second_call_traces_nothing():
    traces = []

    def counted(p):
        traces.append(0)
        return loss(p)

    ir.descend(optax.sgd, counted, PARAMS, 0.1, 8, every=4)
    first = len(traces)
    for h, num_steps in ((0.05, 8), (0.1, 12), (np.float32(0.02), 16)):
        ir.descend(optax.sgd, counted, PARAMS, h, num_steps, every=num_steps // 2)
    assert len(traces) == first > 0


def test_numbers_made_of_the_step_size_are_judged_in_every_call():
    method = lambda h: optax.chain(ir.sam(radius=0.3 - h), optax.sgd(h))  # noqa: E731
    for _ in range(2):
        ir.descend(method, loss, PARAMS, 0.1, 2)
        with pytest.raises(ValueError, match="radius"):
            ir.descend(method, loss, PARAMS, 0.5, 2)


def test_what_is_being_differentiated_is_not_kept():
    """Functions are known by a cache; those that close over a tracer must not stay in it."""
    before = descent._check_closures.cache_info().currsize
    end = lambda a: ir.descend(optax.sgd, lambda p: a * loss(p), PARAMS, 0.1, 2).params["a"][-1, 0]  # noqa: E731
    assert abs(float(jax.grad(end)(1.0))) > 1e-3
    assert descent._check_closures.cache_info().currsize == before


def _program(num_records, every, observe=None):
    operands = (every, PARAMS, jnp.float32(0.1), (), None)
    return descent._jitted_run.trace(optax.sgd, loss, observe, num_records, *operands), operands


def test_the_loop_is_one_program_that_talks_to_nobody():
    traced, operands = _program(3, jnp.int32(2))
    assert "callback" not in str(traced.jaxpr)
    compiled = traced.lower().compile()
    operands = jax.device_put(operands)
    jax.block_until_ready(operands)
    with jax.transfer_guard("disallow"):
        recorded, _, finite = jax.block_until_ready(compiled(*operands))
    assert_close(recorded, ir.descend(optax.sgd, loss, PARAMS, 0.1, 6, every=2).params, ROUND_OFF)
    assert np.array_equal(finite, [True] * 4)


def test_records_are_written_in_place_and_the_start_survives():
    """Temporary memory does not depend on how many steps or records there are: nothing is stacked, then copied."""
    start = jax.tree.map(jnp.copy, PARAMS)
    ir.descend(optax.sgd, loss, start, 0.1, 200)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    sizes = [
        _program(num_records, every)[0].lower().compile().memory_analysis().temp_size_in_bytes
        for num_records, every in ((4, None), (4000, None), (4, jnp.int32(1000)))
    ]
    assert max(sizes) - min(sizes) < 1024, sizes  # 4000 records are 64 KB


def test_an_observer_stands_outside_of_the_loop_over_steps():
    observe = lambda params: jax.lax.erf_inv(params["a"])  # noqa: E731
    traced, _ = _program(3, jnp.int32(2), observe)
    assert sorted(loops_around(traced.jaxpr.jaxpr, "erf_inv")) == [0, 1]  # the start, and a record
    assert max(loops_around(traced.jaxpr.jaxpr, "tanh")) == 2
