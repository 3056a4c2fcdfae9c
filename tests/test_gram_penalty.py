"""The gradient penalty without forming gradients of weight matrices: against dense Hessians, and where it applies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.flatten_util import ravel_pytree
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.losses import _gram, gradient_penalized, microbatch_gradient_penalized

STRENGTH = 0.3


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / 2, jnp.result_type(float))


def dense(params, x, y):
    hidden = jax.nn.gelu(x @ params["a"] + params["b"])
    return jnp.mean((jnp.tanh(jax.jit(jnp.matmul)(hidden, params["c"].T)) @ params["d"] - y) ** 2)


def dense_problem():
    """Weights as (in, out), as (out, in), and with fewer outputs than pay."""
    params = {"a": draw(0, 5, 6), "b": draw(1, 6), "c": draw(2, 7, 6), "d": draw(3, 7, 1)}
    return params, draw(4, 2, 5), draw(5, 2, 1)


def formed(loss_fn, params, *batch, mask=None):
    """`g + 2 strength H M g` with the dense Hessian, and the penalized value."""

    @jax.jit  # one program: by itself, every operation would be one
    def dense_hessian(params, batch):
        flat, unravel = ravel_pytree(params)

        def loss(z):
            return loss_fn(unravel(z), *batch)

        chosen = jnp.ones_like(flat) if mask is None else ravel_pytree(jax.tree.map(jnp.full_like, params, mask))[0]
        g = jax.grad(loss)(flat)
        value = loss(flat) + STRENGTH * jnp.sum((chosen * g) ** 2)
        return value, unravel(g + 2 * STRENGTH * jax.hessian(loss)(flat) @ (chosen * g))

    return dense_hessian(params, batch)


def read(loss_fn, params, *batch, monkeypatch):
    """The penalized value and gradient with `gram`, and the shapes of the weights whose gradients were not formed."""
    shapes, through = set(), _gram.squared_norm

    def spy(gradient):
        left, right = gradient.kept()
        shapes.add((*(gradient.left.shape[i] for i in left), *(gradient.right.shape[i] for i in right)))
        return through(gradient)

    monkeypatch.setattr(_gram, "squared_norm", spy)
    result = jax.jit(jax.value_and_grad(gradient_penalized(loss_fn, STRENGTH, gram=True)))(params, *batch)
    return result, shapes


@pytest.mark.x64
def test_against_the_dense_hessian(monkeypatch):
    params, x, y = dense_problem()
    result, shapes = read(dense, params, x, y, monkeypatch=monkeypatch)
    assert_close(result, formed(dense, params, x, y), DERIVATIVE)
    assert shapes == {(5, 6), (7, 6)}
    plain = jax.jit(jax.value_and_grad(gradient_penalized(dense, STRENGTH)))(params, x, y)
    assert_close(result, plain, DERIVATIVE)


@pytest.mark.x64
@pytest.mark.parametrize("mask", [("a",), ("c", "b"), ("b", "d", "a")], ids=str)
def test_masks(mask):
    params, x, y = dense_problem()
    chosen = {name: name in mask for name in params}
    loss = gradient_penalized(dense, STRENGTH, mask=chosen, gram=True)
    expected = formed(dense, params, x, y, mask=chosen)
    assert_close(jax.jit(jax.value_and_grad(loss))(params, x, y), expected, DERIVATIVE)


def blocks(params, x, y):
    """Rows on two axes, features on two, one weight from the left."""
    heads = jnp.tanh(jnp.einsum("nld,dhk->nlhk", x, params["in"]))
    mixed = jnp.einsum("nlhk,hkd->nld", jax.nn.softmax(heads, axis=1), params["out"])
    left = jnp.einsum("ed,nld->enl", params["left"], mixed)
    return jnp.mean(jnp.cos(left - y) ** 2)


@pytest.mark.x64
def test_many_axes_and_either_side(monkeypatch):
    monkeypatch.setattr(_gram.Leaf, "pays", lambda self: True)
    params = {"in": draw(0, 4, 2, 3), "out": draw(1, 2, 3, 5), "left": draw(2, 6, 5)}
    batch = draw(4, 2, 3, 4), draw(5, 6, 2, 3)
    result, shapes = read(blocks, params, *batch, monkeypatch=monkeypatch)
    assert_close(result, formed(blocks, params, *batch), DERIVATIVE)
    assert shapes == {(4, 2, 3), (2, 3, 5), (6, 5)}


@pytest.mark.x64
def test_derivatives_of_higher_order_and_other_arguments():
    params, x, y = dense_problem()
    ours, plain = (gradient_penalized(dense, STRENGTH, gram=gram) for gram in (True, False))

    def found(loss):
        def second(params, x):
            return jax.jvp(lambda p: jax.grad(loss)(p, x, y), (params,), (params,))[1]

        strength = jax.grad(lambda s: gradient_penalized(dense, s, gram=loss is ours)(params, x, y))(STRENGTH)
        return second(params, x), jax.grad(loss, 1)(params, x, y), strength

    assert_close(jax.jit(lambda: found(ours))(), jax.jit(lambda: found(plain))(), DERIVATIVE)


@pytest.mark.x64
def test_microbatches_aux_and_vmap():
    params, _, _ = dense_problem()
    x, y = draw(6, 4, 5), draw(7, 4, 1)

    def found(gram):
        loss = microbatch_gradient_penalized(
            lambda p, x, y: (dense(p, x, y), x[0]), STRENGTH, 2, has_aux=True, gram=gram
        )
        both = jax.value_and_grad(loss, has_aux=True)
        stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
        return both(params, x, y), jax.vmap(both, (0, None, None))(stacked, x, y)

    assert_close(jax.jit(lambda: found(True))(), jax.jit(lambda: found(False))(), DERIVATIVE)


def test_flax_models(monkeypatch):
    x, y = draw(0, 3, 8), draw(1, 3, 1)
    model = linen.Sequential([linen.Dense(16), jax.nn.relu, linen.Dense(12), jax.nn.silu, linen.Dense(1)])
    params = model.init(jax.random.key(0), x)

    def loss_fn(params, x, y):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    result, shapes = read(loss_fn, params, x, y, monkeypatch=monkeypatch)
    assert shapes == {(8, 16), (16, 12)}
    plain = jax.jit(jax.value_and_grad(gradient_penalized(loss_fn, STRENGTH)))(params, x, y)
    assert_close(result, plain, DERIVATIVE)

    module = nnx.Sequential(
        nnx.Linear(8, 16, rngs=nnx.Rngs(0)),
        jax.nn.gelu,
        nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
        nnx.Linear(16, 1, rngs=nnx.Rngs(2)),
    )

    def of_module(gram):
        loss = gradient_penalized(
            lambda m, x, y: jnp.mean((m(x) - y) ** 2), STRENGTH, value_and_grad=nnx.value_and_grad, gram=gram
        )
        return nnx.jit(nnx.value_and_grad(loss))(nnx.clone(module), x, y)

    assert_close(of_module(True), of_module(False), DERIVATIVE)


def test_the_gradient_is_never_formed():
    params = {"a": draw(0, 50, 60), "c": draw(1, 60, 70), "d": draw(2, 70, 1)}

    def loss(p, x):
        return jnp.mean((jnp.tanh(jnp.tanh(x @ p["a"]) @ p["c"]) @ p["d"]) ** 2)

    def flops(loss):
        return jax.jit(jax.grad(loss)).lower(params, draw(3, 4, 50)).compile().cost_analysis()["flops"]

    with_gram, without = (flops(gradient_penalized(loss, STRENGTH, gram=gram)) / flops(loss) for gram in (True, False))
    assert with_gram < 1.9 < 2.3 < without


@pytest.mark.parametrize(
    ("loss", "reasons"),
    [
        (lambda p, x: jnp.sum((x @ p["w"] @ p["w"]) ** 2), r"\['w'\]: its gradient has 2 terms: it enters .* once"),
        (lambda p, x: jnp.sum((x @ p["w"]) ** 2) + jnp.sum(p["w"] ** 2), r"\['w'\]: its gradient has 2 terms"),
        (lambda p, x: jnp.sum(p["w"][jnp.array([0, 1])] ** 2), r"\['w'\]: its gradient comes from `scatter-add`"),
        (
            lambda p, x: jnp.sum((x @ (p["w"].T @ p["v"])) ** 2),
            r"\['v'\]: it multiplies another .*\['w'\]: it multiplies",
        ),
        (lambda p, x: jnp.sum(p["w"] ** 3), r"\['w'\]: its gradient comes from `mul`"),
        (
            lambda p, x: jnp.sum(jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, None, length=2)[0]),
            r"\['w'\]: its gradient comes from `scan`",
        ),
        (
            lambda p, x: jnp.sum((x @ p["w"].astype(jnp.bfloat16)).astype(jnp.float32)),
            r"\['w'\]: its gradient comes from `convert_element_type`, .* float32 or wider",
        ),
    ],
)
def test_what_does_not_apply_is_refused_with_the_reason(loss, reasons):
    params, x = {"v": draw(0, 4, 4), "w": draw(1, 4, 4)}, draw(2, 3, 4)
    with pytest.raises(ValueError, match=rf"gradient_penalized: `gram` must be False .* got True; .*params{reasons}"):
        gradient_penalized(loss, STRENGTH, gram=True)(params, x)


@pytest.mark.x64
def test_the_rest_of_a_network_goes_its_own_way(monkeypatch):
    """A tied weight, a decayed one, a lookup and a convolution beside one that qualifies."""

    def loss(p, x, tokens):
        rows = p["lookup"][tokens] + jax.nn.relu(x @ p["plain"]) @ p["tied"] @ p["tied"]
        image = jax.lax.conv_general_dilated(rows[:, None], p["kernel"], (1,), "SAME")
        return jnp.mean(jnp.sin(image) ** 2) + 0.1 * jnp.sum(p["decayed"] ** 2) + jnp.mean((x @ p["decayed"]) ** 2)

    params = {"lookup": draw(0, 3, 6), "plain": draw(1, 5, 6), "tied": draw(2, 6, 6), "decayed": draw(3, 5, 5)}
    params |= {"kernel": draw(4, 1, 1, 3)}
    batch = draw(5, 2, 5), jnp.array([0, 2])
    result, shapes = read(loss, params, *batch, monkeypatch=monkeypatch)
    assert_close(result, formed(loss, params, *batch), DERIVATIVE)
    assert shapes == {(5, 6)}


def test_a_flag_is_a_flag():
    with pytest.raises(TypeError, match="`gram`"):
        gradient_penalized(dense, STRENGTH, gram="yes")


@pytest.mark.x64
def test_hessian_products_add_in_the_orientation_of_the_result():
    from implicit_reg.derivatives import hessian_vector_product

    params, x, y = dense_problem()
    gradient, product = jax.jit(lambda p: hessian_vector_product(lambda p: dense(p, x, y), p, p))(params)
    flat, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda z: dense(unravel(z), x, y)))(flat)
    assert_close(product, unravel(hessian @ flat), DERIVATIVE)
    assert_close(gradient, jax.jit(jax.grad(dense))(params, x, y), ROUND_OFF)
    program = jax.make_jaxpr(lambda p: hessian_vector_product(lambda p: dense(p, x, y), p, p)[1])(params).jaxpr
    made = {v: equation.primitive.name for equation in program.eqns for v in equation.outvars}
    transposed = [made.get(e.invars[0]) for e in program.eqns if e.primitive.name == "transpose"]
    assert "add_any" not in transposed
