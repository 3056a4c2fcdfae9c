"""The functional core: pure functions of arrays, so that one run is jitted and many are vmapped.

Everything that a run draws comes from its one key: fold 0 gives the parameters, 1 the batch order, 2 the dropout masks,
3 the gradient noise; batch order and masks are folded again with the epoch and the step. Nothing depends on how often a
run was stopped, so a resumed run has the bits of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, PyTree

from implicit_reg import _checks, transforms
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg.problems import Dataset
from implicit_reg.training import metrics


class Arrays(NamedTuple):
    """A data set on the device: features and targets of the three parts."""

    x_train: Array
    y_train: Array
    x_validation: Array
    y_validation: Array
    x_test: Array
    y_test: Array


class Knobs(NamedTuple):
    """What may be traced and vmapped: the learning rate, the method's numbers, and the number of steps to take."""

    learning_rate: Any
    hyper: dict[str, Any]
    num_steps: Any


class Best(NamedTuple):
    """The parameters at the best validation epoch so far; epoch 0 is the start."""

    epoch: Array
    loss: Array
    score: Array
    params: PyTree
    stats: PyTree


class TrainState(NamedTuple):
    """Everything that the next epoch depends on."""

    key: Array
    epoch: Array
    step: Array
    finite: Array
    params: PyTree
    stats: PyTree
    optimizer_state: PyTree
    best: Best


