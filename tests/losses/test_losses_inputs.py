"""Bad input: what was wanted, what came, and the cure, before any work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reg.losses import (
    adaptive_level,
    flooded,
    flooded_with_log,
    gradient_penalized,
    microbatch_gradient_penalized,
    soft_flooded,
    value_and_direction,
)


def scalar(x):
    return jnp.sum(x**2)


FLOODS = [flooded, flooded_with_log, soft_flooded]
PENALTIES = [gradient_penalized, lambda *a, **k: microbatch_gradient_penalized(*a, num_microbatches=1, **k)]


@pytest.mark.parametrize("wrap", FLOODS)
@pytest.mark.parametrize("level", ["0.1", [0.1], True, np.True_, 0.1j, jnp.array(1j), jnp.array(True)], ids=repr)
def test_level_of_a_wrong_type(wrap, level):
    with pytest.raises(TypeError, match="`level` must be"):
        wrap(scalar, level)


@pytest.mark.parametrize("wrap", FLOODS)
@pytest.mark.parametrize("level", [np.nan, np.inf, -np.inf, np.float32("nan"), jnp.ones((2, 2))], ids=repr)
def test_level_of_a_wrong_value(wrap, level):
    with pytest.raises(ValueError, match="`level` must be"):
        wrap(scalar, level)


def test_vectors_of_levels_need_per_example():
    with pytest.raises(ValueError, match="per_example=True"):
        flooded(scalar, jnp.ones(3))
    with pytest.raises(ValueError, match="`level` must be finite"):
        flooded(lambda x: x, np.array([0.1, np.nan]), per_example=True)
    with pytest.raises(ValueError, match=r"`level` has shape \(2,\) but loss_fn returned \(3,\)"):
        flooded(lambda x: x, jnp.ones(2), per_example=True)(jnp.ones(3))
    with pytest.raises(TypeError, match="`level` must be real"):
        flooded(lambda x: x, np.array([True]), per_example=True)


def test_schedules_are_for_the_transformation():
    with pytest.raises(TypeError, match=r"flooded: .*the transformation `flooding`"):
        flooded(scalar, lambda step: 0.1)


@pytest.mark.parametrize("wrap", [*FLOODS, *PENALTIES])
def test_losses_must_be_callable(wrap):
    with pytest.raises(TypeError, match="`loss_fn` must be callable"):
        wrap(jnp.ones(3), 0.1)


BAD_LOSSES = {
    "vector": lambda x: x,
    "pair": lambda x: (jnp.sum(x), x),
    "none": lambda x: None,
    "integer": lambda x: jnp.int32(1),
    "complex": lambda x: jnp.sum(x) * 1j,
}


@pytest.mark.parametrize("name", BAD_LOSSES)
@pytest.mark.parametrize("wrap", [flooded, flooded_with_log, gradient_penalized])
def test_bad_losses_stay_type_errors(wrap, name):
    for call in (wrap(BAD_LOSSES[name], 0.1), jax.grad(wrap(BAD_LOSSES[name], 0.1)), jax.grad(BAD_LOSSES[name])):
        with pytest.raises(TypeError):
            call(jnp.ones(3))


@pytest.mark.parametrize("wrap", [lambda f: flooded(f, 0.1, per_example=True), lambda f: soft_flooded(f, 0.1)])
def test_scalars_are_not_per_example(wrap):
    with pytest.raises(TypeError, match="must return a vector of real floating losses"):
        wrap(scalar)(jnp.ones(3))
    with pytest.raises(TypeError, match=r"got shape \(3, 1\)"):
        wrap(lambda x: x[:, None])(jnp.ones(3))


def test_missing_options_are_named():
    with pytest.raises(TypeError, match="needs per_example=True"):
        flooded(BAD_LOSSES["vector"], 0.1)(jnp.ones(3))
    with pytest.raises(TypeError, match="needs has_aux=True"):
        flooded(BAD_LOSSES["pair"], 0.1)(jnp.ones(3))
    with pytest.raises(TypeError, match=r"must return \(loss, aux\)"):
        flooded(scalar, 0.1, has_aux=True)(jnp.ones(3))
    with pytest.raises(TypeError):
        flooded(scalar, 0.1, per_example=1)


@pytest.mark.parametrize("wrap", PENALTIES)
@pytest.mark.parametrize(
    "strength",
    ["0.1", None, True, [0.1], 1j, lambda step: 0.1],
    ids=["text", "none", "bool", "list", "complex", "schedule"],
)
def test_strength_of_a_wrong_type(wrap, strength):
    with pytest.raises(TypeError, match="`strength` must be a finite real number"):
        wrap(scalar, strength)


@pytest.mark.parametrize("wrap", PENALTIES)
@pytest.mark.parametrize("strength", [np.nan, np.inf, np.ones(1)], ids=repr)
def test_strength_of_a_wrong_value(wrap, strength):
    with pytest.raises(ValueError, match="`strength` must be a finite real number"):
        wrap(scalar, strength)


def test_masks():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}

    def loss(params):
        return jnp.sum(params["a"] * params["b"])

    with pytest.raises(TypeError, match=r"mask\['a'\] must be True or False, got 1"):
        gradient_penalized(loss, 0.1, mask={"a": 1, "b": True})
    with pytest.raises(TypeError, match=r"mask\['a'\] must be True or False"):
        gradient_penalized(loss, 0.1, mask=lambda p: jax.tree.map(lambda x: x > 0, p))(params)
    with pytest.raises(ValueError, match=r"says nothing of params\['b'\]"):
        gradient_penalized(loss, 0.1, mask={"a": True})(params)
    with pytest.raises(ValueError, match=r"mask\['c'\] is of no leaf"):
        gradient_penalized(loss, 0.1, mask={"a": True, "b": True, "c": True})(params)


def test_the_function_that_differentiates():
    with pytest.raises(TypeError, match=r"must return \(value, gradient\) as jax.value_and_grad does"):
        gradient_penalized(scalar, 0.1, value_and_grad=jax.grad)(jnp.ones(2))
    with pytest.raises(TypeError, match="`value_and_grad` must be callable"):
        gradient_penalized(scalar, 0.1, value_and_grad=None)
    with pytest.raises(TypeError, match="with respect to the first argument"):
        gradient_penalized(
            lambda a, b: scalar(a) + b["w"], 0.1, value_and_grad=lambda f: jax.value_and_grad(f, argnums=1)
        )(jnp.ones(2), {"w": 1.0})


def test_integer_parameters_keep_the_error_of_jax():
    with pytest.raises(TypeError, match="int32"):
        gradient_penalized(lambda x: jnp.sum(x * 1.0), 0.1)(jnp.ones(2, jnp.int32))


def test_losses_without_second_derivatives_say_what_helps():
    @jax.custom_vjp
    def once(x):
        return jnp.sum(x**2)

    def backward(x, ct):
        return (jax.pure_callback(lambda x: 2 * np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x) * ct,)

    once.defvjp(lambda x: (once(x), x), backward)
    with pytest.raises(ValueError) as caught:
        jax.grad(gradient_penalized(once, 0.1))(jnp.ones(2))
    assert "add_finite_difference_penalty needs first ones only" in caught.value.__notes__[0]
    # The value needs first derivatives only.
    assert gradient_penalized(once, 0.1)(jnp.ones(2)) == jnp.float32(2.8)


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_numbers_of_microbatches(number, error):
    with pytest.raises(error, match="`num_microbatches` must be an integer, at least 1"):
        microbatch_gradient_penalized(scalar, 0.1, number)


def test_soft_and_adaptive_numbers():
    with pytest.raises(ValueError, match=r"`scale` must be .* greater than 0"):
        soft_flooded(scalar, 0.1, scale=0.0)
    with pytest.raises(TypeError, match="`level_weight` must be"):
        soft_flooded(scalar, 0.1, level_weight="1")
    losses = jnp.ones(2)
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`gamma` must be"):
            adaptive_level(losses, gamma)
    with pytest.raises(ValueError, match="`alpha` must be"):
        adaptive_level(losses, alpha=np.nan)
    with pytest.raises(TypeError, match="`beta` must be"):
        adaptive_level(losses, beta=None)
    with pytest.raises(TypeError, match="auxiliary_losses"):
        adaptive_level(jnp.ones(2, jnp.int32))
    with pytest.raises(TypeError, match="auxiliary_losses"):
        adaptive_level([0.1, 0.2])


def test_oracle():
    with pytest.raises(TypeError, match=r"`transformation` must be an optax.GradientTransformation"):
        value_and_direction(None, scalar)
    with pytest.raises(TypeError, match="`loss_fn` must be callable"):
        value_and_direction(optax.identity(), None)
