"""What all transformations check and read of the arguments of `update`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from implicit_reg import _checks, _tree
from implicit_reg._types import Loss, Params, Scalar
from implicit_reg.transforms.filling import FilledValueFn, is_hole

if TYPE_CHECKING:
    from collections.abc import Callable

    Flag: TypeAlias = bool
    Mask: TypeAlias = PyTree[bool] | Callable[[Params], PyTree[bool]]
    Optimizer: TypeAlias = optax.GradientTransformation
else:  # judged by `_checks`; see `_types`
    Flag: TypeAlias = object
    Mask: TypeAlias = object
    Optimizer: TypeAlias = object

_WALLS = (
    "Containers that hand on no extra arguments (optax.MultiSteps(...).gradient_transformation(), optax.lookahead, "
    "split_real_and_imaginary) cannot hold it: put it before them, as in chain({function}(...), MultiSteps(...))"
)


def missing(function: str, argument: str, call: str) -> ValueError:
    """The error for an extra argument that did not arrive, whether it was left out, None, or lost on the way."""
    return _checks.missing(function, argument, f"{call}. {_WALLS.format(function=function)}")


def check_params(function: str, params: Params) -> None:
    """What `init` accepts: floating or complex leaves, or none at all."""
    _checks.check_floating(function, "params", params, allow_complex=True, allow_empty=True)


def check_update(function: str, updates: PyTree, state: optax.OptState, expected: type, params: Params | None) -> None:
    """The state of this transformation, and updates shaped as the parameters, where those are given."""
    _checks.check_state(function, state, expected)
    if params is not None:
        _checks.check_same_tree(function, "updates", updates, "params", params)


def check_value_fn(function: str, params: Params | None, value_fn: Loss | None) -> None:
    """Parameters, and a loss that can be evaluated on them."""
    call = "update(grads, state, params, value_fn=lambda p: loss_fn(p, *batch))"
    if params is None:
        raise _checks.missing(function, "params", call)
    if value_fn is None:
        raise missing(function, "value_fn", call)
    _checks.check_callable(function, "value_fn", value_fn, "params -> scalar loss")
    # A filler of the user's own cannot be told from a loss that sums over the leaves it happens to find, which would
    # silently be another loss; wrapped in `fill_masked` both are right.
    if not isinstance(value_fn, FilledValueFn) and any(map(is_hole, jax.tree.leaves(params, is_leaf=is_hole))):
        raise _checks.masked_params(function)


def direction(function: str, updates: PyTree, grad: PyTree | None) -> PyTree:
    """The raw gradient where it is given, else the incoming updates.

    Containers that mask the updates hand on the whole `grad`; it gets the same holes.
    """
    if grad is None:
        return updates
    if any(map(is_hole, jax.tree.leaves(updates, is_leaf=is_hole))):
        grad = jax.tree.map(lambda u, g: u if is_hole(u) else g, updates, grad, is_leaf=is_hole)
    _checks.check_same_tree(function, "grad", grad, "updates", updates)
    return grad


def explain(error: Exception, function: str, params: Params, cure: str = "") -> None:
    """Adds to an error from inside the loss who called it and with what; the error itself stays what it was."""
    note = f"{function} called `value_fn` with a tree {jax.tree.structure(params)}, as its container handed it on."
    error.add_note(f"{note} {cure}" if cure else note)


def value_and_gradient(function: str, value_fn: Loss, params: Params) -> tuple[Float[Array, ""], PyTree]:
    """The loss and its gradient in Optax's convention: conjugated, so that minus the gradient descends."""
    try:
        value, gradient = jax.value_and_grad(value_fn)(params)
    except Exception as error:
        explain(error, function, params)
        raise
    return value, optax.tree.conj(gradient)


def number(value: Scalar) -> Scalar:
    """A Python number where the value is concrete, so that it has no dtype to promote others with."""
    return float(value) if _checks.is_concrete(value) else value


def is_zero(value: Scalar) -> bool:
    """Whether the value is known to be 0; never of a traced one."""
    return _checks.is_concrete(value) and value == 0


def unit(tree: PyTree) -> PyTree:
    """`tree / ||tree||`, or zero for the zero tree, in float32 or wider.

    Where the sum of squares is very large or small, it is taken anew of entries divided by the largest one; that
    one cancels, and so its derivative is left out. Derivatives of every order are finite at the zero tree, and exact
    away from it.
    """
    real = _tree.wide(*(jnp.asarray(x).dtype for x in jax.tree.leaves(tree)))
    paired = {np.dtype(np.float32): np.complex64, np.dtype(np.float64): np.complex128}[real]
    wider = jax.tree.map(lambda x: jnp.asarray(x).astype(paired if jnp.iscomplexobj(x) else real), tree)
    square = _squares(wider)
    # So far from both ends of the range, what vanishes is no part of the sum, and its derivatives are in range, too.
    tiny = float(jnp.finfo(real).tiny) ** 0.25
    safe = (square > tiny) & (square < 1 / tiny)

    def at_once():
        return jnp.ones((), real), 1 / jnp.sqrt(jnp.where(safe, square, 1))

    def by_the_largest():
        entries = [jnp.max(jnp.abs(jax.lax.stop_gradient(x)), initial=0) for x in jax.tree.leaves(wider)]
        largest = jnp.max(jnp.stack(entries))
        first = 1 / jnp.where(largest == 0, 1, largest)
        scaled = _squares(_tree.scale(first, wider))
        zero = scaled == 0
        return first, jnp.where(zero, 0, 1 / jnp.sqrt(jnp.where(zero, 1, scaled)))

    # Always by the largest would read all entries twice more, at a tenth of the gradient of a perceptron.
    first, second = jax.lax.cond(safe, at_once, by_the_largest)
    return _tree.scale(second, _tree.scale(first, wider))


def _squares(tree: PyTree) -> Array:
    return sum(jnp.sum((x * jnp.conj(x)).real) for x in jax.tree.leaves(tree))
