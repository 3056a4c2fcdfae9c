"""The table of methods: adding one costs a file in `transforms/`, a line in its `__init__`, and a row here.

Contracts, order checks, the command line, benchmarks and the documentation's table run from the rows.

The published formulas are typed again here with plain `jax.grad` and `jax.hessian` on flat vectors, apart from the code
that they judge. In the order checks every hyperparameter with the dimension of a step is proportional to the step size
(`scaled`), so that one expansion in h covers the method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from implicit_reg import _checks, transforms
from implicit_reg._types import Scalar

Base = Callable[[Any], optax.GradientTransformation]  # learning rate or schedule -> base optimizer
Vector = Float[Array, " d"]
Loss = Callable[[Vector], Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
      name: as on the command line.
      title: as in a heading.
      build: `(base, learning_rate, **hyperparameters) -> transformation`; `base` is a family of optimizers such as
        `optax.sgd`.
      hyperparameters: names and defaults for training.
      gradients_per_step: the cost of one step in gradients, from the hyperparameters; a Hessian product counts as two.
      claim: one sentence on what the iterates follow.
      modified_loss: the published leading correction in words, as a loss.
      source: key in `references.bib`.
      scaled: `h -> hyperparameters` of the order checks, or None where the method has no smooth limit of its own.
      num_steps: how many steps make one unit of the modified equation.
      formula: `(loss, x, h, **hyperparameters) -> x'`, the published update over `num_steps` steps, typed again.
      leading: `(loss, x, h, **hyperparameters) -> f_2`, the published second coefficient, per unit of time h.
    """

    name: str
    title: str
    build: Callable[..., optax.GradientTransformationExtraArgs]
    hyperparameters: Mapping[str, Any]
    gradients_per_step: Callable[..., float]
    claim: str
    modified_loss: str
    source: str
    formula: Callable[..., Vector]
    scaled: Callable[[Scalar], Mapping[str, Any]] | None = None
    num_steps: int = 1
    leading: Callable[..., Vector] | None = None

    def at(self, h: Scalar) -> optax.GradientTransformationExtraArgs:
        """The method of the order checks: on plain gradient descent, hyperparameters proportional to `h`."""
        if self.scaled is None:
            raise ValueError(f"{self.name} has no family of hyperparameters proportional to h; use build")
        return self.build(optax.sgd, h, **self.scaled(h))


def _squared_gradient(loss: Loss) -> Loss:
    return lambda x: jnp.sum(jax.grad(loss)(x) ** 2)


def _gradient_norm(loss: Loss) -> Loss:
    return lambda x: jnp.sqrt(jnp.sum(jax.grad(loss)(x) ** 2))


def _descend(loss: Loss, x: Vector, h: Scalar) -> Vector:
    return x - h * jax.grad(loss)(x)


def _penalized(loss: Loss, x: Vector, h: Scalar, strength: Scalar) -> Vector:
    gradient = jax.grad(loss)(x)
    return x - h * (gradient + 2 * strength * jax.hessian(loss)(x) @ gradient)


def _finite_difference(loss: Loss, x: Vector, h: Scalar, strength: Scalar, displacement: Scalar) -> Vector:
    g = jax.grad(loss)
    return x - h * (g(x) + 2 * strength * (g(x + displacement * g(x)) - g(x)) / displacement)


def _backstitch(loss: Loss, x: Vector, h: Scalar, alpha: Scalar, interval: int = 1, offset: int = 0) -> Vector:
    behind = x + alpha * h * jax.grad(loss)(x)
    return behind - (1 + alpha) * h * jax.grad(loss)(behind)


def _pair(loss: Loss, x: Vector, h: Scalar, ratio: Scalar) -> Vector:
    below = x - h * jax.grad(loss)(x)
    return below + ratio * h * jax.grad(loss)(below)


