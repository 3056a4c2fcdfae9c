"""Two other ways to the exact field of gradient descent's modified equation, for `fields` to compare with.

- Nested products, as one writes them from the published formulas: every product by `jvp` of what it differentiates.
- Taylor mode: `jax.experimental.jet` pushes the series of the iterates in h through the gradient, step after step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet
from jax.flatten_util import ravel_pytree


def nested(gradient: Callable, order: int, x: Any, h: Any) -> Any:
    """The published coefficients of gradient descent through the fourth, by nested `jvp`."""

    def product(v):
        return jax.jvp(gradient, (x,), (v,))[1]

    def third(u, v):
        return jax.jvp(lambda y: jax.jvp(gradient, (y,), (u,))[1], (x,), (v,))[1]

    combine = lambda *pairs: jax.tree.map(lambda *xs: sum(w * x for (w, _), x in zip(pairs, xs, strict=True)), *(  # noqa: E731
        tree for _, tree in pairs
    ))  # fmt: skip
    g = gradient(x)
    found = [(-1.0, g)]
    if order >= 2:
        hg = product(g)
        found.append((-h / 2, hg))
    if order >= 3:
        hhg, tgg = product(hg), third(g, g)
        found += [(-(h**2) / 3, hhg), (-(h**2) / 12, tgg)]
    if order >= 4:
        last = product(combine((1 / 4, hhg), (1 / 12, tgg)))
        found += [(-(h**3), last), (-(h**3) / 12, third(g, hg))]
    return combine(*found)


def taylor(gradient: Callable, order: int, x: Any, h: Any) -> Any:
    """The logarithm of the step by its forward differences, in truncated series in h."""
    flat, unravel = ravel_pytree(x)
    series = [flat, *[jnp.zeros_like(flat)] * order]  # of an iterate: 1, h, h^2, ... without factorials
    field = [jnp.zeros_like(flat)] * order
    slope = lambda y: ravel_pytree(gradient(unravel(y)))[0]  # noqa: E731
    for j in range(order):
        weight = (-1) ** j * sum(math.comb(k - 1, j) / k for k in range(j + 1, order + 1))
        if j == 0:  # the first iterate does not depend on h
            slopes = [slope(flat), *[jnp.zeros_like(flat)] * (order - 1)]
        else:
            derivatives = [math.factorial(k) * series[k] for k in range(1, order)]
            value, higher = jet(slope, (flat,), (derivatives,))
            slopes = [value, *(c / math.factorial(k) for k, c in enumerate(higher, start=1))]
        field = [f - weight * s for f, s in zip(field, slopes, strict=True)]
        series = [series[0], *(c - s for c, s in zip(series[1:], slopes, strict=True))]
    total = field[-1]
    for coefficient in field[-2::-1]:
        total = coefficient + h * total
    return unravel(total)
