"""Eight ways to train on noisy labels as one family of programs: what `flooding_synthetic` sweeps over."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg.experiments.papers import _noisy_choice as tools
from implicit_reg.experiments.papers._batch_norm_mlp import accuracy, cross_entropies, initial_layers, logits
from implicit_reg.experiments.reproduction import Lab
from implicit_reg.experiments.steps import run_steps
from implicit_reg.losses import adaptive_level, flooded, gradient_penalized, soft_flooded
from implicit_reg.problems.synthetic import SYNTHETIC, NoisyDataset
from implicit_reg.transforms import flooding


@dataclasses.dataclass(frozen=True)
class Scale:
    """Settings of one scale.

    Attributes:
      data: names of `SYNTHETIC`.
      noises: fractions of flipped labels.
      widths: hidden layers.
      learning_rate: of Adam.
      epochs: gradient steps: each sees all training examples, as in the official demonstration (100 examples, batch
        200).
      every: epochs from one observation to the next; odd, so that both halves of an alternation are seen.
      num_train, num_validation, num_test: examples of both classes together.
      seeds: of data, initialization and noise.
      levels: of flooding, without 0.
      decays, smoothings, penalties, individual_levels, soft_levels, gammas: the grids of the other methods, without
        "off", which is the first candidate of each, and the only one where a grid is empty.
      folds: the auxiliary losses of AdaFlood come from models trained on the other folds.
      auxiliary_epochs: of those models: few, so that they do not fit the noise.
      lanes: runs at a time.
    """

    data: tuple[str, ...]
    noises: tuple[float, ...]
    widths: tuple[int, ...]
    learning_rate: float
    epochs: int
    every: int
    num_train: int
    num_validation: int
    num_test: int
    seeds: int
    levels: tuple[float, ...]
    decays: tuple[float, ...]
    smoothings: tuple[float, ...]
    penalties: tuple[float, ...]
    individual_levels: tuple[float, ...]
    soft_levels: tuple[float, ...]
    gammas: tuple[float, ...]
    folds: int
    auxiliary_epochs: int
    lanes: int


class Setting(NamedTuple):
    """One candidate; `family` decides the program, the numbers are its operands."""

    family: str
    level: float = 0.0
    decay: float = 0.0
    smoothing: float = 0.0
    gamma: float = -1.0
    softness: float = 0.0
    strength: float = 0.0


OFF = Setting("batch")
METHODS = {
    "none": "no regularization",
    "flooding": "flooding",
    "weight-decay": "weight decay",
    "label-smoothing": "label smoothing",
    "gradient-penalty": "gradient penalty",
    "individual-flooding": "individual flooding",
    "softad": "SoftAD",
    "adaflood": "AdaFlood",
}


def candidates(scale: Scale) -> dict[str, list[Setting]]:
    """The grid of each method, without "off", which stands alone under "none".

    Args:
      scale: gives the grids.

    Returns:
      Method to settings.

    Example:
      >>> from implicit_reg.experiments.papers.flooding_synthetic import REPRODUCTION
      >>> [setting.level for setting in candidates(REPRODUCTION.scales["test"])["flooding"]]
      [0.2, 0.3]
    """
    return {
        "none": [OFF],
        "flooding": [Setting("batch", level=b) for b in scale.levels],
        "weight-decay": [Setting("batch", decay=d) for d in scale.decays],
        "label-smoothing": [Setting("batch", smoothing=s) for s in scale.smoothings],
        "gradient-penalty": [Setting("penalty", strength=s) for s in scale.penalties],
        "individual-flooding": [Setting("examples", level=b) for b in scale.individual_levels],
        "softad": [Setting("examples", level=b, softness=1.0) for b in scale.soft_levels],
        "adaflood": [Setting("examples", gamma=g) for g in scale.gammas],
    }


class Arrays(NamedTuple):
    """The data of several cases (problems and seeds), stacked."""

    x: tuple[np.ndarray, np.ndarray, np.ndarray]
    y: tuple[np.ndarray, np.ndarray, np.ndarray]
    clean_test: np.ndarray


def stack(problems: list[NoisyDataset]) -> Arrays:
    """Stacks data of equal shapes.

    Args:
      problems: one for each case.

    Returns:
      Arrays with a leading axis of cases.

    Example:
      >>> from implicit_reg.problems.synthetic import spiral
      >>> stack([spiral(0, num_test=8), spiral(1, num_test=8)]).x[2].shape
      (2, 8, 2)
    """
    parts = ("train", "validation", "test")
    x, y = (tuple(np.stack([getattr(p.data, f"{c}_{w}") for p in problems]) for w in parts) for c in "xy")
    return Arrays(x, y, np.stack([p.clean_test for p in problems]))


def make_run(scale: Scale, arrays: Arrays, auxiliary: np.ndarray) -> Any:
    """The function that the sweep runs: `run(key, case=, family=, level=, ...)`.

    Args:
      scale: sizes and optimizer.
      arrays: data by case.
      auxiliary: AdaFlood's losses of the training examples, (cases, examples).

    Returns:
      A traceable function of a key and settings.
    """

    def run(key, *, case, family, level, decay, smoothing, gamma, softness, strength):
        (x, xv, xt), (y, yv, yt) = ([jnp.asarray(part)[case] for part in parts] for parts in (arrays.x, arrays.y))
        clean, aux_losses = jnp.asarray(arrays.clean_test)[case], jnp.asarray(auxiliary)[case]
        # With x64 on, operands are float64 and would widen the optimizer's state.
        numbers = (level, decay, smoothing, gamma, softness, strength)
        level, decay, smoothing, gamma, softness, strength = (jnp.asarray(number, x.dtype) for number in numbers)

        def losses(params):
            return cross_entropies(logits(params, x)[0], y)

        def mean_loss(params):
            return jnp.mean(losses(params))

        transformation = optax.adam(scale.learning_rate)
        if family == "batch":
            # As torch's Adam has it: the decay joins the gradient after the flood's sign, so it never ascends.
            transformation = optax.chain(flooding(level), optax.add_decayed_weights(decay), transformation)

            def loss(params):
                log_p = jax.nn.log_softmax(logits(params, x)[0])
                right = jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))
                return -(1 - smoothing) * right - smoothing * jnp.mean(log_p)

        elif family == "penalty":
            loss = gradient_penalized(mean_loss, strength)
        else:
            adaptive = adaptive_level(aux_losses, jnp.clip(gamma, 0, 1))
            hard = flooded(losses, jnp.where(gamma >= 0, adaptive, level), per_example=True)
            soft = soft_flooded(losses, level)

            def loss(params):
                # Both are cheap beside the losses that they share, and one program compiles faster than two.
                return jnp.where(softness > 0, soft(params), hard(params))

        def observe(params, state):
            del state
            z, rest = logits(params, x, jnp.concatenate([xv, xt]))
            zv, zt = rest[: scale.num_validation], rest[scale.num_validation :]
            return {
                "train": {"loss": jnp.mean(cross_entropies(z, y))},
                "validation": {"loss": jnp.mean(cross_entropies(zv, yv)), "accuracy": accuracy(zv, yv)},
                "test": {"loss": jnp.mean(cross_entropies(zt, yt)), "accuracy": accuracy(zt, clean)},
            }

        # One key for the runs of a case, whatever the method: they start alike and are compared in pairs.
        params = initial_layers(jax.random.fold_in(key, case), (x.shape[1], *scale.widths, 2))
        done = run_steps(transformation, loss, params, None, scale.epochs, every=scale.every, observe=observe)
        return {**done.observed, "first_bad_step": done.first_bad_step}

    return run


def make_auxiliary(scale: Scale, arrays: Arrays) -> Any:
    """The function that trains AdaFlood's auxiliary models: `run(key, case=, fold=) -> losses of the fold left out`.

    Args:
      scale: sizes and optimizer; `folds` divides `num_train`.
      arrays: data by case.

    Returns:
      A traceable function of a key and settings.
    """
    numbers = jnp.arange(scale.num_train).reshape(scale.folds, -1)

    def run(key, *, case, fold):
        x, y = jnp.asarray(arrays.x[0])[case], jnp.asarray(arrays.y[0])[case]
        held = numbers[fold]
        seen = jnp.roll(numbers, -1 - fold, axis=0)[:-1].reshape(-1)

        def loss(params):
            return jnp.mean(cross_entropies(logits(params, x[seen])[0], y[seen]))

        def observe(params, state):
            return cross_entropies(logits(params, x[seen], x[held])[1], y[held])

        params = initial_layers(jax.random.fold_in(key, case), (x.shape[1], *scale.widths, 2))
        epochs = scale.auxiliary_epochs
        steps = run_steps(optax.adam(scale.learning_rate), loss, params, None, epochs, every=epochs, observe=observe)
        return steps.observed[-1]

    return run


def train_all(scale: Scale, lab: Lab) -> dict[str, dict[str, tools.Curves]]:
    """Trains every candidate of every method on every problem and seed.

    Args:
      scale: the settings.
      lab: where the sweeps are run.

    Returns:
      Name of the problem to method to curves; "off" is the one setting of "none" and not repeated.
    """
    grid = candidates(scale)
    flat = [setting for settings in grid.values() for setting in settings]
    sizes = {f"num_{part}": getattr(scale, f"num_{part}") for part in ("train", "validation", "test")}
    problems = {
        f"{name}, {noise:.0%} noise": [SYNTHETIC[name](s, label_noise=noise, **sizes) for s in range(scale.seeds)]
        for name, noise in itertools.product(scale.data, scale.noises)
    }
    curves: dict[str, dict[str, tools.Curves]] = {name: {} for name in problems}
    # Programs are compiled for shapes: data sets with equally many features share them.
    for features in sorted({data[0].data.num_features for data in problems.values()}):
        group = {name: data for name, data in problems.items() if data[0].data.num_features == features}
        arrays = stack([problem for data in group.values() for problem in data])
        cases = list(range(len(group) * scale.seeds))
        options = {"key": jax.random.key(0), "identity": dataclasses.asdict(scale), "width": scale.lanes}
        folds = {"case": cases, "fold": list(range(scale.folds))}
        held_out = lab.sweep(f"auxiliary-{features}-features", make_auxiliary(scale, arrays), folds, **options)
        auxiliary = held_out["value"].reshape(len(cases), scale.num_train)
        rows = [{"case": case, **setting._asdict()} for setting in flat for case in cases]
        result = lab.sweep(f"{features}-features", make_run(scale, arrays, auxiliary), rows, **options)
        places = np.arange(len(rows)).reshape(len(flat), len(group), scale.seeds)
        for g, name in enumerate(group):
            start = 0
            for method, settings in grid.items():
                runs = places[start : start + len(settings), g]
                curves[name][method] = tools.collect(result, runs, scale.num_validation)
                start += len(settings)
    return curves
