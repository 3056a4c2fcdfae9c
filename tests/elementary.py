"""Elementary differentials of a gradient by nested forward derivatives, to sum a B-series at a point."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from implicit_reg import bseries


def derivatives_at(field, x):
    """`vectors -> field^(m)(x)[vectors]`: the directional derivative, m times."""

    def derivative(vectors):
        function = field
        for v in vectors:
            function = (lambda inner, v: lambda y: jax.jvp(inner, (y,), (v,))[1])(function, v)
        return function(x)

    return derivative


def series_coefficients(series, field, x, order):
    """`f_1, ..., f_order` at `x` of a field that is a B-series: `f_n = sum b(tree) / sigma(tree) F(tree)(x)`."""
    derivative = derivatives_at(field, x)
    return tuple(
        sum(
            (
                float(series[tree] / bseries.symmetry(tree)) * bseries.elementary_differential(tree, derivative)
                for tree in bseries.trees(n)
            ),
            start=jnp.zeros_like(x),
        )
        for n in range(1, order + 1)
    )
