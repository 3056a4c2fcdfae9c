"""Symmetric operators over a pytree of parameters: Hessian, Gauss-Newton, preconditioned, as products and never whole.

The vectors of an operator are flat, in the widest precision among the leaves and at least float32; every leaf of the
parameters keeps its own dtype while the loss is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from implicit_reg import _callables, _checks, _products, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Data, Integer, Loss, Params
from implicit_reg.curvature.minibatches import checked_arguments, mean_over_batches

LARGEST_DENSE = 5000  # columns: 200 MB in float64, and minutes of eigh


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A real symmetric linear operator on flat vectors; made by `hessian_operator` and its relatives.

    Args:
      name: what it is, for messages.
      size: d, the length of the vectors.
      dtype: of the vectors.
      product: `(arguments, v) -> A v`, traceable.
      arguments: a pytree of arrays that the product depends on; operands and not constants of compiled programs.
      unravel: from a flat vector to the structure, shapes and dtypes of the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> a = jnp.diag(jnp.array([2.0, -1.0]))
      >>> matrix = Operator("matrix", 2, a.dtype, lambda a, v: a @ v, a, lambda v: v)
      >>> [float(x) for x in matrix.apply(jnp.ones(2))]
      [2.0, -1.0]
    """

    name: str
    size: int
    dtype: Any
    product: Callable[[Any, Array], Array]
    arguments: PyTree
    unravel: Callable[[Array], PyTree]

    def apply(self, vector: Array) -> Array:
        """`A v`, inside or outside of a traced function."""
        return self.product(self.arguments, vector)

    def matvec(self, vector: np.ndarray | Array) -> np.ndarray:
        """`A v` on the host, for libraries that drive from there; compiled once.

        What does not depend on the vector is computed by the first call and kept: of a Hessian on all the data at once
        that is a fifth of a product.

        Raises:
          ValueError: where the product is not finite.
        """
        product = np.asarray(self._on_host(jnp.asarray(vector, self.dtype)))
        if not np.all(np.isfinite(product)):
            raise ValueError(
                f"{self.name}: a product is not finite: the parameters, the loss or its second derivative overflow "
                f"there; look at loss_fn(params, *data) first"
            )
        return product

    def repeated(self) -> Callable[[Array], Array]:
        """`v -> A v` for many vectors in one traced function: what does not depend on v is computed here, and once."""
        return canonical_convolutions(self.product.linearized(self.arguments)) if self._linear else self.apply

    @property
    def _linear(self) -> bool:
        linear = getattr(self.product, "linear", None)
        return linear is not None and linear(self.arguments)

    @cached_property
    def _on_host(self) -> Callable[[Array], Array]:
        if self._linear:
            return partial(_pushed, _linearized(self.product, self.arguments))
        return partial(_jitted_product, self.product, self.arguments)

    def dense(self) -> Array:
        """The matrix, (d, d), symmetrized; d products.

        Raises:
          ValueError: where it would have more than 5000 columns.
        """
        if self.size > LARGEST_DENSE:
            raise ValueError(
                f"{self.name}: a dense matrix of {self.size} columns is too large (limit {LARGEST_DENSE}); use "
                f"largest_eigenpairs, smallest_eigenpairs or spectral_density"
            )
        return _dense(self.product, self.arguments, jnp.eye(self.size, dtype=self.dtype))


@partial(jax.jit, static_argnums=0)
def _jitted_product(product, arguments, vector):
    return product(arguments, vector)


@partial(jax.jit, static_argnums=0)
def _linearized(product, arguments):
    return product.linearized(arguments)


@jax.jit
def _pushed(pushforward, vector):
    return pushforward(vector)


@partial(jax.jit, static_argnums=0)
def _dense(product, arguments, identity):
    rows = jax.lax.map(partial(product, arguments), identity, batch_size=min(64, len(identity)))
    return (rows + rows.T) / 2


