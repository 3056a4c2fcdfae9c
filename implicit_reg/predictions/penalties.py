"""Rows of penalties on one loss: the explicit gradient penalty, SAM with and without normalization, weight decay."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from implicit_reg import methods
from implicit_reg.flows import closed_forms
from implicit_reg.predictions.from_table import follow, more, pins, row
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import Effort, Orders, Prediction, Trust, flow_of, iterates

STRENGTH = 0.05  # a penalty that does not shrink with the step
RADIUS = 0.05  # of SAM where it does not shrink with the step
DECAY = 0.1


def _gradient_penalty(objective: Objective, effort: Effort):
    loss = objective.value
    main = follow(
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

    return (main, *more(effort, standard))


def _sam(name: str, terms: Callable, displaced: Callable):
    def statements(objective: Objective, effort: Effort):
        main = follow(name, lambda h, n, x: terms(objective.value, x, h, 0.5 * h), objective)

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

        return (main, *more(effort, standard))

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

    return (main, *more(effort, standard))


ROWS = (
    row("gradient-penalty", _gradient_penalty),
    row(
        "sam",
        _sam("sam", closed_forms.sam_terms, _normalized),
        formula=(
            "L + rho ||g|| + (h/4) ||g||^2 where rho = O(h); "
            "at fixed rho, -S - (h/2) S'S with S(x) = g(x + rho g/||g||)"
        ),
        validity="h max|lambda| below 0.3, and the gradient away from zero, where the field is singular",
    ),
    row(
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
        trust=Trust("h (max|lambda| + d)", lambda objective, spectrum, h: h * (spectrum.radius + DECAY)),
    ),
)
