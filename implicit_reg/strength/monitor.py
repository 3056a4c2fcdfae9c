"""A monitor of implicit regularization in a training run: what it weighs, and whether the theory speaks here."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Data, Integer, Loss, Params
from implicit_reg.curvature.lanczos import extreme_eigenvalues
from implicit_reg.curvature.operators import flatten, hessian_operator
from implicit_reg.predictions.validity import band
from implicit_reg.strength.meter import _FULL_BATCH, Drawn, Settings, Strength, implicit_strength
from implicit_reg.strength.sampling import FullBatch, Sampling, Shuffled
from implicit_reg.strength.settings import Method, check_method

Number = Float[Array, "*records"]


class Reading(NamedTuple):
    """What a `Monitor` saw at one point; arrays with a leading axis where it looked along a run.

    Attributes:
      loss: `L`.
      penalty: the coefficient times `||g||^2`.
      share: of the penalty in the loss, `penalty/|L|`; it says little where the loss can be negative.
      minibatch: the coefficient times the variance of minibatch gradients; 0 on the full batch.
      half_sharpness: `h lambda_max/2`; gradient descent is stable below 1.
      term_ratio: `(h/2) ||H g||/||g||`: the second term of the plain flow over the first.
      reach: `h max|lambda|`, or what the optimizer has in its place, over the radius of its series; see `band`.
      epoch: `m eta lambda_max` with shuffled minibatches, to be at most 1; else 0.
    """

    loss: Number
    penalty: Number
    share: Number
    minibatch: Number
    half_sharpness: Number
    term_ratio: Number
    reach: Number
    epoch: Number


@dataclasses.dataclass(frozen=True, eq=False)
class Monitor:
    """Made by `monitor`: call it with parameters for a `Reading`, with `line` for words; `due` keeps its cadence."""

    loss_fn: Any
    method: Method
    sampling: Sampling
    strength: Strength
    data: Any
    num_steps: int
    batch_size: int | None
    every: int

    @property
    def gradients(self) -> float:
        """The cost of one reading in gradients of the loss on all the data; a Hessian product counts as two."""
        return 1.0 + 2.0 * (self.num_steps + 1)

    def due(self, count: Integer) -> bool:
        """Whether a training loop that has made `count` steps should look now."""
        _checks.check_integer("Monitor.due", "count", count, low=0)
        return count % self.every == 0

    def __call__(self, params: Params) -> Reading:
        """The reading at `params`, traceable: `descend(..., observe=monitor, every=n)`."""
        _checks.check_floating("Monitor", "params", params)
        value, gradient, variance = self._moments(params)
        hessian = hessian_operator(self.loss_fn, params, self.data, batch_size=self.batch_size)
        low, high, *_ = extreme_eigenvalues(hessian, num_steps=self.num_steps)
        g = flatten(gradient)[0].astype(hessian.dtype)
        length, image = jnp.linalg.norm(g), jnp.linalg.norm(hessian.apply(g))
        critical = length == 0
        h = self.step
        penalty = self.strength.squared_norm * length**2
        epoch = 0.0
        if isinstance(self.sampling, Shuffled):
            epoch = self.sampling.num_batches * self.strength.effective_step * high
        numbers = (
            value,
            penalty,
            jnp.where(value == 0, jnp.nan, penalty / jnp.where(value == 0, 1, jnp.abs(value))),
            self.strength.variance * variance,
            h * high / 2,
            jnp.where(critical, 0, h / 2 * image / jnp.where(critical, 1, length)),
            jnp.maximum(self.method.reach(low), self.method.reach(high)),
            epoch,
        )
        return Reading(*(jnp.asarray(number, hessian.dtype) for number in numbers))

    @property
    def step(self) -> float:
        """`h` of the optimizer, without memory."""
        method = self.method
        while hasattr(method, "method"):
            method = method.method
        return method.step

    def line(self, params_or_reading: Any) -> str:
        """One line in words, on the host, of one reading or of the parameters to read at.

        Args:
          params_or_reading: a `Reading` of scalars, or parameters.

        Returns:
          The line.
        """
        given = params_or_reading
        reading = given if isinstance(given, Reading) else _jitted(self, given)
        for value in reading:
            if jnp.shape(value) != ():
                raise ValueError(
                    f"Monitor.line: the reading must be one of scalars, got shape {jnp.shape(value)}; take one record: "
                    f"jax.tree.map(lambda x: x[k], observed)"
                )
        r = Reading(*(float(value) for value in reading))
        text = f"loss {r.loss:.4g}; implicit penalty {r.penalty:.3g}"
        text += f" ({100 * r.share:.2g} % of the loss)" if math.isfinite(r.share) else ""
        if not isinstance(self.sampling, FullBatch):
            text += f", minibatch part {r.minibatch:.3g}"
        text += f"; h lambda_max/2 {r.half_sharpness:.3g}"
        edge = self.method.edge()
        text += f" (unstable beyond {edge:.3g})" if edge is not None else ""
        return text + f"; r {r.term_ratio:.2g}; {self._verdict(r)}"

    def _verdict(self, r: Reading) -> str:
        if not all(map(math.isfinite, (r.loss, r.penalty, r.reach, r.epoch))):
            return "not trusted: the loss, its gradient or its curvature is not finite"
        word = band(r.reach)
        where = f"{r.reach:.2g} of the radius of the series in h"
        if word in ("unreliable", "beyond"):
            reason = "beyond it, no such flow" if word == "beyond" else "near its end"
            return f"not trusted: {where}, {reason}"
        if r.epoch > 1:
            return f"not trusted: an epoch is {r.epoch:.2g} long in units of 1/lambda_max, more than 1"
        return f"trusted: {where}" if word == "fine" else f"trusted with caution: {where}"

    def _moments(self, params: PyTree) -> tuple[Array, PyTree, Array]:
        """Loss, gradient, and variance of minibatch gradients, in one pass over the data (Welford's recursion)."""
        value_and_gradient = jax.value_and_grad(self.loss_fn)
        if self.batch_size is None:
            value, gradient = value_and_gradient(params, *self.data)
            _checks.check_loss_value("Monitor", "loss_fn(params, *data)", value)
            return value, gradient, jnp.zeros((), jnp.result_type(value))
        m = jax.tree.leaves(self.data)[0].shape[0] // self.batch_size
        batches = jax.tree.map(lambda x: jnp.reshape(x, (m, self.batch_size, *jnp.shape(x)[1:])), self.data)

        def one(carry, batch):
            count, mean_value, mean, spread = carry
            value, gradient = value_and_gradient(params, *batch)
            _checks.check_loss_value("Monitor", "loss_fn(params, *batch)", value)
            count = count + 1
            gap = _difference(gradient, mean)
            mean = _tree.axpy(1 / count, gap, mean)
            # <g - old mean, g - new mean> = (1 - 1/count) ||g - old mean||^2
            spread = spread + ((1 - 1 / count) * _tree.squared_norm(gap)).astype(spread.dtype)
            return (count, mean_value + (value - mean_value) / count.astype(value.dtype), mean, spread), None

        first = jax.eval_shape(lambda: value_and_gradient(params, *jax.tree.map(lambda x: x[0], batches)))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
        wide = _tree.widest_dtype(params)
        start = (jnp.zeros((), wide), *zeros, jnp.zeros((), wide))
        loop = canonical_convolutions(lambda start, batches: jax.lax.scan(one, start, batches)[0])
        _, value, gradient, spread = loop(start, batches)
        return value, gradient, spread / m


def _difference(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x - y, a, b)


_jitted = jax.jit(lambda monitor, params: monitor(params), static_argnums=0)


def monitor(
    loss_fn: Loss,
    method: Settings,
    sampling: Drawn = _FULL_BATCH,
    *,
    data: Data = (),
    num_steps: Integer = 10,
    every: Integer = 1,
) -> Monitor:
    """A monitor of what `method` penalizes implicitly along a run, and of whether its modified equation speaks there.

    One reading costs one gradient of the loss on all the data and `num_steps + 1` Hessian products (about two gradients
    each): with the defaults 23 gradients. Every thousandth step that is 2 % of a full-batch run.

    Args:
      loss_fn: `loss_fn(params, *data) -> scalar`, the mean over the leading axes of the data.
      method: the optimizer's settings, not Adam's: its penalty is of another norm, see `flows.memory_strain`.
      sampling: how minibatches are drawn; with minibatches `data` is cut into them in its order.
      data: the arguments of the loss after the parameters.
      num_steps: Hessian products for both ends of the spectrum, cut at the number of parameters.
      every: the cadence in steps of a training loop, for `due`.

    Returns:
      A `Monitor`. With `descend` the cadence is `descend(..., observe=monitor, every=n)`; in a loop of one's own it is
      `if monitor.due(step): print(monitor.line(params))`.

    Raises:
      TypeError, ValueError: an argument is not as above, or the data do not have `sampling.num_examples` rows.

    Example:
      >>> from implicit_reg.strength import GradientDescent
      >>> watch = monitor(lambda x: 0.5 * jnp.sum(jnp.array([1.0, 2.0]) * x**2), GradientDescent(0.1))
      >>> print(watch.line(jnp.array([1.0, 1.0])))
      loss 1.5; implicit penalty 0.125 (8.3 % of the loss); h lambda_max/2 0.1 (unstable beyond 1); r 0.092; trusted: 0.2 of the radius of the series in h

    References:
      [barrett2021], [smith2021]; the bands are a reading of tables (section 12 of `docs/theory.md`).
    """  # noqa: E501
    _checks.check_callable("monitor", "loss_fn", loss_fn, "loss_fn(params, *data) -> scalar")
    check_method("monitor", "method", method)
    strength = implicit_strength(method, sampling)
    _checks.check_integer("monitor", "num_steps", num_steps)
    _checks.check_integer("monitor", "every", every)
    if not isinstance(data, tuple):
        raise TypeError(f"monitor: `data` must be a tuple of arguments of the loss, got {type(data).__name__}")
    batch_size = None
    if not isinstance(sampling, FullBatch):
        rows = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
        if rows != {(sampling.num_examples,)}:
            raise ValueError(
                f"monitor: `data` must have the {sampling.num_examples} examples of `sampling` as leading axis of "
                f"every leaf, got leading axes {sorted(rows)}"
            )
        batch_size = int(sampling.batch_size)
    loss_fn = _callables.hashable(loss_fn)
    return Monitor(loss_fn, method, sampling, strength, data, int(num_steps), batch_size, int(every))
