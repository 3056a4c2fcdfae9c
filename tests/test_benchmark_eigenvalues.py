"""The benchmark of eigenvalues compares what is right, and refuses what is not; no time is judged here."""

import pytest

from implicit_reg import curvature


@pytest.fixture
def short(benchmark):
    """The largest eigenvalue of the small network alone."""
    module = benchmark("eigenvalues")
    return module, benchmark("measure").Effort(0, True), module.TASKS[:1]


def test_the_fast_form_is_right_and_counts(short):
    module, effort, tasks = short
    report = module.run(effort, tasks=tasks)
    rows = {row.work: row for row in report.rows}
    assert {f"largest to 1e-4: {name}" for name in ("largest_eigenpairs", "ours / scipy eigsh")} <= set(rows)
    assert all(row.value is None for row in report.rows)
    found = report.data["largest to 1e-4"]
    for name in ("largest_eigenpairs", "leading_eigenpairs in jit", "scipy eigsh"):
        assert found[name]["error"] <= 1e-4
        assert 5 < found[name]["products"] <= 24
    assert found["leading_eigenpairs in jit"]["products"] <= found["scipy eigsh"]["products"]
    assert "largest_eigenpairs" in report.details


def test_a_wrong_eigenvalue_is_refused_before_anything_is_timed(short, benchmark, monkeypatch):
    module, effort, tasks = short
    right = curvature.leading_eigenpairs

    def wrong(*args, **kwargs):
        found = right(*args, **kwargs)
        return found._replace(values=found.values * 1.001)

    monkeypatch.setattr(module.curvature, "leading_eigenpairs", wrong)
    with pytest.raises(benchmark("measure").IncorrectError, match="leading_eigenpairs in jit"):
        module.run(effort, tasks=tasks)
