"""The command over the benchmarks: verdicts, files that keep what is not measured anew, comparisons, exit codes."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


def row(work="w", value=1.0, **more):
    fields = {"unit": "gd step", "clock": "cpu", "limit": 1.0, "target": 1.02, "at_least": False, "spread": None}
    return {"work": work, "value": value, **fields, "note": "", **more}


def found(*rows, commit="a", missing=None, **environment):
    where = {"commit": commit, "jax": "0.10", "python": "3.11", "cores": 2, "load": 1.0, **environment}
    more = {"title": "t", "seconds": 1.0, "rounds": 3, "details": "", "data": {}, "missing": missing or {}}
    return {"environment": where, "rows": rows, **more}


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
    every = {
        "x": found(row("a", note="why"), row("b", 2.0), row("d", 3.0, note="why")),
        "y": found(row("c", None, note="absent"), row("e", None, note="absent"), missing={"torch": "torch is missing"}),
    }
    *lines, _, counted, _, missing, _, note, other = benchmark("records").document({"benchmarks": every}).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[2:]] == [
        ["x", "a"],
        ["", "b"],
        ["", "d"],
        ["y", "c"],
        ["", "e"],
    ]
    assert counted == "1 of 3 targets met, 2 more not measured."
    assert missing == "Not compared: torch is missing (y)."
    assert (note, other) == ("- x, a; d: why", "- y, every row: absent")


def test_where_it_was_measured(benchmark):
    records = benchmark("records")
    record = {"device": "d", "benchmarks": {"x": found(load=None), "y": found(load=None)}}
    assert records.origin(record) == "d, 2 cores, python 3.11, jax 0.10, commit a, 2 s in all."
    record["benchmarks"] |= {"z": found(commit="b", torch="2", load=0.5, cores=1), "pinned": found(load=3.0)}
    assert records.origin(record).splitlines() == [
        "d, 2 cores, python 3.11, jax 0.10, load 0.5 to 3, 4 s in all.",
        "",
        "- torch none: x, y, pinned",
        "- torch 2: z",
        "- commit a: x, y, pinned",
        "- commit b: z",
    ]


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
    everything = ["b", "new", "a"]
    records.write(tmp_path, "NVIDIA H100 80GB", {"new": found(row()), "renamed": found(row())}, everything)
    assert list(records.read(path)["benchmarks"]) == everything
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write(tmp_path, "x", {"a": found(row(value=float("nan")))})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "version": 1}'])
def test_another_file_is_refused(benchmark, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="holds no results"):
        benchmark("records").read(tmp_path / "x.json")


def test_what_moved(benchmark):
    comparison = benchmark("comparison")
    old = {
        "same": row("same", 1.0, spread=(0.99, 1.01)),
        "noise": row("noise", 1.0, spread=(0.9, 1.2)),
        "small": row("small", 1.0, spread=(0.999, 1.001)),
        "slower": row("slower", 1.1, spread=(1.09, 1.11)),
        "faster": row("faster", 1.0, spread=(0.99, 1.01)),
        "judged": row("judged", 1.01, spread=(1.0, 1.015)),
        "asked": row("asked", 1.0, spread=(0.9, 1.1), target=0.9),
        "count": row("count", 4, clock="count", target=None),
        "alone": row("alone", 1.0, target=None),
        "none": row("none", 0.0, clock="count", target=None),
        "unit": row("unit", 1.0, unit="s"),
        "gone": row("gone", 1.0),
        "missing": row("missing", None, note="torch is missing"),
    }
    new = {
        **old,
        "noise": row("noise", 1.1, spread=(1.0, 1.3)),
        "small": row("small", 1.02, spread=(1.019, 1.021)),
        "slower": row("slower", 1.65, spread=(1.6, 1.7)),
        "faster": row("faster", 0.5, spread=(0.4, 0.6)),
        "judged": row("judged", 1.06, spread=(1.05, 1.07)),
        "asked": row("asked", 1.0, spread=(0.9, 1.1), target=1.1),
        "count": row("count", 5, clock="count", target=None),
        "alone": row("alone", 1.09, target=None),
        "unit": row("unit", 3.0, unit="min"),
        "missing": row("missing", 1.0),
    }
    del new["gone"]
    a = {"device": "d", "benchmarks": {"x": found(*old.values()), "y": found(row()), "z": found(row())}}
    b = {"device": "d", "benchmarks": {"x": found(*new.values(), commit="b", load=9.0, torch="2"), "y": found(row())}}
    b["benchmarks"]["y"]["rounds"] = 9
    changed, moved, shared = comparison.differences(a, b)
    assert changed == [
        ("x", "judged", "1.010 (1.000 to 1.015)", "1.060 (1.050 to 1.070)", "1.05", "gd step", "met -> missed"),
        ("x", "noise", "1.000 (0.900 to 1.20)", "1.10 (1.000 to 1.30)", "1.10", "gd step", "met -> missed (not moved)"),
        ("x", "asked", "1.000 (0.900 to 1.10)", "1.000 (0.900 to 1.10)", "1.00", "gd step",
         "missed -> met (target 0.9 -> 1.1)"),
    ]  # fmt: skip
    assert [line[1:] for line in moved] == [
        ("faster", "1.000 (0.990 to 1.010)", "0.50 (0.40 to 0.60)", "0.50", "gd step", "met"),
        ("slower", "1.10 (1.090 to 1.11)", "1.65 (1.60 to 1.70)", "1.50", "gd step", "missed"),
        ("count", "4.00", "5.00", "1.25", "gd step", ""),
    ]
    assert shared == 11
    assert comparison.incomparable(a, b) == [
        "x, only in old: gone",
        "x, not measured in old (torch is missing): missing",
        "x, unit: the unit was s, and is min",
        "z: only in old (1 row)",
    ]
    assert comparison.incomparable(b, a)[:2] == [
        "x, only in new: gone",
        "x, not measured in new (torch is missing): missing",
    ]
    assert comparison.surroundings(a, b) == ["- commit: a -> b (x)", "- rounds: 3 -> 9 (y)", "- torch: none -> 2 (x)"]
    assert comparison.surroundings(a, {**a, "device": "e"}) == ["- device: d -> e"]
    text = comparison.report(a, b)
    assert [line for line in text.splitlines() if line.endswith(":")] == [
        "Other verdicts, those that moved first:", "The same verdict, and moved:", "Not compared:",
    ]  # fmt: skip
    assert "\n11 rows compared: 3 verdicts changed, 3 other rows moved. " in text
    assert comparison.report(a, a).startswith("14 rows compared: 0 verdicts changed, 0 other rows moved. Moved means")


def test_the_picture_has_a_line_for_each_target(benchmark):
    figure = benchmark("figure")
    rows = [row("met", 0.9, spread=(0.8, 1.0)), row("missed", 1.1), row("bound", 2.0, at_least=True, limit=None)]
    rows += [row("not asked for", target=None), row("not measured", None)]
    record = {"device": "d", "benchmarks": {"x": found(*rows), "empty": found(row(value=None))}}
    drawn = figure.draw(record)
    (axes,) = drawn.axes
    words = [text.get_text() for text in drawn.texts]
    assert words[0] == "2 of 3 targets met, 2 more not measured"
    assert [word for word in words if word in {"met", "missed", "bound", "not asked for", "not measured"}] == [
        "met", "missed", "bound",
    ]  # fmt: skip
    assert [word for word in words if word in {"x", "empty", "2 of 3 met"}] == ["x", "2 of 3 met"]
    width = drawn.get_figure().bbox.width
    assert all(text.get_window_extent().x0 >= 0 and text.get_window_extent().x1 <= width for text in drawn.texts)
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
    "interrupted": Entry("fake", "one that is interrupted", ("interrupted",)),
    "stopped": Entry("fake", "one whose parent is told to stop", ("stopped",)),
    "endless": Entry("fake", "no number", ("endless",)),
    "alone": Entry("fake", "without its peer", ("alone",)),
}
"""
FAKE = """
import os
import signal
import time
import measure
def run(effort, how):
    if how == "wrong":
        raise measure.IncorrectError("the step is off by 1.0")
    if how == "interrupted":
        raise KeyboardInterrupt
    if how == "stopped":
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(600)
    if how == "alone":
        assert measure.peer("no_such_library") is None
        assert measure.peer("needs_another") is None
        assert measure.peer("json") is not None
    assert how != "broken"
    if how == "endless":
        return measure.Report((measure.Row("work", float("nan"), "gd step", "cpu"),), "", {})
    value = float(os.environ.get("FAKE_VALUE", 0.5)) if effort.rounds else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    row = measure.Row("work", value, "gd step", "cpu", 0.5, 1.02, note=f"on {cores} core")
    return measure.Report((row,), "| the details |", {"tiny": effort.tiny})
"""


