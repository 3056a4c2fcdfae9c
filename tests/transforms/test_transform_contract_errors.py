"""Every transformation where it cannot work: one error each, that names the cure."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest
from transformation_cases import (
    CASES,
    H,
    by_name,
    holds_its_optimizer,
    loss_fn,
    make_params,
)

every_case = pytest.mark.parametrize("case", CASES, ids=by_name)
cases_with_value_fn = pytest.mark.parametrize("case", [c for c in CASES if c.needs == "value_fn"], ids=by_name)
cases_with_extras = pytest.mark.parametrize("case", [c for c in CASES if c.needs], ids=by_name)


@cases_with_value_fn
def test_holes_without_fill_masked_are_an_error(case):
    tx, params = optax.masked(case.at(H), {"b": False, "w": True}), make_params()
    value, grads = jax.value_and_grad(loss_fn)(params)
    with pytest.raises(ValueError, match=r"MaskedNode.*value_fn=fill_masked"):
        tx.update(grads, tx.init(params), params, value=value, value_fn=loss_fn)


def walls(tx):
    """Containers that hand on no extra argument."""
    yield optax.MultiSteps(tx, 2).gradient_transformation(), lambda params: params
    yield optax.chain(optax.MultiSteps(tx, 2).gradient_transformation(), optax.identity()), lambda params: params
    yield optax.lookahead(tx, 5, 0.5), optax.LookaheadParams.init_synced
    yield optax.contrib.split_real_and_imaginary(tx), lambda params: params


@cases_with_extras
def test_containers_that_drop_extra_arguments_are_an_error(case):
    for tx, prepare in walls(case.at(H)):
        params = prepare(make_params())
        grads = make_params()
        with pytest.raises(ValueError, match=f"needs `{case.needs}`.*put it before them"):
            optax.with_extra_args_support(tx).update(
                grads, tx.init(params), params, value=jnp.float32(1), grad=grads, value_fn=loss_fn
            )


@cases_with_extras
@pytest.mark.parametrize("left_out", [True, False], ids=["left-out", "none"])
def test_a_missing_extra_argument_is_one_error(case, left_out):
    tx, params = case.at(H), make_params()
    extras = {} if left_out else {case.needs: None}
    with pytest.raises(ValueError, match=rf"needs `{case.needs}`: call update\(grads, state, params, {case.needs}="):
        tx.update(params, tx.init(params), params, **extras)


@cases_with_extras
def test_trees_that_do_not_fit_are_errors(case):
    tx, params = case.at(H), make_params()
    extras = {"value": jnp.float32(1.0), "value_fn": loss_fn}
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"params\['w'\] has dtype int32"):
        tx.init({**params, "w": jnp.arange(3)})
    with pytest.raises(ValueError, match=r"updates\['b'\] has shape \(1,\) but params\['b'\] has shape \(3,\)"):
        tx.update({**params, "b": jnp.ones(1)}, state, params, **extras)
    with pytest.raises(ValueError, match=r"`updates` and `params` must have the same structure.*'c'"):
        tx.update({**params, "c": jnp.ones(1)}, state, params, **extras)
    wrong = {"steps": 0} if holds_its_optimizer(case) else (optax.ScaleByAdamState(0, None, None),) * len(state)
    with pytest.raises(TypeError, match=r"the state must be \w*State, got .*Restore it into the result of init"):
        tx.update(params, wrong, params, **extras)


@cases_with_value_fn
def test_parameters_are_needed(case):
    tx, params = case.at(H), make_params()
    with pytest.raises(ValueError, match=r"needs `params`: call update\(grads, state, params"):
        tx.update(params, tx.init(params), value_fn=loss_fn)


@cases_with_value_fn
def test_an_error_inside_the_loss_says_who_called(case):
    """The loss's own error, with a note: `optax.flatten` hands on a flat vector."""
    tx, params = optax.flatten(case.at(H)), make_params()
    state = tx.init(params)
    with pytest.raises((TypeError, IndexError)) as caught:
        tx.update(params, state, params, value_fn=loss_fn)
    assert any("called `value_fn` with a tree PyTreeDef(*)" in note for note in caught.value.__notes__)
