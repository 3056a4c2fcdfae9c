"""Small and large batches at one flow time, and the full batch with the penalty that small batches carry implicitly."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg._tree import all_finite
from implicit_reg.curvature import minibatch_gradient_variance, sharpness
from implicit_reg.experiments.axes import static
from implicit_reg.experiments.papers import _digits_mlp as digits
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.experiments.results import SweepResult
from implicit_reg.experiments.statistics import Interval, holm, interval, paired
from implicit_reg.experiments.steps import run_steps, shuffled_batches
from implicit_reg.losses import microbatch_gradient_penalized
from implicit_reg.problems.networks import Layers

# Quantity -> the sign of its rank correlation with the batch size, if the claim is true.
CLAIMED = {"variance": 1, "sharpness": 1, "test_loss": 1, "test_accuracy": -1}
WORDS = {
    "variance": "the variance of minibatch gradients",
    "sharpness": "the sharpness",
    "test_loss": "the test cross-entropy",
    "test_accuracy": "the test accuracy",
    "train_loss": "the training loss",
}
CLOSER = ("variance", "test_loss")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One scale.

    Attributes:
      batch_sizes: increasing; the last is the full batch, which each divides.
      strengths: of the explicit penalty in units of h/4, the implicit one; the first is the one that is judged.
      step: the step size h of all runs.
      num_steps: of all runs, so that all have the flow time h num_steps.
      num_records: how often a run is looked at.
      widths: of the hidden layers.
      num_test: examples.
      num_seeds: split of the data, initialization and order of minibatches.
      repeats: of the timing of an epoch, of which the fastest counts.
      seed: of `jax.random.key`, of which all randomness is made.
      lanes: runs in one call.
    """

    batch_sizes: tuple[int, ...]
    strengths: tuple[float, ...]
    step: float
    num_steps: int
    num_records: int
    widths: tuple[int, ...]
    num_test: int
    num_seeds: int
    repeats: int
    seed: int
    lanes: int


def make_run(settings: Settings) -> Callable[..., Layers]:
    """The run at one batch size: `run(key, batch_size=...)`, with `strength=...` the full batch and the penalty.

    The penalty's microbatches are those of the smallest size in a new random order at every step, so that over the run
    it is the mean over their composition, as in shuffled minibatches.

    Args:
      settings: of the scale.

    Returns:
      A function for `sweep`; its outputs are the parameters, with a leading axis for the records.
    """
    num_train, smallest = settings.batch_sizes[-1], settings.batch_sizes[0]

    def run(key, *, batch_size=num_train, strength=None):
        data_key, start_key, order_key = jax.random.split(key, 3)
        data = digits.digits_split(data_key, num_train, settings.num_test)
        batch_index = shuffled_batches(order_key, num_train, batch_size)
        loss_fn = digits.cross_entropy
        if strength is not None:
            loss_fn = microbatch_gradient_penalized(loss_fn, strength * settings.step / 4, num_train // smallest)

        def batch_at(n):
            chosen = batch_index(n)
            if strength is not None:
                chosen = jax.random.permutation(jax.random.fold_in(order_key, n), num_train)
            return data.x_train[chosen], data.y_train[chosen]

        start = digits.glorot_layers(start_key, settings.widths)
        every = settings.num_steps // settings.num_records
        return run_steps(
            optax.sgd(settings.step), loss_fn, start, batch_at, settings.num_steps, every=every,
            observe=lambda params, state: params,
        ).observed  # fmt: skip

    return run


def look(settings: Settings, results: Sequence[SweepResult]) -> list[dict[str, np.ndarray]]:
    """What is measured along the runs, for all of them by one program: one inside each of theirs takes longer to
    compile than all else together.

    Args:
      settings: of the scale.
      results: sweeps of `make_run`.

    Returns:
      For each sweep, quantity to an array on the axes of its grid and the records; NaN where the run diverged.
    """
    num_train, smallest = settings.batch_sizes[-1], settings.batch_sizes[0]

    def at(key, records):
        data = digits.digits_split(jax.random.split(key, 3)[0], num_train, settings.num_test)
        train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)

        def one(params):
            return {
                "train_loss": digits.cross_entropy(params, *train),
                "variance": minibatch_gradient_variance(
                    digits.cross_entropy, params, train, num_batches=num_train // smallest
                ),
                "sharpness": sharpness(digits.cross_entropy, params, train, num_steps=15),
                "test_loss": digits.cross_entropy(params, *test),
                # Comparing NaN makes a wrong answer of it, and of a diverged run an accuracy.
                "test_accuracy": jnp.where(all_finite(params), digits.accuracy(params, *test), jnp.nan),
            }

        return jax.lax.map(one, records)

    root = jax.random.key(settings.seed)
    seeds = np.concatenate([result.settings["seed"] for result in results]).astype(np.uint32)
    keys = jax.vmap(lambda seed: jax.random.fold_in(root, seed))(jnp.asarray(seeds))
    records = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(_layers(result) for result in results))
    seen = jax.jit(lambda k, p: jax.lax.map(lambda x: at(*x), (k, p), batch_size=settings.lanes))(keys, records)
    ends = np.cumsum([len(result) for result in results])
    return [
        {
            name: np.asarray(values, float)[end - len(result) : end].reshape(*result.grid("status").shape, -1)
            for name, values in seen.items()
        }
        for result, end in zip(results, ends, strict=True)
    ]


