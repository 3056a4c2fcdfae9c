"""What a loss looks like around its parameters: operators, spectra, flatness, stability, critical points, surfaces."""

from __future__ import annotations

from implicit_reg.curvature.operators import (
    Operator,
    flatten,
    gauss_newton_operator,
    hessian_operator,
    mean_value_and_gradient,
    preconditioned,
)

__all__ = [
    "Operator",
    "flatten",
    "gauss_newton_operator",
    "hessian_operator",
    "mean_value_and_gradient",
    "preconditioned",
]
