"""Products of operators against dense matrices, whole and in minibatches, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import DERIVATIVE, assert_close

from implicit_reg import curvature

pytestmark = pytest.mark.x64


def mean_loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


@pytest.fixture
def network(key):
    a, b, c = jax.random.split(key, 3)
    params = {"w": jax.random.normal(a, (3, 4)), "v": jax.random.normal(b, (4,))}
    x = jax.random.normal(c, (11, 3))
    return params, (x, jnp.sin(x[:, 0]))


def dense_hessian(fn, params, data):
    vector, unravel = curvature.flatten(params)
    return jax.hessian(lambda v: fn(unravel(v), *data))(vector)


@pytest.mark.parametrize("batch_size", [None, 1, 4, 11, 50])
def test_the_hessian_is_the_dense_one(network, batch_size):
    params, data = network
    operator = curvature.hessian_operator(mean_loss, params, data, batch_size=batch_size)
    expected = dense_hessian(mean_loss, params, data)
    assert_close(operator.dense(), expected, DERIVATIVE)
    vector = np.linspace(-1, 1, operator.size)
    assert_close(jnp.asarray(operator.matvec(vector)), expected @ vector, DERIVATIVE)
    assert_close(jax.jit(operator.apply)(jnp.asarray(vector)), expected @ vector, DERIVATIVE)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_gauss_newton_is_the_dense_one(network, batch_size):
    params, data = network

    def model(p, x, y):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    def output_loss(out, x, y):
        return jnp.mean(jnp.cosh(out - y))

    operator = curvature.gauss_newton_operator(model, output_loss, params, data, batch_size=batch_size)
    vector, unravel = curvature.flatten(params)
    jacobian = jax.jacobian(lambda v: model(unravel(v), *data))(vector)
    curved = jax.hessian(lambda out: output_loss(out, *data))(model(params, *data))
    assert_close(operator.dense(), jacobian.T @ curved @ jacobian, DERIVATIVE)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_loss_and_gradient(network, batch_size):
    params, data = network
    value, gradient = curvature.mean_value_and_gradient(mean_loss, params, data, batch_size=batch_size)
    assert_close((value, gradient), jax.value_and_grad(mean_loss)(params, *data), DERIVATIVE)


def test_preconditioning_has_the_spectrum_of_p_inverse_h(network):
    params, data = network
    operator = curvature.hessian_operator(mean_loss, params, data)
    scale = jnp.linspace(0.5, 3.0, operator.size)
    found = jnp.linalg.eigvalsh(curvature.preconditioned(operator, operator.unravel(scale)).dense())
    expected = np.sort(np.linalg.eigvals(np.diag(1 / scale) @ np.asarray(operator.dense())).real)
    assert_close(found, jnp.asarray(expected), DERIVATIVE)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        curvature.preconditioned(operator, scale - 1)
    with pytest.raises(ValueError, match="must have 16 entries"):
        curvature.preconditioned(operator, jnp.ones(3))


def test_leaves_keep_their_dtypes():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3, jnp.float32)}

    def loss(p):
        assert p["a"].dtype == jnp.bfloat16
        assert p["b"].dtype == jnp.float32
        return jnp.sum(p["b"] ** 3) + jnp.sum(p["a"].astype(jnp.float32) ** 2)

    operator = curvature.hessian_operator(loss, params)
    assert operator.dtype == jnp.float32
    np.testing.assert_array_equal(operator.dense(), np.diag([2.0, 2, 6, 6, 6]))


def test_one_compilation_serves_other_parameters(network):
    params, data = network
    traces = []

    def loss(p, x, y):
        traces.append(1)
        return mean_loss(p, x, y)

    first = curvature.hessian_operator(loss, params, data).matvec(np.ones(16))
    seen = len(traces)
    other = jax.tree.map(lambda leaf: 2 * leaf, params)
    second = curvature.hessian_operator(loss, other, data).matvec(np.ones(16))
    assert len(traces) == seen
    assert not np.allclose(first, second)


def test_bad_input(network):
    params, data = network
    hessian = curvature.hessian_operator
    with pytest.raises(TypeError, match="`loss_fn` must be callable"):
        hessian(3, params)
    with pytest.raises(TypeError, match="every leaf must be floating"):
        hessian(mean_loss, {"w": jnp.arange(3)})
    with pytest.raises(ValueError, match="at least one leaf"):
        hessian(mean_loss, {})
    with pytest.raises(ValueError, match="at least one entry"):
        hessian(mean_loss, {"w": jnp.zeros((0,))})
    with pytest.raises(ValueError, match="`params` must be finite"):
        hessian(mean_loss, {"w": jnp.array([jnp.nan])})
    with pytest.raises(ValueError, match="`batch_size` needs `data`"):
        hessian(mean_loss, params, batch_size=2)
    with pytest.raises(ValueError, match="same length"):
        hessian(mean_loss, params, (data[0], data[1][:5]), batch_size=2)
    with pytest.raises(TypeError, match="`data` must be a tuple"):
        hessian(mean_loss, params, [*data])
    with pytest.raises(ValueError, match="too large"):
        hessian(lambda x: jnp.sum(x**2), jnp.ones(6000)).dense()
    with pytest.raises(ValueError, match="not finite"):
        hessian(lambda x: jnp.sum(x**1.5), jnp.zeros(2)).matvec(np.ones(2))
