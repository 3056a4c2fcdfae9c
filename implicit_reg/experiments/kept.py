"""The results of a sweep so far: in memory, in the store where there is one, and the same in all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reg.experiments.axes import Runs, describe
from implicit_reg.experiments.results import SEPARATOR, SweepResult
from implicit_reg.experiments.store import Store

FIRST_BAD_STEP = "first_bad_step"


def diverged_rows(leaves: Mapping[str, np.ndarray], num_rows: int) -> np.ndarray:
    """Which runs diverged: an output called `first_bad_step` says so, or, without one, a number that is not finite.

    Args:
      leaves: path to array with leading axis `num_rows`.
      num_rows: how many runs.

    Returns:
      A boolean for each run.

    Example:
      >>> diverged_rows({"loss": np.array([1.0, np.nan])}, 2).tolist()
      [False, True]
      >>> diverged_rows({"loss": np.array([1.0, np.nan]), "first_bad_step": np.array([-1, -1])}, 2).tolist()
      [False, False]
    """
    named = [leaf for path, leaf in leaves.items() if path.split(SEPARATOR)[-1] == FIRST_BAD_STEP]
    found = np.zeros(num_rows, bool)
    for leaf in named:
        found |= (leaf.reshape(num_rows, -1) >= 0).any(1)
    if named:
        return found
    for leaf in leaves.values():
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            found |= ~np.isfinite(leaf.astype(complex) if leaf.dtype.kind == "c" else leaf.astype(float)).reshape(
                num_rows, -1
            ).all(1)
    return found


class Kept:
    """The results so far.

    Args:
      runs: all of the sweep.
      shapes: of the outputs of one run.
      store: where they are kept; None with several processes in all but the first.
    """

    def __init__(self, runs: Runs, shapes: Mapping[str, jax.ShapeDtypeStruct], store: Store | None):
        self._runs, self._store, self._seconds = runs, store, 0.0
        self._leaves = {path: np.zeros((len(runs), *s.shape), s.dtype) for path, s in shapes.items()}
        self._bad = np.zeros(len(runs), bool)
        self._have = np.zeros(len(runs), bool)
        if store is not None:
            store.rows_done()  # keeps damaged files aside
            rows, status, leaves, self._seconds = store.read()
            self._fill(list(rows), leaves, np.asarray(status) == "diverged")
        self._share()

    def _fill(self, rows: list[int], leaves: Mapping[str, np.ndarray], bad: np.ndarray) -> None:
        if rows:
            for path, leaf in leaves.items():
                self._leaves[path][rows] = leaf
            self._bad[rows] = bad
            self._have[rows] = True

    def _share(self) -> None:
        """What process 0 found on disk, in all processes."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            self._leaves, self._bad, self._have = jax.tree.map(
                np.asarray, multihost_utils.broadcast_one_to_all((self._leaves, self._bad, self._have))
            )
            self._leaves = {path: np.array(leaf) for path, leaf in self._leaves.items()}
            self._bad, self._have = np.array(self._bad), np.array(self._have)

    @property
    def done(self) -> int:
        """How many runs are finished."""
        return int(self._have.sum())

    @property
    def diverged(self) -> int:
        """How many of them diverged."""
        return int((self._bad & self._have).sum())

    def has(self, rows: Sequence[int]) -> bool:
        """Whether these are finished."""
        return bool(self._have[list(rows)].all())

    def add(self, first_block: int, rows: list[int], leaves: dict[str, np.ndarray], seconds: float) -> None:
        """Keeps finished runs."""
        bad = diverged_rows(leaves, len(rows))
        if self._store is not None:
            self._store.write(first_block, rows, np.where(bad, "diverged", "ok").tolist(), leaves, seconds)
        self._fill(rows, leaves, bad)
        self._seconds += seconds

    def result(self, environment: Mapping[str, Any]) -> SweepResult:
        """All of them, once all are finished."""
        rows = [describe(row) for row in self._runs.settings]
        return SweepResult(
            settings={name: [row[name] for row in rows] for name in rows[0]},
            axes=self._runs.plain_axes(),
            leaves=self._leaves,
            status=np.where(self._bad, "diverged", "ok"),
            seconds=self._seconds,
            environment=environment,
        )
