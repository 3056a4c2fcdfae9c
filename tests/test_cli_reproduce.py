"""`implicit-reg reproduce` as a user meets it: verdicts, files, resume, signals, mistakes."""

import dataclasses
import json
import signal
import sys

import pytest
from fake_reproduction import Settings, draw, install, make
from test_report import Page

from implicit_reg import _files
from implicit_reg.cli import run
from implicit_reg.experiments import REPRODUCTIONS
from implicit_reg.plots.papers import FIGURES
from implicit_reg.report import reproduction_report

ORIGINAL = (dict(REPRODUCTIONS), dict(FIGURES))


def snapshot(folder):
    """Every file with its content and when it was written."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    ("target", "verdict", "holds"),
    [(7.5, "reproduced", [True, True]), (7.0, "partly", [False, True]), (700.0, "not", [False, False])],
)
def test_the_verdict_its_files_and_one_json_object(monkeypatch, tmp_path, capsys, target, verdict, holds):
    install(monkeypatch, make("squares", Settings(target=target)))
    folder = tmp_path / "out"
    assert run(["reproduce", "squares", "--json", "--out", str(folder)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.pop("folder") == str(folder)
    assert set(answer) == {"name", "claim", "verdict", "criterion", "numbers"}
    assert answer["verdict"] == verdict
    assert answer["criterion"] == "the mean is the target; the target is below 100"
    assert answer["numbers"] == {"mean": 7.5, "target": target, "unknown": None}  # (1 + 4 + 9 + 16) / 4
    record = json.loads((folder / "results.json").read_text())
    assert {name: record[name] for name in answer} == answer
    assert [part["holds"] for part in record["parts"]] == holds
    assert record["settings"] == {"last": 4, "target": target}
    config = json.loads((folder / "config.json").read_text())
    assert config["config"] == {"name": "squares", "scale": "fast"}
    assert config["settings"] == record["settings"]
    assert (folder / "figures" / "squares.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (folder / "sweeps").iterdir()) == ["cubes", "squares"]


def test_the_report_has_all_of_the_record_and_runs_nothing(monkeypatch, tmp_path):
    install(monkeypatch, make("squares", Settings(target=7.0)), draw=draw)
    assert run(["reproduce", "squares", "--quiet", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    for words in (
        "Partly reproduced",
        "1 of 2 criteria hold",
        "have the mean that <script>they</script> should.",
        "[smith2021], figure [1]",
        "The paper's number is not known here.",
        "fails the mean is the target",
        "holds the target is below 100",
        "Squares | of [x]",
        "Nothing is shown for <b>x</b> > 4.",
        "implicit-reg reproduce squares",
        "cubes",  # written in the figure
    ):
        assert words in page.text, words
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    assert not [v for _, name, v in page.attributes if name in ("href", "src") and not v.startswith(("#", "data:"))]
    with pytest.raises(ValueError, match=r"`record` must be of format 'implicit_reg\.reproduce', version 1"):
        reproduction_report({"format": "implicit_reg.verify"}, {})


def test_the_screen(monkeypatch, tmp_path, capsys):
    install(monkeypatch, make("squares", Settings(target=7.0)))
    assert run(["reproduce", "squares", "--out", str(tmp_path / "out")]) == 0
    screen = capsys.readouterr()
    for words in ("✗ the mean is the target", "✓ the target is below 100", "source: [smith2021], figure [1]"):
        assert words in screen.out
    assert "◐ partly reproduced in" in screen.out
    assert "note: Nothing is shown" in screen.out
    assert screen.err == ""
    assert run(["reproduce", "squares", "--quiet", "--out", str(tmp_path / "other")]) == 0
    assert capsys.readouterr() == ("", "")


def test_progress_is_on_standard_error(monkeypatch, tmp_path, capsys):
    install(monkeypatch, make("squares"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(["reproduce", "squares", "--out", str(tmp_path / "out")]) == 0
    screen = capsys.readouterr()
    assert "squares: 2 of 4 runs" in screen.err
    assert "2 of 4 runs" not in screen.out


def test_the_list(monkeypatch, capsys):
    install(monkeypatch, make("squares"), make("others"))
    assert run(["reproduce", "--list"]) == 0
    screen = capsys.readouterr().out
    for words in ("squares", "others", "[smith2021]", "at most 2 minutes"):
        assert words in screen
    assert run(["reproduce", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["experiments"]
    assert [row["name"] for row in rows] == ["squares", "others"]
    assert set(rows[0]) == {"name", "claim", "source"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_chunk_and_resume_has_the_same_numbers(monkeypatch, tmp_path, capsys, number, code):
    folder = tmp_path / "out"
    install(monkeypatch, make("squares", send=number))
    assert run(["reproduce", "squares", "--out", str(folder)]) == code
    screen = capsys.readouterr()
    assert f"stopped; the same command with --resume --out {folder} goes on" in screen.err
    before = snapshot(folder)
    assert not (folder / "results.json").exists()
    assert len(list((folder / "sweeps" / "squares").glob("chunk-*"))) == 2
    install(monkeypatch, make("squares"))
    assert run(["reproduce", "squares", "--out", str(folder), "--resume", "--quiet"]) == 0
    after = snapshot(folder)
    kept = [p for p in before if p.name.startswith("chunk-") or p.name == "config.json"]
    assert len(kept) == 3
    assert {p: after[p] for p in kept} == {p: before[p] for p in kept}
    whole = tmp_path / "whole"
    assert run(["reproduce", "squares", "--out", str(whole), "--quiet"]) == 0
    numbers, wanted = (json.loads((f / "results.json").read_text()) for f in (folder, whole))
    assert (numbers["numbers"], numbers["curves"]) == (wanted["numbers"], wanted["curves"])


def test_what_is_finished_is_not_run_again(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "out"
    install(monkeypatch, make("squares"))
    words = ["reproduce", "squares", "--scale", "test", "--out", str(folder), "--resume", "--json"]
    assert run(words) == 0  # there is nothing yet: it begins
    assert json.loads(capsys.readouterr().out)["numbers"]["mean"] == 2.5
    before = snapshot(folder)
    install(monkeypatch, make("squares", fail=AssertionError("ran again")))
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["numbers"]["mean"] == 2.5
    assert snapshot(folder) == before
    # Killed after the sweeps and before the end: pictures and pages are made, no run is repeated.
    (folder / "results.json").unlink()
    install(monkeypatch, make("squares"))
    assert run(words) == 0
    after = snapshot(folder)
    assert all(after[p] == before[p] for p in before if p.name.startswith("chunk-"))
    assert (folder / "results.json").exists()


def test_all_go_on_where_one_cannot(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "out"
    install(monkeypatch, make("one"), make("two", fail=MemoryError("too large")), make("three", Settings(target=7.0)))
    assert run(["reproduce", "all", "--out", str(folder)]) == 3
    screen = capsys.readouterr()
    assert "two: error: out of memory: too large" in screen.err
    assert "1 of 3 reproduced" in screen.out
    assert "✓ reproduced: 2 of 2 criteria hold" in screen.out
    table = (folder / "table.md").read_text().splitlines()
    assert table[2].startswith("| `one` | reproduced | 2 of 2 |  | ")
    assert table[3].startswith("| `three` | partly reproduced | 1 of 2 | the mean is the target | ")
    results = json.loads((folder / "results.json").read_text())
    assert list(results["failed"]) == ["two"]
    page = Page((folder / "report.html").read_text())
    assert "1 of 3 reproduced" in page.text
    assert "Could not be run two: error: out of memory: too large" in page.text
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == ["one/report.html", "three/report.html"]
    assert all((folder / link).is_file() for link in links)
    # Once there is more memory, the two others are read and not run.
    again = [make("one", fail=AssertionError("ran again")), make("two"), make("three", Settings(target=7.0))]
    install(monkeypatch, *again)
    assert run(["reproduce", "all", "--resume", "--out", str(folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [record["verdict"] for record in answer["experiments"]] == ["reproduced", "reproduced", "partly"]
    assert answer["failed"] == {}


def test_devices_do_not_change_the_numbers(monkeypatch, tmp_path, capsys):
    install(monkeypatch, make("squares", Settings(last=10)))
    answers = []
    for k, more in enumerate(([], ["--devices", "2"])):
        assert run(["reproduce", "squares", "--json", "--out", str(tmp_path / str(k)), *more]) == 0
        answers.append(json.loads(capsys.readouterr().out)["numbers"])
    assert answers[0] == answers[1]
    assert answers[0]["mean"] == 38.5


@pytest.fixture
def finished(monkeypatch, tmp_path):
    install(monkeypatch, make("squares"), make("others"))
    assert run(["reproduce", "squares", "--scale", "test", "--quiet", "--out", str(tmp_path / "done")]) == 0
    return tmp_path / "done"


def test_mistakes(finished, capsys):
    for arguments, message in (
        ([], "name an experiment, or all; --list shows them"),
        (["squarez"], "unknown experiment 'squarez'. Did you mean 'squares'?"),
        (["squares", "--out", str(finished)], "holds files already"),
        (["squares", "--devices", "0"], "--devices must be at least 1"),
        (["squares", "--devices", "99"], "at most the 8 that JAX has, got 99"),
        (["squares", "--resume"], "--resume needs --out DIR"),
        (["squares", "--resume", "--out", str(finished / "sweeps")], "holds files, but no config.json"),
        (["others", "--resume", "--out", str(finished)], "name: 'squares' then, 'others' now"),
        (["all", "--resume", "--out", str(finished)], "name: 'squares' then, 'all' now"),
        (["squares", "--scale", "full", "--resume", "--out", str(finished)], "scale: 'test' then, 'full' now"),
    ):
        before = snapshot(finished)
        assert run(["reproduce", *arguments]) == 2, arguments
        answer = capsys.readouterr()
        assert answer.out == ""
        assert message in answer.err
        assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"format": "imp', "is truncated or damaged"),
        ("config.json", '{"format": "implicit_reg.train", "version": 1}', "is of 'implicit_reg.train'"),
        ("config.json", '{"format": "implicit_reg.reproduce", "version": 2}', "version 2, not"),
        (
            "config.json",
            '{"format": "implicit_reg.reproduce", "version": 1, "config": []}',
            "config or settings missing",
        ),
        ("results.json", "", "is truncated or damaged"),
        ("results.json", "[]", "holds no JSON object"),
    ],
)
def test_damaged_files_are_named_and_left_alone(finished, capsys, name, text, message):
    (finished / name).write_text(text)
    before = snapshot(finished)
    assert run(["reproduce", "squares", "--scale", "test", "--resume", "--out", str(finished)]) == 2
    answer = capsys.readouterr().err
    assert message in answer
    assert name in answer
    assert snapshot(finished) == before


def test_a_folder_of_other_settings_is_refused_with_the_difference(finished, monkeypatch, capsys):
    """A later version of the library may have changed what a scale means."""
    install(monkeypatch, make("squares", Settings(target=8.0)))
    assert run(["reproduce", "squares", "--scale", "test", "--resume", "--out", str(finished)]) == 2
    assert "target: 7.5 then, 8.0 now" in capsys.readouterr().err


def test_a_sweep_of_other_settings_is_refused_with_the_difference(finished, monkeypatch, capsys):
    (finished / "results.json").unlink()
    changed = make("squares")
    longer = dataclasses.replace(changed, measure=lambda settings, lab: changed.measure(Settings(last=6), lab))
    install(monkeypatch, longer)
    before = snapshot(finished)
    assert run(["reproduce", "squares", "--scale", "test", "--resume", "--out", str(finished)]) == 2
    assert "settings" in capsys.readouterr().err
    assert snapshot(finished) == before


def test_a_folder_in_use_says_by_whom(finished, capsys):
    with _files.lock(finished):
        assert run(["reproduce", "squares", "--scale", "test", "--resume", "--out", str(finished)]) == 75
    assert "is in use by another process (pid " in capsys.readouterr().err


def test_help(capsys):
    assert run(["reproduce", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("NAME", "--list", "--scale", "--resume", "--devices"):
        assert word in text


def test_a_real_one_end_to_end(tmp_path, capsys):
    words = ["reproduce", "principal-flow", "--scale", "test", "--json", "--out", str(tmp_path / "out")]
    assert run(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "reproduced"
    assert answer["numbers"]["growth per step at the largest h: iterates"] == pytest.approx(1.1, rel=1e-9)
    assert "principal flow" in Page((tmp_path / "out" / "report.html").read_text()).text


def test_every_experiment_has_its_figure():
    reproductions, figures = ORIGINAL
    assert list(figures) == list(reproductions)


def test_the_replaced_experiments_come_back_in_their_order():
    with pytest.MonkeyPatch.context() as patch:
        install(patch, make("squares"), make("cubes"))
        assert list(REPRODUCTIONS) == list(FIGURES) == ["squares", "cubes"]
    assert (list(REPRODUCTIONS), list(FIGURES)) == tuple(map(list, ORIGINAL))
