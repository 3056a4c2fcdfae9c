"""Convolutions inside loops and branches: the same numbers, in the layout that XLA's CPU back end is fast in."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tolerances import ROUND_OFF, assert_close

import implicit_reg as ir
from implicit_reg import canonical_convolutions, curvature, losses, strength
from implicit_reg._callables import hashable
from implicit_reg.curvature.operators import hessian_operator
from implicit_reg.experiments import run_steps
from implicit_reg.experiments.axes import make_runs
from implicit_reg.experiments.lanes import Lanes
from implicit_reg.training.program import Arrays, Knobs, Program

SPATIAL = ("", "W", "HW", "DHW")
CANONICAL = {"b0f_0io->b0f", "b01f_01io->b01f", "b012f_012io->b012f"}


def network(params, x, y):
    """Two convolutions, images as (batch, height, width, features)."""
    for name in ("a", "b"):
        x = jnp.tanh(jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", dimension_numbers=LAYOUT))
    return jnp.mean((jnp.mean(x, (1, 2)) @ params["c"] - y) ** 2)


LAYOUT = ("NHWC", "HWIO", "NHWC")


def problem(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((3, 3, 1, 4), (3, 3, 4, 3), (3, 2), (5, 6, 7, 1), (5, 2))
    a, b, c, x, y = (jax.random.normal(key, shape, dtype) / 2 for key, shape in zip(keys, shapes, strict=True))
    return {"a": a, "b": b, "c": c}, (x, y)


def layouts(compiled):
    """The layout of every convolution in a compiled program, wherever it stands."""
    return re.findall(r"convolution\(.*dim_labels=([0-9a-z_>-]+)", compiled.as_text())


def layouts_of(fn, *args):
    return layouts(jax.jit(fn).lower(*args).compile())


def assert_canonical(fn, *args):
    found = layouts_of(fn, *args)
    assert found
    assert set(found) <= CANONICAL, found


FORMS = ("plain", "strided", "dilated", "grouped", "batch-grouped", "transposed")


@pytest.mark.parametrize(("form", "spatial"), [*((form, 2) for form in FORMS), ("plain", 1), ("plain", 3)])
def test_every_convolution_is_the_same_sum(spatial, form):
    """Each axis has its own length, so that no two can be taken for one another."""
    groups = 2 if form == "grouped" else 1
    batch_groups = 2 if form == "batch-grouped" else 1
    names = SPATIAL[spatial]
    sizes = {"N": 4, "C": 6, "I": 6 // groups, "O": 8, **dict(zip(names, (9, 7, 5), strict=False))}
    window = dict(zip(names, (2, 3, 1), strict=False))
    # As many orders of the axes as there are tests: reversed, and turned by one.
    lhs, rhs, out = "CN" + names, (names + "OI")[::-1], names[::-1] + "NC"
    extra = {
        "strided": {"window_strides": (2, 1, 3)[:spatial]},
        "dilated": {"rhs_dilation": (3, 2, 1)[:spatial]},
        "transposed": {"lhs_dilation": (2, 3, 1)[:spatial]},
    }.get(form, {})

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            **{"window_strides": (1,) * spatial, **extra},
            padding=((1, 0), (0, 2), (0, 0))[:spatial],
            dimension_numbers=(lhs, rhs, out),
            feature_group_count=groups,
            batch_group_count=batch_groups,
        )

    keys = jax.random.split(jax.random.key(spatial))
    x = jax.random.normal(keys[0], [sizes[n] for n in lhs])
    kernel = jax.random.normal(keys[1], [{**sizes, **window}[n] for n in rhs])
    wanted = convolve(x, kernel)
    assert len(set(wanted.shape)) > 1
    assert_close(canonical_convolutions(convolve)(x, kernel), wanted, ROUND_OFF)

    def slopes(x, kernel):
        return jax.grad(lambda *args: jnp.sum(jnp.sin(convolve(*args))), argnums=(0, 1))(x, kernel)

    assert_close(jax.jit(canonical_convolutions(slopes))(x, kernel), jax.jit(slopes)(x, kernel), ROUND_OFF)
    if form != "transposed" and spatial < 3:  # there XLA may exchange the operands of the kernel's gradient
        assert_canonical(canonical_convolutions(slopes), x, kernel)


def loops(gradient, params):
    """The same two steps in every kind of loop and branch that JAX has."""
    step = lambda p: jax.tree.map(lambda a, g: a - 0.1 * g, p, gradient(p))  # noqa: E731
    yield "fori", jax.lax.fori_loop(0, jnp.int32(2), lambda _, p: step(p), params)
    yield "while", jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, step(c[1])), (0, params))[1]
    yield "scan", jax.lax.scan(lambda p, _: (step(p), None), params, length=2)[0]
    twice = lambda p: step(step(p))  # noqa: E731
    yield "cond", jax.lax.cond(params["c"][0, 0] < 9, twice, lambda p: p, params)
    yield "switch", jax.lax.switch(jnp.int32(1) + 0 * params["c"][0, 0].astype(int), [lambda p: p, twice], params)
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    yield "map", jax.tree.map(lambda a: a[0], jax.lax.map(twice, stacked))
    yield "remat", jax.lax.fori_loop(0, 2, lambda _, p: jax.checkpoint(step)(p), params)
    yield "jit", jax.lax.fori_loop(0, 2, lambda _, p: jax.jit(step)(p), params)
    nested = lambda p: jax.lax.fori_loop(0, 1, lambda _, p: step(p), p)  # noqa: E731
    yield "nested", jax.lax.fori_loop(0, 2, lambda _, p: jax.lax.cond(True, nested, lambda p: p, p), params)


def test_loops_and_branches_have_the_numbers_and_no_other_layout():
    params, data = problem()
    gradient = lambda p: jax.grad(network)(p, *data)  # noqa: E731
    run = lambda p: dict(loops(gradient, p))  # noqa: E731
    plain, found = jax.jit(run)(params), jax.jit(canonical_convolutions(run))(params)
    assert set(found) == {"fori", "while", "scan", "cond", "switch", "map", "remat", "jit", "nested"}
    assert_close(found, plain, ROUND_OFF)
    assert_close(found["fori"], found["cond"], ROUND_OFF)
    assert set(layouts_of(run, params)) - CANONICAL  # XLA does not do it
    assert_canonical(canonical_convolutions(run), params)


def test_transformations_of_what_was_rewritten():
    params, data = problem()

    def loop(params, x):
        step = lambda _, p: jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(network)(p, x, data[1]))  # noqa: E731
        return jax.lax.fori_loop(0, 2, step, params)

    def uses(loop):
        """Reverse mode through it, lanes of it, and one whose closure is differentiated."""
        ends = lambda x: jnp.sum(loop(params, x)["b"] ** 2)  # noqa: E731
        many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
        closed = lambda x: canonical_convolutions(lambda p: loop(p, x))(params)["a"]  # noqa: E731
        return lambda x: (
            jax.grad(ends)(x), jax.vmap(loop, in_axes=(0, None))(many, x), jax.jvp(closed, (x,), (jnp.cos(x),))
        )  # fmt: skip

    found = jax.jit(uses(canonical_convolutions(loop)))(data[0])
    assert_close(found, jax.jit(uses(loop))(data[0]), ROUND_OFF)


def test_a_program_without_convolutions_is_the_same_program():
    def fn(x, *, scale):
        return {"y": jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x) * scale, x), "none": None}

    x = jnp.arange(3.0)
    assert str(jax.make_jaxpr(canonical_convolutions(lambda x: fn(x, scale=2.0)))(x)) == str(
        jax.make_jaxpr(lambda x: fn(x, scale=2.0))(x)
    )
    assert canonical_convolutions(fn)(x, scale=2.0)["none"] is None
    count = []
    canonical_convolutions(lambda x: count.append(1) or x)(x)
    assert len(count) == 1
    with pytest.raises(TypeError, match=r"canonical_convolutions: `fn` must be callable: .*; got 3 of type int"):
        canonical_convolutions(3)


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    count = []
    assert canonical_convolutions(lambda x: count.append(x) or 7)("as it is") == 7
    assert count == ["as it is"]


LOOPS = {
    "descend": lambda p, d: ir.descend(optax.sgd, lambda q: network(q, *d), p, 0.1, 2).params,
    "integrate": lambda p, d: ir.integrate(ir.gradient_field(lambda q: network(q, *d)), p, [0.1], 0.1).params,
    "backstitch": lambda p, d: _updated(ir.backstitch(optax.sgd(0.1), interval=2), p, d),
    "run_steps": lambda p, d: (
        run_steps(optax.sgd(0.1), lambda q: network(q, *d), p, None, 2, every=1, observe=lambda q, s: q["c"]).params
    ),
    "products": lambda p, d: _product(hessian_operator(network, p, d), p),
    "products, minibatches": lambda p, d: _product(hessian_operator(network, p, d, batch_size=2), p),
    "lanczos": lambda p, d: curvature.sharpness(network, p, d, num_steps=2),
    "flatness": lambda p, d: curvature.epsilon_sharpness(network, p, d, num_steps=1),
    "monitor": lambda p, d: strength.monitor(
        network, strength.GradientDescent(0.1), strength.Shuffled(num_examples=5, batch_size=1), data=d, num_steps=2
    )(p),
    "epochs": lambda p, d: ir.mean_epoch(optax.sgd, lambda q, k: network(q, *(x[k, None] for x in d)), 2, p, 0.1)[0],
    "microbatches": lambda p, d: jax.grad(losses.microbatch_gradient_penalized(network, 0.1, 5))(p, *d),
}


def _updated(transformation, params, data):
    value_fn = hashable(lambda p: network(p, *data))
    updates = jax.grad(value_fn)(params)
    return transformation.update(updates, transformation.init(params), params, value_fn=value_fn)[0]


def _product(operator, params):
    product = operator.repeated()
    return jax.lax.fori_loop(0, 2, lambda _, v: product(v), jnp.ones(operator.size, operator.dtype))


@pytest.mark.parametrize("name", LOOPS)
def test_the_loops_of_the_library(name):
    params, data = problem()
    assert_canonical(LOOPS[name], params, data)


def test_lanes_of_a_sweep():
    params, data = problem()

    def run(key, h):
        step = lambda p, _: (jax.tree.map(lambda a, g: a - h * g, p, jax.grad(network)(p, *data)), None)  # noqa: E731
        return jax.lax.scan(step, params, length=2)[0]["c"]

    lanes = Lanes(run, make_runs({"h": [0.1]}), 0, jax.random.key(0), 1, None)
    ends = lanes([[0]])["value"]
    assert_close(ends[0], ir.descend(optax.sgd, lambda p: network(p, *data), params, 0.1, 2).params["c"][-1], ROUND_OFF)
    (program,) = lanes._compiled.values()
    assert layouts(program)
    assert set(layouts(program)) <= CANONICAL


def test_an_epoch_of_training():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Conv(4, 3, (3, 3), rngs=rngs)

        def __call__(self, x, rngs=None):
            return jnp.mean(self.b(jnp.tanh(self.a(x))), (1, 2))

    program = Program(
        build_model=Network,
        build_method=lambda learning_rate, hyper, key: optax.sgd(learning_rate),
        shape=None,
        task="classification",
        num_examples=4,
        batch_size=2,
    )
    images, labels = problem()[1][0][:4], jnp.array([0, 1, 2, 0])
    arrays, knobs = Arrays(*[images, labels] * 3), Knobs(jnp.float32(0.1), {}, jnp.int32(2))
    state = program.init(jax.random.key(0), knobs)
    assert_canonical(program.epoch, state, arrays, knobs, program.order(state.key, state.epoch))


def test_numpy_arguments():
    params, data = problem()
    as_numpy = jax.tree.map(np.asarray, (params, data))
    wanted = network(params, *data)
    assert_close(canonical_convolutions(network)(as_numpy[0], *as_numpy[1]), wanted, ROUND_OFF)
