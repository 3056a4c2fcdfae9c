"""Flooding on real data with noisy labels: where the best level lies, and alternating steps beside it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg.experiments.papers import _noisy_choice as tools
from implicit_reg.experiments.papers._batch_norm_mlp import accuracy, cross_entropies, initial_layers, logits
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.experiments.statistics import Interval, interval, paired
from implicit_reg.experiments.steps import run_steps, shuffled_batches
from implicit_reg.problems.data import Dataset, load_dataset
from implicit_reg.transforms import alternating, flooding

RATIO = 10.0  # descent over ascent, as in the note that proposes alternating steps


@dataclasses.dataclass(frozen=True)
class Scale:
    """Settings of one scale.

    Attributes:
      data: classification sets of `load_dataset`.
      noise: fraction of flipped labels in training and validation data; test labels are clean.
      validation, test: fractions of the examples.
      widths: hidden ReLU layers, without normalization.
      step_size: of plain SGD, without momentum: what the theory of flooding and of alternating steps is about.
      batch_size: examples per step.
      num_steps, every: gradient steps, and steps from one observation to the next.
      seeds: of split, noise, initialization and order.
      levels: of flooding, without 0.
      lanes: runs at a time.
    """

    data: tuple[str, ...]
    noise: float
    validation: float
    test: float
    widths: tuple[int, ...]
    step_size: float
    batch_size: int
    num_steps: int
    every: int
    seeds: int
    levels: tuple[float, ...]
    lanes: int


FAST = Scale(
    data=("digits", "breast-cancer"),
    noise=0.2,
    validation=0.3,
    test=0.4,
    widths=(100, 100),
    step_size=0.1,
    batch_size=32,
    num_steps=1600,
    every=25,
    seeds=6,
    levels=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9),
    lanes=18,
)
TEST = dataclasses.replace(
    FAST, data=("breast-cancer",), widths=(32, 32), num_steps=600, seeds=6, levels=(0.1, 0.3), lanes=12
)
FULL = dataclasses.replace(
    FAST,
    widths=(500, 500, 500, 500),
    num_steps=6000,
    every=50,
    seeds=20,
    levels=tuple(round(0.02 * k, 2) for k in range(1, 51)),
    lanes=20,
)


class Candidate(NamedTuple):
    """One setting: flood level, and the sizes of even and odd steps (a negative ascent descends)."""

    level: float
    descent: float
    ascent: float


def candidates(scale: Scale) -> dict[str, list[Candidate]]:
    """Settings by method.

    The alternating steps have the net step of plain SGD: two of them move by `descent - ascent = 2 step_size`.

    Args:
      scale: gives levels and step size.

    Returns:
      Method to settings.

    Example:
      >>> pair = candidates(TEST)["alternating"][0]
      >>> round(pair.descent / pair.ascent, 6), round(pair.descent - pair.ascent, 6)
      (10.0, 0.2)
    """
    h = scale.step_size
    descent = 2 * h / (1 - 1 / RATIO)
    return {
        "none": [Candidate(0.0, h, -h)],
        "flooding": [Candidate(b, h, -h) for b in scale.levels],
        "alternating": [Candidate(0.0, descent, descent / RATIO)],
    }


def make_run(scale: Scale, data: list[Dataset]) -> Any:
    """The function that the sweep runs: `run(key, case=, level=, descent=, ascent=)`.

    Args:
      scale: sizes and optimizer.
      data: one split for each case.

    Returns:
      A traceable function of a key and settings.
    """
    parts = ("train", "validation", "test")
    xs, ys = ([np.stack([getattr(split, f"{c}_{part}") for split in data]) for part in parts] for c in "xy")

    def run(key, *, case, level, descent, ascent):
        (x, xv, xt), (y, yv, yt) = ([jnp.asarray(part)[case] for part in stacks] for stacks in (xs, ys))
        start_key, order_key = jax.random.split(jax.random.fold_in(key, case))
        batch = shuffled_batches(order_key, len(x), scale.batch_size)

        def loss(params, rows):
            return jnp.mean(cross_entropies(logits(params, x[rows])[0], y[rows]))

        def observe(params, state):
            del state
            z, rest = logits(params, x, jnp.concatenate([xv, xt]))
            zv, zt = rest[: len(xv)], rest[len(xv) :]
            return {
                "train": {"loss": jnp.mean(cross_entropies(z, y))},
                "validation": {"loss": jnp.mean(cross_entropies(zv, yv)), "accuracy": accuracy(zv, yv)},
                "test": {"loss": jnp.mean(cross_entropies(zt, yt)), "accuracy": accuracy(zt, yt)},
            }

        transformation = optax.chain(flooding(level), optax.sgd(alternating(descent, ascent)))
        params = initial_layers(start_key, (x.shape[1], *scale.widths, data[0].num_classes), normalize=False)
        done = run_steps(
            transformation, loss, params, lambda n: (batch(n),), scale.num_steps, every=scale.every, observe=observe
        )
        return {**done.observed, "first_bad_step": done.first_bad_step}

    return run


def _train(name: str, scale: Scale, lab: Lab) -> tuple[dict[str, tools.Curves], list[Dataset]]:
    options = {"label_noise": scale.noise, "validation": scale.validation, "test": scale.test}
    data = [load_dataset(name, seed=seed, **options) for seed in range(scale.seeds)]
    grid = candidates(scale)
    rows = [
        {"case": case, **candidate._asdict()}
        for found in grid.values()
        for candidate in found
        for case in range(scale.seeds)
    ]
    result = lab.sweep(
        name,
        make_run(scale, data),
        rows,
        key=jax.random.key(0),
        width=scale.lanes,
        identity={"data": name, **dataclasses.asdict(scale)},
    )
    places, start, curves = np.arange(len(rows)).reshape(-1, scale.seeds), 0, {}
    for method, found in grid.items():
        curves[method] = tools.collect(result, places[start : start + len(found)], len(data[0].y_validation))
        start += len(found)
    return curves, data


def measure(scale: Scale, lab: Lab) -> Findings:
    """Trains everything, chooses the level on noisy validation data, and compares.

    Args:
      scale: the settings.
      lab: where the sweeps are run.

    Returns:
      The findings.
    """
    levels, seeds = np.array([0.0, *scale.levels]), np.arange(scale.seeds)
    numbers: dict[str, float] = {}
    drawn: dict[str, Any] = {}
    rows: list[tuple] = []
    rising: list[tuple] = []
    ends: dict[str, list[float]] = {"gain": [], "loss": [], "half": [], "alternating": []}
    for name in scale.data:
        curves, data = _train(name, scale, lab)
        off, flooded = curves["none"], curves["none"].also(curves["flooding"])
        choices = {"none": tools.choose(off), "flooding": tools.choose(flooded)}
        choices["alternating"] = tools.choose(curves["alternating"])
        plain, flood = choices["none"], choices["flooding"]
        level = levels[flood.setting]
        # Where plain training begins to overfit, by the validation loss and by the validation error.
        by_loss = off.train_loss[0][seeds, np.argmin(off.validation_loss[0], axis=1)]
        by_error = off.train_loss[0][seeds, np.argmax(off.score[0], axis=1)]
        found = {
            "gain": paired(flood.last, plain.last),
            "loss": paired(flooded.test_loss[flood.setting, seeds, -1], off.test_loss[0, :, -1]),
            "half": interval(level - by_loss / 2),
            "alternating": paired(curves["alternating"].test_loss[0, :, -1], off.test_loss[0, :, -1]),
            "stopping": paired(flood.last, plain.stopped),
            "alternating gain": paired(choices["alternating"].last, plain.last),
        }
        for what, value in found.items():
            numbers |= {f"{name}: {what} {end}": getattr(value, end) for end in ("mean", "low", "high")}
        for what in ends:
            ends[what].append(found[what].low if what == "gain" else found[what].high)
        numbers |= {
            f"{name}: level": float(level.mean()),
            f"{name}: training loss where validation loss rises": float(by_loss.mean()),
            f"{name}: training loss where validation error rises": float(by_error.mean()),
        }
        rising.append(
            (
                name,
                ", ".join(f"{b:g}" for b in level),
                interval(by_loss).text(".2f"),
                interval(by_error).text(".2f"),
                interval(level / by_loss).text(".2f"),
                found["half"].text("+.2f"),
            )
        )
        for method, words in METHODS.items():
            choice = choices[method]
            setting, of = choice.setting, flooded if method == "flooding" else curves[method]
            gain = None if method == "none" else _percent(paired(choice.last, plain.last), "+.1f")
            rows.append(
                (
                    name,
                    words,
                    _percent(interval(choice.last), ".1f"),
                    _percent(interval(choice.stopped), ".1f"),
                    gain,
                    interval(of.test_loss[setting, seeds, -1]).text(".2f"),
                )
            )
        common = {"none": off, "flooding": flooded, "alternating": curves["alternating"]}
        drawn[name] = {
            "epoch": [step * scale.batch_size / len(data[0].y_train) for step in _times(scale)],
            "level": float(levels[flood.common]),
            "methods": {
                method: {
                    "train": values.train_loss[choices[method].common].mean(axis=0),
                    "test": values.test_loss[choices[method].common].mean(axis=0),
                    "accuracy": values.test_accuracy[choices[method].common].mean(axis=0),
                }
                for method, values in common.items()
            },
            "levels": levels,
            "accuracy_by_level": [interval(row)._asdict() for row in flooded.test_accuracy[:, :, -1]],
            "chosen": level,
            "rises_at": {"loss": by_loss, "error": by_error},
        }
    numbers |= {f"worst {what}": (min if what == "gain" else max)(values) for what, values in ends.items()}
    tables = (
        Table(
            "Where the level lies (training loss in nats, mean [95 % interval]); validation labels are noisy",
            (
                "data",
                "levels chosen, by seed",
                "training loss where validation loss begins to rise",
                "training loss of the best validation error",
                "level over the former",
                "level minus half of it",
            ),
            tuple(rising),
        ),
        Table(
            "Clean test accuracy in percent and test loss in nats, mean [95 % interval]",
            ("data", "method", "last epoch", "early stopping", "last epoch - none", "test loss, last epoch"),
            tuple(rows),
        ),
    )
    return Findings(numbers, tables, {"data": drawn}, _notes(numbers, scale))


METHODS = {"none": "plain SGD", "flooding": "flooding", "alternating": "alternating 10 : 1"}


def _times(scale: Scale) -> range:
    return range(0, scale.num_steps + 1, scale.every)


def _percent(found: Interval, form: str) -> str:
    return found._replace(mean=100 * found.mean, low=100 * found.low, high=100 * found.high).text(form)


def _notes(numbers: dict[str, float], scale: Scale) -> tuple[str, ...]:
    def against(name, what):
        low, high = numbers[f"{name}: {what} low"], numbers[f"{name}: {what} high"]
        return "better" if low > 0 else "worse" if high < 0 else "neither better nor worse beyond the interval"

    stopping = "; ".join(f"{against(name, 'stopping')} on {name}" for name in scale.data)
    turns = "; ".join(f"{against(name, 'alternating gain')} on {name}" for name in scale.data)
    return (
        f"Clean test accuracy of flooding at its last epoch, against early stopping of plain training: {stopping}.",
        f"Clean test accuracy of alternating steps against plain SGD of the same net step: {turns}.",
        "On one loss, alternating steps follow the flow of L + s ||grad L||^2 with s = (e1^2 + e2^2)/(4 (e1 - e2)), "
        "0.62 step sizes here, plain steps that with a quarter of a step size; on minibatches that differ neither is "
        "exact.",
    )


REPRODUCTION = Reproduction(
    name="flooding-digits",
    claim=(
        "On real data with noisy labels flooding improves generalization, and its best level lies well below the "
        "training loss at which the validation loss begins to rise."
    ),
    source=(
        "[ishida2020], the experiments on benchmark data; the rule for the level and the alternating steps are from an "
        "unpublished note on it"
    ),
    reported="The paper's number is not known here.",
    criteria=(
        Criterion(
            "on each data set, flooding (last epoch, level chosen on noisy validation data) exceeds no flooding in "
            "clean test accuracy: paired 95 % interval above 0",
            lambda n: n["worst gain"] > 0,
        ),
        Criterion(
            "on each data set, its test loss at the last epoch is lower: paired 95 % interval below 0",
            lambda n: n["worst loss"] < 0,
        ),
        Criterion(
            "on each data set, the chosen level is below half the training loss at which the validation loss of plain "
            "training begins to rise: 95 % interval of the difference below 0",
            lambda n: n["worst half"] < 0,
        ),
        Criterion(
            "on each data set, alternating steps (descent 10 times the ascent, the same net step) have a lower test "
            "loss at the last epoch than plain SGD: paired 95 % interval below 0",
            lambda n: n["worst alternating"] < 0,
        ),
    ),
    scales={"test": TEST, "fast": FAST, "full": FULL},
    measure=measure,
)
