"""The gradient penalty of flax and equinox models: same masks in both evaluations, nothing moved twice."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.losses import flooded, gradient_penalized, microbatch_gradient_penalized, value_and_direction
from implicit_reg.transforms import add_gradient_penalty, backstitch, flooding, nnx_value_fn, sam


class Net(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(jnp.tanh(self.norm(self.inner(x)))))


X = jnp.sin(jnp.arange(24.0)).reshape(8, 3)
Y = jnp.cos(jnp.arange(8.0))[:, None]


def net():
    return Net(nnx.Rngs(0))


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def oracle(strength, names=("inner", "norm", "outer")):
    """Value and gradient of the formula as written, on a pure copy of the model."""
    graphdef, params, rest = nnx.split(net(), nnx.Param, ...)

    def pure(params):
        return loss_fn(nnx.merge(graphdef, params, nnx.as_pure(rest)), X, Y)

    def penalized(params):
        grads = jax.grad(pure)(params)
        return pure(params) + strength * sum(jnp.sum(g**2) for name in names for g in jax.tree.leaves(grads[name]))

    return jax.jit(jax.value_and_grad(penalized))(params)


def state_of(model):
    """Every variable but the parameters, keys as data."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Param)))
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]


def assert_moved_once(model, passes=1):
    once = net()
    for part in zip(jnp.split(X, passes), jnp.split(Y, passes), strict=True):
        loss_fn(once, *part)
    for actual, expected in zip(state_of(model), state_of(once), strict=True):
        if jnp.issubdtype(actual.dtype, jnp.floating):
            assert_close(actual, expected, ROUND_OFF)
        else:
            np.testing.assert_array_equal(actual, expected)


PENALIZED = gradient_penalized(loss_fn, 0.3, value_and_grad=nnx.value_and_grad)


def test_flax_model_with_dropout_and_batch_statistics():
    model = net()
    result = nnx.jit(lambda m: nnx.value_and_grad(PENALIZED)(m, X, Y))(model)
    assert_close(result, oracle(0.3), DERIVATIVE)
    assert_moved_once(model)


def test_flax_model_evaluated_alone_moves_once():
    model = net()
    assert_close(nnx.jit(PENALIZED)(model, X, Y), oracle(0.3)[0], DERIVATIVE)
    assert_moved_once(model)


@pytest.mark.parametrize("make", ["dict", "callable"])
def test_flax_mask(make):
    masks = {
        "dict": {"inner": True, "norm": False, "outer": {"kernel": True, "bias": True}},
        "callable": lambda p: {name: name != "norm" for name in p},
    }
    loss = gradient_penalized(loss_fn, 0.3, mask=masks[make], value_and_grad=nnx.value_and_grad)
    result = nnx.jit(lambda m: nnx.value_and_grad(loss)(m, X, Y))(net())
    assert_close(result, oracle(0.3, ("inner", "outer")), DERIVATIVE)


def test_flax_wrapper_and_transformation_agree():
    model = net()
    split = nnx_value_fn(model, loss_fn, X, Y)
    tx = add_gradient_penalty(0.3)

    @jax.jit
    def update(params):
        return tx.update(jax.grad(split.value_fn)(params), tx.init(params), params, value_fn=split.value_fn)[0]

    grads = nnx.jit(lambda m: nnx.grad(PENALIZED)(m, X, Y))(net())
    assert_close(grads, update(split.params), DERIVATIVE)


def test_flax_training_step():
    model = net()
    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(PENALIZED)(model, X, Y)
        optimizer.update(model, grads)
        return value

    assert step(model, optimizer) > step(model, optimizer)
    model.eval()
    before = state_of(model)
    PENALIZED(model, X, Y)
    for actual, expected in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_flax_streams_of_random_numbers_are_arguments_too():
    def noisy(model, x, rngs):
        return jnp.mean(model(x) ** 2 * jax.random.uniform(rngs.noise(), (8, 1)))

    model, rngs = nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Rngs(noise=1)
    loss = gradient_penalized(noisy, 0.3, value_and_grad=nnx.value_and_grad)
    first, second = (nnx.value_and_grad(loss)(model, X, rngs)[0] for _ in range(2))
    assert first != second
    assert rngs.noise.count[...] == 2


def test_flax_microbatches_carry_the_state():
    model, each = net(), net()
    loss = microbatch_gradient_penalized(loss_fn, 0.3, 2, value_and_grad=nnx.value_and_grad)
    value, grads = nnx.jit(lambda m: nnx.value_and_grad(loss)(m, X, Y))(model)
    half = nnx.jit(lambda m, x, y: nnx.value_and_grad(PENALIZED)(m, x, y))
    parts = [half(each, X[i : i + 4], Y[i : i + 4]) for i in (0, 4)]
    assert_close((value, grads), jax.tree.map(lambda a, b: (a + b) / 2, *parts), DERIVATIVE)
    assert_moved_once(model, 2)


def test_flax_variables_made_by_the_loss_are_refused():
    def loss(model):
        model.record = nnx.BatchStat(model.kernel[...] ** 2)
        return jnp.sum(model.kernel[...] ** 3)

    with pytest.raises(ValueError, match="gradient_penalized: loss_fn added or removed variables"):
        gradient_penalized(loss, 0.3, value_and_grad=nnx.value_and_grad)(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))