@pytest.fixture
def command(tmp_path):
    """The command over three benchmarks of its own."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__main__", "comparison", "measure", "records", "figure"):
        shutil.copy(FOLDER / f"{name}.py", folder)
    (folder / "catalog.py").write_text(CATALOG)
    (folder / "fake.py").write_text(FAKE)
    (folder / "needs_another.py").write_text("import no_such_library")

    def call(*words):
        return subprocess.run([sys.executable, str(folder), *words], capture_output=True, text=True, cwd=tmp_path)

    return call


def test_a_benchmark_in_a_process_of_its_own(command, tmp_path):
    done = command("good", "wrong", "broken", "endless", "--rounds", "2", "--out", "kept")
    assert done.returncode == 1
    assert re.search(r"^\[1/4\] good    \d+ s$", done.stderr, re.MULTILINE)
    assert re.search(r"^\[2/4\] wrong   WRONG: the step is off by 1.0, \d+ s$", done.stderr, re.MULTILINE)
    assert "AssertionError" in done.stderr
    assert "WRONG: failed with exit code 1" in done.stderr
    assert "Out of range float values" in done.stderr
    assert re.search(r"^4 benchmarks in \d+ s\.$", done.stderr, re.MULTILINE)
    assert "| the details |" in done.stdout
    assert "| 0.75 " in done.stdout
    assert "1 of 1 targets met." in done.stdout
    assert "- good, work: on 1 core" in done.stdout
    (path,) = (tmp_path / "kept").glob("*.json")
    assert path.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    ((name, each),) = json.loads(path.read_text())["benchmarks"].items()
    assert (name, each["missing"], each["seconds"] > 0) == ("good", {}, True)
    done = command("--compare", str(path), str(path))
    assert (done.returncode, done.stdout[:61]) == (0, "1 rows compared: 0 verdicts changed, 0 other rows moved. Move")
    done = command("--show", str(path))
    assert (done.returncode, "| good      | work |" in done.stdout, "the details" in done.stdout) == (0, True, False)
    assert "| the details |" in command("--show", str(path), "good").stdout
    assert command("--show", str(path), "wrong").returncode == 2


def test_check_times_nothing(command, tmp_path):
    done = command("--check", "good")
    assert done.returncode == 0
    assert re.fullmatch(
        r"\[1/1\] good right, \d+ s\n1 of 1 benchmarks are right on toy sizes. Nothing was timed.\n", done.stdout
    )
    assert not (tmp_path / "runs").exists()


def test_a_missing_library_is_said(command):
    why = "no_such_library is missing; needs_another cannot be imported: No module named 'no_such_library'"
    done = command("--check", "alone", "wrong")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"[1/2] alone right (not compared: {why}), ")
    assert lines[-1] == (
        "1 of 2 benchmarks are right on toy sizes, 1 of them not compared with every library (alone); wrong: wrong. "
        "Nothing was timed."
    )
    told = json.loads(command("--check", "alone", "--json").stdout)
    assert told["checked"] == ["alone"]
    assert list(told["missing"]["alone"]) == ["no_such_library", "needs_another"]


def test_what_was_finished_before_an_interruption_stays(command, tmp_path):
    done = command("good", "interrupted", "wrong", "--rounds", "1", "--out", "kept")
    assert done.returncode == 130
    assert "What is left: python benchmarks interrupted wrong --rounds 1 --out kept\n" in done.stderr
    assert "Traceback" not in done.stderr
    (path,) = (tmp_path / "kept").glob("*.json")
    assert list(json.loads(path.read_text())["benchmarks"]) == ["good"]
    done = command("alone", "--rounds", "1", "--out", "kept")
    assert (done.returncode, "(not compared: no_such_library is missing; " in done.stderr) == (0, True)
    assert "Not compared: no_such_library is missing (alone); needs_another cannot be imported" in done.stdout
    assert list(json.loads(path.read_text())["benchmarks"]) == ["good", "alone"]
    done = command("stopped", "--check")
    assert (done.returncode, "What is left: python benchmarks stopped --check\n" in done.stdout) == (130, True)
    path.write_text("[]")
    done = command("good", "--rounds", "1", "--out", "kept")
    assert (done.returncode, "holds no results" in done.stderr, path.read_text()) == (2, True, "[]")


def test_the_commit_is_that_of_what_is_measured(benchmark, monkeypatch, tmp_path):
    measure = benchmark("measure")

    def git(*words):
        who = ("-c", "user.name=n", "-c", "user.email=e")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    for name in ("implicit_reg/a.py", "benchmarks/b.py", "benchmarks/results/c.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "benchmarks" / "measure.py"))
    commit = measure.commit.__wrapped__
    assert commit() == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "m")
    head = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "benchmarks" / "results" / "c.json").write_text("2")
    assert commit() == head
    (tmp_path / "implicit_reg" / "a.py").write_text("2")
    assert commit() == f"{head}-dirty"


def test_usage(command):
    assert command("--list").stdout.splitlines()[0] == "good         a good one"
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


def test_any_two_programs_are_compared_within_rounds(benchmark):
    costs = benchmark("measure").Costs(samples={"cpu": {"a": [1.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}})
    assert costs.over("a", "b") == (2.0, (1.0, 3.0))


def test_rounds_fit_into_the_time_that_they_may_take(benchmark, monkeypatch):
    measure = benchmark("measure")
    programs = {"one": lambda: None}
    monkeypatch.setattr(measure, "BUDGET", 0.0)
    assert measure.interleave(programs, unit="one", rounds=20)["one"].rounds == measure.FEWEST
    assert measure.interleave(programs, unit="one", rounds=2)["one"].rounds == 2
    monkeypatch.setattr(measure, "BUDGET", 60.0)
    assert measure.interleave(programs, unit="one", rounds=20)["one"].rounds == 20


def test_the_catalog_names_modules_that_are_there(benchmark):
    catalog = benchmark("catalog")
    for entry in catalog.BENCHMARKS.values():
        assert (FOLDER / f"{entry.module}.py").exists(), entry
