"""Type aliases in the library's own words.

An argument that `_checks` judges is annotated with an alias that is `object` at run time: its message says what was
wanted, what came, and the cure, and a run-time type checker (jaxtyping with beartype, in the tests) would get there
first with a message that does not. Static checkers see the real type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Protocol

    import jax
    import numpy as np
    import optax
    from jaxtyping import Array, PyTree

    Scalar: TypeAlias = float | int | np.number | jax.Array
    Integer: TypeAlias = int | np.integer
    Params: TypeAlias = PyTree[jax.typing.ArrayLike]
    Loss: TypeAlias = Callable[..., jax.Array]
    Method: TypeAlias = Callable[[Any], optax.GradientTransformation]
    Batches: TypeAlias = tuple[PyTree[jax.typing.ArrayLike], ...] | None
    Data: TypeAlias = tuple[PyTree[jax.typing.ArrayLike], ...]
    Observe: TypeAlias = Callable[[Any], PyTree[Array]] | None
    SweptFunction: TypeAlias = Callable[..., PyTree[Array]]
    Axes: TypeAlias = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    Key: TypeAlias = jax.Array

    class VectorField(Protocol):
        """The right-hand side of an ordinary differential equation."""

        def __call__(self, t: Scalar, params: Params, h: Scalar) -> Params: ...

    class OneStepMap(Protocol):
        """One step of size `h`."""

        def __call__(self, h: Scalar, params: Params) -> Params: ...

else:
    OneStepMap: TypeAlias = object  # (h, params) -> params
    Scalar: TypeAlias = object  # a real number; JAX scalars and tracers are welcome
    Integer: TypeAlias = object  # an int, never a bool or a float
    Params: TypeAlias = object  # any pytree of floating leaves
    Loss: TypeAlias = object  # loss_fn(params, *batch) -> scalar
    Method: TypeAlias = object  # h -> gradient transformation
    Batches: TypeAlias = object  # one pytree for each argument of the loss after params, leading axis num_steps
    Data: TypeAlias = object  # a tuple: the arguments of the loss after params, each with the examples as leading axis
    Observe: TypeAlias = object  # params -> pytree of arrays, or None
    SweptFunction: TypeAlias = object  # fn(key, **settings) -> pytree of arrays
    Axes: TypeAlias = object  # names to values, or a list of dictionaries
    Key: TypeAlias = object  # one typed PRNG key
    VectorField: TypeAlias = object  # field(t, params, h), structured as params
