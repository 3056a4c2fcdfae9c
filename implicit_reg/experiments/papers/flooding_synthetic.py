"""Flooding on two Gaussians, a sinusoid and a spiral with label noise, beside seven other ways not to overfit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from implicit_reg.experiments.papers import _noisy_choice as tools
from implicit_reg.experiments.papers._flooding_methods import METHODS, Scale, candidates, train_all
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.experiments.statistics import holm, interval, paired

FAST = Scale(
    data=("two-gaussians", "sinusoid", "spiral"),
    noises=(0.1,),
    widths=(100, 100, 100, 100),
    learning_rate=1e-3,
    epochs=200,
    every=5,
    num_train=100,
    num_validation=100,
    num_test=1000,
    seeds=6,
    levels=(0.1, 0.2, 0.3, 0.4, 0.5),
    decays=(1e-3, 1e-2, 1e-1),
    smoothings=(0.1, 0.2, 0.4),
    penalties=(0.03, 0.3),
    individual_levels=(0.1, 0.3, 0.5),
    soft_levels=(0.1, 0.3, 0.5),
    gammas=(0.1, 0.3, 0.6),
    folds=4,
    auxiliary_epochs=25,
    lanes=12,
)
TEST = dataclasses.replace(
    FAST,
    data=("sinusoid",),
    widths=(64, 64),
    learning_rate=1e-2,
    epochs=120,
    num_test=500,
    seeds=6,
    levels=(0.2, 0.3),
    decays=(1e-2,),
    smoothings=(0.2,),
    penalties=(),  # the dearest program to compile,
    individual_levels=(0.2,),
    soft_levels=(0.2,),
    gammas=(0.3,),
    folds=2,
    auxiliary_epochs=20,
    lanes=6,
)
FULL = dataclasses.replace(
    FAST,
    noises=(0.01, 0.05, 0.1),
    widths=(500, 500, 500, 500),
    epochs=500,
    num_test=20000,
    seeds=10,
    levels=tuple(round(0.01 * k, 2) for k in range(1, 51)),
    decays=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    smoothings=(0.02, 0.05, 0.1, 0.2, 0.4),
    penalties=(0.003, 0.01, 0.03, 0.1, 0.3),
    individual_levels=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    soft_levels=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    gammas=(0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.95),
    folds=10,
    auxiliary_epochs=50,
    lanes=8,
)


def _second_descent(
    curves: tools.Curves, setting: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the test loss does at each seed's level.

    Its change after the training loss arrived there, its highest point from then on above its lowest before, and its
    change over the last three quarters of the epochs. A seed that chose no flooding, or never arrived, counts as 0.
    """
    seeds = np.arange(setting.size)
    train, test = curves.train_loss[setting, seeds], curves.test_loss[setting, seeds]
    arrival = tools.first_at_or_below(train, levels[setting])
    change, rise, late = np.zeros((3, setting.size))
    for s in seeds:
        if levels[setting[s]] > 0 and arrival[s] >= 0:
            change[s] = test[s, -1] - test[s, arrival[s]]
            rise[s] = test[s, arrival[s] :].max() - test[s, : arrival[s] + 1].min()
            late[s] = test[s, -1] - test[s, test.shape[1] // 4]
    return change, rise, late


def measure(scale: Scale, lab: Lab) -> Findings:
    """Trains everything, chooses on noisy validation data, and compares.

    Args:
      scale: the settings.
      lab: where the sweeps are run.

    Returns:
      The findings.
    """
    problems = train_all(scale, lab)
    grid = candidates(scale)
    levels = np.array([0.0, *scale.levels])
    numbers: dict[str, float] = {}
    drawn: dict[str, Any] = {}
    method_rows: list[tuple] = []
    flood_rows: list[tuple] = []
    ends: dict[str, list[float]] = {name: [] for name in ("gain", "loss", "settling", "second", "stopping")}
    for name, methods in problems.items():
        off = methods["none"]
        full = {method: off if method == "none" else off.also(found) for method, found in methods.items()}
        choices = {method: tools.choose(found) for method, found in full.items()}
        plain, flood, curves = choices["none"], choices["flooding"], full["flooding"]
        seeds = np.arange(scale.seeds)
        at = (flood.setting, seeds)
        tail = max(2, round(0.1 * curves.train_loss.shape[-1]))
        distance = np.abs(curves.train_loss[at][:, -tail:].mean(axis=1) - levels[flood.setting])
        settled = distance[flood.setting > 0]
        change, rise, late = _second_descent(curves, flood.setting, levels)
        comparisons = {
            "gain": paired(flood.last, plain.last),
            "loss": paired(curves.test_loss[at][:, -1], off.test_loss[0, :, -1]),
            "second": interval(change),
            "late": interval(late),
            "stopping": paired(flood.last, plain.stopped),
        }
        for what, found in comparisons.items():
            numbers |= {f"{name}: {what} {end}": getattr(found, end) for end in ("mean", "low", "high")}
            if what in ends:
                ends[what].append(found.low if what in ("gain", "stopping") else found.high)
        ends["settling"].append(float(settled.mean()) if settled.size else np.nan)
        numbers |= {
            f"{name}: settling": ends["settling"][-1],
            f"{name}: chosen level": float(levels[flood.setting].mean()),
            f"{name}: rise": float(rise.mean()),
        }
        flood_rows.append(
            (
                name,
                ", ".join(f"{levels[k]:g}" for k in flood.setting),
                ends["settling"][-1],
                comparisons["loss"].text("+.3f"),
                f"{rise.mean():.3f}",
                comparisons["second"].text("+.3f"),
                comparisons["late"].text("+.3f"),
                tools.percent(comparisons["gain"], "+.1f"),
                tools.percent(comparisons["stopping"], "+.1f"),
            )
        )
        rows, bars = _compare(choices, plain, name)
        method_rows += rows
        drawn[name] = {
            "epoch": list(range(0, scale.epochs + 1, scale.every)),
            "level": float(levels[flood.common]),
            "none": {"train": off.train_loss[0].mean(axis=0), "test": off.test_loss[0].mean(axis=0)},
            "flooding": {
                "train": curves.train_loss[flood.common].mean(axis=0),
                "test": curves.test_loss[flood.common].mean(axis=0),
            },
            "levels": levels,
            "accuracy_by_level": curves.test_accuracy[:, :, -1].mean(axis=1),
            "methods": bars,
        }
    numbers |= {f"worst {what}": (min if what in ("gain", "stopping") else max)(ends[what]) for what in ends}
    numbers["smallest gain"] = min(numbers[f"{name}: gain mean"] for name in problems)
    tables = (
        Table(
            "Flooding, its level chosen on noisy validation data (loss against noisy test labels, in nats; accuracies "
            "against clean ones, in percentage points)",
            (
                "data",
                "levels chosen, by seed",
                "|training loss - level|",
                "test loss, flooding - none",
                "highest after reaching the level, above the lowest before",
                "change since the level was reached",
                "change over the last three quarters",
                "accuracy, flooding - none",
                "accuracy, flooding - early stopping",
            ),
            tuple(flood_rows),
        ),
        Table(
            "Clean test accuracy in percent, mean [95 % interval]; settings chosen on noisy validation data; p: paired "
            "test of the last epoch against no regularization, Holm over the methods of a data set",
            ("data", "method", "last epoch", "early stopping", "last epoch - none", "p (Holm)"),
            tuple(method_rows),
        ),
    )
    return Findings(numbers, tables, {"problems": drawn, "titles": METHODS}, _notes(numbers, problems, grid))


def _compare(choices: dict[str, tools.Choice], plain: tools.Choice, name: str) -> tuple[list[tuple], list[dict]]:
    """Rows of the table of methods, and what the figure draws of them."""
    others = [method for method in choices if method != "none"]
    differences = {method: paired(choices[method].last, plain.last) for method in others}
    adjusted = dict(zip(others, holm([differences[method].p for method in others]), strict=True))
    rows, bars = [], []
    for method, choice in choices.items():
        last, stopped = interval(100 * choice.last), interval(100 * choice.stopped)
        against = tools.percent(differences[method], "+.1f") if method in differences else None
        p = f"{adjusted[method]:.2g}" if method in adjusted else None
        rows.append((name, METHODS[method], last.text(".1f"), stopped.text(".1f"), against, p))
        bars.append({"name": method, "last": last._asdict(), "stopped": stopped._asdict()})
    return rows, bars


def _notes(numbers: dict[str, float], problems: dict[str, Any], grid: dict[str, list]) -> tuple[str, ...]:
    """What must be known to read the numbers, and where the claim does not hold."""
    clear = [name for name in problems if numbers[f"{name}: stopping low"] > 0]
    worse = [name for name in problems if numbers[f"{name}: stopping high"] < 0]
    words = [f"better on {', '.join(clear)}"] * bool(clear) + [f"worse on {', '.join(worse)}"] * bool(worse)
    searched = ", ".join(
        f"{METHODS[method]} {len(settings) + 1}" for method, settings in grid.items() if len(settings) > 1
    )
    return (
        "Against stopping plain training early on the same noisy validation data, flooding at its last epoch is "
        + ("; ".join(words) if words else "neither better nor worse beyond the interval on any data set")
        + ".",
        f"Candidates of each method, 'off' included: {searched}; more candidates mean more luck and more "
        "risk in the choice alike.",
        "Evaluation normalizes with the statistics of the training set under the present parameters, not with running "
        "averages; training is full batch.",
        "Epochs of early stopping are those observed, not all.",
        "The change over the last three quarters of the epochs, with flooding, was added after the criteria had been "
        "judged and is no part of the verdict: a slow second descent after a first rise would show there.",
    )


REPRODUCTION = Reproduction(
    name="flooding-synthetic",
    claim=(
        "Keeping the training loss at a level above zero makes a network that would fit noisy labels generalize "
        "better, with a second descent of the test loss."
    ),
    source="[ishida2020], the experiments on synthetic data; recipe of the official code",
    reported="The paper's number is not known here.",
    criteria=(
        Criterion(
            "on every data set, flooding (last epoch, level chosen on noisy validation data) exceeds no flooding in "
            "clean test accuracy: paired 95 % interval above 0",
            lambda n: n["worst gain"] > 0,
        ),
        Criterion(
            "on every data set, the training loss of the chosen levels settles within 0.03 nats of them",
            lambda n: n["worst settling"] <= 0.03,
        ),
        Criterion(
            "on every data set, the test loss (noisy labels, last epoch) is lower than without flooding: paired 95 % "
            "interval below 0",
            lambda n: n["worst loss"] < 0,
        ),
        Criterion(
            "on every data set, the test loss (noisy labels) falls again after the training loss reached the level: "
            "95 % interval of the change below 0",
            lambda n: n["worst second"] < 0,
        ),
        Criterion(
            "on every data set, flooding at its last epoch exceeds early stopping of plain training on the same noisy "
            "validation data: paired 95 % interval above 0",
            lambda n: n["worst stopping"] > 0,
        ),
    ),
    scales={"test": TEST, "fast": FAST, "full": FULL},
    measure=measure,
)
