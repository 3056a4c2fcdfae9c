"""The benchmark of flows: equal true errors before any time, and evaluations that are counted; no time is judged."""

import pytest

import implicit_reg as ir


def test_errors_and_evaluations_of_the_fast_form(benchmark):
    measure, integration = benchmark("measure"), benchmark("integration")
    report = integration.run(measure.Effort(0, True))
    (found,) = report.data.values()
    level = integration.LEVELS[0]
    solvers = found["solvers"]
    assert {"integrate, order 5", "integrate, order 8", "scipy RK45", "scipy DOP853"} <= set(solvers)
    assert all(solver["error"] <= level for solver in solvers.values())
    # The loosest: half a decade more is too much, for the error of such a solver follows its tolerance.
    assert all(solver["error"] >= 1e-4 * level for solver in solvers.values())
    rows = {row.work: row for row in report.rows}
    for order, stages in integration.STAGES.items():
        count = rows[f"tiny, error 1e-05: evaluations, order {order}"].value
        assert count % stages == 1
        assert 2 * stages < count < 40 * stages
    scipy, torch = (rows[f"tiny, error 1e-05: over {family}"] for family in ("scipy", "torchdiffeq"))
    assert (scipy.target, torch.target) == (0.75, 0.2)
    assert scipy.note == "not timed"
    missing = measure.peer("torchdiffeq") is None or measure.peer("torch") is None
    assert torch.note == ("torchdiffeq is not installed" if missing else "not timed")


def _too_fast(field, *arguments, **options):
    return ir.integrate(lambda t, x, h: 1.001 * field(t, x, h), *arguments, **options)


def test_what_is_wrong_is_not_timed(benchmark):
    measure, integration = benchmark("measure"), benchmark("integration")
    with pytest.raises(measure.IncorrectError, match=r"two references are \d\.\de-0\d apart"):
        integration.run(measure.Effort(1, True), ours=_too_fast)
