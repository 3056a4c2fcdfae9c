"""A method on a loss, with the terms of the field that its iterates are said, or found, to follow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from implicit_reg.descent import optimizer_step, update_map
from implicit_reg.flows import interpolation_weights, modified_coefficients
from implicit_reg.problems import Problem
from implicit_reg.slow_manifold import SlowMap
from implicit_reg.standstill import Frozen

RECORD = 0.1  # the distance of two records in time, of which every start is a multiple
LONGEST = 10.0  # the latest start, in time: beyond, the run is over before its transient is
CLOCK = 1e-6  # relative change of an update at a standstill from which on it depends on the number of the step

GIVEN = "given"
EXACT = "exact derivatives of the update"
INTERPOLATED = "updates on the slow manifold"


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A method on one loss, and what was found out about it where it stands still.

    Attributes:
      method, problem: what is examined.
      frozen: what it does at a standstill.
      fields: the truncations that it is said to follow, with 1, 2, ... terms; empty where they are derived.
      step_sizes: decreasing.
      order: how many terms are looked at.
    """

    method: Callable
    problem: Problem
    frozen: Frozen
    fields: tuple[Callable, ...]
    step_sizes: tuple[float, ...]
    order: int

    @functools.cached_property
    def unravel(self) -> Callable:
        return ravel_pytree(self.problem.params)[1]

    @property
    def clock(self) -> bool:
        """Whether an update depends on the number of its step, as with a schedule."""
        return self.frozen.halves > CLOCK

    @property
    def objection(self) -> str | None:
        """Why no comparison can be made, or None; a field of one's own needs no memory that ends."""
        if self.fields and self.frozen.memory is None and np.all(np.isfinite(self.frozen.sizes)):
            return None
        why = self.frozen.objection
        if why is None and self.warm_up > LONGEST:
            why = (
                f"its memory of {self.frozen.memory} steps ends at t = {self.warm_up:g} only, at the step size "
                f"{self.step_sizes[-2]:g}; use smaller step sizes or a shorter memory"
            )
        return why

    @property
    def route(self) -> str:
        """Where the field comes from, in words."""
        if self.fields:
            return GIVEN
        return INTERPOLATED if self.frozen.memory or self.clock else EXACT

    @property
    def warm_up(self) -> float:
        """The time at which the memory of the start has ended with both step sizes that decide."""
        return RECORD * np.ceil((self.frozen.memory or 0) * self.step_sizes[-2] / RECORD - 1e-9)

    def slow(self, order: int) -> SlowMap:
        """The method on its slow manifold."""
        return SlowMap(self.method, self.problem.loss_fn, self.frozen.memory or 0, order)

    @functools.cached_property
    def terms(self) -> Callable:
        """`(h, n, x) -> (F_1, ..., F_order)` per step; n is the number of the step, which schedules want."""
        if self.fields:
            return functools.partial(_given_terms, self)
        if self.route == EXACT:
            coefficients = modified_coefficients(update_map(self.method, self.problem.loss_fn), self.order)

            def exact(h, n, x):
                return tuple(h ** (k + 1) * ravel_pytree(f)[0] for k, f in enumerate(coefficients(self.unravel(x))))

            return exact
        return functools.partial(_interpolated_terms, self)

    @functools.cached_property
    def table(self) -> Callable:
        """`terms` as the rows of one matrix, compiled once for all places, steps and step sizes."""
        return jax.jit(lambda h, n, x: jnp.stack(self.terms(h, n, x)))

    def step(self, w: Any, h: Any, n: Any, y: Any) -> Any:
        """One step of the method, as a recurrence has it."""
        return optimizer_step(self.method(h), self.problem.loss_fn, *y)

    def fresh(self, h: Any, x: Any) -> Any:
        """Parameters and the state as `init` makes it."""
        params = self.unravel(x)
        return params, self.method(h).init(params)

    def after(self, num_steps: Any, h: Any, x: Any) -> Any:
        """Parameters and state after so many steps from the fresh state."""
        start = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), self.fresh(h, x))
        return jax.lax.fori_loop(0, num_steps, lambda n, y: jax.tree.map(_as, self.step(None, h, n, y), y), start)


def _as(new: Any, old: Any) -> Any:
    return jnp.asarray(new, jnp.result_type(old))


def _given_terms(subject: Subject, h: Any, n: Any, x: Any) -> tuple:
    """Differences of the given truncations, per step."""
    found = [h * ravel_pytree(field(n * h, subject.unravel(x), h))[0] for field in subject.fields]
    return tuple(after - before for before, after in zip((jnp.zeros_like(x), *found), found, strict=False))


def _interpolated_terms(subject: Subject, h: Any, n: Any, x: Any) -> tuple:
    """Differences of the fields interpolated through 1, 2, ..., `order` updates from the slow manifold.

    They stand for the exact terms: with p of them the error is `O(h^p)`, and the p-th is `O(h^p)` itself.
    """
    order, slow, params = subject.order, subject.slow(subject.order), subject.unravel(x)
    # Before the memory has filled there is no slow manifold yet, and schedules have no negative steps.
    state = slow.with_steps(h, params, jnp.maximum(n, slow.memory)) if subject.clock or slow.memory else None
    y = (params, subject.method(h).init(params) if state is None else state)
    updates = []
    for _ in range(order):
        after = subject.step(None, h, n, y)
        updates.append(ravel_pytree(jax.tree.map(jnp.subtract, after[0], y[0]))[0])
        y = after
    fields = [
        sum(float(v) * u for v, u in zip(interpolation_weights(p), updates, strict=False)) for p in range(1, order + 1)
    ]
    return tuple(after - before for before, after in zip((jnp.zeros_like(x), *fields), fields, strict=False))
