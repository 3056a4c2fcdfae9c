"""What `flooding_digits` sweeps over: flood levels and alternating steps on real data, under two recipes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg.experiments.papers import _noisy_choice as tools
from implicit_reg.experiments.papers._batch_norm_mlp import accuracy, cross_entropies, initial_layers, logits
from implicit_reg.experiments.reproduction import Lab
from implicit_reg.experiments.steps import run_steps, shuffled_batches
from implicit_reg.problems.data import Dataset, load_dataset
from implicit_reg.transforms import alternating, flooding

RATIO = 10.0  # descent over ascent, as in the note that proposes alternating steps
RECIPES = {"SGD": "plain SGD, no normalization", "Adam": "Adam, batch normalization"}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Settings of one scale.

    Attributes:
      data: classification sets of `load_dataset`.
      recipes: of `RECIPES`: plain SGD without momentum and normalization, what the theory of flooding and of
        alternating steps is about; or Adam and batch normalization, as in the official code.
      noise: fraction of flipped labels in training and validation data; test labels are clean.
      validation, test: fractions of the examples.
      widths: hidden ReLU layers.
      sgd_step, adam_step: step sizes.
      batch_size: examples per step.
      num_steps, every: gradient steps, and steps from one observation to the next.
      seeds: of split, noise, initialization and order.
      levels: of flooding, without 0; those from log(classes) on, the loss of knowing nothing, are left out.
      lanes: runs at a time.
    """

    data: tuple[str, ...]
    recipes: tuple[str, ...]
    noise: float
    validation: float
    test: float
    widths: tuple[int, ...]
    sgd_step: float
    adam_step: float
    batch_size: int
    num_steps: int
    every: int
    seeds: int
    levels: tuple[float, ...]
    lanes: int


class Candidate(NamedTuple):
    """One setting: flood level, and the sizes of even and odd steps (a negative ascent descends)."""

    level: float
    descent: float
    ascent: float


def candidates(scale: Scale, recipe: str, num_classes: int) -> dict[str, list[Candidate]]:
    """Settings by method.

    The alternating steps have the net step of plain ones: two of them move by `descent - ascent = 2 h`.

    Args:
      scale: gives levels and step sizes.
      recipe: decides h.
      num_classes: bounds the levels.

    Returns:
      Method to settings; "off" is the one setting of "none" and not repeated.

    Example:
      >>> from implicit_reg.experiments.papers.flooding_digits import REPRODUCTION
      >>> pair = candidates(REPRODUCTION.scales["fast"], "SGD", 2)["alternating"][0]
      >>> round(pair.descent / pair.ascent, 6), round(pair.descent - pair.ascent, 6)
      (10.0, 0.2)
    """
    h = scale.sgd_step if recipe == "SGD" else scale.adam_step
    descent = 2 * h / (1 - 1 / RATIO)
    return {
        "none": [Candidate(0.0, h, -h)],
        "flooding": [Candidate(b, h, -h) for b in scale.levels if b < math.log(num_classes)],
        "alternating": [Candidate(0.0, descent, descent / RATIO)],
    }


def make_run(scale: Scale, recipe: str, data: list[Dataset]) -> Any:
    """The function that the sweep runs: `run(key, case=, level=, descent=, ascent=)`.

    Args:
      scale: sizes.
      recipe: network and optimizer.
      data: one split for each case.

    Returns:
      A traceable function of a key and settings.
    """
    parts = ("train", "validation", "test")
    xs, ys = ([np.stack([getattr(split, f"{c}_{part}") for split in data]) for part in parts] for c in "xy")
    optimizer, normalize = (optax.sgd, False) if recipe == "SGD" else (optax.adam, True)
    num_classes = data[0].num_classes

    def run(key, *, case, level, descent, ascent):
        (x, xv, xt), (y, yv, yt) = ([jnp.asarray(part)[case] for part in stacks] for stacks in (xs, ys))
        # With x64 on, operands are float64 and would widen the optimizer's state.
        level, descent, ascent = (jnp.asarray(number, x.dtype) for number in (level, descent, ascent))
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

        transformation = optax.chain(flooding(level), optimizer(alternating(descent, ascent)))
        params = initial_layers(start_key, (x.shape[1], *scale.widths, num_classes), normalize=normalize)
        done = run_steps(
            transformation, loss, params, lambda n: (batch(n),), scale.num_steps, every=scale.every, observe=observe
        )
        return {**done.observed, "first_bad_step": done.first_bad_step}

    return run


class Trained(NamedTuple):
    """The runs of one data set and recipe.

    Attributes:
      levels: of the flooded settings, 0 first.
      curves: by method; those of "flooding" begin with "none".
      num_train: training examples.
    """

    levels: np.ndarray
    curves: dict[str, tools.Curves]
    num_train: int


def train(name: str, recipe: str, scale: Scale, lab: Lab) -> Trained:
    """Trains every candidate on every seed.

    Args:
      name: of the data set.
      recipe: of `RECIPES`.
      scale: the settings.
      lab: where the sweep is run.

    Returns:
      The runs.
    """
    options = {"label_noise": scale.noise, "validation": scale.validation, "test": scale.test}
    data = [load_dataset(name, seed=seed, **options) for seed in range(scale.seeds)]
    grid = candidates(scale, recipe, data[0].num_classes)
    settings = [candidate for found in grid.values() for candidate in found]
    rows = [{"case": case, **setting._asdict()} for setting in settings for case in range(scale.seeds)]
    result = lab.sweep(
        f"{name}-{recipe}",
        make_run(scale, recipe, data),
        rows,
        key=jax.random.key(0),
        width=scale.lanes,
        identity={"data": name, "recipe": recipe, **dataclasses.asdict(scale)},
    )
    places, start, curves = np.arange(len(rows)).reshape(-1, scale.seeds), 0, {}
    for method, found in grid.items():
        curves[method] = tools.collect(result, places[start : start + len(found)], len(data[0].y_validation))
        start += len(found)
    curves["flooding"] = curves["none"].also(curves["flooding"])
    levels = np.array([0.0, *(candidate.level for candidate in grid["flooding"])])
    return Trained(levels, curves, len(data[0].y_train))
