"""Choosing a setting, or the epoch to stop at, on validation data whose labels are as noisy as those of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from implicit_reg.experiments.statistics import Interval, chosen


class Curves(NamedTuple):
    """What was observed of the runs of one method, each (settings, seeds, observations).

    Attributes:
      score: on noisy validation data, higher is better; see `validation_score`.
      train_loss: mean cross-entropy of the noisy training labels.
      validation_loss: of the noisy validation labels.
      test_loss: of the test labels, noisy or clean as the reproduction says.
      test_accuracy: against clean test labels.
    """

    score: np.ndarray
    train_loss: np.ndarray
    validation_loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray

    def also(self, other: Curves) -> Curves:
        """These settings and then those of `other`."""
        return Curves(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Choice(NamedTuple):
    """What selection on noisy validation data arrives at, one entry per seed.

    Attributes:
      last: clean test accuracy at the last epoch of the setting that each seed chose by its last epoch.
      stopped: clean test accuracy at the epoch and of the setting that each seed chose together.
      setting: which setting each seed chose by its last epoch.
      common: the setting with the best mean score over seeds at the last epoch, for pictures.
    """

    last: np.ndarray
    stopped: np.ndarray
    setting: np.ndarray
    common: int


def validation_score(accuracy: np.ndarray, loss: np.ndarray, num_validation: int) -> np.ndarray:
    """Validation accuracy, with ties decided by the validation loss.

        accuracy - loss / (1 + loss) / (2 n)

    With n = 100 examples many settings have the same accuracy; the loss moves the score by less than half an example.

    Args:
      accuracy: in [0, 1].
      loss: cross-entropy, of the same shape.
      num_validation: n.

    Returns:
      The score, higher is better.

    Example:
      >>> validation_score(np.array([0.8, 0.8]), np.array([1.0, 3.0]), 100).round(5).tolist()
      [0.7975, 0.79625]
    """
    return accuracy - loss / (1 + loss) / (2 * num_validation)


def collect(result: Mapping[str, np.ndarray] | Any, rows: np.ndarray, num_validation: int) -> Curves:
    """The curves of some runs of a sweep.

    Args:
      result: of a sweep whose runs observed "train", "validation" and "test".
      rows: numbers of the runs, (settings, seeds).
      num_validation: for `validation_score`.

    Returns:
      The curves.
    """
    score = validation_score(result["validation/accuracy"][rows], result["validation/loss"][rows], num_validation)
    names = ("train/loss", "validation/loss", "test/loss", "test/accuracy")
    return Curves(score, *(result[name][rows] for name in names))


def choose(curves: Curves) -> Choice:
    """Nested selection: setting and epoch are chosen on validation data, test data are looked at for what was chosen.

    Args:
      curves: of one method, "off" among its settings.

    Returns:
      The choice. A run that diverged is never chosen.

    Example:
      >>> score = np.array([[[0.5, 0.4]], [[0.3, 0.45]]])          # two settings, one seed, two epochs
      >>> found = choose(Curves(score, score, score, score, 10 * score))
      >>> found.last.tolist(), found.stopped.tolist(), found.setting.tolist()
      ([4.5], [5.0], [1])
    """
    last = chosen(curves.score[:, :, -1], curves.test_accuracy[:, :, -1], "higher")
    score = np.where(np.isfinite(curves.score), curves.score, -np.inf)
    epoch = np.argmax(score, axis=2)[:, :, None]
    best, test = (np.take_along_axis(values, epoch, axis=2)[:, :, 0] for values in (score, curves.test_accuracy))
    stopped = chosen(best, test, "higher")
    return Choice(last.test_per_seed, stopped.test_per_seed, last.index_per_seed, last.index)


def first_at_or_below(curve: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The first observation at which each curve is at or below its level; -1 where it never is.

    Args:
      curve: (seeds, observations).
      level: (seeds,).

    Returns:
      Positions, (seeds,).

    Example:
      >>> first_at_or_below(np.array([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]]), np.array([1.5, 0.5])).tolist()
      [1, -1]
    """
    below = curve <= level[:, None]
    return np.where(below.any(axis=1), np.argmax(below, axis=1), -1)


def percent(found: Interval, form: str) -> str:
    """An interval of shares, in percent.

    Args:
      found: of numbers in [0, 1], or of their differences.
      form: format of the three numbers.

    Returns:
      `mean [low, high]`.

    Example:
      >>> percent(Interval(mean=0.5, low=0.25, high=0.75, p=0.01, num=5), ".1f")
      '50.0 [25.0, 75.0]'
    """
    return found._replace(mean=100 * found.mean, low=100 * found.low, high=100 * found.high).text(form)
