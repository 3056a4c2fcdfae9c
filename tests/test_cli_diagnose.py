"""`implicit-reg diagnose` as a user meets it: one JSON object, a screen, exit codes, folders that are not whole."""

import json
import shutil

import pytest

from implicit_reg.cli import run
from implicit_reg.training import Run, Settings, diagnose, fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("diagnose") / "run"
    words = ["--data", "wine", "--widths", "4", "--epochs", "8", "--learning-rate", "0.01", "--quiet"]
    assert run(["train", *words, "--out", str(place)]) == 0
    return place


def snapshot(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_one_json_object_that_is_the_diagnosis(folder, capsys, tmp_path):
    before = snapshot(folder)
    assert run(["diagnose", str(folder), "--json", "--check", "--out", str(tmp_path / "out")]) == 0
    answer = capsys.readouterr()
    record = json.loads(answer.out)
    assert record.pop("folder") == str(folder)
    assert record == json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert snapshot(folder) == before
    again = Run(Settings(data="wine", widths=(4,), epochs=8, learning_rate=0.01))
    wanted = diagnose(again, *fit(again))
    assert [verdict["name"] for verdict in record["verdicts"]] == [verdict.name for verdict in wanted.verdicts]
    assert record["numbers"]["lambda_max"] == pytest.approx(wanted.numbers["lambda_max"], rel=1e-3)
    assert record["check"]["epochs"] == 4
    assert record["check"]["longer"] < record["check"]["before"]


def test_the_screen_has_the_verdict_its_numbers_and_what_to_try(folder, capsys):
    assert run(["diagnose", str(folder)]) == 0
    screen = capsys.readouterr().out
    for words in ("still falling (clear)", "numbers: fall", "try: train longer", "note: gradient descent is stable"):
        assert words in screen
    assert run(["diagnose", str(folder), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_diverged_run(tmp_path, capsys):
    words = ["--data", "diabetes", "--widths", "8", "--activation", "relu", "--learning-rate", "50", "--epochs", "8"]
    assert run(["train", *words, "--quiet", "--out", str(tmp_path / "run")]) == 3
    assert run(["diagnose", str(tmp_path / "run"), "--check"]) == 0
    assert "diverged (clear)" in capsys.readouterr().out


def test_help(capsys):
    assert run(["diagnose", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--check" in text
    assert "RUN" in text


def damaged(place, how):
    if how == "truncated config":
        text = (place / "config.json").read_text()
        (place / "config.json").write_text(text[: len(text) // 2])
    elif how == "no config":
        (place / "config.json").unlink()
    elif how == "no checkpoint":
        shutil.rmtree(place / "checkpoint")
    elif how == "truncated manifest":
        (path,) = (place / "checkpoint").glob("epoch-*/manifest.json")
        path.write_text(path.read_text()[:100])
    else:
        for path in (place / "checkpoint").rglob("*"):
            if path.is_file() and path.name != "manifest.json":
                path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated config", "config.json is truncated or damaged"),
        ("no config", "config.json is missing"),
        ("no checkpoint", "metrics but no checkpoint"),
        ("truncated manifest", "manifest.json is missing, truncated or damaged"),
        ("truncated arrays", "is truncated or damaged"),
    ],
)
def test_a_folder_that_is_not_whole(folder, tmp_path, capsys, how, message):
    place = tmp_path / "run"
    shutil.copytree(folder, place)
    damaged(place, how)
    before = snapshot(place)
    assert run(["diagnose", str(place), "--json"]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert message in answer.err
    assert len(answer.err.splitlines()) == 1
    assert snapshot(place) == before


def test_mistakes(folder, capsys):
    for arguments, message in (
        ([str(folder / "nothing")], "there is no such folder"),
        ([str(folder), "--batch-size", "-1"], "--batch-size must be at least 0"),
        ([str(folder), "--seed", "-1"], "--seed must be in"),
    ):
        assert run(["diagnose", *arguments]) == 2
        assert message in capsys.readouterr().err
