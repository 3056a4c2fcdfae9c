"""Rows of methods without memory on one loss: gradient descent, pairs of steps, penalties, SAM, weight decay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from implicit_reg import methods
from implicit_reg.descent import update_map
from implicit_reg.flows import closed_forms, modified_coefficients
from implicit_reg.flows.interpolated import interpolation_weights
from implicit_reg.predictions.measure import relative_error
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import (
    Criterion,
    Effort,
    Finding,
    Orders,
    Prediction,
    Recurrence,
    flow_of,
    iterates,
    weighted,
)

UPDATE_TOLERANCE = 1e-12  # two routes to one update, relative to the step
LEADING_TOLERANCE = 1e-9  # two routes to f_2, which hold third derivatives, relative to f_2
ASYMMETRY = 1e-6  # of a Jacobian: round-off is at 1e-15
DISCRETE = (0.1, 0.05, 0.025, 0.0125)  # step sizes of the discrete forms, whose errors meet the floor sooner
LARGE = 100  # parameters beyond which exact derivatives of fifth order are left to interpolation

SMALL_STEPS = "h max|lambda| below 0.3; the series in h diverges from 1 on"


def _many_terms(objective: Objective) -> tuple[float, ...]:
    """Step sizes at which four and five terms are in their asymptotic range and above round-off."""
    coarsest = 0.1 / 2 ** round(max(0.0, math.log2(objective.spectrum.radius)))
    return coarsest, coarsest / 2, coarsest / 4


def _recurrence(name: str, objective: Objective) -> Recurrence:
    row = methods.METHODS[name]
    return iterates(row.at, objective, num_steps=row.num_steps)


def _follow(
    name: str, terms: Callable, objective: Objective, expected=(1, 2, 3), statement: str = "", **options
) -> Orders:
    return Orders(statement, _recurrence(name, objective), flow_of(terms), expected, **options)


def pins(name: str, objective: Objective) -> tuple[Criterion, Criterion]:
    """The update against its published formula typed again, and f_2 of the update against the published correction."""
    row = methods.METHODS[name]
    h = 0.1
    x, hyperparameters = objective.start, dict(row.scaled(h))

    def update():
        phi = update_map(row.at, objective.value, num_steps=row.num_steps).update
        formula = jax.jit(lambda x: row.formula(objective.value, x, h, **hyperparameters) - x)(x)
        step = jax.jit(phi)
        return Finding(relative_error(step(h, x), formula), UPDATE_TOLERANCE, relative_error(step(1.1 * h, x), formula))

    def leading():
        phi = update_map(row.at, objective.value, num_steps=row.num_steps)
        routes = jax.jit(
            lambda x: (modified_coefficients(phi, 2)(x)[1], row.leading(objective.value, x, h, **hyperparameters))
        )
        second, published = routes(x)
        return Finding(relative_error(second, published), LEADING_TOLERANCE, relative_error(1.1 * second, published))

    return (
        Criterion("the update is the published one", f"relative difference at most {UPDATE_TOLERANCE:g}", update),
        Criterion(
            "the correction found from the update is the published one",
            f"relative difference of f_2 at most {LEADING_TOLERANCE:g}",
            leading,
        ),
    )


def _more(effort: Effort, standard: Callable[[], tuple], full: Callable[[], tuple] = tuple) -> tuple:
    """The statements beyond the main one."""
    return (standard() if effort >= Effort.STANDARD else ()) + (full() if effort >= Effort.FULL else ())


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
    main = _follow("gd", lambda h, n, x: closed_forms.gradient_descent_terms(loss, x, h)[:3], objective)

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
            _follow(
                "gd",
                _interpolated_terms(phi, order),
                objective,
                tuple(range(1, order + 1)),
                f"interpolated field, {words} updates",
                step_sizes=(0.05, 0.025, 0.0125),
            ),
            _follow(
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
            _follow(
                "gd",
                _exact_terms(phi, 5),
                objective,
                (1, 2, 3, 4, 5),
                "five exact coefficients",
                step_sizes=_many_terms(objective),
            ),
        )

    return (main, *_more(effort, standard, full))


def implied(method: Callable) -> Callable:
    """Statements of a method of which nothing was published: its iterates follow the field that its update implies."""

    def statements(objective: Objective, effort: Effort):
        del effort
        return (
            Orders(
                "",
                iterates(method, objective),
                flow_of(_exact_terms(update_map(method, objective.value), 3)),
                (1, 2, 3),
            ),
        )

    return statements


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
    main = _follow(name, lambda h, n, x: closed_forms.signed_steps_terms(loss, x, (first(h), second(h))), objective)

    def mispaired(h, n, x):
        g, hg, *_ = closed_forms.gradient_products(loss, x)
        return -(first(h) + second(h)) * g, first(h) * second(h) * hg

    def standard():
        return (
            *pins(name, objective),
            Orders(
                "as one discrete step",
                _recurrence(name, objective),
                _discrete_pair(objective, first, second),
                (1, 2, 3),
                step_sizes=DISCRETE,
            ),
            _follow(
                name,
                mispaired,
                objective,
                (1, 1),
                "the discrete coefficient in the flow loses an order",
                mutation=(1.1, wrong(1.0)),
            ),
        )

    return (main, *_more(effort, standard))


def _coefficient_ratio(first: Callable, second: Callable) -> Callable:
    """The flow's coefficient over the discrete one: the factor that makes the wrong pairing right."""
    return lambda h: -(first(h) ** 2 + second(h) ** 2) / (2 * first(h) * second(h))


