"""Which settings of a sweep did best: chosen on validation data, tested once."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np

from implicit_reg.cli import _common

_SHOWN = 10


def rank(runs: Any, by: str | None, *, highest: bool, training: bool) -> dict[str, Any]:
    """The settings in the order of an output.

    A run's value is a scalar output; of a curve it is the last entry or, for a training, the best one. A setting's is
    the mean over its seeds. Of a training the test values are looked at for the first setting alone, at the best
    validation epoch of each seed.

    Args:
      runs: a sweep whose last axis is the seed.
      by: the output; None takes validation/loss of a training, else the first floating output.
      highest: whether large values are good.
      training: whether the outputs are those of a training.

    Returns:
      `by`, `highest`, `seeds`, `settings` (a list, best first: the axes, `mean`, `standard_error`, `diverged`), and
      `test` (output to mean, low, high, n) or None.

    Raises:
      ValueError: there is no such output, or it has more than one axis.
    """
    floating = [path for path, leaf in runs.leaves.items() if np.asarray(leaf).dtype.kind in "iuf"]
    by = by or ("validation/loss" if training else floating[0] if floating else next(iter(runs.leaves)))
    if by not in runs.leaves:
        raise ValueError(f"--by {by}: there is no such output; there are {', '.join(runs.leaves)}")
    curve = np.asarray(runs[by], float)
    if curve.ndim > 2:
        raise ValueError(f"--by {by}: has {curve.ndim - 1} axes; name an output that is a number or a curve")
    seeds = len(runs.axes["seed"])
    diverged = (runs.status == "diverged").reshape(-1, seeds)
    values, at = _values(curve, highest=highest, best=training)
    values = np.where(diverged, np.nan, values.reshape(-1, seeds))
    names = [name for name in runs.settings if name != "seed"]
    order = sorted(range(len(values)), key=lambda k: _key(values[k], diverged[k], highest))
    settings = [
        {name: runs.settings[name][k * seeds] for name in names}
        | {"diverged": int(diverged[k].sum())}
        | dict(zip(("mean", "standard_error"), _moments(values[k]), strict=True))
        for k in order
    ]
    test = None
    if training and np.isfinite(values[order[0]]).all():
        rows = np.arange(seeds) + order[0] * seeds
        paths = [path for path in runs.leaves if path.startswith("test/")]
        test = {path: _interval(np.asarray(runs[path], float)[rows, at[rows]]) for path in paths}
    return {"by": by, "highest": highest, "seeds": seeds, "settings": settings, "test": test}


def _values(curve: np.ndarray, *, highest: bool, best: bool) -> tuple[np.ndarray, np.ndarray]:
    """One value per run, and where on its curve it stands."""
    if curve.ndim == 1:
        return curve, np.zeros(len(curve), int)
    at = np.full(len(curve), curve.shape[1] - 1)
    if best:
        worst = -np.inf if highest else np.inf
        filled = np.where(np.isfinite(curve), curve, worst)
        at = filled.argmax(1) if highest else filled.argmin(1)
    return curve[np.arange(len(curve)), at], at


def _key(values: np.ndarray, diverged: np.ndarray, highest: bool) -> tuple[int, float]:
    mean = _moments(values)[0]
    return int(diverged.sum()), math.inf if mean is None else -mean if highest else mean


def _moments(values: np.ndarray) -> tuple[float | None, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _interval(values: np.ndarray) -> dict[str, Any]:
    from implicit_reg.experiments.statistics import interval

    if len(values) < 2 or not np.isfinite(values).all():
        return {"mean": _moments(values)[0], "low": None, "high": None, "n": len(values)}
    found = interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": len(values)}


def show(record: dict[str, Any], folder: pathlib.Path) -> None:
    """The best settings as a table on standard output.

    Args:
      record: what `rank` returned, with `runs`, `diverged` and `seconds`.
      folder: where everything is.
    """
    from rich.table import Table

    console = _common.console()
    settings, seeds = record["settings"], record["seeds"]
    names = [name for name in settings[0] if name not in ("mean", "standard_error", "diverged")]
    words = f"{record['by']}, {'largest' if record['highest'] else 'smallest'} first"
    console.print(f"{len(settings)} settings by {words}, mean over {seeds} {_plural(seeds, 'seed')}", soft_wrap=True)
    table = Table()
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(record["by"], justify="right", no_wrap=True)
    table.add_column("diverged", justify="right", no_wrap=True)
    for row in settings[:_SHOWN]:
        mean, error = row["mean"], row["standard_error"]
        value = "-" if mean is None else f"{mean:.4g}" + (f" ± {error:.1g}" if error is not None else "")
        table.add_row(*(_word(row[name]) for name in names), value, f"{row['diverged']}/{seeds}")
    console.print(table)
    if len(settings) > _SHOWN:
        console.print(f"and {len(settings) - _SHOWN} more in results.json", soft_wrap=True)
    if record["test"]:
        parts = [f"{path} {_with_interval(found)}" for path, found in record["test"].items()]
        console.print(f"First setting on test data, at the best epoch: {', '.join(parts)}", soft_wrap=True)
    runs, diverged = record["runs"], record["diverged"]
    ending = f"{runs} {_plural(runs, 'run')}, {diverged} diverged, {record['seconds']:.1f} s of computing"
    console.print(f"{ending}; everything: {folder}", soft_wrap=True)


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_interval(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:.4g}"
    return f"{found['mean']:.4g} [{found['low']:.4g}, {found['high']:.4g}] (95 %, n = {found['n']})"
