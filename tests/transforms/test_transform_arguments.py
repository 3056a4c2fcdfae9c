"""Bad arguments: one error each, before anything is traced, that names the function, the argument and the rule."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import implicit_reg.transforms as tr

SGD = optax.sgd(0.1)
KEY = jax.random.key(0)

NUMBERS = {  # name, argument -> a constructor of that one number
    ("flooding", "level"): tr.flooding,
    ("add_gradient_penalty", "strength"): tr.add_gradient_penalty,
    ("add_finite_difference_penalty", "strength"): lambda x: tr.add_finite_difference_penalty(x, 0.1),
    ("add_finite_difference_penalty", "displacement"): lambda x: tr.add_finite_difference_penalty(0.1, x),
    ("sam", "radius"): tr.sam,
    ("backstitch", "alpha"): lambda x: tr.backstitch(SGD, x),
    ("alternating", "descent"): lambda x: tr.alternating(x, 0.1),
    ("alternating", "ascent"): lambda x: tr.alternating(0.1, x),
    ("add_decaying_noise", "c"): lambda x: tr.add_decaying_noise(x, 0.5, KEY),
    ("add_decaying_noise", "r"): lambda x: tr.add_decaying_noise(0.5, x, KEY),
}
every_number = pytest.mark.parametrize(
    ("place", "make"), NUMBERS.items(), ids=lambda x: "-".join(x) if isinstance(x, tuple) else ""
)


@every_number
@pytest.mark.parametrize("value", ["0.1", [0.1], True, 1j, {"x": 1}], ids=repr)
def test_what_is_not_a_number_is_a_type_error(place, make, value):
    with pytest.raises(TypeError, match=rf"^{place[0]}: `{place[1]}` must be a finite real number"):
        make(value)


@every_number
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32("nan")], ids=repr)
def test_what_is_not_finite_is_a_value_error(place, make, value):
    with pytest.raises(ValueError, match=rf"^{place[0]}: `{place[1]}` must be a finite real number.*got {value}"):
        make(value)


@every_number
def test_what_is_not_a_scalar_is_a_value_error(place, make):
    for value in (np.ones(2), jnp.ones((1,))):
        with pytest.raises(ValueError, match=rf"^{place[0]}: `{place[1]}`.*scalar; got shape.*jax.vmap"):
            make(value)


@every_number
def test_complex_arrays_are_a_type_error(place, make):
    with pytest.raises(TypeError, match=rf"^{place[0]}: `{place[1]}` must be .* got dtype complex64"):
        make(jnp.complex64(1))


@every_number
def test_numbers_of_every_kind_are_taken(place, make):
    for value in (1, 0.5, np.float32(0.5), np.int64(1), np.array(0.5), jnp.float32(0.5), jnp.int32(1)):
        make(value)
    jax.eval_shape(lambda x: (make(x), x)[1], 0.5)  # a tracer


SIGNED = {("flooding", "level"), ("add_gradient_penalty", "strength"), ("add_finite_difference_penalty", "strength")}
SIGNED |= {("alternating", "descent"), ("alternating", "ascent")}


@every_number
def test_signs(place, make):
    if place in SIGNED:
        make(-0.5)
    else:
        with pytest.raises(ValueError, match=rf"^{place[0]}: `{place[1]}` must be a finite real number, .* got -0.5"):
            make(-0.5)
    if place[1] == "displacement":
        with pytest.raises(ValueError, match=r"greater than 0, got 0.*add_gradient_penalty"):
            make(0.0)
    else:
        make(0)


@every_number
def test_schedules(place, make):
    if place[0] in ("flooding", "alternating"):
        make(optax.constant_schedule(0.1))
        return
    with pytest.raises(TypeError, match=rf"^{place[0]}: `{place[1]}` must be .*inject_hyperparams"):
        make(optax.constant_schedule(0.1))


def test_a_schedule_s_value_is_checked_as_the_level_is():
    tx = tr.flooding(lambda step: jnp.ones(2))
    with pytest.raises(ValueError, match=r"flooding: `level`.*scalar"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=jnp.float32(1))


@pytest.mark.parametrize("argument", ["interval", "offset"])
def test_counts_of_backstitch(argument):
    for value in (2.0, 1.5, "2", True, jnp.float32(2)):
        with pytest.raises(TypeError, match=rf"backstitch: `{argument}` must be an integer"):
            tr.backstitch(SGD, **{argument: value})
    with pytest.raises(
        ValueError,
        match=rf"backstitch: `{argument}` must be an integer, at least ., got -1",
    ):
        tr.backstitch(SGD, **{argument: -1})
    with pytest.raises(ValueError, match=r"scalar; got shape"):
        tr.backstitch(SGD, **{argument: jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match=r"`interval` must be an integer, at least 1, got 0"):
        tr.backstitch(SGD, interval=0)
    tr.backstitch(SGD, interval=10**6, offset=np.int32(3))


def test_the_base_of_backstitch():
    with pytest.raises(TypeError, match=r"backstitch: `optimizer` must be .*Did you mean sgd\(learning_rate\)\?"):
        tr.backstitch(optax.sgd)
    with pytest.raises(TypeError, match=r"backstitch: `optimizer` must be an optax.GradientTransformation, got 0.1"):
        tr.backstitch(0.1)


def test_the_flag_of_sam():
    with pytest.raises(TypeError, match=r"sam: `normalize` must be True or False, got 1 of type int"):
        tr.sam(0.1, normalize=1)


def test_masks():
    params = {"a": jnp.ones(2), "b": jnp.ones(1)}
    with pytest.raises(TypeError, match=r"add_gradient_penalty: mask\['a'\] must be True or False, got 1.0"):
        tr.add_gradient_penalty(0.1, mask={"a": 1.0, "b": True})
    for mask in ({"a": True}, lambda p: {"a": True}):
        tx = tr.add_gradient_penalty(0.1, mask=mask)
        with pytest.raises(ValueError, match=r"add_gradient_penalty: `mask` must have the structure of the parameters"):
            tx.update(params, tx.init(params), params, value_fn=lambda p: jnp.sum(p["a"]))


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (0.5, TypeError),
        ("0", TypeError),
        (True, TypeError),
        (None, TypeError),
        (-1, ValueError),
        (2**32, ValueError),
        (jax.random.split(KEY), TypeError),
        (jnp.zeros(3, jnp.uint32), TypeError),
        (jnp.float32(1), TypeError),
    ],
    ids=str,
)
def test_keys(key, error):
    with pytest.raises(error, match=r"add_decaying_noise: `key` must be"):
        tr.add_decaying_noise(0.1, 0.5, key)


def test_a_key_is_needed():
    with pytest.raises(TypeError, match=r"key"):
        tr.add_decaying_noise(0.1, 0.5)


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_noise_is_for_real_leaves(dtype):
    with pytest.raises(TypeError, match=rf"add_decaying_noise: params\['a'\] has dtype {dtype}"):
        tr.add_decaying_noise(0.1, 0.5, 0).init({"a": jnp.ones(2, dtype)})


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (jnp.ones(1), ValueError, r"must be a scalar loss, got shape \(1,\)"),
        (jnp.ones(3), ValueError, r"must be a scalar loss, got shape \(3,\)"),
        (1, TypeError, "must be a real floating scalar, got dtype int32"),
        (jnp.complex64(1), TypeError, "must be a real floating scalar, got dtype complex64"),
    ],
    ids=str,
)
def test_the_value_that_flooding_gets(value, error, text):
    tx = tr.flooding(0.1)
    with pytest.raises(error, match=text):
        jax.jit(lambda v: tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=v))(value)


METHODS = {
    "penalty": tr.add_gradient_penalty(0.1),
    "difference": tr.add_finite_difference_penalty(0.1, 0.1),
    "sam": tr.sam(0.1),
    "backstitch": tr.backstitch(SGD),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "value_fn", [lambda p: p, lambda p: (jnp.sum(p), p), lambda p: jnp.int32(1)], ids=["vector", "aux", "integer"]
)
def test_a_loss_that_is_not_a_real_scalar_is_jax_s_type_error_with_a_note(name, value_fn):
    tx, x = METHODS[name], jnp.ones(2)
    with pytest.raises(TypeError) as caught:
        tx.update(x, tx.init(x), x, value_fn=value_fn)
    notes = " ".join(caught.value.__notes__)
    assert "called `value_fn` with a tree PyTreeDef(*)" in notes
    assert ("add_finite_difference_penalty needs first ones only" in notes) == (name == "penalty")


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_cannot_be_called(name):
    tx, x = METHODS[name], jnp.ones(2)
    with pytest.raises(TypeError, match=r"`value_fn` must be callable: params -> scalar loss; got 3.0"):
        tx.update(x, tx.init(x), x, value_fn=3.0)


@pytest.mark.parametrize("name", ["penalty", "difference", "sam"])
def test_a_grad_that_does_not_fit(name):
    tx, x = METHODS[name], jnp.ones(2)
    with pytest.raises(ValueError, match=r"grad has shape \(3,\) but updates has shape \(2,\)"):
        tx.update(x, tx.init(x), x, value_fn=jnp.sum, grad=jnp.ones(3))


def test_the_penalty_of_a_loss_without_second_derivatives_names_the_cure():
    @jax.custom_vjp
    def loss(x):
        return jnp.sum(x**2)

    loss.defvjp(lambda x: (loss(x), x), lambda x, ct: (jax.pure_callback(np.asarray, x, x),))
    tx, x = METHODS["penalty"], jnp.ones(2)
    with pytest.raises(Exception) as caught:  # whatever JAX says
        tx.update(x, tx.init(x), x, value_fn=loss)
    assert re.search("add_finite_difference_penalty", " ".join(caught.value.__notes__))


def test_filling():
    with pytest.raises(TypeError, match=r"fill_masked: `value_fn` must be callable"):
        tr.fill_masked(1.0, {})
    with pytest.raises(ValueError, match=r"fill_masked: `params` must be all the parameters"):
        tr.fill_masked(jnp.sum, {"a": optax.MaskedNode()})
