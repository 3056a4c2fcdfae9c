"""SoftAD and AdaFlood's level against their formulas, in double precision of NumPy, and at the extremes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.losses import adaptive_level, flooded, soft_flooded


def identity(x):
    return x


def formula(losses, level, scale, weight):
    losses, level = np.asarray(losses, np.float64), np.asarray(level, np.float64)
    rho = np.sqrt(((losses - level) / scale) ** 2 + 1) - 1
    return weight * np.mean(level) + scale**2 * np.mean(rho)


@pytest.mark.parametrize(("scale", "weight"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.5), (4.0, 2.0)])
@pytest.mark.parametrize(
    "level", [0.5, -0.2, np.array([0.1, 0.2, 3.0], np.float32)], ids=["positive", "negative", "each"]
)
def test_soft_formula(level, scale, weight):
    losses = jnp.array([0.1, 0.9, 2.5])
    value, grad = jax.value_and_grad(soft_flooded(identity, level, scale=scale, level_weight=weight))(losses)
    assert_close(value, jnp.float32(formula(losses, level, scale, weight)), ROUND_OFF)
    x = (np.asarray(losses, np.float64) - level) / scale
    assert_close(grad, jnp.asarray(scale * x / np.sqrt(x**2 + 1) / 3, jnp.float32), ROUND_OFF)


@jax.jit
def soft(x):
    return jax.value_and_grad(lambda x: soft_flooded(identity, 0.0)(x[None]))(x)


@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
def test_soft_neither_cancels_nor_overflows(x):
    value, grad = soft(np.float32(x))
    x = np.float64(np.float32(x))
    root = np.hypot(1.0, x)
    np.testing.assert_allclose(value, x / (root + 1) * x, rtol=ROUND_OFF.float32, atol=1e-38)
    np.testing.assert_allclose(grad, x / root, rtol=ROUND_OFF.float32)


def test_soft_extremes():
    value, grad = jax.vmap(soft)(jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0]))
    np.testing.assert_array_equal(value, [np.inf, np.inf, np.nan, 0])
    np.testing.assert_array_equal(grad, [1, -1, np.nan, 0])
    assert jnp.all(jnp.isfinite(jax.vmap(jax.grad(lambda x: soft(x)[1]))(jnp.array([jnp.inf, 0.0, 1.0, -1.0, 1e30]))))


def test_soft_becomes_individual_flooding():
    losses, scale = jnp.array([0.2, 0.8, 3.0]), 1e-4
    hard = jax.grad(flooded(identity, 0.5, per_example=True))(losses)
    assert_close(jax.grad(soft_flooded(identity, 0.5, scale=scale))(losses) / scale, hard, ROUND_OFF)


def test_soft_off_aux_dtype_and_trained_level():
    losses = jnp.array([1.0, 2.0], jnp.bfloat16)
    value, aux = soft_flooded(lambda x: (x, "aux"), None, has_aux=True)(losses)
    assert (value, aux) == (1.5, "aux")
    assert soft_flooded(identity, 0.5)(losses).dtype == jnp.bfloat16
    weight = jax.grad(lambda level: soft_flooded(identity, level, level_weight=0.3)(jnp.array([1.0])))(1.0)
    assert_close(weight, jnp.float32(0.3), ROUND_OFF)


@pytest.mark.x64
def test_soft_higher_derivatives():
    def plain(x):
        return 0.3**2 * jnp.mean(jnp.sqrt(((x - 0.5) / 0.3) ** 2 + 1) - 1) + 0.5

    x = jnp.array([0.5, 0.2, 3.0, -4.0])
    ours = soft_flooded(identity, 0.5, scale=0.3)

    @partial(jax.jit, static_argnums=0)
    def derivatives(loss, x):
        return jax.grad(loss)(x), jax.hessian(loss)(x), jax.jacfwd(jax.hessian(loss))(x)

    assert_close(derivatives(ours, x), derivatives(plain, x), DERIVATIVE)


@given(
    st.floats(0, 20, width=32, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
    st.floats(0.5, 2, allow_subnormal=False),
    st.floats(-1, 1, allow_subnormal=False),
)
def test_adaptive_level_formula(auxiliary, gamma, alpha, beta):
    expected = -np.log((1 - gamma) * np.exp(-(alpha * np.float64(auxiliary) + beta)) + gamma)
    level = adaptive_level(jnp.array([auxiliary], jnp.float32), gamma, alpha, beta)
    np.testing.assert_allclose(level, [expected], rtol=0, atol=ROUND_OFF.float32 * max(1, alpha * auxiliary + 1))


def test_adaptive_level_limits():
    auxiliary = jnp.array([0.0, 0.7, 200.0])
    np.testing.assert_array_equal(adaptive_level(auxiliary, gamma=0), auxiliary)
    np.testing.assert_array_equal(adaptive_level(auxiliary, gamma=1), [0, 0, 0])
    assert_close(adaptive_level(auxiliary)[2], jnp.log(jnp.float32(2)), ROUND_OFF)
    assert adaptive_level(auxiliary.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert adaptive_level(jnp.array([jnp.inf]), gamma=0.25)[0] == jnp.log(jnp.float32(4))
