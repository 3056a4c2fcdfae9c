"""The command over the benchmarks: verdicts, files that keep what is not measured anew, comparisons, exit codes."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


def row(work="w", value=1.0, **more):
    fields = {"unit": "gd step", "clock": "cpu", "limit": 1.0, "target": 1.02, "at_least": False, "spread": None}
    return {"work": work, "value": value, **fields, "note": "", **more}


def found(*rows, commit="a", **environment):
    where = {"commit": commit, "jax": "0.10", "python": "3.11", "cores": 2, "load": 1.0, **environment}
    return {"title": "t", "environment": where, "seconds": 1.0, "rounds": 3, "rows": rows, "details": "", "data": {}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"value": 1.02}, "met"),
        ({"value": 1.0201}, "missed"),
        ({"value": 1.02, "at_least": True}, "met"),
        ({"value": 1.0199, "at_least": True}, "missed"),
        ({"value": None}, "-"),
        ({"target": None}, ""),
    ],
)
def test_verdicts(benchmark, changes, expected):
    records = benchmark("records")
    assert records.verdict(row(**changes)) == expected
    assert records.cells("steps", row(**changes))[-1] == expected


def test_the_table_shows_what_was_measured(benchmark):
    records = benchmark("records")
    line = records.cells("steps", row("flooding", 1.0149, spread=(1.01, 1.2)))
    assert line == ("steps", "flooding", "1.015", "1.010 to 1.20", "gd step (cpu)", "1", "≤ 1.02", "met")
    assert records.cells("s", row(at_least=True, value=12.34))[2:] == (
        "12.3", "-", "gd step (cpu)", "1", "≥ 1.02", "met",
    )  # fmt: skip
    widths = {len(line) for line in records.table([line]).splitlines()}
    assert len(widths) == 1


def test_the_document_names_each_benchmark_once(benchmark):
    record = {"benchmarks": {"x": found(row("a", note="why"), row("b", 2.0)), "y": found(row("c", None))}}
    *lines, empty, counted, blank, note = benchmark("records").document(record).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[2:]] == [
        ["x", "a"],
        ["", "b"],
        ["y", "c"],
    ]
    assert (empty, counted, blank, note) == ("", "1 of 2 targets met.", "", "- x, a: why")


def test_a_file_keeps_what_is_not_measured_anew(benchmark, tmp_path):
    records = benchmark("records")
    path = records.write(tmp_path, "NVIDIA H100 80GB", {"a": found(row(value=1.0)), "b": found(row(value=2.0))})
    assert path.name == "nvidia-h100-80gb.json"
    odd = row("[\n with, brackets ]", 3.0, note="a, [b,  c]", spread=(1.0, 2.0))
    assert records.write(tmp_path, "NVIDIA H100 80GB", {"b": found(odd)}) == path
    values = {name: each["rows"][0]["value"] for name, each in records.read(path)["benchmarks"].items()}
    assert values == {"a": 1.0, "b": 3.0}
    assert records.read(path)["benchmarks"]["b"]["rows"][0] == json.loads(json.dumps(odd))
    assert "[1.0, 2.0]" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write(tmp_path, "x", {"a": found(row(value=float("nan")))})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "version": 1}'])
def test_another_file_is_refused(benchmark, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="holds no results"):
        benchmark("records").read(tmp_path / "x.json")


def test_what_moved(benchmark):
    records = benchmark("records")
    old = {
        "same": row("same", 1.0, spread=(0.99, 1.01)),
        "noise": row("noise", 1.0, spread=(0.9, 1.2)),
        "small": row("small", 1.0, spread=(0.999, 1.001)),
        "slower": row("slower", 1.1, spread=(1.09, 1.11)),
        "judged": row("judged", 1.019, spread=(1.0, 1.1)),
        "count": row("count", 4, clock="count", target=None),
        "unit": row("unit", 1.0, unit="s"),
        "gone": row("gone", 1.0),
        "missing": row("missing", None),
    }
    new = {
        **old,
        "noise": row("noise", 1.1, spread=(1.0, 1.3)),
        "small": row("small", 1.02, spread=(1.019, 1.021)),
        "slower": row("slower", 1.65, spread=(1.6, 1.7)),
        "judged": row("judged", 1.021, spread=(1.0, 1.1)),
        "count": row("count", 5, clock="count", target=None),
        "unit": row("unit", 3.0, unit="min"),
        "missing": row("missing", 1.0),
    }
    del new["gone"]
    a = {"benchmarks": {"x": found(*old.values())}}
    b = {"benchmarks": {"x": found(*new.values(), commit="b", load=9.0, torch="2")}}
    assert records.moved(a, b) == [
        ("x", "slower", "1.10", "1.65", "1.50", "gd step", "missed"),
        ("x", "count", "4.00", "5.00", "1.25", "gd step", ""),
        ("x", "noise", "1.000", "1.10", "1.10", "gd step", "met -> missed"),
        ("x", "judged", "1.019", "1.021", "1.00", "gd step", "met -> missed"),
    ]
    assert records.only_in(a, b) == ["x, gone"]
    assert records.only_in(b, a) == ["x, missing"]
    assert records.surroundings(a, b) == ["commit: a -> b", "torch: none -> 2"]


def test_the_picture_has_a_line_for_each_target(benchmark):
    figure = benchmark("figure")
    rows = [row("met", 0.9, spread=(0.8, 1.0)), row("missed", 1.1), row("bound", 2.0, at_least=True, limit=None)]
    rows += [row("not asked for", target=None), row("not measured", None)]
    record = {"device": "d", "benchmarks": {"x": found(*rows), "empty": found(row(value=None))}}
    drawn = figure.draw(record)
    (axes,) = drawn.axes
    words = [text.get_text() for text in axes.texts]
    assert [word for word in words if word in {"met", "missed", "bound", "not asked for", "not measured"}] == [
        "met", "missed", "bound",
    ]  # fmt: skip
    assert drawn.texts[0].get_text() == "2 of 3 targets met"
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("o", "X")]
    assert dots == pytest.approx([0.9 / 1.02, 1.1 / 1.02, 1.02 / 2.0])
    without = figure.draw({"device": "d", "benchmarks": {"x": found(row(target=None))}})
    assert without.texts[0].get_text() == "0 of 0 targets met"


CATALOG = """
from typing import NamedTuple
class Entry(NamedTuple):
    module: str
    title: str
    arguments: tuple = ()
    cores: int | None = None
    environment: dict = {}
