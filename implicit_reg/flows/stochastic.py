"""Modified equations of the *mean* of stochastic gradient descent, in closed form.

There are m fixed minibatches with losses `C_k`, k = 0..m-1, given as `loss_fn(params, k)`; `k` is traced. Their mean is
the loss `C`, and `<.>` is the mean over k. `g_k`, `H_k`, `T_k` are gradient, Hessian and third derivative of `C_k`;
without an index they are those of `C`. Powers of the step size `h` are included.

Two results are particular to means. Within an epoch without replacement the minibatches are negatively correlated,
which puts the *variance of the gradients* into the loss; single runs of many epochs differ by `h^1.5` only, so that
nothing else is needed. With replacement there is no such term, but the iterates spread as `h^0.5`, so that the mean
needs its covariance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from implicit_reg import _checks
from implicit_reg._types import Integer, Params, Scalar

if TYPE_CHECKING:
    MinibatchLoss: TypeAlias = Callable[[Params, Integer], Array]
else:
    MinibatchLoss: TypeAlias = object  # (params, k) -> scalar


class _Minibatches:
    """Products of the derivatives of all `C_k` at one flat point, one row for each k."""

    def __init__(self, function: str, loss_fn: MinibatchLoss, num_batches: Integer, params: Params) -> None:
        _checks.check_callable(function, "loss_fn", loss_fn, "(params, k) -> loss on the k-th minibatch")
        _checks.check_integer(function, "num_batches", num_batches)
        _checks.check_floating(function, "params", params)
        self.m = int(num_batches)
        self.x, self.unravel = ravel_pytree(params)
        self.k = jnp.arange(self.m)

        def value(x, k):
            loss = loss_fn(self.unravel(x), k)
            _checks.check_loss_value(function, "loss_fn(params, k)", loss)
            return loss

        self._one = jax.grad(value)
        self.g = self.gradients(self.x)

    def gradients(self, x):
        """`g_k`."""
        return jax.vmap(self._one, (None, 0))(x, self.k)

    def along(self, v, x=None):
        """`H_k v`: one vector for all minibatches."""
        return jax.jvp(self.gradients, (self.x if x is None else x,), (v,))[1]

    def products(self, vectors):
        """`H_k v_k`: a vector of its own for each minibatch."""
        return jax.vmap(lambda k, v: jax.jvp(lambda x: self._one(x, k), (self.x,), (v,))[1])(self.k, vectors)

    def thirds(self, ks, us, vs):
        """`T_k(u, v)` for a list of minibatches and vectors."""

        def third(k, u, v):
            return jax.jvp(lambda x: jax.jvp(lambda x: self._one(x, k), (x,), (u,))[1], (self.x,), (v,))[1]

        return jax.vmap(third)(ks, us, vs)

    def third(self, u, v):
        """`T(u, v)` of the mean loss."""
        mean = lambda x: jnp.mean(self.along(u, x), axis=0)  # noqa: E731
        return jax.jvp(mean, (self.x,), (v,))[1]


def shuffled_terms(
    loss_fn: MinibatchLoss, num_batches: Integer, params: Params, h: Scalar, *, order: Integer = 3
) -> tuple[PyTree, ...]:
    """One epoch of m minibatches in random order without replacement: what the mean over all m! orders follows.

        F_1 = -m h g
        F_2 = -(m h^2/2) <H_k g_k> = -m h grad (h/4) <||g_k||^2>
        F_3 = h^3 (m a_1 + m^2 a_2),     a_1 = -(1/3) <H_k H_k g_k> - (1/12) <T_k(g_k, g_k)>,
        a_2 = (1/12) ( 2 <H_k H g_k> - <H_k H_k g> - H <H_k g_k> + <T_k(g_k, g)> - <T(g_k, g_k)> )

    The unit of time is the epoch. After one epoch the mean is at a distance of order 2, 3, 4 with one, two, three
    terms; at fixed time over several epochs, each with an order of its own, 1, 2, 3. There is no m^3 term. A single
    order deviates at order 2; the mean of any order and its reverse has the same F_1 and F_2.

    Args:
      loss_fn: `loss_fn(params, k) -> loss on the k-th minibatch`; `k` is traced.
      num_batches: m.
      params: any pytree of floating leaves.
      h: the step size of one minibatch step.
      order: how many terms, 1 to 3.

    Returns:
      `order` trees structured as `params`.

    Raises:
      TypeError, ValueError: an argument is not as above.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x, k: 0.5 * (x - k) ** 2                     # two parabolas, around 0 and 1
      >>> [round(float(term), 4) for term in shuffled_terms(loss, 2, jnp.array(2.0), 0.1)]
      [-0.3, -0.015, -0.001]

    References:
      [smith2021] for the second term; the third was derived here.
    """
    _checks.check_integer("shuffled_terms", "order", order)
    if order > 3:
        raise ValueError(
            f"shuffled_terms: `order` must be at most 3, got {order}; for more, hand the exact mean over the orders to "
            f"modified_coefficients"
        )
    c = _Minibatches("shuffled_terms", loss_fn, num_batches, params)
    m, g = c.m, jnp.mean(c.g, axis=0)
    terms = [-m * h * g]
    if order == 2:
        terms.append(-0.5 * m * h**2 * jnp.mean(c.products(c.g), axis=0))
    if order == 3:
        pairs = jax.vmap(c.along)(c.g)  # H_i g_j at [j, i]
        own = jnp.diagonal(pairs).T
        regularizer = jnp.mean(own, axis=0)
        terms.append(-0.5 * m * h**2 * regularizer)
        # All terms with an outer H_k in one product (H w = <H_k w>), and all m (m + 1) with a third derivative in one
        # batch of directional derivatives: each further call would be compiled anew, a second or two.
        inner = -m / 3 * own + m**2 / 12 * (2 * jnp.mean(pairs, axis=1) - jnp.mean(pairs, axis=0) - regularizer)
        bent = c.thirds(
            jnp.concatenate([c.k, jnp.repeat(c.k, m)]),
            jnp.concatenate([c.g, jnp.tile(c.g, (m, 1))]),
            jnp.concatenate([m / 12 * (m * g - c.g), jnp.tile(-m / 12 * c.g, (m, 1))]),
        )
        terms.append(h**3 * (jnp.mean(c.products(inner), axis=0) + jnp.sum(bent, axis=0) / m))
    return tuple(map(c.unravel, terms))


def shuffled_parts(loss_fn: MinibatchLoss, num_batches: Integer, params: Params, h: Scalar) -> tuple[PyTree, PyTree]:
    """The second term of a shuffled epoch in its full-batch and its variance part, `F_2 = full + variance`:

        full     = -m h grad (h/4) ||g||^2             = -(m h^2/2) H g
        variance = -m h grad (h/4) <||g_k - g||^2>     = -(m h^2/2) <(H_k - H)(g_k - g)>

    The full-batch part is what m steps of gradient descent on `C` do; the variance part is what shuffling adds. It is
    the variance of the *gradients*, not of the losses.

    Args:
      loss_fn, num_batches, params, h: as in `shuffled_terms`.

    Returns:
      Two trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x, k: 0.5 * k * x**2                         # g = x/2 and H = 1/2 on the mean; g_k = k x
      >>> [float(part) for part in shuffled_parts(loss, 2, jnp.array(1.0), 1.0)]
      [-0.25, -0.25]

    References:
      [smith2021]
    """
    c = _Minibatches("shuffled_parts", loss_fn, num_batches, params)
    full, variance = _parts(c)
    scale = -0.5 * c.m * h**2
    return c.unravel(scale * full), c.unravel(scale * variance)


def _parts(c: _Minibatches) -> tuple[Array, Array]:
    """`H g`, and `<(H_k - H)(g_k - g)> = <H_k g_k> - H g`: half the gradients of `||g||^2` and of the variance."""
    g = jnp.mean(c.g, axis=0)
    full = jnp.mean(c.along(g), axis=0)
    deviation = c.g - g
    # sum of the deviations is 0, so that H <.> drops out.
    return full, jnp.mean(c.products(deviation), axis=0)


def backstitch_shuffled_terms(
    loss_fn: MinibatchLoss, num_batches: Integer, params: Params, h: Scalar, *, alpha: Scalar, interval: Integer = 1
) -> tuple[PyTree, PyTree]:
    """Shuffled gradient descent with every `interval`-th step a backstitch; the unit of time is the epoch:

        F_1 = -m h g,    F_2 = -m h grad (h/4) [1 + 2 alpha (1 + alpha)/interval] <||g_k||^2>

    Backstitch adds `-h^2 alpha (1 + alpha) H_k g_k` to a step, and every minibatch is as often at such a step. Where
    the interval does not divide m, that is so only averaged over the offset.

    Args:
      loss_fn, num_batches, params, h: as in `shuffled_terms`.
      alpha: the length of the step back.
      interval: every how many steps to backstitch.

    Returns:
      Two trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x, k: 0.5 * x**2
      >>> [float(term) for term in backstitch_shuffled_terms(loss, 2, jnp.array(1.0), 1.0, alpha=1.0, interval=4)]
      [-2.0, -2.0]

    References:
      [wang2017] for the method; the second term was derived here.
    """
    _checks.check_number("backstitch_shuffled_terms", "alpha", alpha, low=0.0)
    _checks.check_integer("backstitch_shuffled_terms", "interval", interval)
    c = _Minibatches("backstitch_shuffled_terms", loss_fn, num_batches, params)
    factor = 1 + 2 * alpha * (1 + alpha) / interval
    first = -c.m * h * jnp.mean(c.g, axis=0)
    second = -0.5 * c.m * h**2 * factor * jnp.mean(c.products(c.g), axis=0)
    return c.unravel(first), c.unravel(second)


def momentum_shuffled_terms(
    loss_fn: MinibatchLoss, num_batches: Integer, params: Params, h: Scalar, *, decay: Scalar
) -> tuple[PyTree, PyTree]:
    """Shuffled heavy ball, `v <- decay v + g_k, x <- x - h v`; the unit of time is the epoch:

        F_1 = -m eta g
        F_2 = -m eta grad ( (eta/4) (1 + decay)/(1 - decay) ||g||^2 + (kappa h/4) <||g_k - g||^2> )
        kappa = 2/(m (m - 1)) sum_{r=1..m-1} (m - r) (1 - decay^r)/(1 - decay)

    with `eta = h/(1 - decay)`. A gradient of r steps ago has moved the point by `(1 - decay^r)/(1 - decay)` of itself,
    and a pair of different minibatches r steps apart, of which an epoch has m - r, has
    `<H_i (g_j - g)> = -<(H_k - H)(g_k - g)>/(m - 1)`; pairs in different epochs are independent. So the memory
    multiplies the two parts of `F_2` differently: `kappa` is 1
    for m = 2 whatever the decay, and tends to `1/(1 - decay)`, not to the larger factor of the full-batch part, for
    long epochs. `decay = 0` is `shuffled_terms`.

    Args:
      loss_fn, num_batches, params, h: as in `shuffled_terms`.
      decay: of the trace, at least 0 and below 1.

    Returns:
      Two trees structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x, k: 0.5 * k * x**2
      >>> [float(term) for term in momentum_shuffled_terms(loss, 2, jnp.array(1.0), 1.0, decay=0.5)]
      [-2.0, -3.5]
    """
    _checks.check_fraction("momentum_shuffled_terms", "decay", decay)
    c = _Minibatches("momentum_shuffled_terms", loss_fn, num_batches, params)
    eta = h / (1 - decay)
    full, variance = _parts(c)
    first = -c.m * eta * jnp.mean(c.g, axis=0)
    second = -0.5 * c.m * eta * ((1 + decay) / (1 - decay) * eta * full + kappa(c.m, decay) * h * variance)
    return c.unravel(first), c.unravel(second)


def kappa(num_batches: Integer, decay: Scalar) -> Scalar:
    """`2/(m (m - 1)) sum_{r=1..m-1} (m - r) (1 - decay^r)/(1 - decay)`: memory's factor on the variance of an epoch.

    Example:
      >>> round(kappa(2, 0.9), 6), round(kappa(1000, 0.5), 2)
      (1.0, 2.0)
    """
    m = num_batches
    _checks.check_integer("kappa", "num_batches", m)
    if m == 1:
        return 1.0  # there is no variance
    return 2 / (m * (m - 1)) * sum((m - r) * sum(decay**j for j in range(r)) for r in range(1, m))


def replacement_moments(
    loss_fn: MinibatchLoss,
    num_batches: Integer,
    mean: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    h: Scalar,
    *,
    decay: Scalar = 0.0,
) -> tuple[Float[Array, " d"], Float[Array, " d"], Float[Array, "d d"]]:
    """Minibatches drawn with replacement: rates of the mean and the covariance S of the iterates, per minibatch step.

        dx/dn = F_1 + F_2,   F_1 = -eta g,   F_2 = -(eta^2/2) (1 + decay)/(1 - decay) H g - (eta/2) grad <H, S>
        dS/dn = -eta (H S + S H) + eta^2 Sigma,    Sigma = <(g_k - g)(g_k - g)'>,    S(0) = 0,    eta = h/(1 - decay)

    S is held fixed in `grad <H, S>`. Order 2 at fixed time; without S only order 1, because S is of order h. There is
    no variance term: after one epoch the mean has moved as with `C + (h/4) ||g||^2`. With momentum (`decay`) the
    covariance sees the effective step alone, and the full-batch part gets the factor it has without noise.

    Args:
      loss_fn, num_batches, h: as in `shuffled_terms`.
      mean: the mean of the iterates, a flat vector.
      covariance: S, symmetric.
      decay: of the trace of heavy ball; 0 is gradient descent.

    Returns:
      `F_1`, `F_2` and `dS/dn`. Costs d products with third derivatives: for small problems.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x, k: jnp.sum(x**3) / 6 + (2 * k - 1) * jnp.sum(x)       # g_k = x^2/2 -+ 1, H = x
      >>> rates = replacement_moments(loss, 2, jnp.array([2.0]), jnp.array([[0.5]]), 0.1)
      >>> [round(float(rate.sum()), 4) for rate in rates]                        # F_2 = -0.02 - 0.025
      [-0.2, -0.045, -0.19]
    """
    _checks.check_fraction("replacement_moments", "decay", decay)
    c = _Minibatches("replacement_moments", loss_fn, num_batches, mean)
    eta = h / (1 - decay)
    g = jnp.mean(c.g, axis=0)
    turned = jax.vmap(lambda v: jnp.mean(c.along(v), axis=0))(covariance)  # rows H S e_i, that is S H
    drift = jnp.sum(jax.vmap(c.third)(covariance, jnp.eye(len(c.x), dtype=c.x.dtype)), axis=0)
    deviation = c.g - g
    second = -0.5 * eta**2 * (1 + decay) / (1 - decay) * jnp.mean(c.along(g), axis=0) - 0.5 * eta * drift
    rate = -eta * (turned + turned.T) + eta**2 * deviation.T @ deviation / c.m
    return -eta * g, second, rate
