"""An optimizer from outside: which field its iterates follow, at what order, from which step on, or why none.

Without a field to compare with, one is derived: by exact derivatives of the update where nothing is remembered, else by
interpolation through the updates on the slow manifold, which is found by iteration (`slow_map`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from implicit_reg import _callables, _checks
from implicit_reg._types import Method, VectorField
from implicit_reg.descent import optimizer_step
from implicit_reg.predictions import measure, own_run, prediction
from implicit_reg.predictions.judging import UNMEASURED, judge, worst
from implicit_reg.predictions.objective import Objective, flatten
from implicit_reg.predictions.prediction import (
    SMALL_STEPS,
    TIME,
    Criterion,
    Effort,
    Orders,
    Prediction,
    Recurrence,
    Trust,
    flow_of,
)
from implicit_reg.predictions.subject import GIVEN, Subject
from implicit_reg.problems import Problem
from implicit_reg.standstill import refuse_randomness, watch_frozen

NUM_RECORDS = 5
SHORT_MEMORY = 40  # steps for which the default step sizes are made; a decay of one half has 33
STEP_SIZES = (
    0.025,
    0.0125,
    0.00625,
    0.003125,
    0.0015625,
)  # where something is remembered, for the series converge sooner

Fields = VectorField | Sequence[VectorField] | None


def _number_of_steps(time: float, h: Any) -> Any:
    return jnp.round(time / h)


def _statements(subject: Subject, effort: Effort) -> tuple[Orders | Criterion, ...]:
    expected = tuple(range(1, subject.order + 1))
    terms, read = subject.terms, lambda y: ravel_pytree(y[0])[0]
    memory = subject.frozen.memory
    if not memory and not subject.clock:
        if memory is None:  # a field of one's own, for an optimizer that never forgets
            fresh = Recurrence(subject.step, lambda w, h, x: subject.fresh(h, x), read)
            return (Orders("", fresh, flow_of(terms), expected, False, step_sizes=subject.step_sizes),)
        fresh = Recurrence(subject.step, lambda w, h, x: subject.fresh(h, x), read)
        return (Orders("", fresh, flow_of(terms), expected, step_sizes=subject.step_sizes),)

    def at(time):
        return flow_of(lambda h, n, x: terms(h, n + _number_of_steps(time, h), x))

    # Twice the memory: then the past that the slow manifold is made of begins where bias corrections have ended.
    begin = 2 * subject.warm_up

    def on_slow_manifold(w, h, x):
        params, fresh = subject.fresh(h, x)
        state = subject.slow(subject.order).with_steps(h, params, jnp.maximum(_number_of_steps(begin, h), memory))
        return params, jax.tree.map(_nearest, state, fresh)

    def after_transient(w, h, x):
        return subject.after(_number_of_steps(subject.warm_up, h).astype(jnp.int32), h, x)

    found = (
        Orders(
            "",
            Recurrence(subject.step, on_slow_manifold, read),
            at(begin),
            expected,
            one_step=False,
            step_sizes=subject.step_sizes,
        ),
    )
    if effort >= Effort.STANDARD:
        flow = at(subject.warm_up)._replace(start=lambda w, h, x: read(after_transient(w, h, x)))
        found += (
            Orders(
                f"from the fresh state, after its transient, from t = {subject.warm_up:g} on",
                Recurrence(subject.step, after_transient, read),
                flow,
                expected,
                one_step=False,
                step_sizes=subject.step_sizes,
            ),
        )
    return found


def _nearest(state: Any, fresh: Any) -> Any:
    """Counters that are fractions for the flow's sake, as the whole numbers that they are at a step."""
    dtype = jnp.result_type(fresh)
    return jnp.asarray(jnp.round(state) if jnp.issubdtype(dtype, jnp.integer) else state, dtype)


def _trust(subjects: Mapping[str, Subject]) -> Trust:
    """Twice the second term over the first; for gradient descent this is `h |H g|/|g|`."""
    if any(subject.order < 2 for subject in subjects.values()):
        return SMALL_STEPS

    def ratio(objective, spectrum, h):
        subject = subjects[objective.name]
        first, second, *_ = subject.table(h, _number_of_steps(2 * subject.warm_up, h), objective.start)
        return float(2 * jnp.linalg.norm(second) / jnp.linalg.norm(first))

    return Trust("twice the second term over the first", ratio)