def test_flooding_works_on_flax_models():
    plain = nnx.jit(lambda m: nnx.grad(loss_fn)(m, X, Y))(net())
    grads = nnx.jit(lambda m: nnx.grad(flooded(loss_fn, 100.0))(m, X, Y))(net())
    assert_close(grads, jax.tree.map(jnp.negative, plain), ROUND_OFF)


def test_equinox_module_with_mask_and_static_leaves():
    model = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))

    def loss(model):
        return jnp.mean((jax.vmap(model)(X) - Y) ** 2)

    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def naive(arrays, keep):
        def plain(a):
            return loss(eqx.combine(a, static))

        grads = jax.tree.leaves(jax.grad(plain)(arrays))
        return plain(arrays) + 0.3 * sum(jnp.sum(g**2) for g in grads if keep(g))

    for mask, keep in (
        (None, lambda g: True),
        (lambda m: jax.tree.map(lambda leaf: leaf.ndim == 2, m), lambda g: g.ndim == 2),
        (jax.tree.map(lambda leaf: getattr(leaf, "ndim", 2) == 2, model), lambda g: g.ndim == 2),
    ):
        ours = gradient_penalized(loss, 0.3, mask=mask, value_and_grad=eqx.filter_value_and_grad)
        value, grads = eqx.filter_jit(eqx.filter_value_and_grad(ours))(model)
        expected = jax.jit(jax.value_and_grad(lambda a: naive(a, keep)))(arrays)
        assert_close((value, eqx.filter(grads, eqx.is_array)), expected, DERIVATIVE)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(4)(x)))


def train_state(tx):
    model = Linen()
    return TrainState.create(apply_fn=model.apply, params=model.init(jax.random.key(0), X)["params"], tx=tx)


def linen_loss(params, x, y):
    return jnp.mean((Linen().apply({"params": params}, x) - y) ** 2)


@pytest.mark.parametrize(
    "transformation",
    [
        sam(0.1),
        flooding(10.0),
        add_gradient_penalty(0.2),
        optax.chain(backstitch(optax.sgd(0.1), 0.3), optax.scale(-1 / 0.1)),
    ],
    ids=["sam", "flooding", "penalty", "backstitch"],
)
def test_oracle_trains_a_train_state_as_the_chain_does(transformation):
    state = train_state(optax.sgd(0.1))

    @jax.jit
    def step(state):
        value, direction = value_and_direction(transformation, linen_loss)(state.params, X, Y)
        return state.apply_gradients(grads=direction), value

    chained = optax.chain(transformation, optax.sgd(0.1))
    value, grads = jax.value_and_grad(linen_loss)(state.params, X, Y)
    updates, _ = chained.update(
        grads, chained.init(state.params), state.params, value=value, value_fn=lambda p: linen_loss(p, X, Y)
    )
    new, measured = step(state)
    assert_close(measured, value, ROUND_OFF)
    assert_close(new.params, optax.apply_updates(state.params, updates), ROUND_OFF)
    assert float(optax.tree.norm(optax.tree.sub(updates, optax.tree.scale(-0.1, grads)))) > 1e-4


def test_wrapper_trains_a_train_state():
    state = train_state(optax.sgd(0.1))
    value, grads = jax.value_and_grad(gradient_penalized(linen_loss, 0.2))(state.params, X, Y)
    direction = value_and_direction(add_gradient_penalty(0.2), linen_loss)(state.params, X, Y)[1]
    assert_close(grads, direction, DERIVATIVE)
    assert value > linen_loss(state.params, X, Y)


def test_oracle_aux_complex_and_memory():
    def loss(z):
        return jnp.sum(jnp.abs(z - 1j) ** 2), "aux"

    z = jnp.array([1.0 + 0.0j])
    (value, aux), direction = value_and_direction(sam(0.5, normalize=False), loss, has_aux=True)(z)
    # Optax's gradient is 2 (z - i); half of it ahead, the displacement has doubled.
    assert aux == "aux"
    assert_close(value, jnp.float32(2), ROUND_OFF)
    assert_close(direction, 4 * (z - 1j), ROUND_OFF)
    with pytest.raises(ValueError, match=r"must have no memory, but state.*trace.*float32"):
        value_and_direction(optax.trace(0.9), lambda x: jnp.sum(x**2))(jnp.ones(2))
    with pytest.raises(TypeError, match=r"Did you mean sam\(learning_rate\)|GradientTransformation"):
        value_and_direction(sam, loss)


def test_sharded_batches_under_jit():
    # One program over all devices: the loss is the mean of the whole batch, and nothing has to be averaged by hand.
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    params = train_state(optax.sgd(0.1)).params

    @jax.jit
    def both(params, x, y):
        level = linen_loss(params, x, y) + 0.1
        return (
            jax.value_and_grad(flooded(linen_loss, level))(params, x, y),
            jax.value_and_grad(gradient_penalized(linen_loss, 0.2))(params, x, y),
        )

    sharded = both(params, jax.device_put(X, sharding), jax.device_put(Y, sharding))
    assert_close(sharded, both(params, X, Y), DERIVATIVE)
