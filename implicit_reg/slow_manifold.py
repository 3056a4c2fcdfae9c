"""Optimizers with a memory on their slow manifold: the state that a long, smooth past would have left.

Momentum, Adam and their like carry a state. After a transient it depends on the parameters alone, `state = M(x)`, and
only then do the iterates follow a field. Nothing has to be known of the optimizer to find `M`: a past
`x_{-K}, ..., x_{-1}` that ends in x is fed to its `update`, whose updates then give a better past,

    x_{-k} = x - sum_{j=1..k} u_{-j},

begun with the past that stood still. Every round gains an order in the step size (a Picard iteration), and K has to be
so long that what came before is forgotten.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Integer, Loss, Method, Params, Scalar
from implicit_reg.descent import optimizer_step
from implicit_reg.standstill import refuse_randomness, watch_frozen

AT_ONCE = 32  # gradients of the past evaluated together


class SlowStart(NamedTuple):
    """Where a run and the flow that it follows have to start.

    Attributes:
      params: where the flow starts.
      state: the optimizer's state to start from, as `descend(..., state=...)` takes it.
      ghost: False where `state` is on the slow manifold and the flow starts where the run does; True where the state is
        the fresh one, and the flow starts at a ghost point from which the run seems to come.
      change: by how much the last round of the iteration still moved the update (or the ghost point), relative to the
        update: an estimate of the error.
      num_steps: the steps that the state has behind it: its counters, and with them every schedule, stand there.
    """

    params: PyTree
    state: PyTree
    ghost: bool
    change: Any
    num_steps: int


@dataclasses.dataclass(frozen=True)
class SlowMap:
    """One step of an optimizer on its slow manifold, as a map of step size and parameters; made by `slow_map`.

    It is a one-step map without memory: `modified_vector_field(slow, 2)` and `interpolated_vector_field(slow, 3)` are
    the fields that the optimizer follows after its transient.
    """

    method: Method
    loss_fn: Loss
    memory: int
    order: int

    def __call__(self, h: Scalar, params: Params) -> PyTree:
        """The parameters after one step from the slow manifold."""
        return optax.apply_updates(params, self.update(h, params))

    def update(self, h: Scalar, params: Params) -> PyTree:
        """The raw Optax updates of this step."""
        state, _ = self._state(h, params, None)
        return self._after(h, params, state)[0]

    def start(self, h: Scalar, params: Params) -> SlowStart:
        """The state on the slow manifold at `params`, for a run whose flow starts there too."""
        params = jax.tree.map(jnp.asarray, params)
        state, change = _state_of(self, h, params)
        return SlowStart(params, state, False, change, self.memory)

    def ghost(self, h: Scalar, params: Params, *, rounds: Integer | None = None) -> SlowStart:
        """The point from which a run with a fresh state at `params` seems to come, once its transient is over.

        With `y_n` the steps on the slow manifold from y and `x_n` the run, y is moved by `x_K - y_K` until they meet:
        each round gains a factor of about `1 - exp(-K h lambda)`.
        """
        rounds = 2 * self.order if rounds is None else rounds
        _checks.check_integer("slow_map", "rounds", rounds)
        params = jax.tree.map(jnp.asarray, params)
        ghost, change = _ghost(self, int(rounds), h, params)
        return SlowStart(ghost, self.method(h).init(params), True, change, 0)

    def with_steps(self, h: Scalar, params: Params, num_steps: Scalar) -> PyTree:
        """The state on the slow manifold with counters at `num_steps`, which may be a fraction (a time of a flow).

        The past then begins with counters at `num_steps - memory`, so that a schedule has been where it was.
        """
        return self._state(h, params, num_steps)[0]

    def _after(self, h, params, state):
        value, gradient = jax.value_and_grad(self.loss_fn)(params)
        transformation = optax.with_extra_args_support(self.method(h))
        return transformation.update(gradient, state, params, value=value, grad=gradient, value_fn=self.loss_fn)

    def _state(self, h, params, num_steps):
        """The state after the last round, and by how much that round moved the last update."""
        transformation = optax.with_extra_args_support(self.method(h))
        fresh = transformation.init(params)
        if num_steps is not None:
            fresh = _shifted(fresh, params, num_steps - self.memory)
        if self.memory == 0:
            return fresh, jnp.zeros((), _tree.widest_dtype(params))
        repeat = lambda leaf: jnp.broadcast_to(leaf, (self.memory, *jnp.shape(leaf)))  # noqa: E731
        past = jax.tree.map(repeat, params)
        seen = jax.tree.map(repeat, jax.value_and_grad(self.loss_fn)(params))
        last, state = self._feed(transformation, fresh, past, seen)
        first = jax.tree.map(jnp.zeros_like, last)
        for _ in range(self.order - 1):
            # x_{-k} = x - (u_{-k} + ... + u_{-1}): sums from the newest back.
            past = jax.tree.map(lambda p, u: p - jnp.flip(jnp.cumsum(jnp.flip(u, 0), 0), 0), params, last)
            seen = jax.lax.map(jax.value_and_grad(self.loss_fn), past, batch_size=min(AT_ONCE, self.memory))
            first, (last, state) = last, self._feed(transformation, fresh, past, seen)
        newest = lambda tree: jax.tree.map(lambda leaf: leaf[-1], tree)  # noqa: E731
        moved = jax.tree.map(jnp.subtract, newest(last), newest(first))
        size = _tree.squared_norm(newest(last))
        ratio = jnp.sqrt(_tree.squared_norm(jax.lax.stop_gradient(moved)) / jnp.where(size > 0, size, 1.0))
        return state, jax.lax.stop_gradient(ratio)

    def _feed(self, transformation, state, past, seen):
        """Runs the optimizer along a past whose values and gradients are known."""

        def step(state, place):
            x, (value, gradient) = place
            updates, after = transformation.update(
                gradient, state, x, value=value, grad=gradient, value_fn=self.loss_fn
            )
            after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), after, state)
            return after, updates

        state, updates = jax.lax.scan(step, state, (past, seen))
        return updates, state


def _shifted(fresh, params, steps):
    """The fresh state with its counters set; they may be fractions, which Optax's own schedules take."""
    working = _tree.widest_dtype(params)

    def counts(leaf):
        return jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)

    return jax.tree.map(lambda leaf: jnp.asarray(leaf + steps, working) if counts(leaf) else leaf, fresh)


