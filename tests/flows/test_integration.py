"""Integration against closed forms, and what happens where there is nothing to integrate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import loops_around
from tolerances import DERIVATIVE, ROUND_OFF, SOLVER, assert_close

import implicit_reg as ir
from implicit_reg import problems
from implicit_reg.flows import integration


@pytest.mark.x64
def test_flow_of_a_quadratic_is_the_matrix_exponential():
    problem = problems.quadratic([1.5, 0.4, -0.2], dtype="float64")
    values, basis = problem.facts["spectrum"], problem.facts["basis"]
    ts = np.array([0.0, 0.3, 1.0, 2.0])
    # Between the solver's steps a record is interpolated; at the default tolerance that alone is 1.9e-10 here.
    run = ir.integrate(ir.gradient_field(problem.loss_fn), problem.params, ts, 0.1, rtol=1e-13, atol=1e-13)
    expected = np.stack([basis @ (np.exp(-values * t) * (basis.T @ problem.params)) for t in ts])
    assert_close(run.params, jnp.asarray(expected), SOLVER)
    assert np.array_equal(run.t, ts)
    assert np.all(run.finite)


@pytest.mark.x64
def test_modified_flow_of_a_quadratic_interpolates_the_iterates():
    """With enough terms the flow at t = n h is (1 - h lambda)^n."""
    problem = problems.quadratic([1.0, 0.3], dtype="float64")
    h, n = 0.05, 20
    phi = ir.update_map(optax.sgd, problem.loss_fn)
    run = ir.integrate(ir.modified_vector_field(phi, 5), problem.params, [n * h], h)
    steps = ir.descend(optax.sgd, problem.loss_fn, problem.params, h, n, every=n)
    plain = ir.integrate(ir.gradient_field(problem.loss_fn), problem.params, [n * h], h)
    exact = problem.facts["basis"] @ (
        (1 - h * problem.facts["spectrum"]) ** n * (problem.facts["basis"].T @ problem.params)
    )
    assert_close(steps.params[-1], jnp.asarray(exact), DERIVATIVE)
    far, near = (float(jnp.linalg.norm(flow.params[0] - steps.params[-1])) for flow in (plain, run))
    assert near < 1e-4 * far


def test_conserved_quantity_of_the_factorization():
    problem = problems.factorization()
    run = ir.integrate(
        ir.gradient_field(problem.loss_fn), problem.params, [0.0, 1.0, 5.0], 0.1, observe=problem.facts["conserved"]
    )
    assert_close(run.observed, jnp.full(3, problem.facts["conserved"](problem.params)), SOLVER)
    steps = ir.descend(
        optax.sgd, problem.loss_fn, problem.params, 0.1, 50, every=50, observe=problem.facts["conserved"]
    )
    assert float(steps.observed[1]) < 0.999 * float(steps.observed[0])


def test_blow_up_is_recorded_and_not_thrown():
    run = ir.integrate(lambda t, x, h: x**2, jnp.array(1.0), [0.0, 0.5, 2.0], 0.1)
    assert run.solver.step_vanished
    assert not run.solver.out_of_steps
    assert np.array_equal(run.finite, [True, True, False])
    assert_close(run.params[1], jnp.array(2.0), SOLVER)
    assert not np.isfinite(run.params[2])


def test_field_that_is_not_a_number_is_recorded():
    run = ir.integrate(lambda t, x, h: x * jnp.nan, jnp.array(1.0), [0.0, 1.0], 0.1)
    assert np.array_equal(run.finite, [True, False])


def test_a_solver_out_of_steps_is_recorded():
    run = ir.integrate(lambda t, x, h: jnp.cos(1e3 * t), jnp.array(1.0), [0.0, 10.0], 0.1, max_steps=4)
    assert run.solver.out_of_steps
    assert not run.solver.step_vanished
    assert run.solver.num_steps == 4
    assert np.array_equal(run.finite, [True, False])


def test_all_step_sizes_share_one_compilation():
    field = ir.modified_vector_field(ir.update_map(optax.sgd, lambda x: jnp.sum(jnp.cos(x))), 2)
    x = jnp.array([0.3, 1.0])
    before = integration.solve._cache_size()
    for h in (0.2, 0.1, 0.05):
        ir.integrate(field, x, [0.0, 1.0], h)
    assert integration.solve._cache_size() == before + 1


def test_equal_fields_share_their_compilation():
    loss = lambda x: jnp.sum(jnp.cos(x))  # noqa: E731
    x = jnp.array([0.3, 1.0])
    before = integration.solve._cache_size()
    for _ in range(2):
        ir.integrate(ir.modified_vector_field(ir.update_map(optax.sgd, loss), 2), x, [0.0, 1.0], 0.1)
    assert integration.solve._cache_size() == before + 1


@pytest.mark.x64
def test_dtype_of_the_parameters_is_kept():
    for dtype in ("float32", "float64"):
        run = ir.integrate(ir.gradient_field(lambda x: jnp.sum(x**2)), jnp.ones(2, dtype), [0.0, 1.0], 0.1)
        assert run.params.dtype == dtype
        assert_close(run.params[1], jnp.full(2, np.exp(-2.0), dtype), SOLVER)


@pytest.mark.x64
def test_leaves_of_several_precisions():
    params = {"narrow": jnp.ones(2, jnp.float32), "wide": jnp.ones(2)}
    loss = lambda p: jnp.sum(p["narrow"] ** 2).astype(jnp.float64) + jnp.sum(p["wide"] ** 2)  # noqa: E731
    run = ir.integrate(ir.gradient_field(loss), params, [0.5], 0.1)
    expected = {"narrow": jnp.full((1, 2), np.exp(-1.0), jnp.float32), "wide": jnp.full((1, 2), np.exp(-1.0))}
    assert_close(run.params["narrow"], expected["narrow"], SOLVER)
    np.testing.assert_allclose(run.params["wide"], expected["wide"], rtol=SOLVER.float32)
    phi = ir.update_map(optax.sgd, loss)
    field = ir.interpolated_vector_field(phi, 3)(0.0, params, 0.01)
    assert field["narrow"].dtype == jnp.float32
    exact = sum(2.0 * w * (1 - 0.02) ** j for j, w in enumerate((11 / 6, -7 / 6, 1 / 3)))
    assert_close(field["wide"], jnp.full(2, -exact), ROUND_OFF)
    plain = ir.interpolated_vector_field(lambda h, x: jax.tree.map(lambda p, g: p - h * g, x, jax.grad(loss)(x)), 3)
    assert_close(plain(0.0, params, np.float64(0.01))["wide"], jnp.full(2, -exact), DERIVATIVE)


def test_works_under_jit_and_vmap():
    field = lambda t, x, h: -x / h  # noqa: E731
    ends = jax.jit(jax.vmap(lambda h: ir.integrate(field, jnp.array(1.0), [1.0], h).params[0]))(jnp.array([0.5, 1.0]))
    assert_close(ends, jnp.exp(-1 / jnp.array([0.5, 1.0])), SOLVER)


def test_stricter_tolerance_changes_the_result():
    field = lambda t, x, h: jnp.stack([x[1], -x[0]])  # noqa: E731
    x, exact = jnp.array([1.0, 0.0]), np.array([np.cos(20.0), -np.sin(20.0)])
    loose, default = (
        np.linalg.norm(ir.integrate(field, x, [20.0], 0.1, **settings).params[0] - exact)
        for settings in ({"rtol": 1e-2, "atol": 1e-2}, {})
    )
    assert loose > 10 * default


FIELD = ir.gradient_field(lambda x: jnp.sum(x**2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"field": "nope"}, TypeError, "`field` must be callable"),
        ({"params": jnp.array([1, 2])}, TypeError, "params has dtype int32"),
        ({"params": {}}, ValueError, "at least one leaf"),
        ({"params": jnp.ones(2, jnp.complex64)}, TypeError, "complex"),
        ({"params": jnp.ones(2, jnp.bfloat16)}, ValueError, "must be float32 or float64, got bfloat16"),
        ({"params": jnp.ones(2, jnp.float16)}, ValueError, "must be float32 or float64, got float16"),
        ({"ts": [0.0, 1.0, 1.0]}, ValueError, "`ts` must increase strictly"),
        ({"ts": [-1.0, 1.0]}, ValueError, "`ts` must increase strictly from at least 0"),
        ({"ts": []}, ValueError, "vector of times"),
        ({"ts": 1.0}, ValueError, "vector of times"),
        ({"ts": "late"}, TypeError, "`ts` must be real numbers"),
        ({"ts": [0.0, np.nan]}, ValueError, "`ts` must be finite"),
        ({"h": 0.0}, ValueError, "`h` must be a finite real number, greater than 0, got 0.0"),
        ({"h": -0.1}, ValueError, "`h` must be .* got -0.1"),
        ({"h": float("nan")}, ValueError, "`h` must be a finite real number.* got nan"),
        ({"h": "0.1"}, TypeError, "`h` must be a finite real number"),
        ({"h": jnp.ones(2)}, ValueError, "`h` must be .*a scalar"),
        ({"rtol": 1e-12}, ValueError, "`rtol`=1e-12 is below what float32 holds"),
        ({"atol": -1.0}, ValueError, "`atol` must be"),
        ({"max_steps": 0}, ValueError, "`max_steps` must be an integer, at least 1"),
        ({"field": lambda t, x, h: (x, x)}, ValueError, "must have the same structure"),
        ({"field": lambda t, x, h: x[:1]}, ValueError, "they must be equal"),
        ({"observe": 3}, TypeError, "`observe` must be callable"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {"field": FIELD, "params": jnp.ones(2), "ts": [0.0, 1.0], "h": 0.1, **changes}
    with pytest.raises(error, match=message):
        ir.integrate(**arguments)


@pytest.mark.parametrize("make", [ir.modified_vector_field, ir.interpolated_vector_field])
@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (0, ValueError, "`order` must be an integer, at least 1, got 0"),
        (-1, ValueError, "`order` must be an integer, at least 1"),
        (1.0, TypeError, "`order` must be an integer"),
        (True, TypeError, "`order` must be an integer"),
        ("2", TypeError, "`order` must be an integer"),
    ],
)
def test_bad_order(make, order, error, message):
    with pytest.raises(error, match=message):
        make(lambda h, x: x, order)


@pytest.mark.parametrize("make", [ir.modified_vector_field, ir.interpolated_vector_field])
def test_bad_maps_and_arguments_of_fields(make):
    with pytest.raises(TypeError, match="`update_map` must be callable"):
        make(None, 1)
    field = make(lambda h, x: (x, h), 2)
    with pytest.raises(ValueError, match="must have the same structure"):
        field(0.0, jnp.ones(2), 0.1)
    field = make(lambda h, x: x - h * x, 2)
    for h, error in ((-0.1, ValueError), (np.inf, ValueError), (None, TypeError), (jnp.ones(2), ValueError)):
        with pytest.raises(error, match="`h` must be"):
            field(0.0, jnp.ones(2), h)
    with pytest.raises(TypeError, match="complex parameters are not supported"):
        field(0.0, jnp.ones(2, jnp.complex64), 0.1)
    with pytest.raises(TypeError, match="every leaf must be floating"):
        field(0.0, {"a": jnp.ones(2), "n": jnp.array(1)}, 0.1)


def test_gradient_field_wants_a_scalar_loss():
    with pytest.raises(ValueError, match="must be a scalar loss, got shape"):
        ir.gradient_field(lambda x: x**2)(0.0, jnp.ones(2), 0.1)


def test_a_second_call_traces_nothing():
    traces = []

    def field(t, x, h):
        traces.append(0)
        return -x

    x = jnp.ones(2)
    ir.integrate(field, x, [0.0, 1.0], 0.1)
    first = len(traces)
    for h, tolerance in ((0.2, 1e-4), (jnp.float32(0.1), 1e-5), (np.float64(0.3), None)):
        ir.integrate(field, x, [0.5, 2.0], h, rtol=tolerance, atol=tolerance)
    assert len(traces) == first > 0


@pytest.mark.x64
def test_orders_of_the_solver():
    """Order 5 needs fewer evaluations where the tolerance is loose, order 8 where it is tight; both are right."""
    stages = {5: 6, 8: 13}
    field = lambda t, x, h: jnp.cos(t) * x  # noqa: E731
    costs = {}
    for tolerance in (1e-5, 1e-11):
        for order in (5, 8):
            run = ir.integrate(field, jnp.array(1.0), [3.0], 0.1, rtol=tolerance, atol=tolerance, order=order)
            assert abs(float(run.params[0]) - np.exp(np.sin(3.0))) < 10 * tolerance
            costs[tolerance, order] = stages[order] * int(run.solver.num_steps)
    assert costs[1e-5, 5] < costs[1e-5, 8]
    assert costs[1e-11, 8] < 0.5 * costs[1e-11, 5]


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (3, ValueError, r"`order` must be 5 \(Tsit5\) or 8 \(Dopri8\), got 3"),
        (5.0, TypeError, "`order` must be an int"),
    ],
)
def test_an_order_that_there_is_not(order, error, message):
    with pytest.raises(error, match=message):
        ir.integrate(lambda t, x, h: -x, jnp.ones(2), [1.0], 0.1, order=order)


def test_the_loop_of_the_solver_talks_to_nobody():
    operands = (jnp.ones(2), jnp.array([0.0, 1.0]), jnp.float32(0.1))
    tolerances = (jnp.float32(1e-5),) * 2
    jax.block_until_ready((operands, tolerances))
    traced = integration.solve.trace(lambda t, x, h: -x, None, tolerances, 4096, *operands, 8)
    # diffrax checks the times once, before it steps, and would call the host to say that they are wrong.
    assert set(loops_around(traced.jaxpr.jaxpr, "callback")) <= {0}
    assert set(loops_around(traced.jaxpr.jaxpr, "neg")) >= {2}  # the field, in the stages of the steps
    compiled = traced.lower().compile()
    with jax.transfer_guard("disallow"):
        recorded = jax.block_until_ready(compiled(tolerances, *operands))[0]
    assert_close(recorded[1], jnp.full(2, np.exp(-1.0).astype(np.float32)), SOLVER)
