"""The temperature of stochastic gradient descent: what shuffling adds to gradient descent goes as h/B."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.experiments.statistics import interval
from implicit_reg.problems import digits_tanh

EXPONENT_TOLERANCE = 0.05
FACTOR_TOLERANCE = 0.05  # relative, of 1/4
COLLAPSE, NO_COLLAPSE = 0.1, 0.5  # root mean square of the logarithm's residuals with the right and with a wrong law
LAWS: dict[str, tuple[int, int]] = {"h/B": (1, 1), "h alone": (1, 0), "1/B alone": (0, 1)}  # powers of h and 1/B


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scale of the run.

    Attributes:
      num_examples: N of scikit-learn's digits.
      width: of the hidden layer.
      step_sizes: small enough for the second term to be alone: N h lambda is at most 0.2.
      batch_sizes: divisors of N.
      num_pairs: orders of all examples that a run draws; each comes with its reverse.
      num_seeds: runs of a cell.
    """

    num_examples: int = 64
    width: int = 8
    step_sizes: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    num_pairs: int = 128
    num_seeds: int = 10


def make_drift(settings: Settings) -> Callable[..., Array]:
    """`fn(key, h, batch)` for a sweep: the coefficient of the implicit term, measured.

    Over an epoch of m = N/B shuffled minibatches the mean end deviates from that of m steps of gradient descent, which
    follow the modified flow of gradient descent to all orders, by `-m h c grad Gamma`,
    `Gamma = (1/N) sum_i ||g_i - g||^2`. The mean is over random orders of all N examples, hence over the composition of
    the minibatches too; an order and its reverse together are free of the deviation of single orders. `c` is the
    projection on `-m h grad Gamma`.

    Args:
      settings: the scale.

    Returns:
      The function; `batch` is traced, for a minibatch is a sum over examples one by one: one program for all sizes.
    """
    problem = digits_tanh(0, num_examples=settings.num_examples, width=settings.width)
    start, unravel = ravel_pytree(problem.params)
    everything = jnp.arange(settings.num_examples, dtype=jnp.int32)
    gradient = jax.grad(lambda x, indices: problem.loss_fn(unravel(x), indices))

    def gamma(x):
        each = jax.vmap(lambda i: gradient(x, i[None]))(everything)
        return jnp.mean(jnp.sum((each - jnp.mean(each, axis=0)) ** 2, axis=1))

    direction = jax.jit(jax.grad(gamma))(start)

    def epoch(order, h, batch):
        def example(carry, given):
            x, total = carry
            position, i = given
            total = total + gradient(x, i[None]) / batch
            last = position % batch == batch - 1
            return (jnp.where(last, x - h * total, x), jnp.where(last, 0.0, total)), None

        return jax.lax.scan(example, (start, jnp.zeros_like(start)), (everything, order))[0][0]

    def drift(key, h, batch):
        num_steps = settings.num_examples // batch
        descent = jax.lax.fori_loop(0, num_steps, lambda _, x: x - h * gradient(x, everything), start)
        keys = jax.random.split(key, settings.num_pairs)
        orders = jax.vmap(lambda key: jax.random.permutation(key, everything))(keys)
        both = jnp.concatenate([orders, orders[:, ::-1]])
        mean = jnp.mean(jax.vmap(lambda order: epoch(order, h, batch))(both), axis=0)
        return -(mean - descent) @ direction / (direction @ direction) / (num_steps * h)

    return drift


def _residual(logs: np.ndarray, law: np.ndarray) -> float:
    """Root mean square of what one free factor before a law leaves of the logarithms."""
    off = logs - law
    return float(np.sqrt(np.mean((off - off.mean()) ** 2)))


