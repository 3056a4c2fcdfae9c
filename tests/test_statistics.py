"""Statistics against SciPy and closed forms, and their promises by simulation: coverage, error rate, no optimism."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from implicit_reg.experiments.statistics import chosen, holm, interval, paired, rank_correlation

NAN = math.nan


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(0.3, 1.0, 7)
    theirs = stats.ttest_1samp(values, 0.0)
    low, high = theirs.confidence_interval(0.95)
    assert interval(values) == pytest.approx((values.mean(), low, high, theirs.pvalue, 7), rel=1e-12)
    assert interval(values).text(".2f") == f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def test_two_values_have_a_closed_form():
    """With one degree of freedom t is Cauchy: its 97.5 % quantile is tan(0.475 pi)."""
    found = interval([1.0, 3.0])
    half = math.tan(0.475 * math.pi)
    assert found == pytest.approx((2.0, 2 - half, 2 + half, 1 - 2 * math.atan(2.0) / math.pi, 2), rel=1e-12)


def test_the_paired_interval_is_that_of_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=6), rng.normal(size=6)
    theirs = stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval(0.95)
    assert paired(a, b) == pytest.approx((np.mean(a - b), low, high, theirs.pvalue, 6), rel=1e-12)


def test_what_a_seed_has_in_common_cancels():
    seeds, gains = np.array([0.0, 100.0, -50.0, 7.0]), np.array([1.0, 1.5, 0.5, 1.0])
    assert paired(seeds + gains, seeds) == pytest.approx(interval(gains))


def test_equal_values_are_a_point():
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 0.0, 3)
    assert interval([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0, 2)


def test_the_interval_covers_at_its_level():
    """5 normal values, 600 times: the normal quantile in place of Student's would cover at 0.88."""
    samples = np.random.default_rng(2).normal(2.0, 3.0, (600, 5))
    covered = np.mean([found.low <= 2.0 <= found.high for found in map(interval, samples)])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 600))


def closed_testing(p):
    """Holm's method by its definition: a hypothesis falls when Bonferroni rejects every intersection that has it."""
    sets = [s for r in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), r)]
    return [max(min(1.0, len(s) * min(p[k] for k in s)) for s in sets if i in s) for i in range(len(p))]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closure_of_bonferroni(seed):
    p = np.random.default_rng(seed).uniform(0, 0.4, 6)
    p[3] = p[1]
    np.testing.assert_allclose(holm(p), closed_testing(p), rtol=1e-12)


def test_holm_keeps_the_family_wise_error_and_does_not_waste_it():
    """Ten hypotheses, eight of them false beyond doubt: the two true ones share 0.05, where Bonferroni errs at 0.01."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(4000):
        adjusted = holm([1e-9] * 8 + rng.uniform(size=2).tolist())
        assert np.all(adjusted[:8] <= 0.05)
        wrong += bool(np.any(adjusted[8:] <= 0.05))
    # The smaller of the true ones is compared with 0.05/2 once the false ones are gone.
    assert wrong / 4000 == pytest.approx(1 - (1 - 0.05 / 2) ** 2, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def test_nested_selection_by_hand():
    validation = [[0.5, 0.3, 0.9], [0.4, 0.5, 0.2], [NAN, 0.1, 0.1]]
    test = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]
    found = chosen(validation, test)
    assert found.index == 1  # means 0.567, 0.367, and a seed lost
    assert found.test.tolist() == [0.4, 0.5, 0.6]
    assert found.index_per_seed.tolist() == [1, 2, 2]
    assert found.test_per_seed.tolist() == [0.4, 0.8, 0.9]
    other = chosen(validation, test, better="higher")
    assert (other.index, other.index_per_seed.tolist()) == (0, [0, 1, 0])


def test_a_diverged_run_is_never_chosen():
    found = chosen([[NAN, 0.2], [math.inf, 0.3], [-math.inf, NAN]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert found.index == -1
    assert np.isnan(found.test).all()
    assert found.index_per_seed.tolist() == [-1, 0]
    assert np.isnan(found.test_per_seed[0])
    assert found.test_per_seed[1] == 2.0


def test_nested_selection_is_not_optimistic():
    """Settings that are all equally good: the best test value looks better by the expected minimum of 20 normals."""
    rng = np.random.default_rng(4)
    validation, test = rng.normal(size=(20, 2000)), rng.normal(size=(20, 2000))
    found = interval(chosen(validation, test).test_per_seed)
    assert found.low <= 0.0 <= found.high
    assert test.min(axis=0).mean() < -1.8


def test_rank_correlation_is_that_of_scipy_on_each_seed():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    y[2] = y[1]  # a tie
    each = [stats.spearmanr(a, b).statistic for a, b in zip(x.T, y.T, strict=True)]
    assert rank_correlation(x, y) == pytest.approx(interval(each))
    assert rank_correlation(x[:, 0], y) == pytest.approx(interval([stats.spearmanr(x[:, 0], b)[0] for b in y.T]))


def test_rank_correlation_sees_order_within_a_seed_alone():
    steps, seeds = np.array([1.0, 2.0, 3.0, 4.0]), np.array([[0.0, 500.0, -300.0]])
    assert rank_correlation(steps, np.exp(steps)[:, None] + seeds)[:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([1.0]), "interval: an interval must have at least two seeds, got 1"),
        (lambda: interval([1.0, NAN]), "interval: `values` must be finite.*beforehand what a diverged run counts as"),
        (lambda: interval([[1.0, 2.0]]), "interval: `values` must be a vector"),
        (lambda: paired([1.0, 2.0], [1.0]), "`b` must have one entry for each of the 2 seeds of `a`, got 1"),
        (lambda: paired([1.0, 2.0], [1.0, NAN]), "paired: `b` must be finite"),
        (lambda: holm([0.1, 1.5]), r"holm: `p_values` must be in \[0, 1\]"),
        (lambda: chosen([0.1, 0.2], [0.1, 0.2]), r"`validation` must be settings by seeds, got shape \(2,\)"),
        (lambda: chosen([[0.1, 0.2]], [[0.1]]), "`test` must be of the shape of `validation`"),
        (lambda: rank_correlation([1, 2, 3], [[1.0], [2.0], [3.0]]), "at least two seeds, got 1"),
        (lambda: rank_correlation([1, 2], [[1.0, 2.0]] * 3), "`x` must have one value for each of the 3 settings"),
        (lambda: rank_correlation([1, 2, 3], [[1.0, 2.0]] * 3), "`y` must differ between the settings on every seed"),
        (lambda: rank_correlation([1, 2, 3], [[1.0], [NAN], [2.0]]), "`y` must be finite.*leave diverged settings out"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()
