"""The benchmark of convolutions in loops: right before it is fast; no time is judged."""

import jax
import pytest


def test_the_fast_form(benchmark):
    measure, loops = benchmark("measure"), benchmark("conv_loops")
    report = loops.run(measure.Effort(0, True))
    assert [row.work for row in report.rows if row.target == loops.TARGET] == [
        "a step in a bare scan, canonical_convolutions",
        "a step in descend",
    ]
    assert all(row.value is None and row.note == "not timed" for row in report.rows)


def test_what_is_wrong_is_not_timed(benchmark):
    measure, loops = benchmark("measure"), benchmark("conv_loops")

    def wrong(fn):
        return lambda params, data: jax.tree.map(lambda x: 1.01 * x, fn(params, data))

    with pytest.raises(measure.IncorrectError, match="canonical_convolutions: ends at other parameters"):
        loops.run(measure.Effort(1, True), wrap=wrong)
