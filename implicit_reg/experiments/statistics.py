"""Statistics over seeds: intervals, paired differences, many comparisons, and choosing a setting without cheating.

Arrays have one entry per seed, or settings by seeds. Runs of one seed share initialization and data, so that methods
are compared by their differences seed by seed. Nothing here guesses what a diverged run counts as: intervals refuse
what is not finite, and the caller says beforehand whether such a seed is lost, or a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from implicit_reg import _checks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
else:
    ArrayLike: TypeAlias = object  # what NumPy makes an array of; `_checks` judges it


class Interval(NamedTuple):
    """A mean over seeds with its 95 % confidence interval.

    Args:
      mean: of the values.
      low: lower end of the interval.
      high: upper end of the interval.
      p: two-sided p-value of the hypothesis that the mean is zero.
      num: how many seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    num: int

    def text(self, form: str = ".3g") -> str:
        """The interval as a table shows it.

        Args:
          form: format of the three numbers.

        Returns:
          `mean [low, high]`.

        Example:
          >>> Interval(mean=0.5, low=0.25, high=0.75, p=0.01, num=5).text()
          '0.5 [0.25, 0.75]'
        """
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def interval(values: ArrayLike) -> Interval:
    """The mean over seeds with the 95 % interval of Student's t.

    `mean +- t_{0.975, n-1} s / sqrt(n)`, with `s^2 = sum (x_i - mean)^2 / (n - 1)`, and
    `p = 2 P(T_{n-1} > |mean| sqrt(n) / s)`. It covers at 95 % where the values of the seeds are independent and close
    to normal; with five seeds nothing can test that, and `num` says how many there were.

    Args:
      values: one finite number per seed, at least two.

    Returns:
      The interval. Where all values are equal it is a point, and p is its limit: 0, or 1 where the mean is 0.

    Raises:
      TypeError, ValueError: for anything but a vector of at least two finite real numbers.

    Example:
      >>> found = interval([1.0, 2.0, 3.0])
      >>> found.text(), found.num, round(found.p, 4)
      ('2 [-0.484, 4.48]', 3, 0.0742)
    """
    return _student("interval", _finite("interval", "values", values))