def flatten(params: Params) -> tuple[Float[Array, " d"], Callable[[Array], PyTree]]:
    """The parameters as one vector, and the way back to their structure, shapes and dtypes.

    Args:
      params: any pytree of floating leaves.

    Returns:
      The vector, in the widest dtype among the leaves and at least float32, and the function back.

    Example:
      >>> import jax.numpy as jnp
      >>> vector, unravel = flatten({"a": jnp.ones(2, jnp.bfloat16), "b": jnp.zeros((1, 1), jnp.float32)})
      >>> vector.shape, unravel(vector)["a"].dtype
      ((3,), dtype(bfloat16))
    """
    dtype = _tree.widest_dtype(params)
    vector, back = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), params))
    dtypes = jax.tree.map(jnp.result_type, params)
    return vector, lambda v: jax.tree.map(lambda leaf, kind: leaf.astype(kind), back(v), dtypes)


def hessian_operator(loss_fn: Loss, params: Params, data: Data = (), *, batch_size: Integer | None = None) -> Operator:
    """The Hessian `v -> H v` of the loss on all the data, by forward over reverse mode.

    `H v = d/ds grad L(x + s v)` at s = 0, exact; with `batch_size` the mean over minibatches of bounded memory.
    Products run at full matmul precision on accelerators too. Where a loss has kinks (ReLU) this is the Hessian of the
    smooth piece at the parameters, and what the kinks themselves curve is not seen (`classify` says so).

    Args:
      loss_fn: `loss_fn(params, *data) -> scalar`, the mean over the leading axes of the data.
      params: where, any pytree of floating leaves.
      data: the arguments of the loss after the parameters; `()` where the loss has the data.
      batch_size: examples in memory at once; None takes all.

    Returns:
      An `Operator`. Operators of one loss at other parameters share one compilation.

    Raises:
      TypeError: `loss_fn` is not callable, or a leaf is not floating.
      ValueError: no leaf or no entry, parameters that are not finite, or a `batch_size` without data.

    Example:
      >>> import jax.numpy as jnp
      >>> hessian = hessian_operator(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
      >>> hessian.dense().tolist()                        # 6 x on the diagonal
      [[6.0, 0.0], [0.0, 12.0]]
    """
    params, data, batch_size = checked_arguments("hessian_operator", loss_fn, params, data, batch_size)
    return _operator("hessian_operator", _Hessian(_callables.hashable(loss_fn), batch_size), params, data)