def _two_steps(name: str, first: Callable, second: Callable, alphas: tuple[float, ...] = ()):
    def statements(objective: Objective, effort: Effort):
        found = _pair(name, first, second, _coefficient_ratio(first, second), objective, effort)
        return found + (tuple(_any_alpha(a, objective) for a in alphas) if effort >= Effort.FULL else ())

    return statements


def _any_alpha(alpha: float, objective: Objective) -> Orders:
    from implicit_reg import transforms

    method = lambda h: transforms.backstitch(optax.sgd(h), alpha)  # noqa: E731
    terms = lambda h, n, x: closed_forms.signed_steps_terms(objective.value, x, (-alpha * h, (1 + alpha) * h))  # noqa: E731
    return Orders(f"alpha = {alpha:g}", iterates(method, objective), flow_of(terms), (1, 2, 3))


# --- penalties, SAM, weight decay

STRENGTH = 0.05  # a penalty that does not shrink with the step
RADIUS = 0.05  # of SAM where it does not shrink with the step
DECAY = 0.1


def _gradient_penalty(objective: Objective, effort: Effort):
    loss = objective.value
    main = _follow(
        "gradient-penalty",
        lambda h, n, x: closed_forms.gradient_penalty_terms(loss, x, h, 0.5 * h),
        objective,
    )

    def standard():
        build = methods.METHODS["gradient-penalty"].build
        penalized = lambda x: loss(x) + STRENGTH * jnp.sum(objective.gradient(x) ** 2)  # noqa: E731
        fixed = Orders(
            f"strength {STRENGTH:g} at every step size",
            iterates(lambda h: build(optax.sgd, h, strength=STRENGTH), objective),
            flow_of(lambda h, n, x: closed_forms.euler_terms(jax.grad(penalized), x, h)[:2]),
            (1, 2),
        )
        return (*pins("gradient-penalty", objective), fixed)

    return (main, *_more(effort, standard))


def _sam(name: str, terms: Callable, displaced: Callable):
    def statements(objective: Objective, effort: Effort):
        main = _follow(name, lambda h, n, x: terms(objective.value, x, h, 0.5 * h), objective)

        def standard():
            build = methods.METHODS[name].build
            gradient = objective.gradient
            fixed = Orders(
                f"radius {RADIUS:g} at every step size",
                iterates(lambda h: build(optax.sgd, h, radius=RADIUS), objective),
                flow_of(lambda h, n, x: closed_forms.euler_terms(lambda y: gradient(displaced(gradient, y)), x, h)),
                (1, 2, 3),
            )
            return (*pins(name, objective), fixed)

        return (main, *_more(effort, standard))

    return statements


