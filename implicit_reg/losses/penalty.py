"""Gradient penalty as a loss: of the whole batch, or of each of its microbatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicit_reg import _checks
from implicit_reg._types import Integer, Loss, Params, Scalar
from implicit_reg.losses._penalized import PenalizedLoss
from implicit_reg.losses._pure import trace

if TYPE_CHECKING:
    Flag: TypeAlias = bool
    Mask: TypeAlias = PyTree[bool] | Callable[[Params], PyTree[bool]] | None
    Differentiate: TypeAlias = Callable[..., Callable]
else:
    Flag: TypeAlias = object  # judged by `_checks`
    Mask: TypeAlias = object
    Differentiate: TypeAlias = object  # like jax.value_and_grad


def gradient_penalized(
    loss_fn: Loss,
    strength: Scalar,
    *,
    mask: Mask = None,
    has_aux: bool = False,
    value_and_grad: Differentiate = jax.value_and_grad,
    gram: Flag = False,
) -> Callable:
    """Adds the squared norm of the gradient to a loss.

        L + strength ||grad L||^2,    with gradient    g + 2 strength H g.

    `strength = h/4` is what gradient descent of step h adds implicitly. Other conventions in use: `strength` divided
    by the number of parameters, half of it, or the norm itself. A negative strength is an anti-penalty.

    The derivative with respect to the parameters goes forward over reverse (`jax.linearize` of the gradient), at some
    2.5 gradients; `jax.grad` of the formula as written would take up to six. Derivatives of every order work, in
    forward and in reverse mode; those with respect to data, or to arrays in the closure of `loss_fn`, are right, and
    go by plain reverse over reverse. The loss is traced: Python may not branch on its values. For a loss without second
    derivatives, and for a penalty that sees kinks (of ReLU), see the transformation `add_finite_difference_penalty`;
    inside an optimizer chain, with schedules and accumulation, `add_gradient_penalty`.

    For `flax.nnx` models and `equinox` modules, `value_and_grad` is the function that also differentiates the result:

        loss = gradient_penalized(loss_fn, 0.01, value_and_grad=nnx.value_and_grad)
        value, grads = nnx.value_and_grad(loss)(model, batch)

    Both evaluations within one step see the same dropout masks; batch statistics and random counters move once.

    With `gram`, networks of dense layers on small batches pay 1.8 gradients. A weight matrix `W` that multiplies rows
    `A` of features, and nothing else, has the gradient `A^T D`, with `D` the derivatives of `A W`, and

        ||A^T D||^2 = <(A A^T) D, D>,    A (A^T D) = (A A^T) D,    D (A^T D)^T = (D D^T) A

    are all that the penalty needs of it, so that it is not formed: of n rows, `2 n^2 (in + out)` multiplications and
    `n^2` numbers in place of `3 n in out` and `in out`. The products are found in the program of the gradient, in
    plain `jax.numpy` and in flax alike; a row is all that a sum over examples (and over positions, in a transformer)
    runs over. Each weight goes the cheaper way: one of many rows, of few outputs, shared or decayed inside the loss,
    of a convolution or a loop, has its gradient formed as without `gram`, and so have biases and gains. The result is
    the same up to round-off: that of the norm is relative to `||A||^2 ||D||^2` here, and can exceed a norm that nearly
    vanishes; the gradient of the penalty is as exact as without.

    Args:
      loss_fn: `loss_fn(params, *batch, **kwargs)`, a real floating scalar, twice differentiable.
      strength: a real number; a Python or NumPy zero gives `loss_fn` itself. May be traced, and differentiated.
      mask: whose gradient is penalized, `strength ||M grad L||^2`: a pytree of bools with the structure of the
        parameters or a prefix of it, or a function that makes one from them, in the structure of the gradient (for a
        flax model, an `nnx.State`). All parameters still move: it is the gradient of another loss, not a freezing.
      has_aux: whether `loss_fn` returns `(loss, aux)`; so does the result, then.
      value_and_grad: differentiates `loss_fn` with respect to its first argument: `value_and_grad(f, has_aux=...)`.
      gram: whether to use Gram matrices for the weights where they are cheaper.

    Returns:
      A loss with the arguments of `loss_fn`, in its dtype. The norm is computed in float32, or wider where a leaf is.

    Raises:
      TypeError: if `strength` is not a number or the mask not of bools; JAX's own where the loss is not a real scalar.
      ValueError: if `strength` is not finite, or the mask does not fit the parameters; with `gram`, if no penalized
        leaf is a weight that multiplies rows, with the reason for each.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: jnp.sum(x**2)                           # g = 2 x, H = 2
      >>> value, grad = jax.value_and_grad(gradient_penalized(loss, 0.5))(jnp.array([1.0, 3.0]))
      >>> print(value, grad)                                       # 2 x + 4 x
      30.0 [ 6. 18.]

    References:
      [barrett2021], [smith2021], [geiping2022]
    """
    function = "gradient_penalized"
    _check(function, loss_fn, strength, mask, has_aux, value_and_grad, gram)
    if _off(strength):
        return loss_fn

    def loss(params, *batch, **kwargs):
        return _evaluate(function, loss_fn, strength, mask, has_aux, value_and_grad, gram, None, params, batch, kwargs)

    return loss


def microbatch_gradient_penalized(
    loss_fn: Loss,
    strength: Scalar,
    num_microbatches: Integer,
    *,
    mask: Mask = None,
    has_aux: bool = False,
    value_and_grad: Differentiate = jax.value_and_grad,
    gram: Flag = False,
) -> Callable:
    """Adds the mean squared norm of the microbatches' gradients to their mean loss.

        mean over k of    L_k + strength ||grad L_k||^2

    That is what stochastic gradient descent of step h on shuffled minibatches adds implicitly, with strength h/4. It
    penalizes the variance of the gradient as well as the gradient of the mean, `mean ||g_k||^2 = ||g||^2 +
    mean ||g_k - g||^2`; experiments with large batches find that this, with small microbatches, is what
    generalizes.

    The microbatches are evaluated one after the other, value and gradient together: the memory is that of one of
    them and of two gradients, whatever their number. A strength of zero leaves the mean loss: gradient accumulation.

    Args:
      loss_fn: as in `gradient_penalized`; the mean over the examples it is given.
      strength: as in `gradient_penalized`.
      num_microbatches: how many; the k-th is the k-th contiguous piece of the leading axis of every array in
        `*batch`, which it must divide. Keyword arguments go to all microbatches whole.
      mask: as in `gradient_penalized`.
      has_aux: whether `loss_fn` returns `(loss, aux)`. The arrays of `aux` come back with a leading axis of
        `num_microbatches`.
      value_and_grad: as in `gradient_penalized`. The state of a flax model goes from one microbatch to the next: each
        has its own dropout masks.
      gram: as in `gradient_penalized`; the rows are those of one microbatch.

    Returns:
      A loss with the arguments of `loss_fn`.

    Raises:
      TypeError: as `gradient_penalized`, and if `num_microbatches` is not an integer.
      ValueError: as `gradient_penalized`, and if the batch cannot be cut into microbatches of equal length.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x, y: jnp.mean((x - y) ** 2) / 2           # g_k = x - y_k
      >>> penalized = microbatch_gradient_penalized(loss, 0.5, 2)
      >>> value, grad = jax.value_and_grad(penalized)(jnp.array(0.0), jnp.array([1.0, 3.0]))
      >>> print(value, grad)                                       # mean of y^2/2 + y^2/2; of -y - y
      5.0 -4.0

    References:
      [smith2021], [geiping2022], [novack2023]
    """
    function = "microbatch_gradient_penalized"
    _check(function, loss_fn, strength, mask, has_aux, value_and_grad, gram)
    _checks.check_integer(function, "num_microbatches", num_microbatches)
    cut = int(num_microbatches)

    def loss(params, *batch, **kwargs):
        return _evaluate(function, loss_fn, strength, mask, has_aux, value_and_grad, gram, cut, params, batch, kwargs)

    return loss


def _check(function: str, loss_fn: Any, strength: Any, mask: Any, has_aux: Any, value_and_grad: Any, gram: Any) -> None:
    _checks.check_callable(function, "loss_fn", loss_fn, "loss_fn(params, *batch, **kwargs)")
    _checks.check_number(function, "strength", strength)
    _checks.check_flag(function, "has_aux", has_aux)
    _checks.check_callable(function, "value_and_grad", value_and_grad, "as jax.value_and_grad")
    _checks.check_flag(function, "gram", gram)
    if mask is not None and not _checks.is_function(mask):
        _checks.check_mask(function, "mask", mask, mask)


def _off(strength: Any) -> bool:
    return _checks.is_concrete(strength) and bool(strength == 0)


def _evaluate(function, loss_fn, strength, mask, has_aux, value_and_grad, gram, cut, params, batch, kwargs):
    pure = trace(function, loss_fn, value_and_grad, has_aux, params, batch, kwargs, cut)
    if cut is not None:
        _checks.check_equal_lengths(function, [pure.inputs[i] for i in pure.batch])
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(pure.parameters)]
    chosen = [True] * len(paths)
    if mask is not None:
        tree = mask(pure.parameters) if _checks.is_function(mask) else mask
        chosen = _checks.check_path_mask(function, "mask", tree, paths, pure.paths)
    dtype = jnp.result_type(jnp.float32, pure.dtype, *(jnp.finfo(pure.inputs[i].dtype).dtype for i in pure.own))
    penalized = PenalizedLoss(function, pure, chosen, not _off(strength), gram, cut)
    value, aux, state = penalized(jnp.asarray(strength, dtype))
    aux = pure.finish(aux, state)
    return (value, aux) if has_aux else value