def prepare_own(
    name: str,
    method: Method,
    problems: Sequence[Problem],
    effort: Effort = Effort.QUICK,
    *,
    field: Fields = None,
    step_sizes: Sequence[float] | None = None,
    time: float | None = None,
) -> Callable[..., dict]:
    """Judges the arguments of `check_own`, which has the same, before anything long is run.

    Returns:
      `run(report) -> dict`: the examination itself.

    Raises:
      TypeError, ValueError: as `check_own`.
    """
    _checks.check_callable("verify", "method", method, "h -> optax.GradientTransformation")
    if not problems:
        raise ValueError("verify: `problems` must hold at least one problem")
    fields = tuple(field) if isinstance(field, tuple | list) else () if field is None else (field,)
    for k, one in enumerate(fields):
        _checks.check_callable("verify", f"field[{k}]", one, "field(t, params, h) -> tree like params")
    order = len(fields) or (2 if effort == Effort.QUICK else 3)
    if step_sizes is not None:
        measure.check_step_sizes(step_sizes, TIME if time is None else time, NUM_RECORDS)
        step_sizes = tuple(map(float, step_sizes))
    with jax.enable_x64(True):
        for problem in problems:
            flatten(problem)  # refuses float32
        found = [_subject(method, problem, fields, step_sizes or STEP_SIZES, order) for problem in problems]
        if not any(subject.frozen.memory or subject.clock or subject.fields for subject in found):
            # Exact derivatives are cheap enough for the third term, and larger steps keep its error above the floor.
            larger = step_sizes or prediction.STEP_SIZES
            found = [dataclasses.replace(subject, order=3, step_sizes=larger) for subject in found]
        elif step_sizes is None:
            found = [dataclasses.replace(subject, step_sizes=_default_steps(subject)) for subject in found]
        subjects = {subject.problem.name: subject for subject in found}
        if len(subjects) < len(problems):
            raise ValueError(f"verify: `problems` must have different names, got {[p.name for p in problems]}")
        claimed = getattr(field, "order", None) if len(fields) == 1 and not isinstance(field, tuple | list) else None

        observations = {
            loss: functools.cache(functools.partial(own_run.observe, subject)) for loss, subject in subjects.items()
        }

        def statements(objective: Objective, effort: Effort):
            subject = subjects[objective.name]
            if subject.objection:
                return ()
            found = _statements(subject, effort)
            if claimed:
                found = tuple(statement._replace(expected=(int(claimed),)) for statement in found)
            return found + own_run.criterion(observations[objective.name], subject.order)

        row = _row(name, list(subjects.values()), statements, _trust(subjects))

    def run(report: measure.Report = lambda _: None) -> dict:
        found = measure.check(row, problems, effort, step_sizes=step_sizes, time=time, report=report)
        cases = found["details"]["cases"]
        if len(fields) == 1 and claimed is None:
            found["expected"] = _find_order(cases)
        with jax.enable_x64(True):
            dynamics = [own_run.dynamics(subject, observations[loss]) for loss, subject in subjects.items()]
        for subject, seen in zip(subjects.values(), dynamics, strict=True):
            if subject.objection:
                cases.append(_unmeasured(subject, subject.objection))
            own_run.explain(cases, seen, derived=not fields)
        found["verdict"] = worst(case["verdict"] for case in cases)
        found["details"]["dynamics"] = dynamics
        return found

    return run


def check_own(
    name: str,
    method: Method,
    problems: Sequence[Problem],
    effort: Effort = Effort.QUICK,
    *,
    field: Fields = None,
    step_sizes: Sequence[float] | None = None,
    time: float | None = None,
    report: measure.Report = lambda _: None,
) -> dict:
    """Puts an optimizer from outside to the test: with a memory, clipping or a schedule, or without.

    Args:
      name: for the table.
      method: `h -> optax.GradientTransformation`. A schedule should be a smooth function of `t = n h`.
      problems: the losses, with float64 parameters (built under `jax.enable_x64(True)`).
      effort: QUICK takes two terms from the slow manifold; STANDARD three terms, and from the fresh state after its
        transient too.
      field: what it is said to follow: a tuple of fields `field(t, params, h)` with 1, 2, ... terms, which must have
        the orders 1, 2, ...; or one field, whose order is its attribute `order` or else found out; None derives it.
      step_sizes, time: instead of the default ones; every step size must divide the time of a record, 0.1.
      report: told what begins; called once for each loss.

    Returns:
      The dict of `measure.check`, with `details["dynamics"]`: for each loss `memory` (steps until a gradient is
      forgotten), `clock` (whether updates depend on the number of their step), `route` (where the field comes from),
      `first_step` (from which on a run from the fresh state follows the field), `opposed` (the share of updates that
      turn back on the one before), `roughness` (what was seen of kinks along the run, or None), and `objection` (why no
      field can follow single steps, or None). Where there is one the verdict is "could not measure".

    Raises:
      TypeError, ValueError: an argument is not as above; the optimizer is random, or its update does not depend on h;
        a field returns another tree; float32 parameters.

    Example:
      >>> import jax, optax
      >>> from implicit_reg import problems
      >>> with jax.enable_x64(True):
      ...     problem = problems.load_problem("nonquadratic", dtype="float64")
      >>> found = check_own("mine", lambda h: optax.sgd(h, momentum=0.5), [problem])
      >>> found["verdict"], found["expected"], found["details"]["dynamics"][0]["memory"]
      ('holds', [1, 2], 33)
    """
    options = {"field": field, "step_sizes": step_sizes, "time": time}
    return prepare_own(name, method, problems, effort, **options)(report)


