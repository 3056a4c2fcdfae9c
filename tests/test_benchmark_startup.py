"""What is imported before anything is done, and that the benchmark of it notices."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def startup(benchmark):
    return benchmark("startup")


def test_jax_is_imported_by_nothing_that_does_not_compute(startup, benchmark):
    report = startup.run(benchmark("measure").Effort(0, True))
    rows = {row.work: row for row in report.rows}
    assert len(rows) == len(report.rows)
    counted = [row for row in report.rows if row.clock == "count"]
    assert [row.value for row in counted] == [0, 0, 0]
    assert all(row.value is None for row in report.rows if row.clock != "count")
    assert (rows["import jax, implicit_reg"].target, rows["verify, warm"].target) == (1.15, 60.0)
    json.dumps(report.data)


def test_an_import_of_jax_is_seen(startup, benchmark):
    with pytest.raises(benchmark("measure").IncorrectError, match="late imports jax"):
        startup.count_jax({"late": ("-c", "def f():\n    import jax.version\nf()")})
    with pytest.raises(benchmark("measure").IncorrectError, match="exit code 3"):
        startup.count_jax({"failing": ("-c", "raise SystemExit(3)")})


def test_ratios_are_taken_within_rounds(startup, benchmark):
    commands = dict.fromkeys(startup.COMMANDS, ("-c", "pass"))
    seconds = startup.interleaved({name: commands[name] for name in list(commands)[:2]}, 2)
    assert all(len(found) == 2 and min(found) > 0 for found in seconds.values())
    slow = [1.0, 2.0, 8.0]  # a machine that slows down
    made = {name: [3 * s if name == "every public name" else s for s in slow] for name in commands}
    rows = {row.work: row for row in startup._ratio_rows(made)}
    assert rows["every public name"].value == 3
    assert rows["import jax, implicit_reg"].value == 1
    assert rows["import jax, implicit_reg"].spread == (1, 1)


@pytest.mark.parametrize(("second", "message"), [("other numbers", "finds other numbers"), ("fails", "exit code 1")])
def test_a_second_run_that_differs_is_an_error(startup, benchmark, monkeypatch, tmp_path, second, message):
    codes = []

    def stand_in(command, **_):
        codes.append(1 if second == "fails" and codes else 0)
        out = tmp_path / command[command.index("--out") + 1]
        out.mkdir()
        value = 1.0 if second == "fails" else float(len(codes))
        (out / "results.json").write_text(json.dumps({"checks": [{"name": "gd", "wall_seconds": 9, "value": value}]}))
        return subprocess.CompletedProcess(command, codes[-1])

    monkeypatch.setattr(startup.subprocess, "run", stand_in)
    with pytest.raises(benchmark("measure").IncorrectError, match=message):
        startup.verify(tmp_path)


def test_the_lazy_names_are_all_there():
    names = subprocess.run(
        [sys.executable, "-c", "import implicit_reg, sys; print('jax' in sys.modules, len(dir(implicit_reg)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    import implicit_reg

    assert names.stdout.split() == ["False", str(len(implicit_reg.__all__))]