def to_arrays(data: Dataset, dtype: Any) -> Arrays:
    """The six arrays of a data set, features (and floating targets) in `dtype`.

    Args:
      data: a data set.
      dtype: a floating dtype.

    Returns:
      JAX arrays.

    Example:
      >>> from implicit_reg.problems import load_dataset
      >>> to_arrays(load_dataset("wine"), jnp.bfloat16).x_train.dtype
      dtype(bfloat16)
    """
    kinds = [dtype, jnp.int32 if data.task == "classification" else jnp.promote_types(dtype, jnp.float32)]
    return Arrays(*(jnp.asarray(getattr(data, name), kinds[name[0] == "y"]) for name in Arrays._fields))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A training run as pure functions: `init`, `epoch`, `evaluate`.

    Args:
      build_model: `rngs -> flax.nnx module`, called inside jit.
      build_method: `(learning rate or schedule, hyper, noise key) -> transformation`, called inside jit.
      shape: schedule with peak 1, by the step; `None` is a constant rate, which optimizers get as a number, for some
        of Optax's take no schedule.
      task: "classification" or "regression".
      num_examples: in the training part.
      batch_size: examples per step.
      shuffle: whether the minibatches are drawn anew each epoch.
      select: "loss" or "score".

    Example:
      >>> from implicit_reg.problems import build_model, load_dataset
      >>> wine = load_dataset("wine")
      >>> program = Program(
      ...     build_model=lambda rngs: build_model("mlp", wine, widths=[4], rngs=rngs),
      ...     build_method=lambda learning_rate, hyper, key: optax.sgd(learning_rate),
      ...     shape=None, task="classification", num_examples=106, batch_size=53)
      >>> arrays, knobs = to_arrays(wine, jnp.float32), Knobs(jnp.float32(0.1), {}, jnp.int32(2))
      >>> state = program.init(jax.random.key(0), knobs)
      >>> state, record = jax.jit(program.epoch)(state, arrays, knobs, program.order(state.key, state.epoch))
      >>> int(state.step), sorted(record)
      (2, ['finite', 'steps', 'train_loss', 'validation_loss', 'validation_score'])
    """

    build_model: Callable[[nnx.Rngs], nnx.Module]
    build_method: Callable[[Any, Mapping[str, Any], Array], optax.GradientTransformation]
    shape: optax.Schedule | None
    task: str
    num_examples: int
    batch_size: int
    shuffle: bool = True
    select: str = "loss"

    def __post_init__(self) -> None:
        if self.select not in ("loss", "score"):
            raise _checks.unknown_name("train", "select", self.select, ("loss", "score"))
        model = nnx.eval_shape(lambda: self.build_model(nnx.Rngs(0)))
        training = nnx.split(model, nnx.Param, nnx.BatchStat)[0]
        model.eval()
        object.__setattr__(self, "_graphs", (training, nnx.split(model, nnx.Param, nnx.BatchStat)[0]))

    @property
    def steps_per_epoch(self) -> int:
        """Complete minibatches in the training part."""
        return self.num_examples // self.batch_size

    def transformation(self, key: Array, knobs: Knobs) -> optax.GradientTransformationExtraArgs:
        """The method on its base optimizer, for numbers that may be traced."""
        rate = knobs.learning_rate
        schedule = rate if self.shape is None else lambda step: rate * self.shape(step)
        tx = self.build_method(schedule, knobs.hyper, jax.random.fold_in(key, 3))
        return optax.with_extra_args_support(tx)

    def init(self, key: Array, knobs: Knobs) -> TrainState:
        """The state before the first epoch, a pure function of the key."""
        model = self.build_model(nnx.Rngs(jax.random.fold_in(key, 0)))
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        params, stats = nnx.as_pure(params), nnx.as_pure(stats)
        wide = jnp.promote_types(jax.tree.leaves(params)[0].dtype, jnp.float32)
        zero = jnp.zeros((), jnp.int32)
        best = Best(zero, jnp.asarray(jnp.inf, wide), jnp.asarray(-jnp.inf, wide), params, stats)
        optimizer_state = self.transformation(key, knobs).init(params)
        return TrainState(key, zero, zero, jnp.asarray(True), params, stats, optimizer_state, best)

    def order(self, key: Array, epoch: Array | int) -> Array:
        """The examples of each step of an epoch, (steps, batch_size): a permutation without its incomplete end."""
        return _order(key, jnp.asarray(epoch, jnp.int32), self.num_examples, self.batch_size, self.shuffle)

    def outputs(self, params: PyTree, stats: PyTree, x: Array) -> Array:
        """The model at test time: running averages, no dropout."""
        return nnx.merge(self._graphs[1], params, stats)(x)

    def evaluate(self, params: PyTree, stats: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
        """Mean loss and score at test time."""
        outputs = self.outputs(params, stats, x)
        return metrics.mean_loss(self.task, outputs, y), metrics.score(self.task, outputs, y)

    def loss_at_test_time(self, stats: PyTree) -> Callable[[PyTree, Array, Array], Array]:
        """`loss(params, x, y)` with these running averages and no dropout: what its curvature is asked of."""
        return lambda params, x, y: metrics.mean_loss(self.task, self.outputs(params, stats, x), y)

    def epoch(self, state: TrainState, data: Arrays, knobs: Knobs, order: Array) -> tuple[TrainState, dict[str, Array]]:
        """One pass over `order`; steps at and beyond `knobs.num_steps` change nothing.

        Returns the new state and a record: mean training loss over the steps taken (nan where none was), validation
        loss and score after them, the number of steps taken so far, and whether every loss so far was finite.
        """
        tx = self.transformation(state.key, knobs)
        mask_key = jax.random.fold_in(state.key, 2)

        def loss_fn(model, x, y, key):
            return metrics.mean_loss(self.task, model(x, rngs=key), y)

        def step(carry, rows):
            count, finite, params, stats, optimizer_state = carry
            model = nnx.merge(self._graphs[0], params, stats)
            batch = (data.x_train[rows], data.y_train[rows], jax.random.fold_in(mask_key, count))
            split = transforms.nnx_value_fn(model, loss_fn, *batch)
            (value, new_stats), grads = jax.value_and_grad(split.value_and_rest, has_aux=True)(params)
            updates, new_optimizer_state = tx.update(
                grads, optimizer_state, params, value=value, grad=grads, value_fn=split.value_fn
            )
            new = (
                count + 1,
                finite & jnp.isfinite(value),
                optax.apply_updates(params, updates),
                new_stats,
                new_optimizer_state,
            )
            active = count < knobs.num_steps
            return select(active, new, carry), jnp.where(active, value, jnp.nan)

        carry = (state.step, state.finite, state.params, state.stats, state.optimizer_state)
        steps = canonical_convolutions(lambda carry, order: jax.lax.scan(step, carry, order))
        (count, finite, params, stats, optimizer_state), values = steps(carry, order)
        loss, value = self.evaluate(params, stats, data.x_validation, data.y_validation)
        finite = finite & jnp.isfinite(loss)
        epoch = state.epoch + 1
        moved = count > state.step
        loss, value = loss.astype(state.best.loss.dtype), value.astype(state.best.loss.dtype)
        if self.select == "loss":
            better = loss < state.best.loss
        else:
            better = (value > state.best.score) | ((value == state.best.score) & (loss < state.best.loss))
        best = select(better & moved & finite, Best(epoch, loss, value, params, stats), state.best)
        new_state = TrainState(state.key, epoch, count, finite, params, stats, optimizer_state, best)
        taken = jnp.arange(len(values)) < count - state.step
        record = {
            "train_loss": jnp.sum(jnp.where(taken, values, 0)) / jnp.sum(taken),
            "validation_loss": loss,
            "validation_score": value,
            "steps": count,
            "finite": finite,
        }
        return new_state, record


# A program of its own, whose sort is compiled once for all runs on data of one size.
@partial(jax.jit, static_argnums=(2, 3, 4))
def _order(key: Array, epoch: Array, num_examples: int, batch_size: int, shuffle: bool) -> Array:
    # Without shuffling the minibatches are still a random partition, drawn once: scikit-learn's splits are shuffled,
    # but a user's own data may come sorted by class.
    draw = jax.random.fold_in(jax.random.fold_in(key, 1), epoch if shuffle else 0)
    rows = jax.random.permutation(draw, jnp.arange(num_examples, dtype=jnp.int32))
    steps = num_examples // batch_size
    return rows[: steps * batch_size].reshape(steps, batch_size)


def select(predicate: Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` where the predicate holds, else `b`, leaf by leaf; PRNG keys too.

    Args:
      predicate: one boolean.
      a, b: pytrees of the same structure, shapes and dtypes.

    Returns:
      The chosen pytree.

    Example:
      >>> select(jnp.array(False), {"x": jnp.ones(2)}, {"x": jnp.zeros(2)})
      {'x': Array([0., 0.], dtype=float32)}
    """
    return jax.tree.map(lambda x, y: jnp.where(predicate, x, y), a, b)


