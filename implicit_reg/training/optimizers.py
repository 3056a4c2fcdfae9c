"""Base optimizers and schedules from Optax by name: families `learning_rate -> transformation` for a method to wrap."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from implicit_reg import _checks, transforms
from implicit_reg._types import Integer, Params, Scalar
from implicit_reg.problems import load_attribute

Base = Callable[[Any], optax.GradientTransformation]  # learning rate or schedule -> optimizer


def optimizer_names() -> tuple[str, ...]:
    """The optimizers of Optax that take a learning rate first.

    Returns:
      Their names in `optax`, sorted.

    Example:
      >>> {"sgd", "adam", "adamw", "rmsprop", "lion"} <= set(optimizer_names())
      True
    """
    names = []
    for name, value in vars(optax).items():
        if name.startswith(("_", "scale_by_")) or not inspect.isfunction(value):
            continue
        parameters = list(inspect.signature(value).parameters)
        if parameters and parameters[0] in ("learning_rate", "max_learning_rate"):
            names.append(name)
    return tuple(sorted(names))


def base_optimizer(name: str, arguments: Mapping[str, Any] | None = None) -> Base:
    """The family of optimizers with this name.

    Args:
      name: one of `optimizer_names()`, or "module:attribute": a function whose first parameter is the learning rate.
      arguments: further keywords of it.

    Returns:
      `learning_rate -> transformation`, for a number or a schedule.

    Raises:
      ValueError: for an unknown name or keyword (the message lists the known ones and the nearest).
      TypeError: where the optimizer refuses an argument, or does not return a transformation.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = base_optimizer("sgd", {"momentum": 0.9})(0.1)
      >>> tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0]
      Array([-0.1], dtype=float32)
    """
    arguments = dict(arguments or {})
    if ":" in name:
        factory = load_attribute("optimizer", "optimizer", name)
        _checks.check_callable("optimizer", "optimizer", factory, "learning_rate -> optax.GradientTransformation")
    elif name in optimizer_names():
        factory = getattr(optax, name)
    else:
        raise _checks.unknown_name("optimizer", "optimizer", name, [*optimizer_names(), "module:attribute"])
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        known = list(parameters)[1:]
        for argument in arguments:
            if argument not in known:
                raise _checks.unknown_name(f"optimizer {name}", "argument", argument, known)

    def base(learning_rate: Any) -> optax.GradientTransformation:
        return factory(learning_rate, **arguments)

    # Built once for nothing, so that a bad argument speaks before any long work.
    try:
        tx = base(0.1)
    except (TypeError, ValueError) as error:
        raise type(error)(f"optimizer {name}: {error}") from error
    _checks.check_transformation("optimizer", "optimizer", tx)
    return base


SCHEDULES = ("constant", "cosine", "linear")


def schedule_shape(name: str, num_steps: Integer, warmup_steps: Integer = 0) -> optax.Schedule:
    """A schedule with peak 1, to be multiplied by a learning rate, which may then be traced.

    Args:
      name: one of `SCHEDULES`; cosine and linear end at 0 after `num_steps`.
      num_steps: of the whole run, at least 1.
      warmup_steps: of the linear rise from 0, fewer than `num_steps`.

    Returns:
      `step -> factor`.

    Raises:
      ValueError: for an unknown name, or a warm-up as long as the run.

    Example:
      >>> shape = schedule_shape("linear", 12, warmup_steps=2)
      >>> [float(shape(step)) for step in (0, 1, 2, 7, 12)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if name not in SCHEDULES:
        raise _checks.unknown_name("schedule", "schedule", name, SCHEDULES)
    _checks.check_integer("schedule", "num_steps", num_steps)
    _checks.check_integer("schedule", "warmup_steps", warmup_steps, low=0)
    if warmup_steps >= num_steps:
        raise ValueError(
            f"schedule: `warmup` must end before the run: got {warmup_steps} steps of warm-up in a run of {num_steps}"
        )
    rest = num_steps - warmup_steps
    tail = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, rest),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, rest),
    }[name]()
    if not warmup_steps:
        return tail
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup_steps), tail], [warmup_steps])


