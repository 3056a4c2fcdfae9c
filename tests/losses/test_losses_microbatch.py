"""The microbatch penalty against the naive sum, and its bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.losses import gradient_penalized, microbatch_gradient_penalized


def network(params, x, y, *, scale=1.0):
    return scale * jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2)


def naive(params, x, y, number=3, strength=0.3, names=("w", "v")):
    """The mean over k of L_k + strength ||grad L_k||^2 as written."""
    total = 0.0
    for x_k, y_k in zip(jnp.split(x, number), jnp.split(y, number), strict=True):
        grads = jax.grad(network)(params, x_k, y_k)
        total += network(params, x_k, y_k) + strength * sum(jnp.sum(grads[name] ** 2) for name in names)
    return total / number


def problem(key, examples=6, dtype=jnp.float64):
    def draw(i, *shape):
        return jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32).astype(dtype)

    return {"w": draw(0, 2, 3), "v": draw(1, 3)}, draw(2, examples, 2), draw(3, examples)


@pytest.mark.x64
def test_value_and_gradient(key):
    params, x, y = problem(key)
    ours = microbatch_gradient_penalized(network, 0.3, 3)
    expected = jax.jit(jax.value_and_grad(naive, (0, 1, 2)))(params, x, y)
    assert_close(jax.jit(ours)(params, x, y), expected[0], ROUND_OFF)
    assert_close(jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(params, x, y), expected, DERIVATIVE)
    # Neither the penalty of the whole batch nor the mean loss would pass.
    whole = jax.jit(gradient_penalized(network, 0.3))(params, x, y)
    assert float(jnp.abs(expected[0] - whole)) > 1e-3


@pytest.mark.x64
def test_second_derivatives(key):
    params, x, y = problem(key)
    ours = microbatch_gradient_penalized(network, 0.3, 3)

    def second(loss):
        return jax.jvp(jax.grad(lambda p: loss(p, x, y)), (params,), (params,))[1]

    assert_close(jax.jit(lambda: second(ours))(), jax.jit(lambda: second(naive))(), DERIVATIVE)


@pytest.mark.x64
def test_it_penalizes_the_variance_of_the_gradient(key):
    # mean ||g_k||^2 = ||g||^2 + mean ||g_k - g||^2 [smith2021]
    params, x, y = problem(key)
    loss, mean = network(params, x, y), jax.grad(network)(params, x, y)
    each = [jax.grad(network)(params, *part) for part in zip(jnp.split(x, 3), jnp.split(y, 3), strict=True)]

    def square(tree):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))

    variance = sum(square(jax.tree.map(jnp.subtract, g, mean)) for g in each) / 3
    value = microbatch_gradient_penalized(network, 0.3, 3)(params, x, y)
    assert_close(value, loss + 0.3 * (square(mean) + variance), DERIVATIVE)


@pytest.mark.x64
def test_mask_strength_keywords_and_one_microbatch(key):
    params, x, y = problem(key)
    masked = microbatch_gradient_penalized(network, 0.3, 3, mask={"w": True, "v": False})
    expected = jax.grad(lambda p: naive(p, x, y, names=("w",)))(params)
    assert_close(jax.grad(masked)(params, x, y), expected, DERIVATIVE)
    one = microbatch_gradient_penalized(network, 0.3, 1)(params, x, y, scale=2.0)
    assert_close(one, gradient_penalized(network, 0.3)(params, x, y, scale=2.0), ROUND_OFF)
    off = microbatch_gradient_penalized(network, 0, 3)
    assert_close(jax.value_and_grad(off)(params, x, y), jax.value_and_grad(network)(params, x, y), DERIVATIVE)

    def traced(strength):
        return microbatch_gradient_penalized(network, strength, 3)(params, x, y)

    slope = naive(params, x, y, strength=1.0) - naive(params, x, y, strength=0.0)
    assert_close(jax.grad(traced)(0.3), slope, DERIVATIVE)


@pytest.mark.x64
def test_aux_is_stacked_with_its_derivatives(key):
    params, x, y = problem(key)

    def with_aux(params, x, y):
        return network(params, x, y), {"x": x, "square": jnp.sum(params["v"] ** 2) * jnp.sum(y), "name": "run"}

    loss = microbatch_gradient_penalized(with_aux, 0.3, 3, has_aux=True)
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, x, y)
    assert_close((value, grads), jax.jit(jax.value_and_grad(naive))(params, x, y), DERIVATIVE)
    np.testing.assert_array_equal(aux["x"], x.reshape(3, 2, 2))
    assert aux["name"] == "run"
    grad = jax.jit(jax.grad(lambda p: jnp.sum(loss(p, x, y)[1]["square"])))(params)
    assert_close(grad, {"w": jnp.zeros_like(params["w"]), "v": 2 * params["v"] * jnp.sum(y)}, DERIVATIVE)


def test_memory_does_not_grow_with_the_batch(key):
    params, x, y = problem(key, 4096, jnp.float32)

    def temporary(number):
        loss = microbatch_gradient_penalized(network, 0.3, number)
        return jax.jit(jax.grad(loss)).lower(params, x, y).compile().memory_analysis().temp_size_in_bytes

    whole, eighth, part = (temporary(number) for number in (1, 8, 64))
    assert eighth < whole / 4
    assert part < eighth / 2


def test_low_precision_sums_in_float32():
    # 64 terms of 1 + 2^-7: a running sum in bfloat16 would lose the small part.
    loss = microbatch_gradient_penalized(lambda p, x: jnp.sum(p * x), 0.0, 64)
    x = jnp.full((64, 1), 1.0078125, jnp.bfloat16)
    assert jax.grad(loss)(jnp.ones(1, jnp.bfloat16), x)[0] == jnp.bfloat16(1.0078125)


def test_indivisible_batches_are_named():
    loss = microbatch_gradient_penalized(network, 0.3, 4)
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"batch\[0\] must have a leading axis divisible by num_microbatches=4"):
        loss(params, jnp.ones((6, 2)), jnp.ones(6))
    with pytest.raises(ValueError, match="same length"):
        loss(params, jnp.ones((8, 2)), jnp.ones(4))
    with pytest.raises(ValueError, match="by keyword"):
        loss(params, jnp.ones((8, 2)), jnp.float32(1))
    with pytest.raises(ValueError, match="no array"):
        microbatch_gradient_penalized(lambda p: jnp.sum(p), 0.3, 2)(jnp.ones(2))
