"""All that `inspect` shows of a point: its kind, both ends of the spectrum, density, flatness, surface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from implicit_reg import _checks
from implicit_reg._types import Data, Integer, Loss, Params, Scalar
from implicit_reg.curvature.critical import Spectrum, classified
from implicit_reg.curvature.density import spectral_density, trace
from implicit_reg.curvature.flatness import epsilon_sharpness, minibatch_gradient_variance, noise_robustness
from implicit_reg.curvature.lanczos import fixed
from implicit_reg.curvature.minibatches import mean_value_and_gradient
from implicit_reg.curvature.operators import hessian_operator
from implicit_reg.curvature.surface import loss_along

PORTRAIT_STAGES = ("eigenvalues and kind of point", "density", "flatness", "surface")


def portrait(
    loss_fn: Loss,
    params: Params,
    data: Data = (),
    *,
    batch_size: Integer | None = None,
    top: Integer = 5,
    num_samples: Integer = 8,
    radius: Scalar = 0.05,
    key: jax.Array | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The curvature of a loss around its parameters, as one record that JSON can hold.

    Args:
      loss_fn, params, data, batch_size: as for `hessian_operator`.
      top: eigenvalues at each end, cut at the dimension.
      num_samples: random vectors for density, trace and noise, at least 2.
      radius: of epsilon-sharpness, and the relative size of the parameter noise.
      key: of all that is random; None is a fixed one.
      report: called with each of `PORTRAIT_STAGES` when it begins.

    Returns:
      `loss`, `num_params`, `classification` (kind, index, text, thresholds), `largest` and `smallest` (value, bound,
      converged), `trace`, `density`, `flatness` (name, value, standard error, what it is), `surface` (the loss on the
      plane of the outermost eigenvectors).

    Raises:
      TypeError, ValueError: as `hessian_operator`; a loss or a product that is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> record = portrait(lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.zeros(2), top=1)
      >>> record["classification"]["kind"], round(record["largest"][0]["value"], 3)
      ('saddle', 2.0)
    """
    _checks.check_integer("portrait", "top", top)
    report = report or (lambda stage: None)
    options: dict[str, Any] = {"batch_size": batch_size}
    operator = hessian_operator(loss_fn, params, data, **options)
    keys = jax.random.split(fixed(key), 4)
    report(PORTRAIT_STAGES[0])
    value, _ = mean_value_and_gradient(loss_fn, params, data, **options)
    k = min(int(top), operator.size)
    kind, spectrum = classified(loss_fn, params, data, num_extreme=max(3, k), key=keys[0], **options)
    smallest, largest = Spectrum(*(x[:k] for x in spectrum)), Spectrum(*(x[::-1][:k] for x in spectrum))
    report(PORTRAIT_STAGES[1])
    density = spectral_density(operator, num_samples=num_samples, key=keys[1])
    total = trace(operator, num_samples=num_samples, key=keys[1])
    report(PORTRAIT_STAGES[2])
    flatness = _flatness(loss_fn, params, data, batch_size, num_samples, radius, keys[2], kind.gradient_norm, total)
    report(PORTRAIT_STAGES[3])
    ends = tuple(np.asarray(pairs.vectors[0], operator.dtype) for pairs in (largest, smallest))[: operator.size]
    # So far that the sharpest direction raises, or lowers, the loss by as much as it is.
    curved = max(abs(float(largest.values[0])), abs(float(smallest.values[0])))
    extent = (2 * abs(float(value)) / curved) ** 0.5 if curved and float(value) else float(radius)
    surface = loss_along(loss_fn, params, ends, data, extents=extent, num_points=31, chunk=16, batch_size=batch_size)
    losses = np.asarray(surface.losses, np.float64)
    return {
        "loss": float(value),
        "num_params": operator.size,
        "classification": {
            "kind": kind.kind,
            "index": kind.index,
            "text": kind.text,
            "gradient_norm": kind.gradient_norm,
            "scaled_gradient": kind.scaled_gradient,
            "gradient_threshold": kind.gradient_threshold,
            "eigenvalue_threshold": kind.eigenvalue_threshold,
            "complete": kind.complete,
            "kinks": kind.kinks,
        },
        "largest": _rows(largest),
        "smallest": _rows(smallest),
        "trace": total._asdict(),
        "density": {
            name: np.asarray(getattr(density, name)).tolist() for name in ("grid", "density", "standard_error")
        },
        "flatness": flatness,
        "surface": dict(zip("xy", (np.asarray(axis).tolist() for axis in surface.coordinates), strict=False))
        | {
            "loss": np.where(np.isfinite(losses), losses, None).tolist(),
            "xlabel": "along the largest eigenvalue",
            "ylabel": "along the smallest eigenvalue",
        },
    }


def _flatness(loss_fn, params, data, batch_size, num_samples, radius, key, norm, total) -> list[dict[str, Any]]:
    """Rows of name, value, standard error, and what the number is."""

    def row(name: str, value: Any, what: str, error: Any = None) -> dict[str, Any]:
        return {
            "name": name,
            "value": float(value),
            "standard_error": None if error is None else float(error),
            "what": what,
        }

    options: dict[str, Any] = {"batch_size": batch_size, "key": key}
    rise = noise_robustness(loss_fn, params, data, scale=radius, num_samples=num_samples, **options)
    rows = [
        row("gradient norm", norm, "the slope, ||grad L||"),
        row("trace", total.value, "the sum of all eigenvalues", total.standard_error),
        row(
            "epsilon-sharpness",
            epsilon_sharpness(loss_fn, params, data, radius=radius, **options),
            f"largest rise of the loss within {radius:g}, from below",
        ),
        row("noise", rise.value, f"mean rise under noise of {radius:g} of each filter", rise.standard_error),
    ]
    if jax.tree.leaves(data):
        total_examples = jax.tree.leaves(data)[0].shape[0]
        num = min(8, total_examples)
        kept = jax.tree.map(lambda x: x[: total_examples // num * num], data)
        variance = minibatch_gradient_variance(loss_fn, params, kept, num_batches=num)
        rows.append(row("minibatch variance", variance, f"of the gradients of {num} minibatches"))
    return rows


def _rows(pairs: Spectrum) -> list[dict[str, Any]]:
    return [
        {"value": float(value), "bound": float(bound), "converged": bool(met)}
        for value, bound, met in zip(pairs.values, pairs.bounds, pairs.converged, strict=True)
    ]
