"""`implicit-reg train` as a user meets it: files, exit codes, resume, signals, mistakes."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from implicit_reg.cli import run

SMALL = ["--data", "wine", "--widths", "4", "--batch-size", "50", "--epochs", "4"]


def train(*arguments):
    return run(["train", *map(str, arguments)])


def manifest(folder):
    (path,) = (pathlib.Path(folder) / "checkpoint").glob("epoch-*")  # a killed run may leave a temporary folder
    return json.loads((path / "manifest.json").read_text())


def snapshot(folder):
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run: the folder and what it printed as JSON."""
    folder = tmp_path_factory.mktemp("train") / "run"
    command = [sys.executable, "-m", "implicit_reg", "train", *SMALL, "--method", "flooding", "--hyper", "level=1"]
    answer = subprocess.run([*command, "--out", folder, "--json"], capture_output=True, text=True, check=True)
    return folder, answer


def test_one_json_object_and_a_whole_folder(done):
    folder, answer = done
    record = json.loads(answer.stdout)
    assert answer.stderr == ""  # no bar where there is no terminal
    assert record.pop("folder") == str(folder)
    assert record == json.loads((folder / "results.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["hyper"] == ["level=1"]
    assert record["steps"] == 8 == record["gradients"]
    assert 0 <= record["flooded_fraction"] <= 1
    assert {"accuracy", "cross_entropy"} == set(record["last"]["test"]) == set(record["best"]["test"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert record["last"]["validation"]["cross_entropy"] == lines[-1]["validation_loss"]
    assert json.loads((folder / "config.json").read_text())["config"] == record["config"]
    assert (folder / "figures" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "finished after epoch 4" in (folder / "log.txt").read_text()
    assert manifest(folder)["meta"]["history"] == lines
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_the_table(done, capsys):
    folder, _ = done
    assert train("--resume", folder) == 0  # nothing is left to do: the results again
    out, err = capsys.readouterr()
    assert err == ""
    for words in (
        "flooding level=1 on wine",
        "last epoch (4)",
        "test",
        "cross entropy",
        "8 steps; 8 gradients",
        "flooded",
    ):
        assert words in out
    assert "\x1b[" not in out


def test_resume_refuses_other_settings(done, capsys, monkeypatch):
    folder, _ = done
    before = snapshot(folder)
    assert train("--resume", folder, "--epochs", 5, "--optimizer", "adam") == 2
    err = capsys.readouterr().err
    assert "--epochs: 4 then, 5 now" in err
    assert "--optimizer: 'sgd' then, 'adam' now" in err
    # A flag given at its default is a wish too.
    monkeypatch.setattr(sys, "argv", ["implicit-reg", "train", "--method", "gd"])
    assert train("--resume", folder, "--method", "gd") == 2
    assert "--method: 'flooding' then, 'gd' now" in capsys.readouterr().err
    monkeypatch.undo()
    assert train("--resume", folder, "--out", "elsewhere") == 2
    assert "leave --out away" in capsys.readouterr().err
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.json", b'{"format": "implicit_reg.tr', "truncated or damaged"),
        ("config.json", b"[1]", "holds no JSON object"),
        ("config.json", b'{"format": "other"}', "wanted 'implicit_reg.train'"),
        ("config.json", b'{"format": "implicit_reg.train", "version": 1, "config": {}}', "settings missing or unknown"),
        ("config.json", None, "is missing"),
        ("checkpoint/epoch-000004/manifest.json", b"{", "truncated or damaged"),
        ("checkpoint/epoch-000004/manifest.json", None, "missing, truncated or damaged"),
        ("checkpoint", None, "metrics but no checkpoint"),
    ],
)
def test_a_truncated_folder_is_named_and_left_alone(done, tmp_path, capsys, name, content, match):
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    path = folder / name
    if content is not None:
        path.write_bytes(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    before = snapshot(folder)
    assert train("--resume", folder) == 2
    out, err = capsys.readouterr()
    assert match in err
    assert out == ""
    assert "Traceback" not in err
    after = snapshot(folder)
    assert {path: data for path, data in after.items() if path.name not in ("log.txt", ".lock")} == {
        path: data for path, data in before.items() if path.name not in ("log.txt", ".lock")
    }


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["--data", "wien"], 2, "Did you mean 'wine'"),
        (["--method", "bakstitch"], 2, "Did you mean 'backstitch'"),
        (["--model", "cnn"], 2, "unknown model 'cnn'"),
        (["--optimizer", "adma"], 2, "unknown optimizer 'adma'"),
        (["--method", "sam", "--hyper", "radios=1"], 2, "Did you mean 'radius'"),
        (["--method", "sam", "--hyper", "radius=inf"], 2, "must be a finite decimal number"),
        (["--method", "sam", "--hyper", "radius=-1"], 2, "`radius`"),
        (["--learning-rate", "nan"], 2, "not a decimal number: 'nan'"),
        (["--learning-rate", "-0.1"], 2, "`learning_rate`"),
        (["--epochs", "1_000"], 2, "not an integer: '1_000'"),
        (["--epochs", "2.5"], 2, "not an integer"),
        (["--seed", "4294967296"], 2, "below 2**32"),
        (["--checkpoint-every", "0"], 2, "--checkpoint-every must be at least 1"),
        (["--epoch", "3"], 2, "--epochs"),
        (["--resume", "nowhere"], 2, "there is no such folder"),
        (["--data", "no_such_module:data"], 2, "cannot import 'no_such_module'"),
        (["--out", "a-file/run"], 74, "Not a directory"),
    ],
)
def test_mistakes_are_one_message_before_any_work(tmp_path, monkeypatch, capsys, arguments, code, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    assert train(*arguments) == code
    out, err = capsys.readouterr()
    assert match in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_a_folder_with_files_is_not_touched(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert train(*SMALL, "--out", tmp_path) == 2
    assert "holds files already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_divergence_is_exit_code_3_with_everything_saved(tmp_path, capsys):
    flags = ["--data", "diabetes", "--activation", "softplus", "--learning-rate", "10000", "--widths", "4"]
    assert train(*flags, "--out", tmp_path / "run") == 3
    assert "diverged" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["status"] == "diverged"
    assert record["last"]["test"]["r2"] is None


def test_float64_by_flag_leaves_the_configuration_alone_and_quiet_is_quiet(tmp_path, capsys):
    before = jax.config.jax_enable_x64
    assert train(*SMALL, "--dtype", "float64", "--quiet", "--out", tmp_path / "run") == 0
    assert capsys.readouterr() == ("", "")
    assert jax.config.jax_enable_x64 == before
    dtypes = {entry["dtype"] for entry in manifest(tmp_path / "run")["entries"]}
    assert "float64" in dtypes
    assert "float32" not in dtypes


def test_help_has_examples_and_does_not_wait_for_jax():
    code = "import sys; from implicit_reg.cli import run; c = run(['train', '--help']); print(c, 'jax' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "implicit-reg train --data digits --method backstitch --hyper alpha=0.3" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "0 False"


def start(folder, epochs=2000):
    command = [sys.executable, "-m", "implicit_reg", "train", *SMALL[:-1], epochs, "--noise", "0.1", "--dropout", "0.2"]
    command += ["--checkpoint-every", "3", "--quiet", "--out", folder]
    return subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)


def wait_for(folder, epoch):
    log = pathlib.Path(folder) / "log.txt"
    for _ in range(2400):
        if log.exists() and f"epoch {epoch}:" in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the run did not start")


def test_signals_finish_the_epoch_and_resume_has_the_same_bits(tmp_path):
    """Stopped by SIGINT, then by SIGTERM, then killed: the end is that of a run that nobody disturbed."""
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(folder, 5)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read() == ""
    record = json.loads((folder / "results.json").read_text())
    reached = record["last"]["epoch"]
    assert record["status"] == "interrupted"
    assert reached >= 5
    assert manifest(folder)["meta"]["history"][-1]["epoch"] == reached
    again = [
        sys.executable,
        "-m",
        "implicit_reg",
        "train",
        "--resume",
        str(folder),
        "--quiet",
        "--checkpoint-every",
        "3",
    ]
    process = subprocess.Popen(again)
    wait_for(folder, reached + 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    reached = manifest(folder)["meta"]["history"][-1]["epoch"]
    process = subprocess.Popen(again)
    wait_for(folder, reached + 5)
    process.kill()
    process.wait()
    # Another length would be another configuration: the undisturbed run is stopped by hand at the same epoch.
    from implicit_reg.training import Run, checkpoints, fit
    from implicit_reg.training.settings import Settings

    meta = checkpoints.read_meta(folder / "checkpoint")
    epoch = meta["history"][-1]["epoch"]
    assert epoch >= reached
    settings = Settings.from_json(meta["config"])
    straight, history = fit(Run(settings), on_epoch=lambda state, history: int(state.epoch) == epoch)
    assert history == meta["history"]
    assert checkpoints.describe(straight) == manifest(folder)["entries"]


def test_a_second_process_is_sent_away(done, tmp_path, capsys):
    from implicit_reg.training import checkpoints

    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    with checkpoints.lock(folder):
        assert train("--resume", folder) == 75
    assert "in use by another process" in capsys.readouterr().err
    assert os.listdir(folder)