def decay_mask(params: Params) -> Params:
    """True for the leaves that weight decay may shrink: matrices and kernels, not biases or normalization scales.

    Args:
      params: any pytree; the leaves are told apart by their number of axes, two or more.

    Returns:
      Booleans in the same structure.

    Example:
      >>> import jax.numpy as jnp
      >>> decay_mask({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
      {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)


class DecayState(NamedTuple):
    """How many updates were made."""

    steps: Int32[Array, ""]


def decoupled_weight_decay(weight_decay: Scalar, learning_rate: Any) -> optax.GradientTransformation:
    """Shrinks the matrices behind an optimizer: `u' = u - learning_rate weight_decay x`, biases and scales spared.

    It stands behind the optimizer and brings its own learning rate, so that neither momentum nor an adaptive scaling
    sees the decay. Where a method makes the learning rate negative (alternating ascent), the decay turns with it, as
    AdamW's does.

    Args:
      weight_decay: at least 0.
      learning_rate: a number or a schedule, the same as the optimizer's.

    Returns:
      A transformation whose `update` needs `params`.

    Raises:
      TypeError, ValueError: where `weight_decay` is not a finite number of at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = decoupled_weight_decay(0.5, 0.1)
      >>> x = {"w": jnp.ones((1, 1)), "b": jnp.ones(1)}
      >>> tx.update({"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}, tx.init(x), x)[0]
      {'b': Array([0.], dtype=float32), 'w': Array([[-0.05]], dtype=float32)}
    """
    _checks.check_number("weight_decay", "weight_decay", weight_decay, low=0.0)

    def init(params: Params) -> DecayState:
        del params
        return DecayState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise _checks.missing("decoupled_weight_decay", "params", "update(grads, state, params)")
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        factor = rate * weight_decay

        def leaf(u, x, decays):
            return u - jnp.asarray(factor).astype(u.dtype) * x.astype(u.dtype) if decays else u

        mask = decay_mask(params)
        return jax.tree.map(leaf, updates, params, mask), DecayState(optax.safe_increment(state.steps))

    return optax.GradientTransformation(init, update)


def everyday_base(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    weight_decay: Scalar | None = None,
    clip: Scalar | None = None,
    noise: Scalar = 0.0,
    noise_decay: Scalar = 0.275,
    key: jax.Array | Integer = 0,
) -> Base:
    """A base optimizer with the everyday parts around it: noise, then clipping, the optimizer, then weight decay.

    Optimizers with a decay of their own (adamw, lion, ...) get `weight_decay` as their argument and a mask that spares
    biases and scales; the others get `decoupled_weight_decay` behind them.

    Args:
      name, arguments: see `base_optimizer`.
      weight_decay: at least 0; `None` leaves an optimizer's own default, masked.
      clip: largest global norm of the gradient, or `None`.
      noise, noise_decay, key: see `implicit_reg.add_decaying_noise`; 0 adds none.

    Returns:
      `learning_rate -> transformation`.

    Raises:
      TypeError, ValueError: as `base_optimizer`, and for numbers out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = everyday_base("sgd", clip=1.0)(0.1)
      >>> tx.update(jnp.array([30.0, 40.0]), tx.init(jnp.zeros(2)), jnp.zeros(2))[0]
      Array([-0.06, -0.08], dtype=float32)
    """
    arguments = dict(arguments or {})
    base = base_optimizer(name, arguments)
    if clip is not None:
        _checks.check_number("train", "clip", clip, low=0.0, exclusive=True)
    _checks.check_number("train", "noise", noise, low=0.0)
    _checks.check_number("train", "noise_decay", noise_decay, low=0.0)
    if weight_decay is not None:
        _checks.check_number("train", "weight_decay", weight_decay, low=0.0)
    own_decay = False
    if ":" not in name:
        parameters = inspect.signature(getattr(optax, name)).parameters
        own_decay = "weight_decay" in parameters and "mask" in parameters
    if own_decay:
        if weight_decay is not None:
            arguments["weight_decay"] = weight_decay
        base = base_optimizer(name, {"mask": decay_mask} | arguments)

    def family(learning_rate: Any) -> optax.GradientTransformation:
        parts = [base(learning_rate)]
        if clip is not None:
            parts.insert(0, optax.clip_by_global_norm(clip))
        if noise:
            parts.insert(0, transforms.add_decaying_noise(noise, noise_decay, key))
        if weight_decay and not own_decay:
            parts.append(decoupled_weight_decay(weight_decay, learning_rate))
        return optax.chain(*parts) if len(parts) > 1 else parts[0]

    return family