def paired(a: ArrayLike, b: ArrayLike) -> Interval:
    """The mean of `a - b`, seed by seed, with the 95 % interval of Student's t.

    What the two have in common on a seed (its data, its initialization) cancels, so that the interval is that of the
    differences and not of two unrelated samples: see `interval`.

    Args:
      a: one finite number per seed, at least two.
      b: the other method's, on the same seeds in the same order.

    Returns:
      The interval of the difference; below zero means that `a` is smaller.

    Raises:
      TypeError, ValueError: where one is no vector of finite numbers, or their lengths differ.

    Example:
      >>> paired([1.0, 2.0, 3.0], [0.75, 2.0, 2.25]).text()
      '0.333 [-0.615, 1.28]'
    """
    first, second = _finite("paired", "a", a), _finite("paired", "b", b)
    if first.size != second.size:
        raise ValueError(
            f"paired: `b` must have one entry for each of the {first.size} seeds of `a`, got {second.size}; "
            f"give both on the seeds that they share"
        )
    return _student("paired", first - second)


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values adjusted for testing several hypotheses, by Holm's step-down method.

    With `p_(1) <= ... <= p_(m)`, the adjusted ones are `max_{j <= i} min(1, (m - j + 1) p_(j))` [holm1979]. Rejecting
    what is at most 0.05 rejects any true hypothesis with probability at most 0.05, however the tests depend on each
    other; it is never weaker than Bonferroni's `m p`.

    Args:
      p_values: one for each hypothesis that was looked at, those that were not reported included.

    Returns:
      The adjusted p-values, in the same order.

    Raises:
      TypeError, ValueError: for anything but a vector of numbers in [0, 1].

    Example:
      >>> [round(float(p), 4) for p in holm([0.01, 0.04, 0.03])]
      [0.03, 0.06, 0.06]
    """
    p = _finite("holm", "p_values", p_values)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"holm: `p_values` must be in [0, 1], got {p}")
    order = np.argsort(p, kind="stable")
    factors = np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[order]))
    return adjusted


class Chosen(NamedTuple):
    """What was chosen on validation data, and how it did on test data.

    Args:
      index: the setting with the best mean validation value over the seeds; -1 where every setting lost a seed.
      test: test values of that setting, one per seed; nan where `index` is -1.
      index_per_seed: the best setting of each seed on its own validation data; -1 where all its runs diverged.
      test_per_seed: test values of those settings, one per seed; nan where the index is -1.
    """

    index: int
    test: np.ndarray
    index_per_seed: np.ndarray
    test_per_seed: np.ndarray


def chosen(validation: ArrayLike, test: ArrayLike, better: Literal["lower", "higher"] = "lower") -> Chosen:
    """Nested selection: a setting is chosen on validation data, and the test value of that setting is reported.

    The best test value among many settings is an optimistic number [cawley2010]; the test value of the setting that
    validation data chose is not. There are two ways to choose, and both are returned. (1) On each seed by itself,
    `k(s) = argmin_k v[k, s]`, as somebody would who has that one data set: the seeds stay independent, and the interval
    of `test_per_seed` is one for the procedure "search the grid, then report". (2) By the mean over seeds,
    `k = argmin_k mean_s v[k, s]`: one setting, which can be named and drawn, chosen with less noise; its interval is
    one for these runs, since all of them took part in the choice.

    Args:
      validation: settings by seeds; a value that is not finite stands for a run that diverged.
      test: of the same shape; looked at for what was chosen alone.
      better: whether `"lower"` values are better (losses, errors) or `"higher"` ones (accuracies).

    Returns:
      Both choices. A diverged run is never chosen, nor by the mean a setting that diverged on some seed; of equal
      values the first wins. The test value of a chosen run is passed on as it is, finite or not.

    Raises:
      TypeError, ValueError: where `validation` is not settings by seeds, or `test` of another shape.

    Example:
      >>> found = chosen([[0.5, 0.3], [0.4, 0.5], [float("nan"), 0.1]], [[0.6, 0.4], [0.5, 0.5], [0.1, 0.2]])
      >>> found.index, found.test.tolist()
      (0, [0.6, 0.4])
      >>> found.index_per_seed.tolist(), found.test_per_seed.tolist()
      ([1, 2], [0.5, 0.2])
    """
    if better not in ("lower", "higher"):
        raise _checks.unknown_name("chosen", "value of `better`", better, ("lower", "higher"))
    judged = _checks.check_real_array("chosen", "validation", validation)
    reported = _checks.check_real_array("chosen", "test", test)
    if judged.ndim != 2 or not judged.size:
        raise ValueError(f"chosen: `validation` must be settings by seeds, got shape {judged.shape}")
    if reported.shape != judged.shape:
        raise ValueError(f"chosen: `test` must be of the shape of `validation`, {judged.shape}, got {reported.shape}")
    cost = np.where(np.isfinite(judged), judged if better == "lower" else -judged, np.inf)

    def pick(costs: np.ndarray) -> int:
        return int(np.argmin(costs)) if np.isfinite(costs).any() else -1

    index = pick(cost.mean(axis=1))
    per_seed = np.array([pick(column) for column in cost.T])
    lost = np.full(judged.shape[1], np.nan)
    own = reported[per_seed, np.arange(per_seed.size)]
    return Chosen(index, reported[index] if index >= 0 else lost, per_seed, np.where(per_seed >= 0, own, np.nan))


def rank_correlation(x: ArrayLike, y: ArrayLike) -> Interval:
    """Spearman's rank correlation over the settings, on each seed, with its interval over the seeds.

    `rho_s = corr(rank(x[:, s]), rank(y[:, s]))`, equal values sharing their mean rank; then `interval` of the rho_s. It
    asks whether `y` rises with `x` and not how; one over all runs at once would count the differences between seeds.

    Args:
      x: one value per setting (a step size, say), or settings by seeds.
      y: settings by seeds, at least three settings and two seeds.

    Returns:
      The mean correlation, in [-1, 1], with its interval, which is a point where all seeds agree (see `interval`).

    Raises:
      TypeError, ValueError: for values that are not finite, shapes that do not fit, or a seed on which `x` or `y` is
        the same for all settings, where no correlation exists.

    Example:
      >>> found = rank_correlation([1, 2, 3], [[1.0, 1.0], [4.0, 9.0], [9.0, 4.0]])
      >>> round(found.mean, 4), found.num                          # 1 on one seed, 1/2 on the other
      (0.75, 2)
    """
    from scipy import stats

    across = _checks.check_real_array("rank_correlation", "x", x)
    up = _checks.check_real_array("rank_correlation", "y", y)
    if up.ndim != 2 or up.shape[0] < 3:
        raise ValueError(f"rank_correlation: `y` must be settings (three or more) by seeds, got shape {up.shape}")
    if across.ndim == 1:
        across = np.repeat(across[:, None], up.shape[1], axis=1)
    if across.shape != up.shape:
        raise ValueError(
            f"rank_correlation: `x` must have one value for each of the {up.shape[0]} settings, or the shape of `y`, "
            f"{up.shape}; got shape {np.shape(x)}"
        )
    for name, values in (("x", across), ("y", up)):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"rank_correlation: `{name}` must be finite, got {values}; leave diverged settings out")
        if np.any(np.ptp(values, axis=0) == 0):
            raise ValueError(f"rank_correlation: `{name}` must differ between the settings on every seed, got {values}")
    rho = [float(stats.spearmanr(a, b).statistic) for a, b in zip(across.T, up.T, strict=True)]
    return _student("rank_correlation", np.array(rho))


def _finite(function: str, argument: str, values: ArrayLike) -> np.ndarray:
    vector = _checks.check_vector(function, argument, values)
    if not np.all(np.isfinite(vector)):
        raise ValueError(
            f"{function}: `{argument}` must be finite, got {vector}; say beforehand what a diverged run counts as"
        )
    return vector


def _student(function: str, values: np.ndarray) -> Interval:
    """The interval of `summarize`, which the command `compare` prints, with its p-value."""
    from scipy import stats

    from implicit_reg.training.comparison import summarize

    if values.size < 2:
        raise ValueError(f"{function}: an interval must have at least two seeds, got {values.size}")
    found = summarize(values.tolist(), [0.0] * values.size)["difference"]
    mean, error = found["mean"], found["standard_error"]
    p = 2 * float(stats.t.sf(abs(mean) / error, found["n"] - 1)) if error > 0 else float(mean == 0)
    return Interval(mean, found["low"], found["high"], p, found["n"])
