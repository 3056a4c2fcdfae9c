"""What a training run is doing, and why its loss stopped falling: verdicts, the numbers they rest on, what to try next.

Every threshold stands below, once. They are rules of thumb; the numbers are printed with each verdict, to be judged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from implicit_reg import _checks
from implicit_reg._types import Integer
from implicit_reg.training import evidence as ev
from implicit_reg.training.program import TrainState
from implicit_reg.training.runs import History, Run

FALLING, FALLING_CLEARLY = 0.01, 0.05  # relative fall of the training loss over its last window that counts as falling
NOISE = 2.0  # and it must be so many standard errors
LARGE, LARGE_CLEARLY = (
    0.3,
    0.6,
)  # the part of the constant prediction's loss that is left where a training loss is large
SMALL = 0.05  # below this part a run that stopped falling is done, not stuck
RISE, RISE_CLEARLY = 0.05, 0.25  # relative rise of the validation loss above its lowest (smoothed) value
PROMISE = 0.01  # a gradient is small where it promises a smaller relative fall than this over one window
NEWTON = 1e-3  # the same for a step of 1/lambda_max, where what one step does is not known
NEAR = 0.9  # h lambda_max this near to the limit is at the edge of stability
SLOW = 0.1  # h lambda_max below this part of the limit leaves room for larger steps
FLAT = 1e-3  # h lambda below this over one epoch: curvature that does nothing while it is watched
NEGATIVE, NEGATIVE_CLEARLY = 0.01, 0.1  # -lambda_min / lambda_max of a saddle, beyond its error bound
CONSTANT = 0.9  # a model whose loss is above this part of the constant prediction's has learned nothing yet
FLOODED = 0.1  # the share of ascending steps in the last window of a run that is held at its flood level

ESCAPE = "leave along the negative eigenvector: implicit_reg.curvature.escape"
FOLK = "folk rule"


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to try next; a rule of thumb says where it comes from."""

    text: str
    rule_of_thumb: bool = False
    source: str | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One reading of a run: how sure ("clear", "likely", "weak"), the numbers it rests on, a sentence, advice."""

    name: str
    confidence: str
    evidence: dict[str, float]
    sentence: str
    advice: tuple[Advice, ...] = ()


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All verdicts, the most telling first, all numbers measured, and what has to be known to read them."""

    verdicts: tuple[Verdict, ...]
    numbers: dict[str, float | None]
    notes: tuple[str, ...]


