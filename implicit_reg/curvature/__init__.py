"""What a loss looks like around its parameters: operators, spectra, flatness, stability, critical points, surfaces."""

from __future__ import annotations

from implicit_reg.curvature.critical import Classification, classify
from implicit_reg.curvature.density import Estimate, SpectralDensity, spectral_density, trace
from implicit_reg.curvature.eigenpairs import Eigenpairs, largest_eigenpairs, smallest_eigenpairs
from implicit_reg.curvature.escaping import CriticalPoint, Escape, escape, find_critical_point
from implicit_reg.curvature.lanczos import Extremes, extreme_eigenvalues, lanczos, sharpness
from implicit_reg.curvature.operators import (
    Operator,
    flatten,
    gauss_newton_operator,
    hessian_operator,
    mean_value_and_gradient,
    preconditioned,
)

__all__ = [
    "Classification",
    "CriticalPoint",
    "Eigenpairs",
    "Escape",
    "Estimate",
    "Extremes",
    "Operator",
    "SpectralDensity",
    "classify",
    "escape",
    "extreme_eigenvalues",
    "find_critical_point",
    "flatten",
    "gauss_newton_operator",
    "hessian_operator",
    "lanczos",
    "largest_eigenpairs",
    "mean_value_and_gradient",
    "preconditioned",
    "sharpness",
    "smallest_eigenpairs",
    "spectral_density",
    "trace",
]
