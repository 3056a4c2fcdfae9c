"""`implicit-reg compare`: what is printed and written, and mistakes."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from implicit_reg.cli import run

SMALL = ["--data", "wine", "--widths", "4", "--batch-size", "50", "--epochs", "3", "--seeds", "3"]


def compare(*arguments):
    return run(["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "run"
    command = [
        sys.executable,
        "-m",
        "implicit_reg",
        "compare",
        *SMALL,
        "--methods",
        "sam",
        "--learning-rates",
        "0.1",
        "1",
    ]
    command += ["--grid", "sam.radius=0.05,0.5", "--out", folder]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_record(done):
    folder, _ = done
    record = json.loads((folder / "results.json").read_text())
    assert record["status"] == "finished"
    assert record["budget_gradients"] == 6.0
    assert record["seeds"] == [0, 1, 2]
    assert [method["name"] for method in record["methods"]] == ["gd", "sam"]  # the baseline is added
    gd, sam = record["methods"]
    assert (gd["steps"], sam["steps"]) == (6, 3)
    assert gd["gradients"] == sam["gradients"] == 6.0
    assert len(gd["candidates"]) == 2
    assert len(sam["candidates"]) == 4
    best = [[seed["best"]["cross_entropy"] for seed in method["seeds"]] for method in (gd, sam)]
    assert gd["summary"]["best"]["cross_entropy"]["mean"] == np.mean(best[0])
    assert sam["summary"]["best"]["cross_entropy"]["difference"]["mean"] == np.mean(np.subtract(best[1], best[0]))
    assert set(sam["summary"]) == {"best", "last"}
    for name in ("accuracy", "cross-entropy"):
        assert (folder / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["learning_rates"] == [0.1, 1.0]
    assert "learning_rate" not in config


def test_the_table(done):
    out, err = done[1].stdout, done[1].stderr
    assert err == ""
    assert re.search(r"sam +│ +3 │", out)
    assert "baseline" in out
    assert "3 seeds, 6 gradients each" in out
    assert "gd: best of 2 on validation data: learning rate 1 (largest tried)" in out
    assert "Traceback" not in out


def test_json_is_one_object_and_seeds_move_it(done, tmp_path, capsys):
    folder, _ = done
    flags = [*SMALL, "--methods", "gd", "--learning-rates", "0.1", "1", "--json"]
    assert compare(*flags, "--out", tmp_path / "run", "--seed", 1, "--seeds", 2) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record["seeds"] == [1, 2]
    first = json.loads((folder / "results.json").read_text())["methods"][0]
    (method,) = record["methods"]
    if method["chosen"] == first["chosen"]:  # seeds 1 and 2 are the same runs in both
        got = [seed["last"]["cross_entropy"] for seed in method["seeds"]]
        np.testing.assert_allclose(got, [seed["last"]["cross_entropy"] for seed in first["seeds"]][1:], rtol=1e-4)


def test_all_diverged_is_exit_code_3(tmp_path, capsys):
    flags = ["--data", "diabetes", "--activation", "softplus", "--widths", "4", "--epochs", "2", "--seeds", "2"]
    code = compare(*flags, "--methods", "gd", "--learning-rates", "1e30", "--json", "--out", tmp_path / "run")
    record = json.loads(capsys.readouterr().out)
    assert record["methods"][0]["diverged"] == 2
    assert record["methods"][0]["summary"]["best"]["mean_squared_error"]["mean"] is None
    assert code == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--methods", "gd", "smm"], "unknown method 'smm'"),
        (["--baseline", "sgd"], "unknown method 'sgd'"),
        (["--methods", "sam", "--grid", "sam.radios=1"], "Did you mean 'radius'"),
        (["--methods", "sam", "--grid", "flooding.level=1"], "'flooding' is not compared"),
        (["--methods", "sam", "--grid", "radius=1"], "method.name=value,value"),
        (["--methods", "sam", "--grid", "sam.radius=nan"], "must be a finite decimal number"),
        (["--methods", "sam", "--grid", "sam.radius=1", "sam.radius=2"], "is given twice"),
        (["--methods", "sam", "--grid", "sam.radius=1,1"], "tried twice"),
        (["--methods", "sam", "--grid", "sam.radius=-1"], "`radius`"),
        (["--learning-rates", "0.1", "inf"], "valid parse for arguments: ['0.1', 'inf']"),
        (["--learning-rates", "0"], "`learning_rates`"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--seed", "4294967295", "--seeds", "2"], "the last seed"),
        (["--data", "digit"], "Did you mean 'digits'"),
        (["--learning-rate", "0.1"], "--learning-rates"),
        (["--epochs", "0"], "`epochs`"),
        (["--batch-size", "-1"], "`batch_size`"),
    ],
)
def test_mistakes_are_one_message_before_any_work(tmp_path, monkeypatch, capsys, arguments, match):
    monkeypatch.chdir(tmp_path)
    assert compare(*arguments) == 2
    out, err = capsys.readouterr()
    assert match in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


def test_an_interrupt_keeps_the_methods_that_are_done(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "implicit_reg", "compare", *SMALL[:-4], "--seeds", "2", "--learning-rates", "0.1"]
    command += ["--epochs", "200000", "--methods", "gd", "--quiet", "--out", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (folder / "config.json").exists():
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read() == ""
    record = json.loads((folder / "results.json").read_text())
    assert (record["status"], record["methods"]) == ("interrupted", [])
