"""Continuous dynamics: vector fields made from one-step maps, and their integration."""

from implicit_reg.flows.integration import integrate
from implicit_reg.flows.interpolated import interpolated_vector_field, interpolation_weights
from implicit_reg.flows.modified import gradient_field, modified_coefficients, modified_vector_field

__all__ = [
    "gradient_field",
    "integrate",
    "interpolated_vector_field",
    "interpolation_weights",
    "modified_coefficients",
    "modified_vector_field",
]
