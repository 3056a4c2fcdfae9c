"""A problem as the rows see it: a loss of one flat vector, whole or on examples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from implicit_reg import _checks
from implicit_reg.problems import Problem

Vector = Float[Array, " d"]

DENSE_LIMIT = 1500  # parameters up to which a spectrum comes from the whole Hessian; beyond, from ARPACK


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The extreme eigenvalues of the Hessian at the start."""

    low: float
    high: float

    @property
    def radius(self) -> float:
        """`max |lambda|`, both ends counted."""
        return max(abs(self.low), abs(self.high))


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The flat view of a problem; made by `flatten`.

    Attributes:
      name: the problem's.
      start: the parameters in one float64 vector.
      value: `x -> L(x)` on all the data.
      num_examples: how many examples the loss is a mean over, or None where it takes none.
      on: `(x, indices) -> loss on these examples`, or None.
    """

    name: str
    start: Vector
    value: Callable[[Vector], Array]
    num_examples: int | None = None
    on: Callable[[Vector, Any], Array] | None = None

    @functools.cached_property
    def gradient(self) -> Callable[[Vector], Vector]:
        """`x -> grad L(x)`."""
        return jax.grad(self.value)

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        """The extreme eigenvalues of the Hessian at the start: dense up to `DENSE_LIMIT` parameters, else by ARPACK."""
        x = self.start
        product = jax.jit(lambda v: jax.jvp(self.gradient, (x,), (v,))[1])
        if x.size <= DENSE_LIMIT:
            found = np.linalg.eigvalsh(np.asarray(jax.vmap(product)(jnp.eye(x.size, dtype=x.dtype))))
            return Spectrum(float(found[0]), float(found[-1]))
        from scipy.sparse.linalg import LinearOperator, eigsh

        operator = LinearOperator((x.size, x.size), matvec=lambda v: np.asarray(product(jnp.asarray(v))), dtype=x.dtype)
        start = np.random.default_rng(0).standard_normal(x.size)
        ends = [
            eigsh(operator, k=1, which=which, v0=start, tol=1e-4, return_eigenvectors=False) for which in ("SA", "LA")
        ]
        return Spectrum(float(ends[0][0]), float(ends[1][0]))

    def minibatches(self, num_batches: int) -> Callable[[Vector, Any], Array]:
        """`(x, k) -> C_k(x)`, the loss on the k-th of `num_batches` equal, fixed, consecutive minibatches.

        Examples that do not fill a minibatch are left out, and the mean loss is then that of the others.

        Raises:
          ValueError: the loss takes no examples, or too few.
        """
        if self.on is None or self.num_examples is None:
            raise ValueError(
                f"minibatches: the loss {self.name!r} takes no examples; a problem for stochastic predictions has "
                f"`loss_fn(params, indices)` and facts['num_examples']"
            )
        size = self.num_examples // num_batches
        if size < 1:
            raise ValueError(
                f"minibatches: `num_batches` must be at most the {self.num_examples} examples of {self.name!r}, got "
                f"{num_batches}"
            )
        rows = jnp.arange(size * num_batches).reshape(num_batches, size)
        return lambda x, k: self.on(x, rows[k])


@functools.lru_cache(maxsize=64)
def flatten(problem: Problem) -> Objective:
    """The flat view of a problem with float64 parameters; the same object for the same problem, spectrum included.

    Raises:
      ValueError: the parameters are not float64, in which no order beyond the first can be seen.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(problem.params):
        if jnp.result_type(leaf) != jnp.float64:
            raise ValueError(
                f"verify: {_checks.path_name('params', path)} of {problem.name!r} has dtype {jnp.result_type(leaf)}, "
                f"in which an order cannot be seen (its floor is near 1e-6); build it in float64, inside `with "
                f"jax.enable_x64(True):` or as a function of `dtype`"
            )
    start, unravel = ravel_pytree(problem.params)
    examples = problem.facts.get("num_examples")
    return Objective(
        name=problem.name,
        start=start,
        value=lambda x: problem.loss_fn(unravel(x)),
        num_examples=None if examples is None else int(examples),
        on=None if examples is None else lambda x, indices: problem.loss_fn(unravel(x), indices),
    )