def measure(settings: Settings, lab: Lab) -> Findings:
    """The coefficient over a grid of step and batch sizes, and what it goes as.

    Args:
      settings: the scale.
      lab: where the sweep runs.

    Returns:
      Exponents with intervals, and how well each law fits.
    """
    axes: dict[str, Any] = {
        "h": list(settings.step_sizes),
        "batch": list(settings.batch_sizes),
        "seed": range(settings.num_seeds),
    }
    swept = lab.sweep(
        "drift",
        make_drift(settings),
        axes,
        key=jax.random.key(0),
        width=min(32, len(settings.step_sizes) * len(settings.batch_sizes) * settings.num_seeds),
        identity=dataclasses.asdict(settings),
    )
    n = settings.num_examples
    h, b = np.meshgrid(settings.step_sizes, settings.batch_sizes, indexing="ij")
    # The last minibatch of an epoch is decided by the others: the factor of a finite population.
    scaled = swept.grid("value") * ((n - 1) / (n - b))[:, :, None]
    logs = np.log(scaled)
    design = np.stack([np.ones(h.size), np.log(h.ravel()), -np.log(b.ravel())], axis=1)
    fits = np.linalg.lstsq(design, logs.reshape(h.size, -1), rcond=None)[0]
    factor = np.exp(np.mean(logs - np.log(h / b)[:, :, None], axis=(0, 1)))
    found = {"exponent of h": interval(fits[1]), "exponent of 1/B": interval(fits[2]), "factor": interval(factor)}
    numbers: dict[str, float] = {}
    for name, value in found.items():
        numbers |= {name: value.mean, f"{name}, low": value.low, f"{name}, high": value.high}
    mean = np.log(scaled.mean(axis=2))
    residuals = {
        name: _residual(mean, power * np.log(h) - inverse * np.log(b)) for name, (power, inverse) in LAWS.items()
    }
    numbers |= {f"residual of {name}": value for name, value in residuals.items()}
    rows = []
    for i, step in enumerate(settings.step_sizes):
        for j, batch in enumerate(settings.batch_sizes):
            cell = interval(scaled[i, j] / (step / batch))
            rows.append((step, batch, float(scaled[i, j].mean()), cell.mean, cell.low, cell.high))
    table = Table(
        "Coefficient c of the variance of example gradients, without the factor (N - B)/(N - 1)",
        ("h", "B", "c", "c B/h", "low", "high"),
        tuple(rows),
    )
    curves = {
        "step_sizes": settings.step_sizes,
        "batch_sizes": settings.batch_sizes,
        "coefficients": scaled.mean(axis=2),
        "residuals": residuals,
    }
    notes = (
        "The criteria ask for agreement within a margin and not for an interval that holds 1: at the largest N h the "
        "next order of the step size lowers c by 2 %, and with orders enough any interval sees that.",
        "At the start of training, for one network on one set of examples: the seeds are those of the orders.",
        "That the best learning rate of a Wide-ResNet goes as B is a consequence that is not tested here.",
    )
    return Findings(numbers, (table,), curves, notes)


def _within(name: str, value: float, tolerance: float) -> Callable[[Any], bool]:
    return lambda n: value - tolerance <= n[f"{name}, low"] and n[f"{name}, high"] <= value + tolerance


CRITERIA = (
    *(
        Criterion(
            f"c ~ h^p B^-q: the 95 % interval of the {name} lies within {EXPONENT_TOLERANCE:g} of 1",
            _within(name, 1.0, EXPONENT_TOLERANCE),
        )
        for name in ("exponent of h", "exponent of 1/B")
    ),
    Criterion(
        f"c B/h is 1/4: its 95 % interval lies within {100 * FACTOR_TOLERANCE:g} % of it",
        _within("factor", 0.25, 0.25 * FACTOR_TOLERANCE),
    ),
    Criterion(
        f"with one free factor h/B leaves residuals of at most {COLLAPSE:g} (root mean square of log c), h alone and "
        f"1/B alone more than {NO_COLLAPSE:g} each",
        lambda n: (
            n["residual of h/B"] <= COLLAPSE and min(n["residual of h alone"], n["residual of 1/B alone"]) > NO_COLLAPSE
        ),
    ),
)

REPRODUCTION = Reproduction(
    name="sgd-temperature",
    claim="What random shuffling adds to gradient descent's implicit regularization is proportional to the ratio of "
    "step size and batch size.",
    source="[smith2021] the scale of the implicit regularizer, h/B for small batches",
    reported="The regularizer is proportional to h/B for small B; no numbers of a measurement are known here.",
    criteria=CRITERIA,
    scales={
        "test": Settings(
            num_examples=32, width=4, step_sizes=(1e-4, 1e-3), batch_sizes=(1, 2, 4), num_pairs=96, num_seeds=5
        ),
        "fast": Settings(),
        "full": Settings(num_examples=512, width=32, step_sizes=(1e-5, 3e-5, 1e-4), batch_sizes=(1, 4, 16, 64)),
    },
    measure=measure,
    x64=True,
)
