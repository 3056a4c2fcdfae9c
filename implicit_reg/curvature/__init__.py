"""What a loss looks like around its parameters: operators, spectra, flatness, stability, critical points, surfaces."""

from __future__ import annotations

from implicit_reg.curvature.critical import Classification, classify
from implicit_reg.curvature.density import Estimate, SpectralDensity, spectral_density, trace
from implicit_reg.curvature.eigenpairs import Eigenpairs, largest_eigenpairs, smallest_eigenpairs
from implicit_reg.curvature.escaping import CriticalPoint, Escape, escape, find_critical_point
from implicit_reg.curvature.flatness import (
    epsilon_sharpness,
    gradient_norm,
    minibatch_gradient_variance,
    noise_robustness,
)
from implicit_reg.curvature.lanczos import Extremes, extreme_eigenvalues, lanczos, sharpness
from implicit_reg.curvature.leading import Leading, leading_eigenpairs
from implicit_reg.curvature.minibatches import mean_value_and_gradient
from implicit_reg.curvature.operators import (
    Operator,
    flatten,
    gauss_newton_operator,
    hessian_operator,
    preconditioned,
)
from implicit_reg.curvature.portrait import PORTRAIT_STAGES, portrait
from implicit_reg.curvature.stability import (
    adam_stability,
    momentum_stability,
    nesterov_stability,
    preconditioned_sharpness,
    preconditioner,
    sgd_stability,
)
from implicit_reg.curvature.surface import LossSurface, filter_normalized, loss_along, project, random_direction

__all__ = [
    "PORTRAIT_STAGES",
    "Classification",
    "CriticalPoint",
    "Eigenpairs",
    "Escape",
    "Estimate",
    "Extremes",
    "Leading",
    "LossSurface",
    "Operator",
    "SpectralDensity",
    "adam_stability",
    "classify",
    "epsilon_sharpness",
    "escape",
    "extreme_eigenvalues",
    "filter_normalized",
    "find_critical_point",
    "flatten",
    "gauss_newton_operator",
    "gradient_norm",
    "hessian_operator",
    "lanczos",
    "largest_eigenpairs",
    "leading_eigenpairs",
    "loss_along",
    "mean_value_and_gradient",
    "minibatch_gradient_variance",
    "momentum_stability",
    "nesterov_stability",
    "noise_robustness",
    "portrait",
    "preconditioned",
    "preconditioned_sharpness",
    "preconditioner",
    "project",
    "random_direction",
    "sgd_stability",
    "sharpness",
    "smallest_eigenpairs",
    "spectral_density",
    "trace",
]
