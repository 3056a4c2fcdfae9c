"""How strong backstitch is: the mean end of a small epoch, over all orders, beside that of gradient flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from implicit_reg.experiments.papers._small_epochs import (
    NUM_BATCHES,
    ORDERS,
    epoch_end,
    small_network,
    unit_flow,
)
from implicit_reg.experiments.reproduction import Lab
from implicit_reg.flows.stochastic import shuffled_terms
from implicit_reg.transforms import backstitch


class Stitch(NamedTuple):
    """How backstitch is used: `alpha` 0 is plain stochastic gradient descent.

    Example:
      >>> recommended = Stitch(1.0, 4)
      >>> recommended.name, recommended.strength, recommended.num_steps(1000)
      ('alpha = 1, n = 4', 2.0, 800)
    """

    alpha: float
    interval: int

    @property
    def name(self) -> str:
        """For tables and numbers."""
        return f"alpha = {self.alpha:g}, n = {self.interval}" if self.alpha else "SGD"

    @property
    def strength(self) -> float:
        """`1 + 2 alpha (1 + alpha)/n`, in units of plain descent's."""
        return 1 + 2 * self.alpha * (1 + self.alpha) / self.interval

    def num_steps(self, budget: int) -> int:
        """The steps that so many gradients pay for: a backstitch costs two."""
        return int(budget / (1 + 1 / self.interval)) if self.alpha else budget


PLAIN = Stitch(0.0, 1)
RECOMMENDED = (Stitch(0.3, 1), Stitch(1.0, 4))
CROSSED = (Stitch(0.3, 4), Stitch(1.0, 1))
MEASURED = (PLAIN, Stitch(0.2, 1), *RECOMMENDED, Stitch(0.8, 1), *CROSSED, Stitch(1.0, 2))


def stitched_end(key: Array, h: Array, alpha: Array, interval: Array, order: Array, offset: Array) -> Array:
    """The end of an epoch of backstitch on a small network.

    Args:
      key: of the problem.
      h: step size.
      alpha, interval, offset: as for `transforms.backstitch`.
      order: the number of one of the 24 orders of the minibatches.

    Returns:
      The parameters.
    """
    method = backstitch(optax.sgd(h), alpha, interval=interval, offset=offset)
    return epoch_end(method, small_network(key), jnp.asarray(ORDERS)[order])


def shuffled_ends(key: Array, h: Array) -> Array:
    """The ends of gradient flow and of the flow with the second term of plain descent, which has strength 1.

    Args:
      key, h: as for `stitched_end`.

    Returns:
      Shape (2, parameters).
    """
    network = small_network(key)

    def field(rows):
        terms = jax.vmap(lambda x: jnp.stack(shuffled_terms(network.loss_fn, NUM_BATCHES, x, h, order=2)))(rows)
        return terms[:, 0] + jnp.array([[0.0], [1.0]]) * terms[:, 1]

    return unit_flow(field, jnp.stack([network.start, network.start]))


def measured_strengths(step_sizes: Sequence[float], lab: Lab) -> np.ndarray:
    """How far the mean end of an epoch, over orders and offsets, is along the second term of plain descent.

    Args:
      step_sizes: with which.
      lab: where the sweeps run.

    Returns:
      Step sizes by `MEASURED`; the strength up to O(h).
    """
    sizes, key = list(step_sizes), jax.random.key(0)
    runs = [
        {"h": h, "alpha": s.alpha, "interval": s.interval, "order": order, "offset": offset}
        for h in sizes
        for s in MEASURED
        for order in range(len(ORDERS))
        for offset in range(NUM_BATCHES)
    ]
    ends = lab.sweep("strength", stitched_end, runs, key=key, width=768)["value"]
    mean = ends.reshape(len(sizes), len(MEASURED), -1, ends.shape[-1]).mean(axis=2)
    flows = lab.sweep("flows", shuffled_ends, {"h": sizes}, key=key, width=len(sizes))["value"]
    away, unit = mean - flows[:, :1], flows[:, 1] - flows[:, 0]
    return np.einsum("hsd,hd->hs", away, unit) / np.sum(unit**2, axis=1)[:, None]
