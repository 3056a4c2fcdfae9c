"""What flooding, the penalties and SAM compute where the contract does not reach."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close
from transformation_cases import loss_fn, make_params, run, stepper

import implicit_reg.transforms as tr
from implicit_reg.derivatives import step_coefficients

GRADS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}


def flood(level, value, grads=GRADS):
    tx = tr.flooding(level)
    return tx.update(grads, tx.init(grads), value=value)


# --- flooding


@pytest.mark.parametrize(
    ("value", "sign"),
    [(0.6, 1.0), (0.5, 0.0), (0.4, -1.0), (np.inf, 1.0), (-np.inf, -1.0)],
)
def test_flooding_takes_the_sign(value, sign):
    updates, state = flood(0.5, jnp.float32(value))
    assert_close(updates, jax.tree.map(lambda g: sign * g, GRADS), ROUND_OFF)
    assert (int(state.steps), int(state.ascents)) == (1, int(sign < 0))


def test_flooding_at_the_level_stops_even_what_is_not_finite():
    updates, _ = flood(0.5, jnp.float32(0.5), {"a": jnp.array([jnp.inf, jnp.nan])})
    assert np.all(np.asarray(updates["a"]) == 0)


def test_flooding_of_nan_is_nan_in_every_leaf():
    updates, state = flood(0.5, jnp.float32(np.nan))
    assert all(np.all(np.isnan(u)) for u in jax.tree.leaves(updates))
    assert (int(state.steps), int(state.ascents)) == (1, 0)


def test_flooding_passes_a_gradient_of_nan_in_its_leaf_only():
    updates, _ = flood(0.5, jnp.float32(0.1), {**GRADS, "b": jnp.array(jnp.nan)})
    assert np.isnan(updates["b"])
    assert_close(updates["a"], -GRADS["a"], ROUND_OFF)


def test_flooding_compares_in_float32_at_least():
    """bfloat16(0.1) is 0.10009765625, above the level 0.1; in bfloat16 the two would be equal."""
    updates, _ = flood(0.1, jnp.bfloat16(0.1))
    assert_close(updates, GRADS, ROUND_OFF)


@pytest.mark.x64
def test_flooding_compares_float64_in_float64():
    updates, _ = flood(0.1, jnp.float64(0.1) + 1e-12)
    assert_close(updates, GRADS, ROUND_OFF)
    updates, _ = flood(0.1, jnp.float32(0.1))  # the level in float32, as the loss
    assert_close(updates, jax.tree.map(jnp.zeros_like, GRADS), ROUND_OFF)


def test_flooding_takes_a_schedule_and_counts():
    tx = tr.flooding(optax.linear_schedule(0.0, 1.0, 4))  # 0, 1/4, 1/2, 3/4
    state, signs = tx.init(GRADS), []
    for _ in range(4):
        updates, state = tx.update(GRADS, state, value=jnp.float32(0.3))
        signs.append(float(updates["b"]) / 3)
    assert signs == [1, 1, -1, -1]
    assert float(tr.flooded_fraction(state)) == 0.5


def test_flooding_off_is_the_identity():
    tx = tr.flooding(None)
    updates, state = tx.update(GRADS, tx.init(GRADS), GRADS, value=jnp.float32(0.1))
    assert updates is GRADS
    with pytest.raises(ValueError, match=r"flooded_fraction: there is no state of `flooding`"):
        tr.flooded_fraction(state)


def test_flooded_fraction_reads_chains_and_ensembles():
    blocks = optax.partition({"a": tr.flooding(0.5), "b": tr.flooding(2.0)}, {"a": "a", "b": "b"})
    tx = optax.chain(optax.adam(0.1), optax.inject_hyperparams(lambda: blocks)())
    assert float(tr.flooded_fraction(tx.init(GRADS))) == 0
    state = jax.vmap(lambda value: tx.update(GRADS, tx.init(GRADS), GRADS, value=value)[1])(jnp.array([3.0, 1.0, 0.0]))
    np.testing.assert_array_equal(tr.flooded_fraction(state), [0.0, 0.5, 1.0])


def test_flooding_counters_saturate():
    state = tr.FloodingState(*(jnp.asarray(np.iinfo(np.int32).max),) * 2)
    _, state = tr.flooding(1.0).update(GRADS, state, value=jnp.float32(0.0))
    assert int(state.steps) == int(state.ascents) == np.iinfo(np.int32).max


def factorization(p):
    return 0.5 * (0.6 - p["a"] * p["b"]) ** 2


def test_flooding_on_the_factorization_shrinks_what_gradient_flow_conserves():
    """Up or down, a step of size e multiplies a^2 - b^2 by 1 - 2 e^2 L, exactly."""
    params, e = {"a": jnp.array(2.0), "b": jnp.array(0.6)}, 0.3
    tx = optax.chain(tr.flooding(0.1), optax.sgd(e))
    step, state, wanted = jax.jit(stepper(tx, factorization)), tx.init(params), 2.0**2 - 0.6**2
    for _ in range(50):
        wanted *= 1 - 2 * e**2 * float(factorization(params))
        params, state = step(params, state)
    assert_close(params["a"] ** 2 - params["b"] ** 2, jnp.float32(wanted), DERIVATIVE)
    assert wanted < 0.6 * (2.0**2 - 0.6**2)
    assert 0.25 < float(tr.flooded_fraction(state)) < 0.75


@pytest.mark.x64
def test_a_pair_of_flooding_descends_the_squared_gradient():
    """A step down and a step up are `-(e^2/2) grad ||grad L||^2` to third order in e."""
    start = {"a": jnp.array(2.0), "b": jnp.array(0.4)}
    pair = tr.flooding(lambda count: jnp.where(count % 2 == 0, -1.0, 1e6))  # below the loss, then above it
    moves = {}
    for e in (1e-3, 5e-4):
        end, _ = run(optax.chain(pair, optax.sgd(e)), start, 2, factorization)
        moves[e] = jax.tree.map(lambda x, y: (x - y) / e**2, end, start)
    limit = jax.tree.map(lambda fine, coarse: 2 * fine - coarse, moves[5e-4], moves[1e-3])
    squared = jax.grad(lambda p: sum(g**2 for g in jax.tree.leaves(jax.grad(factorization)(p))))(start)
    for x, y in zip(jax.tree.leaves(limit), jax.tree.leaves(squared), strict=True):
        np.testing.assert_allclose(x, -0.5 * y, rtol=DERIVATIVE.float32)


# --- penalties


def exact(params, strength, mask=None, loss=loss_fn):
    """g + 2 strength H M g by the Hessian, on the flat vector."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    g = jax.grad(lambda x: loss(unravel(x)))(flat)
    m = (
        1.0
        if mask is None
        else jax.flatten_util.ravel_pytree(jax.tree.map(lambda p, m: jnp.full(p.shape, m), params, mask))[0]
    )
    return unravel(g + 2 * strength * jax.hessian(lambda x: loss(unravel(x)))(flat) @ (m * g))


