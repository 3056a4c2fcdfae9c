"""Implicit regularization in JAX: use it (gradient transformations), and check it (modified equations).

Names are imported when they are first used, so that `implicit-reg --help` does not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "canonical_convolutions": "_convolutions",
    "flooding": "transforms",
    "flooded_fraction": "transforms",
    "add_gradient_penalty": "transforms",
    "add_finite_difference_penalty": "transforms",
    "add_decaying_noise": "transforms",
    "backstitch": "transforms",
    "sam": "transforms",
    "alternating": "transforms",
    "fill_masked": "transforms",
    "nnx_value_fn": "transforms",
    "update_map": "descent",
    "descend": "descent",
    "mean_epoch": "orderings",
    "Trajectory": "trajectory",
    "gradient_field": "flows",
    "modified_vector_field": "flows",
    "modified_coefficients": "flows",
    "interpolated_vector_field": "flows",
    "classify": "curvature",
    "escape": "curvature",
    "empirical_vector_field": "flows",
    "shuffled_vector_field": "flows",
    "central_flow": "flows",
    "slow_map": "slow_manifold",
    "integrate": "flows",
    "discrepancy": "compare",
    "Discrepancy": "compare",
    "compare_fields": "compare",
    "observed_order": "compare",
    "implicit_strength": "strength",
    "sweep": "experiments",
    "ImplicitRegError": "_checks",
}
_ROOMS = (
    "bseries",
    "compare",
    "curvature",
    "derivatives",
    "experiments",
    "flows",
    "losses",
    "methods",
    "orderings",
    "predictions",
    "problems",
    "strength",
    "training",
    "transforms",
)

__all__ = [*_HOME, *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
