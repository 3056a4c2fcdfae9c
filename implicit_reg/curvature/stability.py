"""Where a step size makes a direction of the Hessian unstable, and the Hessian as an adaptive optimizer sees it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from implicit_reg import _checks
from implicit_reg._types import Data, Integer, Loss, Params, Scalar
from implicit_reg.curvature.lanczos import extreme_eigenvalues
from implicit_reg.curvature.operators import hessian_operator, preconditioned

_KNOWN = (optax.ScaleByAdamState, optax.ScaleByAmsgradState, optax.ScaleByRmsState)


def sgd_stability(h: Scalar) -> Any:
    """`2 / h`: gradient descent on `lambda x^2 / 2` diverges above this lambda.

    Args:
      h: the step size, positive.

    Returns:
      The threshold on the largest eigenvalue of the Hessian.

    Raises:
      TypeError, ValueError: `h` is not a positive number.

    Example:
      >>> sgd_stability(0.5)
      4.0
    """
    _check_step("sgd_stability", h)
    return 2 / h


def momentum_stability(h: Scalar, decay: Scalar) -> Any:
    """`2 (1 + b) / h`: heavy ball, `optax.sgd(h, momentum=b)`.

    Args:
      h: the step size, positive.
      decay: b in [0, 1).

    Returns:
      The threshold on the largest eigenvalue of the Hessian.

    Raises:
      TypeError, ValueError: an argument is not as above.

    Example:
      >>> momentum_stability(0.5, 0.5)
      6.0
    """
    _check_step("momentum_stability", h, decay)
    return 2 * (1 + decay) / h


def nesterov_stability(h: Scalar, decay: Scalar) -> Any:
    """`2 (1 + b) / ((1 + 2 b) h)`: `optax.sgd(h, momentum=b, nesterov=True)`.

    Args:
      h: the step size, positive.
      decay: b in [0, 1).

    Returns:
      The threshold on the largest eigenvalue of the Hessian.

    Raises:
      TypeError, ValueError: an argument is not as above.

    Example:
      >>> nesterov_stability(0.5, 0.5)
      3.0
    """
    _check_step("nesterov_stability", h, decay)
    return 2 * (1 + decay) / ((1 + 2 * decay) * h)


def adam_stability(h: Scalar, b1: Scalar = 0.9) -> Any:
    """`(2 + 2 b1) / ((1 - b1) h)` on the *preconditioned* sharpness: 38 / h at b1 = 0.9 [cohen2022adaptive, sec. 3].

    It holds for a preconditioner that is constant: a real one moves, and the run with it.

    Args:
      h: the step size, positive.
      b1: in [0, 1); 0 for RMSProp.

    Returns:
      The threshold on `preconditioned_sharpness`.

    Raises:
      TypeError, ValueError: an argument is not as above.

    Example:
      >>> adam_stability(1.0, 0.5)
      6.0
    """
    _check_step("adam_stability", h, b1)
    return (2 + 2 * b1) / ((1 - b1) * h)


def preconditioner(
    state: PyTree,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    eps_in_sqrt: bool = True,
) -> PyTree[Array]:
    """The diagonal P of `x <- x - h P^-1 m` that an Optax state holds [cohen2022adaptive, sec. 2].

        Adam:     (1 - b1^n) (sqrt(nu / (1 - b2^n) + eps_root) + eps),
        AMSGrad:  (1 - b1^n) (sqrt(nu_max + eps_root) + eps),
        RMSProp:  sqrt(nu + eps), or sqrt(nu) + eps where not `eps_in_sqrt`.

    The state does not hold the numbers of the optimizer: pass those that it was made with. The defaults are Optax's.
    NAdam keeps its memories in Adam's state, which does not tell them apart: this P is not NAdam's.

    Args:
      state: of any Optax transformation, chained or wrapped, with exactly one adaptive state in it.
      b1, b2, eps, eps_root: of Adam; `eps` is RMSProp's too.
      eps_in_sqrt: of RMSProp.

    Returns:
      P, structured as the parameters.

    Raises:
      ValueError: no adaptive state or several, or one that has not taken a step.

    Example:
      >>> adam, x = optax.adam(0.1), jnp.array([1.0])
      >>> _, state = adam.update(jnp.array([2.0]), adam.init(x), x)
      >>> [round(float(p), 4) for p in preconditioner(state)]       # (1 - 0.9) |g| after one step
      [0.2]
    """
    name = "preconditioner"
    for argument, value in (("b1", b1), ("b2", b2), ("eps", eps), ("eps_root", eps_root)):
        _checks.check_number(name, argument, value, low=0)
    _checks.check_flag(name, "eps_in_sqrt", eps_in_sqrt)
    is_known = lambda node: isinstance(node, _KNOWN)  # noqa: E731
    found = [node for node in jax.tree.leaves(state, is_leaf=is_known) if is_known(node)]
    if len(found) != 1:
        raise ValueError(
            f"{name}: `state` must hold exactly one of {', '.join(kind.__name__ for kind in _KNOWN)}, got "
            f"{len(found)}; pass the part of the state that belongs to the parameters"
        )
    (adaptive,) = found
    if isinstance(adaptive, optax.ScaleByRmsState):
        if eps_in_sqrt:
            return jax.tree.map(lambda nu: jnp.sqrt(nu + jnp.asarray(eps, nu.dtype)), adaptive.nu)
        return jax.tree.map(lambda nu: jnp.sqrt(nu) + jnp.asarray(eps, nu.dtype), adaptive.nu)
    count = adaptive.count
    if not isinstance(count, jax.core.Tracer) and int(count) == 0:
        raise ValueError(f"{name}: `state` must have taken a step, got count=0; its bias correction divides by 0")

    def corrected(decay, dtype):
        return 1 - jnp.asarray(decay, dtype) ** count.astype(dtype)

    def adam(nu):
        return nu / corrected(b2, nu.dtype)

    def root(nu):
        outer = jnp.sqrt(nu + jnp.asarray(eps_root, nu.dtype)) + jnp.asarray(eps, nu.dtype)
        return corrected(b1, nu.dtype) * outer

    if isinstance(adaptive, optax.ScaleByAmsgradState):
        return jax.tree.map(root, adaptive.nu_max)
    return jax.tree.map(lambda nu: root(adam(nu)), adaptive.nu)


def preconditioned_sharpness(
    loss_fn: Loss,
    params: Params,
    scale: Params,
    data: Data = (),
    *,
    num_steps: Integer = 20,
    key: jax.Array | None = None,
    batch_size: Integer | None = None,
) -> Float[Array, ""]:
    """The largest eigenvalue of `P^(-1/2) H P^(-1/2)`, to be held against `adam_stability` [cohen2022adaptive, sec. 3].

    Args:
      loss_fn, params, data, batch_size: as for `hessian_operator`.
      scale: P, from `preconditioner`.
      num_steps: Hessian products of Lanczos.
      key: of its random start; None is a fixed one.

    Returns:
      The eigenvalue, from below.

    Raises:
      TypeError, ValueError: as `hessian_operator` and `preconditioned`.

    Example:
      >>> loss = lambda x: 0.5 * (2 * x[0] ** 2 + 6 * x[1] ** 2)
      >>> round(float(preconditioned_sharpness(loss, jnp.zeros(2), jnp.array([1.0, 6.0]))), 4)
      2.0
    """
    operator = preconditioned(hessian_operator(loss_fn, params, data, batch_size=batch_size), scale)
    return extreme_eigenvalues(operator, num_steps=num_steps, key=key).high


def _check_step(name: str, h: Any, decay: Any = 0.0) -> None:
    _checks.check_number(name, "h", h, low=0, exclusive=True)
    _checks.check_number(name, "decay", decay, low=0)
    if _checks.is_concrete(decay) and not decay < 1:
        raise ValueError(f"{name}: the momentum must be below 1, got {decay}")
