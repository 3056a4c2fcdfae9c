"""Parameters sharded over a mesh stay sharded: updates and states of every transformation, on eight forced devices."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerances import DERIVATIVE, assert_close

from implicit_reg import losses, transforms
from implicit_reg.methods import METHODS

STEPS = 3
H = 0.1
SHAPES = {"first": (8, 16), "bias": (16,), "second": (16, 24), "last": (24,), "scale": ()}


class Layout(NamedTuple):
    """A mesh, where the parameters lie on it, and where the batch does."""

    axes: dict[str, int]
    specs: dict[str, P]
    batch: P


LAYOUTS = {
    # The second product contracts over the axis along which both its factors are split.
    "tensor": Layout(
        {"data": 4, "model": 2},
        {"first": P(None, "model"), "bias": P("model"), "second": P("model", None), "last": P(), "scale": P()},
        P("data"),
    ),
    # The parameters are split over the devices that share the batch: the gradient itself gathers them.
    "whole": Layout(
        {"data": 8},
        {"first": P("data", None), "bias": P("data"), "second": P(None, "data"), "last": P("data"), "scale": P()},
        P("data"),
    ),
}


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


class Case(NamedTuple):
    """A transformation, a wrapper of the loss if it is one, and how many gradients a step takes at most."""

    transformation: optax.GradientTransformation
    gradients: int = 1
    wrap: Callable = lambda loss: loss
    fill: bool = False


def every_case() -> dict[str, Case]:
    cases = {
        f"method {name}": Case(
            row.build(momentum, H, **row.hyperparameters), int(row.gradients_per_step(**row.hyperparameters))
        )
        for name, row in METHODS.items()
    }
    trained = {name: name != "bias" for name in SHAPES}
    labels = {name: "ours" if kept else "plain" for name, kept in trained.items()}
    penalty = optax.chain(transforms.add_gradient_penalty(0.01), momentum(H))
    cases |= {
        "penalty of some": Case(optax.chain(transforms.add_gradient_penalty(0.01, mask=trained), momentum(H)), 3),
        "penalty in a partition": Case(optax.partition({"ours": penalty, "plain": momentum(H)}, labels), 3, fill=True),
        "backstitch, every second": Case(transforms.backstitch(optax.adam(H), 0.3, interval=2), 2),
        "backstitch of flooding": Case(transforms.backstitch(optax.chain(transforms.flooding(0.1), momentum(H))), 2),
        "noise": Case(optax.chain(transforms.add_decaying_noise(1e-3, 0.5, jax.random.key(0)), momentum(H))),
        "injected": Case(
            optax.inject_hyperparams(lambda alpha: transforms.backstitch(momentum(H), alpha))(
                alpha=lambda count: 0.3 / (1 + count)
            ),
            2,
        ),
        "flooded loss": Case(momentum(H), wrap=lambda loss: losses.flooded(loss, 0.1)),
        "soft flooded loss": Case(momentum(H), wrap=lambda _: losses.soft_flooded(example_losses, 0.1)),
        "penalized loss": Case(momentum(H), 3, wrap=lambda loss: losses.gradient_penalized(loss, 0.01)),
        "penalized in parts": Case(
            momentum(H), 3, wrap=lambda loss: losses.microbatch_gradient_penalized(loss, 0.01, 2)
        ),
    }
    return cases


CASES = every_case()


def test_every_transformation_is_here():
    assert {f"method {name}" for name in METHODS} <= set(CASES)
    seen = {"add_gradient_penalty", "add_finite_difference_penalty", "backstitch", "sam", "flooding", "alternating"}
    seen |= {"add_decaying_noise", "fill_masked", "nnx_value_fn"}
    states_and_readers = {"BackstitchState", "FloodingState", "NnxValueFn", "flooded_fraction"}
    assert set(transforms.__all__) == seen | states_and_readers
    wrappers = {"flooded", "soft_flooded", "gradient_penalized", "microbatch_gradient_penalized"}
    assert set(losses.__all__) == wrappers | {"FloodLog", "adaptive_level", "flooded_with_log", "value_and_direction"}


def example_losses(params, x, y):
    hidden = jnp.tanh(x @ params["first"] + params["bias"])
    return (params["scale"] * jnp.tanh(hidden @ params["second"]) @ params["last"] - y) ** 2


def loss_fn(params, x, y):
    return jnp.mean(example_losses(params, x, y))


@functools.cache
def host():
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}
    x, y = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((16, 8), (16,)))
    return params, x, y


def placed(layout: Layout, kind: AxisType = AxisType.Auto, split_batch: bool = True):
    mesh = jax.make_mesh(tuple(layout.axes.values()), tuple(layout.axes), axis_types=(kind,) * len(layout.axes))
    params, x, y = host()
    params = {name: jax.device_put(leaf, NamedSharding(mesh, layout.specs[name])) for name, leaf in params.items()}
    batch = NamedSharding(mesh, layout.batch if split_batch else P())
    return mesh, params, jax.device_put(x, batch), jax.device_put(y, batch)


def separable(params, x, y):
    """Without products, whose placement the model would have to name where axes are explicit."""
    del x, y
    return params["scale"] * sum(jnp.sum(jnp.tanh(leaf) ** 2) for leaf in jax.tree.leaves(params))


def step_of(case: Case, loss=loss_fn):
    wrapped = case.wrap(loss)

    def step(params, state, x, y):
        value_fn = lambda p: wrapped(p, x, y)  # noqa: E731
        value, grad = jax.value_and_grad(value_fn)(params)
        again = transforms.fill_masked(value_fn, params) if case.fill else value_fn
        extra = {"value": value, "grad": grad, "value_fn": again}
        transformation = optax.with_extra_args_support(case.transformation)
        updates, state = transformation.update(grad, state, params, **extra)
        return updates, state, optax.apply_updates(params, updates)

    return step


def check_placed(tree, like, *, places: int | None = None) -> None:
    """Every leaf that has a parameter's shape lies as that parameter does; `places`: how many there must be."""
    by_shape = {leaf.shape: leaf for leaf in jax.tree.leaves(like) if leaf.ndim}
    seen = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = getattr(leaf, "shape", ())
        if shape in by_shape:
            seen += 1
            expected, found = by_shape[shape].sharding, leaf.sharding
            if isinstance(leaf, jax.ShapeDtypeStruct):  # whose mesh names no devices
                found = NamedSharding(expected.mesh, found.spec)
            assert found.is_equivalent_to(expected, leaf.ndim), f"{jax.tree_util.keystr(path)}: {found}, not {expected}"
    assert places is None or seen == places