def _normalized(gradient, x):
    g = gradient(x)
    return x + RADIUS * g / jnp.sqrt(jnp.sum(g**2))


def _unnormalized(gradient, x):
    return x + RADIUS * gradient(x)


def _weight_decay(objective: Objective, effort: Effort):
    loss = objective.value
    decayed = lambda x: loss(x) + DECAY / 2 * jnp.sum(x**2)  # noqa: E731
    method = lambda h: optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(h))  # noqa: E731
    main = Orders(
        "",
        iterates(method, objective),
        flow_of(lambda h, n, x: closed_forms.gradient_descent_terms(decayed, x, h)[:3]),
        (1, 2, 3),
    )

    def cross_terms(h, n, x):
        """The second term written out: the decay meets the curvature, and itself."""
        gradient = objective.gradient
        g = gradient(x)
        hg, hx = (jax.jvp(gradient, (x,), (v,))[1] for v in (g, x))
        return -h * (g + DECAY * x), -(h**2) / 2 * (hg + DECAY * hx + DECAY * g + DECAY**2 * x)

    def standard():
        return (Orders("the second term written out", iterates(method, objective), flow_of(cross_terms), (1, 2)),)

    return (main, *_more(effort, standard))


def _row(name: str, statements: Callable, **changes) -> Prediction:
    """A row whose words are those of the table of methods."""
    table = methods.METHODS[name]
    words = {
        "title": table.title,
        "claim": table.claim,
        "formula": table.modified_loss,
        "source": table.source,
        "time_scale": "h per step",
        "validity": SMALL_STEPS,
    }
    return Prediction(name=name, statements=statements, **(words | changes))


ROWS = (
    _row("gd", _gd),
    _row(
        "alternating",
        _two_steps("alternating", lambda h: h, lambda h: -0.25 * h),
        formula=(
            "flow: L + (e1^2 + e2^2)/(4 (e1 - e2)) ||grad L||^2; "
            "one discrete step: L + e1 e2/(2 (e1 - e2)) ||grad L||^2"
        ),
        time_scale="e1 - e2 per pair of steps; here e1 = h, e2 = h/4, and a pair is one unit",
    ),
    _row(
        "backstitch",
        _two_steps("backstitch", lambda h: -0.3 * h, lambda h: 1.3 * h, alphas=(0.8, 1.0)),
        formula=(
            "flow: L + (h/4)(1 + 2 a + 2 a^2) ||grad L||^2; "
            "one discrete step: L + (a (1 + a) h/2) ||grad L||^2; a = alpha"
        ),
    ),
    _row("gradient-penalty", _gradient_penalty),
    _row(
        "sam",
        _sam("sam", closed_forms.sam_terms, _normalized),
        formula=(
            "L + rho ||g|| + (h/4) ||g||^2 where rho = O(h); at fixed rho, -S - (h/2) S'S with S(x) = g(x + rho g/||g||)"
        ),
        validity="h max|lambda| below 0.3, and the gradient away from zero, where the field is singular",
    ),
    _row(
        "sam-unnormalized",
        _sam("sam-unnormalized", closed_forms.unnormalized_sam_terms, _unnormalized),
        formula="L + (rho/2 + h/4) ||g||^2 where rho = O(h); at fixed rho, -S - (h/2) S'S with S(x) = g(x + rho g)",
    ),
    Prediction(
        name="weight-decay",
        title="Weight decay",
        claim="Gradient descent with weight decay follows the flow of L + (d/2) ||x||^2 + (h/4) ||grad L + d x||^2.",
        formula="L + (d/2) ||x||^2 + (h/4) ||grad L + d x||^2",
        source="",
        time_scale="h per step",
        validity="h (max|lambda| + d) below 0.3",
        statements=_weight_decay,
    ),
)
