"""The benchmarks of sweeps compare what they time, and notice a program, a bit or a memory that is wrong."""

import jax
import numpy as np
import pytest

from implicit_reg.experiments import lanes


@pytest.fixture(scope="module")
def sweeps(benchmark):
    return benchmark("sweeps")


@pytest.fixture(scope="module")
def fast(benchmark):
    return benchmark("measure").Effort(0, True)


def test_lanes_loops_and_scans_agree(sweeps, fast):
    report = sweeps.run(fast)
    works = [row.work for row in report.rows]
    assert len(set(works)) == len(works)
    assert {row.target for row in report.rows} >= {sweeps.LOOP_TARGET}
    assert all(row.value is None for row in report.rows if row.clock == "cpu")


def test_memory_is_that_of_the_lanes(benchmark, fast, monkeypatch):
    memory = benchmark("sweep_memory")
    report = memory.run(fast)
    assert [row.work for row in report.rows] == ["memory of a call, width 8 over all"]
    monkeypatch.setattr(memory, "WIDTHS", (2, 4, 8))
    held = memory.device_bytes(memory.TINY)
    # A lane brings its own parameters and results; what the lanes share is little.
    assert held[4] - held[2] == pytest.approx((held[8] - held[4]) / 2, rel=0.1)
    assert held[8] / held[4] == pytest.approx(2, rel=0.1)


def test_a_process_that_holds_more_than_was_estimated_is_wrong(benchmark, monkeypatch):
    memory, measure = benchmark("sweep_memory"), benchmark("measure")
    monkeypatch.setattr(memory, "Work", lambda: memory.TINY)
    for measured, ends_well in ((1.4, True), (1.6, False), (0.6, False)):
        monkeypatch.setattr(memory, "resident", lambda width, x=measured: {"measured": x, "estimated": 1.0})
        if ends_well:
            assert memory.run(measure.Effort(1, False)).rows[-1].value == measured
        else:
            with pytest.raises(measure.IncorrectError, match=f"is {measured:.2f} of the estimate"):
                memory.run(measure.Effort(1, False))


def test_another_training_is_not_timed(benchmark, sweeps, fast):
    def faster(work):
        fn = sweeps.training(work)
        return lambda key, h, momentum: fn(key, h=1.01 * h, momentum=momentum)

    with pytest.raises(benchmark("measure").IncorrectError, match="width 8 is"):
        sweeps.run(fast, fn_of=faster)


def test_devices_are_compared_and_not_timed(benchmark, fast):
    report = benchmark("sweep_devices").run(fast)
    assert [row.work for row in report.rows] == ["two devices, toy", "shard_map over two devices, toy"]
    assert all(row.value is None for row in report.rows)
    assert report.rows[0].target == 1.5


def _draw(key, h, momentum):
    return jax.random.normal(key) * h + momentum


def test_bits_that_stay_and_bits_that_do_not(benchmark, fast, monkeypatch):
    bits = benchmark("sweep_bits")
    report = bits.run(fast, chosen={"draw": _draw})
    assert report.data["draw, float32"]["same"] == [
        "chunk 32",
        "another order",
        "a part, padded",
        "2 devices",
        "4 devices",
    ]
    assert [row.work for row in report.rows] == ["width 16, draw, float32", "shard_map, draw, float32"]
    monkeypatch.setattr(
        lanes.Lanes,
        "_arguments",
        lambda self, block, made=lanes.Lanes._arguments: (
            lambda root, seeds, operands: (root, seeds + np.uint32(len(set(block)) < 8), operands)
        )(*made(self, block)),
    )
    with pytest.raises(benchmark("measure").IncorrectError, match="other bytes: a part, padded"):
        bits.examine(_draw)
