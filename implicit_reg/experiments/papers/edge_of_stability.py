"""The edge of stability on a Chebyshev polynomial: sharpness climbs to 2/h and stays; what iterates follow there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.flows.central import Weights, central_flow, edge_gradient_descent

DEGREE, NUM_EXAMPLES, GAIN = 5, 20, 1.9
WINDOW = 20  # steps of the moving average; even, for the oscillation has period 2
MODES = 2  # eigenpairs followed
ITERATIONS, COLD = 4, 60  # Rayleigh-Ritz steps at a record, and at the first
THIN = 10  # curves keep one point in so many steps
HELD = (0.95, 1.1)  # sharpness times h/2 at the edge
BEYOND = 1.2  # of the edge, for gradient flow
NEARER = 0.5  # central flow, in distances of gradient flow
AVERAGES = 0.1  # relative, of the mean loss


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scale of the run.

    Attributes:
      step_sizes: increasing.
      width: of the hidden layer.
      num_steps: of descent.
      every: steps between two measurements of the sharpness; divides `num_steps`.
      flow_steps: how long the flows are followed from the edge on, in steps.
      seed: of the network.
    """

    step_sizes: tuple[float, ...] = (0.2, 0.4)
    width: int = 100
    num_steps: int = 6000
    every: int = 20
    flow_steps: int = 1000
    seed: int = 0


def network(width: int, seed: int) -> tuple[Callable[[Array], Array], Array]:
    """The published regression: 1-width-1 with tanh, no bias at the output, half the mean squared error.

    Xavier's normal weights, 1.9 times as large in the first layer, biases 0; the polynomial of degree 5 at 20 points
    evenly spaced on [-1, 1].

    Args:
      width: of the hidden layer.
      seed: of the weights.

    Returns:
      The loss of one flat vector, and a start.

    Example:
      >>> loss, start = network(100, 0)
      >>> start.shape, bool(loss(start) > 0.1)
      ((300,), True)
    """
    rng = np.random.default_rng(seed)
    deviation = np.sqrt(2 / (1 + width))
    start = np.concatenate(
        [GAIN * deviation * rng.standard_normal(width), np.zeros(width), deviation * rng.standard_normal(width)]
    )
    x = np.linspace(-1, 1, NUM_EXAMPLES)
    y = np.polynomial.chebyshev.chebval(x, [0] * DEGREE + [1])

    def loss(params: Array) -> Array:
        weights, biases, out = jnp.split(params, 3)
        outputs = jnp.tanh(jnp.asarray(x)[:, None] * weights + biases) @ out
        return 0.5 * jnp.mean((outputs - jnp.asarray(y)) ** 2)

    return loss, jnp.asarray(start)


