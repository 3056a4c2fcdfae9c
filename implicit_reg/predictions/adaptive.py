"""Adam, AdamW, NAdam and RMSProp on the full batch, in Optax's own implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reg.flows import adaptive as flows
from implicit_reg.predictions.measure import program
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import (
    Criterion,
    Effort,
    Finding,
    Flow,
    Orders,
    Prediction,
    Trust,
    flow_of,
    iterates,
)
from implicit_reg.predictions.rescaled import ADAM, ADAMW, NADAM, PLAIN_RMSPROP, RMSPROP, Kind

# Where a component of the gradient changes sign the limit is smooth only with an eps comparable to the gradient: on the
# digits its entries reach 0.11. With a tiny eps no field follows a network's every component.
OUTSIDE = flows.Rescaling(eps=0.1)
INSIDE = flows.Rescaling(eps_root=0.01)
DEFAULT_DECAYS = (0.9, 0.999)
STEP_SIZES = (0.01, 0.005, 0.0025, 0.00125, 0.000625)
# Where the one-step error on `nonquadratic` reaches its order later: RMSProp's slopes are 2.68, 2.87, 2.94 there.
FINER_STEP_SIZES = (0.005, 0.0025, 0.00125, 0.000625, 0.0003125)
TIME = 0.2
AFTER_TRANSIENT = 2  # records from a zero state: by the first of them 0.7^n is far below every error
STRAIN = 0.2  # chi up to which two terms are good

DEFAULT_STEP = 1e-3  # Optax's usual step size
DEFAULT_TIME = 0.1  # a hundred steps: ages that grow reach n/2, so that h t2 is a limit on the time and not on h
# Sizes at which the memory is short against the run, so that an order can be seen: 80000 steps, on losses of few
# parameters.
MANY_STEPS = (4e-5, 2e-5, 1e-5, 5e-6)
MANY_STEPS_TIME = 0.4
FEW_PARAMETERS = 100
BETTER = 0.5  # of the error of one term, at most, where ages grow with the step


def _slow(kind: Kind, objective: Objective, rescaling, name: str = "", *, finer: bool = False) -> Orders:
    return Orders(
        name,
        kind.on_slow_manifold(objective, kind.decays, rescaling),
        flow_of(kind.terms(objective, kind.decays, rescaling)),
        (1, 2),
        step_sizes=FINER_STEP_SIZES if finer else STEP_SIZES,
        time=TIME,
    )


def _fresh(kind: Kind, objective: Objective, rescaling, name: str, *, growing: bool = False) -> Orders:
    """From Optax's own state: after a transient the flow, where a ghost shift is known from the ghost point."""
    ghost = None
    if kind.ghost is not None:
        shift = kind.ghost(objective.value, kind.decays, rescaling)
        ghost = lambda h, x: (jnp.zeros_like(x), h * shift(x))  # noqa: E731
    return Orders(
        name,
        iterates(kind.method(kind.decays, rescaling), objective),
        flow_of(kind.terms(objective, kind.decays, rescaling, growing), ghost),
        (1, 2),
        one_step=False,
        step_sizes=STEP_SIZES,
        time=TIME,
        num_records=AFTER_TRANSIENT,
    )


def _no_ghost(kind: Kind, objective: Objective, rescaling) -> Orders:
    """The flow from x_0 itself. The mutant, whose last weight is 2, is the right one: it starts at the ghost point."""
    terms = kind.terms(objective, kind.decays, rescaling)
    shift = kind.ghost(objective.value, kind.decays, rescaling)

    def field(w, h, n, x):
        first, second = terms(h, n, x)
        return w[0] * first + jnp.minimum(w[1], 1.0) * second

    return Orders(
        "from Optax's zero state without the ghost shift two terms have order 1 only",
        iterates(kind.method(kind.decays, rescaling), objective),
        Flow(field, lambda w, h, x: x + jnp.maximum(w[1] - 1, 0.0) * h * shift(x)),
        (1, 1),
        one_step=False,
        mutation=(0.9, 2.0),
        step_sizes=STEP_SIZES,
        time=TIME,
        num_records=AFTER_TRANSIENT,
    )


