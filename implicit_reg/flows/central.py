"""Central flows: what the time average of an oscillating optimizer follows at the edge of stability.

An optimizer `x <- x - P^{-1} (...)` oscillates where the largest eigenvalue of `P^{-1} H` reaches a critical value
kappa. Averaged over the oscillation `x + d`, with covariance `Sigma = E[d d']`, the gradient is
`g + 0.5 grad <Sigma, H>`: the oscillation pushes towards lower curvature. `Sigma` itself is what it takes to hold the
curvature at kappa.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reg import _callables, _checks
from implicit_reg._types import Integer, Loss, Scalar
from implicit_reg.flows.complementarity import solve_complementarity

NEAR = 0.975  # of the critical value: an eigenvalue above it counts as critical (1.95/h for gradient descent)
COLD_STEPS = 25  # steps of length 0 for the first eigenpairs; afterwards every substep improves them once


@dataclasses.dataclass(frozen=True)
class EdgeOptimizer:
    """What a central flow has to know of an optimizer.

    Attributes:
      critical: kappa; a mode with `P^{-1} H = kappa` changes sign at every step without growing.
      rate: rho; away from the edge a step is `-rho P^{-1} g` to first order.
      age: c; the second-order term is `-rho^2 c P^{-1} H P^{-1} g`, for a constant preconditioner.
      memory: b2 of the mean squared gradient `nu` with `P = (sqrt(nu) + eps)/h`; None has none, and `P = 1/h`.
      eps: added to the root.
      pooled: whether `nu` is one number, the mean of `||g||^2`, or one for each parameter.
    """

    critical: float
    rate: float = 1.0
    age: float = 0.5
    memory: float | None = None
    eps: float = 0.0
    pooled: bool = False


def edge_gradient_descent() -> EdgeOptimizer:
    """Gradient descent: `1 - h lambda = -1` at `h lambda = 2`."""
    return EdgeOptimizer(2.0)


def edge_heavy_ball(beta: float) -> EdgeOptimizer:
    """Heavy ball as Optax has it: `z^2 - (1 + b - h lambda) z + b = 0` has the root -1 at `h lambda = 2 (1 + b)`."""
    return EdgeOptimizer(2 * (1 + beta), 1 / (1 - beta), 0.5 + beta / (1 - beta))


def edge_nesterov(beta: float) -> EdgeOptimizer:
    """Nesterov as Optax has it: `(z - 1)(z - b) + h lambda ((1 + b) z - b) = 0` at z = -1."""
    return EdgeOptimizer(2 * (1 + beta) / (1 + 2 * beta), 1 / (1 - beta), 0.5 + beta**2 / (1 - beta))


def edge_scalar_rmsprop(decay: float, eps: float = 0.0) -> EdgeOptimizer:
    """Gradient descent with step `h/(sqrt(nu) + eps)`, `nu` the moving average of `||g||^2`."""
    return EdgeOptimizer(2.0, memory=decay, eps=eps, pooled=True)


def edge_rmsprop(decay: float, eps: float = 0.0) -> EdgeOptimizer:
    """RMSProp with `eps` outside of the root."""
    return EdgeOptimizer(2.0, memory=decay, eps=eps)


def edge_adam(b1: float, b2: float, eps: float = 0.0) -> EdgeOptimizer:
    """Adam without bias correction: heavy ball with `1 - b1` in front of the gradient, on RMSProp's preconditioner."""
    return EdgeOptimizer(2 * (1 + b1) / (1 - b1), 1.0, 0.5 + b1 / (1 - b1), memory=b2, eps=eps)