def _averaged(values: Array) -> Array:
    """The moving average over `WINDOW` steps, along the first axis."""
    sums = jnp.cumsum(jnp.concatenate([jnp.zeros_like(values[:1]), values]), axis=0)
    return (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW


def _sharpest(loss: Callable, x: Array, basis: Array, iterations: Array) -> tuple[Array, Array]:
    """The largest eigenvalue of the Hessian, by Rayleigh-Ritz steps on the span of a basis and its residuals."""
    product = jax.vmap(jax.linearize(jax.grad(loss), x)[1], 1, 1)

    def improve(_, carry):
        basis, _ = carry
        applied = product(basis)
        residual = applied - basis @ (basis.T @ applied)
        space = jnp.linalg.qr(jnp.concatenate([basis, residual], axis=1))[0]
        values, vectors = jnp.linalg.eigh(space.T @ product(space))
        return space @ vectors[:, -MODES:], values[-1]

    return jax.lax.fori_loop(0, iterations, improve, (basis, jnp.zeros((), x.dtype)))


def _descend(settings: Settings, loss: Callable, start: Array, h: Array) -> tuple[Array, Array, Array]:
    """All iterates and losses, and the sharpness at every `every`-th; its eigenvectors start from the last ones."""

    def step(x, _):
        value, g = jax.value_and_grad(loss)(x)
        return x - h * g, (x, value)

    def record(carry, k):
        x, basis = carry
        basis, sharpness = _sharpest(loss, x, basis, jnp.where(k == 0, COLD, ITERATIONS))
        x, (path, losses) = jax.lax.scan(step, x, length=settings.every)
        return (x, basis), (path, losses, sharpness)

    basis = jnp.linalg.qr(jnp.cos(jnp.arange(1.0, start.size + 1)[:, None] ** 2 * jnp.arange(1.0, MODES + 1)))[0]
    records = jnp.arange(settings.num_steps // settings.every)
    _, (path, losses, sharpness) = jax.lax.scan(record, (start, basis), records)
    return path.reshape(-1, start.size), losses.ravel(), sharpness


def _measure_one(settings: Settings, h: Array) -> dict[str, Array]:
    """Descent, and from the edge on the central flow and gradient flow beside it."""
    loss, start = network(settings.width, settings.seed)
    path, losses, sharp = _descend(settings, loss, start, h)
    # The flows start where the sharpness first is at the edge: nothing oscillates there yet.
    over = h * sharp / 2 >= 1
    latest = settings.num_steps - settings.flow_steps
    reached = jnp.minimum(jnp.where(jnp.any(over), jnp.argmax(over) * settings.every, latest), latest)
    origin = path[reached]
    mean = _averaged(jax.lax.dynamic_slice_in_dim(path, reached, settings.flow_steps))
    seen = jax.lax.dynamic_slice_in_dim(losses, reached, settings.flow_steps)

    def flow(weights):
        found = central_flow(
            loss, edge_gradient_descent(), origin, h, settings.flow_steps - 1, num_modes=MODES, weights=weights
        )
        distance = jnp.linalg.norm(mean - _averaged(found.params), axis=1)
        return {
            "distance": distance[::THIN],
            "mean_distance": jnp.mean(distance),
            "sharpness": 2 / h * found.sharpness[::THIN, 0],
            "loss": found.loss[::THIN],
            "predicted": _averaged(found.predicted_loss)[::THIN],
            "mean_predicted": jnp.mean(found.predicted_loss),
        }

    # The part of the oscillation on, and off: off, the central flow is gradient flow.
    flows = jax.vmap(flow)(Weights(jnp.array([1.0, 0.0]), jnp.zeros(2), jnp.zeros(2)))
    n = jnp.arange(settings.num_steps)
    edge = settings.num_steps - reached
    return {
        "sharpness": sharp,
        "loss": losses[::THIN],
        "reached": reached,
        "held": jnp.median(sharp[-(len(sharp) // 4) :]) * h / 2,
        "early": jnp.mean(losses, where=(n >= reached) & (n < reached + edge // 4)),
        "late": jnp.mean(losses, where=n >= settings.num_steps - edge // 4),
        "rises": jnp.mean(jnp.diff(losses) > 0, where=n[1:] > reached),
        "averaged": _averaged(seen)[::THIN],
        "mean_loss": jnp.mean(seen),
        "flows": flows,
    }


def measure(settings: Settings, lab: Lab) -> Findings:
    """Sharpness along descent at each step size, and the flows from the edge on.

    Args:
      settings: the scale.
      lab: where the sweep runs.

    Returns:
      How high the sharpness is held, the distances of central flow and gradient flow, and curves.
    """
    found = lab.sweep(
        "regression",
        lambda key, h: _measure_one(settings, h),
        {"h": list(settings.step_sizes)},
        key=jax.random.key(0),
        width=len(settings.step_sizes),
        identity=dataclasses.asdict(settings),
    )
    central, gradient = found["flows/mean_distance"].T
    nearer = np.mean(found["flows/distance"][:, 0] < found["flows/distance"][:, 1], axis=1)
    predicted = found["flows/mean_predicted"][:, 0]
    h = np.array(settings.step_sizes)
    end = found["flows/sharpness"][:, :, -1] * h[:, None] / 2
    start = found["sharpness"][:, 0] * h / 2
    columns = {
        "h": h,
        "2/h": 2 / h,
        "sharpness h/2 at the start": start,
        "step at the edge": found["reached"],
        "median of sharpness h/2 over the last quarter": found["held"],
        "gradient flow, sharpness h/2 at the end": end[:, 1],
        "central flow, sharpness h/2 at the end": end[:, 0],
        "distance, central flow": central,
        "distance, gradient flow": gradient,
        "share of the window in which the central flow is nearer": nearer,
        "mean loss": found["mean_loss"],
        "mean loss, predicted": predicted,
        "share of steps that raise the loss": found["rises"],
        "late loss over early loss at the edge": found["late"] / found["early"],
    }
    numbers = {
        f"h = {step:g}: {name}": float(values[k])
        for k, step in enumerate(settings.step_sizes)
        for name, values in columns.items()
        if name not in ("h", "2/h")
    }
    numbers |= {
        "largest sharpness h/2 at the start": float(np.max(start)),
        "lowest level held": float(np.min(found["held"])),
        "highest level held": float(np.max(found["held"])),
        "least sharpness h/2 of gradient flow at the end": float(np.min(end[:, 1])),
        "largest distance of the central flow over that of gradient flow": float(np.max(central / gradient)),
        "largest error of the predicted mean loss": float(np.max(np.abs(predicted / found["mean_loss"] - 1))),
        "least share of steps that raise the loss": float(np.min(found["rises"])),
        "largest late loss over early loss": float(np.max(found["late"] / found["early"])),
    }
    rows = tuple(tuple(float(v) for v in row) for row in zip(*columns.values(), strict=True))
    runs = [
        {
            "h": step,
            "reached": int(found["reached"][k]),
            "sharpness": found["sharpness"][k],
            "loss": found["loss"][k],
            "averaged": found["averaged"][k],
            "central": {name: found[f"flows/{name}"][k, 0] for name in ("sharpness", "distance", "predicted")},
            "gradient": {name: found[f"flows/{name}"][k, 1] for name in ("sharpness", "distance", "loss")},
        }
        for k, step in enumerate(settings.step_sizes)
    ]
    notes = (
        "One network and one seed, drawn here and not the published one: no statement about others.",
        "The iterates come to the edge without an oscillation, which first has to grow: until its first burst they "
        "follow gradient flow beyond the edge and not the central flow, an average that has no bursts. It is the "
        f"nearer one in {100 * float(np.min(nearer)):.0f} % of the window or more.",
    )
    return Findings(
        numbers,
        (Table("the edge at each step size", tuple(columns), rows),),
        {"runs": runs, "every": settings.every, "thin": THIN, "window": WINDOW},
        notes,
    )


CRITERIA = (
    Criterion(
        "the sharpness starts below 0.9 times 2/h, and its median over the last quarter of the run is between "
        f"{HELD[0]:g} and {HELD[1]:g} times 2/h, at every step size",
        lambda n: (
            n["largest sharpness h/2 at the start"] < 0.9
            and HELD[0] <= n["lowest level held"]
            and n["highest level held"] <= HELD[1]
        ),
    ),
    Criterion(
        f"gradient flow from the same point does not stop there: its sharpness passes {BEYOND:g} times 2/h",
        lambda n: n["least sharpness h/2 of gradient flow at the end"] > BEYOND,
    ),
    Criterion(
        "beyond the edge the loss rises in some steps, and its mean over the last quarter is below that over the first",
        lambda n: n["least share of steps that raise the loss"] > 0 and n["largest late loss over early loss"] < 1,
    ),
    Criterion(
        f"from the edge on the averaged iterates are nearer to the central flow than to gradient flow, by a factor of "
        f"{1 / NEARER:g}",
        lambda n: n["largest distance of the central flow over that of gradient flow"] < NEARER,
    ),
    Criterion(
        f"the central flow predicts the mean loss of the oscillating iterates within {100 * AVERAGES:g} %",
        lambda n: n["largest error of the predicted mean loss"] < AVERAGES,
    ),
)

REPRODUCTION = Reproduction(
    name="edge-of-stability",
    claim="Under full-batch gradient descent the sharpness rises to 2/h and is held there; on average the iterates "
    "follow the central flow, not gradient flow.",
    source="[cohen2021], the regression of its figures and code; [cohen2025] for the central flow",
    reported="Its figures show the sharpness rise to just above 2/h and hover there; numbers are not known here.",
    criteria=CRITERIA,
    scales={
        "test": Settings(step_sizes=(0.8, 1.0), width=20, num_steps=1200, flow_steps=420),
        "fast": Settings(),
        "full": Settings(step_sizes=(0.1, 0.2, 0.4), num_steps=20000, flow_steps=4000),
    },
    measure=measure,
    x64=True,
)
