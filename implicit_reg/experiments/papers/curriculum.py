"""Clean examples first and noisy labels later, against all at once, with the sharpness followed along both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from implicit_reg.curvature import sharpness
from implicit_reg.experiments.papers import _digits_mlp as digits
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.experiments.statistics import Interval, holm, paired
from implicit_reg.experiments.steps import run_steps, shuffled_batches

# Order -> which examples the first and the second half of the steps draw from.
STAGES = {
    "all-at-once": ("all", "all"),
    "clean-then-all": ("clean", "all"),
    "clean-then-noisy": ("clean", "noisy"),
    "noisy-then-clean": ("noisy", "clean"),
}
BASELINE = "all-at-once"
WORDS = {"test_loss": "test cross-entropy", "test_accuracy": "test accuracy", "sharpness": "sharpness"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """One scale.

    Attributes:
      num_clean, num_noisy: training examples with right labels, and with labels of which a share is flipped.
      flipped: that share.
      num_test: examples, all with right labels.
      widths: of the hidden layers.
      step: the step size.
      batch_size: of the minibatches; divides `num_clean` and `num_noisy`.
      num_steps: of every run, in two halves.
      num_records: how often a run is looked at; even.
      num_seeds: split of the data, flips, initialization and order of minibatches.
      seed: of `jax.random.key`, of which all randomness is made.
      lanes: runs in one call.
    """

    num_clean: int
    num_noisy: int
    flipped: float
    num_test: int
    widths: tuple[int, ...]
    step: float
    batch_size: int
    num_steps: int
    num_records: int
    num_seeds: int
    seed: int
    lanes: int


def flip_labels(key: jax.Array, labels: Array, num_flipped: int) -> Array:
    """Gives the first `num_flipped` labels another class each, uniformly: `problems.flip_labels` of a traced key.

    Args:
      key: of the new classes.
      labels: in a random order, so that the first ones are a random choice.
      num_flipped: how many.

    Returns:
      The labels, the first ones wrong.

    Example:
      >>> (flip_labels(jax.random.key(0), jnp.zeros(5, jnp.int32), 3) > 0).tolist()
      [True, True, True, False, False]
    """
    shift = jax.random.randint(key, labels.shape, 1, digits.NUM_CLASSES, labels.dtype)
    return jnp.where(jnp.arange(labels.size) < num_flipped, (labels + shift) % digits.NUM_CLASSES, labels)


def make_run(settings: Settings) -> Callable[..., dict[str, Array]]:
    """The run of one order: `run(key, first=..., second=...)`, sets numbered as in `_SETS`, traceable.

    Args:
      settings: of the scale.

    Returns:
      A function for `sweep`; its outputs have a leading axis for the records.
    """
    sizes = {"all": settings.num_clean + settings.num_noisy, "clean": settings.num_clean, "noisy": settings.num_noisy}
    offsets = {"all": 0, "clean": 0, "noisy": settings.num_clean}
    half = settings.num_steps // 2

    def run(key, *, first, second):
        split_key, flip_key, start_key, *order_keys = jax.random.split(key, 6)
        data = digits.digits_split(split_key, sizes["all"], settings.num_test)
        wrong = flip_labels(flip_key, data.y_train[settings.num_clean :], round(settings.flipped * settings.num_noisy))
        labels = jnp.concatenate([data.y_train[: settings.num_clean], wrong])
        train, test = (data.x_train, labels), (data.x_test, data.y_test)
        # One order for each set, so that the halves of a run that draws from one set all the time are one run.
        orders = [shuffled_batches(order_keys[k], sizes[name], settings.batch_size) for k, name in enumerate(_SETS)]

        def batch_at(n):
            name = jnp.where(n < half, first, second)
            # A new set starts with its first epoch; where the set stays, its epochs go on.
            count = jnp.where((n >= half) & (first != second), n - half, n)
            drawn = jnp.stack([order(count) + offsets[word] for order, word in zip(orders, _SETS, strict=True)])
            return data.x_train[drawn[name]], labels[drawn[name]]

        def look(params):
            return {
                "train_loss": digits.cross_entropy(params, *train),
                "clean_loss": digits.cross_entropy(params, *(part[: settings.num_clean] for part in train)),
                "noisy_loss": digits.cross_entropy(params, *(part[settings.num_clean :] for part in train)),
                "sharpness": sharpness(digits.cross_entropy, params, train, num_steps=15),
                "test_loss": digits.cross_entropy(params, *test),
                "test_accuracy": digits.accuracy(params, *test),
            }

        # `run_steps` compiles `observe` twice, at the start and in its loop: it hands the parameters out instead.
        done = run_steps(
            optax.sgd(settings.step), digits.cross_entropy, digits.glorot_layers(start_key, settings.widths), batch_at,
            settings.num_steps, every=settings.num_steps // settings.num_records, observe=lambda params, state: params,
        )  # fmt: skip
        return jax.lax.map(look, done.observed)

    return run


_SETS = ("all", "clean", "noisy")


def _settings_of(settings: Settings) -> list[dict[str, Any]]:
    return [
        {"first": _SETS.index(first), "second": _SETS.index(second), "seed": seed}
        for first, second in STAGES.values()
        for seed in range(settings.num_seeds)
    ]


def _comparisons(ends: dict[str, dict[str, np.ndarray]]) -> dict[str, tuple[str, Interval]]:
    """Name -> words and the paired interval over seeds, order minus all at once, at the end."""
    base = ends[BASELINE]
    found = {
        f"clean-then-all/{q}": (f"clean, then all: {WORDS[q]}", paired(ends["clean-then-all"][q], base[q]))
        for q in WORDS
    }
    for order in ("clean-then-noisy", "noisy-then-clean"):
        words = f"{order.replace('-then-', ', then ')} (each example seen as often): {WORDS['test_loss']}"
        found[f"{order}/test_loss"] = (words, paired(ends[order]["test_loss"], base["test_loss"]))
    return found


def measure(settings: Settings, lab: Lab) -> Findings:
    """Trains in every order and compares, seed by seed, with all at once.

    Args:
      settings: of the scale.
      lab: where the sweep runs.

    Returns:
      What was found.
    """
    result = lab.sweep(
        "orders", make_run(settings), _settings_of(settings), key=jax.random.key(settings.seed), width=settings.lanes,
        identity=dataclasses.asdict(settings),
    )  # fmt: skip
    shape = (len(STAGES), settings.num_seeds)
    kept = (result.status.reshape(shape) == "ok").all(axis=0)
    paths = {name: result[name].reshape(*shape, -1)[:, kept].astype(float) for name in result.leaves}
    ends = {order: {name: values[i, :, -1] for name, values in paths.items()} for i, order in enumerate(STAGES)}
    half = settings.num_records // 2
    numbers: dict[str, float] = {"seeds_lost": float((~kept).sum())}
    rows = []
    if kept.sum() >= 2:
        found = _comparisons(ends)
        for (name, (words, x)), p in zip(found.items(), holm([x.p for _, x in found.values()]), strict=True):
            numbers |= {name: x.mean, f"{name}/low": x.low, f"{name}/high": x.high, f"{name}/p": float(p)}
            rows.append((words, x.mean, x.low, x.high, float(p)))
    means = {name: values.mean(axis=1) for name, values in paths.items()}
    tables = (
        Table(
            f"After {settings.num_steps} steps, mean over {int(kept.sum())} seeds; in brackets at half time",
            ("order", "training loss", "sharpness", "test CE", "(half)", "best on the way", "test accuracy", "(half)"),
            tuple(
                (
                    order.replace("-", " "),
                    *(float(means[q][i, -1]) for q in ("train_loss", "sharpness", "test_loss")),
                    float(means["test_loss"][i, half]),
                    float(paths["test_loss"][i].min(axis=1).mean()),
                    float(means["test_accuracy"][i, -1]),
                    float(means["test_accuracy"][i, half]),
                )
                for i, order in enumerate(STAGES)
            ),
        ),
        Table(
            "Order minus all at once at the end, paired by seed; p adjusted by Holm among all of them",
            ("quantity", "mean", "95 % low", "95 % high", "p (Holm)"),
            tuple(rows),
        ),
    )
    curves = {
        "orders": list(STAGES),
        "step": list(np.linspace(0, settings.num_steps, settings.num_records + 1)),
        "num_seeds": int(kept.sum()),
        "paths": {name: digits.bands(np.moveaxis(values, 1, -1)) for name, values in paths.items()},
    }
    return Findings(numbers, tables, curves, _notes(settings, means, half, int((~kept).sum())))


def _notes(settings: Settings, means: dict[str, np.ndarray], half: int, lost: int) -> tuple[str, ...]:
    orders = list(STAGES)
    curriculum, once = orders.index("clean-then-all"), orders.index(BASELINE)
    notes = [
        "Steps are matched and looks at noisy labels are not: clean, then all sees each of them half as often as all "
        "at once. Where every example is seen as often (clean, then noisy) is the third row.",
        f"The sharpness is that of the loss on all training examples, noisy ones included, whose mean loss at the end "
        f"is {means['train_loss'][curriculum, -1]:.3g} (clean, then all) and {means['train_loss'][once, -1]:.3g} (all "
        f"at once): it is compared at equal steps and not at equal loss.",
        f"At half time, before it has seen a noisy label, the curriculum has a test cross-entropy of "
        f"{means['test_loss'][curriculum, half]:.3g}, at the end {means['test_loss'][curriculum, -1]:.3g}: who knows "
        f"which labels are noisy can leave them out.",
    ]
    if lost:
        notes.append(f"{lost} seeds on which a run diverged are left out of everything.")
    return tuple(notes)


def _lower(name: str, sign: int = -1) -> Callable[[Any], bool]:
    return lambda n: n.get(name, np.nan) * sign > 0 and n[f"{name}/p"] <= 0.05


_RULE = "paired difference over seeds, Holm-adjusted p <= 0.05 of five"

SCALES = {
    "test": Settings(
        num_clean=64, num_noisy=64, flipped=0.5, num_test=300, widths=(16,), step=0.5, batch_size=16, num_steps=400,
        num_records=4, num_seeds=3, seed=0, lanes=12,
    ),
    "fast": Settings(
        num_clean=256, num_noisy=256, flipped=0.4, num_test=1000, widths=(64,), step=0.2, batch_size=32,
        num_steps=4000, num_records=20, num_seeds=10, seed=0, lanes=20,
    ),
    "full": Settings(
        num_clean=512, num_noisy=512, flipped=0.4, num_test=700, widths=(400, 400), step=0.1, batch_size=32,
        num_steps=20000, num_records=50, num_seeds=30, seed=0, lanes=20,
    ),
}  # fmt: skip

REPRODUCTION = Reproduction(
    name="curriculum",
    claim="Training on clean data first and on noisy labels later ends, after equally many steps, in a flatter place "
    "that generalizes better than training on all at once.",
    source="[bengio2009] for the order; [keskar2017] for flatness as what makes the difference",
    reported="The paper's number is not known here.",
    criteria=(
        Criterion(
            f"clean, then all ends with a lower test cross-entropy than all at once ({_RULE})",
            _lower("clean-then-all/test_loss"),
        ),
        Criterion(
            f"clean, then all ends with a higher test accuracy ({_RULE})", _lower("clean-then-all/test_accuracy", 1)
        ),
        Criterion(f"clean, then all ends with a smaller sharpness ({_RULE})", _lower("clean-then-all/sharpness")),
        Criterion(
            f"where each example is seen as often, clean, then noisy ends with a lower test cross-entropy ({_RULE})",
            _lower("clean-then-noisy/test_loss"),
        ),
    ),
    scales=SCALES,
    measure=measure,
)
