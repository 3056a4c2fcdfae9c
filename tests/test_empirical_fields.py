"""Fields read off stored iterates: orders, floors, and fields compared along a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import ORDER, ROUND_OFF, assert_close

import implicit_reg as ir
from implicit_reg.compare import compare_fields
from implicit_reg.flows.empirical import central_weights, empirical_vector_field
from implicit_reg.trajectory import Trajectory

pytestmark = pytest.mark.x64

X = {"a": jnp.array([1.0, -0.4]), "b": jnp.array(0.7)}


def loss(params):
    fit = jnp.sum((jnp.tanh(params["a"]) * params["b"] - 0.3) ** 2)
    return fit + 0.1 * params["b"] ** 4 + 0.2 * jnp.sum(params["a"] ** 2)


def exact_field(t, params, h):
    """Some smooth field that depends on time, for flows whose derivative is known."""
    return jax.tree.map(lambda p: -jnp.sin(p + t) * (1 + p**2), params)


def errors_on_a_flow(order, central, spacings):
    """The largest error at t = 0.6 of the field of a stored flow, sampled ever finer."""
    found = []
    for s in spacings:
        ts = 0.6 + s * np.arange(-order, order + 1)
        empirical = empirical_vector_field(ir.integrate(exact_field, X, ts, 0.1), order, central=central)
        k = int(np.argmin(np.abs(empirical.t - 0.6)))
        at = jax.tree.map(lambda leaf: leaf[k], empirical.points)
        gap = jax.tree.map(lambda v, f: jnp.abs(v[k] - f).max(), empirical.values, exact_field(0.6, at, 0.1))
        found.append(max(map(float, jax.tree.leaves(gap))))
    return np.array(found)


@pytest.mark.parametrize(("order", "central"), [(1, False), (2, False), (3, False), (2, True), (4, True), (6, True)])
def test_order_on_a_flow_whose_field_is_known(order, central):
    # The stored flow is itself off by some 1e-10, between the steps of its solver: stay far above.
    spacings = {6: [0.09, 0.07, 0.05], 4: [0.08, 0.04, 0.02]}.get(order, [0.04, 0.02, 0.01])
    error = errors_on_a_flow(order, central, spacings)
    assert abs(ir.observed_order(spacings, error)[-1] - order) < ORDER


@pytest.mark.parametrize("central", [False, True])
def test_no_gradient_is_evaluated(central):
    calls = []

    def watched(params):
        jax.debug.callback(lambda: calls.append(None))
        return loss(params)

    run = ir.descend(optax.sgd, watched, X, 0.05, 6)
    jax.effects_barrier()
    assert len(calls) >= 6  # the run itself is seen
    calls.clear()
    jax.block_until_ready(empirical_vector_field(run, 4, central=central).values)
    jax.effects_barrier()
    assert not calls


def test_central_differences_are_better_at_equal_order():
    updates, central = (errors_on_a_flow(2, flag, [0.02])[0] for flag in (False, True))
    assert central < updates / 1.9  # h^2/6 against h^2/3, on this flow


def test_updates_give_what_the_interpolated_field_gives():
    run = ir.descend(optax.sgd, loss, X, 0.05, 6)
    empirical = empirical_vector_field(run, 3)
    field = ir.interpolated_vector_field(ir.update_map(optax.sgd, loss), 3)
    np.testing.assert_array_equal(empirical.t, run.t[:4])
    for k in range(4):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], run.params)
        value = jax.tree.map(lambda leaf, k=k: leaf[k], empirical.values)
        # The stored parameters are rounded; nothing beyond that floor is lost.
        gap = jax.tree.map(jnp.subtract, value, field(0.0, at, 0.05))
        assert float(optax.tree.norm(gap)) <= 2 * float(empirical.floor[k])


def test_central_weights_differentiate_polynomials_exactly():
    weights = central_weights(3)
    for power in range(7):
        found = sum(c * (k**power - (-k) ** power) for k, c in enumerate(weights, start=1))
        assert found == (power == 1)


def test_the_floor_bounds_what_rounding_does_and_is_not_far_above():
    """x = 1 + t^2: the rounding of the stored points is all that a second-order central difference sees."""
    h = 2.0**-20 * 1.1
    t = h * np.arange(400)
    x = jnp.asarray(1 + t**2)
    run = Trajectory(t, x, None, jnp.ones(400, bool), h)
    empirical = empirical_vector_field(run, 2, central=True)
    error = np.abs(np.asarray(empirical.values) - 2 * empirical.t)
    floor = np.asarray(empirical.floor)
    # The time itself is rounded too, by eps t in 2 t, far below.
    assert np.all(error <= 2 * floor)
    assert error.max() > floor.max() / 20


def test_float32_runs_have_a_floor_that_is_reported():
    x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), X)
    wide, narrow = (
        empirical_vector_field(ir.descend(optax.sgd, loss, start, 1e-3, 8), 4, central=True) for start in (X, x)
    )
    assert narrow.values["a"].dtype == jnp.float32
    gap = optax.tree.norm(jax.tree.map(lambda a, b: a[0] - b[0].astype(a.dtype), wide.values, narrow.values))
    assert float(gap) > 1e3 * float(wide.floor[0])
    assert float(gap) < 8 * float(narrow.floor[0])  # one rounding for each step taken


def test_every_kth_record_gives_the_same_field_at_a_larger_spacing():
    """The field of step size h, not of k h: what k consecutive steps sample is the same curve."""
    fine = empirical_vector_field(ir.descend(optax.sgd, loss, X, 0.02, 24), 6, central=True)
    thin = empirical_vector_field(ir.descend(optax.sgd, loss, X, 0.02, 24, every=3), 6, central=True)
    assert thin.h == fine.h == 0.02
    assert abs(thin.spacing - 0.06) < 1e-15
    k = int(np.argmin(np.abs(fine.t - thin.t[0])))
    assert_close(thin.points["a"][0], fine.points["a"][k], ROUND_OFF)
    field = ir.interpolated_vector_field(ir.update_map(optax.sgd, loss), 6)
    coarser = ir.interpolated_vector_field(ir.update_map(optax.sgd, loss), 6)
    at = jax.tree.map(lambda leaf: leaf[0], thin.points)
    right, wrong = field(0.0, at, 0.02), coarser(0.0, at, 0.06)
    distance = lambda f: float(optax.tree.norm(jax.tree.map(lambda v, u: v[0] - u, thin.values, f)))  # noqa: E731
    assert distance(right) < distance(wrong) / 100


def test_it_is_traceable_and_differentiable():
    def speed(h):
        return optax.tree.norm(empirical_vector_field(ir.descend(optax.sgd, loss, X, h, 4), 2).values)

    value, slope = jax.jit(jax.value_and_grad(speed))(0.05)
    np.testing.assert_allclose(value, speed(0.05), rtol=1e-12)
    numeric = (speed(0.05 + 1e-5) - speed(0.05 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)


def test_records_that_diverged_are_flagged_and_harm_no_others():
    run = ir.descend(optax.sgd, lambda x: x**4, jnp.array(5.0), 0.1, 30)
    assert not np.all(run.finite)
    empirical = empirical_vector_field(run, 2)
    flags = np.asarray(empirical.finite)
    assert not flags[-1]
    np.testing.assert_array_equal(flags, [np.all(run.finite[k : k + 3]) for k in range(29)])
    usable = np.isfinite(compare_fields(empirical, ir.gradient_field(lambda x: x**4)).relative[0])
    assert usable[0]
    assert not np.any(usable & ~flags)


def test_compared_fields_have_the_orders_of_their_truncations():
    phi = ir.update_map(optax.sgd, loss)
    fields = [ir.modified_vector_field(phi, p) for p in (1, 2)]
    steps, found = np.array([0.04, 0.02, 0.01]), []
    for h in steps:
        empirical = empirical_vector_field(ir.descend(optax.sgd, loss, X, h, 18), 6, central=True)
        k = int(np.argmin(np.abs(empirical.t - 0.12)))  # one time, for the error depends on the place
        found.append(compare_fields(empirical, *fields).relative[:, k])
    slopes = ir.observed_order(steps, np.array(found))[-1]
    np.testing.assert_allclose(slopes, [1, 2], atol=ORDER)


def test_compare_fields_is_the_relative_distance():
    empirical = empirical_vector_field(ir.descend(optax.sgd, loss, X, 0.05, 5), 1)
    third = compare_fields(
        empirical, ir.gradient_field(loss), lambda t, x, h: optax.tree.scale(0.5, ir.gradient_field(loss)(t, x, h))
    )
    np.testing.assert_allclose(third.relative[0], 0, atol=1e-13)  # one update over h is the first field itself
    np.testing.assert_allclose(third.relative[1], 0.5, rtol=1e-12)
    seen = compare_fields(empirical, lambda t, x, h: jax.tree.map(lambda p: jnp.full_like(p, t + h), x))
    values = np.concatenate([np.asarray(empirical.values["a"]), np.asarray(empirical.values["b"])[:, None]], axis=1)
    expected = np.linalg.norm(values - (empirical.t + 0.05)[:, None], axis=1) / np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(seen.relative[0], expected, rtol=1e-12)


RUN = (
    ir.descend(optax.sgd, loss, {"a": np.array([1.0, 0.5]), "b": np.array(0.3)}, 0.1, 4)
    if jax.config.jax_enable_x64
    else None
)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: empirical_vector_field(RUN.params, 2), TypeError, "must be a Trajectory"),
        (lambda: empirical_vector_field(RUN, 0), ValueError, "at least 1"),
        (lambda: empirical_vector_field(RUN, 5), ValueError, "at least order \\+ 1 = 6 records, got 5"),
        (lambda: empirical_vector_field(RUN, 3, central=True), ValueError, "even"),
        (lambda: empirical_vector_field(RUN._replace(t=RUN.t**2), 2), ValueError, "equidistant"),
        (lambda: empirical_vector_field(RUN._replace(t=RUN.t[::-1]), 2), ValueError, "increasing"),
        (
            lambda: empirical_vector_field(RUN._replace(params=jax.tree.map(lambda x: x + 0j, RUN.params)), 2),
            TypeError,
            "complex",
        ),
        (lambda: compare_fields(RUN, ir.gradient_field(loss)), TypeError, "empirical_vector_field"),
        (lambda: compare_fields(empirical_vector_field(RUN, 1), 3), TypeError, "callable"),
        (
            lambda: compare_fields(empirical_vector_field(RUN, 1), lambda t, x, h: x["a"]),
            ValueError,
            "same structure",
        ),
    ],
)
def test_bad_arguments_say_what_was_wanted(call, error, words):
    with pytest.raises(error, match=words):
        call()