def gathers(compiled) -> int:
    return len(re.findall(r" all-gather(?:-start)?\(", compiled.as_text()))


def compiled_step(case: Case, layout: str, split_batch: bool = True):
    """The program, parameters, state and batch; counts lie on the whole mesh, as a step leaves them."""
    mesh, params, *batch = placed(LAYOUTS[layout], split_batch=split_batch)
    state = case.transformation.init(params)
    check_placed(state, params)
    everywhere = NamedSharding(mesh, P())
    state = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) else jax.device_put(leaf, everywhere), state)
    return jax.jit(step_of(case)).lower(params, state, *batch).compile(), params, state, batch


@functools.cache
def plain_gathers(layout: str, split_batch: bool = True) -> int:
    return gathers(compiled_step(Case(momentum(H)), layout, split_batch)[0])


@pytest.mark.parametrize("name", CASES)
def test_updates_and_states_lie_as_the_parameters_do(name):
    # Minibatches that are cut from a batch which devices share are gathered: of those, nothing is said here.
    case, split_batch = CASES[name], not ("flood" in name or "parts" in name)
    # A compiled program takes only what lies as it did when it was compiled: the steps show that nothing moves.
    program, start, state, batch = compiled_step(case, "tensor", split_batch)
    assert gathers(program) <= case.gradients * plain_gathers("tensor", split_batch)
    alone, (expected, *same_batch) = jax.jit(step_of(case)), host()
    params, expected_state = start, case.transformation.init(expected)
    for _ in range(STEPS):
        updates, state, params = program(params, state, *batch)
        check_placed(updates, start, places=4)
        check_placed(state, start)
        check_placed(params, start, places=4)
        expected_updates, expected_state, expected = alone(expected, expected_state, *same_batch)
        assert_close(jax.device_get(updates), jax.device_get(expected_updates), DERIVATIVE)


@pytest.mark.parametrize("name", METHODS)
def test_no_more_of_the_parameters_is_gathered_than_by_the_gradients(name):
    case = CASES[f"method {name}"]
    program, params, state, batch = compiled_step(case, "whole")
    plain = plain_gathers("whole")
    assert 0 < plain <= 4
    assert gathers(program) <= case.gradients * plain
    updates, state, _ = program(params, state, *batch)
    check_placed(updates, params, places=4)
    check_placed(state, params)


@pytest.mark.parametrize("name", [name for name in CASES if "loss" not in name and "parts" not in name])
def test_explicit_axes_keep_types(name):
    """Where shardings are part of types nothing need be compiled to see them, those of a jitted `init` included."""
    case = CASES[name]
    mesh, params, x, y = placed(LAYOUTS["tensor"], AxisType.Explicit)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(case.transformation.init, params)
        check_placed(state, params)
        updates, state, after = jax.eval_shape(step_of(case, separable), params, case.transformation.init(params), x, y)
    for tree, places in ((updates, 4), (state, None), (after, 4)):
        check_placed(tree, params, places=places)


def test_a_model_of_nnx():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    model = nnx.Linear(4, 16, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    place = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P(*(None,) * (leaf.ndim - 1), "model")))  # noqa: E731
    model = nnx.merge(graph, jax.tree.map(place, state))
    optimizer = nnx.Optimizer(model, transforms.backstitch(momentum(H)), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, x):
        split = transforms.nnx_value_fn(model, lambda model, x: jnp.mean(model(x) ** 2), x)
        (value, rest), grads = jax.value_and_grad(split.value_and_rest, has_aux=True)(split.params)
        optimizer.update(model, grads, value=value, value_fn=split.value_fn)
        nnx.update(model, rest)

    params = nnx.as_pure(nnx.state(model, nnx.Param))
    check_placed(nnx.as_pure(nnx.state(optimizer)), params)
    for _ in range(2):
        train(model, optimizer, jnp.ones((4, 4)))
    check_placed(nnx.as_pure(nnx.state(model, nnx.Param)), params, places=2)
    check_placed(nnx.as_pure(nnx.state(optimizer)), params)