def full_batch_or(batch_size: int, num_examples: int) -> int:
    """The number of examples per step: 0 asks for all of them.

    Args:
      batch_size: at least 0.
      num_examples: in the training part.

    Returns:
      The number, at most `num_examples`.

    Raises:
      ValueError: where there are fewer examples than `batch_size`.

    Example:
      >>> full_batch_or(0, 106), full_batch_or(32, 106)
      (106, 32)
    """
    _checks.check_integer("train", "batch_size", batch_size, low=0)
    if batch_size > num_examples:
        raise ValueError(
            f"train: `batch_size` must be at most the {num_examples} training examples (0 is the full batch), "
            f"got {batch_size}"
        )
    return int(batch_size) or num_examples


def finite_or_none(record: Mapping[str, Any]) -> dict[str, float | int | bool | None]:
    """A record of scalars as Python numbers that JSON can hold: `None` for what is not finite.

    Args:
      record: names to scalars.

    Returns:
      Names to Python numbers or `None`.

    Example:
      >>> finite_or_none({"x": jnp.float32(0.5), "n": jnp.int32(3), "y": jnp.nan})
      {'x': 0.5, 'n': 3, 'y': None}
    """
    plain = {name: np.asarray(value).item() for name, value in record.items()}
    return {name: value if math.isfinite(value) else None for name, value in plain.items()}
