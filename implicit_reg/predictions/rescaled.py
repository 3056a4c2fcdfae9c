"""Optax's optimizers that rescale by a memory of squares, with what is known of each: ages, ghost shifts, states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from implicit_reg.flows import adaptive as flows
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import Recurrence, iterates

WEIGHT_DECAY = 0.1
DECAYS = (0.5, 0.7)  # memories short enough for step sizes at which orders are seen in seconds
RMS_DECAYS = (0.0, DECAYS[1])
LONG_PAST = 10**6  # a count at which no bias correction is left


class Kind(NamedTuple):
    """An Optax optimizer that rescales by a memory of squares.

    Attributes:
      method: `(decays, rescaling) -> (h -> transformation)`, with bias correction where it is an option.
      first_age: `b1 -> t1`.
      first: whether there is a memory of gradients.
      ghost: `(loss_fn, decays, rescaling) -> (x -> s)`, the shift from the zero state, or None where there is none.
      corrected: whether ages that grow with the step are those of the zero state.
      weight_decay: of its rows.
      decays: of its rows, but where the usual ones are named.
    """

    method: Callable
    first_age: Callable = flows.stationary_age
    first: bool = True
    ghost: Callable | None = None
    corrected: bool = True
    weight_decay: float = 0.0
    decays: tuple[float, float] = DECAYS

    def ages(self, decays) -> tuple[float, float]:
        """Of memories with a long past."""
        return self.first_age(decays[0]), flows.stationary_age(decays[1])

    def growing(self, decays, n) -> tuple:
        """Of memories that began with the run, in the flow that has come to `n`."""
        first = flows.corrected_age(decays[0], n + 0.5) if self.first else 0.0
        return first, flows.corrected_age(decays[1], n + 0.5)

    def terms(self, objective: Objective, decays, rescaling, growing: bool = False) -> Callable:
        """`(h, n, x) -> (F_1, F_2)`, per step."""

        def terms(h, n, x):
            ages = self.growing(decays, n) if growing else self.ages(decays)
            first, second = flows.adaptive_coefficients(objective.value, ages, rescaling)(x)
            return h * first, h**2 * second

        return terms

    def on_slow_manifold(self, objective: Objective, decays, rescaling) -> Recurrence:
        """The iterates, with the memories that a long past would have left."""
        moments = flows.slow_moments(objective.value, decays, rescaling)

        def state(h, x, fresh):
            mu, nu = moments(h, x)
            known = {"count": jnp.asarray(LONG_PAST, jnp.int32), "mu": mu, "nu": nu}
            kept = {name: value for name, value in known.items() if optax.tree.get(fresh, name) is not None}
            return optax.tree.set(fresh, **kept)

        return iterates(self.method(decays, rescaling), objective, state=state)


def _adam(optimizer: Callable) -> Callable:
    def method(decays, rescaling):
        first, second = decays
        more = {"weight_decay": rescaling.weight_decay} if rescaling.weight_decay else {}
        return lambda h: optimizer(h, b1=first, b2=second, eps=rescaling.eps, eps_root=rescaling.eps_root, **more)

    return method


def _rmsprop(bias_correction: bool) -> Callable:
    def method(decays, rescaling):
        inside = rescaling.eps == 0
        eps = rescaling.eps_root if inside else rescaling.eps
        return lambda h: optax.rmsprop(h, decay=decays[1], eps=eps, eps_in_sqrt=inside, bias_correction=bias_correction)

    return method


ADAM = Kind(_adam(optax.adam))
ADAMW = Kind(_adam(optax.adamw), weight_decay=WEIGHT_DECAY)
NADAM = Kind(
    _adam(optax.nadam),
    first_age=lambda b: b * flows.stationary_age(b),
    ghost=lambda loss, decays, rescaling: flows.nadam_ghost_shift(loss, decays[0], rescaling),
    corrected=False,
)
RMSPROP = Kind(_rmsprop(bias_correction=True), first_age=lambda b: 0.0, first=False, decays=RMS_DECAYS)
PLAIN_RMSPROP = RMSPROP._replace(
    method=_rmsprop(bias_correction=False),
    ghost=lambda loss, decays, rescaling: flows.rms_ghost_shift(loss, decays[1], rescaling),
    corrected=False,
)
