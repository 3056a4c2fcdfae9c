"""Several methods on equal terms: same seeds, same gradient budget, hyperparameters chosen on validation data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reg import _checks
from implicit_reg._types import Scalar
from implicit_reg.problems import Dataset
from implicit_reg.training import metrics
from implicit_reg.training.lookup import find_method, is_traced, load_data, method_hyper
from implicit_reg.training.program import Arrays, Knobs, TrainState, to_arrays
from implicit_reg.training.runs import Run, flooded, make_knobs
from implicit_reg.training.settings import Settings, as_pairs


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting of a method that competes for its place: learning rate and hyperparameters."""

    learning_rate: float
    hyper: Mapping[str, Any]


def grid(
    method: str, learning_rates: Sequence[Scalar], values: Mapping[str, Sequence[Any]] | None = None
) -> list[Candidate]:
    """The candidates of a method: the product of learning rates and hyperparameter values.

    A floating hyperparameter that `values` does not name is tried at a third, once and three times its default; an
    integer one stays at its default.

    Args:
      method: a row of the table, or module:attribute.
      learning_rates: at least one, positive.
      values: names to the values to try.

    Returns:
      The candidates, in a fixed order.

    Raises:
      ValueError: for an unknown hyperparameter, an empty list, a value twice, or a learning rate that is not positive.

    Example:
      >>> [candidate.hyper["level"] for candidate in grid("flooding", [0.1])]
      [0.0333, 0.1, 0.3]
      >>> len(grid("backstitch", [0.1, 0.2], {"alpha": [0.3], "interval": [1, 4]}))
      4
    """
    row = find_method(method)
    values = dict(values or {})
    defaults = method_hyper(row, dict.fromkeys(values))
    axes: dict[str, list[Any]] = {}
    for name in defaults:
        default = row.hyperparameters[name]
        if name in values:
            # A float where the default is one: `level=1` must be traced as `level=1.0` is.
            axes[name] = [float(v) if is_traced(default) and type(v) is int else v for v in values[name]]
        elif is_traced(default):
            axes[name] = [float(f"{default * factor:.3g}") for factor in (1 / 3, 1, 3)] if default else [default]
        else:
            axes[name] = [default]
    axes["learning_rate"] = [float(rate) for rate in learning_rates]
    for name, choices in axes.items():
        if not choices:
            raise ValueError(f"compare: {method}: `{name}` needs at least one value to try, got none")
        if len(set(choices)) < len(choices):
            raise ValueError(f"compare: {method}: `{name}` is to be tried twice at the same value, got {choices}")
    for rate in axes["learning_rate"]:
        _checks.check_number("compare", "learning_rates", rate, low=0.0, exclusive=True)
    names = [name for name in axes if name != "learning_rate"]
    products = itertools.product(axes["learning_rate"], *(axes[name] for name in names))
    return [Candidate(rate, dict(zip(names, chosen, strict=True))) for rate, *chosen in products]


@dataclasses.dataclass(frozen=True, eq=False)
class Entrant:
    """A method made ready: its candidates in groups that share one program, all checked.

    Args:
      name: of the method.
      candidates: in order.
      groups: indices of candidates with equal integer hyperparameters and number of steps, each with its run.
      num_steps: per candidate: the budget over the cost of a step.
    """

    name: str
    candidates: list[Candidate]
    groups: list[tuple[list[int], Run]]
    num_steps: list[int]

    @property
    def num_epochs(self) -> int:
        """Calls of `on_epoch` that `compete` will make."""
        return sum(math.ceil(run.num_steps / run.program.steps_per_epoch) for _, run in self.groups)


def enter(
    settings: Settings, method: str, candidates: Sequence[Candidate], budget: Scalar, *, data: Dataset | None = None
) -> Entrant:
    """Checks a method with all its candidates, before any long work.

    Args:
      settings: all that the methods share.
      method: a row of the table, or module:attribute.
      candidates: see `grid`.
      budget: gradient evaluations that each run may spend.
      data: for the shapes, where it is loaded already.

    Returns:
      What `compete` takes.

    Raises:
      TypeError, ValueError: for anything that the method or the settings refuse.

    Example:
      >>> entrant = enter(Settings(data="wine", widths=(4,)), "sam", grid("sam", [0.1]), budget=60)
      >>> len(entrant.groups), entrant.num_steps                   # two gradients a step
      (1, [30, 30, 30])
    """
    row = find_method(method)
    costs = [float(row.gradients_per_step(**candidate.hyper)) for candidate in candidates]
    num_steps = [math.floor(budget / cost + 1e-9) for cost in costs]
    if min(num_steps) < 1:
        raise ValueError(f"compare: a budget of {budget:g} gradients allows {method} no step; train longer")
    groups: dict[tuple, list[int]] = {}
    for k, candidate in enumerate(candidates):
        static = tuple((name, value) for name, value in candidate.hyper.items() if not is_traced(value))
        groups.setdefault((static, num_steps[k]), []).append(k)
    made = []
    for members in groups.values():
        first = candidates[members[0]]
        own = dataclasses.replace(
            settings, method=method, hyper=as_pairs(first.hyper), learning_rate=first.learning_rate
        )
        run = Run(own, limit=num_steps[members[0]], given=data)
        for k in members[1:]:
            run.check(candidates[k].learning_rate, candidates[k].hyper)
        made.append((members, run))
    return Entrant(method, list(candidates), made, num_steps)


