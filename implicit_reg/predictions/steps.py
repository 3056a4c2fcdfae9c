"""Rows of signed steps on one loss: gradient descent, alternating descent and ascent, backstitch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import optax

from implicit_reg import transforms
from implicit_reg.descent import update_map
from implicit_reg.flows import closed_forms, modified_coefficients
from implicit_reg.flows.interpolated import interpolation_weights
from implicit_reg.predictions.from_table import follow, more, pins, recurrence, row
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import (
    Criterion,
    Effort,
    Finding,
    Orders,
    Recurrence,
    flow_of,
    iterates,
    weighted,
)

ASYMMETRY = 1e-6  # of a Jacobian: round-off is at 1e-15
DISCRETE = (0.1, 0.05, 0.025, 0.0125)  # step sizes of the discrete forms, whose errors meet the floor sooner
LARGE = 100  # parameters beyond which exact derivatives of fifth order are left to interpolation


def _many_terms(objective: Objective) -> tuple[float, ...]:
    """Step sizes at which four and five terms are in their asymptotic range and above round-off."""
    coarsest = 0.1 / 2 ** round(max(0.0, math.log2(objective.spectrum.radius)))
    return coarsest, coarsest / 2, coarsest / 4


# --- gradient descent


def _exact_terms(phi, order: int):
    coefficients = modified_coefficients(phi, order)
    return lambda h, n, x: tuple(h ** (k + 1) * f for k, f in enumerate(coefficients(x)))


def _interpolated_terms(phi, order: int):
    """Term k is the difference of the interpolated fields of k and k - 1 updates, so that weights select a field."""

    def terms(h, n, x):
        updates, y = [], x
        for _ in range(order):
            updates.append(phi.update(h, y))
            y = y + updates[-1]
        fields = [
            sum(float(c) * u for c, u in zip(interpolation_weights(p), updates, strict=False))
            for p in range(1, order + 1)
        ]
        return (fields[0], *(after - before for before, after in itertools.pairwise(fields)))

    return terms


def _gd(objective: Objective, effort: Effort):
    loss = objective.value
    phi = update_map(optax.sgd, loss)
    main = follow("gd", lambda h, n, x: closed_forms.gradient_descent_terms(loss, x, h)[:3], objective)

    def not_a_gradient():
        third, second = (lambda x, k=k: closed_forms.gradient_descent_terms(loss, x, 1.0)[k] for k in (2, 1))
        measure = jax.jit(lambda x: (closed_forms.asymmetry(third, x), closed_forms.asymmetry(second, x)))
        f3, f2 = (float(a) for a in measure(objective.start))
        return Finding(f3, ASYMMETRY, f2, at_most=False, numbers={"asymmetry of f_2": f2, "asymmetry of f_3": f3})

    def standard():
        # On a loss of a few parameters the error of five updates meets the floor before its order can be seen.
        order, words = (5, "five") if objective.start.size > LARGE else (4, "four")
        return (
            *pins("gd", objective),
            Criterion(
                "the third term is not a gradient",
                f"asymmetry of the Jacobian of f_3 at least {ASYMMETRY:g}, where f_2's is round-off",
                not_a_gradient,
            ),
            follow(
                "gd",
                _interpolated_terms(phi, order),
                objective,
                tuple(range(1, order + 1)),
                f"interpolated field, {words} updates",
                step_sizes=(0.05, 0.025, 0.0125),
            ),
            follow(
                "gd",
                lambda h, n, x: closed_forms.gradient_descent_terms(loss, x, h),
                objective,
                (1, 2, 3, 4),
                "four terms in closed form",
                step_sizes=_many_terms(objective),
            ),
        )

    def full():
        if objective.start.size > LARGE:
            return ()
        return (
            follow(
                "gd",
                _exact_terms(phi, 5),
                objective,
                (1, 2, 3, 4, 5),
                "five exact coefficients",
                step_sizes=tuple(2 * h for h in _many_terms(objective)),
                time=1.0,
            ),
        )

    return (main, *more(effort, standard, full))


# --- two steps on one loss


def _discrete_pair(objective: Objective, first: Callable, second: Callable) -> Recurrence:
    """One step that equals two signed steps a, b to second order, with its next term:
    `x - (a + b) g + a b H g - (a^2 b/2) T(g, g)`.
    """

    def step(w, h, n, x):
        a, b = first(h), second(h)
        g, hg, _, tgg = closed_forms.gradient_products(objective.value, x)
        return x + weighted(w, (-(a + b) * g, a * b * hg, -(a**2) * b / 2 * tgg))

    return Recurrence(step)


def _pair(name: str, first: Callable, second: Callable, wrong: Callable, objective: Objective, effort: Effort):
    """Flow form, discrete form, and the discrete coefficient put into the flow, which loses an order."""
    loss = objective.value
    main = follow(name, lambda h, n, x: closed_forms.signed_steps_terms(loss, x, (first(h), second(h))), objective)

    def mispaired(h, n, x):
        g, hg, *_ = closed_forms.gradient_products(loss, x)
        return -(first(h) + second(h)) * g, first(h) * second(h) * hg

    def standard():
        return (
            *pins(name, objective),
            Orders(
                "as one discrete step",
                recurrence(name, objective),
                _discrete_pair(objective, first, second),
                (1, 2, 3),
                step_sizes=DISCRETE,
            ),
            follow(
                name,
                mispaired,
                objective,
                (1, 1),
                "the discrete coefficient in the flow loses an order",
                mutation=(1.1, wrong(1.0)),
            ),
        )

    return (main, *more(effort, standard))


def _coefficient_ratio(first: Callable, second: Callable) -> Callable:
    """The flow's coefficient over the discrete one: the factor that makes the wrong pairing right."""
    return lambda h: -(first(h) ** 2 + second(h) ** 2) / (2 * first(h) * second(h))


def _two_steps(name: str, first: Callable, second: Callable, alphas: tuple[float, ...] = ()):
    def statements(objective: Objective, effort: Effort):
        found = _pair(name, first, second, _coefficient_ratio(first, second), objective, effort)
        return found + (tuple(_any_alpha(a, objective) for a in alphas) if effort >= Effort.FULL else ())

    return statements


def _any_alpha(alpha: float, objective: Objective) -> Orders:
    method = lambda h: transforms.backstitch(optax.sgd(h), alpha)  # noqa: E731
    terms = lambda h, n, x: closed_forms.signed_steps_terms(objective.value, x, (-alpha * h, (1 + alpha) * h))  # noqa: E731
    return Orders(f"alpha = {alpha:g}", iterates(method, objective), flow_of(terms), (1, 2, 3))


ROWS = (
    row("gd", _gd),
    row(
        "alternating",
        _two_steps("alternating", lambda h: h, lambda h: -0.25 * h),
        formula=(
            "flow: L + (e1^2 + e2^2)/(4 (e1 - e2)) ||grad L||^2; "
            "one discrete step: L + e1 e2/(2 (e1 - e2)) ||grad L||^2"
        ),
        time_scale="e1 - e2 per pair of steps; here e1 = h, e2 = h/4, and a pair is one unit",
    ),
    row(
        "backstitch",
        _two_steps("backstitch", lambda h: -0.3 * h, lambda h: 1.3 * h, alphas=(0.8, 1.0)),
        formula=(
            "flow: L + (h/4)(1 + 2 a + 2 a^2) ||grad L||^2; "
            "one discrete step: L + (a (1 + a) h/2) ||grad L||^2; a = alpha"
        ),
    ),
)