class CentralFlow(NamedTuple):
    """A central flow after 0, 1, ..., n steps.

    Attributes:
      params: (n + 1, d).
      memory: `nu`, (n + 1, d), (n + 1, 1) where it is pooled, (n + 1, 0) where there is none.
      sharpness: the largest eigenvalues of `P^{-1} H` over kappa, (n + 1, num_modes); 1 is the edge.
      loss: `L` at the flow.
      predicted_loss: of the oscillating iterates, time-averaged: `L + 0.5 <Sigma, H>`.
      variance: `tr Sigma`, the mean of `||x_n - mean||^2`.
      amplitude: (n + 1, d), the sum of the principal axes of `Sigma`, which has `||.||^2 = tr Sigma` where `P = 1/h`:
        iterates that start at `params + amplitude` oscillate as predicted from the first step on.
    """

    params: Float[Array, "n d"]
    memory: Float[Array, "n m"]
    sharpness: Float[Array, "n k"]
    loss: Float[Array, " n"]
    predicted_loss: Float[Array, " n"]
    variance: Float[Array, " n"]
    amplitude: Float[Array, "n d"]


class Weights(NamedTuple):
    """Factors on the parts of a central flow, operands of one compiled program; the flow itself has (1, 0, 0).

    Attributes:
      sigma: on `0.5 grad <Sigma, H>`.
      second_order: on the second-order term of the modified equation, in all directions.
      off_critical: on the same term, without its part in the critical directions.
    """

    sigma: Any = 1.0
    second_order: Any = 0.0
    off_critical: Any = 0.0


PLAIN = Weights()


def central_flow(
    loss_fn: Loss,
    optimizer: EdgeOptimizer,
    params: Float[Array | np.ndarray, " d"],
    h: Scalar,
    num_steps: Integer,
    *,
    memory: Float[Array | np.ndarray, " m"] | None = None,
    num_modes: Integer = 1,
    num_substeps: Integer = 4,
    weights: Weights = PLAIN,
) -> CentralFlow:
    """Integrates the central flow of an optimizer on a loss of one flat vector.

        dx/dn = -rho P^{-1} [ g + 0.5 grad <Sigma, H> ],
        d nu/dn = ((1 - b2)/b2) [ g^2 + kappa^2 P^2 diag(Sigma) - nu ],
        Sigma >= 0,   kappa P - H >= 0,   <Sigma, kappa P - H> = 0.

    With `S = P^{-1/2} H P^{-1/2}`, its largest eigenvalues `lambda` and eigenvectors `U`, `W = P^{-1/2} U` and
    `Sigma = W X W'`, a substep of length dt solves the complementarity problem for X with

        A = kappa I - diag(lambda) - dt ( N . dx_0 - kappa U' (P'_0/P) U ),
        B[X] = dt ( (rho/2) N . P^{-1} (N : X) + kappa U' (P'_X/P) U ),      N_ij = grad (w_i' H w_j),

    where `dx_0` and `P'_0` are the changes without `Sigma`, and `P'_X` what it adds. It is the *next* curvature that is
    constrained, so that drift is corrected. Modes below the edge get no `Sigma` from the constraint itself: no
    threshold decides. The part without `Sigma` is integrated to second order (the substep's own error `dt/2 H g` is
    taken off), for Euler's method would add an implicit regularization of its own.

    Args:
      loss_fn: `x -> L(x)` on a flat vector.
      optimizer: of which the iterates are.
      params: the start.
      h: the step size.
      num_steps: n.
      memory: `nu` at the start; None starts from the squared gradient there.
      num_modes: how many eigenpairs are tracked, at least as many as are ever critical at once.
      num_substeps: in a step.
      weights: of the parts; `Weights(off_critical=1)` adds the implicit regularization of the directions that do not
        oscillate, `Weights(sigma=0)` is the stable flow (gradient flow for gradient descent) and
        `Weights(sigma=0, second_order=1)` the modified flow to second order.

    Returns:
      The flow at whole steps, as a `CentralFlow`. A flow that diverges is not finite from there on.

    Raises:
      TypeError, ValueError: an argument is not as above, a second-order term for an optimizer with a memory of squares
        included (its second-order term is not that of a constant preconditioner).

    Example:
      >>> valley = lambda z: 0.5 * (1 + z[1]) * z[0] ** 2 - 0.02 * z[1]      # ever sharper: the Hessian is 1 + z_1
      >>> flow = central_flow(valley, edge_gradient_descent(), jnp.array([0.0, 0.8]), 1.0, 40)
      >>> [f"{float(flow.sharpness[n, 0]):.3f}" for n in (0, 5, 40)]        # held at the edge from step 10 on
      ['0.900', '0.950', '1.000']
      >>> f"{float(flow.variance[-1]):.3f}"                                 # 2 max(0, -g . grad s)/||grad s||^2
      '0.040'

    References:
      [cohen2025]
    """
    _checks.check_callable("central_flow", "loss_fn", loss_fn, "x -> loss")
    _checks.check_floating("central_flow", "params", params)
    _checks.check_number("central_flow", "h", h, low=0, exclusive=True)
    for name, value in (("num_steps", num_steps), ("num_modes", num_modes), ("num_substeps", num_substeps)):
        _checks.check_integer("central_flow", name, value)
    x = jnp.asarray(params)
    if not num_modes <= x.size:
        raise ValueError(f"central_flow: `num_modes` must be at most the {x.size} parameters, got {num_modes}")
    if optimizer.memory is not None and not (weights.second_order == 0 and weights.off_critical == 0):
        raise ValueError(
            "central_flow: `weights` must leave out the second-order terms for an optimizer with a memory of squares, "
            f"got {weights}; they are those of a constant preconditioner"
        )
    fn = _callables.hashable(loss_fn)
    settings = (fn, optimizer, int(num_steps), int(num_modes), int(num_substeps))
    if memory is None:
        # Outside of a jitted program a gradient costs a compilation for each of its operations.
        memory = jnp.zeros(0) if optimizer.memory is None else _squares(optimizer, jax.jit(jax.grad(fn))(x))
    weights = jax.tree.map(lambda w: jnp.asarray(w, x.dtype), weights)
    return run(*settings, x, jnp.asarray(memory, x.dtype), jnp.asarray(h, x.dtype), weights)


