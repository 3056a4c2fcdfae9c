"""The gradient penalty against its formula by plain reverse over reverse, to third derivatives, and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.losses import flooded, gradient_penalized


def network(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2)


def naive(loss_fn, strength, names=("w", "b", "v")):
    """L + strength ||grad L||^2 as written."""

    def loss(params, *batch):
        grads = jax.grad(loss_fn)(params, *batch)
        return loss_fn(params, *batch) + strength * sum(jnp.sum(grads[name] ** 2) for name in names)

    return loss


def problem(key, dtype=jnp.float64):
    def draw(i, *shape):
        return jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32).astype(dtype)

    return {"w": draw(0, 2, 3), "b": draw(1, 3), "v": draw(2, 3)}, draw(3, 4, 2), draw(4, 4)


ours, oracle = gradient_penalized(network, 0.3), naive(network, 0.3)


@pytest.mark.x64
def test_value_and_gradient(key):
    params, x, y = problem(key)
    expected = jax.jit(jax.value_and_grad(oracle, (0, 1, 2)))(params, x, y)
    assert_close(ours(params, x, y), expected[0], ROUND_OFF)
    assert_close(jax.value_and_grad(ours, (0, 1, 2))(params, x, y), expected, DERIVATIVE)
    assert_close(jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(params, x, y), expected, DERIVATIVE)
    assert_close(jax.value_and_grad(jax.jit(ours), (0, 1, 2))(params, x, y), expected, DERIVATIVE)


@pytest.mark.x64
def test_gradient_is_g_plus_2_strength_h_g(key):
    params, x, y = problem(key)
    flat, unravel = ravel_pytree(params)

    def loss(z):
        return network(unravel(z), x, y)

    g, hessian = jax.jit(lambda z: (jax.grad(loss)(z), jax.hessian(loss)(z)))(flat)
    assert_close(jax.jit(jax.grad(gradient_penalized(loss, -0.7)))(flat), g - 1.4 * hessian @ g, DERIVATIVE)


@pytest.mark.x64
def test_second_and_third_derivatives(key):
    params, x, y = problem(key)
    flat, unravel = ravel_pytree(params)
    v, w = jnp.cos(flat), jnp.sin(3 * flat)

    def derivatives(loss):
        def f(z):
            return loss(unravel(z), x, y)

        gradient = jax.grad(f)

        def second(z):
            return jax.jvp(gradient, (z,), (v,))[1]

        return second(flat), jax.jvp(second, (flat,), (w,))[1], jax.hessian(f)(flat), jax.jacrev(gradient)(flat)

    expected = jax.jit(lambda: derivatives(oracle))()
    assert_close(jax.jit(lambda: derivatives(ours))(), expected, DERIVATIVE)
    assert_close(expected[2], expected[3], DERIVATIVE)


@pytest.mark.x64
def test_arrays_of_the_closure_are_no_constants(key):
    params, x, y = problem(key)

    def closed(loss):
        return lambda x: loss(lambda p: network(p, x, y))

    expected = jax.jit(jax.grad(closed(lambda f: naive(f, 0.3)(params))))(x)
    assert_close(jax.grad(closed(lambda f: gradient_penalized(f, 0.3)(params)))(x), expected, DERIVATIVE)
    xs = jnp.stack([x, 2 * x])
    expected = jax.jit(jax.vmap(closed(lambda f: jax.grad(naive(f, 0.3))(params))))(xs)
    compiled = jax.jit(jax.vmap(closed(lambda f: jax.grad(gradient_penalized(f, 0.3))(params))))
    assert_close(compiled(xs), expected, DERIVATIVE)


@pytest.mark.x64
def test_vmap_inside_and_outside_of_the_gradient(key):
    params, x, y = problem(key)
    xs = jnp.stack([x, 2 * x])

    def over(loss):
        batched = jax.vmap(loss, (None, 0, None))
        return jax.grad(lambda p: jnp.sum(batched(p, xs, y)))(params), jax.vmap(jax.grad(loss), (None, 0, None))(
            params, xs, y
        )

    assert_close(jax.jit(lambda: over(ours))(), jax.jit(lambda: over(oracle))(), DERIVATIVE)


@pytest.mark.x64
def test_inside_a_scan_and_of_a_scan(key):
    params, x, y = problem(key)

    def unrolled(params, x, y):
        state, _ = jax.lax.scan(lambda s, _: (jnp.tanh(s @ params["w"] @ params["w"].T), None), x, None, length=3)
        return jnp.mean((state[:, 0] + params["b"][0] * params["v"][0] - y) ** 2)

    def train(loss):
        def step(p, _):
            value, grads = jax.value_and_grad(loss)(p, x, y)
            return jax.tree.map(lambda p, g: p - 0.01 * g, p, grads), value

        return jax.lax.scan(step, params, None, length=3)

    assert_close(train(gradient_penalized(unrolled, 0.3)), train(naive(unrolled, 0.3)), DERIVATIVE)


@pytest.mark.x64
def test_strength_is_differentiable_and_traced(key):
    params, x, y = problem(key)
    square = sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(network)(params, x, y)))

    def loss(strength):
        return gradient_penalized(network, strength)(params, x, y)

    assert_close(jax.grad(loss)(0.3), square, DERIVATIVE)
    both = jax.vmap(loss)(jnp.array([0.0, 0.3]))
    assert_close(both, jnp.array([network(params, x, y), oracle(params, x, y)]), DERIVATIVE)
    mixed = jax.grad(lambda p: jax.grad(lambda s: gradient_penalized(network, s)(p, x, y))(0.3))(params)
    expected = jax.tree.map(jnp.subtract, jax.grad(naive(network, 1.0))(params, x, y), jax.grad(network)(params, x, y))
    assert_close(mixed, expected, DERIVATIVE)


@pytest.mark.x64
@pytest.mark.parametrize("make", ["tree", "callable", "prefix"])
def test_mask_restricts_whose_gradient_is_penalized(key, make):
    params, x, y = problem(key)
    mask = {
        "tree": {"w": True, "b": False, "v": True},
        "callable": lambda p: jax.tree.map(lambda leaf: leaf.shape != (3,), p) | {"v": True},
        "prefix": {"inner": True, "b": False},
    }[make]
    if make == "prefix":
        nested = {"inner": {"w": params["w"], "v": params["v"]}, "b": params["b"]}
        loss = gradient_penalized(lambda p, x, y: network(p["inner"] | {"b": p["b"]}, x, y), 0.3, mask=mask)
        grads = jax.grad(loss)(nested, x, y)
        grads = grads["inner"] | {"b": grads["b"]}
    else:
        grads = jax.grad(gradient_penalized(network, 0.3, mask=mask))(params, x, y)
    assert_close(grads, jax.grad(naive(network, 0.3, ("w", "v")))(params, x, y), DERIVATIVE)
    # The masked parameters move, too, and otherwise than without a mask.
    assert float(jnp.max(jnp.abs(grads["b"] - jax.grad(network)(params, x, y)["b"]))) > 1e-3
    assert float(jnp.max(jnp.abs(grads["b"] - jax.grad(oracle)(params, x, y)["b"]))) > 1e-3


@pytest.mark.x64
def test_a_mask_of_nothing_is_the_loss(key):
    params, x, y = problem(key)
    loss = gradient_penalized(network, 0.3, mask=lambda p: jax.tree.map(lambda _: False, p))
    assert_close(jax.value_and_grad(loss)(params, x, y), jax.value_and_grad(network)(params, x, y), ROUND_OFF)


@pytest.mark.x64
def test_complex_parameters():
    z = jnp.array([0.3 + 0.4j, -1.0 + 0.2j])

    def loss(z):
        return jnp.sum(jnp.abs(z) ** 4) + jnp.sum((z**3).real)

    def real(xy):
        def split(xy):
            return loss(xy[0] + 1j * xy[1])

        return split(xy) + 0.3 * jnp.sum(jax.grad(split)(xy) ** 2)

    xy = jnp.stack([z.real, z.imag])
    value, grad = jax.jit(jax.value_and_grad(gradient_penalized(loss, 0.3)))(z)
    assert_close(value, real(xy), ROUND_OFF)
    expected = jax.jit(jax.grad(real))(xy)
    assert_close(grad, expected[0] - 1j * expected[1], DERIVATIVE)


def classification(params, x, labels, key, name):
    hidden = jnp.tanh(x @ params["w"] + params["b"]) * jax.random.bernoulli(key, 0.5, (x.shape[0], 3))
    loss = -jnp.mean(jax.nn.log_softmax(hidden)[jnp.arange(x.shape[0]), labels]) + 0.1 * jnp.sum(params["v"] ** 2)
    return loss, {"hidden": hidden, "count": jnp.sum(labels == 1), "name": name, "key": key}


@pytest.mark.x64
def test_aux_integer_data_and_keys_pass_through(key):
    params, x, _ = problem(key)
    batch = (x, jnp.array([0, 1, 2, 1]), key, "run")
    loss = gradient_penalized(classification, 0.3, has_aux=True)
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, *batch)
    _, expected = classification(params, *batch)
    plain = naive(lambda *args: classification(*args)[0], 0.3)
    assert_close((value, grads), jax.jit(lambda p: jax.value_and_grad(plain)(p, *batch))(params), DERIVATIVE)
    assert (aux["name"], int(aux["count"])) == ("run", 2)
    assert aux["key"] == key
    assert_close(aux["hidden"], expected["hidden"], ROUND_OFF)

    # The auxiliary output keeps its derivatives, in both modes.
    def through(loss):
        def f(p):
            value, aux = loss(p, *batch)
            return 2 * value + jnp.sum(aux["hidden"] ** 2)

        return f

    expected = jax.jit(jax.grad(through(lambda *args: (plain(*args), classification(*args)[1]))))(params)
    assert_close(jax.jit(jax.grad(through(loss)))(params), expected, DERIVATIVE)
    tangent = jax.jit(lambda p: jax.jvp(through(loss), (p,), (p,))[1])(params)
    assert_close(tangent, jnp.vdot(ravel_pytree(expected)[0], ravel_pytree(params)[0]), DERIVATIVE)


@pytest.mark.x64
def test_composes_with_flooding(key):
    params, x, y = problem(key)
    level = network(params, x, y) + 0.1
    inner = gradient_penalized(flooded(network, level), 0.3)
    expected = naive(lambda *args: 2 * level - network(*args), 0.3)
    assert_close(jax.grad(inner)(params, x, y), jax.grad(expected)(params, x, y), DERIVATIVE)


def test_python_numbers_are_parameters():
    loss = gradient_penalized(lambda p: p[0] ** 3 * p[1] ** 2, 0.5)  # g = (3 a^2 b^2, 2 a^3 b) = (12, 4)
    assert loss([1.0, 2.0]) == 4 + 0.5 * (144 + 16)
    # g + 2 s H g with H = [[6 a b^2, 6 a^2 b], [6 a^2 b, 2 a^3]] = [[24, 12], [12, 2]]
    np.testing.assert_allclose(jax.grad(loss)([1.0, 2.0]), [12 + 24 * 12 + 12 * 4, 4 + 12 * 12 + 2 * 4], rtol=0)


def test_zero_strength_is_the_loss_itself():
    assert gradient_penalized(network, 0) is network
    assert gradient_penalized(network, np.float32(0.0)) is network


def test_zero_gradient_is_no_nan():
    value, grad = jax.value_and_grad(gradient_penalized(lambda x: jnp.sum(x**4), 0.3))(jnp.zeros(2))
    np.testing.assert_array_equal([value, *grad], 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_keeps_dtypes_and_norms_in_float32(dtype):
    # ||g||^2 = 90000 overflows float16; the value, 0.5 * 300^2 + 0.001 * 300^2, does not have to.
    def loss(x):
        return 0.5 * jnp.sum(x.astype(jnp.float32) ** 2)

    x = jnp.array([300.0], dtype)
    value, grad = jax.value_and_grad(gradient_penalized(loss, 0.001))(x)
    assert grad.dtype == dtype
    assert_close(value, jnp.float32(45090), ROUND_OFF)
    assert grad[0] == dtype(300.6)
    assert gradient_penalized(lambda x: jnp.sum(x), 0.5)(x).dtype == dtype


def convolutions(params, x, y):
    for name in ("a", "b", "c"):
        x = jnp.tanh(
            jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"))
        )
    return jnp.mean((jnp.mean(x, (1, 2)) @ params["d"] - y) ** 2)


def convolutional_problem():
    shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 4, 4), "c": (3, 3, 4, 4), "d": (4, 2)}
    params = {name: jnp.full(shape, 0.1) for name, shape in shapes.items()}
    return params, jnp.ones((2, 6, 6, 2)), jnp.ones((2, 2))


def count_convolutions(fn, *args):
    return jax.jit(fn).lower(*args).as_text().count("stablehlo.convolution")


def test_gradient_is_forward_over_reverse():
    args = convolutional_problem()

    def hand_written(params, x, y):
        gradient, product = jax.linearize(lambda p: jax.grad(convolutions)(p, x, y), params)
        return jax.tree.map(lambda g, hg: g + 0.6 * hg, gradient, product(gradient))

    wrapped = count_convolutions(jax.grad(gradient_penalized(convolutions, 0.3)), *args)
    assert wrapped == count_convolutions(hand_written, *args)
    # An auxiliary output costs nothing; reverse over reverse costs more, and convolutions of slower shapes.
    aux = gradient_penalized(lambda *a: (convolutions(*a), a[1]), 0.3, has_aux=True)
    assert wrapped == count_convolutions(jax.grad(aux, has_aux=True), *args)
    assert wrapped < count_convolutions(jax.grad(naive(convolutions, 0.3, "abcd")), *args)
    # A mask saves what its part of the Hessian product does not need.
    head = gradient_penalized(convolutions, 0.3, mask={"a": False, "b": False, "c": False, "d": True})
    assert count_convolutions(jax.grad(head), *args) < wrapped
