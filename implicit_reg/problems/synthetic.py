"""The synthetic classification problems of the flooding paper: two classes, label noise, and the clean labels kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.problems.data import Dataset, flip_labels

DIMENSION = 10
_SIZES = {"num_train": 100, "num_validation": 100, "num_test": 20000}


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyDataset:
    """Data whose labels are noisy in all three parts, with the labels as they were before.

    Args:
      data: features and *noisy* labels of the three parts. Choose on the validation part: that is all that a user has.
      clean_train, clean_validation, clean_test: the labels without noise.
      label_noise: the fraction of flipped labels.
      bayes_error: the smallest possible error against clean labels; None where it has no closed form.
      bayes_cross_entropy: the smallest possible cross-entropy against noisy labels, in nats; None likewise.

    Example:
      >>> problem = two_gaussians(seed=0, label_noise=0.1, num_test=1000)
      >>> int((problem.data.y_test != problem.clean_test).sum()), f"{problem.bayes_error:.4f}"
      (100, '0.0569')
    """

    data: Dataset
    clean_train: np.ndarray
    clean_validation: np.ndarray
    clean_test: np.ndarray
    label_noise: float
    bayes_error: float | None
    bayes_cross_entropy: float | None


def two_gaussians(
    seed: Integer = 0,
    *,
    label_noise: Scalar = 0.0,
    distance: Scalar = 1.0,
    num_train: Integer = _SIZES["num_train"],
    num_validation: Integer = _SIZES["num_validation"],
    num_test: Integer = _SIZES["num_test"],
    dtype: Any = np.float32,
) -> NoisyDataset:
    """Two unit Gaussians in ten dimensions, with means 0 and `distance` (1, ..., 1); each class is one half.

        p(1 | x) = 1 / (1 + exp(-(distance sum(x) - 10 distance^2 / 2))),    Bayes error = Phi(-sqrt(10) distance / 2)

    Args:
      seed: of examples and noise, in [0, 2**32).
      label_noise: fraction of the labels of each part that is flipped, in [0, 1/2).
      distance: of the means along each axis, positive.
      num_train, num_validation, num_test: examples of both classes together; even.
      dtype: of the features.

    Returns:
      A `NoisyDataset` with both Bayes values.

    Raises:
      ValueError: for a noise outside [0, 1/2), an odd number of examples, or a distance that is not positive.

    Example:
      >>> problem = two_gaussians(seed=1)
      >>> problem.data.x_train.shape, f"{problem.bayes_cross_entropy:.3f}"
      ((100, 10), '0.144')

    References:
      [ishida2020]; the official code's data, drawn with another generator.
    """
    _checks.check_number("two_gaussians", "distance", distance, low=0.0, exclusive=True)
    noise = _noise("two_gaussians", label_noise)

    def draw(rng, n):
        y = np.repeat(np.array([0, 1], np.int32), n // 2)
        return rng.standard_normal((n, DIMENSION)) + float(distance) * y[:, None], y

    # Along the line of the means the log odds are N(+-m^2/2, m^2), m the distance of the means: one dimension is left.
    m = math.sqrt(DIMENSION) * float(distance)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    posterior = 1 / (1 + np.exp(-(m**2 / 2 + m * nodes)))  # of the true class; by symmetry the same for both
    noisy = noise + (1 - 2 * noise) * posterior
    surprise = -(1 - noise) * np.log(noisy) - (noise * np.log1p(-noisy) if noise else 0.0)
    cross_entropy = float(weights @ surprise / weights.sum())
    sizes = _sizes("two_gaussians", num_train, num_validation, num_test, even=True)
    return _assemble("two-gaussians", draw, seed, noise, sizes, dtype, 0.5 * math.erfc(m / math.sqrt(8)), cross_entropy)


def sinusoid(
    seed: Integer = 0,
    *,
    label_noise: Scalar = 0.0,
    num_train: Integer = _SIZES["num_train"],
    num_validation: Integer = _SIZES["num_validation"],
    num_test: Integer = _SIZES["num_test"],
    dtype: Any = np.float32,
) -> NoisyDataset:
    """Points in the disc of radius 2, uniformly, split by a sine.

        x = 2 (u, v) / ||(s, t, u, v)||,  (s, t, u, v) ~ N(0, I_4);    y = 1 where 1.5 x_0 + sin(1.5 x_1) > 0, else 0

    Args:
      seed: of examples and noise, in [0, 2**32).
      label_noise: fraction p of the labels of each part that is flipped, in [0, 1/2).
      num_train, num_validation, num_test: numbers of examples.
      dtype: of the features.

    Returns:
      A `NoisyDataset`; clean labels are a function of x, so the Bayes error is 0 and the cross-entropy is the entropy
      of the noise, `-p log p - (1 - p) log(1 - p)`.

    Raises:
      ValueError: for a noise outside [0, 1/2), or a part without examples.

    Example:
      >>> problem = sinusoid(seed=1, label_noise=0.1)
      >>> problem.data.x_train.shape, f"{problem.bayes_cross_entropy:.3f}"
      ((100, 2), '0.325')

    References:
      [ishida2020]; the official code's data, drawn with another generator.
    """
    noise = _noise("sinusoid", label_noise)

    def draw(rng, n):
        quadruple = rng.standard_normal((n, 4))
        x = 2 * quadruple[:, 2:] / np.linalg.norm(quadruple, axis=1, keepdims=True)
        return x, (1.5 * x[:, 0] + np.sin(1.5 * x[:, 1]) > 0).astype(np.int32)

    sizes = _sizes("sinusoid", num_train, num_validation, num_test)
    return _assemble("sinusoid", draw, seed, noise, sizes, dtype, 0.0, noise_entropy(noise))


def spiral(
    seed: Integer = 0,
    *,
    label_noise: Scalar = 0.0,
    scatter: Scalar = 1.0,
    num_train: Integer = _SIZES["num_train"],
    num_validation: Integer = _SIZES["num_validation"],
    num_test: Integer = _SIZES["num_test"],
    dtype: Any = np.float32,
) -> NoisyDataset:
    """Two arms of a spiral, with normal scatter about them; each class is one half.

        class 1: a (cos a, sin a) + scatter N,    class 0: (a + pi) (cos a, sin a) + scatter N,    a from 0 to 4 pi

    Args:
      seed: of examples and noise, in [0, 2**32).
      label_noise: fraction p of the labels of each part that is flipped, in [0, 1/2).
      scatter: standard deviation about the arms, at least 0; arms are pi apart.
      num_train, num_validation, num_test: examples of both classes together; even. Along an arm they are equidistant.
      dtype: of the features.

    Returns:
      A `NoisyDataset`. Without scatter the Bayes error is 0 and the cross-entropy that of the noise; with scatter
      neither has a closed form.

    Raises:
      ValueError: for a noise outside [0, 1/2), an odd number of examples, or a negative scatter.

    Example:
      >>> problem = spiral(seed=1, label_noise=0.05)
      >>> problem.data.num_classes, problem.bayes_error
      (2, None)

    References:
      [ishida2020]; the official code's data, drawn with another generator.
    """
    _checks.check_number("spiral", "scatter", scatter, low=0.0)
    noise = _noise("spiral", label_noise)

    def draw(rng, n):
        angle = np.linspace(0, 4 * np.pi, n // 2)
        arm = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        x = np.concatenate([angle[:, None] * arm, (angle + np.pi)[:, None] * arm])
        return x + float(scatter) * rng.standard_normal((n, 2)), np.repeat(np.array([1, 0], np.int32), n // 2)

    exact = float(scatter) == 0
    sizes = _sizes("spiral", num_train, num_validation, num_test, even=True)
    values = (0.0, noise_entropy(noise)) if exact else (None, None)
    return _assemble("spiral", draw, seed, noise, sizes, dtype, *values)


def noise_entropy(noise: Scalar) -> float:
    """The entropy of a label that is flipped with this probability, in nats: `-p log p - (1 - p) log(1 - p)`.

    It is the smallest cross-entropy that any model reaches on noisy labels whose clean labels are a function of x.

    Args:
      noise: p, in [0, 1].

    Returns:
      The entropy, 0 at p = 0 and p = 1.

    Raises:
      ValueError: where p lies outside [0, 1].

    Example:
      >>> f"{noise_entropy(0.1):.4f}"
      '0.3251'
    """
    _checks.check_fraction("noise_entropy", "noise", noise)
    return -sum(p * math.log(p) for p in (float(noise), 1 - float(noise)) if p > 0)


SYNTHETIC: dict[str, Callable[..., NoisyDataset]] = {
    "two-gaussians": two_gaussians,
    "sinusoid": sinusoid,
    "spiral": spiral,
}
"""The generators by name; each is called as `generator(seed, label_noise=..., num_train=..., ...)`."""


def _noise(function: str, label_noise: Any) -> float:
    _checks.check_number(function, "label_noise", label_noise, low=0.0)
    if label_noise >= 0.5:
        raise ValueError(
            f"{function}: `label_noise` must be below 1/2, got {label_noise}; at 1/2 a label says nothing of its class"
        )
    return float(label_noise)


def _sizes(function: str, *sizes: Any, even: bool = False) -> tuple[int, ...]:
    for name, size in zip(_SIZES, sizes, strict=True):
        _checks.check_integer(function, name, size)
        if even and size % 2:
            raise ValueError(f"{function}: `{name}` must be even, got {size}; the classes have equally many examples")
    return tuple(int(size) for size in sizes)


def _assemble(
    name: str,
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]],
    seed: Any,
    noise: float,
    sizes: tuple[int, ...],
    dtype: Any,
    bayes_error: float | None,
    bayes_cross_entropy: float | None,
) -> NoisyDataset:
    _checks.check_seed(name.replace("-", "_"), "seed", seed)
    parts, clean = {}, []
    for part, (words, size) in enumerate(zip(("train", "validation", "test"), sizes, strict=True)):
        # A stream for each part and purpose: the training data stay the same whatever the sizes of the others.
        x, y = draw(np.random.default_rng([int(seed), part, 0]), size)
        order = np.random.default_rng([int(seed), part, 1]).permutation(size)
        x, y = x[order].astype(dtype), y[order]
        flips = int(np.random.SeedSequence([int(seed), part, 2]).generate_state(1)[0])
        parts[f"x_{words}"], parts[f"y_{words}"] = x, flip_labels(y, noise, 2, flips)
        clean.append(y)
    note = f"{noise:.3g} of the labels of each part are flipped" if noise else ""
    data = Dataset(name, "classification", **parts, num_classes=2, note=note)
    return NoisyDataset(data, *clean, noise, bayes_error, bayes_cross_entropy)