def _sam(loss: Loss, x: Vector, h: Scalar, radius: Scalar) -> Vector:
    g = jax.grad(loss)
    return x - h * g(x + radius * g(x) / jnp.sqrt(jnp.sum(g(x) ** 2)))


def _unnormalized_sam(loss: Loss, x: Vector, h: Scalar, radius: Scalar) -> Vector:
    g = jax.grad(loss)
    return x - h * g(x + radius * g(x))


def _flooding(loss: Loss, x: Vector, h: Scalar, level: Scalar) -> Vector:
    return x - h * jnp.sign(loss(x) - level) * jax.grad(loss)(x)


def _correction(coefficient: Callable[..., Any]) -> Callable[..., Vector]:
    """`-coefficient grad ||grad L||^2`."""

    def leading(loss, x, h, **hyperparameters):
        return -coefficient(h, **hyperparameters) * jax.grad(_squared_gradient(loss))(x)

    return leading


def _alternating(base: Base, learning_rate: Any, ratio: Scalar) -> optax.GradientTransformation:
    if callable(learning_rate):
        return base(transforms.alternating(learning_rate, lambda count: ratio * learning_rate(count)))
    return base(transforms.alternating(learning_rate, ratio * learning_rate))


_ROWS = (
    Method(
        name="gd",
        title="Gradient descent",
        build=lambda base, learning_rate: optax.with_extra_args_support(base(learning_rate)),
        hyperparameters={},
        gradients_per_step=lambda: 1.0,
        claim="Gradient descent with step h follows the gradient flow of L + (h/4) ||grad L||^2.",
        modified_loss="L + (h/4) ||grad L||^2",
        source="barrett2021",
        formula=_descend,
        scaled=lambda h: {},
        leading=_correction(lambda h: 1 / 4),
    ),
    Method(
        name="gradient-penalty",
        title="Explicit gradient penalty",
        build=lambda base, learning_rate, strength: optax.chain(
            transforms.add_gradient_penalty(strength), base(learning_rate)
        ),
        hyperparameters={"strength": 0.01},
        gradients_per_step=lambda strength: 3.0,
        claim="A penalty of strength mu adds to the implicit one: the flow of L + (mu + h/4) ||grad L||^2.",
        modified_loss="L + (mu + h/4) ||grad L||^2, strength mu = h/2",
        source="barrett2021",
        formula=_penalized,
        scaled=lambda h: {"strength": 0.5 * h},
        leading=_correction(lambda h, strength: strength / h + 1 / 4),
    ),
    Method(
        name="finite-difference-penalty",
        title="Finite-difference gradient penalty",
        build=lambda base, learning_rate, strength, displacement: optax.chain(
            transforms.add_finite_difference_penalty(strength, displacement), base(learning_rate)
        ),
        hyperparameters={"strength": 0.01, "displacement": 0.01},
        gradients_per_step=lambda strength, displacement: 2.0,
        claim="The forward difference adds its own field, which tends to the exact penalty with the displacement.",
        modified_loss="L + (h/4) ||grad L||^2, and 2 mu (grad L(x + d g) - g)/d; mu = h/2, d = 0.1",
        source="karakida2023",
        formula=_finite_difference,
        # The displacement is fixed: proportional to h it would divide by zero at h = 0, where coefficients are taken.
        scaled=lambda h: {"strength": 0.5 * h, "displacement": 0.1},
        leading=lambda loss, x, h, strength, displacement: (
            -jax.grad(_squared_gradient(loss))(x) / 4
            - 2
            * strength
            / h
            / displacement
            * (jax.grad(loss)(x + displacement * jax.grad(loss)(x)) - jax.grad(loss)(x))
        ),
    ),
    Method(
        name="backstitch",
        title="Backstitch",
        build=lambda base, learning_rate, alpha, interval=1, offset=0: transforms.backstitch(
            base(learning_rate), alpha, interval=interval, offset=offset
        ),
        hyperparameters={"alpha": 0.3, "interval": 1, "offset": 0},
        gradients_per_step=lambda alpha, interval=1, offset=0: 1.0 + 1.0 / interval,
        claim="Backstitch follows the flow of L + (h/4)(1 + 2 alpha + 2 alpha^2) ||grad L||^2.",
        modified_loss="L + (h/4)(1 + 2 alpha + 2 alpha^2) ||grad L||^2, alpha = 0.3",
        source="wang2017",
        formula=_backstitch,
        scaled=lambda h: {"alpha": 0.3},
        leading=_correction(lambda h, alpha: (1 + 2 * alpha + 2 * alpha**2) / 4),
    ),
    Method(
        name="alternating",
        title="Alternating descent and ascent",
        build=_alternating,
        hyperparameters={"ratio": 0.1},
        gradients_per_step=lambda ratio: 1.0,
        claim="Descent by e1, then ascent by e2: one pair follows the flow of L + (e1^2+e2^2)/(4(e1-e2)) ||grad L||^2.",
        modified_loss="(1 - c) L + (h/4)(1 + c^2) ||grad L||^2 in a pair of h and c h, c = 1/4",
        source="ishida2020",
        formula=_pair,
        scaled=lambda h: {"ratio": 0.25},
        num_steps=2,
        leading=_correction(lambda h, ratio: (1 + ratio**2) / 4),
    ),
    Method(
        name="sam",
        title="Sharpness-aware minimization",
        build=lambda base, learning_rate, radius: optax.chain(transforms.sam(radius), base(learning_rate)),
        hyperparameters={"radius": 0.05},
        gradients_per_step=lambda radius: 2.0,
        claim="With radius rho proportional to h, SAM follows the flow of L + rho ||grad L|| + (h/4) ||grad L||^2.",
        modified_loss="L + rho ||grad L|| + (h/4) ||grad L||^2, radius rho = h/2",
        source="foret2021",
        formula=_sam,
        scaled=lambda h: {"radius": 0.5 * h},
        leading=lambda loss, x, h, radius: (
            -(radius / h * jax.grad(_gradient_norm(loss))(x) + jax.grad(_squared_gradient(loss))(x) / 4)
        ),
    ),
    Method(
        name="sam-unnormalized",
        title="SAM without normalization",
        build=lambda base, learning_rate, radius: optax.chain(
            transforms.sam(radius, normalize=False), base(learning_rate)
        ),
        hyperparameters={"radius": 0.05},
        gradients_per_step=lambda radius: 2.0,
        claim="Without normalization SAM follows the flow of L + (radius/2 + h/4) ||grad L||^2.",
        modified_loss="L + (rho/2 + h/4) ||grad L||^2, radius rho = h/2",
        source="foret2021",
        formula=_unnormalized_sam,
        scaled=lambda h: {"radius": 0.5 * h},
        leading=_correction(lambda h, radius: radius / h / 2 + 1 / 4),
    ),
    Method(
        name="flooding",
        title="Flooding",
        build=lambda base, learning_rate, level: optax.chain(transforms.flooding(level), base(learning_rate)),
        hyperparameters={"level": 0.1},
        gradients_per_step=lambda level: 1.0,
        claim="Flooding descends above the level and ascends below; a pair of steps across it penalizes ||grad L||^2.",
        modified_loss="|L - b| + b; per pair of steps at the level, -(h^2/2) grad ||grad L||^2",
        source="ishida2020",
        formula=_flooding,
    ),
)

METHODS: Mapping[str, Method] = {row.name: row for row in _ROWS}


def find(name: str) -> Method:
    """The row of that name; an unknown one raises with the known ones and the nearest.

    Example:
      >>> find("backstitch").modified_loss
      'L + (h/4)(1 + 2 alpha + 2 alpha^2) ||grad L||^2, alpha = 0.3'
    """
    if name not in METHODS:
        raise _checks.unknown_name("methods", "method", name, METHODS)
    return METHODS[name]
