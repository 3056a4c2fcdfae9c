"""The record of a problem: a loss, a start, and what is known about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reg import _checks
from implicit_reg._types import Loss, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A loss to descend, where to start, and the facts that a test or a picture can hold against it.

    Args:
      name: the word in tables and on the command line.
      loss_fn: `loss_fn(params, *batch) -> scalar`; without a batch it is the loss on all the data.
      params: the start, any pytree of floating leaves.
      facts: what is known, by name: numbers, arrays, or functions of the parameters (a conserved quantity).
      description: one sentence.
      source: a key of `references.bib`, or `""`.

    Raises:
      TypeError: where `loss_fn` cannot be called or a leaf of `params` is not floating.
      ValueError: where `params` has no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> bowl = Problem("bowl", lambda x: jnp.sum(x**2), jnp.ones(2), {"minimum": 0.0}, "A round bowl.")
      >>> bowl.loss_fn(bowl.params), bowl.facts["minimum"]
      (Array(2., dtype=float32), 0.0)
    """

    name: str
    loss_fn: Loss
    params: Params
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _checks.check_callable("Problem", "loss_fn", self.loss_fn, "loss_fn(params, *batch) -> scalar")
        _checks.check_floating("Problem", "params", self.params)
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))

    @property
    def num_params(self) -> int:
        """The number of scalar parameters."""
        return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(self.params))


def working_dtype(function: str, dtype: Any) -> np.dtype:
    """The dtype asked for, or JAX's default one for `None`; float64 without x64 is refused, not truncated.

    Args:
      function: who asks, for the message.
      dtype: a floating dtype, its name, or `None`.

    Returns:
      The NumPy dtype (bfloat16 included).

    Raises:
      TypeError: where `dtype` is not floating.
      ValueError: for float64 while JAX would silently make it float32.

    Example:
      >>> working_dtype("f", None), working_dtype("f", "bfloat16")
      (dtype('float32'), dtype(bfloat16))
    """
    if dtype is None:
        return np.dtype(jnp.result_type(float))
    try:
        wanted = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{function}: `dtype` must be a floating dtype, got {dtype!r}") from error
    if not jnp.issubdtype(wanted, jnp.floating):
        raise TypeError(f"{function}: `dtype` must be a floating dtype, got {wanted}")
    if wanted == np.float64 and not jax.config.jax_enable_x64:
        raise ValueError(
            f"{function}: `dtype` float64 needs x64, which is off; build and use the problem inside "
            f"`with jax.enable_x64(True):`, or set JAX_ENABLE_X64=1"
        )
    return np.dtype(wanted)
