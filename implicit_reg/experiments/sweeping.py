"""Many small runs: one compiled program for each shape, results that depend on the width alone, and a store."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from implicit_reg import _checks
from implicit_reg._types import Axes, Integer, Key, SweptFunction
from implicit_reg.experiments.axes import expand, make_runs
from implicit_reg.experiments.identity import configuration
from implicit_reg.experiments.kept import Kept
from implicit_reg.experiments.lanes import Lanes
from implicit_reg.experiments.machine import machine
from implicit_reg.experiments.planning import (
    Block,
    SweepMemory,
    blocks_of_chunk,
    calls_of,
    check_shared,
    common_shapes,
    make_plan,
    memory_of,
)
from implicit_reg.experiments.results import SweepResult
from implicit_reg.experiments.store import Store, load


class Progress(NamedTuple):
    """How far a sweep is; given to `report` before the first chunk and after each.

    Attributes:
      done: runs that are finished, those of earlier processes included.
      total: all runs.
      reused: those that were found on disk.
      diverged: how many of the finished ones diverged.
      programs: how many are compiled: one for each combination of constants.
      elapsed: seconds since the call.
      left: estimated seconds to go; NaN before the first chunk.
      memory: what the programs compiled so far need, the first of them before the first chunk; None where nothing is
        left to do, or where the compiler does not say.
    """

    done: int
    total: int
    reused: int
    diverged: int
    programs: int
    elapsed: float
    left: float
    memory: SweepMemory | None


class SweepStoppedError(_checks.ImplicitRegError):
    """`should_stop` asked for the end; what was finished is in the folder."""


def sweep(
    fn: SweptFunction,
    axes: Axes,
    *,
    key: Key,
    width: Integer = 32,
    chunk: Integer | None = None,
    mesh: Mesh | None = None,
    folder: str | os.PathLike | None = None,
    resume: bool = False,
    allow_mixed: bool = False,
    identity: Any = None,
    report: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SweepResult:
    """Runs `fn` for every setting, vectorized in lanes of a fixed width.

    Numbers are operands: all their values share one compilation, floats in JAX's default float dtype, ints as int32.
    Texts, booleans, None, callables and what `static` marks are constants of a program: one compilation for each
    combination. The key of a run is `fold_in(key, seed)`, with seed 0 where no axis is called `seed`: runs of one seed
    are paired, and a run's key does not depend on the grid around it.

    The results are, to the last bit, the same for every `chunk`, for any number of devices, and wherever an interrupted
    sweep went on, as long as `width`, the versions and the processor are the same; `docs/sweeps.md` says what was
    measured. With another width they differ in their last bits, and wherever runs are chaotic in all of them.

    Args:
      fn: `fn(key, **settings) -> pytree of arrays`, traceable; equal shapes for all settings. The seed is not passed.
      axes: names to values (their product, the last name fastest), or a list of dictionaries.
      key: a typed key, `jax.random.key(0)`.
      width: lanes per device and call; part of a result's identity. More lanes cost memory in proportion.
      chunk: runs between two writes, a multiple of `width`; None: one call of the program.
      mesh: spread each call over these devices, those of other processes of `jax.distributed` included (`sweep_mesh`);
        None uses JAX's default device.
      folder: keep the results here, chunk by chunk, and survive what may happen; None keeps them in memory.
      resume: continue what the folder holds. Without it a folder that holds a sweep is refused.
      allow_mixed: continue although versions or devices differ; the chunks say so.
      identity: JSON that `fn` depends on and that its source, closure and settings do not show; a folder is continued
        only where it is equal.
      report: called with a `Progress` before the first chunk and after each.
      should_stop: asked after each chunk.

    Returns:
      All runs. A run is "diverged" where an output called `first_bad_step` is not negative, or, where there is none,
      where a floating output is not finite. That is data: nothing is raised, and no other run changes.

    Raises:
      TypeError, ValueError: an argument is not as above; nothing was computed or written.
      LockedError: another process works in the folder.
      ConfigMismatchError: the folder holds another sweep; the differences are named.
      EnvironmentMismatchError: the folder was begun with other versions or devices.
      SweepStoppedError: `should_stop` was true.
      MemoryError: one call does not fit; a smaller `width` is a new sweep.

    Example:
      >>> def final_loss(key, h):
      ...     start = jax.random.normal(key)
      ...     return 0.5 * (start * (1 - h) ** 10) ** 2
      >>> runs = sweep(final_loss, {"h": [0.1, 0.5], "seed": range(3)}, key=jax.random.key(0), width=4)
      >>> runs.grid("value").shape, set(runs.status.tolist())
      ((2, 3), {'ok'})
    """
    start = time.monotonic()
    check_shared("sweep", fn, key, width, chunk)
    if resume and folder is None:
        raise ValueError("sweep: `resume` needs the `folder` that is to be continued")
    try:
        json.dumps(identity, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"sweep: `identity` must be what JSON can hold, with finite numbers: {error}") from error
    runs = make_runs(axes)
    programs, blocks = make_plan(fn, runs, key, int(width), mesh)
    shapes = common_shapes(programs, runs, blocks)
    environment = machine()
    config = configuration(fn, runs, key, int(width), identity)
    with contextlib.ExitStack() as stack:
        store = _open(stack, folder, config, environment, resume, allow_mixed)
        kept = Kept(runs, shapes, store)
        pending = [block for block in range(len(blocks)) if not kept.has(blocks[block].rows)]
        size = blocks_of_chunk(programs, width, chunk)
        for program, rows in itertools.islice(calls_of(programs, [blocks[block] for block in pending[:size]]), 1):
            with _memory_errors(int(width)):
                programs[program].prepare(rows)
        reused, began = kept.done, time.monotonic()

        def tell():
            if report is not None:
                fresh = kept.done - reused
                rate = (time.monotonic() - began) / fresh if fresh else math.nan
                left = rate * (len(runs) - kept.done) if kept.done < len(runs) else 0.0
                elapsed = time.monotonic() - start
                memory = memory_of(programs, shapes, len(runs), int(width), size)
                report(Progress(kept.done, len(runs), reused, kept.diverged, len(programs), elapsed, left, memory))

        tell()
        for first in range(0, len(pending), size):
            at = time.monotonic()
            chosen = pending[first : first + size]
            rows = [row for block in chosen for row in blocks[block].rows]
            leaves = _run(programs, [blocks[block] for block in chosen], int(width))
            kept.add(chosen[0], rows, leaves, time.monotonic() - at)
            tell()
            if should_stop is not None and first + size < len(pending) and _any_process(should_stop()):
                raise SweepStoppedError(f"sweep: stopped after {kept.done} of {len(runs)} runs, which are kept")
        return kept.result(environment)


def load_sweep(folder: str | os.PathLike) -> SweepResult:
    """The runs that a folder holds; a sweep may be writing there.

    Args:
      folder: of a sweep.

    Returns:
      What is finished so far. The axes are those of the grid where it is complete, else None.

    Raises:
      CorruptResultError: the folder holds no sweep, or a file is damaged or not of this library.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = sweep(lambda key, h: h * h, {"h": [1.0, 2.0]}, key=jax.random.key(0), width=2, folder=folder)
      ...     runs = load_sweep(folder)
      >>> runs.grid("value").tolist()
      [1.0, 4.0]
    """
    config, environment, rows, status, leaves, seconds = load(folder)
    settings = config["settings"]
    every = expand(settings) if isinstance(settings, dict) else settings
    complete = isinstance(settings, dict) and len(rows) == len(every)
    return SweepResult(
        settings={name: [every[row][name] for row in rows] for name in every[0]},
        axes=settings if complete else None,
        leaves=leaves,
        status=np.asarray(status),
        seconds=seconds,
        environment=environment,
    )


def _run(programs: list[Lanes], blocks: list[Block], width: int) -> dict[str, np.ndarray]:
    """The outputs of some blocks, in their order."""
    with _memory_errors(width):
        parts = [programs[program](rows) for program, rows in calls_of(programs, blocks)]
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


@contextlib.contextmanager
def _memory_errors(width: int) -> Iterator[None]:
    """An error of the device about memory says what can be done about it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        smaller = max(1, width // 2)
        raise MemoryError(
            f"sweep: a call of width={width} runs per device does not fit into memory; use width={smaller} in a "
            f"new sweep (the width is part of the results' identity)"
        ) from error


def _open(
    stack: contextlib.ExitStack, folder: Any, config: dict, environment: dict, resume: bool, allow_mixed: bool
) -> Store | None:
    """The store, opened by process 0 alone; an error there is an error everywhere."""
    if folder is None:
        return None
    if jax.process_count() == 1:
        return stack.enter_context(Store(folder, config, environment, resume=resume, allow_mixed=allow_mixed))
    store, error = None, None
    if jax.process_index() == 0:
        try:
            store = stack.enter_context(Store(folder, config, environment, resume=resume, allow_mixed=allow_mixed))
        except Exception as problem:  # the others wait for the broadcast below, whatever went wrong
            error = problem
    if _any_process(error is not None):
        raise error or _checks.ImplicitRegError("sweep: process 0 could not open the folder; its message says why")
    return store


def _any_process(flag: bool) -> bool:
    """Whether the flag is up in any process: all must stop together, or the others wait forever."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
