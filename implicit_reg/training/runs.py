"""One training run on the host: settings to program, epochs one after the other, a history, results."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from implicit_reg import _checks, transforms
from implicit_reg.methods import METHODS, Method
from implicit_reg.problems import Dataset, build_model, load_attribute, load_dataset
from implicit_reg.problems.data import DATASETS
from implicit_reg.problems.problem import working_dtype
from implicit_reg.training import metrics
from implicit_reg.training.optimizers import everyday_base, schedule_shape
from implicit_reg.training.program import Arrays, Knobs, Program, TrainState, full_batch_or, to_arrays, to_floats
from implicit_reg.training.settings import Settings, parse_pairs


def find_method(name: str) -> Method:
    """A row of the table of methods, or a user's own.

    Args:
      name: a key of `METHODS`, or "module:attribute": a `Method`, or a function `(base, learning_rate,
        **hyperparameters) -> transformation` whose keywords have defaults. A function is billed one gradient per step,
        unless it has an attribute `gradients_per_step` (a number, or a function of the hyperparameters).

    Returns:
      The row.

    Raises:
      ValueError: for an unknown name (the message lists the known ones and the nearest).
      TypeError: where "module:attribute" is something else.

    Example:
      >>> find_method("sam").hyperparameters
      {'radius': 0.05}
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise _checks.unknown_name("train", "method", name, [*METHODS, "module:attribute"])
    value = load_attribute("train", "method", name)
    if isinstance(value, Method):
        return value
    _checks.check_callable("train", "method", value, "(base, learning_rate, **hyperparameters) -> transformation")
    parameters = list(inspect.signature(value).parameters.values())[2:]
    missing = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if missing:
        raise TypeError(f"train: method {name}: the hyperparameters {', '.join(missing)} need defaults")
    cost = getattr(value, "gradients_per_step", 1.0)
    return Method(
        name=name,
        title=name,
        build=value,
        hyperparameters={p.name: p.default for p in parameters if p.default is not p.empty},
        gradients_per_step=cost if callable(cost) else lambda **hyper: float(cost),
        claim="",
        modified_loss="",
        source="",
        formula=lambda *arguments, **hyper: None,
    )


