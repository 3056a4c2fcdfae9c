"""Gradient transformations: one file for each method, and the helpers that feed them.

All are `optax.GradientTransformationExtraArgs` of Optax's own extra arguments, `value`, `grad` and `value_fn`;
unknown ones are ignored.
"""

from implicit_reg.transforms.alternation import alternating
from implicit_reg.transforms.backstitching import BackstitchState, backstitch
from implicit_reg.transforms.filling import fill_masked
from implicit_reg.transforms.finite_difference import add_finite_difference_penalty
from implicit_reg.transforms.flood import FloodingState, flooded_fraction, flooding
from implicit_reg.transforms.nnx_models import NnxValueFn, nnx_value_fn
from implicit_reg.transforms.noise import add_decaying_noise
from implicit_reg.transforms.penalty import add_gradient_penalty
from implicit_reg.transforms.sharpness_aware import sam

__all__ = [
    "BackstitchState",
    "FloodingState",
    "NnxValueFn",
    "add_decaying_noise",
    "add_finite_difference_penalty",
    "add_gradient_penalty",
    "alternating",
    "backstitch",
    "fill_masked",
    "flooded_fraction",
    "flooding",
    "nnx_value_fn",
    "sam",
]
