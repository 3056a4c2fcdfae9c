"""One figure of a paper, run again: its claim, a criterion fixed beforehand, and a verdict that is computed."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from implicit_reg import _checks
from implicit_reg.experiments.machine import machine
from implicit_reg.experiments.results import SweepResult, plain
from implicit_reg.experiments.sweeping import Progress, sweep

SCALES = ("test", "fast", "full")


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One part of what "reproduced" means, fixed before the numbers are seen.

    Attributes:
      text: the statement, in words and numbers.
      holds: judges the numbers of a run, and nothing else.
    """

    text: str
    holds: Callable[[Mapping[str, float]], bool]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a reproduction; None is an empty cell.

    Attributes:
      title: one line.
      columns: the heads.
      rows: as many cells each as there are heads.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Table: each row must have {len(self.columns)} cells as `columns` has, got {len(row)}: {row}"
                )


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a reproduction measured.

    Attributes:
      numbers: all that the criteria judge, and what else belongs into one line of JSON.
      tables: for the reader.
      curves: what the figure draws: nested dicts and lists, numbers, arrays.
      notes: what was measured and does not fit the claim, or is not shown.
    """

    numbers: Mapping[str, float]
    tables: tuple[Table, ...]
    curves: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class Lab:
    """Where a reproduction works: its sweeps are kept and continued where the caller asked for that.

    Args:
      folder: sweeps are kept in folders of their names below it; None keeps nothing.
      resume: continue what is there.
      mesh: devices to spread the runs over, as in `sweep`.
      report: is told what is going on: a text, and the progress of a sweep or None.
      should_stop: asked after each chunk, as in `sweep`.

    Example:
      >>> lab = Lab(report=lambda text, progress: print(text))
      >>> lab.report("training")
      training
      >>> result = lab.sweep("squares", lambda key, x: x * x, {"x": [1.0, 2.0]}, key=jax.random.key(0), width=2)
      squares
      squares
      >>> result["value"].tolist()
      [1.0, 4.0]
    """

    def __init__(
        self,
        folder: pathlib.Path | None = None,
        *,
        resume: bool = False,
        mesh: Any = None,
        report: Callable[[str, Progress | None], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ):
        self._folder, self._resume, self._mesh = folder, resume, mesh
        self._report, self._should_stop = report, should_stop

    def report(self, text: str) -> None:
        """Says what is going on.

        Args:
          text: a few words.
        """
        if self._report is not None:
            self._report(text, None)

    def sweep(
        self,
        name: str,
        fn: Callable[..., Any],
        axes: Any,
        *,
        key: jax.Array,
        width: int = 32,
        chunk: int | None = None,
        identity: Any = None,
    ) -> SweepResult:
        """As `experiments.sweep`, kept under a name.

        Args:
          name: of the sweep, unique in its reproduction: a folder's name.
          fn: `fn(key, **settings) -> pytree`.
          axes: the grid.
          key: of all randomness.
          width: lanes per device and call.
          chunk: runs per file.
          identity: what else decides the results (settings that `fn` closes over), as JSON.

        Returns:
          The runs.
        """
        folder = None if self._folder is None else self._folder / name

        def report(progress: Progress) -> None:
            if self._report is not None:
                self._report(name, progress)

        return sweep(
            fn,
            axes,
            key=key,
            width=width,
            chunk=chunk,
            mesh=self._mesh,
            folder=folder,
            resume=self._resume and folder is not None and folder.exists(),
            identity=identity,
            report=report,
            should_stop=self._should_stop,
        )


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A published experiment that can be run again.

    Attributes:
      name: on the command line.
      claim: one sentence.
      source: `[key]` and where in it.
      reported: what the paper reports, or that its number is not known here.
      criteria: the parts of the verdict.
      scales: "test", "fast" and "full" to a frozen record of settings each; all run the same code.
      measure: `measure(settings, lab) -> Findings`.
      x64: whether it runs in float64.
    """

    name: str
    claim: str
    source: str
    reported: str
    criteria: tuple[Criterion, ...]
    scales: Mapping[str, Any]
    measure: Callable[[Any, Lab], Findings]
    x64: bool = False

    def __post_init__(self):
        if set(self.scales) != set(SCALES):
            raise ValueError(f"Reproduction: `scales` must be {SCALES}, got {tuple(self.scales)}")
        if not self.criteria:
            raise ValueError("Reproduction: `criteria` must hold at least one, got none")


