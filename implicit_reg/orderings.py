"""Orders of the minibatches of an epoch: all of them, reverse pairs, samples, and the mean of where they end.

The mean end of an epoch is what the modified equations of shuffled descent speak of (`flows.shuffled_vector_field`).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Integer, Key, Loss, Method, Params, Scalar
from implicit_reg.descent import optimizer_step

LARGEST_EXACT = 6  # minibatches whose orders are enumerated: 720; seven would be 5040


def epoch_orders(
    num_batches: Integer, *, num_samples: Integer | None = None, key: Key | None = None
) -> Int[np.ndarray, "K m"]:
    """All m! orders of an epoch or, where they are too many, a sample of them in reverse pairs.

    Args:
      num_batches: m; up to `LARGEST_EXACT` = 6 the orders are enumerated.
      num_samples: how many orders to draw, an even number: each draw brings its reverse along, which cancels the
        deviation of second order. To be fixed before looking at a result.
      key: what the draws are made from, not traced; needed with `num_samples`, and only then.

    Returns:
      One order in each row; in a sample, rows 2j and 2j + 1 are a pair.

    Raises:
      TypeError, ValueError: m is too large for enumeration and no sample is asked for, or an argument is not as above.

    Example:
      >>> epoch_orders(3).tolist()
      [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
      >>> epoch_orders(8)
      Traceback (most recent call last):
      ...
      ValueError: epoch_orders: `num_batches` must be at most 6 to enumerate all m! orders, got 8 (40320 orders); from \
7 on Monte Carlo is used: give `num_samples` and `key`
    """
    if _check_orders("epoch_orders", num_batches, num_samples, key):
        return np.array(list(itertools.permutations(range(int(num_batches)))), dtype=np.int32)
    with jax.ensure_compile_time_eval():  # a program that is being traced around this holds the orders as constants
        keys = jax.random.split(key, num_samples // 2)
        drawn = np.asarray(jax.vmap(lambda key: jax.random.permutation(key, int(num_batches)))(keys), np.int32)
    return np.stack([drawn, drawn[:, ::-1]], axis=1).reshape(num_samples, int(num_batches))


def _check_orders(function: str, num_batches: Integer, num_samples: Integer | None, key: Key | None) -> bool:
    """Whether all orders are meant."""
    _checks.check_integer(function, "num_batches", num_batches)
    if num_samples is None and key is None:
        if num_batches > LARGEST_EXACT:
            raise ValueError(
                f"{function}: `num_batches` must be at most {LARGEST_EXACT} to enumerate all m! orders, got "
                f"{num_batches} ({math.factorial(int(num_batches))} orders); from {LARGEST_EXACT + 1} on Monte Carlo "
                f"is used: give `num_samples` and `key`"
            )
        return True
    for argument, value in (("num_samples", num_samples), ("key", key)):
        if value is None:
            raise _checks.missing(function, argument, f"{function}(..., num_samples=256, key=jax.random.key(0))")
    if isinstance(key, jax.core.Tracer):
        raise TypeError(f"{function}: `key` must be concrete, got a tracer; draw outside of jit, vmap and grad")
    _checks.check_integer(function, "num_samples", num_samples, low=4, why="two reverse pairs give an error bar")
    if num_samples % 2:
        raise ValueError(f"{function}: `num_samples` must be even, for orders come in reverse pairs, got {num_samples}")
    return False


def reverse_pair(order: Any) -> Int[np.ndarray, "2 m"]:
    """An order and its reverse: their mean has the F_1 and the F_2 of the mean over all orders.

    Example:
      >>> reverse_pair([2, 0, 1]).tolist()
      [[2, 0, 1], [1, 0, 2]]
    """
    order = np.asarray(order, np.int32)
    if sorted(order.tolist()) != list(range(order.size)):
        raise ValueError(f"reverse_pair: `order` must hold each of 0..m-1 once, got {order.tolist()}")
    return np.stack([order, order[::-1]])


class Walk(NamedTuple):
    """Visits of the nodes of a tree whose paths are orders; one visit is one step on one minibatch.

    Lanes walk trees of equal shape side by side, each with minibatches of its own. A node keeps its state in a slot
    until its last child takes the place over.

    Attributes:
      read: the slot of the node that a visit starts from.
      write: the slot that it leaves its state in.
      ends: whether an order ends there.
      batches: the minibatch, for each lane.
    """

    read: Int[np.ndarray, " visits"]
    write: Int[np.ndarray, " visits"]
    ends: np.ndarray
    batches: Int[np.ndarray, "lanes visits"]

    @property
    def num_slots(self) -> int:
        """How many states a lane holds at once."""
        return int(self.write.max()) + 1


def all_orders(num_batches: Integer, lanes: Integer) -> Walk:
    """The walk through all m! orders: what orders begin with is computed once for all of them.

    The tree has `sum_{k=1..m} m!/(m-k)!`, that is `e m!` nodes, where single orders take `m m!` steps. Each lane has a
    beginning of its own, the longest for which there are lanes enough; it is walked in the lane, which costs little as
    long as two minibatches or more are left.

    Args:
      num_batches: m.
      lanes: how many there may be.

    Returns:
      The walk.

    Example:
      >>> walk = all_orders(6, 32)
      >>> walk.batches.shape, walk.num_slots                       # 1980 steps; 4320 in single orders
      ((30, 66), 4)
    """
    m = int(num_batches)
    length = max(d for d in range(max(1, m - 1)) if math.perm(m, d) <= lanes)
    beginnings = list(itertools.permutations(range(m), length))
    # An order of the lane's own: its beginning and then the rest; a visit names a place in it.
    own = np.array([(*b, *(k for k in range(m) if k not in b)) for b in beginnings], np.int32)
    visits = [(0, 0, place, False) for place in range(length)]

    def below(slot: int, free: int, rest: list[int]) -> None:
        *others, last = rest
        for place in others:
            visits.append((slot, free, place, False))
            below(free, free + 1, [k for k in rest if k != place])
        visits.append((slot, slot, last, not others))
        if others:
            below(slot, free, others)

    below(0, 1, list(range(length, m)))
    return _walk(visits, own)


def reverse_pairs(orders: Int[np.ndarray, "pairs m"]) -> Walk:
    """The walk through each order and then its reverse, one pair for each lane.

    Example:
      >>> reverse_pairs(np.array([[2, 0, 1]], np.int32)).batches.tolist()
      [[2, 0, 1, 1, 0, 2]]
    """
    m = orders.shape[1]
    there = [(min(place, 1), 1, place, place == m - 1) for place in range(m)]
    back = [(0, 0, m - 1 - place, place == m - 1) for place in range(m)]
    return _walk(there + back, orders)


def _walk(visits: list[tuple[int, int, int, bool]], own: np.ndarray) -> Walk:
    read, write, places, ends = map(np.array, zip(*visits, strict=True))
    return Walk(read.astype(np.int32), write.astype(np.int32), ends, own[:, places].astype(np.int32))


class MeanEpoch(NamedTuple):
    """The mean over orders of the end of an epoch.

    Attributes:
      params: the mean of the parameters at the end.
      displacement: the same minus the start, at least in float32: it keeps the digits that `params` rounds off.
      standard_error: of the displacement, entry by entry; None where the mean is exact.
      num_draws: how many reverse pairs were drawn, 0 where the mean is exact.
    """

    params: PyTree
    displacement: PyTree
    standard_error: PyTree | None
    num_draws: int


def mean_epoch(
    method: Method,
    loss_fn: Loss,
    num_batches: Integer,
    params: Params,
    h: Scalar,
    *,
    num_samples: Integer | None = None,
    key: Key | None = None,
    lanes: Integer = 32,
) -> MeanEpoch:
    """Where an epoch of m minibatches in random order, without replacement, ends in the mean:

        <x_m> = (1/m!) sum_s Phi_{s(m)} ... Phi_{s(1)}(x_0),   s all orders of 1, ..., m.

    Up to m = 6 the mean is exact, in about `e m!` steps (`all_orders`). Beyond, it is over a sample of reverse
    pairs, in m `num_samples` steps, with a standard error from the pairs: an order and its reverse deviate oppositely
    at order h^2, so that what is left to average is of order h^3. Sums are compensated, so that float32 keeps the mean
    to its own precision.

    Args:
      method: `h -> optax.GradientTransformation`, stateful ones included; each epoch starts from the fresh state.
      loss_fn: `loss_fn(params, k) -> loss on the k-th minibatch`, k = 0..m-1; `k` is traced.
      num_batches: m.
      params: the start, any pytree of floating leaves.
      h: the step size; may be traced. All step sizes share one compilation.
      num_samples: how many orders to draw, an even number of at least 4; None takes all orders.
      key: what the draws are made from, not traced; with `num_samples` and only then.
      lanes: how many runs are computed side by side, at most. Memory: up to `lanes` times (m + 2) of the parameters
        and the optimizer's state, and `lanes` gradients.

    Returns:
      The mean, and its standard error where orders were drawn.

    Raises:
      TypeError, ValueError: m is too large for all orders and no sample is asked for, or an argument is not as above.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> loss = lambda x, k: 0.5 * (x - k) ** 2                           # parabolas around 0, 1, ...
      >>> mean = mean_epoch(optax.sgd, loss, 2, jnp.array(2.0), 0.5)        # 2 -> 1 -> 1, and 2 -> 1.5 -> 0.75
      >>> float(mean.params), mean.standard_error
      (0.875, None)
      >>> drawn = mean_epoch(optax.sgd, loss, 9, jnp.array(2.0), 0.1, num_samples=64, key=jax.random.key(0))
      >>> drawn.num_draws, bool(drawn.standard_error < 0.01)
      (32, True)

    References:
      [smith2021]
    """
    _checks.check_callable("mean_epoch", "method", method, "h -> optax.GradientTransformation")
    _checks.check_callable("mean_epoch", "loss_fn", loss_fn, "loss_fn(params, k) -> loss on the k-th minibatch")
    _checks.check_floating("mean_epoch", "params", params)
    _checks.check_number("mean_epoch", "h", h, low=0, exclusive=True)
    _checks.check_integer("mean_epoch", "lanes", lanes)
    exact = _check_orders("mean_epoch", num_batches, num_samples, key)
    if exact:
        walk = all_orders(num_batches, lanes)
    else:
        walk = reverse_pairs(epoch_orders(num_batches, num_samples=num_samples, key=key)[::2])
    num_runs = len(walk.batches)
    width = min(int(lanes), num_runs)
    chunks = -(-num_runs // width)
    # The last chunk is filled up with repetitions that do not count.
    rows = np.minimum(np.arange(chunks * width), num_runs - 1).reshape(chunks, width)
    counted = (np.arange(chunks * width) < num_runs).reshape(chunks, width)
    params = _tree.strong(params)
    mean, error = _mean(
        _callables.hashable(method),
        _callables.hashable(loss_fn),
        walk.num_slots,
        exact,
        params,
        h if isinstance(h, jax.Array) else float(h),
        (walk.read, walk.write, walk.ends),
        walk.batches[rows],
        counted,
    )
    ends = jax.tree.map(lambda x, moved: (x.astype(moved.dtype) + moved).astype(x.dtype), params, mean)
    return MeanEpoch(ends, mean, error, 0 if exact else num_runs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mean(method, loss_fn, num_slots, exact, params, h, visits, batches, counted):
    """Mean displacement over lanes and chunks, and its standard error unless all orders are there."""
    transformation = method(h)
    _checks.check_transformation("mean_epoch", "method(h)", transformation)
    width = counted.shape[1]
    wide = [_tree.wide(leaf.dtype) for leaf in jax.tree.leaves(params)]
    nothing = [jnp.zeros((width, *leaf.shape), d) for leaf, d in zip(jax.tree.leaves(params), wide, strict=True)]

    def checked_loss(x, k):
        value = loss_fn(x, k)
        _checks.check_loss_value("mean_epoch", "loss_fn(params, k)", value)
        return value

    @canonical_convolutions
    def step(x, state, k):
        return optimizer_step(transformation, checked_loss, x, state, (k,))

    def displacements(batches):
        start = params, transformation.init(params)
        slots = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_slots, width, *jnp.shape(leaf))), start)

        def visit(carry, v):
            slots, totals, lost = carry
            read, write, ends, k = v
            before = jax.tree.map(lambda s: jax.lax.dynamic_index_in_dim(s, read, keepdims=False), slots)
            after = jax.vmap(step)(*before, k)
            slots = jax.tree.map(lambda s, new: jax.lax.dynamic_update_index_in_dim(s, new, write, 0), slots, after)
            moved = [
                (x.astype(d) - x0.astype(d))
                for x, x0, d in zip(jax.tree.leaves(after[0]), jax.tree.leaves(params), wide, strict=True)
            ]
            # Kahan's sum: `lost` is what the total has too much.
            terms = [jnp.where(ends, x, 0) - c for x, c in zip(moved, lost, strict=True)]
            sums = [total + term for total, term in zip(totals, terms, strict=True)]
            lost = [(s - total) - term for s, total, term in zip(sums, totals, terms, strict=True)]
            return (slots, sums, lost), None

        (_, totals, lost), _ = jax.lax.scan(visit, (slots, nothing, nothing), (*visits, batches.T))
        return [(total - c) / jnp.sum(visits[2]) for total, c in zip(totals, lost, strict=True)]

    def add(carry, chunk):
        """Mean and sum of squares about it, of what there was and this chunk."""
        count, means, squares = carry
        batches, counted = chunk
        here = jnp.sum(counted, dtype=jnp.int32)
        total = count + here
        values = displacements(batches)

        def over_lanes(x):
            return jnp.sum(jnp.where(counted.reshape(-1, *[1] * (x.ndim - 1)), x, 0), axis=0)

        own = [over_lanes(x) / here.astype(x.dtype) for x in values]
        steps = [x - mean for x, mean in zip(own, means, strict=True)]
        shares = [here.astype(x.dtype) / total.astype(x.dtype) for x in own]
        means = [mean + share * x for mean, share, x in zip(means, shares, steps, strict=True)]
        if not exact:
            squares = [
                s + over_lanes((x - o) ** 2) + share * count.astype(s.dtype) * d**2
                for s, share, x, o, d in zip(squares, shares, values, own, steps, strict=True)
            ]
        return (total, means, squares), None

    zeros = [leaf[0] for leaf in nothing]
    first = (jnp.zeros((), jnp.int32), zeros, [] if exact else zeros)
    (count, means, squares), _ = jax.lax.scan(add, first, (batches, counted))
    tree = jax.tree.structure(params)
    if exact:
        return jax.tree.unflatten(tree, means), None
    errors = [jnp.sqrt(s / (count * (count - 1)).astype(s.dtype)) for s in squares]
    return jax.tree.unflatten(tree, means), jax.tree.unflatten(tree, errors)
