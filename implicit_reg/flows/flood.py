"""What flooding follows: a pair of steps across the level, the slow flow on the level set, momentum, and minibatches.

One fact is behind all of it. A step `x - s h g(x)` with a sign `s = +-1` is the time-h flow of `-s g - (h/2) H g`:
the sign of the step does not touch the second term. Signs that keep the loss at its level cancel the first terms, and
what remains is `-(h^2/2) H g` per step, less its part along `g`, which the level takes away. Terms are per unit (a
pair, or a step), powers of the step size included, as in `closed_forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from implicit_reg import _checks, _tree
from implicit_reg._types import Integer, Loss, Params, Scalar
from implicit_reg.derivatives import hessian_vector_product
from implicit_reg.flows.closed_forms import gradient_products
from implicit_reg.flows.memory import check_decay

Vector = Float[Array, " d"]
Losses = Callable[[Vector], Float[Array, " m"]]


def flooding_pair_terms(
    loss_fn: Loss, params: Params, h: Scalar, *, ascent_first: bool = False
) -> tuple[PyTree, PyTree]:
    """The terms of one step down and one step up on the same loss, per pair:

        F_2 = -h^2 H g = -(h^2/2) grad ||g||^2,   F_3 = +(h^3/2) T(g, g), or minus where ascent comes first.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      params: any pytree of floating leaves.
      h: the size of both steps.
      ascent_first: which of the two steps comes first.

    Returns:
      `F_2` and `F_3`, structured as `params`; there is no `F_1`, so that `n h^2` is the time scale of `n` pairs.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(v) for v in flooding_pair_terms(lambda x: x**3, jnp.array(1.0), 0.5)]  # g = 3, H = 6, T = 6
      [-4.5, 3.375]

    References:
      [ishida2020] for the method; the next term was derived here.
    """
    _, hg, _, tgg = gradient_products(loss_fn, params)
    return _tree.scale(-(h**2), hg), _tree.scale((-0.5 if ascent_first else 0.5) * h**3, tgg)


def minibatch_pair_terms(first_fn: Loss, second_fn: Loss, params: Params, h: Scalar) -> tuple[PyTree, PyTree]:
    """The terms of a step down on one minibatch and up on another, the mean over the two orders, per pair:

        F_2 = -(h^2/2) grad <g_i, g_j>,   F_3 = (h^3/4) (T_i(g_j, g_j) + T_j(g_i, g_i)).

    An inner product: neither `||g||^2` of the mean loss nor the mean of `||g_k||^2`. A single order moves by
    `-+h (g_i - g_j)` besides; the two orders in turn (down i, up j, down j, up i) follow the mean of `||g_k||^2` again.

    Args:
      first_fn: loss `L_i` on one minibatch, `(params) -> scalar`.
      second_fn: loss `L_j` on the other.
      params: any pytree of floating leaves.
      h: the size of both steps.

    Returns:
      `F_2` and `F_3`, structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> i, j = lambda x: x**2, lambda x: x**3                        # <g_i, g_j> = 6 x^3
      >>> [float(v) for v in minibatch_pair_terms(i, j, jnp.array(1.0), 1.0)]
      [-9.0, 6.0]
    """
    gi, gj = jax.grad(first_fn)(params), jax.grad(second_fn)(params)

    def along(fn, v):
        """H v and T(v, v) of `fn`."""
        product = lambda x: jax.jvp(jax.grad(fn), (x,), (v,))[1]  # noqa: E731
        return jax.jvp(product, (params,), (v,))

    (hi, ti), (hj, tj) = along(first_fn, gj), along(second_fn, gi)
    return _tree.scale(-(h**2) / 2, _tree.axpy(1.0, hi, hj)), _tree.scale(h**3 / 4, _tree.axpy(1.0, ti, tj))


def flooding_coefficient(decay: Scalar, correlations: Sequence[float | int] | Array | np.ndarray) -> Scalar:
    """How fast flooding with momentum slides: `kappa` in `dx/dn = -h^2 kappa P H g`, from the signs of its steps,

        kappa = (1 + 2 sum_{j>=1} decay^j r_j) / (2 (1 - decay)^2),   r_j = mean of s_n s_{n-j}.

    It holds for the trace `m <- decay m + .` after the sign and before it alike; what differs are the signs. With all
    signs equal it is the `(1 + b)/(2 (1 - b)^3)` of heavy ball, alternating `1/(2 (1 - b^2))`, without momentum 1/2.

    Args:
      decay: of the trace, at least 0 and below 1.
      correlations: `r_1, r_2, ...`, as many as matter.

    Returns:
      `kappa`, per step and per square of the learning rate.

    Raises:
      TypeError, ValueError: `decay` is not a number, below 0, or 1 and more.

    Example:
      >>> round(flooding_coefficient(0.5, [(-1) ** j for j in range(1, 60)]), 4)       # 1/(2 (1 - 1/4))
      0.6667
    """
    check_decay("flooding_coefficient", decay)
    total = sum(decay ** (j + 1) * r for j, r in enumerate(correlations))
    return (1 + 2 * total) / (2 * (1 - decay) ** 2)


def level_set_terms(loss_fn: Loss, params: Params, h: Scalar, decay: Scalar = 0.0) -> tuple[PyTree, PyTree]:
    """The slow flow of full-batch flooding on its level set, per step; with momentum *before* the sign is taken.

        F_1 = -h^2 kappa P H g,   P = I - g g'/||g||^2,   kappa = 1/(2 (1 - b^2)),
        F_2 = 2 b h |q|/((1 - b)(1 + b)^2) F_1,   q = g' H g/||g||^2.

    Steps go down and up in turn, and once in about `(1 + b)/(h |q|)` pairs two in a row go the same way, which keeps
    the loss at its level against the drift along g. `F_2` is what these slips add to the mean of `s_n s_{n-j}`; it
    vanishes without momentum, where every step is the exact flow of `-s g - (h/2) H g` and signs do not matter.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      params: any pytree of floating leaves, on the level set.
      h: the step size.
      decay: `b` of a trace that stands before flooding in the chain. With flooding first the signs have longer periods
        and no closed form: see `flooding_coefficient`.

    Returns:
      `F_1` and `F_2`, structured as `params`, tangent to the level set.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x: 0.5 * (x[0] ** 2 + 3.0 * x[1] ** 2)
      >>> field, _ = level_set_terms(loss, jnp.array([1.0, 1.0]), 1.0)     # g = (1, 3), H g = (1, 9)
      >>> [round(float(v), 3) for v in field]                              # -(H g - 2.8 g)/2
      [0.9, -0.3]
    """
    g, hg = hessian_vector_product(loss_fn, params, jax.grad(loss_fn)(params))
    q = optax.tree.vdot(g, hg) / optax.tree.vdot(g, g)
    first = _tree.scale(-(h**2) / (2 * (1 - decay**2)), _tree.axpy(-q, g, hg))
    return first, _tree.scale(2 * decay * h * jnp.abs(q) / ((1 - decay) * (1 + decay) ** 2), first)


def project_to_levels(losses_fn: Losses, params: Vector, level: Scalar, num_iterations: Integer = 4) -> Vector:
    """The nearby point where every loss is at the level: Newton's method along the gradients.

        x <- x - J' (J J')^{-1} (L(x) - b)

    Args:
      losses_fn: `x -> (m,)`, the losses; m at most the number of parameters, gradients linearly independent.
      params: a vector.
      level: b.
      num_iterations: of Newton's method; four reach round-off from a step size away.

    Returns:
      A vector.

    Example:
      >>> import jax.numpy as jnp
      >>> x = project_to_levels(lambda x: jnp.array([jnp.sum(x**2)]), jnp.array([1.2, 0.0]), 1.0)
      >>> round(float(x[0]), 5)
      1.0
    """
    _checks.check_integer("project_to_levels", "num_iterations", num_iterations)
    for _ in range(num_iterations):
        jacobian = jax.jacrev(losses_fn)(params)
        params = params - jacobian.T @ jnp.linalg.solve(jacobian @ jacobian.T, losses_fn(params) - level)
    return params


def common_level_terms(
    losses_fn: Losses, params: Vector, h: Scalar, areas: Float[Array, "m m"] | None = None
) -> tuple[Vector, Vector]:
    """The slow flow of minibatch flooding where every minibatch loss is at the level, per step:

        F_1 = -(h^2/2) P <H_k g_k> = -(h^2/4) P grad <||g_k||^2>,
        F_2 = -h^2 P sum_{k,l} M_kl H_k g_l,   M_kl = mean of 1[k drawn] s_k a_l,

    where P projects off all the `g_k`, and `h sum a_k g_k` is the displacement of the iterate. `M` less its diagonal
    `1/(2m)`, which is `F_1`, is antisymmetric: `F_2` is made of commutators `H_k g_l - H_l g_k`, and vanishes
    where the order of the minibatches makes the fluctuations reversible. Each minibatch ascends half of the time.

    Args:
      losses_fn: `x -> (m,)`, the minibatch losses.
      params: a vector, where all of them are at the level.
      h: the step size.
      areas: the antisymmetric part of `M`, from `fluctuation_areas`; None is 0.

    Returns:
      `F_1` and `F_2`, vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> losses = lambda x: jnp.array([x[0] + x[2] ** 2, x[1]])           # <||g_k||^2> = 1 + 2 x_2^2
      >>> field, _ = common_level_terms(losses, jnp.array([0.0, 0.0, 0.5]), 1.0)
      >>> [round(float(v), 3) + 0.0 for v in field]                        # -(0, 0, 0.5), less its part along (1, 0, 1)
      [0.25, 0.0, -0.25]
    """
    jacobian = jax.jacrev(losses_fn)(params)
    num = jacobian.shape[0]
    weights = jnp.eye(num) / (2 * num)

    def bent(m):
        """`sum_kl m_kl H_k g_l`."""
        # jvp of sum_k m_kl g_k along g_l, for each l.
        one = lambda column, g: jax.jvp(lambda x: column @ jax.jacrev(losses_fn)(x), (params,), (g,))[1]  # noqa: E731
        return jnp.sum(jax.vmap(one)(m.T, jacobian), axis=0)

    def tangent(v):
        return v - jacobian.T @ jnp.linalg.solve(jacobian @ jacobian.T, jacobian @ v)

    first = -(h**2) * tangent(bent(weights.astype(params.dtype)))
    if areas is None:
        return first, jnp.zeros_like(first)
    return first, -(h**2) * tangent(bent(areas))


def fluctuation_areas(
    gram: Float[Array, "m m"], draws: Int[Array, "runs n"], phases: Float[Array, "runs m"]
) -> Float[Array, "m m"]:
    """The antisymmetric part of `M_kl = mean of 1[k drawn] s_k a_l`, by running the fast fluctuations alone:

        s = sign((G a)_k),   a_k <- a_k - s,   k the minibatch of the step, G_kl = <g_k, g_l>.

    The step size does not appear. `a` keeps its place modulo 1, which the slow drift sweeps through: hence the phases.

    Args:
      gram: G at a point where all losses are at the level.
      draws: which minibatch each step takes, for several runs: random, shuffled or in a fixed order.
      phases: where each run starts, uniform on [-1/2, 1/2).

    Returns:
      An antisymmetric matrix, the mean over runs and over the last three quarters of the steps.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> draws = jax.random.randint(jax.random.key(0), (4, 100), 0, 2)
      >>> m = fluctuation_areas(jnp.eye(2), draws, jax.random.uniform(jax.random.key(1), (4, 2)) - 0.5)
      >>> bool(jnp.all(m == -m.T))
      True
    """
    num_steps, num = draws.shape[1], gram.shape[0]

    def run(order, a):
        def body(carry, step):
            a, total = carry
            n, k = step
            sign = jnp.sign(gram[k] @ a)
            total = total.at[k].add(jnp.where(n >= num_steps // 4, sign, 0.0) * a)
            return (a.at[k].add(-sign), total), None

        steps = (jnp.arange(num_steps), order)
        return jax.lax.scan(body, (a, jnp.zeros((num, num), a.dtype)), steps)[0][1]

    mean = jnp.mean(jax.vmap(run)(draws, phases), axis=0) / (num_steps - num_steps // 4)
    return (mean - mean.T) / 2