def judge(criteria: tuple[Criterion, ...], numbers: Mapping[str, float]) -> tuple[str, list[dict[str, Any]]]:
    """The verdict: "reproduced" where all criteria hold, "not" where none does, "partly" otherwise.

    Args:
      criteria: fixed beforehand.
      numbers: what was measured.

    Returns:
      The verdict, and for each criterion its text and whether it holds.

    Example:
      >>> rule = (Criterion("the order is 2", lambda n: abs(n["order"] - 2) < 0.1),)
      >>> judge(rule, {"order": 1.98})
      ('reproduced', [{'text': 'the order is 2', 'holds': True}])
      >>> judge(rule, {"order": float("nan")})[0]
      'not'
    """
    parts = [{"text": criterion.text, "holds": bool(criterion.holds(numbers))} for criterion in criteria]
    held = sum(part["holds"] for part in parts)
    return ("reproduced" if held == len(parts) else "partly" if held else "not"), parts


def reproduce(
    reproduction: Reproduction | str,
    scale: str = "fast",
    *,
    folder: pathlib.Path | None = None,
    resume: bool = False,
    mesh: Any = None,
    report: Callable[[str, Progress | None], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Runs a published experiment again and judges it.

    Args:
      reproduction: one of `REPRODUCTIONS` by name, or one's own.
      scale: "test" takes seconds, "fast" at most two minutes on two cores, "full" is the paper's protocol where known.
      folder: keeps the sweeps; None keeps nothing.
      resume: continue what is in the folder.
      mesh: devices to spread runs over, as in `sweep`.
      report: is told what is going on: a text, and the progress of a sweep or None.
      should_stop: asked after each chunk of a sweep; true raises `SweepStoppedError`, and what
        was kept stays.

    Returns:
      A record that JSON can hold: name, claim, source, reported, criterion, verdict, parts, numbers, tables, curves,
      notes, scale, settings, seconds, environment. A number that is not finite is None.

    Raises:
      ValueError: for an unknown name or scale.

    Example:
      >>> sorted(reproduce("principal-flow", "test"))[:4]
      ['claim', 'criterion', 'curves', 'environment']
    """
    from implicit_reg.experiments.papers import load_reproduction

    if isinstance(reproduction, str):
        reproduction = load_reproduction(reproduction)
    if scale not in SCALES:
        raise _checks.unknown_name("reproduce", "scale", scale, SCALES)
    settings = reproduction.scales[scale]
    lab = Lab(folder, resume=resume, mesh=mesh, report=report, should_stop=should_stop)
    start = time.monotonic()
    with jax.enable_x64(True) if reproduction.x64 else contextlib.nullcontext():
        findings = reproduction.measure(settings, lab)
        environment = machine()
    numbers = {name: float(value) for name, value in findings.numbers.items()}
    verdict, parts = judge(reproduction.criteria, numbers)
    return plain(
        {
            "name": reproduction.name,
            "claim": reproduction.claim,
            "source": reproduction.source,
            "reported": reproduction.reported,
            "criterion": "; ".join(part["text"] for part in parts),
            "verdict": verdict,
            "parts": parts,
            "numbers": numbers,
            "tables": [dataclasses.asdict(table) for table in findings.tables],
            "curves": findings.curves,
            "notes": findings.notes,
            "scale": scale,
            "settings": dataclasses.asdict(settings),
            "seconds": time.monotonic() - start,
            "environment": environment,
        }
    )
