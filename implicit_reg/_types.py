"""Type aliases in the library's own words.

An argument that `_checks` judges is annotated with an alias that is `object` at run time: its message says what was
wanted, what came, and the cure, and a run-time type checker (jaxtyping with beartype, in the tests) would get there
first with a message that does not. Static checkers see the real type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import jax
from jaxtyping import Array, PyTree

if TYPE_CHECKING:
    import numpy as np

    Scalar: TypeAlias = float | int | np.number | jax.Array
    Integer: TypeAlias = int | np.integer
    Params: TypeAlias = PyTree[jax.typing.ArrayLike]
    Loss: TypeAlias = Callable[..., jax.Array]
else:
    Scalar: TypeAlias = object  # a real number; JAX scalars and tracers are welcome
    Integer: TypeAlias = object
    Params: TypeAlias = object  # any pytree of floating leaves
    Loss: TypeAlias = object  # loss_fn(params, *batch) -> scalar

Observe: TypeAlias = Callable[[Any], PyTree[Array]] | None  # params -> pytree of arrays


class VectorField(Protocol):
    """The right-hand side of an ordinary differential equation: `field(t, params, h)`, structured as `params`."""

    def __call__(self, t: Scalar, params: Params, h: Scalar) -> Params: ...