@pytest.mark.parametrize("strength", [0.3, -0.3], ids=["penalty", "anti-penalty"])
def test_penalty_is_the_gradient_of_the_penalized_loss(strength):
    """Reverse over reverse, the route that the transformation does not take."""

    def penalized(p):
        return loss_fn(p) + strength * sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss_fn)(p)))

    tx, params = tr.add_gradient_penalty(strength), make_params()
    updates, _ = tx.update(jax.grad(loss_fn)(params), tx.init(params), params, value_fn=loss_fn)
    assert_close(updates, jax.grad(penalized)(params), DERIVATIVE)


@pytest.mark.parametrize(
    "make", [tr.add_gradient_penalty, lambda s: tr.add_finite_difference_penalty(s, 0.1)], ids=["exact", "difference"]
)
def test_a_strength_of_zero_is_off_bit_for_bit(make):
    params = make_params()
    tx, grads = make(0.0), jax.grad(loss_fn)(params)
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=lambda p: pytest.fail("evaluated"))
    assert updates is grads


@pytest.mark.parametrize(
    "mask",
    [{"b": False, "w": True}, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)],
    ids=["tree", "function"],
)
def test_a_mask_chooses_whose_gradient_is_penalized(mask):
    """All leaves move: `strength ||M g||^2` depends on those outside of the mask too."""
    tx, params = tr.add_gradient_penalty(0.3, mask=mask), make_params()
    updates, _ = tx.update(jax.grad(loss_fn)(params), tx.init(params), params, value_fn=loss_fn)

    def penalized(p):
        return loss_fn(p) + 0.3 * jnp.sum(jax.grad(loss_fn)(p)["w"] ** 2)

    assert_close(updates, jax.grad(penalized)(params), DERIVATIVE)
    assert_close(updates, exact(params, 0.3, {"b": False, "w": True}), DERIVATIVE)


def test_a_mask_may_be_a_prefix():
    params = {"layer": make_params(), "scale": jnp.array(0.7)}

    def loss(p):
        return p["scale"] ** 2 * loss_fn(p["layer"])

    results = []
    for mask in ({"layer": True, "scale": False}, {"layer": {"b": True, "w": True}, "scale": False}):
        tx = tr.add_gradient_penalty(0.3, mask=mask)
        results.append(tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)[0])
    assert_close(results[0], results[1], ROUND_OFF)
    tx = tr.add_gradient_penalty(0.3)
    whole, _ = tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)
    assert abs(float(whole["scale"] - results[0]["scale"])) > 0.1