def _squares(optimizer: EdgeOptimizer, g: Array) -> Array:
    """What `nu` is a moving average of: `g^2`, or its sum."""
    return jnp.sum(g**2, keepdims=True) if optimizer.pooled else g**2


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def run(fn, optimizer, num_steps, num_modes, num_substeps, x, memory, h, weights) -> CentralFlow:
    """The flow at whole steps; all but the first five arguments are operands."""
    substep = functools.partial(_substep, fn, optimizer, h, weights)
    # Any fixed basis in general position will do; a random one would need a key. Substeps of length 0 turn it into the
    # leading eigenvectors: a loop of its own would double the compiled program.
    basis = jnp.cos(jnp.arange(1.0, x.size + 1)[:, None] ** 2 * jnp.arange(1.0, num_modes + 1)).astype(x.dtype)
    # One step more at the end, for what is seen of a step is seen at its first substep.
    lengths = jnp.concatenate([jnp.zeros(COLD_STEPS), jnp.full(num_steps + 1, 1.0 / num_substeps)]).astype(x.dtype)

    def step(carry, dt):
        carry, seen = jax.lax.scan(lambda carry, _: substep(dt, carry), carry, length=num_substeps)
        return carry, jax.tree.map(lambda leaf: leaf[0], seen)

    first = (x, memory, jnp.linalg.qr(basis)[0], jnp.zeros((num_modes, num_modes), x.dtype))
    _, seen = jax.lax.scan(step, first, lengths)
    return jax.tree.map(lambda leaf: leaf[COLD_STEPS:], seen)


def _leading_eigenpairs(product, v: Float[Array, "d k"], sv: Float[Array, "d k"]):
    """One Rayleigh-Ritz step for the k largest eigenpairs of S, on the span of an orthonormal V and its residuals."""
    k = v.shape[1]
    residual = sv - v @ (v.T @ sv)
    # Where V has converged the residual is noise, of which Householder's Q makes an orthonormal basis all the same.
    space = jnp.linalg.qr(jnp.concatenate([v, residual], axis=1))[0]
    small = space.T @ product(space)
    values, vectors = jnp.linalg.eigh((small + small.T) / 2)
    return values[: -k - 1 : -1], space @ vectors[:, : -k - 1 : -1]