def _default_decays(kind: Kind, objective: Objective, rescaling) -> Criterion:
    """Ages that grow with the step against those of a long past, at the decays that everybody uses."""

    def measure() -> Finding:
        run = program(iterates(kind.method(DEFAULT_DECAYS, rescaling), objective), objective)
        counts = np.round(np.linspace(0, DEFAULT_TIME / DEFAULT_STEP, 11)[1:]).astype(int)
        ones, w = np.ones(2), np.array([1.0, 0.0])
        discrete = run(ones, DEFAULT_STEP, counts)
        growing, stationary = (
            program(flow_of(kind.terms(objective, DEFAULT_DECAYS, rescaling, grows)), objective)
            for grows in (True, False)
        )
        curves = {
            "one term": growing(w, DEFAULT_STEP, counts),
            "two terms, ages that grow": growing(ones, DEFAULT_STEP, counts),
            "two terms, ages of a long past": stationary(ones, DEFAULT_STEP, counts),
        }
        errors = {label: np.linalg.norm(found - discrete, axis=1) for label, found in curves.items()}
        one, right, wrong = (float(np.max(error)) for error in errors.values())
        return Finding(
            right / one,
            BETTER,
            wrong / one,
            numbers={f"error, {label}": float(np.max(error)) for label, error in errors.items()},
            series={
                "x": counts,
                "xlabel": "steps",
                "ylabel": f"distance from the iterates at h = {DEFAULT_STEP:g}",
                "log": True,
                "curves": errors,
            },
        )

    return Criterion(
        f"decays {DEFAULT_DECAYS[0]:g} and {DEFAULT_DECAYS[1]:g} need ages that grow with the step",
        f"at h = {DEFAULT_STEP:g}, times up to {DEFAULT_TIME:g}, the error of two terms with ages that grow is at most "
        f"{BETTER:g} of that of one term; with the ages of a long past it is more",
        measure,
    )


def _many_steps(kind: Kind, objective: Objective, rescaling) -> Orders:
    """The order at the usual decays, where the run is long against the memory."""
    return Orders(
        f"decays {DEFAULT_DECAYS[0]:g} and {DEFAULT_DECAYS[1]:g}, ages that grow with the step",
        iterates(kind.method(DEFAULT_DECAYS, rescaling), objective),
        flow_of(kind.terms(objective, DEFAULT_DECAYS, rescaling, growing=True)),
        (1, 2),
        one_step=False,
        step_sizes=MANY_STEPS,
        time=MANY_STEPS_TIME,
        num_records=AFTER_TRANSIENT,
    )


def _conditions(kind: Kind, objective: Objective, rescaling) -> Criterion:
    """chi at the finest step size, and what the signs do on the way."""

    def measure() -> Finding:
        h = STEP_SIZES[-1]
        chi = {
            decays: [
                float(v) for v in jax.jit(flows.memory_strain(objective.value, kind.ages(decays), rescaling))(h, x)
            ]
            for decays in (kind.decays, DEFAULT_DECAYS)
            for x in (objective.start,)
        }
        run = program(iterates(kind.method(kind.decays, rescaling), objective), objective)
        ends = run(np.ones(1), h, np.arange(1, 11) * round(TIME / h / 10))
        gradients = np.asarray(jax.jit(jax.vmap(objective.gradient))(jnp.concatenate([objective.start[None], ends])))
        signs = np.sign(gradients)
        changed = np.any(signs[1:] * signs[:-1] < 0, axis=0)
        return Finding(
            chi[kind.decays][0],
            STRAIN,
            chi[DEFAULT_DECAYS][0],
            numbers={
                "gradient components": changed.size,
                "that change sign during the run": int(np.sum(changed)),
                "expected to within the memory's age at the start": chi[kind.decays][1],
                "largest |g| among those that change sign": float(np.max(np.abs(gradients[0, changed]), initial=0.0)),
                "largest |g| at the start": float(np.max(np.abs(gradients[0]))),
            },
        )

    return Criterion(
        "the conditions on chi and on signs",
        f"chi at most {STRAIN:g} at the finest step size with the decays of the row, and more with "
        f"{DEFAULT_DECAYS[0]:g} and {DEFAULT_DECAYS[1]:g}, whose stationary field is not to be trusted there",
        measure,
    )