BENCHMARKS = {
    "good": Entry("fake", "a good one", ("fine",), cores=1, environment={"FAKE_VALUE": "0.75"}),
    "wrong": Entry("fake", "a wrong one", ("wrong",)),
    "broken": Entry("fake", "a broken one", ("broken",)),
}
"""
FAKE = """
import os
import measure
def run(effort, how):
    if how == "wrong":
        raise measure.IncorrectError("the step is off by 1.0")
    assert how == "fine"
    value = float(os.environ["FAKE_VALUE"]) if effort.rounds else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    row = measure.Row("work", value, "gd step", "cpu", 0.5, 1.02, note=f"on {cores} core")
    return measure.Report((row,), "| the details |", {"tiny": effort.tiny})
"""


@pytest.fixture
def command(tmp_path):
    """The command over three benchmarks of its own."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__main__", "measure", "records", "figure"):
        shutil.copy(FOLDER / f"{name}.py", folder)
    (folder / "catalog.py").write_text(CATALOG)
    (folder / "fake.py").write_text(FAKE)

    def call(*words):
        return subprocess.run([sys.executable, str(folder), *words], capture_output=True, text=True, cwd=tmp_path)

    return call


def test_a_benchmark_in_a_process_of_its_own(command, tmp_path):
    done = command("good", "wrong", "broken", "--rounds", "2", "--out", "kept")
    assert done.returncode == 1
    assert "wrong: the step is off by 1.0" in done.stderr
    assert "AssertionError" in done.stderr
    assert "broken: failed with exit code 1" in done.stderr
    assert "| the details |" in done.stdout
    assert "| 0.75 " in done.stdout
    assert "1 of 1 targets met." in done.stdout
    assert "- good, work: on 1 core" in done.stdout
    (path,) = (tmp_path / "kept").glob("*.json")
    assert path.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    (name,) = json.loads(path.read_text())["benchmarks"]
    assert name == "good"
    done = command("--compare", str(path), str(path))
    assert (done.returncode, done.stdout.strip()[:14]) == (0, "Nothing moved:")
    done = command("--show", str(path))
    assert (done.returncode, "| good      | work |" in done.stdout, "the details" in done.stdout) == (0, True, False)
    assert "| the details |" in command("--show", str(path), "good").stdout
    assert command("--show", str(path), "wrong").returncode == 2


def test_check_times_nothing(command, tmp_path):
    done = command("--check", "good")
    assert (done.returncode, done.stdout) == (0, "1 of 1 benchmarks are right on toy sizes; nothing was timed.\n")
    assert not (tmp_path / "runs").exists()


def test_usage(command):
    assert command("--list").stdout.splitlines()[0] == "good    a good one"
    done = command("fast")
    assert (done.returncode, "there is no benchmark 'fast'" in done.stderr) == (2, True)
    done = command("--compare", "a.json", "b.json")
    assert (done.returncode, "No such file" in done.stderr) == (2, True)


def test_interleaving_divides_within_rounds(benchmark):
    import time

    measure = benchmark("measure")

    def spin(n):
        def program():
            stop = time.process_time() + n * 0.002
            while time.process_time() < stop:
                pass

        return program

    costs = measure.interleave({"one": spin(1), "two": spin(2)}, unit="one", rounds=5)
    assert costs["one"].cpu == 1.0
    assert costs["one"].cpu_quartiles == (1.0, 1.0)
    assert costs["two"].cpu == pytest.approx(2.0, rel=0.1)
    assert costs["two"].cpu_quartiles[0] <= costs["two"].cpu <= costs["two"].cpu_quartiles[1]


def test_the_catalog_names_modules_that_are_there(benchmark):
    catalog = benchmark("catalog")
    for entry in catalog.BENCHMARKS.values():
        assert (FOLDER / f"{entry.module}.py").exists(), entry
