"""Models: the forward pass re-typed, dropout by key, running averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import ROUND_OFF, SOLVER, assert_close

from implicit_reg import problems


@pytest.fixture(scope="module")
def wine():
    return problems.load_dataset("wine")


def test_mlp_is_the_retyped_network(wine):
    model = problems.build_model("mlp", wine, widths=(5, 4), activation="gelu", rngs=nnx.Rngs(0))
    x = wine.x_train[:6]
    h = jnp.asarray(x)
    for layer in model.hidden:
        h = jax.nn.gelu(h @ layer.kernel[...] + layer.bias[...])
    assert_close(model(x), h @ model.output.kernel[...] + model.output.bias[...], ROUND_OFF)


def test_convnet_is_the_retyped_network():
    model = problems.ConvNet((4, 4, 1), 3, widths=(2,), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 16), dtype=np.float32)
    image = np.pad(x.reshape(2, 4, 4), ((0, 0), (1, 1), (1, 1)))
    kernel, bias = np.asarray(model.hidden[0].kernel[...])[:, :, 0, :], np.asarray(model.hidden[0].bias[...])
    h = sum(image[:, i : i + 4, j : j + 4, None] * kernel[i, j] for i in range(3) for j in range(3)) + bias
    pooled = np.tanh(h).reshape(2, 2, 2, 2, 2, 2).mean(axis=(2, 4)).reshape(2, -1)
    expected = pooled @ np.asarray(model.output.kernel[...]) + np.asarray(model.output.bias[...])
    assert_close(model(jnp.asarray(x)), expected, ROUND_OFF)


def test_dropout_is_a_function_of_the_key(wine):
    model = problems.build_model("mlp", wine, widths=(32, 32), dropout=0.5, rngs=nnx.Rngs(0))
    x = jnp.asarray(wine.x_train[:4])
    one, again, other = (model(x, rngs=jax.random.key(k)) for k in (0, 0, 1))
    assert jnp.array_equal(one, again)
    assert not jnp.array_equal(one, other)
    model.eval()
    plain = problems.build_model("mlp", wine, widths=(32, 32), rngs=nnx.Rngs(0))
    assert_close(model(x), plain(x), ROUND_OFF)
    # Equal widths must not share a mask: with all activations 1, the two masks would then be equal.
    masks = []
    twin = problems.MLP(2, 1, widths=(64, 64), activation="sigmoid", dropout=0.5, rngs=nnx.Rngs(0))
    original = nnx.Dropout.__call__
    try:
        nnx.Dropout.__call__ = lambda self, x, *, rngs: masks.append(original(self, jnp.ones_like(x), rngs=rngs)) or x
        twin(jnp.ones((1, 2)), rngs=jax.random.key(0))
    finally:
        nnx.Dropout.__call__ = original
    assert not jnp.array_equal(*masks)


def test_batch_norm_normalizes_and_keeps_running_averages(wine):
    model = problems.build_model("mlp", wine, widths=(3,), batch_norm=True, activation="tanh", rngs=nnx.Rngs(0))
    x = jnp.asarray(wine.x_train)
    pre = x @ model.hidden[0].kernel[...] + model.hidden[0].bias[...]
    mean, variance = pre.mean(0), pre.var(0)
    expected = jnp.tanh((pre - mean) / jnp.sqrt(variance + 1e-5)) @ model.output.kernel[...] + model.output.bias[...]
    # flax takes the variance as a difference of mean squares: a cancellation more than ROUND_OFF allows.
    assert_close(model(x), expected, SOLVER)
    assert_close(model.norms[0].mean[...], 0.1 * mean, SOLVER)
    assert_close(model.norms[0].var[...], 0.9 + 0.1 * variance, SOLVER)
    model.eval()
    running = (pre - model.norms[0].mean[...]) / jnp.sqrt(model.norms[0].var[...] + 1e-5)
    expected = jnp.tanh(running) @ model.output.kernel[...] + model.output.bias[...]
    assert_close(model(x), expected, SOLVER)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_the_users(wine, dtype):
    model = problems.build_model("mlp", wine, widths=(3,), batch_norm=True, dtype=dtype, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))} == {jnp.dtype(jnp.float32)}
    assert model(jnp.asarray(wine.x_train[:2], dtype)).dtype == dtype


@pytest.mark.x64
def test_float64_starts_where_float32_does(wine):
    narrow, wide = (
        nnx.state(problems.build_model("mlp", wine, widths=(3,), dtype=dtype, rngs=nnx.Rngs(0)), nnx.Param)
        for dtype in (jnp.float32, jnp.float64)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype(np.float64)}
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        assert jnp.array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("mpl", {}, r"unknown model 'mpl'\. Did you mean 'mlp'"),
        ("conv", {}, "needs images and 'wine' holds none"),
        ("mlp", {"activation": "tahn"}, "Did you mean 'tanh'"),
        ("mlp", {"widths": (0,)}, r"`widths\[0\]`"),
        ("mlp", {"dropout": 1.0}, "`dropout` must be below 1"),
        ("mlp", {"dropout": -0.1}, "`dropout`"),
    ],
)
def test_bad_arguments(wine, name, options, match):
    with pytest.raises(ValueError, match=match):
        problems.build_model(name, wine, rngs=nnx.Rngs(0), **options)


def test_too_many_poolings():
    with pytest.raises(ValueError, match="can be halved"):
        problems.ConvNet((8, 8, 1), 10, widths=(2, 2, 2, 2), rngs=nnx.Rngs(0))