def diagnose(
    run: Run,
    state: TrainState,
    history: History,
    *,
    key: jax.Array | None = None,
    batch_size: Integer | None = None,
    report: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Reads a run from its history and from the curvature of its full training loss at its last parameters.

    Args:
      run, state, history: what was trained, and what `fit` returned.
      key: of the random start of Lanczos; None is a fixed one.
      batch_size: examples in memory at once; None takes all.
      report: called with the name of each stage as it begins: history, outputs, curvature.

    Returns:
      A `Diagnosis`. Verdicts: "diverged", "too short", "flooded", "still falling", "training loss large", "minimum",
      "saddle", "plateau", "small step", "oscillation", "gradient noise", "stalled", "overconfidence", "overfitting";
      and "healthy" where it is none of them.

    Raises:
      TypeError, ValueError: a `batch_size` below 1, no finished epoch, or a history that is not one of `fit`.

    Example:
      >>> from implicit_reg.training import Settings, fit
      >>> run = Run(Settings(data="wine", widths=(8,), epochs=60, learning_rate=0.5))
      >>> [verdict.name for verdict in diagnose(run, *fit(run)).verdicts]
      ['healthy']
    """
    if batch_size is not None:
        _checks.check_integer("diagnose", "batch_size", batch_size)
    if not history:
        raise ValueError("diagnose: `history` must hold at least one epoch; train first")
    report = report or (lambda stage: None)
    report("history")
    train, validation = ev.curve(history, "train_loss"), ev.curve(history, "validation_loss")
    scores = ev.curve(history, "validation_score")
    if not bool(state.finite) or min(len(train), len(validation)) < len(history):
        return _diverged(run, history, train)
    if len(history) < ev.LEAST_EPOCHS:
        sentence = f"{len(history)} epochs are too few for a trend; {ev.LEAST_EPOCHS} are the least."
        return Diagnosis((Verdict("too short", "clear", {"epochs": float(len(history))}, sentence),), {}, ())
    window = ev.window_of(len(history))
    report("outputs")
    numbers: dict[str, float | None] = {"epochs": float(len(history)), "window": float(window)}
    numbers |= _history_numbers(run, train, validation, scores) | ev.measure_outputs(run, state)
    report("curvature")
    key = jax.random.key(0) if key is None else key
    curvature, words = ev.measure_curvature(run, state, window=window, key=key, batch_size=batch_size)
    if not all(math.isfinite(value) for value in curvature.values() if value is not None):
        raise ValueError("diagnose: gradient or curvature overflow at the last parameters; train in a wider `dtype`")
    numbers |= curvature
    notes = (*_notes(run), words)
    flood = _flooded(run, history, window)
    verdicts = [] if flood is None else [flood]
    if flood is None:
        verdicts += _optimization(run, numbers)
    verdicts += _generalization(run, numbers, train)
    return Diagnosis(tuple(verdicts) or (_healthy(numbers),), numbers, notes)


def _history_numbers(run: Run, train: np.ndarray, validation: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Trends, and the turn: the epoch with the lowest validation loss, smoothed over three epochs."""
    late = ev.trend(train)
    smooth = np.convolve(validation, np.ones(3) / 3, mode="valid")  # smooth[k] is centered at epoch k + 2
    k = int(np.argmin(smooth))
    w = late.window
    ups = np.diff(train[-2 * w :])
    constant, floor = ev.constant_loss(run), ev.unavoidable_loss(run)
    part = (late.recent - floor) / max(constant - floor, np.finfo(float).tiny)
    return {
        "train_loss": late.recent,
        "fall": late.fall,
        "fall_noise": late.noise,
        "share_of_rises": float(np.mean(ups > 0)),
        "constant_loss": constant,
        "label_noise_entropy": floor,
        "part_left": part,
        "turn_epoch": float(k + 2),
        "turn_train_loss": float(np.mean(train[k : k + 3])),
        "turn_validation_loss": float(smooth[k]),
        "turn_score": float(np.mean(scores[k : k + 3])),
        "validation_loss": float(np.mean(validation[-w:])),
        "rise": float((np.mean(validation[-w:]) - smooth[k]) / max(smooth[k], np.finfo(float).tiny)),
        "validation_score": float(np.mean(scores[-w:])),
    }


def _sure(value: float, clear: float) -> str:
    return "clear" if value >= clear else "likely"


def _pick(numbers: dict[str, Any], *names: str) -> dict[str, float]:
    return {name: float(numbers[name]) for name in names if numbers.get(name) is not None}


def _diverged(run: Run, history: History, train: np.ndarray) -> Diagnosis:
    epoch = float(len(train) + 1 if len(train) < len(history) else len(history))
    numbers = {"epoch": epoch, "learning_rate": float(run.settings.learning_rate)}
    if len(train):
        numbers["last_finite_train_loss"] = float(train[-1])
    advice = (
        Advice("a learning rate ten times smaller, or a warm-up of some epochs", True, "common practice"),
        Advice("--clip 1, where a smaller rate is too slow", True, "common practice"),
    )
    sentence = f"The loss stopped being finite in epoch {epoch:.0f}."
    return Diagnosis((Verdict("diverged", "clear", numbers, sentence, advice),), dict(numbers), ())


def _flooded(run: Run, history: History, window: int) -> Verdict | None:
    """Whether the last window was spent at a flood level: there a loss that does not fall is what was asked for."""
    now, then = history[-1].get("flooded_fraction"), history[-1 - window].get("flooded_fraction")
    if now is None:
        return None
    steps, before = history[-1]["steps"], history[-1 - window]["steps"]
    late = (now * steps - (then or 0.0) * before) / max(steps - before, 1)
    if late < FLOODED:
        return None
    numbers = {"flooded_fraction": late, "train_loss": float(history[-1]["train_loss"])}
    sentence = f"Flooding holds the training loss: {100 * late:.0f} % of the last steps ascended."
    return Verdict("flooded", "clear", numbers, sentence)


def _optimization(run: Run, n: dict[str, Any]) -> list[Verdict]:
    """Is the training loss still falling, large, or stuck, and where?"""
    falling = n["fall"] > FALLING and n["fall"] > NOISE * n["fall_noise"]
    found = []
    left = f"{100 * n['part_left']:.0f} % of what a constant prediction leaves"
    if falling and n["part_left"] > SMALL:
        sentence = f"The training loss fell by {100 * n['fall']:.2g} % over the last {n['window']:.0f} epochs."
        found.append(
            Verdict(
                "still falling",
                _sure(n["fall"], FALLING_CLEARLY),
                _pick(n, "fall", "fall_noise", "train_loss"),
                sentence,
                (Advice("train longer"),),
            )
        )
    if n["part_left"] > LARGE:
        advice = (
            Advice("--check: a longer run and a larger model tell a too small model from an optimization that is slow"),
        )
        sure = "weak" if falling else _sure(n["part_left"], LARGE_CLEARLY)
        sentence = f"The training loss is large ({n['train_loss']:.4g}, {left}): a too small model, or optimization."
        rests = _pick(n, "train_loss", "constant_loss", "label_noise_entropy", "part_left", "train_score")
        found.append(Verdict("training loss large", sure, rests, sentence, advice))
    if not falling and n["part_left"] > SMALL:
        found.insert(0, _stuck(run, n))
    return found


def _stuck(run: Run, n: dict[str, Any]) -> Verdict:
    """The loss does not fall: what keeps it?"""
    judged = n["promised_fall"] is not None
    if judged and n["promised_fall"] < PROMISE and n["newton_fall"] >= NEWTON and n["h_lambda"] < SLOW * n["limit"]:
        rests = _pick(n, "fall", "gradient_norm", "promised_fall", "newton_fall", "h_lambda", "limit")
        advice = (Advice(f"a learning rate up to {n['learning_rate'] * n['limit'] / n['h_lambda'] / 2:.3g}"),)
        sentence = (
            f"The learning rate is small: the gradient is not, but h lambda_max = {n['h_lambda']:.2g} is far below the "
            f"limit {n['limit']:.3g}."
        )
        return Verdict("small step", "likely", rests, sentence, advice)
    small = n["promised_fall"] < PROMISE if judged else n["newton_fall"] < NEWTON
    promise = "promised_fall" if judged else "newton_fall"
    if small:
        return _critical(run, n, _pick(n, "fall", "gradient_norm", promise))
    rests = _pick(n, "fall", "gradient_norm", promise, "h_lambda", "limit", "share_of_rises")
    s = run.settings
    plain = s.method == "gd" and s.clip is None and not s.noise
    full = run.batch_size == len(run.data.x_train) and not s.dropout and plain
    if judged and n["h_lambda"] >= NEAR * n["limit"]:
        advice = (
            Advice(f"a learning rate below {n['learning_rate'] * n['limit'] / n['h_lambda'] / 2:.3g} (half the limit)"),
            Advice("a schedule that ends at zero", True, "common practice"),
        )
        sentence = (
            f"The loss oscillates: the gradient is not small, the loss does not fall, and h lambda_max = "
            f"{n['h_lambda']:.3g} is near or above the limit {n['limit']:.3g}."
        )
        return Verdict("oscillation", "clear" if full else "likely", rests, sentence, advice)
    if not full:
        advice = (
            Advice("a larger minibatch, or a schedule that ends at zero", True, "common practice"),
            Advice("less dropout or gradient noise, where there is any", True, "common practice"),
        )
        sentence = (
            "The full gradient is not small but the loss does not fall, and h lambda_max is not at its limit: noise of "
            "minibatches, dropout or the method balances the descent."
        )
        return Verdict("gradient noise", "likely" if judged else "weak", rests, sentence, advice)
    sentence = "The loss does not fall although the gradient is not small; nothing measured here explains it."
    return Verdict("stalled", "weak", rests, sentence, (Advice("train longer, and diagnose again"),))


def _critical(run: Run, n: dict[str, Any], rests: dict[str, float]) -> Verdict:
    """A small gradient: a saddle, a plateau or a minimum, by both ends of the spectrum and their bounds."""
    bound = n["residual_min"] + n["resolution"]
    rests |= _pick(n, "lambda_max", "lambda_min", "residual_min", "h_lambda", "part_left")
    biggest = max(abs(n["lambda_max"]), abs(n["lambda_min"]))
    small = f"The gradient is small ({n['gradient_norm']:.2g})"
    nothing = n["train_loss"] > CONSTANT * n["constant_loss"]
    if n["learning_rate"] * biggest * run.program.steps_per_epoch < FLAT:
        advice = (Advice("another start or scaling, or units that do not saturate", True, "common practice"),)
        sentence = f"{small} and so is the curvature: a plateau, flat in every direction at this learning rate."
        return Verdict("plateau", "clear", rests, sentence, advice)
    ratio = -n["lambda_min"] / biggest
    if -n["lambda_min"] > bound and ratio > NEGATIVE:
        advice = (Advice(ESCAPE), Advice("gradient noise: --noise 0.01", True, "Neelakantan et al. 2015"))
        sentence = f"{small} and the curvature is negative ({n['lambda_min']:.3g}) in a direction: a saddle."
        return Verdict("saddle", _sure(ratio, NEGATIVE_CLEARLY), rests, sentence, advice)
    if nothing:
        advice = (Advice("another start or scaling, or units that do not saturate", True, "common practice"),)
        sentence = (
            f"{small}, no curvature is negative, and the model does no better than a constant: a plateau, where its "
            f"units do not respond."
        )
        return Verdict("plateau", "likely", rests, sentence, advice)
    advice = (Advice("a larger model, or another start"),)
    sentence = f"{small} and no curvature is negative beyond its bound: a minimum, or a valley that is nearly flat."
    return Verdict("minimum", "likely" if -n["lambda_min"] <= bound else "weak", rests, sentence, advice)


def _generalization(run: Run, n: dict[str, Any], train: np.ndarray) -> list[Verdict]:
    """A validation loss that rises: with an accuracy that falls, or with one that does not."""
    if n["rise"] < RISE or n["train_loss"] >= n["turn_train_loss"]:
        return []
    level = Advice(
        f"flooding at {n['turn_train_loss'] / 2:.3g}, half the training loss where the validation loss turns: "
        f"--method flooding --hyper level={n['turn_train_loss'] / 2:.3g}",
        True,
        FOLK,
    )
    advice = [level]
    if n["label_noise_entropy"]:
        text = f"flooding at the entropy of the label noise: --hyper level={n['label_noise_entropy']:.3g}"
        advice.append(Advice(text, True, "tried on one data set with 10 % label noise"))
    where = f"from epoch {n['turn_epoch']:.0f} on by {100 * n['rise']:.0f} % while the training loss falls"
    rests = _pick(n, "turn_epoch", "turn_train_loss", "turn_validation_loss", "train_loss", "validation_loss", "rise")
    rests |= _pick(n, "turn_score", "validation_score", "calibration_error", "mean_confidence", "worst_percent_share")
    if run.data.task == "classification":
        p, change = n["turn_score"], n["validation_score"] - n["turn_score"]
        error = math.sqrt(max(p * (1 - p), 1e-4) / len(run.data.x_validation))
        rests |= {"score_change": change, "score_error": error}
        if change >= -error:
            sure = _sure(n["rise"], RISE_CLEARLY) if change >= 0 else "weak"
            sentence = (
                f"Overconfidence: the validation loss rises {where}, and the accuracy does not fall "
                f"({p:.3f} to {n['validation_score']:.3f}); calibration error {n['calibration_error']:.3f}, and the "
                f"worst percent of the examples carries {100 * n['worst_percent_share']:.0f} % of the loss."
            )
            return [Verdict("overconfidence", sure, rests, sentence, tuple(advice))]
        sure = "clear" if change < -2 * error else "likely"
        more = f", and the accuracy falls ({p:.3f} to {n['validation_score']:.3f})"
    else:
        sure, more = _sure(n["rise"], RISE_CLEARLY), ""
    advice = [Advice(f"stop near epoch {n['turn_epoch']:.0f}"), Advice("weight decay, or more data"), *advice]
    return [
        Verdict("overfitting", sure, rests, f"Overfitting: the validation loss rises {where}{more}.", tuple(advice))
    ]


def _healthy(n: dict[str, Any]) -> Verdict:
    rests = _pick(n, "train_loss", "part_left", "fall", "validation_loss", "rise")
    return Verdict("healthy", "likely", rests, "None of the known troubles is seen.")


def _notes(run: Run) -> tuple[str, ...]:
    s, notes = run.settings, []
    if s.activation == "relu":
        notes.append("relu: the Hessian is that of the smooth piece; what the kinks curve is not seen")
    if s.method != "gd":
        notes.append(f"gradient and curvature are of the plain training loss, not of what {s.method} descends")
    return tuple(notes)
