"""Implicit gradient regularization over a family of networks: width and step size, compared at equal training loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from implicit_reg.experiments.axes import static
from implicit_reg.experiments.papers import _digits_mlp as digits
from implicit_reg.experiments.papers._igr_mlp_runs import RULES, Settings, make_run
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.experiments.results import SweepResult
from implicit_reg.experiments.statistics import Interval, holm, interval, paired

# Quantity -> the sign that its rank correlation with the step size has, if the claim is true.
CLAIMED = {"ratio": -1, "slope": -1, "rise": -1, "test_loss": -1, "test_accuracy": 1}
WORDS = {
    "ratio": "R_IG/E",
    "slope": "the slope ||grad E||",
    "rise": "the rise of the training loss under parameter noise",
    "test_loss": "the test cross-entropy",
    "test_accuracy": "the test accuracy",
}


def _correlations(result: SweepResult, rule: int) -> tuple[dict[str, Interval], int]:
    """Rank correlation with the step within each width, mean over widths, interval over seeds; and cells left out."""
    steps = np.asarray(result.axes["step"])
    # A cell counts only where every seed has it: (width, step).
    kept = result.grid("found")[..., rule].all(axis=2)
    num_seeds = len(result.axes["seed"])
    found = {}
    for quantity in CLAIMED:
        values = result.grid(quantity)[..., rule]
        rho = [
            [digits.spearman(steps[cells], values[w, cells, s]) for w, cells in enumerate(kept) if cells.sum() >= 3]
            for s in range(num_seeds)
        ]
        missing = Interval(*(np.nan,) * 4, num=num_seeds)
        mean = interval(np.mean(rho, axis=1)) if rho[0] else missing
        # Student's interval knows nothing of the bounds of a correlation.
        found[quantity] = mean._replace(low=max(mean.low, -1.0), high=min(mean.high, 1.0)) if rho[0] else missing
    return found, int((~kept).sum())


def _family(result: SweepResult, num_parameters: Mapping[int, int]) -> dict[str, Interval]:
    """Rank correlation with lambda = h m / 4 over widths and steps together, at equal training loss."""
    kept = result.grid("found")[..., 0].all(axis=2)
    if kept.sum() < 3:
        return {}
    strength = np.array([[h * num_parameters[w] / 4 for h in result.axes["step"]] for w in result.axes["width"]])[kept]
    return {
        quantity: interval(
            [digits.spearman(strength, result.grid(quantity)[kept, s, 0]) for s in range(len(result.axes["seed"]))]
        )
        for quantity in CLAIMED
    }


def _largest_against_smallest(result: SweepResult, quantity: str) -> Interval | None:
    """Largest minus smallest step that no seed lost, at equal training loss, mean over widths, paired by seed."""
    kept = result.grid("found")[..., 0].all(axis=(0, 2))
    usable = np.flatnonzero(kept)
    if usable.size < 2:
        return None
    steps = np.asarray(result.axes["step"])[usable]
    values = result.grid(quantity)[..., 0][:, usable].mean(axis=0)
    return paired(values[np.argmax(steps)], values[np.argmin(steps)])


def measure(settings: Settings, lab: Lab) -> Findings:
    """Trains the family, with minibatches and with the full batch, and correlates.

    Args:
      settings: of the scale.
      lab: where the sweeps run.

    Returns:
      What was found.
    """
    families = {
        "minibatch": (settings.steps, settings.batch_size),
        "full-batch": (settings.full_batch_steps, settings.num_train),
    }
    results = {
        name: lab.sweep(
            name,
            make_run(settings, steps, batch_size),
            {"width": static(list(settings.widths)), "step": list(steps), "seed": range(settings.num_seeds)},
            key=jax.random.key(settings.seed),
            width=settings.lanes,
            identity=dataclasses.asdict(settings),
        )
        for name, (steps, batch_size) in families.items()
    }
    numbers: dict[str, float] = {}
    curves: dict[str, Any] = {"num_seeds": settings.num_seeds, "level": settings.level, "noise": settings.noise}
    tables, notes, rows = [], [], []
    for name, result in results.items():
        for j, rule in enumerate(RULES):
            found, lost = _correlations(result, j)
            adjusted = holm([found[q].p for q in CLAIMED]) if np.isfinite(found["ratio"].p) else [np.nan] * len(CLAIMED)
            rows += [
                (name, rule, WORDS[q], x.mean, x.low, x.high, float(p))
                for (q, x), p in zip(found.items(), adjusted, strict=True)
            ]
            if j == 0:
                numbers[f"{name}/cells_lost"] = float(lost)
                for (q, x), p in zip(found.items(), adjusted, strict=True):
                    numbers |= {f"{name}/{q}": x.mean, f"{name}/{q}/p": float(p)}
                    numbers |= {f"{name}/{q}/low": x.low, f"{name}/{q}/high": x.high}
                if lost:
                    notes.append(f"{name}: {lost} cells in which a seed missed the level or diverged are left out.")
        for quantity in ("test_loss", "test_accuracy"):
            difference = _largest_against_smallest(result, quantity)
            if difference is not None:
                numbers[f"{name}/{quantity}/difference"] = difference.mean
                numbers[f"{name}/{quantity}/difference/low"] = difference.low
                numbers[f"{name}/{quantity}/difference/high"] = difference.high
        curves[name] = _curves(result)
        tables.append(_cells(name, result))
    tables.insert(0, Table(
        f"Spearman's rank correlation with the step size, mean over widths, {settings.num_seeds} seeds",
        ("batches", "compared at", "quantity", "mean", "95 % low", "95 % high", "p (Holm, of 5)"), tuple(rows),
    ))  # fmt: skip
    sizes = {w: _num_parameters(w, settings.num_hidden) for w in settings.widths}
    family = _family(results["minibatch"], sizes)
    tables.append(Table(
        "Rank correlation with lambda = h m / 4 over widths and step sizes together, minibatches, equal training loss",
        ("quantity", "mean", "95 % low", "95 % high"),
        tuple((WORDS[q], x.mean, x.low, x.high) for q, x in family.items()),
    ))  # fmt: skip
    notes += [
        "Digits and not MNIST, which is not bundled; tanh, for which the modified loss is smooth.",
        "R_IG carries 1/m (m parameters), so that it falls with the width whatever the training does: the verdict is "
        "on correlations with the step size within each width.",
        f"The slope is that of the iterate, with what the noise of its minibatches adds: its rank correlation with the "
        f"step size is {numbers['minibatch/slope']:.2f}, and {numbers['full-batch/slope']:.2f} with the full batch, "
        f"which has no such noise.",
        "The paper measures at the best test accuracy; that rule chooses on test data, and is a row of the table only.",
    ]
    return Findings(numbers, tuple(tables), curves, tuple(notes))


def _num_parameters(width: int, num_hidden: int) -> int:
    shapes = jax.eval_shape(lambda key: digits.glorot_layers(key, (width,) * num_hidden), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _curves(result: SweepResult) -> dict[str, Any]:
    """What is drawn: per width and step the change against the smallest step in percent, paired, at equal loss."""
    kept, steps = result.grid("found")[..., 0], result.axes["step"]
    changes = {}
    for quantity in (*CLAIMED, "sharpness"):
        values = np.where(kept, result.grid(quantity)[..., 0].astype(float), np.nan)
        changes[quantity] = digits.bands(100 * (values / values[:, [int(np.argmin(steps))]] - 1))
    return {"widths": list(result.axes["width"]), "steps": list(steps), "change": changes}


def _cells(name: str, result: SweepResult) -> Table:
    """Means over seeds of every cell at equal training loss."""
    columns = ("time", "loss", "ratio", "slope", "rise", "sharpness", "test_loss", "test_accuracy")
    rows = []
    for w, width in enumerate(result.axes["width"]):
        for h, step in enumerate(result.axes["step"]):
            reached = result.grid("found")[w, h, :, 0]
            means = [float(result.grid(c)[w, h, reached, 0].mean()) if reached.any() else None for c in columns]
            rows.append((width, step, int(reached.sum()), *means))
    heads = (
        "width",
        "h",
        "seeds there",
        "flow time",
        "E",
        "R_IG/E",
        "slope",
        "rise",
        "sharpness",
        "test CE",
        "test acc.",
    )
    return Table(f"{name}: at equal training loss, mean over seeds", heads, tuple(rows))


def _criterion(quantity: str, sign: int) -> Criterion:
    verb = "falls" if sign < 0 else "rises"
    return Criterion(
        f"{WORDS[quantity]} {verb} with the step size (minibatches, equal training loss; rank correlation within a "
        f"width, Holm-adjusted p <= 0.05 of five)",
        lambda n: n[f"minibatch/{quantity}"] * sign > 0 and n[f"minibatch/{quantity}/p"] <= 0.05,
    )


SCALES = {
    "test": Settings(
        widths=(16,), num_hidden=2, steps=(0.4, 0.2, 0.1), full_batch_steps=(0.4, 0.2, 0.1), num_seeds=3, num_train=96,
        num_test=300, batch_size=16, level=0.6, duration=24.0, noise=0.2, num_noises=4, seed=0, lanes=9,
    ),
    "fast": Settings(
        widths=(24, 48), num_hidden=4, steps=(0.2, 0.1, 0.2 / 3, 0.05), full_batch_steps=(0.4, 0.2, 0.1), num_seeds=8,
        num_train=320, num_test=1000, batch_size=32, level=0.03, duration=96.0, noise=0.2, num_noises=8, seed=0,
        lanes=8,
    ),
    # The family and the seeds of the paper, on digits; the largest steps that diverge are cells left out.
    "full": Settings(
        widths=(50, 100, 200, 400, 800, 1600), num_hidden=4, steps=(0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005),
        full_batch_steps=(0.5, 0.25, 0.1, 0.05), num_seeds=5, num_train=960, num_test=800, batch_size=32, level=0.01,
        duration=200.0, noise=0.2, num_noises=32, seed=0, lanes=5,
    ),
}  # fmt: skip

REPRODUCTION = Reproduction(
    name="igr-mlp",
    claim="At equal training loss, networks trained with larger steps have a smaller R_IG/E and a smaller slope, are "
    "more robust to parameter noise, and generalize better.",
    source="[barrett2021], the family of multi-layer perceptrons over width and step size (there on MNIST)",
    reported="The paper's number is not known here.",
    criteria=tuple(_criterion(quantity, sign) for quantity, sign in CLAIMED.items()),
    scales=SCALES,
    measure=measure,
)
