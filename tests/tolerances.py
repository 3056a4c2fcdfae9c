"""The four tolerances of the tests, each with its reason; a test picks one by name and never writes a number.

ROUND_OFF   one expression computed along two routes: they differ by a few roundings of the working precision.
DERIVATIVE  products with second and higher derivatives: roundings grow with the number of terms.
SOLVER      anything that went through `integrate`: its default tolerances are 1e-12 (float64) and 1e-6 (float32).
ORDER       the distance of a measured order from the predicted one, on the finest pair of step sizes.
STATISTICAL how many standard errors an estimate may lie from the truth: one false alarm in 16000.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Tolerance(NamedTuple):
    float32: float
    float64: float


ROUND_OFF = Tolerance(1e-6, 1e-14)
DERIVATIVE = Tolerance(1e-4, 1e-10)
SOLVER = Tolerance(1e-5, 1e-10)
ORDER = 0.1
STATISTICAL = 4.0


def assert_close(actual, expected, tolerance: Tolerance) -> None:
    """Same structure, and every leaf within `tolerance` of the largest entry of the expected tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree.leaves(expected)
    scale = max((float(np.max(np.abs(np.asarray(leaf, complex)), initial=0.0)) for leaf in leaves), default=0.0) or 1.0
    for x, y in zip(jax.tree.leaves(actual), leaves, strict=True):
        assert jnp.shape(x) == jnp.shape(y)
        wide = jnp.finfo(jnp.result_type(x)).bits == 64 and jnp.finfo(jnp.result_type(y)).bits == 64
        bound = tolerance.float64 if wide else tolerance.float32
        np.testing.assert_allclose(np.asarray(x, complex), np.asarray(y, complex), rtol=0, atol=bound * scale)
