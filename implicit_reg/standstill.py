"""Optimizers watched while their parameters stand still: how long they remember, and whether their updates settle."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Integer, Loss, Method, Params, Scalar

MAX_MEMORY = 2048  # steps; decays up to 0.98 are forgotten within
FORGOTTEN = 1e-10  # the weight of a gradient that no longer counts
REPEATS = 1e-3  # relative change of an update from one step to the next that is no drift any more


class Frozen(NamedTuple):
    """What an optimizer does where its parameters stand still; found by `watch_frozen`.

    Attributes:
      memory: after how many steps a gradient is forgotten, or None where it is not within the limit.
      sizes: norms of the updates.
      drift: how much the update still changes from one step to the next at the end, relative to its size.
      periods: the same for the change over 2, 3, ..., 8 steps.
      halves: relative change of the update between half of the steps and the last.
    """

    memory: int | None
    sizes: np.ndarray
    drift: float
    periods: tuple[float, ...]
    halves: float

    @property
    def period(self) -> int | None:
        """After how many steps the update repeats itself, or None where it settles (or does not repeat)."""
        if not self.drift > REPEATS:
            return None
        return next((p for p, change in enumerate(self.periods, start=2) if change <= 1e-9), None)

    @property
    def objection(self) -> str | None:
        """Why no field can follow every step, or None."""
        if not np.all(np.isfinite(self.sizes)):
            return "its updates are not finite"
        if not np.max(self.sizes) > 0:
            return "its update vanishes: the gradient is zero there, or the learning rate"
        if self.period:
            return (
                f"at a standstill its update repeats itself every {self.period} steps, so that single steps jump to "
                f"and fro; make one unit of {self.period} of them (stateless: update_map(..., num_steps={self.period}))"
            )
        if self.memory is None:
            return (
                f"a gradient is still felt after {len(self.sizes) // 2} steps; use a decay of at most 0.98, or compare "
                f"with a field of your own"
            )
        return None


def refuse_randomness(function: str, state: PyTree) -> None:
    """No PRNG key in the optimizer's state: whatever is random has to be an argument.

    Raises:
      ValueError: there is one.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        dtype = jnp.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and jnp.ndim(leaf) > 0):
            raise ValueError(
                f"{function}: the optimizer's state holds a PRNG key at {_checks.path_name('state', path)}: its "
                f"iterates follow no field, only their mean may. Nothing is random here that is not an argument: give "
                f"the order of the batches to descend(..., batches=...), or the noise as data of the loss"
            )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _frozen(method, loss_fn, num_steps, params, h):
    """Norms of the updates at a standstill, the last ones, and the derivative in a push of the first gradient."""
    value, gradient = jax.value_and_grad(loss_fn)(params)
    size = jnp.sqrt(_tree.squared_norm(gradient))
    # Any fixed direction that is no multiple of the gradient, of which Adam's update would not notice.
    leaves, structure = jax.tree.flatten(gradient)
    push = [size * jnp.cos(1.0 + jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape).astype(g.dtype) for g in leaves]
    push = jax.tree.unflatten(structure, push)
    transformation = optax.with_extra_args_support(method(h))

    def run(epsilon):
        def step(state, n):
            g = jax.tree.map(lambda g, p: g + jnp.where(n == 0, epsilon, 0.0).astype(g.dtype) * p, gradient, push)
            updates, state = transformation.update(g, state, params, value=value, grad=g, value_fn=loss_fn)
            return state, updates

        return jax.lax.scan(step, transformation.init(params), jnp.arange(num_steps))[1]

    updates, pushed = jax.jvp(run, (jnp.zeros((), h.dtype),), (jnp.ones((), h.dtype),))
    norm = lambda tree: jnp.sqrt(jax.vmap(_tree.squared_norm)(tree))  # noqa: E731
    last = jax.tree.map(lambda leaf: leaf[-1:], updates)
    changes = norm(jax.tree.map(lambda leaf, end: leaf - end, updates, last))
    return norm(updates), norm(pushed), changes


def watch_frozen(
    method: Method, loss_fn: Loss, params: Params, h: Scalar, *, max_memory: Integer = MAX_MEMORY
) -> Frozen:
    """Feeds one gradient to an optimizer again and again, with a push of the first, and watches its updates.

    The push is a derivative, not a difference, so that its decay is seen far below round-off. Where the updates settle
    and the push is forgotten, a slow manifold can exist.

    Args:
      method: `h -> optax.GradientTransformation`.
      loss_fn: `loss_fn(params) -> scalar`.
      params: where.
      h: the step size.
      max_memory: how many steps are watched, at most; the watch ends after 64 where that tells enough.

    Returns:
      The findings.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> found = watch_frozen(lambda h: optax.sgd(h, momentum=0.5), lambda x: 0.5 * x**2, jnp.array(1.0), 0.1)
      >>> found.memory                                     # 0.5^33 is below 1e-10
      33
    """
    working = _tree.widest_dtype(params)
    params = jax.tree.map(jnp.asarray, params)
    method, loss_fn = _callables.hashable(method), _callables.hashable(loss_fn)
    num_steps = 64
    while True:
        sizes, pushed, changes = map(np.asarray, _frozen(method, loss_fn, num_steps, params, jnp.asarray(h, working)))
        felt = np.flatnonzero(~(pushed <= FORGOTTEN * pushed.max()))
        memory = int(felt[-1]) if felt.size else 0
        if memory < num_steps // 2 or num_steps >= 2 * max_memory:
            break
        num_steps = min(4 * num_steps, 2 * max_memory)
    end = sizes.max() if sizes.max() > 0 else np.nan
    return Frozen(
        memory=memory if memory < num_steps // 2 else None,
        sizes=sizes,
        drift=float(changes[-2] / end),
        # Not the last update against one before alone: of three steps in a row two may be empty.
        periods=tuple(
            float(max(changes[-1 - p], np.abs(changes[-16:] - changes[-16 - p : -p]).max()) / end) for p in range(2, 9)
        ),
        halves=float(changes[num_steps // 2 - 1] / end),
    )
