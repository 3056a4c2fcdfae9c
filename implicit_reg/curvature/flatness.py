"""Flatness as the field measures it: slope, spread of minibatch gradients, sharpness in a ball, robustness to noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reg import _checks, _tree
from implicit_reg._types import Data, Integer, Loss, Params, Scalar
from implicit_reg.curvature.density import Estimate
from implicit_reg.curvature.lanczos import fixed
from implicit_reg.curvature.minibatches import mean_value_and_gradient
from implicit_reg.curvature.surface import gaussian_like, random_direction


def gradient_norm(
    loss_fn: Loss, params: Params, data: Data = (), *, batch_size: Integer | None = None
) -> Float[Array, ""]:
    """`||grad L(x)||`; its square is what a finite step penalizes [barrett2021, eq. 4].

    Args:
      loss_fn, params, data, batch_size: as for `hessian_operator`.

    Returns:
      The norm; not finite where the gradient is not. `partial(gradient_norm, loss_fn)` is an `observe`.

    Raises:
      TypeError, ValueError: as `hessian_operator`.

    Example:
      >>> float(gradient_norm(lambda x: x[0] * x[1], jnp.array([3.0, 4.0])))
      5.0
    """
    return jnp.sqrt(_tree.squared_norm(mean_value_and_gradient(loss_fn, params, data, batch_size=batch_size)[1]))


def minibatch_gradient_variance(loss_fn: Loss, params: Params, data: Data, *, num_batches: Integer) -> Float[Array, ""]:
    """`(1/m) sum_k ||grad C_k - grad C||^2` over m equal consecutive minibatches [smith2021, eq. 1].

    Args:
      loss_fn, params, data: as for `hessian_operator`; data are needed here.
      num_batches: m; divides the number of examples.

    Returns:
      The variance, by two passes, so that nothing cancels.

    Raises:
      TypeError, ValueError: as `hessian_operator`; no data, or m does not divide the number of examples.

    Example:
      >>> loss = lambda x, y: jnp.mean(x * y)
      >>> float(minibatch_gradient_variance(loss, jnp.array(1.0), (jnp.array([0.0, 2.0, 4.0, 6.0]),), num_batches=2))
      4.0
    """
    name = "minibatch_gradient_variance"
    _checks.check_integer(name, "num_batches", num_batches)
    leaves = jax.tree.leaves(data)
    if not isinstance(data, tuple) or not leaves:
        raise ValueError(
            f"{name}: `data` must be a tuple of arrays; a loss that holds its data cannot be cut into batches"
        )
    _checks.check_equal_lengths(name, leaves)
    total, m = jnp.shape(leaves[0])[0], int(num_batches)
    if total % m or not total:
        raise ValueError(f"{name}: `num_batches` must divide the number of examples, got {m} and {total}")
    batches = jax.tree.map(lambda x: jnp.asarray(x).reshape(m, total // m, *jnp.shape(x)[1:]), data)
    mean = mean_value_and_gradient(loss_fn, params, data, batch_size=total // m)[1]

    def distance(batch):
        gradient = mean_value_and_gradient(loss_fn, params, batch)[1]
        return _tree.squared_norm(jax.tree.map(jnp.subtract, gradient, mean))

    return jnp.mean(jax.lax.map(distance, batches))


def epsilon_sharpness(
    loss_fn: Loss,
    params: Params,
    data: Data = (),
    *,
    radius: Scalar = 0.05,
    num_steps: Integer = 10,
    key: jax.Array | None = None,
    batch_size: Integer | None = None,
) -> Float[Array, ""]:
    """`max_{||e|| <= radius} L(x + e) - L(x)` from below: the inner maximum of SAM [foret2021, eq. 1; keskar2017].

    Projected ascent, `e <- project(e + radius g / ||g||)`, from `radius g / ||g||` (the step of SAM) and from both
    ends of a random diameter; the largest loss met counts. A *lower bound*, never below SAM's one step and never
    negative: the maximum of a loss that is not concave can be missed.

    Args:
      loss_fn, params, data, batch_size: as for `hessian_operator`.
      radius: of the ball, positive.
      num_steps: of ascent from each start.
      key: of the random diameter; None is a fixed one.

    Returns:
      The bound; not finite where a loss that was met is not.

    Raises:
      TypeError, ValueError: as `hessian_operator`; a radius that is not positive.

    Example:
      >>> round(float(epsilon_sharpness(lambda x: jnp.sum(x), jnp.zeros(4), radius=0.5)), 4)
      1.0
    """
    name = "epsilon_sharpness"
    _checks.check_number(name, "radius", radius, low=0, exclusive=True)
    _checks.check_integer(name, "num_steps", num_steps, low=0)
    value, gradient = mean_value_and_gradient(loss_fn, params, data, batch_size=batch_size)
    params = jax.tree.map(jnp.asarray, params)

    def on_sphere(vector):
        norm = jnp.sqrt(_tree.squared_norm(vector))
        # A NaN norm stays: a zero in its place would hide that the gradient is not finite.
        factor = jnp.where(norm == 0, 0, radius / jnp.where(norm == 0, 1, norm))
        return _tree.scale(factor, vector)

    def project(vector):
        norm = jnp.sqrt(_tree.squared_norm(vector))
        return _tree.scale(jnp.where(norm > radius, radius / jnp.where(norm > radius, norm, 1), 1), vector)

    def climb(start):
        def step(carry, _):
            offset, best = carry
            here = jax.tree.map(jnp.add, params, offset)
            height, slope = mean_value_and_gradient(loss_fn, here, data, batch_size=batch_size)
            moved = project(jax.tree.map(jnp.add, offset, on_sphere(slope)))
            return (moved, jnp.maximum(best, height)), None

        return jax.lax.scan(step, (start, value), None, length=int(num_steps) + 1)[0][1]

    diameter = on_sphere(gaussian_like(params, fixed(key)))
    starts = [on_sphere(gradient), diameter, _tree.scale(-1, diameter)]
    highest = jax.lax.map(climb, jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    return jnp.max(highest) - value


def noise_robustness(
    loss_fn: Loss,
    params: Params,
    data: Data = (),
    *,
    scale: Scalar,
    key: jax.Array,
    num_samples: Integer = 16,
    relative: bool = True,
    batch_size: Integer | None = None,
) -> Estimate:
    """The mean of `L(x + scale xi) - L(x)` over random xi, with its standard error.

    Args:
      loss_fn, params, data, batch_size: as for `hessian_operator`.
      scale: of the noise, positive.
      key: of the noise.
      num_samples: at least 2.
      relative: whether xi is filter-normalized [li2018, sec. 4], so that `scale` is a fraction of each filter's norm;
        else xi is a standard normal.

    Returns:
      Mean, standard error, number of samples.

    Raises:
      TypeError, ValueError: as `hessian_operator`; a scale that is not positive, fewer than two samples.

    Example:
      >>> noise = dict(scale=0.5, key=jax.random.key(0))
      >>> round(float(noise_robustness(lambda x: jnp.sum(x), jnp.zeros(3), **noise).value), 4)
      0.0
    """
    name = "noise_robustness"
    _checks.check_number(name, "scale", scale, low=0, exclusive=True)
    _checks.check_integer(name, "num_samples", num_samples, low=2)
    _checks.check_flag(name, "relative", relative)
    value, _ = mean_value_and_gradient(loss_fn, params, data, batch_size=batch_size)
    params = jax.tree.map(jnp.asarray, params)

    def rise(key):
        noise = random_direction(params, key) if relative else gaussian_like(params, key)
        return (
            mean_value_and_gradient(loss_fn, _tree.axpy(scale, noise, params), data, batch_size=batch_size)[0] - value
        )

    rises = jax.lax.map(rise, jax.random.split(key, int(num_samples)))
    return Estimate(
        jnp.mean(rises), jnp.std(rises, ddof=1) / jnp.sqrt(num_samples).astype(rises.dtype), int(num_samples)
    )
