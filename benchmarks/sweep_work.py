"""What the benchmarks of sweeps train: a tanh network under momentum on shuffled minibatches, on a grid of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from implicit_reg.experiments import run_steps, shuffled_batches

KEY = jax.random.key(0)
WIDTHS = (8, 32, 64, 256)


class Work(NamedTuple):
    """A network of one hidden layer on random data, how it is trained, and the grid of the runs."""

    features: int = 8
    hidden: int = 16
    examples: int = 64
    batch: int = 16
    steps: int = 200
    every: int = 50
    axes: dict[str, Any] = {  # noqa: RUF012 (never changed)
        "h": [0.01 * 1.4**k for k in range(8)],
        "momentum": [0.1 * k for k in range(8)],
        "seed": range(4),
    }


TINY = Work(steps=20, every=10, axes={"h": [0.01, 0.1], "momentum": [0.0, 0.9], "seed": range(2)})


class Parts(NamedTuple):
    """A run taken apart: what the Python loops need."""

    data: tuple[jax.Array, jax.Array]
    start: Callable[[jax.Array], tuple[dict[str, jax.Array], Callable[[Any], jax.Array]]]
    loss: Callable[..., jax.Array]


def parts_of(work: Work) -> Parts:
    """Data, start and loss."""
    x = jax.random.normal(jax.random.key(1), (work.examples, work.features), jnp.float32)
    y = jnp.sin(x.sum(1))

    def start(key):
        a, b, order = jax.random.split(key, 3)
        params = {
            "a": jax.random.normal(a, (work.features, work.hidden), jnp.float32) / work.features**0.5,
            "b": jax.random.normal(b, (work.hidden,), jnp.float32) / work.hidden**0.5,
            "c": jnp.zeros(work.hidden, jnp.float32),
        }
        return params, shuffled_batches(order, work.examples, work.batch)

    def loss(p, rows):
        return jnp.mean((jnp.tanh(x[rows] @ p["a"] + p["c"]) @ p["b"] - y[rows]) ** 2)

    return Parts((x, y), start, loss)


def training(work: Work, steps: Callable[..., Any] = run_steps) -> Callable[..., dict[str, jax.Array]]:
    """A run, as `sweep` wants it."""
    _, start, loss = parts_of(work)
    everything = jnp.arange(work.examples, dtype=jnp.int32)

    def fn(key, h, momentum):
        params, batch = start(key)
        run = steps(
            optax.sgd(h, momentum), loss, params, lambda n: (batch(n),), work.steps,
            every=work.every, observe=lambda p, state: loss(p, everything),
        )  # fmt: skip
        return {"loss": run.observed, "first_bad_step": run.first_bad_step}

    return fn
