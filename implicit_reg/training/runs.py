"""One training run on the host: settings to program, epochs one after the other, a history, results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from implicit_reg import _checks, transforms
from implicit_reg._types import Scalar
from implicit_reg.methods import Method
from implicit_reg.problems import Dataset, build_model
from implicit_reg.problems.problem import working_dtype
from implicit_reg.training import metrics
from implicit_reg.training.lookup import find_method, is_traced, load_data, method_hyper
from implicit_reg.training.optimizers import everyday_base, schedule_shape
from implicit_reg.training.program import Arrays, Knobs, Program, TrainState, finite_or_none, full_batch_or, to_arrays
from implicit_reg.training.settings import Settings, parse_pairs


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Settings made concrete: everything is checked here, before any long work.

    Args:
      settings: what to train.
      limit: take so many steps instead of `epochs` full ones; the last epoch may then be incomplete.
      given: the data set, where it is loaded already; else the settings say which.

    Raises:
      TypeError, ValueError: for any setting that is wrong, with the known names and the cure.

    Example:
      >>> run = Run(Settings(data="wine", widths=(4,), epochs=2))
      >>> run.program.steps_per_epoch, run.gradients(6)
      (3, 6.0)
    """

    settings: Settings
    limit: int | None = None
    given: Dataset | None = None

    def __post_init__(self) -> None:
        s = self.settings
        _checks.check_seed("train", "seed", s.seed)
        if s.split_seed is not None:
            _checks.check_seed("train", "split_seed", s.split_seed)
        _checks.check_integer("train", "epochs", s.epochs)
        _checks.check_number("train", "warmup", s.warmup, low=0.0)
        if self.limit is not None:
            _checks.check_integer("train", "limit", self.limit)
        for name in ("program", "arrays", "knobs"):
            getattr(self, name)
        self.check(s.learning_rate, self.hyper)
        if self.program.shape is not None:
            self._check_schedule()
        jax.eval_shape(self.program.init, jax.random.key(0), self.knobs)

    def check(self, learning_rate: Scalar, hyper: Mapping[str, Any]) -> None:
        """Builds the method with concrete numbers, so that its checks and Optax's can read them."""
        _checks.check_number("train", "learning_rate", learning_rate, low=0.0, exclusive=True)
        tx = self.method.build(self._base(jax.random.key(0)), learning_rate, **hyper)
        _checks.check_transformation("train", "method", tx)

    def _check_schedule(self) -> None:
        """Some of Optax's optimizers take a number alone, and say so late and in many ways."""
        base = self._base(jax.random.key(0))

        def one_step(x):
            tx = optax.with_extra_args_support(base(lambda step: self.knobs.learning_rate * self.program.shape(step)))
            loss_fn = lambda x: jnp.sum(x**2)  # noqa: E731
            return tx.update(x, tx.init(x), x, value=loss_fn(x), grad=x, value_fn=loss_fn)[0]

        try:
            jax.eval_shape(one_step, jnp.ones((2, 2), self.dtype))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"train: optimizer {self.settings.optimizer} takes no learning-rate schedule; use schedule constant "
                f"and warmup 0 ({error})"
            ) from error

    @cached_property
    def method(self) -> Method:
        """The row of the table of methods."""
        return find_method(self.settings.method)

    @cached_property
    def hyper(self) -> dict[str, Any]:
        """The method's hyperparameters, concrete."""
        return method_hyper(self.method, parse_pairs("train", self.settings.hyper))

    @cached_property
    def data(self) -> Dataset:
        """The data set."""
        return load_data(self.settings) if self.given is None else self.given

    @cached_property
    def dtype(self) -> Any:
        """Of the parameters."""
        return working_dtype("train", self.settings.dtype)

    @cached_property
    def arrays(self) -> Arrays:
        """The data set on the device."""
        return to_arrays(self.data, self.dtype)

    @cached_property
    def knobs(self) -> Knobs:
        """The numbers that are traced: learning rate, floating hyperparameters, number of steps."""
        return make_knobs(self.dtype, self.settings.learning_rate, self.hyper, self.num_steps)

    @cached_property
    def batch_size(self) -> int:
        """Examples per step, at least 1."""
        return full_batch_or(self.settings.batch_size, len(self.data.x_train))

    @cached_property
    def num_steps(self) -> int:
        """Steps in the whole run."""
        return self.settings.epochs * (len(self.data.x_train) // self.batch_size) if self.limit is None else self.limit

    def _base(self, key: jax.Array) -> Callable[[Any], optax.GradientTransformation]:
        s = self.settings
        return everyday_base(
            s.optimizer,
            parse_pairs("train", s.optimizer_args),
            weight_decay=s.weight_decay,
            clip=s.clip,
            noise=s.noise,
            noise_decay=s.noise_decay,
            key=key,
        )

    @cached_property
    def program(self) -> Program:
        """The pure functions."""
        s, data = self.settings, self.data
        build = partial(
            build_model,
            s.model,
            data,
            widths=s.widths,
            activation=s.activation,
            dropout=s.dropout,
            batch_norm=s.batch_norm,
            dtype=self.dtype,
        )
        steps_per_epoch = len(data.x_train) // self.batch_size
        warmup_steps = round(s.warmup * steps_per_epoch)
        shape = schedule_shape(s.schedule, self.num_steps, warmup_steps)
        return Program(
            build_model=lambda rngs: build(rngs=rngs),
            build_method=lambda learning_rate, hyper, key: self.method.build(
                self._base(key), learning_rate, **{**self.hyper, **hyper}
            ),
            shape=None if s.schedule == "constant" and not warmup_steps else shape,
            task=data.task,
            num_examples=len(data.x_train),
            batch_size=self.batch_size,
            shuffle=s.shuffle,
            select=s.select,
        )

    @cached_property
    def init(self) -> Callable[[], TrainState]:
        """The state before the first epoch, by a jitted function."""
        program, knobs = self.program, self.knobs
        return lambda: jax.jit(program.init)(jax.random.key(self.settings.seed), knobs)

    @cached_property
    def step_epoch(self) -> Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]:
        """One epoch, jitted; its data and numbers are arguments and not constants of the program."""

        epoch = jax.jit(self.program.epoch)
        return lambda state: epoch(state, self.arrays, self.knobs, self.program.order(state.key, state.epoch))

    @cached_property
    def advance(self) -> Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]:
        """`step_epoch` that gives the memory of the state to the next one: what goes in is gone afterwards."""
        epoch = jax.jit(self.program.epoch, donate_argnums=0)
        return lambda state: epoch(state, self.arrays, self.knobs, self.program.order(state.key, state.epoch))

    @cached_property
    def evaluate(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """Loss and score at test time, jitted."""
        return jax.jit(self.program.evaluate)

    def gradients(self, num_steps: int) -> float:
        """Gradient evaluations that so many steps cost."""
        return float(num_steps * self.method.gradients_per_step(**self.hyper))


def make_knobs(dtype: Any, learning_rate: float, hyper: Mapping[str, Any], num_steps: int) -> Knobs:
    """The traced numbers, in the precision of the parameters, at least float32.

    Args:
      dtype: of the parameters.
      learning_rate: the peak.
      hyper: all hyperparameters; the floating ones are kept.
      num_steps: to take.

    Returns:
      A `Knobs` of arrays.

    Example:
      >>> make_knobs(jnp.float32, 0.5, {"alpha": 0.25, "interval": 2}, 7).hyper
      {'alpha': Array(0.25, dtype=float32)}
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    floats = {name: jnp.asarray(value, wide) for name, value in hyper.items() if is_traced(value)}
    return Knobs(jnp.asarray(learning_rate, wide), floats, jnp.asarray(num_steps, jnp.int32))


History = list[dict[str, Any]]


def fit(
    run: Run,
    *,
    state: TrainState | None = None,
    history: History | None = None,
    on_epoch: Callable[[TrainState, History], bool | None] | None = None,
) -> tuple[TrainState, History]:
    """Trains to the last epoch, to divergence, or until `on_epoch` says so.

    Args:
      run: what to train.
      state, history: where an earlier call stopped; `None` is the beginning.
      on_epoch: called after each epoch with the state and the history so far; a true answer stops the run. The next
        epoch reuses the memory of that state: copy what is to be kept (`jax.tree.map(jnp.copy, state)`).

    Returns:
      The state, and one record per epoch: `epoch`, `steps`, `gradients`, `train_loss`, `validation_loss`,
      `validation_score`, `finite`, and `flooded_fraction` (`None` without flooding), counted from the start. A number
      that is not finite is `None`, so that the history is JSON.

    Example:
      >>> state, history = fit(Run(Settings(data="wine", widths=(4,), epochs=2)))
      >>> [record["epoch"] for record in history], bool(history[1]["train_loss"] < history[0]["train_loss"])
      ([1, 2], True)
    """
    # A copy, for the epochs reuse the memory of what they get: the caller's state is to live on.
    state = jax.tree.map(jnp.copy, run.init() if state is None else state)
    history = list(history or [])
    while int(state.epoch) < run.settings.epochs and bool(state.finite):
        state, record = run.advance(state)
        numbers = finite_or_none(record)
        history.append(
            {
                "epoch": int(state.epoch),
                "gradients": run.gradients(numbers["steps"]),
                "flooded_fraction": flooded(state.optimizer_state),
                **numbers,
            }
        )
        if on_epoch is not None and on_epoch(state, history):
            break
    return state, history


def flooded(optimizer_state: Any) -> float | None:
    """The share of steps that ascended, or `None` where nothing floods.

    Args:
      optimizer_state: of the whole chain.

    Returns:
      A number in [0, 1], or `None`.

    Example:
      >>> flooded(optax.sgd(0.1).init(jnp.zeros(1))) is None
      True
    """
    is_flooding = lambda node: isinstance(node, transforms.FloodingState)  # noqa: E731
    if not any(is_flooding(node) for node in jax.tree.leaves(optimizer_state, is_leaf=is_flooding)):
        return None
    return float(transforms.flooded_fraction(optimizer_state))


def results(run: Run, state: TrainState) -> dict[str, Any]:
    """What a finished or stopped run is worth: scores and losses of all parts, at the last and at the best epoch.

    Args:
      run: what was trained.
      state: where it ended.

    Returns:
      A dictionary of plain numbers: `last` and `best`, each with `epoch` and, for `train`, `validation` and `test`,
      `accuracy` and `cross_entropy` (or `r2` and `mean_squared_error`, the latter in the data's own units);
      `steps`, `gradients`, `flooded_fraction`, `diverged`, `num_params`, `note`. `best` is `None` before the first
      epoch with a finite validation loss.

    Example:
      >>> run = Run(Settings(data="wine", widths=(4,), epochs=2))
      >>> numbers = results(run, fit(run)[0])
      >>> numbers["steps"], numbers["last"]["epoch"], sorted(numbers["last"]["test"])
      (6, 2, ['accuracy', 'cross_entropy'])
    """
    a = run.arrays

    def at(epoch, params, stats):
        record: dict[str, Any] = {"epoch": int(epoch)}
        for part in ("train", "validation", "test"):
            loss, value = run.evaluate(params, stats, getattr(a, f"x_{part}"), getattr(a, f"y_{part}"))
            record[part] = finite_or_none(metrics.in_own_units(run.data, float(loss), float(value)))
        return record

    best = state.best
    steps = int(state.step)
    unused = run.program.num_examples - run.program.steps_per_epoch * run.program.batch_size
    return {
        "task": run.data.task,
        "last": at(state.epoch, state.params, state.stats),
        "best": at(best.epoch, best.params, best.stats) if math.isfinite(float(best.loss)) else None,
        "steps": steps,
        "gradients": run.gradients(steps),
        "flooded_fraction": flooded(state.optimizer_state),
        "diverged": not bool(state.finite),
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "examples": {part: len(getattr(a, f"x_{part}")) for part in ("train", "validation", "test")},
        "left_out_per_epoch": unused,
        "note": run.data.note,
    }
