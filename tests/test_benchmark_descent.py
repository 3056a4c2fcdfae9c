"""The benchmark of many steps: right before it is fast, and its counts; no time is judged."""

import jax
import pytest

import implicit_reg as ir


def test_counts_of_the_fast_form(benchmark):
    measure, descent = benchmark("measure"), benchmark("descent")
    report = descent.run(measure.Effort(0, True))
    rows = {row.work: row for row in report.rows}
    assert len(rows) == len(report.rows)
    for name in ("tiny", "small"):
        assert rows[f"{name}: observer, calls"].value == 1.0
        assert rows[f"{name}: temporary memory, ten times the steps"].value == 1.0
    assert all(row.value is None and row.note == "not timed" for row in report.rows if row.clock == "cpu")
    aimed = {row.work for row in report.rows if row.target == descent.TARGET}
    assert "tiny, recorded at every step: a step, inside descend" in aimed
    assert "tiny, recorded rarely: a step, descend, call and all" in aimed
    assert all(row.work in report.details for row in report.rows)


def test_every_program_is_timed(benchmark):
    measure, descent = benchmark("measure"), benchmark("descent")
    report = descent.run(measure.Effort(1, True), "tiny")
    assert all(row.value > 0 for row in report.rows)
    assert any(row.note == descent.OUTSIDE for row in report.rows)


def _wrong_step(method, loss_fn, params, h, num_steps, **options):
    return ir.descend(method, loss_fn, params, 1.1 * h, num_steps, **options)


def _curious(method, loss_fn, params, h, num_steps, *, every, observe=None):
    """Records as it should, and looks at every step."""
    full = ir.descend(method, loss_fn, params, h, num_steps, observe=observe)
    return full._replace(**{
        name: jax.tree.map(lambda leaf: leaf[::every], getattr(full, name)) for name in ("params", "observed", "finite")
    })  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "message"),
    [(_wrong_step, "visit other parameters"), (_curious, "asked 21 times for 5 records")],
    ids=["step", "observer"],
)
def test_what_is_wrong_is_not_timed(benchmark, broken, message):
    measure, descent = benchmark("measure"), benchmark("descent")
    with pytest.raises(measure.IncorrectError, match=message):
        descent.run(measure.Effort(1, True), "tiny", descend=broken)