def _layers(result: SweepResult) -> Layers:
    """The parameters that a sweep holds, all runs."""
    num_layers = len(result.leaves) // 2
    return [{name: jnp.asarray(result[f"{k}/{name}"]) for name in ("w", "b")} for k in range(num_layers)]


def seconds_per_epoch(settings: Settings) -> dict[int, float]:
    """Wall time of one epoch of one network on this machine, compiled beforehand, the fastest of several.

    Args:
      settings: of the scale.

    Returns:
      Batch size to seconds.
    """
    num_train = settings.batch_sizes[-1]
    data = digits.digits_split(jax.random.key(settings.seed), num_train, settings.num_test)
    start = digits.glorot_layers(jax.random.key(settings.seed), settings.widths)
    found = {}
    for batch_size in settings.batch_sizes:
        batch_index = shuffled_batches(jax.random.key(settings.seed), num_train, batch_size)
        num_steps = num_train // batch_size

        def epoch(params, batch_index=batch_index, num_steps=num_steps):
            return run_steps(
                optax.sgd(settings.step), digits.cross_entropy, params,
                lambda n: (data.x_train[batch_index(n)], data.y_train[batch_index(n)]), num_steps, every=num_steps,
                observe=lambda params, state: (),
            ).params  # fmt: skip

        compiled = jax.jit(epoch)
        jax.block_until_ready(compiled(start))
        seconds = []
        for _ in range(settings.repeats):
            begin = time.perf_counter()
            jax.block_until_ready(compiled(start))
            seconds.append(time.perf_counter() - begin)
        found[batch_size] = min(seconds)
    return found


def _compare(
    settings: Settings, last: dict[str, np.ndarray], extra: dict[str, np.ndarray]
) -> tuple[dict[str, float], list[tuple[str | float, ...]]]:
    """Intervals over seeds at the end: of batch sizes by seeds, and of penalty strengths by seeds."""
    numbers, rows = {}, []

    def add(name: str, text: str, x: Interval, p: float) -> None:
        numbers.update({name: x.mean, f"{name}/low": x.low, f"{name}/high": x.high, f"{name}/p": p})
        rows.append((text, x.mean, x.low, x.high, p))

    found = [interval([digits.spearman(settings.batch_sizes, values) for values in last[q].T]) for q in CLAIMED]
    for q, x, p in zip(CLAIMED, found, holm([x.p for x in found]), strict=True):
        # Student's interval knows nothing of the bounds of a correlation.
        bounded = x._replace(low=max(x.low, -1.0), high=min(x.high, 1.0))
        add(f"{q}/correlation", f"rank correlation with the batch size: {WORDS[q]}", bounded, float(p))
    for q in CLAIMED:
        x = paired(last[q][0], last[q][-1])
        add(f"{q}/smallest-full", f"smallest minus full batch: {WORDS[q]}", x, x.p)
        x = paired(extra[q][0], last[q][-1])
        add(f"{q}/penalized-full", f"penalized minus plain full batch: {WORDS[q]}", x, x.p)
    for q in CLOSER:
        x = paired(np.abs(last[q][-1] - last[q][0]), np.abs(extra[q][0] - last[q][0]))
        add(f"{q}/closer", f"distance from the smallest batch, plain minus penalized full batch: {WORDS[q]}", x, x.p)
    return numbers, rows