CLIPPED = {
    "penalty": (tr.add_gradient_penalty(0.3), lambda g, d, at: g + 2 * 0.3 * jax.jvp(at, (0.0,), (1.0,))[1]),
    "difference": (tr.add_finite_difference_penalty(0.3, 0.5), lambda g, d, at: g + 2 * 0.3 * (at(0.5) - d) / 0.5),
    "sam": (tr.sam(0.5, normalize=False), lambda g, d, at: at(0.5)),
}


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("pass_grad", [True, False], ids=["grad", "updates"])
def test_the_direction_is_grad_if_given_else_the_incoming_updates(name, pass_grad):
    """Behind a clip the two differ: the raw gradient looks as far as ever, the clipped one less."""
    transformation, formula = CLIPPED[name]
    tx, params = optax.chain(optax.scale(0.1), transformation), make_params()
    grads = jax.grad(loss_fn)(params)
    extra = {"grad": grads} if pass_grad else {}
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss_fn, **extra)
    x, unravel = jax.flatten_util.ravel_pytree(params)
    gradient = jax.grad(lambda x: loss_fn(unravel(x)))
    g = 0.1 * gradient(x)
    d = gradient(x) if pass_grad else g
    assert_close(updates, unravel(formula(g, d, lambda t: gradient(x + t * d))), DERIVATIVE)


@pytest.mark.x64
def test_the_bias_of_the_finite_difference():
    """`strength displacement T(g, g)` beside the exact penalty, to first order in the displacement."""
    params, strength = make_params(jnp.float64), 0.3
    grads = jax.grad(loss_fn)(params)

    def along(t):
        return jax.grad(loss_fn)(jax.tree.map(lambda p, g: p + t * g, params, grads))

    third = jax.jvp(lambda t: jax.jvp(along, (t,), (1.0,))[1], (0.0,), (1.0,))[1]
    excess = {}
    for displacement in (1e-4, 5e-5):
        tx = tr.add_finite_difference_penalty(strength, displacement)
        updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss_fn)
        excess[displacement] = jax.tree.map(lambda u, e: (u - e) / displacement, updates, exact(params, strength))
    limit = jax.tree.map(lambda fine, coarse: 2 * fine - coarse, excess[5e-5], excess[1e-4])
    wanted = jax.tree.map(lambda t: strength * t, third)
    for x, y in zip(jax.tree.leaves(limit), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=DERIVATIVE.float32 * float(jnp.max(jnp.abs(y))))


# --- SAM


@pytest.mark.parametrize("normalize", [True, False])
def test_sam_at_a_zero_gradient_is_the_plain_gradient(normalize):
    tx, x = tr.sam(0.5, normalize=normalize), jnp.array([1.0, 2.0])

    def loss(x):
        return jnp.sum((x - 1) ** 3)

    updates, _ = tx.update(jnp.zeros(2), tx.init(x), x, value_fn=loss)
    assert_close(updates, jax.grad(loss)(x), ROUND_OFF)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_sam_normalizes_gradients_whose_squares_are_not_floats(size):
    tx, x = tr.sam(0.5), {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    weights = {"a": 3.0, "b": 4.0}

    def loss(p):
        return sum(0.5 * weights[k] * jnp.sum(p[k] ** 2) for k in p)

    direction = {"a": jnp.array([3.0 * size]), "b": jnp.array([4.0 * size])}
    updates, _ = tx.update(direction, tx.init(x), x, value_fn=loss)
    assert_close(updates, {"a": jnp.array([3 * 0.5 * 0.6]), "b": jnp.array([4 * 0.5 * 0.8])}, ROUND_OFF)


@pytest.mark.x64
@pytest.mark.parametrize("normalize", [True, False])
def test_sam_has_every_derivative_in_its_radius(normalize):
    """Five Taylor coefficients in h of the step with radius 0.7 h, at h = 0, as a modified equation takes them."""

    def loss(x):
        return jnp.sum(jnp.tanh(x) ** 2) + x[0] * x[1] ** 2

    def step(h, x):
        tx = optax.chain(tr.sam(0.7 * h, normalize=normalize), optax.sgd(h))
        return optax.apply_updates(x, tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)[0])

    def formula(h, x):
        g = jax.grad(loss)(x)
        return x - h * jax.grad(loss)(x + 0.7 * h * (g / jnp.sqrt(jnp.sum(g**2)) if normalize else g))

    x = jnp.array([0.4, -0.3])
    for got, wanted in zip(step_coefficients(step, x, 5), step_coefficients(formula, x, 5), strict=True):
        assert_close(got, wanted, DERIVATIVE)
    jacobians = [jax.jacfwd(lambda x, fn=fn: step_coefficients(fn, x, 2)[-1])(x) for fn in (step, formula)]
    assert_close(*jacobians, DERIVATIVE)
    at_rest = step_coefficients(step, jnp.zeros(2), 5)  # the gradient is zero there
    assert all(np.all(np.isfinite(d)) for d in at_rest)
