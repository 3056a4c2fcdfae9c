"""One network of the family of `igr-mlp`: trained, and measured at the moments that three rules of comparison name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from implicit_reg.curvature import gradient_norm, sharpness
from implicit_reg.experiments.papers import _digits_mlp as digits
from implicit_reg.experiments.steps import run_steps, shuffled_batches

RULES = ("equal training loss", "equal flow time", "best test accuracy")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One scale.

    Attributes:
      widths: of all hidden layers of a network.
      num_hidden: hidden layers; one more linear layer follows.
      steps: step sizes with minibatches; each divides the largest.
      full_batch_steps: step sizes of the control without minibatches; each divides the largest.
      num_seeds: split of the data, initialization and order of minibatches.
      num_train, num_test: examples.
      batch_size: of the minibatches.
      level: the training loss at which runs are compared.
      duration: flow time, the step size times the number of steps.
      noise: standard deviation of the parameter noise, as a fraction of each filter's norm.
      num_noises: draws of it.
      seed: of `jax.random.key`, of which all randomness is made.
      lanes: runs in one call.
    """

    widths: tuple[int, ...]
    num_hidden: int
    steps: tuple[float, ...]
    full_batch_steps: tuple[float, ...]
    num_seeds: int
    num_train: int
    num_test: int
    batch_size: int
    level: float
    duration: float
    noise: float
    num_noises: int
    seed: int
    lanes: int


def _limited_sgd(step: Any, num_steps: Array) -> optax.GradientTransformation:
    """SGD that stands still after `num_steps`, so that runs of several step sizes are lanes of one program."""

    def update(updates, count, params=None):
        del params
        moved = jax.tree.map(lambda g: jnp.where(count < num_steps, -step.astype(g.dtype) * g, 0), updates)
        return moved, count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


class _Kept(NamedTuple):
    """Parameters at the moment that a rule names."""

    params: PyTree
    found: Bool[Array, ""]
    score: Float[Array, ""]
    time: Float[Array, ""]


def _keep(kept: _Kept, now: Array, params: PyTree, score: Array, time: Array) -> _Kept:
    new = _Kept(params, jnp.array(True), score, time)
    return jax.tree.map(lambda a, b: jnp.where(now, a, b), new, kept)


def make_run(settings: Settings, steps: Sequence[float], batch_size: int) -> Callable[..., dict[str, Array]]:
    """The run of one network: `run(key, width=..., step=...)`, traceable.

    The largest step makes one step between two looks at the training loss, a smaller one makes as many as cover the
    same flow time: looking after a fixed number of steps would let the large steps overshoot the level farther.

    Args:
      settings: of the scale.
      steps: that will be asked for.
      batch_size: of the minibatches; all of `num_train` for the full batch.

    Returns:
      A function for `sweep`; its outputs have a leading axis for the rules of `RULES`.
    """
    pause = max(steps)
    most = round(pause / min(steps))
    looks = round(settings.duration / pause)

    def run(key, *, width, step):
        split_key, start_key, order_key, noise_key = jax.random.split(key, 4)
        data = digits.digits_split(split_key, settings.num_train, settings.num_test)
        train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
        start = digits.glorot_layers(start_key, (width,) * settings.num_hidden)
        batch_index = shuffled_batches(order_key, settings.num_train, batch_size)
        between = jnp.round(pause / step).astype(jnp.int32)

        def section(carry, look):
            params, reached, best = carry

            def batch_at(n):
                chosen = batch_index(look * between + n)
                return data.x_train[chosen], data.y_train[chosen]

            done = run_steps(
                _limited_sgd(step, between), digits.cross_entropy, params, batch_at, most, every=most,
                observe=lambda params, state: digits.cross_entropy(params, *train),
            )  # fmt: skip
            params, loss = done.params, done.observed[-1]
            time = (look + 1) * jnp.float32(pause)
            reached = _keep(reached, ~reached.found & (loss <= settings.level), params, loss, time)
            score = digits.accuracy(params, *test)
            best = _keep(best, score > best.score, params, score, time)
            return (params, reached, best), loss

        nothing = _Kept(start, jnp.array(False), jnp.float32(-1), jnp.float32(0))
        (end, reached, best), losses = jax.lax.scan(section, (start, nothing, nothing), jnp.arange(looks))
        last = _Kept(end, jnp.isfinite(losses[-1]), losses[-1], jnp.float32(looks * pause))
        # Where the level was not reached the end stands in: finite numbers that `reached` tells not to use.
        shown = jax.tree.map(lambda a, b: jnp.where(reached.found, a, b), reached.params, end)
        reached = reached._replace(params=shown)

        def measure(params):
            loss, slope = digits.cross_entropy(params, *train), gradient_norm(digits.cross_entropy, params, train)
            size = sum(leaf.size for leaf in jax.tree.leaves(params))
            noise = (settings.noise, noise_key, settings.num_noises)
            return {
                "loss": loss,
                "slope": slope,
                "ratio": slope**2 / size / loss,
                "rise": digits.noise_rises(digits.cross_entropy, params, train, *noise),
                "sharpness": sharpness(digits.cross_entropy, params, train, num_steps=15),
                "test_loss": digits.cross_entropy(params, *test),
                "test_accuracy": digits.accuracy(params, *test),
            }

        kept = jax.tree.map(lambda *leaves: jnp.stack(leaves), reached, last, best)
        return {**jax.lax.map(measure, kept.params), "found": kept.found, "time": kept.time}

    return run
