"""diffrax's explicit Runge-Kutta solvers, with each stage a sum over the nonzero coefficients of its row alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import diffrax
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np


def _sum(row: Sequence[tuple[int, float]], increments: jax.Array) -> jax.Array:
    """`sum_j a_j k_j` over the pairs `(j, a_j)` of a row, which XLA makes one pass over memory."""
    return functools.reduce(jnp.add, [np.asarray(a, increments.dtype) * increments[j] for j, a in row])


class _SparseStages:
    """The step of an explicit method of one `ODETerm` whose last stage is the next step's first, as diffrax has it.

    What a step does with memory is most of its cost beside the field. Three ways to form the stages: (1) rows of a
    padded tableau times all increments, zeros included, as diffrax does; (2) stages written out one after the other,
    which traces and compiles the field once per stage; (3) a loop over stages that traces the field once, and for each
    row a branch that reads only what the row needs. We do (3).
    """

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """As `diffrax.AbstractRungeKutta.step`, to rounding."""
        tableau = self.tableau
        control = terms.contr(t0, t1)
        is_first, f0 = solver_state
        # The stage is one number for a whole batch: a batched one would compute every branch.
        from_start = eqxi.unvmap_any(is_first | made_jump)
        k0 = jax.tree.map(lambda k: jnp.where(from_start, 0, k), terms.prod(f0, control))
        # No location is written twice: row 0 is zero here if the loop is to write it.
        increments = jax.tree.map(lambda k: jnp.zeros((tableau.num_stages, *k.shape), k.dtype).at[0].set(k), k0)
        nodes = jnp.asarray(np.concatenate([[0.0], tableau.c]), jnp.result_type(t0, t1))
        rows = [[(j, a) for j, a in enumerate(row) if a != 0] for row in tableau.a_lower]
        states = [lambda ks: y0] + [
            functools.partial(lambda row, ks: jax.tree.map(lambda y, k: y + _sum(row, k), y0, ks), row) for row in rows
        ]

        def stage(carry):
            i, _, buffers = carry
            y = jax.lax.switch(i, states, jax.tree.map(lambda _, k: k[...], y0, buffers))
            t = jnp.where(nodes[i] == 1, t1, t0 + nodes[i] * (t1 - t0))
            k = terms.vf_prod(t, y, args, control)
            # Bounds that are checked cost a read of what is overwritten.
            written = jax.tree.map(lambda k, ks: ks.at[i].set(k, mode="promise_in_bounds"), k, buffers)
            return i + 1, y, written

        _, y1, increments = eqxi.while_loop(
            lambda carry: carry[0] < tableau.num_stages,
            stage,
            (jnp.where(from_start, 0, 1), y0, increments),
            max_steps=tableau.num_stages,
            buffers=lambda carry: carry[2],
            kind="checkpointed",
            checkpoints=tableau.num_stages,
        )
        # All of the row, zeros included: a stage that is not a number is to reject the step wherever it stands.
        error = jax.tree.map(functools.partial(_sum, list(enumerate(tableau.b_error))), increments)
        # In a batch, one that has arrived takes steps of no length until all have: its derivative is not to be 0 / 0.
        length = jnp.where(control == 0, 1, control)
        f1 = jax.tree.map(lambda k: k[-1] / length.astype(k.dtype), increments)
        return y1, error, {"y0": y0, "y1": y1, "k": increments}, (False, f1), diffrax.RESULTS.successful


class Tsit5(_SparseStages, diffrax.Tsit5):
    """Order 5."""


class Dopri8(_SparseStages, diffrax.Dopri8):
    """Order 8."""