def gauss_newton_operator(
    model_fn: Callable[..., Any],
    output_loss: Callable[..., Any],
    params: Params,
    data: Data = (),
    *,
    batch_size: Integer | None = None,
) -> Operator:
    """The Gauss-Newton product `v -> J' H_out J v`: positive semidefinite where the loss is convex in the outputs.

    Args:
      model_fn: `model_fn(params, *data) -> outputs`, any pytree of floating leaves.
      output_loss: `output_loss(outputs, *data) -> scalar`, the mean over the leading axes of the data.
      params, data, batch_size: as for `hessian_operator`.

    Returns:
      An `Operator`.

    Raises:
      TypeError, ValueError: as `hessian_operator`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([1.0, 2.0])
      >>> gauss_newton_operator(lambda p: jnp.tanh(p), lambda out: 0.5 * jnp.sum(out**2), 0 * x).dense().tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    _checks.check_callable("gauss_newton_operator", "output_loss", output_loss, "output_loss(outputs, *data) -> scalar")
    params, data, batch_size = checked_arguments("gauss_newton_operator", model_fn, params, data, batch_size)
    rule = _GaussNewton(_callables.hashable(model_fn), _callables.hashable(output_loss), batch_size)
    return _operator("gauss_newton_operator", rule, params, data)


def preconditioned(operator: Operator, scale: PyTree) -> Operator:
    """`P^(-1/2) A P^(-1/2)` for a positive diagonal P: its eigenvalues are those of `P^(-1) A`.

    Args:
      operator: A.
      scale: the diagonal of P, a flat vector or a pytree structured as the parameters; positive.

    Returns:
      An `Operator`.

    Raises:
      ValueError: where the size differs, or an entry is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> hessian = hessian_operator(lambda x: jnp.sum(x**2), jnp.ones(2))
      >>> preconditioned(hessian, jnp.array([1.0, 4.0])).dense().tolist()
      [[2.0, 0.0], [0.0, 0.5]]
    """
    vector = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(operator.dtype), scale))[0]
    if vector.shape != (operator.size,):
        raise ValueError(f"preconditioned: `scale` must have {operator.size} entries, got {vector.size}")
    if not isinstance(vector, jax.core.Tracer) and not bool(jnp.all(vector > 0)):
        raise ValueError(f"preconditioned: `scale` must be positive, got a smallest entry of {float(vector.min())}")
    arguments = (operator.arguments, 1 / jnp.sqrt(vector))
    name, product = f"preconditioned {operator.name}", _Preconditioned(operator.product)
    return Operator(name, operator.size, operator.dtype, product, arguments, operator.unravel)


@dataclasses.dataclass(frozen=True)
class _Hessian:
    """The product of a Hessian; equal rules share one compilation."""

    loss_fn: Any
    batch_size: int | None

    def __call__(self, arguments, vector):
        params, data = arguments
        _, unravel = flatten(params)

        def one(*batch):
            # A `linearize` outside of the scan over the minibatches would keep the residuals of all of them.
            gradient = lambda p: jax.grad(self.loss_fn)(p, *batch)  # noqa: E731
            return _gathered(jax.linearize(gradient, params)[1], unravel(vector))

        with jax.default_matmul_precision("highest"):
            return mean_over_batches(one, data, self.batch_size)

    def linear(self, arguments) -> bool:
        """Whether one linearization serves all products: minibatches would keep the residuals of all of them."""
        leaves = jax.tree.leaves(arguments[1])
        return self.batch_size is None or not leaves or self.batch_size >= leaves[0].shape[0]

    def linearized(self, arguments):
        """The product as a pytree that can be called: residuals of the gradient, computed once."""
        params, data = arguments
        vector, unravel = flatten(params)
        with jax.default_matmul_precision("highest"):
            gradient = lambda x: jax.grad(self.loss_fn)(unravel(x), *data)  # noqa: E731
            return jax.tree_util.Partial(_gathered, jax.linearize(gradient, vector)[1])


def _gathered(pushforward, tangent):
    """The flat product, each sum of matrix products in the orientation of its leaf: 7 % less time."""
    return flatten(_products.gathered(pushforward, tangent))[0]


@dataclasses.dataclass(frozen=True)
class _GaussNewton:
    """The product of a Gauss-Newton matrix."""

    model_fn: Any
    output_loss: Any
    batch_size: int | None

    def __call__(self, arguments, vector):
        params, data = arguments
        _, unravel = flatten(params)

        def one(*batch):
            model = lambda p: self.model_fn(p, *batch)  # noqa: E731
            outputs, pushforward = jax.linearize(model, params)
            slope = jax.grad(lambda out: self.output_loss(out, *batch))
            curved = jax.jvp(slope, (outputs,), (pushforward(unravel(vector)),))[1]
            return flatten(jax.linear_transpose(pushforward, params)(curved)[0])[0]

        with jax.default_matmul_precision("highest"):
            return mean_over_batches(one, data, self.batch_size)


@dataclasses.dataclass(frozen=True)
class _Preconditioned:
    """The product of an operator between two inverse square roots."""

    product: Any

    def __call__(self, arguments, vector):
        inner, root = arguments
        return root * self.product(inner, root * vector)


def _operator(name: str, product: Callable[[Any, Array], Array], params: PyTree, data: tuple) -> Operator:
    vector, unravel = flatten(params)
    return Operator(name, vector.size, vector.dtype, product, (params, data), unravel)