def _substep(fn, optimizer, h, weights, dt, carry):
    x, memory, basis, guess = carry
    kappa, rho, k = optimizer.critical, optimizer.rate, basis.shape[1]
    p = jnp.ones_like(x) / h
    if optimizer.memory is not None:
        p = jnp.broadcast_to((jnp.sqrt(memory) + optimizer.eps) / h, x.shape)
    root = 1 / jnp.sqrt(p)
    # The loss, its gradient, and S = P^{-1/2} H P^{-1/2} on columns, all from one linearization.
    (value, g), push = jax.linearize(jax.value_and_grad(fn), x)
    product = lambda v: root[:, None] * jax.vmap(lambda t: push(t)[1], 1, 1)(root[:, None] * v)  # noqa: E731
    first = product(jnp.concatenate([basis, (root * g)[:, None]], axis=1))
    eigenvalues, u = _leading_eigenpairs(product, basis, first[:, :k])
    w = root[:, None] * u
    n = _third_derivatives(fn, x, w)
    pairs = u.T[:, None, :] * u.T[None, :, :]  # (k, k, d)

    turned = first[:, k]  # P^{1/2} times P^{-1} H P^{-1} g
    critical = jnp.where(eigenvalues > NEAR * kappa, 1.0, 0.0)
    off = turned - u @ (critical * (u.T @ turned))
    second = weights.second_order * turned + weights.off_critical * off
    dx = -rho * g / p - rho**2 * root * (optimizer.age * second - dt / 2 * turned)
    a = kappa * jnp.eye(k, dtype=x.dtype) - jnp.diag(eigenvalues) - dt * n @ dx
    b = dt * rho / 2 * jnp.einsum("ijd,kld->ijkl", n, n / p)
    speed = jnp.zeros_like(memory)
    if optimizer.memory is not None:
        fading = (1 - optimizer.memory) / optimizer.memory
        slope = 1 / (2 * jnp.sqrt(memory) * (jnp.sqrt(memory) + optimizer.eps))  # d log P/d nu
        pool = (lambda v: jnp.sum(v, -1, keepdims=True)) if optimizer.pooled else lambda v: v
        speed = fading * (_squares(optimizer, g) - memory)
        added = fading * kappa**2 * pool(p * pairs)  # P^2 diag(Sigma) = P sum_kl X_kl u_k u_l
        a = a + dt * kappa * jnp.sum(pairs * (slope * speed), -1)
        b = b + dt * kappa * jnp.einsum("ijd,kld->ijkl", pairs, jnp.broadcast_to(slope * added, pairs.shape))
    X = jnp.where(dt > 0, solve_complementarity(a, b, guess), 0.0)
    if optimizer.memory is not None:
        speed = speed + weights.sigma * jnp.einsum("kl,kld->d", X, added)
    dx = dx - weights.sigma * rho / 2 * jnp.einsum("kl,kld->d", X, n) / p
    predicted = value + 0.5 * jnp.sum(jnp.diag(X) * eigenvalues)
    covariance, axes = jnp.linalg.eigh(X)
    amplitude = w @ axes @ jnp.sqrt(jnp.maximum(covariance, 0.0))
    seen = CentralFlow(x, memory, eigenvalues / kappa, value, predicted, jnp.sum((w @ X) * w), amplitude)
    return (x + dt * dx, memory + dt * speed, u, X), seen


def _third_derivatives(fn, x: Array, w: Float[Array, "d k"]) -> Float[Array, "k k d"]:
    """`N_ij = grad (w_i' H w_j)`, one third derivative for each pair i <= j."""
    i, j = np.triu_indices(w.shape[1])

    def third(u, v):
        return jax.jvp(lambda y: jax.jvp(jax.grad(fn), (y,), (u,))[1], (x,), (v,))[1]

    found = jax.vmap(third, (1, 1))(w[:, i], w[:, j])
    index = np.zeros((w.shape[1],) * 2, int)
    index[i, j] = index[j, i] = np.arange(len(i))
    return found[index]
