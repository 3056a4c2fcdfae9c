"""What the rows of methods of the table share: their words, their iterates, and the two pins of every update."""

from __future__ import annotations

from collections.abc import Callable

import jax

from implicit_reg import methods
from implicit_reg.descent import update_map
from implicit_reg.flows import modified_coefficients
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
)

UPDATE_TOLERANCE = 1e-12  # two routes to one update, relative to the step
LEADING_TOLERANCE = 1e-9  # two routes to f_2, which hold third derivatives, relative to f_2

SMALL_STEPS = "h max|lambda| below 0.3; the series in h diverges from 1 on"


def recurrence(name: str, objective: Objective) -> Recurrence:
    """The iterates of a method of the table, one unit being what the table says."""
    row = methods.METHODS[name]
    return iterates(row.at, objective, num_steps=row.num_steps)


def follow(
    name: str, terms: Callable, objective: Objective, expected=(1, 2, 3), statement: str = "", **options
) -> Orders:
    """The statement that a method of the table follows the flow of these terms."""
    return Orders(statement, recurrence(name, objective), flow_of(terms), expected, **options)


def more(effort: Effort, standard: Callable[[], tuple], full: Callable[[], tuple] = tuple) -> tuple:
    """The statements beyond the main one."""
    return (standard() if effort >= Effort.STANDARD else ()) + (full() if effort >= Effort.FULL else ())


def row(name: str, statements: Callable, **changes) -> Prediction:
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
