"""Discrete dynamics: one step as a map of the step size, and many steps as a trajectory.

A *method* is a function `h -> optax.GradientTransformation`; `optax.sgd` is one. Because the step size is an argument,
the same object is scanned here, vmapped in a sweep, and differentiated in `h` for its modified equation (`flows`).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Batches, Integer, Loss, Method, Observe, Params, Scalar
from implicit_reg.trajectory import Trajectory, record_times


def _transformation(function: str, method: Method, h: Scalar) -> optax.GradientTransformationExtraArgs:
    transformation = method(h)
    _checks.check_transformation(function, "method(h)", transformation)
    return optax.with_extra_args_support(transformation)


def _update(
    function: str, transformation, loss_fn: Loss, params: PyTree, state: PyTree, batch: tuple
) -> tuple[PyTree, PyTree]:
    """Optax updates at `params`, with every extra argument that a transformation may ask for."""

    def value_fn(p):
        value = loss_fn(p, *batch)
        _checks.check_loss_value(function, "loss_fn(params, *batch)", value)
        return value

    value, gradient = jax.value_and_grad(value_fn)(params)
    gradient = optax.tree.conj(gradient)  # Optax's convention for complex parameters; real ones are left alone
    return transformation.update(gradient, state, params, value=value, grad=gradient, value_fn=value_fn)


def optimizer_step(
    transformation: optax.GradientTransformation, loss_fn: Loss, params: Params, state: PyTree, batch: tuple = ()
) -> tuple[PyTree, PyTree]:
    """One step of an Optax transformation with every extra argument that it may ask for.

    Args:
      transformation: any; `value`, `grad` and `value_fn` are passed to it.
      loss_fn: `loss_fn(params, *batch) -> scalar`.
      params: where.
      state: the transformation's.
      batch: the arguments of the loss after the parameters.

    Returns:
      Parameters and state after the step.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> sgd = optax.sgd(0.25)
      >>> float(optimizer_step(sgd, lambda x: 0.5 * x**2, jnp.array(1.0), sgd.init(jnp.array(1.0)))[0])
      0.75
    """
    transformation = optax.with_extra_args_support(transformation)
    updates, state = _update("optimizer_step", transformation, loss_fn, params, state, batch)
    return optax.apply_updates(params, updates), state


@dataclasses.dataclass(frozen=True)
class UpdateMap:
    """One step of a method as a function of the step size and the parameters; made by `update_map`."""

    method: Method
    loss_fn: Loss
    num_steps: int

    def __call__(self, h: Scalar, params: Params) -> PyTree:
        """The parameters after `num_steps` steps of size `h`."""
        return self._run(h, params)[0]

    def update(self, h: Scalar, params: Params) -> PyTree:
        """The raw Optax updates of the step (their sum over `num_steps`), before they are added to the parameters.

        `phi(h, x) - x` loses `eps |x| / h` to cancellation; this does not.
        """
        return self._run(h, params)[1]

    def _run(self, h: Scalar, params: Params) -> tuple[PyTree, PyTree]:
        _checks.check_number("update_map", "h", h)
        _checks.check_floating("update_map", "params", params, allow_complex=True)
        params = _tree.strong(params)
        transformation = _transformation("update_map", self.method, h)
        state = transformation.init(params)
        _refuse_memory(state)
        total = None
        for _ in range(self.num_steps):
            updates, state = _update("update_map", transformation, self.loss_fn, params, state, ())
            params = optax.apply_updates(params, updates)
            total = updates if total is None else optax.tree.add(total, updates)
        return params, total


def _refuse_memory(state: PyTree) -> None:
    """A modified equation in the parameters alone exists only where nothing else carries information between steps."""
    injected = (optax.schedules.InjectStatefulHyperparamsState, optax.schedules.InjectHyperparamsState)

    def without_hyperparameters(node):
        if not isinstance(node, injected):
            return node
        inner = jax.tree.map(without_hyperparameters, node.inner_state, is_leaf=lambda n: isinstance(n, injected))
        return node._replace(hyperparams=None, inner_state=inner)

    state = jax.tree.map(without_hyperparameters, state, is_leaf=lambda n: isinstance(n, injected))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        dtype = jnp.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and jnp.ndim(leaf) > 0):
            kind, cure = "a PRNG key", "pass randomness as `batches` to descend, or compare trajectories only"
        elif jnp.issubdtype(dtype, jnp.inexact):
            kind, cure = f"a memory of dtype {dtype}", "compare trajectories only (descend, integrate, discrepancy)"
        else:
            continue
        raise ValueError(
            f"update_map: the transformation's state holds {kind} at {_checks.path_name('state', path)}, so its "
            f"modified equation lives on (params, state) and not on the parameters alone; {cure}."
        )


def update_map(method: Method, loss_fn: Loss, *, num_steps: Integer = 1) -> UpdateMap:
    """One step of `method` on `loss_fn`, as a map `phi(h, params) -> params`.

    Every call starts from the method's initial state: step counters and the hyperparameters of
    `optax.inject_hyperparams` are welcome, memory (momentum) and randomness are not.

    Args:
      method: `h -> optax.GradientTransformation`. `value`, `grad` and `value_fn` are passed to its `update`.
      loss_fn: `loss_fn(params) -> scalar`.
      num_steps: how many steps of `h` one call composes; 2 for a pair such as `alternating`. One call is one unit of
        time `h` in the modified equation, whatever `num_steps`.

    Returns:
      A callable that also offers `phi.update(h, params)`, the raw Optax updates.

    Raises:
      TypeError: `method` or `loss_fn` is not callable, or `method(h)` is not a transformation.
      ValueError: when called, if the transformation carries a floating state or a PRNG key; the leaf is named.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> phi = update_map(optax.sgd, lambda x: 0.5 * jnp.sum(x**2))
      >>> phi(0.25, jnp.array([1.0, 2.0]))
      Array([0.75, 1.5 ], dtype=float32)
    """
    _checks.check_callable("update_map", "method", method, "h -> optax.GradientTransformation")
    _checks.check_callable("update_map", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    _checks.check_integer("update_map", "num_steps", num_steps)
    return UpdateMap(_callables.hashable(method), _callables.hashable(loss_fn), int(num_steps))


def descend(
    method: Method,
    loss_fn: Loss,
    params: Params,
    h: Scalar,
    num_steps: Integer,
    *,
    batches: Batches = None,
    observe: Observe = None,
    every: Integer = 1,
    state: PyTree | None = None,
) -> Trajectory:
    """Runs `num_steps` steps of `method` with step size `h` and records every `every`-th.

    Args:
      method: `h -> optax.GradientTransformation`, stateful ones included.
      loss_fn: `loss_fn(params, *batch) -> scalar`.
      params: the start, any pytree of floating or complex leaves; the run keeps their dtypes.
      h: the step size, positive; may be traced.
      num_steps: how many steps.
      batches: a tuple of pytrees whose leaves have leading axis `num_steps`; step n calls
        `loss_fn(params, *(leaf[n] ...))`. Index arrays with a loss that closes over the data avoid copies.
      observe: `params -> pytree of arrays`, traceable; called at the records only.
      every: the distance of two records in steps; divides `num_steps`.
      state: the optimizer's state to start from, structured as `method(h).init(params)`: a restored one, or one on the
        slow manifold (`slow_map`); None for the fresh one.

    Like `jax.jit`, it traces `method`, `loss_fn` and `observe` once and knows them by identity: what they close over
    must not be changed afterwards. Pass what changes through `batches`, or make a new function.

    Returns:
      The trajectory at steps 0, every, 2 every, ..., `num_steps`, the start included, at times `t = n h`. A run that
      diverges is recorded in `finite`. Runs with other `h`, and with other `num_steps` but equally many records,
      share one compilation, apart from those that record every step.

    Raises:
      TypeError, ValueError: an argument is not as above; nothing has been computed then.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> run = descend(optax.sgd, lambda x: 0.5 * x**2, jnp.array(1.0), 0.5, 4, every=2)
      >>> run.t, run.params
      (array([0., 1., 2.]), Array([1.    , 0.25  , 0.0625], dtype=float32))
    """
    _checks.check_callable("descend", "method", method, "h -> optax.GradientTransformation")
    _checks.check_callable("descend", "loss_fn", loss_fn, "loss_fn(params, *batch) -> scalar")
    if observe is not None:
        _checks.check_callable("descend", "observe", observe, "params -> pytree of arrays")
    _checks.check_floating("descend", "params", params, allow_complex=True)
    _checks.check_number("descend", "h", h, low=0, exclusive=True)
    _checks.check_integer("descend", "num_steps", num_steps, low=0)
    _checks.check_integer("descend", "every", every)
    if num_steps % every:
        raise ValueError(f"descend: `every` must divide `num_steps`, got every={every} and num_steps={num_steps}")
    batches = _checks.check_batches("descend", batches, num_steps)
    params = _tree.strong(params)
    num_records = num_steps // every
    method, loss_fn, observe = map(_callables.hashable, (method, loss_fn, observe))
    given, h = h, h if isinstance(h, jax.Array) else float(h)
    state = _checked_state(method, params, h, state)
    # Numbers that the method computes from h are judged here, where h is one.
    _transformation("descend", method, h)
    run = functools.partial(_jitted_run, method, loss_fn, observe, num_records)
    operands = (params, h, batches, state)
    try:
        if _is_traced(method, loss_fn, observe, num_records, operands):
            run = functools.partial(_run, method, loss_fn, observe, num_records)
        # A loop of one step in the loop over records would nearly double the time of a step of few parameters.
        recorded, observed, finite = run(None if every == 1 else every, *operands)
    except TypeError as error:
        error.add_note(f"descend calls loss_fn(params, *batch) with {len(batches)} batch arguments (`batches`).")
        raise
    return Trajectory(
        t=record_times(np.arange(0, num_steps + 1, every, dtype=np.float64), h),
        params=recorded,
        observed=observed,
        finite=finite,
        h=given,
    )


class _ClosedOverTracer(Exception):
    """What a method, a loss or an observer closes over is being transformed."""


def _is_traced(method, loss_fn, observe, num_records: int, operands: PyTree) -> bool:
    """Whether something is being differentiated or compiled: the loops then have static lengths for reverse mode.

    Elsewhere the distance of two records is an operand, so that one compilation serves all step sizes with equally many
    records. What the functions close over counts too: the constants of their trace show it.
    """
    leaves, structure = jax.tree.flatten(operands)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return True
    try:
        _check_closures(method, loss_fn, observe, num_records > 0, tuple(map(jax.typeof, leaves)), structure)
    except _ClosedOverTracer:
        return True
    return False


# A trace takes as long as thousands of small steps. Only its good end is kept: an exception is not, so that a cache of
# functions never holds a tracer.
@functools.lru_cache(maxsize=256)
def _check_closures(method, loss_fn, observe, moves, types, structure) -> None:
    run = functools.partial(_run, method, loss_fn, observe, int(moves), None)
    shapes = [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak_type) for t in types]
    closed = jax.make_jaxpr(run)(*jax.tree.unflatten(structure, shapes)).consts
    if any(isinstance(leaf, jax.core.Tracer) for leaf in closed):
        raise _ClosedOverTracer


def _checked_state(method: Method, params: PyTree, h: Scalar, state: PyTree | None) -> PyTree | None:
    """The state as arrays with the structure, shapes and dtypes of the fresh one."""
    if state is None:
        return None
    fresh = jax.eval_shape(lambda h: _transformation("descend", method, h).init(params), jnp.asarray(h))
    _checks.check_same_tree("descend", "state", state, "method(h).init(params)", fresh)
    for (path, leaf), wanted in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(fresh), strict=True):
        kinds = [
            kind
            for dtype in (jnp.result_type(leaf), wanted.dtype)
            for kind in (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating, jax.dtypes.extended)
            if jax.dtypes.issubdtype(dtype, kind)
        ]
        if len(set(kinds)) != 1:
            raise TypeError(
                f"descend: {_checks.path_name('state', path)} must have dtype {wanted.dtype}, got "
                f"{jnp.result_type(leaf)}; make the state with method(h).init(params) and change its values"
            )
    return jax.tree.map(
        lambda leaf, wanted: leaf if jnp.result_type(leaf) == wanted.dtype else jnp.asarray(leaf, wanted.dtype),
        jax.tree.map(jnp.asarray, state),
        fresh,
    )


def _run(method, loss_fn, observe, num_records, every, params, h, batches, state):
    transformation = _transformation("descend", method, h)

    def step(n, carry):
        params, state = carry
        batch = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, n, keepdims=False), batches)
        updates, state = _update("descend", transformation, loss_fn, params, state, batch)
        return optax.apply_updates(params, updates), state

    def look(params):
        seen = (params, None if observe is None else observe(params), _tree.all_finite(params))
        return jax.tree.map(jnp.asarray, seen)

    def record(k, carry):
        moving, records = carry
        if every is None:
            moving = step(k, moving)
        else:
            moving = jax.lax.fori_loop(0, every, lambda i, moving: step(k * every + i, moving), moving)
        # Into one buffer that the loop updates in place: joining the start to what a scan has stacked copies all of it.
        put = lambda records, leaf: jax.lax.dynamic_update_index_in_dim(records, leaf, k + 1, axis=0)  # noqa: E731
        return moving, jax.tree.map(put, records, look(moving[0]))

    start = (params, transformation.init(params) if state is None else state)
    records = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_records + 1, *leaf.shape)), look(params))
    if num_records == 0:
        return records
    loop = canonical_convolutions(lambda *start: jax.lax.fori_loop(0, num_records, record, start)[1])
    return loop(start, records)


_jitted_run = functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))(_run)