@functools.partial(jax.jit, static_argnums=0)
def _state_of(slow: SlowMap, h, params):
    return slow._state(h, params, None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ghost(slow: SlowMap, rounds: int, h, params):
    transformation = slow.method(h)

    def run(start):
        step = lambda _, y: optimizer_step(transformation, slow.loss_fn, *y)  # noqa: E731
        return jax.lax.fori_loop(0, slow.memory, step, start)[0]

    target = run((params, transformation.init(params)))

    def improve(_, carry):
        y, _ = carry
        end = run((y, slow._state(h, y, None)[0]))
        moved = jax.tree.map(jnp.subtract, target, end)
        return jax.tree.map(jnp.add, y, moved), _tree.squared_norm(moved)

    start = (params, jnp.zeros((), _tree.widest_dtype(params)))
    y, moved = jax.lax.fori_loop(0, rounds, improve, start)
    return y, jnp.sqrt(moved / _tree.squared_norm(slow.update(h, params)))


def slow_map(
    method: Method,
    loss_fn: Loss,
    params: Params,
    h: Scalar,
    *,
    order: Integer = 3,
    memory: Integer | None = None,
) -> SlowMap:
    """An optimizer with a memory, on its slow manifold: what `update_map` is for one without.

    The state `M(x)` that a long smooth past leaves is found by iteration, with nothing known of the optimizer: see the
    module. `order` rounds give updates that are right up to `O(h^(order+1))`. Heavy ball's trace, for example, comes
    out as `g/(1 - b) + h H g/(1 - b)^3 + O(h^2)` (`flows.memory.slow_trace`).

    Args:
      method: `h -> optax.GradientTransformation`: momentum, Adam, a chain with clipping and schedules, one's own.
      loss_fn: `loss_fn(params) -> scalar`.
      params, h: a typical place and step size; there the length of the memory is found out, and nothing else.
      order: how many rounds, at least 1.
      memory: how many steps of the past are fed; None for as many as it takes to forget a gradient up to 1e-10. So
        many copies of the parameters are held.

    Returns:
      A one-step map, `slow(h, params)`, with `slow.update(h, params)`, the raw updates; it serves
      `modified_vector_field` and `interpolated_vector_field`. `slow.start(h, params)` is the state for
      `descend(..., state=...)`, and `slow.ghost(h, params)` the point where the flow must start instead, where a run
      begins with the fresh state; the result says which of the two it is.

    Raises:
      TypeError, ValueError: an argument is not as above; the state holds a PRNG key; a gradient is not forgotten
        within 2048 steps; the update vanishes or repeats itself periodically.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> loss, x = lambda x: 0.5 * x**2, jnp.array(1.0)
      >>> slow = slow_map(lambda h: optax.sgd(h, momentum=0.5), loss, x, 0.01, order=2)
      >>> start = slow.start(0.01, x)
      >>> start.ghost, round(float(start.state[0].trace), 3)                    # 1/(1 - b) + h/(1 - b)^3
      (False, 2.08)

    References:
      [zagaris2009] for finding slow manifolds with a simulator alone; here the past is iterated instead of the state,
      which converges however slowly the memory forgets.
    """
    _checks.check_callable("slow_map", "method", method, "h -> optax.GradientTransformation")
    _checks.check_callable("slow_map", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    _checks.check_floating("slow_map", "params", params)
    _checks.check_number("slow_map", "h", h, low=0, exclusive=True)
    _checks.check_integer("slow_map", "order", order)
    if memory is None:
        transformation = method(h)
        _checks.check_transformation("slow_map", "method(h)", transformation)
        refuse_randomness("slow_map", transformation.init(params))
        found = watch_frozen(method, loss_fn, params, h)
        why = found.objection
        if why:
            raise ValueError(f"slow_map: `method` has no slow manifold that can be found: {why}")
        memory = found.memory
    else:
        _checks.check_integer("slow_map", "memory", memory, low=0)
    return SlowMap(_callables.hashable(method), _callables.hashable(loss_fn), int(memory), int(order))