def stack_data(settings: Settings, seeds: Sequence[int], dtype: Any) -> Arrays:
    """The data of all seeds, with a leading axis for the seed; each seed has its own split, unless `split_seed` is set.

    Args:
      settings: whose data.
      seeds: one or more.
      dtype: of the features.

    Returns:
      Arrays with leading axis `len(seeds)`.

    Example:
      >>> stack_data(Settings(data="wine"), [0, 1], jnp.float32).x_train.shape
      (2, 106, 13)
    """
    every = [to_arrays(load_data(dataclasses.replace(settings, seed=seed)), dtype) for seed in seeds]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *every)


def compete(
    entrant: Entrant, arrays: Arrays, seeds: Sequence[int], *, on_epoch: Callable[[], Any] | None = None
) -> dict[str, Any]:
    """Trains all candidates of a method on all seeds, one vmapped program per group, and judges the chosen one.

    The candidate with the fewest diverged seeds and the best mean validation value at the best epochs is chosen; the
    test data are looked at for that one alone.

    Args:
      entrant: from `enter`.
      arrays: from `stack_data`, in the order of the seeds.
      seeds: the keys of the runs.
      on_epoch: called after each epoch of each group.

    Returns:
      A record of plain numbers: `name`, `title`, `candidates` (learning rate, hyper, steps, mean validation loss and
      score, diverged seeds), `chosen` (its index), `steps`, `gradients`, `flooded_fraction`, `diverged`, `seeds`: a
      list of `{"seed", "best": {...}, "last": {...}, "diverged"}` with test metrics and the epoch, and `curves`, mean
      validation loss and score over the seeds against gradients spent.

    Example:
      >>> settings = Settings(data="wine", widths=(4,))
      >>> entrant = enter(settings, "gd", grid("gd", [0.1, 0.3]), budget=6)
      >>> record = compete(entrant, stack_data(settings, [0, 1], jnp.float32), [0, 1])
      >>> len(record["candidates"]), len(record["seeds"]), record["gradients"]
      (2, 2, 6.0)
    """
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    table: list[dict[str, Any]] = [{} for _ in entrant.candidates]
    kept: dict[int, tuple[Run, Any, list]] = {}
    for members, run in entrant.groups:
        knobs = [
            make_knobs(run.dtype, entrant.candidates[k].learning_rate, entrant.candidates[k].hyper, run.num_steps)
            for k in members
        ]
        state, history = _train(run, keys, arrays, jax.tree.map(lambda *x: jnp.stack(x), *knobs), on_epoch)
        for position, k in enumerate(members):
            own = jax.tree.map(lambda leaf: leaf[position], state)
            best = {"loss": np.asarray(own.best.loss, float), "score": np.asarray(own.best.score, float)}
            diverged = ~np.asarray(own.finite)
            candidate = entrant.candidates[k]
            table[k] = {
                "learning_rate": candidate.learning_rate,
                "hyper": dict(candidate.hyper),
                "steps": entrant.num_steps[k],
                "validation_loss": _finite(best["loss"].mean()),
                "validation_score": _finite(best["score"].mean()),
                "diverged": int(diverged.sum()),
            }
            kept[k] = (run, own, [{name: value[position] for name, value in epoch.items()} for epoch in history])
    chosen = min(range(len(table)), key=lambda k: _rank(table[k], entrant.groups[0][1].settings.select))
    run, state, history = kept[chosen]
    gradients = run.gradients(entrant.num_steps[chosen])
    return {
        "name": entrant.name,
        "title": run.method.title,
        "candidates": table,
        "chosen": chosen,
        "learning_rate": table[chosen]["learning_rate"],
        "hyper": table[chosen]["hyper"],
        "steps": entrant.num_steps[chosen],
        "gradients": gradients,
        "flooded_fraction": _flooded(state.optimizer_state, len(seeds)),
        "diverged": table[chosen]["diverged"],
        "seeds": _test(run, state, arrays, seeds),
        "curves": {
            "epoch": list(range(1, len(history) + 1)),
            "gradients": [run.gradients(int(epoch["steps"].max())) for epoch in history],
            **{
                name: [_finite(epoch[name].mean()) for epoch in history]
                for name in ("train_loss", "validation_loss", "validation_score")
            },
        },
    }


