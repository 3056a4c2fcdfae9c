"""Flooding: descend above a level of the loss, ascend below it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from implicit_reg import _checks
from implicit_reg._types import Params, Scalar
from implicit_reg.losses.flooding import flood_sign
from implicit_reg.transforms import _inputs


class FloodingState(NamedTuple):
    """How many updates were made, and how many of them ascended."""

    steps: Int32[Array, ...]
    ascents: Int32[Array, ...]


def flooding(level: Scalar | optax.Schedule | None) -> optax.GradientTransformationExtraArgs:
    """Keeps the loss `L` near `level` b: the updates become those of `|L - b| + b`.

        u' = sign(L - b) u

    At `L = b` the updates are exactly zero, in agreement with `losses.flooded`. `L` and `b` are compared in the wider
    of the dtype of `L` and float32. A loss that is not a number makes every update not a number. Put flooding before
    momentum, weight decay and accumulation: what stands before it in a chain is flipped too. It commutes with clipping
    by norm. For another gradient, that of `mean |L_i - b| + b` over examples, use `losses.flooded(per_example=True)`.

    Full-batch gradient descent with step h first comes down to the level. Once it steps up and down in turn, it slides
    along the level set: on average over two, each moves by `-(h^2/4) grad ||grad L||^2`, projected on the level set.

    Args:
      level: the flood level b, of any sign; a schedule `step -> level`; or None, which is off.

    Returns:
      A transformation whose `update` needs `value`, the loss at `params` (of the whole batch, where devices share it).
      `flooded_fraction` reads its state. Cost: nothing. Leaves keep their dtypes.

    Raises:
      TypeError, ValueError: where the level is not a finite real scalar; in `init`, for an integer leaf; in `update`,
        for a state of another transformation, a `value` that is missing, not a scalar or not real, and updates that
        are not shaped as `params` (which are optional).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from implicit_reg.transforms import flooded_fraction, flooding
      >>> loss = lambda x: 0.5 * jnp.sum(x**2)
      >>> x = jnp.array([0.5, -1.0])                          # a loss of 0.625
      >>> tx = optax.chain(flooding(0.7), optax.sgd(0.1, momentum=0.9))
      >>> value, grads = jax.value_and_grad(loss)(x)
      >>> updates, state = tx.update(grads, tx.init(x), x, value=value)
      >>> updates                                             # below the level: away from the minimum
      Array([ 0.05, -0.1 ], dtype=float32)
      >>> flooded_fraction(state)
      Array(1., dtype=float32)

    References:
      [ishida2020]
    """
    if level is None:
        return optax.with_extra_args_support(optax.identity())
    if not callable(level):
        _checks.check_number("flooding", "level", level)

    def init(params: Params) -> FloodingState:
        _inputs.check_params("flooding", params)
        return FloodingState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, value=None, **extra):
        del extra
        _inputs.check_update("flooding", updates, state, FloodingState, params)
        if value is None:
            raise _inputs.missing("flooding", "value", "update(grads, state, params, value=loss)")
        _checks.check_loss_value("flooding", "value", value)
        target = level(state.steps) if callable(level) else level
        _checks.check_number("flooding", "level", target)

        sign = flood_sign(jnp.asarray(value), jnp.asarray(target))

        def leaf(u):
            u = jnp.asarray(u)
            signed = jnp.where(sign > 0, u, jnp.where(sign < 0, -u, jnp.zeros_like(u)))
            return jnp.where(jnp.isnan(sign), jnp.full_like(u, jnp.nan), signed)

        ascents = jnp.where(sign < 0, optax.safe_increment(state.ascents), state.ascents)
        return jax.tree.map(leaf, updates), FloodingState(optax.safe_increment(state.steps), ascents)

    return optax.GradientTransformationExtraArgs(init, update)


def flooded_fraction(state: optax.OptState) -> Float[Array, ...]:
    """The share of updates so far that ascended: near 1/2 where flooding is at work, 0 where the level is too low.

    Args:
      state: the state of a chain, of a container, or of an `nnx.Optimizer` (its `opt_state`), with flooding somewhere
        in it; the states of several floodings are counted together.

    Returns:
      Ascents over updates, 0 before the first update; of the shape of an ensemble where the state was vmapped.

    Raises:
      ValueError: where there is no flooding in the state.

    Example:
      >>> import jax.numpy as jnp
      >>> from implicit_reg.transforms import flooded_fraction, flooding
      >>> flooded_fraction(flooding(0.1).init(jnp.zeros(2)))
      Array(0., dtype=float32)
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, FloodingState))
    found = [node for node in nodes if isinstance(node, FloodingState)]
    if not found:
        raise ValueError(
            "flooded_fraction: there is no state of `flooding` in this state; was flooding(None) in the chain, or is "
            "this the state of another optimizer?"
        )
    steps = sum(jnp.asarray(node.steps[...], jnp.float32) for node in found)
    ascents = sum(jnp.asarray(node.ascents[...], jnp.float32) for node in found)
    return ascents / jnp.maximum(steps, 1)
