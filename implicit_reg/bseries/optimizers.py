"""Optimizers as B-series of maps, with `f = -grad L` and every length in units of the step size."""

from __future__ import annotations

from implicit_reg.bseries.series import Exact, Series, compose, exact, runge_kutta
from implicit_reg.bseries.trees import LEAF, Order


def gradient_descent(order: Order, step: Exact = 1) -> Series:
    """`x' = x - step h g`: Euler's method; a negative step ascends.

    Args:
      order: the order through which the series is complete.
      step: in units of the step size, exact.

    Returns:
      The series.

    Raises:
      TypeError, ValueError: as `exact_flow`.

    Example:
      >>> from implicit_reg.bseries import gradient_descent
      >>> gradient_descent(2, "-1/2")
      {None: Fraction(1, 1), (): Fraction(-1, 2), ((),): Fraction(0, 1)}

    References:
      [hairer2006].
    """
    return runge_kutta([[0]], [exact("gradient_descent", "step", step)], order)


def backstitch(alpha: Exact, order: Order) -> Series:
    """A step of `-alpha h`, then one of `(1 + alpha) h`, on the same loss.

    Args:
      alpha: the share that is stepped back first, exact.
      order: the order through which the series is complete.

    Returns:
      The series.

    Raises:
      TypeError, ValueError: as `exact_flow`.

    Example:
      The flow is that of `L + (h/4)(1 + 2 alpha + 2 alpha^2) ||g||^2`:

      >>> from implicit_reg.bseries import backstitch, modified_equation
      >>> modified_equation(backstitch(1, 2))[((),)]
      Fraction(-5, 2)

    References:
      [wang2017].
    """
    a = exact("backstitch", "alpha", alpha)
    return compose(gradient_descent(order, -a), gradient_descent(order, 1 + a))


def alternating(ascent: Exact, order: Order) -> Series:
    """A descent of `h`, then an ascent of `ascent * h`: one pair is one unit of the step size.

    Args:
      ascent: the length of the ascent in units of the descent, exact.
      order: the order through which the series is complete.

    Returns:
      The series.

    Raises:
      TypeError, ValueError: as `exact_flow`.

    Example:
      Flooding's pair goes nowhere to first order, and down the squared gradient norm to second:

      >>> from implicit_reg.bseries import alternating, modified_equation
      >>> b = modified_equation(alternating(1, 2))
      >>> b[()], b[((),)]
      (Fraction(0, 1), Fraction(-1, 1))

    References:
      [ishida2020].
    """
    return compose(gradient_descent(order), gradient_descent(order, -exact("alternating", "ascent", ascent)))


def unnormalized_sam(radius: Exact, order: Order) -> Series:
    """`x' = x - h g(x + radius h g(x))`: two stages, the first of them backwards.

    Args:
      radius: in units of the step size (and of the gradient, which is not normalized), exact.
      order: the order through which the series is complete.

    Returns:
      The series.

    Raises:
      TypeError, ValueError: as `exact_flow`.

    Example:
      >>> from implicit_reg.bseries import unnormalized_sam
      >>> unnormalized_sam("1/2", 2)[((),)]
      Fraction(-1, 2)

    References:
      [foret2021].
    """
    return runge_kutta([[0, 0], [-exact("unnormalized_sam", "radius", radius), 0]], [0, 1], order)


def extragradient(order: Order) -> Series:
    """`x' = x - h g(x - h g(x))`: a step with the gradient found one step ahead.

    Args:
      order: the order through which the series is complete.

    Returns:
      The series.

    Raises:
      TypeError, ValueError: as `exact_flow`.

    Example:
      An anti-penalty: the sign is opposite to that of gradient descent.

      >>> from implicit_reg.bseries import extragradient, modified_equation
      >>> modified_equation(extragradient(2))[((),)]
      Fraction(1, 2)
    """
    return unnormalized_sam(-1, order)


def gradient_penalty(strength: Exact, order: Order) -> Series:
    """`x' = x - h (g + 2 strength h H g)`: descent on `L + strength h ||g||^2`.

    Args:
      strength: in units of the step size, exact.
      order: the order through which the series is complete.

    Returns:
      The series. (`H g = f'f`, so that it is a B-series although it is no Runge-Kutta method.)

    Raises:
      TypeError, ValueError: as `exact_flow`.

    Example:
      A strength of -h/4 cancels the implicit penalty of gradient descent:

      >>> from implicit_reg.bseries import gradient_penalty, modified_equation
      >>> modified_equation(gradient_penalty("-1/4", 2))[((),)]
      Fraction(0, 1)

    References:
      [barrett2021].
    """
    c = exact("gradient_penalty", "strength", strength)
    return gradient_descent(order) | ({(LEAF,): -2 * c} if order > 1 else {})


def finite_difference_penalty(strength: Exact, displacement: Exact, order: Order) -> Series:
    """`x' = x - h (g + 2 strength h (g(x + displacement h g) - g) / (displacement h))`.

    Args:
      strength: in units of the step size, exact.
      displacement: in units of the step size, exact and not 0.
      order: the order through which the series is complete.

    Returns:
      The series.

    Raises:
      TypeError, ValueError: as `exact_flow`; ValueError where `displacement` is 0.

    Example:
      It agrees with the gradient penalty to second order, and differs from there by its bias:

      >>> from implicit_reg.bseries import finite_difference_penalty, gradient_penalty
      >>> finite_difference_penalty("1/3", "1/7", 2) == gradient_penalty("1/3", 2)
      True
      >>> finite_difference_penalty("1/3", "1/7", 3) == gradient_penalty("1/3", 3)
      False

    References:
      [karakida2023].
    """
    c = exact("finite_difference_penalty", "strength", strength)
    e = exact("finite_difference_penalty", "displacement", displacement)
    if e == 0:
        raise ValueError("finite_difference_penalty: `displacement` must not be 0; its limit is gradient_penalty")
    return runge_kutta([[0, 0], [-e, 0]], [1 - 2 * c / e, 2 * c / e], order)