def _train(
    run: Run, keys: jax.Array, arrays: Arrays, knobs: Knobs, on_epoch: Callable[[], Any] | None
) -> tuple[TrainState, list[dict[str, np.ndarray]]]:
    """States with leading axes (candidate, seed), and one record of such arrays per epoch."""
    program = run.program

    # Seeds inside, candidates outside: the data have an axis for the seed alone and are not copied per candidate.
    init = jax.jit(jax.vmap(jax.vmap(program.init, in_axes=(0, None)), in_axes=(None, 0)))
    step = jax.vmap(jax.vmap(program.epoch, in_axes=(0, 0, None, 0)), in_axes=(0, None, 0, None))
    step = jax.jit(step, donate_argnums=0)
    order = jax.vmap(program.order, in_axes=(0, None))
    state = jax.tree.map(jnp.copy, init(keys, knobs))  # the keys in it are the caller's, and the steps use it up
    history = []
    for k in range(math.ceil(run.num_steps / program.steps_per_epoch)):
        state, record = step(state, arrays, knobs, order(keys, jnp.int32(k)))
        history.append({name: np.asarray(value) for name, value in record.items()})
        if on_epoch is not None:
            on_epoch()
    return state, history


def _test(run: Run, state: TrainState, arrays: Arrays, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Test metrics of one candidate, a record per seed."""
    evaluate = jax.jit(jax.vmap(run.program.evaluate))
    best, last = (
        [np.asarray(value, float) for value in evaluate(params, stats, arrays.x_test, arrays.y_test)]
        for params, stats in ((state.best.params, state.best.stats), (state.params, state.stats))
    )
    diverged, epochs = ~np.asarray(state.finite), np.asarray(state.best.epoch)
    records = []
    for k, seed in enumerate(seeds):
        # Each seed has its own split, and a regression's unit with it.
        data = (
            run.data if run.data.task == "classification" else load_data(dataclasses.replace(run.settings, seed=seed))
        )
        record = {"seed": int(seed), "diverged": bool(diverged[k])}
        for name, values, epoch in (("best", best, epochs[k]), ("last", last, np.asarray(state.epoch)[k])):
            numbers = metrics.in_own_units(data, values[0][k], values[1][k])
            known = not (name == "best" and epochs[k] == 0)
            record[name] = {"epoch": int(epoch)} | {n: _finite(v) if known else None for n, v in numbers.items()}
        records.append(record)
    return records


def _flooded(optimizer_state: Any, num_seeds: int) -> list[float] | None:
    one = [jax.tree.map(lambda leaf: leaf[k], optimizer_state) for k in range(num_seeds)]
    fractions = [flooded(state) for state in one]
    return None if fractions[0] is None else fractions


def _rank(record: Mapping[str, Any], select: str) -> tuple[int, float]:
    value = record[f"validation_{select}"]
    if value is None:
        return record["diverged"], math.inf
    return record["diverged"], value if select == "loss" else -value


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def summarize(values: Sequence[float | None], baseline: Sequence[float | None] | None = None) -> dict[str, Any]:
    """Mean and standard error over seeds and, against a baseline, the paired difference with a 95 % t interval.

    Args:
      values: one per seed; `None` where a run diverged.
      baseline: the baseline's values on the same seeds, or `None` for the baseline itself.

    Returns:
      `mean`, `standard_error`, `n`; `difference` is `None` or holds `mean`, `standard_error`, `low`, `high`, `n`, of
      the seeds on which both are known. What too few seeds do not determine is `None`.

    Example:
      >>> summary = summarize([0.25, 0.5, 0.75], [0.5, 0.5, 0.5])
      >>> summary["mean"], round(summary["standard_error"], 4), summary["difference"]["mean"]
      (0.5, 0.1443, 0.0)
    """
    from scipy import stats

    def moments(numbers: list[float]) -> dict[str, Any]:
        n = len(numbers)
        mean = float(np.mean(numbers)) if n else None
        error = float(np.std(numbers, ddof=1) / math.sqrt(n)) if n > 1 else None
        return {"mean": mean, "standard_error": error, "n": n}

    summary = moments([v for v in values if v is not None])
    if baseline is None:
        return summary | {"difference": None}
    pairs = [v - b for v, b in zip(values, baseline, strict=True) if v is not None and b is not None]
    difference = moments(pairs)
    low = high = None
    if difference["standard_error"] is not None:
        half = float(stats.t.ppf(0.975, len(pairs) - 1)) * difference["standard_error"]
        low, high = difference["mean"] - half, difference["mean"] + half
    return summary | {"difference": difference | {"low": low, "high": high}}
