"""What a diagnosis rests on: trends of a history, calibration, and the curvature of the full training loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg import curvature
from implicit_reg.training import metrics
from implicit_reg.training.calibration import expected_calibration_error, noise_entropy, worst_share
from implicit_reg.training.program import TrainState
from implicit_reg.training.runs import History, Run
from implicit_reg.training.settings import parse_pairs

WINDOW = 5  # the end of a run is its last fifth
LEAST_EPOCHS = 6  # a trend needs two windows of three epochs
LANCZOS_STEPS = 40


@dataclasses.dataclass(frozen=True)
class Trend:
    """How a curve ends: its mean over the last window against the window before."""

    window: int
    earlier: float
    recent: float
    standard_error: float

    @property
    def fall(self) -> float:
        """The relative fall from the one window to the other; negative where the curve rises."""
        return (self.earlier - self.recent) / max(abs(self.earlier), np.finfo(float).tiny)

    @property
    def noise(self) -> float:
        """The standard error of `fall`, from the differences of neighboring epochs."""
        return self.standard_error / max(abs(self.earlier), np.finfo(float).tiny)


def window_of(num_epochs: int) -> int:
    """The epochs in the last window of a run.

    Args:
      num_epochs: finished so far.

    Returns:
      A fifth of them, at least 3.

    Example:
      >>> window_of(40), window_of(6)
      (8, 3)
    """
    return max(3, num_epochs // WINDOW)


def trend(values: Any) -> Trend:
    """The last window of a curve against the window before.

    The noise of one epoch is estimated from differences of neighbors, `sigma^2 = mean((v_k - v_(k-1))^2) / 2`, in which
    a slow trend cancels; the standard error of the difference of two means over w epochs is `sigma sqrt(2 / w)`.

    Args:
      values: one number per epoch, at least `LEAST_EPOCHS`.

    Returns:
      A `Trend`.

    Example:
      >>> flat = trend([1.0] * 10)
      >>> flat.fall, flat.noise
      (0.0, 0.0)
    """
    values = np.asarray(values, float)
    w = window_of(len(values))
    late = values[-2 * w :]
    error = math.sqrt(float(np.mean(np.diff(late) ** 2)) / w)
    return Trend(w, float(late[:w].mean()), float(late[w:].mean()), error)


@dataclasses.dataclass(frozen=True)
class Stability:
    """What `h lambda_max` means for the optimizer of a run."""

    limit: float | None
    momentum: float
    scale: Any
    words: str


def stability(run: Run, state: TrainState) -> Stability:
    """The limit of `h lambda_max` on a quadratic, and the diagonal that preconditions lambda.

    2 for gradient descent, `2 (1 + b)` with momentum b, `2 (1 + b) / (1 + 2 b)` with Nesterov's, and
    `2 (1 + b1) / (1 - b1)` for Adam and AdamW on `P^(-1/2) H P^(-1/2)`, `P = sqrt(nu_hat) + eps` held fixed
    [cohen2025].

    Args:
      run: whose base optimizer it is.
      state: whose second moments it is.

    Returns:
      A `Stability`; its `limit` is None where no formula is known here.

    Example:
      >>> from implicit_reg.training import Settings
      >>> run = Run(Settings(data="wine", widths=(4,), epochs=2, optimizer_args=("momentum=0.9",)))
      >>> stability(run, run.init()).limit
      3.8
    """
    s = run.settings
    given = parse_pairs("diagnose", s.optimizer_args)
    if s.optimizer == "sgd":
        b = float(given.get("momentum") or 0.0)
        if not b:
            return Stability(curvature.sgd_stability(1.0), 0.0, None, "gradient descent is stable below 2")
        if given.get("nesterov"):
            words = "Nesterov's momentum is stable below 2(1+b)/(1+2b)"
            return Stability(curvature.nesterov_stability(1.0, b), b, None, words)
        return Stability(curvature.momentum_stability(1.0, b), b, None, "momentum is stable below 2(1+b)")
    if s.optimizer in ("adam", "adamw") and not given.get("nesterov"):
        is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
        found = [x for x in jax.tree.leaves(state.optimizer_state, is_leaf=is_adam) if is_adam(x)]
        alike = len(found) == 1 and jax.tree.structure(found[0].nu) == jax.tree.structure(state.params)
        if alike and int(found[0].count):
            b1, b2, eps = (float(given.get(k, v)) for k, v in (("b1", 0.9), ("b2", 0.999), ("eps", 1e-8)))
            grown = 1 - b2 ** int(found[0].count)
            scale = jax.tree.map(
                lambda nu: jnp.sqrt(nu.astype(jnp.promote_types(nu.dtype, jnp.float32)) / grown), found[0].nu
            )
            scale = jax.tree.map(lambda root: root + eps, scale)
            words = "lambda is of the preconditioned Hessian; Adam is stable below 2(1+b1)/(1-b1)"
            return Stability(curvature.adam_stability(1.0, b1), b1, scale, words)
    return Stability(None, 0.0, None, f"no stability limit of {s.optimizer} is known here: h lambda was not judged")


def late_rate(run: Run, state: TrainState, window: int) -> float:
    """The mean learning rate over the last window.

    Args:
      run, state: what was trained, and where it ended.
      window: in epochs.

    Returns:
      The rate, of the schedule too.

    Example:
      >>> from implicit_reg.training import Settings
      >>> run = Run(Settings(data="wine", widths=(4,), epochs=2))
      >>> round(late_rate(run, run.init(), 1), 3)
      0.1
    """
    peak = float(run.settings.learning_rate)
    if run.program.shape is None:
        return peak
    last = int(state.step)
    first = max(0, last - window * run.program.steps_per_epoch)
    steps = np.unique(np.linspace(first, max(first, last - 1), 64).astype(int))
    return peak * float(np.mean([float(run.program.shape(int(step))) for step in steps]))


def constant_loss(run: Run) -> float:
    """The training loss of the best constant prediction: the entropy of the class frequencies, or the variance.

    Args:
      run: whose data it is.

    Returns:
      The loss.

    Example:
      >>> from implicit_reg.training import Settings
      >>> round(constant_loss(Run(Settings(data="diabetes", widths=(4,), epochs=2))), 3)
      1.0
    """
    y = np.asarray(run.data.y_train)
    if run.data.task == "regression":
        return float(np.var(y))
    frequencies = np.bincount(y) / len(y)
    frequencies = frequencies[frequencies > 0]
    return float(-np.sum(frequencies * np.log(frequencies)))


def unavoidable_loss(run: Run) -> float:
    """The entropy of the label noise that the settings ask for; 0 without.

    Args:
      run: whose settings say so.

    Returns:
      The entropy in nats.

    Example:
      >>> from implicit_reg.training import Settings
      >>> round(unavoidable_loss(Run(Settings(data="breast-cancer", widths=(4,), epochs=2, label_noise=0.1))), 3)
      0.325
    """
    noise = float(run.settings.label_noise)
    return noise_entropy(noise, run.data.num_classes) if noise else 0.0


def measure_outputs(run: Run, state: TrainState) -> dict[str, float]:
    """Losses at test time, accuracy, calibration, and the share of the worst percent of the validation examples.

    Args:
      run, state: what was trained, and where it ended.

    Returns:
      Names to numbers.

    Example:
      >>> from implicit_reg.training import Settings
      >>> run = Run(Settings(data="wine", widths=(4,), epochs=2))
      >>> 0 <= measure_outputs(run, run.init())["calibration_error"] <= 1
      True
    """
    a, task = run.arrays, run.data.task
    loss, score = run.evaluate(state.params, state.stats, a.x_train, a.y_train)
    numbers = {"full_train_loss": float(loss), "train_score": float(score)}
    if task == "regression":
        return numbers
    outputs = jax.jit(run.program.outputs)(state.params, state.stats, a.x_validation)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    losses = -jnp.take_along_axis(jax.nn.log_softmax(outputs), a.y_validation[:, None], axis=1)[:, 0]
    confidence = float(jnp.mean(jnp.max(jax.nn.softmax(outputs), axis=1)))
    return numbers | {
        "calibration_error": expected_calibration_error(outputs, a.y_validation),
        "mean_confidence": confidence,
        "validation_accuracy": float(metrics.score(task, outputs, a.y_validation)),
        "worst_percent_share": worst_share(losses),
    }


def measure_curvature(
    run: Run, state: TrainState, *, window: int, key: jax.Array, batch_size: int | None
) -> tuple[dict[str, float | None], str]:
    """Gradient and extreme curvature of the full training loss: dropout off, running averages.

    Args:
      run, state: what was trained, and where it ended.
      window: in epochs, for the learning rate and for what the gradient promises.
      key: of the random start of Lanczos.
      batch_size: examples in memory at once; None takes all.

    Returns:
      The numbers: `gradient_norm`, `lambda_max`, `lambda_min` with the residuals that bound their distance to some
      eigenvalue, `learning_rate`, `h_lambda` and `limit` (None where not judged), `promised_fall`: the fall relative
      to the loss that the gradient promises over one window, `h_eff |g|^2 steps / loss`. And what h lambda means.

    Example:
      >>> from implicit_reg.training import Settings
      >>> run = Run(Settings(data="wine", widths=(4,), epochs=2))
      >>> numbers, _ = measure_curvature(run, run.init(), window=3, key=jax.random.key(0), batch_size=None)
      >>> numbers["lambda_max"] > 0, numbers["limit"]
      (True, 2.0)
    """
    loss_fn = run.program.loss_at_test_time(state.stats)
    data = (run.arrays.x_train, run.arrays.y_train)
    if batch_size is not None:
        batch_size = min(batch_size, len(run.arrays.x_train))
    value, gradient = curvature.mean_value_and_gradient(loss_fn, state.params, data, batch_size=batch_size)
    flat = curvature.flatten(gradient)[0]
    rule, rate = stability(run, state), late_rate(run, state, window)
    hessian = curvature.hessian_operator(loss_fn, state.params, data, batch_size=batch_size)
    ends = curvature.extreme_eigenvalues(hessian, num_steps=LANCZOS_STEPS, key=key)
    top, squared = float(ends[1]), float(jnp.sum(flat**2))
    if rule.scale is not None:
        root = curvature.flatten(rule.scale)[0]
        scaled = curvature.preconditioned(hessian, rule.scale)
        top = float(curvature.extreme_eigenvalues(scaled, num_steps=LANCZOS_STEPS, key=key).high)
        squared = float(jnp.sum(flat**2 / root))
    # Adam's first moment is an average: it does not lengthen the step as momentum does.
    effective = rate if rule.scale is not None else rate / (1 - rule.momentum)
    steps = window * run.program.steps_per_epoch
    judged = rule.limit is not None
    numbers: Mapping[str, float | None] = {
        "gradient_norm": float(jnp.linalg.norm(flat)),
        "lambda_max": float(ends[1]),
        "lambda_min": float(ends[0]),
        "residual_max": float(ends[3]),
        "residual_min": float(ends[2]),
        "resolution": float(100 * jnp.finfo(flat.dtype).eps * jnp.maximum(jnp.abs(ends[1]), jnp.abs(ends[0]))),
        "learning_rate": rate,
        "h_lambda": rate * top if judged else None,
        "limit": rule.limit,
        "promised_fall": effective * squared * steps / max(float(value), np.finfo(float).tiny) if judged else None,
        "newton_fall": float(jnp.sum(flat**2)) / max(2 * float(ends[1]) * float(value), 1e-30),
    }
    return dict(numbers), rule.words


def curve(history: History, name: str) -> np.ndarray:
    """One column of a history, as far as it is finite.

    Args:
      history: of `fit`.
      name: of the column.

    Returns:
      Floats; the first number that is None ends them.

    Raises:
      ValueError: where an epoch lacks the column, or holds something else: the history is not one of `fit`.

    Example:
      >>> curve([{"train_loss": 1.0}, {"train_loss": None}], "train_loss")
      array([1.])
    """
    values: list[float] = []
    for k, record in enumerate(history):
        value = record.get(name, "nothing") if isinstance(record, Mapping) else record
        if value is None:
            break
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"diagnose: `history` must be of `fit`: epoch {k + 1} has {value!r} as its {name}")
        values.append(float(value))
    return np.asarray(values, float)