def measure(settings: Settings, lab: Lab) -> Findings:
    """Trains at every batch size, and the full batch with the penalty; times an epoch.

    Args:
      settings: of the scale.
      lab: where the sweeps run.

    Returns:
      What was found. Wall times are in a table and in the curves and in no number that a criterion could judge.
    """
    seeds, common = range(settings.num_seeds), {
        "key": jax.random.key(settings.seed),
        "width": settings.lanes,
        "identity": dataclasses.asdict(settings),
    }  # fmt: skip
    run = make_run(settings)
    sizes = {"batch_size": static(list(settings.batch_sizes)), "seed": seeds}
    batches = lab.sweep("batches", run, sizes, **common)
    penalized = lab.sweep("penalty", run, {"strength": list(settings.strengths), "seed": seeds}, **common)
    lab.report("timing an epoch")
    seconds = seconds_per_epoch(settings)

    lab.report("measuring along the runs")
    by_size, by_strength = look(settings, (batches, penalized))
    # A seed counts where none of its runs diverged: (seeds,).
    kept = np.isfinite(by_size["train_loss"]).all(axis=(0, 2)) & np.isfinite(by_strength["train_loss"]).all(axis=(0, 2))
    by_size, by_strength = ({q: values[:, kept] for q, values in seen.items()} for seen in (by_size, by_strength))
    last, extra = ({q: values[..., -1] for q, values in seen.items()} for seen in (by_size, by_strength))
    numbers, rows = _compare(settings, last, extra) if kept.sum() >= 2 else ({}, [])
    numbers["seeds_lost"] = float((~kept).sum())
    arms = [
        *((f"batches of {b}", last, i) for i, b in enumerate(settings.batch_sizes)),
        *((f"full batch, penalty {s:g} h/4", extra, i) for i, s in enumerate(settings.strengths)),
    ]
    tables = (
        Table(
            f"At flow time {settings.step * settings.num_steps:g}, mean over {int(kept.sum())} seeds",
            ("run", *WORDS),
            tuple((name, *(float(values[q][i].mean()) for q in WORDS)) for name, values, i in arms),
        ),
        Table(
            "Over seeds, paired; p adjusted by Holm among the four correlations",
            ("quantity", "mean", "95 % low", "95 % high", "p"),
            tuple(rows),
        ),
        Table(
            f"Wall time on this machine, one network, fastest of {settings.repeats}; no criterion looks at it",
            ("batch size", "updates an epoch", "ms an epoch", "ms an update"),
            tuple(
                (b, settings.batch_sizes[-1] // b, 1e3 * t, 1e3 * t * b / settings.batch_sizes[-1])
                for b, t in seconds.items()
            ),
        ),
    )
    curves = {
        "batch_sizes": list(settings.batch_sizes),
        "strengths": list(settings.strengths),
        "seconds": [seconds[b] for b in settings.batch_sizes],
        "time": [
            settings.step * settings.num_steps * k / settings.num_records for k in range(settings.num_records + 1)
        ],
        "num_seeds": int(kept.sum()),
        "against_full": {
            name: {q: digits.bands(values[q][..., -1] - by_size[q][-1, :, -1]) for q in WORDS}
            for name, values in (("batches", by_size), ("penalized", by_strength))
        },
        "batches": {q: digits.bands(np.moveaxis(values, 1, -1)) for q, values in by_size.items()},
        "penalized": {q: digits.bands(np.moveaxis(values, 1, -1)) for q, values in by_strength.items()},
    }
    return Findings(numbers, tables, curves, _notes(settings, int((~kept).sum())))


def _notes(settings: Settings, lost: int) -> tuple[str, ...]:
    ratio = (settings.batch_sizes[-1] // settings.batch_sizes[0]) * settings.step
    notes = [
        "Digits; one step size for all batch sizes, so that equal flow time is an equal number of updates and small "
        "batches see fewer epochs.",
        f"The step is not small against an epoch of the smallest batches (m h = {ratio:g}), so that the penalty is a "
        "guide here and not an expansion.",
        "The full batch carries (h/4) ||grad C||^2 already; the penalty adds it once more beside the variance.",
    ]
    if lost:
        notes.append(f"{lost} seeds on which a run diverged are left out of everything.")
    return tuple(notes)


def _correlation_criterion(quantity: str, sign: int) -> Criterion:
    return Criterion(
        f"at equal flow time {WORDS[quantity]} {'rises' if sign > 0 else 'falls'} with the batch size (rank "
        f"correlation, Holm-adjusted p <= 0.05 of four)",
        lambda n: n.get(f"{quantity}/correlation", np.nan) * sign > 0 and n[f"{quantity}/correlation/p"] <= 0.05,
    )


def _closer_criterion(quantity: str) -> Criterion:
    return Criterion(
        f"with the minibatch-norm penalty h/4 the full batch ends closer to the smallest batch in {WORDS[quantity]} "
        f"(95 % interval of the difference of distances above 0)",
        lambda n: n.get(f"{quantity}/closer/low", np.nan) > 0,
    )


SCALES = {
    "test": Settings(
        batch_sizes=(8, 64), strengths=(1.0,), step=0.2, num_steps=100, num_records=2, widths=(16,), num_test=300,
        num_seeds=3, repeats=1, seed=0, lanes=3,
    ),
    "fast": Settings(
        batch_sizes=(8, 16, 64, 256), strengths=(1.0, 4.0), step=0.1, num_steps=1500, num_records=10, widths=(32, 32),
        num_test=1000, num_seeds=8, repeats=5, seed=0, lanes=8,
    ),
    "full": Settings(
        batch_sizes=(8, 16, 32, 64, 128, 256, 1024), strengths=(1.0, 2.0, 4.0), step=0.05, num_steps=10000,
        num_records=10, widths=(100, 100), num_test=700, num_seeds=20, repeats=20, seed=0, lanes=5,
    ),
}  # fmt: skip

REPRODUCTION = Reproduction(
    name="batch-size",
    claim="At equal flow time small batches end in flatter places that generalize better than large ones do, and the "
    "full batch with an explicit penalty on the minibatches' gradient norms follows them.",
    source="[keskar2017] for flatness against batch size; [smith2021], [geiping2022] for the explicit penalty",
    reported="The paper's number is not known here.",
    criteria=(
        *(_correlation_criterion(quantity, sign) for quantity, sign in CLAIMED.items()),
        *(_closer_criterion(quantity) for quantity in CLOSER),
    ),
    scales=SCALES,
    measure=measure,
)