def _default_steps(subject: Subject) -> tuple[float, ...]:
    """Smaller ones for a longer memory: the series in h converges for steps the smaller the more is remembered."""
    halvings = np.ceil(np.log2(max(1.0, (subject.frozen.memory or 0) / SHORT_MEMORY)))
    return tuple(float(h * 0.5**halvings) for h in STEP_SIZES)


def _subject(method: Callable, problem: Problem, fields: tuple, step_sizes: tuple[float, ...], order: int) -> Subject:
    """Whether the method can be examined at all, and what it does at a standstill."""
    h, params, loss = step_sizes[0], problem.params, problem.loss_fn
    transformation = method(h)
    _checks.check_transformation("verify", "method(h)", transformation)
    refuse_randomness("verify", transformation.init(params))
    first, second = (optimizer_step(method(h), loss, params, method(h).init(params))[0] for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True):
            raise ValueError(
                f"verify: `method` must make the same step twice on {problem.name!r}, got two different ones; it or "
                f"the loss draws random numbers that are no arguments: give them as data, and batches to descend"
            )
    for k, field in enumerate(fields):
        found = jax.eval_shape(field, jnp.asarray(0.0), params, jnp.asarray(h))
        _checks.check_same_tree("verify", f"field[{k}](t, params, h)", found, "params", params)
    frozen, shorter = watch_frozen(method, loss, params, h), watch_frozen(method, loss, params, h / 4)
    if frozen.sizes.max() > 0 and not frozen.sizes.max() > 1.2 * shorter.sizes.max():
        raise ValueError(
            f"verify: `method` must make smaller updates for smaller step sizes, got {frozen.sizes.max():.3g} at h = "
            f"{h:g} and {shorter.sizes.max():.3g} at {h / 4:g}; it has to use its argument: lambda h: my_optimizer(h)"
        )
    return Subject(_callables.hashable(method), problem, frozen, fields, step_sizes, order)


def _row(name: str, subjects: Sequence[Subject], statements: Callable, trust: Trust) -> Prediction:
    routes = sorted({subject.route for subject in subjects})
    return Prediction(
        name=name,
        title=name,
        claim=f"{name} follows " + ("the given field." if routes == [GIVEN] else "the field that its updates imply."),
        formula="field: " + " or ".join(routes),
        source="",
        time_scale="h per step",
        validity=f"{trust.quantity} below 0.3",
        statements=statements,
        trust=trust,
    )


def _unmeasured(subject: Subject, why: str) -> dict:
    return {
        "kind": "criterion",
        "statement": "a field can follow single steps",
        "loss": subject.problem.name,
        "num_params": subject.problem.num_params,
        "verdict": UNMEASURED,
        "wanted": "updates that settle at a standstill, and a memory that ends",
        "value": None,
        "bound": None,
        "at_most": True,
        "mutant": None,
        "reason": why,
        "numbers": {},
        "series": None,
    }


def _find_order(cases: list[dict]) -> list[int]:
    """Judges a single field, whose order nobody claimed, by the order nearest to the measured one, and returns it."""
    found = []
    for case in cases:
        for truncation in case.get("truncations", ()):
            for kind, extra in (("one_step", 1), ("fixed_time", 0)):
                curve = truncation[kind]
                if curve is None or curve["measured"] is None or curve["mutant"] is None:
                    continue
                nearest = max(1, round(curve["measured"] - extra)) + extra
                h = np.asarray(case["h"])
                error = np.array([np.nan if e is None else e for e in curve["error"]])
                truncation[kind] = judge(h, error, h ** curve["mutant"], nearest, case["floor"])
                found += [nearest] if kind == "fixed_time" and case["statement"] == "" else []
        if case["kind"] == "order":
            curves = (c for t in case["truncations"] for c in (t["one_step"], t["fixed_time"]) if c is not None)
            case["verdict"] = worst(curve["verdict"] for curve in curves)
    return sorted(set(found))[:1] or [1]
