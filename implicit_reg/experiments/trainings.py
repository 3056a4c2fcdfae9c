"""Training on real data as a function that can be swept: what may be traced is, and the rest is a constant."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from implicit_reg import _checks
from implicit_reg.experiments.axes import static
from implicit_reg.training import Run, Settings
from implicit_reg.training.comparison import stack_data
from implicit_reg.training.lookup import find_method, is_traced
from implicit_reg.training.program import select
from implicit_reg.training.runs import make_knobs
from implicit_reg.training.settings import as_pairs, parse_pairs

_NOT_SWEPT = ("seed", "dtype", "hyper", "optimizer_args")


@dataclasses.dataclass(frozen=True)
class Trainings:
    """Training runs that differ in some settings, ready for `sweep(trainings.fn, trainings.axes, ...)`.

    The learning rate, the method's floating hyperparameters and the seed of the split are traced, so that all their
    values share a program; every other setting is a constant of one. All is checked here, before any long work.

    Args:
      settings: what the runs share. Its seed is not read: the key of a run comes from the sweep.
      chosen: names of settings or of the method's hyperparameters, to the values to try; widths are written "64,32".

    Raises:
      TypeError, ValueError: for anything that a training run would refuse.

    Example:
      >>> from implicit_reg.experiments import sweep
      >>> trainings = Trainings(Settings(data="wine", widths=(4,), epochs=2), {"learning_rate": [0.1, 0.3]})
      >>> runs = sweep(trainings.fn, trainings.axes | {"seed": [0, 1]}, key=jax.random.key(0), width=4)
      >>> runs.grid("validation/loss").shape                       # step size, seed, epoch: 0 is the start
      (2, 2, 3)
    """

    settings: Settings
    chosen: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        known = [field.name for field in dataclasses.fields(Settings) if field.name not in _NOT_SWEPT]
        methods = self.chosen.get("method", [self.settings.method])
        hyper = list(dict.fromkeys(name for method in methods for name in find_method(method).hyperparameters))
        for name in self.chosen:
            if name not in (*known, *hyper):
                raise _checks.unknown_name("sweep", "axis", name, [*hyper, *known])
        object.__setattr__(self, "_hyper_axes", [name for name in self.chosen if name in hyper and name not in known])
        object.__setattr__(self, "_splits", list(self.chosen.get("split_seed", [self.settings.split_seed or 0])))
        object.__setattr__(self, "_made", {})
        self._make_all()

    def _make_all(self) -> None:
        """One `Run` for each program, its numbers checked, and the data of every split."""
        names = list(self.chosen)
        for values in itertools.product(*self.chosen.values()):
            row = dict(zip(names, values, strict=True))
            key = self._key(row)
            made = self._made
            if key not in made:
                run = Run(self._own(row))
                shared = [dataclasses.replace(run.settings, split_seed=split) for split in self._splits]
                parts = [stack_data(settings, [0], run.dtype) for settings in shared]
                made[key] = (run, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
            run = made[key][0]
            given = {name: row[name] for name in self._hyper_axes}
            run.check(row.get("learning_rate", self.settings.learning_rate), {**run.hyper, **given})

    def _own(self, row: Mapping[str, Any]) -> Settings:
        """The settings of a run."""
        changes = {name: value for name, value in row.items() if name not in self._hyper_axes}
        if isinstance(changes.get("widths"), str):
            changes["widths"] = _parse_widths(changes["widths"])
        hyper = parse_pairs("sweep", self.settings.hyper) | {name: row[name] for name in self._hyper_axes}
        return dataclasses.replace(self.settings, **changes, hyper=as_pairs(hyper))

    def _key(self, row: Mapping[str, Any]) -> tuple:
        """The constants of a run, by which its program is found."""
        traced = self._traced()
        return tuple((name, value) for name, value in sorted(row.items()) if name not in traced)

    def _traced(self) -> set[str]:
        floats = {name for name in self._hyper_axes if all(map(is_traced, self._typed(name)))}
        return {"learning_rate", "split_seed"} | floats

    def _typed(self, name: str) -> list[Any]:
        """The values of a hyperparameter: floats where its default is one."""
        methods = [find_method(method) for method in self.chosen.get("method", [self.settings.method])]
        floating = any(is_traced(method.hyperparameters.get(name)) for method in methods)
        return [float(v) if floating and type(v) is int else v for v in self.chosen[name]]

    @property
    def axes(self) -> dict[str, Any]:
        """For `sweep`: the values to try, marked `static` where they decide the program."""
        traced = self._traced()
        values = {name: self._typed(name) if name in self._hyper_axes else list(v) for name, v in self.chosen.items()}
        floats = {name: [float(v) for v in values[name]] for name in values if name == "learning_rate"}
        return {name: v if name in traced else static(v) for name, v in (values | floats).items()}

    def fn(self, key: Array, **row: Any) -> dict[str, dict[str, Array]]:
        """One training run from its key.

        Args:
          key: of parameters, batch order, dropout and noise.
          **row: one value for each axis.

        Returns:
          For `train`, `validation` and `test`: `loss` and `accuracy` (`r2` of a regression, whose loss is that of the
          standardized target) before the first epoch and after each. Once a loss was not finite, all that follows is
          nan.
        """
        run, data = self._made[self._key(row)]
        split = jnp.asarray(self._splits) == row["split_seed"] if "split_seed" in row else jnp.array([True])
        data = jax.tree.map(lambda leaf: leaf[jnp.argmax(split)], data)
        hyper = run.hyper | {name: row[name] for name in self._hyper_axes}
        knobs = make_knobs(run.dtype, run.settings.learning_rate, run.hyper, run.num_steps)
        wide = knobs.learning_rate.dtype
        knobs = knobs._replace(
            learning_rate=jnp.asarray(row.get("learning_rate", knobs.learning_rate), wide),
            hyper={name: jnp.asarray(hyper[name], wide) for name in knobs.hyper},
        )
        score = "accuracy" if run.data.task == "classification" else "r2"

        def measure(state):
            parts = {}
            for part in ("train", "validation", "test"):
                x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
                values = dict(zip(("loss", score), run.program.evaluate(state.params, state.stats, x, y), strict=True))
                parts[part] = select(state.finite, values, jax.tree.map(lambda v: jnp.full_like(v, jnp.nan), values))
            return parts

        def epoch(state, k):
            state, _ = run.program.epoch(state, data, knobs, run.program.order(key, k))
            return state, measure(state)

        state = run.program.init(key, knobs)
        first = measure(state)
        _, rest = jax.lax.scan(epoch, state, jnp.arange(run.settings.epochs, dtype=jnp.int32))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def _parse_widths(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError(f"sweep: `widths` must be integers joined by commas, such as 64,32; got {text!r}")
    return tuple(int(word) for word in words)
