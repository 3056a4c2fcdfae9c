"""Modified equations of steps along a gradient, in closed form: the published terms, per step.

`g` is the gradient, `H` the Hessian, `T(u, v)` the third derivative applied to two vectors (a vector). Each function
returns the terms `F_1, F_2, ...` of `dx/dn = F_1 + F_2 + ...`, powers of the step size included, on any pytree. They
share nothing with `modified_coefficients`, which finds the same from the update: that is what makes them evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicit_reg import _tree
from implicit_reg._types import Integer, Loss, Params, Scalar

VectorFunction = Callable[[PyTree], PyTree]


def _combine(*pairs: tuple[object, PyTree]) -> PyTree:
    """`sum c_i v_i`."""
    (c, v), *rest = pairs
    total = _tree.scale(c, v)
    for c, v in rest:
        total = _tree.axpy(c, v, total)
    return total


def gradient_products(loss_fn: Loss, params: Params) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """`(g, H g, H H g, T(g, g))` at `params`.

    Args:
      loss_fn: `loss_fn(params) -> scalar`, three times differentiable.
      params: any pytree of floating leaves.

    Returns:
      Four trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(v) for v in gradient_products(lambda x: x**3, jnp.array(1.0))]     # g = 3, H = 6, T = 6
      [3.0, 18.0, 108.0, 54.0]
    """
    return euler_products(jax.grad(loss_fn), params)


def euler_products(field: VectorFunction, params: Params) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """`(S, S' S, S' S' S, S''(S, S))` of a vector function `S` at `params`; for a gradient see `gradient_products`.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(v) for v in euler_products(lambda x: x**2, jnp.array(3.0))]        # S = 9, S' = 6, S'' = 2
      [9.0, 54.0, 324.0, 162.0]
    """
    value = field(params)

    def along(x):
        return jax.jvp(field, (x,), (value,))[1]  # S'(x) S(params): the vector stays what it is at `params`

    first, second = jax.jvp(along, (params,), (value,))
    return value, first, jax.jvp(field, (params,), (first,))[1], second


def euler_terms(field: VectorFunction, params: Params, h: Scalar) -> tuple[PyTree, PyTree, PyTree]:
    """The terms of one step `x' = x - h S(x)` along any vector function:

        F_1 = -h S,   F_2 = -(h^2/2) S' S,   F_3 = -h^3 ((1/3) S' S' S + (1/12) S''(S, S)).

    With `S = grad L` this is gradient descent: the flow of `L + (h/4) ||grad L||^2` to second order. From the third
    term on the field is in general not a gradient.

    Args:
      field: `S`, a function from a tree to one structured alike.
      params: any pytree of floating leaves.
      h: the step size.

    Returns:
      Three trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(v) for v in euler_terms(lambda y: -(y**2), jnp.array(1.0), 1.0)]   # y' = y^2: 1, -1, 3/2
      [1.0, -1.0, 1.5]

    References:
      [hairer2006], ch. IX; [barrett2021] for the second term of gradient descent.
    """
    s, ss, sss, curved = euler_products(field, params)
    return (
        _combine((-h, s)),
        _combine((-(h**2) / 2, ss)),
        _combine((-(h**3) / 3, sss), (-(h**3) / 12, curved)),
    )


def gradient_descent_terms(loss_fn: Loss, params: Params, h: Scalar) -> tuple[PyTree, PyTree, PyTree, PyTree]:
    """The terms of one step of gradient descent:

        F_1 = -h g,   F_2 = -(h^2/2) H g,   F_3 = -h^3 ((1/3) H H g + (1/12) T(g, g)),
        F_4 = -h^4 ((1/4) H H H g + (1/12) H T(g, g) + (1/12) T(g, H g)).

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      params: any pytree of floating leaves.
      h: the step size.

    Returns:
      Four trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> terms = gradient_descent_terms(lambda x: 0.5 * x**2, jnp.array(1.0), 1.0)  # log(1 - x) = -x - x^2/2 - ...
      >>> [round(float(v), 4) for v in terms]
      [-1.0, -0.5, -0.3333, -0.25]

    References:
      [barrett2021], [hairer2006].
    """
    gradient = jax.grad(loss_fn)
    g, hg, hhg, tgg = euler_products(gradient, params)
    product = lambda v: jax.jvp(gradient, (params,), (v,))[1]  # noqa: E731
    tghg = jax.jvp(lambda x: jax.jvp(gradient, (x,), (g,))[1], (params,), (hg,))[1]
    return (
        _combine((-h, g)),
        _combine((-(h**2) / 2, hg)),
        _combine((-(h**3) / 3, hhg), (-(h**3) / 12, tgg)),
        _combine((-(h**4) / 4, product(hhg)), (-(h**4) / 12, product(tgg)), (-(h**4) / 12, tghg)),
    )


def signed_steps_terms(loss_fn: Loss, params: Params, steps: Sequence[Scalar]) -> tuple[PyTree, PyTree, PyTree]:
    """The terms of steps `a_1, ..., a_K` taken in turn on one loss, ascent negative; a unit is all K:

        F_1 = -(sum a_i) g,   F_2 = -(1/2)(sum a_i^2) H g,
        F_3 = -(1/3)(sum a_i^3) H H g - (1/12)(sum a_i^3 + 3 sum_{i<j} a_i a_j (a_i - a_j)) T(g, g).

    Only the third term knows the order of the steps: the fields `g` of two steps commute, and `[g, H g] = T(g, g)`.
    Descent by `e1`, then ascent by `e2`, is `(e1, -e2)`; backstitch is `(-alpha h, (1 + alpha) h)`; flooding's pair is
    `(e, -e)` or `(-e, e)`.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      params: any pytree of floating leaves.
      steps: the signed step sizes, in the order in which they are taken.

    Returns:
      Three trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x: jnp.sum(jnp.cosh(x))
      >>> one = signed_steps_terms(loss, jnp.array([0.5]), [0.1])
      >>> pair = signed_steps_terms(loss, jnp.array([0.5]), [0.1, -0.1])
      >>> bool(pair[0][0] == 0), round(float(pair[1][0] / one[1][0]), 4)
      (True, 2.0)

    References:
      [hairer2006], ch. III and IX; [wang2017], [ishida2020] for the methods.
    """
    g, hg, hhg, tgg = gradient_products(loss_fn, params)
    cubes = sum(a**3 for a in steps)
    mixed = sum(a * b * (a - b) for i, a in enumerate(steps) for b in steps[i + 1 :])
    return (
        _combine((-sum(steps), g)),
        _combine((-sum(a**2 for a in steps) / 2, hg)),
        _combine((-cubes / 3, hhg), (-(cubes + 3 * mixed) / 12, tgg)),
    )


def gradient_penalty_terms(loss_fn: Loss, params: Params, h: Scalar, strength: Scalar) -> tuple[PyTree, PyTree, PyTree]:
    """The terms of a step `h` on `L + mu ||g||^2`, graded with `mu = O(h)`:

        F_1 = -h g,   F_2 = -(2 mu h + h^2/2) H g,
        F_3 = -mu h^2 (2 H H g + T(g, g)) - h^3 ((1/3) H H g + (1/12) T(g, g)).

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      params: any pytree of floating leaves.
      h: the step size.
      strength: `mu`.

    Returns:
      Three trees structured as `params`.

    Example:
      A strength of `-h/4` cancels the implicit penalty:

      >>> import jax.numpy as jnp
      >>> float(gradient_penalty_terms(lambda x: 0.5 * x**2, jnp.array(1.0), 0.5, -0.125)[1])
      -0.0

    References:
      [barrett2021].
    """
    g, hg, hhg, tgg = gradient_products(loss_fn, params)
    mu = strength
    return (
        _combine((-h, g)),
        _combine((-(2 * mu * h + h**2 / 2), hg)),
        _combine((-(2 * mu * h**2 + h**3 / 3), hhg), (-(mu * h**2 + h**3 / 12), tgg)),
    )


def unnormalized_sam_terms(loss_fn: Loss, params: Params, h: Scalar, radius: Scalar) -> tuple[PyTree, PyTree, PyTree]:
    """The terms of `x' = x - h g(x + rho g)`, graded with `rho = O(h)`:

        F_1 = -h g,   F_2 = -(h rho + h^2/2) H g,
        F_3 = -(h^2 rho + h^3/3) H H g - (h rho^2/2 + h^2 rho/2 + h^3/12) T(g, g).

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      params: any pytree of floating leaves.
      h: the step size.
      radius: `rho`.

    Returns:
      Three trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(v) for v in unnormalized_sam_terms(lambda x: 0.5 * x**2, jnp.array(1.0), 1.0, 1.0)[:2]]
      [-1.0, -1.5]

    References:
      [foret2021].
    """
    g, hg, hhg, tgg = gradient_products(loss_fn, params)
    rho = radius
    return (
        _combine((-h, g)),
        _combine((-(h * rho + h**2 / 2), hg)),
        _combine((-(h**2 * rho + h**3 / 3), hhg), (-(h * rho**2 / 2 + h**2 * rho / 2 + h**3 / 12), tgg)),
    )


def sam_terms(loss_fn: Loss, params: Params, h: Scalar, radius: Scalar) -> tuple[PyTree, PyTree, PyTree]:
    """The terms of `x' = x - h g(x + rho u)` with `u = g/||g||`, graded with `rho = O(h)`:

        F_1 = -h g,   F_2 = -h rho H u - (h^2/2) H g,   the flow of L + rho ||g|| + (h/4) ||g||^2,
        F_3 = -(h rho^2/2) T(u, u) - (h^2 rho/2)(2 H H u - (u'Hu) H u + ||g|| T(u, u))
              - h^3 ||g|| ((1/3) H H u + (1/12) ||g|| T(u, u)).

    Singular where the gradient vanishes. For a fixed radius use `euler_terms` with `S(x) = g(x + rho u)`.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      params: any pytree of floating leaves.
      h: the step size.
      radius: `rho`.

    Returns:
      Three trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(v) for v in sam_terms(lambda x: 0.5 * x**2, jnp.array(2.0), 1.0, 1.0)[:2]]      # u = 1
      [-2.0, -2.0]

    References:
      [foret2021].
    """
    g, hg, hhg, tgg = gradient_products(loss_fn, params)
    rho, norm = radius, jnp.sqrt(_tree.squared_norm(g))
    # H u, H H u and T(u, u) from the products with g, by homogeneity: one set of derivatives serves both.
    curvature = _inner(g, hg) / norm**2  # u' H u
    hu, hhu, tuu = _combine((1 / norm, hg)), _combine((1 / norm, hhg)), _combine((1 / norm**2, tgg))
    return (
        _combine((-h, g)),
        _combine((-h * rho, hu), (-(h**2) / 2, hg)),
        _combine(
            (-h * rho**2 / 2, tuu),
            (-(h**2) * rho, hhu),
            (h**2 * rho / 2 * curvature, hu),
            (-(h**2) * rho / 2 * norm, tuu),
            (-(h**3) / 3, hhg),
            (-(h**3) / 12, tgg),
        ),
    )


def _inner(a: PyTree, b: PyTree) -> Array:
    return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def asymmetry(field: VectorFunction, params: Params, seed: Integer = 0) -> Array:
    """How far the Jacobian `J` of a field is from symmetric, as that of a gradient is: with two random vectors,

        |u' J v - v' J u| / (||J u|| ||v|| + ||J v|| ||u||).

    Args:
      field: a function from a tree to one structured alike.
      params: where.
      seed: of the vectors.

    Returns:
      A scalar in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> spin = lambda x: jnp.array([[0.0, 1.0], [-1.0, 0.0]]) @ x
      >>> float(asymmetry(spin, jnp.ones(2))) > 0.1, float(asymmetry(lambda x: 2 * x, jnp.ones(2)))
      (True, 0.0)
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), 2 * len(leaves))

    def draw(keys):  # in float32 and cast up: the same vectors in every precision
        made = [
            jax.random.normal(key, jnp.shape(leaf), jnp.float32).astype(jnp.result_type(leaf))
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, made)

    u, v = draw(keys[: len(leaves)]), draw(keys[len(leaves) :])
    ju, jv = (jax.jvp(field, (params,), (direction,))[1] for direction in (u, v))
    size = lambda x: jnp.sqrt(_tree.squared_norm(x))  # noqa: E731
    return jnp.abs(_inner(u, jv) - _inner(v, ju)) / (size(ju) * size(v) + size(jv) * size(u))