def method_hyper(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's hyperparameters: defaults, overruled by those given.

    Args:
      method: a row of the table.
      given: names to values.

    Returns:
      All names to values.

    Raises:
      ValueError: for a name that the method does not have.

    Example:
      >>> method_hyper(find_method("backstitch"), {"alpha": 1.0})
      {'alpha': 1.0, 'interval': 1, 'offset': 0}
    """
    for name in given:
        if name not in method.hyperparameters:
            known = list(method.hyperparameters) or ["none at all"]
            raise _checks.unknown_name(f"train: method {method.name}", "hyperparameter", name, known)
    return dict(method.hyperparameters) | dict(given)


def load_data(settings: Settings) -> Dataset:
    """The data set that the settings name, split, scaled and with label noise.

    Args:
      settings: `data`, `scaling`, `label_noise` and the seeds are read.

    Returns:
      A `Dataset`; a user's own, from module:attribute, is taken as it is.

    Raises:
      ValueError: as `load_dataset`, and for scaling or noise asked of a user's own data.
      TypeError: where module:attribute is not a `Dataset`.

    Example:
      >>> load_data(Settings(data="wine")).num_classes
      3
    """
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    if ":" not in settings.data:
        if settings.data not in DATASETS:
            raise _checks.unknown_name("train", "data set", settings.data, [*DATASETS, "module:attribute"])
        return load_dataset(settings.data, seed=seed, scaling=settings.scaling, label_noise=settings.label_noise)
    if settings.label_noise or settings.scaling not in ("standard", "none"):
        raise ValueError("train: a data set of your own is taken as it is: leave scaling and label noise at defaults")
    value = load_attribute("train", "data set", settings.data)
    value = value if isinstance(value, Dataset) or not callable(value) else value()
    if not isinstance(value, Dataset):
        raise TypeError(
            f"train: {settings.data} must be an implicit_reg.problems.Dataset, or a function that returns one; got "
            f"{type(value).__name__}"
        )
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Settings made concrete: everything is checked here, before any long work.

    Args:
      settings: what to train.

    Raises:
      TypeError, ValueError: for any setting that is wrong, with the known names and the cure.

    Example:
      >>> run = Run(Settings(data="wine", widths=(4,), epochs=2))
      >>> run.program.steps_per_epoch, run.gradients(6)
      (3, 6.0)
    """

    settings: Settings

    def __post_init__(self) -> None:
        s = self.settings
        _checks.check_seed("train", "seed", s.seed)
        if s.split_seed is not None:
            _checks.check_seed("train", "split_seed", s.split_seed)
        _checks.check_integer("train", "epochs", s.epochs)
        _checks.check_number("train", "learning_rate", s.learning_rate, low=0.0, exclusive=True)
        _checks.check_number("train", "warmup", s.warmup, low=0.0)
        for name in ("program", "arrays", "knobs"):
            getattr(self, name)
        # With concrete numbers, so that the checks of the method and of Optax can read them.
        key = jax.random.key(0)
        base = self._base(key)
        tx = self.method.build(base, s.learning_rate, **self.hyper)
        _checks.check_transformation("train", "method", tx)
        jax.eval_shape(self.program.init, key, self.knobs)

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
        return load_data(self.settings)

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
    def num_steps(self) -> int:
        """Steps in the whole run."""
        return self.settings.epochs * self.program.steps_per_epoch

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
        batch = full_batch_or(s.batch_size, len(data.x_train))
        steps = len(data.x_train) // batch
        shape = schedule_shape(s.schedule, s.epochs * steps, round(s.warmup * steps))
        static = {name: value for name, value in self.hyper.items() if not is_traced(value)}
        return Program(
            build_model=lambda rngs: build(rngs=rngs),
            build_method=lambda learning_rate, hyper, key: self.method.build(
                self._base(key), learning_rate, **{**self.hyper, **static, **hyper}
            ),
            shape=shape,
            task=data.task,
            num_examples=len(data.x_train),
            batch_size=batch,
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

        @jax.jit
        def epoch(state, arrays, knobs):
            return self.program.epoch(state, arrays, knobs, self.program.order(state.key, state.epoch))

        return lambda state: epoch(state, self.arrays, self.knobs)

    @cached_property
    def evaluate(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """Loss and score at test time, jitted."""
        return jax.jit(self.program.evaluate)

    def gradients(self, num_steps: int) -> float:
        """Gradient evaluations that so many steps cost."""
        return float(num_steps * self.method.gradients_per_step(**self.hyper))


def is_traced(value: Any) -> bool:
    """Whether a hyperparameter is a floating number, which may be traced; integers and `None` decide the program.

    Args:
      value: a hyperparameter.

    Returns:
      Whether it is a float.

    Example:
      >>> is_traced(0.3), is_traced(2), is_traced(None)
      (True, False, False)
    """
    return isinstance(value, float)


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
      on_epoch: called after each epoch with the state and the history so far; a true answer stops the run.

    Returns:
      The state, and one record per epoch: `epoch`, `steps`, `gradients`, `train_loss`, `validation_loss`,
      `validation_score`, `finite`, and `flooded_fraction` (`None` without flooding), counted from the start.

    Example:
      >>> state, history = fit(Run(Settings(data="wine", widths=(4,), epochs=2)))
      >>> [record["epoch"] for record in history], bool(history[1]["train_loss"] < history[0]["train_loss"])
      ([1, 2], True)
    """
    state = run.init() if state is None else state
    history = list(history or [])
    while int(state.epoch) < run.settings.epochs and bool(state.finite):
        state, record = run.step_epoch(state)
        numbers = to_floats(record)
        history.append(
            {
                "epoch": int(state.epoch),
                "steps": numbers["steps"],
                "gradients": run.gradients(numbers["steps"]),
                "train_loss": numbers["train_loss"],
                "validation_loss": numbers["validation_loss"],
                "validation_score": numbers["validation_score"],
                "flooded_fraction": flooded(state.optimizer_state),
                "finite": numbers["finite"],
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
            record[part] = metrics.in_own_units(run.data, float(loss), float(value))
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