def _statements(kind: Kind, uncorrected: Kind | None = None) -> Callable:
    """The statements of a row; `uncorrected` is the same optimizer with its bias correction off."""
    outside, inside = (r._replace(weight_decay=kind.weight_decay) for r in (OUTSIDE, INSIDE))

    def statements(objective: Objective, effort: Effort):
        found = (_slow(kind, objective, outside, finer=not kind.first),)
        if effort >= Effort.STANDARD:
            start = "from Optax's zero state" + ("" if kind.ghost is None else ", the flow from the ghost point")
            found += (_fresh(kind, objective, inside, f"eps inside of the root, {start}"),)
            if uncorrected is not None:
                found += (_fresh(uncorrected, objective, inside, "no bias correction, the flow from the ghost point"),)
            if kind.corrected:
                found += (_default_decays(kind, objective, outside),)
            if kind.corrected and objective.start.size <= FEW_PARAMETERS:
                found += (_many_steps(kind, objective, outside),)
            found += (_conditions(kind, objective, outside),)
        if effort >= Effort.FULL:
            found += (
                _slow(
                    kind, objective, inside, "eps inside of the root, from the slow manifold", finer=not kind.corrected
                ),
                _fresh(kind, objective, outside, "eps outside of the root, from Optax's zero state"),
            )
            if kind.corrected:
                found += (_fresh(kind, objective, outside, "ages that grow with the step", growing=True),)
            else:
                found += (_no_ghost(kind, objective, outside),)
            if uncorrected is not None:
                found += (_no_ghost(uncorrected, objective, inside),)
        return found

    return statements


def _trust(kind: Kind) -> Trust:
    """chi, scaled so that its 0.2 is the 0.3 up to which every row is called fine."""

    @functools.lru_cache(maxsize=8)
    def strain(objective):
        rescaling = OUTSIDE._replace(weight_decay=kind.weight_decay)
        return float(
            jax.jit(flows.memory_strain(objective.value, kind.ages(kind.decays), rescaling))(1.0, objective.start)[0]
        )

    return Trust(
        "1.5 chi, chi = h t2 max|g H q|/(R (R + eps))", lambda objective, spectrum, h: 1.5 * h * strain(objective)
    )


FIELD = (
    "F_2 = -h^2/(R + eps) [(1/2 + t1) - (1/2 + t2) g^2/(R (R + eps))] H q{decay}, R = sqrt(g^2 + eps_root), "
    "q = g/(R + eps){shrink}; {ages}"
)
VALIDITY = (
    "chi = h t2 max|g H q|/(R (R + eps)) at most 0.2, and eps or the root of eps_root comparable to every gradient "
    "component that changes sign"
)


def _row(name: str, title: str, claim: str, kind: Kind, ages: str, uncorrected: Kind | None = None) -> Prediction:
    decayed = kind.weight_decay > 0
    return Prediction(
        name=name,
        title=title,
        claim=claim,
        formula=FIELD.format(decay=" - (h^2/2) d q" * decayed, shrink=" + d x" * decayed, ages=ages),
        source="cattaneo2024",
        time_scale="h per step",
        validity=VALIDITY,
        statements=_statements(kind, uncorrected),
        trust=_trust(kind),
    )


LONG = "After its transient {} follows a flow whose second term is set by the ages of its memories"
GROWING = "; from Optax's zero state at usual decays the ages must grow with the step."

ROWS = (
    _row(
        "adam",
        "Adam",
        LONG.format("Adam") + GROWING,
        ADAM,
        "t1 = b1/(1 - b1), t2 = b2/(1 - b2), or t_i = b_i/(1 - b_i) - n b_i^n/(1 - b_i^n) at step n",
    ),
    _row(
        "adamw",
        "AdamW",
        LONG.format("AdamW") + " and by its weight decay" + GROWING,
        ADAMW,
        "ages as Adam's",
    ),
    _row(
        "nadam",
        "NAdam",
        LONG.format("NAdam") + "; from Optax's zero state it starts at the ghost point x_0 - h b1 g/(R + eps).",
        NADAM,
        "t1 = b1^2/(1 - b1), t2 = b2/(1 - b2)",
    ),
    _row(
        "rmsprop",
        "RMSProp",
        LONG.format("RMSProp") + "; without bias correction it starts at a ghost point.",
        RMSPROP,
        "t1 = 0, t2 = b2/(1 - b2)",
        PLAIN_RMSPROP,
    ),
)
