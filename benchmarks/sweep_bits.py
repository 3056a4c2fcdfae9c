"""Which bits of a sweep stay, in programs larger than those of `implicit-reg doctor`, and how far the others move.

Three programs on a grid of 24 runs, steps beyond the edge of stability among them: a tanh network under momentum with
shuffled minibatches, a ReLU network under Adam, and an adaptive ODE solver, in float32 and float64. Each is run in
other chunks, in another order, on 2 and 4 devices, and in part, and must end with the same bytes. Another width may end
elsewhere, and so may one program that `shard_map` divides: the largest differences are shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
from sweep_devices import partitioned

from implicit_reg.experiments import run_steps, shuffled_batches, sweep, sweep_mesh
from implicit_reg.experiments.axes import make_runs
from implicit_reg.experiments.lanes import Lanes

WIDTH, OTHER_WIDTH, DEVICES = 8, 16, (2, 4)
AXES = {"h": [0.01, 0.1, 1.0], "momentum": [0.0, 0.9], "seed": range(4)}


def programs() -> dict[str, Callable[..., Any]]:
    """The functions that are swept; draws are float32, so that both precisions start at the same point."""

    def normal(key, *shape):
        return jax.random.normal(key, shape, jnp.float32).astype(float)

    x = normal(jax.random.key(1), 200, 16)
    y = jnp.sin(x.sum(1))
    everything = jnp.arange(200)

    def tanh_network(key, h, momentum):
        a, b, order = jax.random.split(key, 3)
        params = {"a": normal(a, 16, 32) / 4, "b": normal(b, 32) / 6}
        batch = shuffled_batches(order, 200, 20)

        def loss(p, rows):
            return jnp.mean((jnp.tanh(x[rows] @ p["a"]) @ p["b"] - y[rows]) ** 2)

        run = run_steps(
            optax.sgd(h, momentum), loss, params, lambda n: (batch(n),), 200,
            every=100, observe=lambda p, state: loss(p, everything),
        )  # fmt: skip
        return {"loss": run.observed, "params": run.params, "first_bad_step": run.first_bad_step}

    def relu_network(key, h, momentum):
        a, b, _, c = jax.random.split(key, 4)
        params = {"a": normal(a, 16, 64) / 4, "b": normal(b, 64, 2) / 8, "c": normal(c, 64, 64) / 8}

        def loss(p, rows):
            logits = jax.nn.relu(jax.nn.relu(x[rows] @ p["a"]) @ p["c"]) @ p["b"]
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(rows.size), (y[rows] > 0).astype(jnp.int32)])

        run = run_steps(
            optax.adam(h, momentum), loss, params, lambda n: (everything,), 40,
            every=20, observe=lambda p, state: loss(p, everything),
        )  # fmt: skip
        return {"loss": run.observed, "params": run.params}

    def adaptive_flow(key, h, momentum):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, v, _: -(v**3) - momentum * jnp.roll(v, 1)),
            diffrax.Dopri8(), 0.0, 20 * h, None, normal(key, 8),
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5), throw=False,
        )  # fmt: skip
        return solution.ys[0]

    return {"tanh": tanh_network, "relu": relu_network, "flow": adaptive_flow}


def digest(runs: Any, rows: Any = slice(None)) -> str:
    """SHA-256 of all outputs of some runs."""
    found = hashlib.sha256()
    for leaf in runs.leaves.values():
        found.update(np.ascontiguousarray(leaf[rows]).tobytes())
    return found.hexdigest()


def difference(a: Any, b: Any) -> float:
    """The largest one of a floating output, over the largest entry of it; `a` and `b` map paths to arrays."""
    floats = [path for path, leaf in a.items() if leaf.dtype.kind == "f"]
    return max(float(np.nanmax(np.abs(a[path] - b[path])) / np.nanmax(np.abs(a[path]))) for path in floats)


def examine(fn: Callable[..., Any]) -> dict[str, Any]:
    """Every layout of one program, whether its bytes are the same, and how far another width and `shard_map` move it.

    Raises:
      measure.IncorrectError: bytes differ that must not.
    """
    key = jax.random.key(0)
    whole = sweep(fn, AXES, key=key, width=WIDTH)
    wanted = digest(whole)
    rows = [dict(row) for row in make_runs(AXES).settings]
    order = np.random.default_rng(0).permutation(len(rows))
    mixed = sweep(fn, [rows[k] for k in order], key=key, width=WIDTH)
    part = list(range(0, len(rows), 7))
    same = {
        f"chunk {4 * WIDTH}": digest(sweep(fn, AXES, key=key, width=WIDTH, chunk=4 * WIDTH)) == wanted,
        "another order": digest(mixed, np.argsort(order)) == wanted,
        "a part, padded": digest(sweep(fn, [rows[k] for k in part], key=key, width=WIDTH)) == digest(whole, part),
    }
    for num in DEVICES:
        if num <= len(jax.devices()):
            same[f"{num} devices"] = digest(sweep(fn, AXES, key=key, width=WIDTH, mesh=sweep_mesh(num))) == wanted
    if changed := [layout for layout, equal in same.items() if not equal]:
        raise measure.IncorrectError(f"other bytes: {', '.join(changed)}")
    other = sweep(fn, AXES, key=key, width=OTHER_WIDTH)
    found = {
        "diverged": int((whole.status == "diverged").sum()),
        "sha256": wanted,
        "same": list(same),
        f"width {OTHER_WIDTH}": difference(whole.leaves, other.leaves),
    }
    if len(jax.devices()) > 1:
        lanes = Lanes(fn, make_runs(AXES), 0, key, WIDTH, None)
        divided = partitioned(lanes, [range(k * WIDTH, (k + 1) * WIDTH) for k in range(2)])()
        first = {path: leaf[: 2 * WIDTH] for path, leaf in whole.leaves.items()}
        found["shard_map"] = difference(first, divided)
    return found


def run(effort: measure.Effort, *, chosen: Mapping[str, Callable[..., Any]] | None = None) -> measure.Report:
    """All programs in both precisions; the fast form takes the solver in float32 alone."""
    found: dict[str, dict[str, Any]] = {}
    for wide in (False,) if effort.tiny else (False, True):
        with jax.enable_x64(wide):
            for name, fn in (chosen or programs()).items():
                if not effort.tiny or chosen or name == "flow":
                    found[f"{name}, float{64 if wide else 32}"] = examine(fn)
    rows = tuple(
        measure.Row(f"{what}, {name}", each[what], "scale of the output", "count", note="the largest difference")
        for name, each in found.items()
        for what in (f"width {OTHER_WIDTH}", "shard_map")
        if what in each
    )
    table = [
        [name, str(each["diverged"]), ", ".join(each["same"]), f"{each[f'width {OTHER_WIDTH}']:.1g}",
         f"{each['shard_map']:.1g}" if "shard_map" in each else "-"]
        for name, each in found.items()
    ]  # fmt: skip
    header = ["program", "diverged", "the same bytes", f"width {OTHER_WIDTH}, difference", "shard_map, difference"]
    return measure.Report(rows, measure.markdown(header, table), found)
