"""The command line as its user meets it: exit codes, one JSON object, one line for a mistake, files whole or absent."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from implicit_reg import cli
from implicit_reg.cli import _common

QUICK = ["--only", "gd", "--problem", "nonquadratic", "--step-sizes", "0.025", "0.0125", "--time", "0.25"]

PLUGIN = """
import jax.numpy as jnp, numpy as np, optax
from implicit_reg.flows import heavy_ball_memory, memory_vector_field
from implicit_reg.problems import Problem

def method(h):
    return optax.sgd(h * (1 + h))

def rough(h):
    return optax.chain(optax.sgd(h), optax.trace(0.5))

def noisy(h):
    return optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(h))

def deaf(h):
    return optax.sgd(0.1)

def bowl(x):
    return jnp.sum(jnp.cosh(x))

def loss(dtype):
    return Problem("mine", bowl, np.array([0.3, -1.0], dtype), {}, "A bowl.")

fields = tuple(memory_vector_field(bowl, heavy_ball_memory(0.5), terms) for terms in (1, 2))

def another_tree(t, x, h):
    return {"x": x}

not_a_method = 3
"""


def run(*arguments):
    return cli.run([str(a) for a in arguments])


def program(*arguments, cwd, **environment):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "implicit_reg", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), **environment},
        timeout=200,
    )


def test_verify_end_to_end(tmp_path, capsys):
    out = tmp_path / "run"
    assert run("verify", *QUICK, "--out", out) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("1 hold, 0 fail, 0 could not be measured")
    assert str(out / "report.html") in printed.splitlines()[-1]
    results = json.loads((out / "results.json").read_text())
    (check,) = results["checks"]
    assert (check["name"], check["verdict"], check["expected"]) == ("gd", "holds", [1, 2, 3])
    assert [round(slope) for slope in check["measured"]] == [1, 2, 3]
    assert results["config"]["only"] == ["gd"]
    assert results["config"]["seed"] == 0
    assert (results["version"], results["preset"], results["skipped"]) == (2, "quick", [])
    (case,) = check["details"]["cases"]
    assert (case["loss"], case["h"], case["time"]) == ("nonquadratic", [0.025, 0.0125], 0.25)
    assert case["validity"]["band"] == "fine"
    command = "implicit-reg verify --only gd --problem nonquadratic --step-sizes 0.025 0.0125 --time 0.25"
    assert results["config"]["command"] == command
    assert json.loads((out / "config.json").read_text())["environment"]["jax"] == results["environment"]["jax"]
    pictures = sorted(path.name for path in (out / "figures").iterdir())
    assert pictures == ["errors.png", "strip.png", "trajectories.png"]
    assert all((out / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    page = (out / "report.html").read_text()
    assert "Every prediction holds" in page
    assert command in page
    assert f"{check['measured'][1]:.2f}" in page
    assert not list(out.rglob("*.tmp"))
    assert str(tmp_path) not in (out / "results.json").read_text() + page


def test_json_is_one_object_and_quiet_is_silent(tmp_path, capsys):
    assert run("verify", *QUICK, "--out", tmp_path / "a", "--json") == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [check["name"] for check in answer["checks"]] == ["gd"]
    assert answer["verdict"] == "holds"
    assert captured.err == ""
    assert run("verify", *QUICK, "--out", tmp_path / "b", "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_list_names_every_prediction_with_its_claim_and_source(tmp_path, capsys, monkeypatch):
    from implicit_reg import predictions

    monkeypatch.chdir(tmp_path)
    assert run("verify", "--list") == 0
    printed = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    for row in predictions.ROWS.values():
        assert f" {row.name} " in printed
    assert "[barrett2021]" in printed
    assert run("verify", "--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["predictions"]
    assert listed == [{"name": r.name, "claim": r.claim, "source": r.source} for r in predictions.ROWS.values()]
    assert not list(tmp_path.iterdir())


def test_on_a_loss_of_ones_own_what_cannot_be_tested_is_skipped_and_said(tmp_path, capsys, monkeypatch):
    """Without --only the rows that need examples are left out, by name and with the reason, and never counted."""
    from implicit_reg import predictions

    few = {name: predictions.ROWS[name] for name in ("gd", "sgd-shuffled")}
    monkeypatch.setattr(predictions, "ROWS", few)
    assert run("verify", *QUICK[2:], "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "sgd-shuffled skipped: " in printed
    assert printed.splitlines()[-1].startswith("1 hold, 0 fail, 0 could not be measured, 1 skipped")
    (skipped,) = json.loads((tmp_path / "run" / "results.json").read_text())["skipped"]
    assert skipped["name"] == "sgd-shuffled"


def test_presets_do_more(tmp_path, capsys):
    """Standard holds what quick does, and more statements at more step sizes."""
    only = ["--only", "weight-decay", "--problem", "nonquadratic", "--json"]
    found = {}
    for preset in ("quick", "standard"):
        assert run("verify", *only, "--preset", preset, "--out", tmp_path / preset) == 0
        (check,) = json.loads(capsys.readouterr().out)["checks"]
        found[preset] = {case["statement"]: case["h"] for case in check["details"]["cases"]}
    assert set(found["quick"]) < set(found["standard"])
    assert found["quick"][""] == found["standard"][""][-3:]
    assert len(found["standard"][""]) == 5


def test_own_problem_and_own_method(tmp_path, capsys, monkeypatch):
    (tmp_path / "plugin_of_a_user.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    mine = ["--problem", "plugin_of_a_user:loss", "--step-sizes", "0.025", "0.0125", "--time", "0.25"]
    assert run("verify", "--method", "plugin_of_a_user:method", *mine, "--json") == 0
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert check["verdict"] == "holds"
    assert {case["loss"] for case in check["details"]["cases"]} == {"mine"}
    assert list((tmp_path / "runs").iterdir())
    for method, field, message in (
        ("not_a_method", None, "`method` must be callable"),
        ("noisy", None, "PRNG key"),
        ("deaf", None, "`method` must make smaller updates for smaller step sizes"),
        ("method", "another_tree", "must have the same structure"),
    ):
        extra = [] if field is None else ["--field", f"plugin_of_a_user:{field}"]
        assert run("verify", "--method", f"plugin_of_a_user:{method}", *mine, *extra) == 2, method
        assert message in capsys.readouterr().err
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_an_optimizer_with_a_memory_gets_the_whole_treatment_in_one_command(tmp_path, capsys, monkeypatch):
    """The field is derived from its updates on the slow manifold, or given, and held to the orders of its terms."""
    (tmp_path / "another_plugin_of_a_user.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    command = ["verify", "--method", "another_plugin_of_a_user:rough", "--problem", "another_plugin_of_a_user:loss"]
    for field in ([], ["--field", "another_plugin_of_a_user:fields"]):
        assert run(*command, *field, "--json") == 0
        (check,) = json.loads(capsys.readouterr().out)["checks"]
        assert (check["verdict"], check["expected"]) == ("holds", [1, 2])
        (dynamics,) = check["details"]["dynamics"]
        assert dynamics["memory"] == 33  # 0.5^33 = 1e-10
        assert dynamics["first_step"] < 20


def test_a_prediction_that_fails_is_exit_code_1(tmp_path, monkeypatch, capsys):
    from implicit_reg import predictions

    judge = predictions.measure.judge
    monkeypatch.setattr(predictions.measure, "judge", lambda h, e, m, order, floor: judge(h, e, m, order + 1, floor))
    assert run("verify", *QUICK, "--out", tmp_path / "run") == 1
    printed = capsys.readouterr().out
    assert "order 2.0" in printed
    assert "where 3 was predicted" in printed
    assert printed.splitlines()[-1].startswith("0 hold, 1 fail")


def test_what_could_not_be_measured_is_exit_code_3(tmp_path, capsys):
    tiny = ["--step-sizes", "0.00002", "0.00001", "--time", "0.0001"]
    assert run("verify", "--only", "gd", "--problem", "nonquadratic", *tiny, "--out", tmp_path / "run") == 3
    assert "too near to the floor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--only", "gdd"], "unknown prediction 'gdd'. Did you mean 'gd'?"),
        (["verify", "--problem", "digit-tanh"], "unknown problem 'digit-tanh'. Did you mean 'digits-tanh'?"),
        (["verify", "--problem", "no_such_module:x"], "cannot import 'no_such_module'"),
        (["verify", "--step-sizes", "0.1"], "at least two positive numbers"),
        (["verify", "--step-sizes", "0.05", "0.1"], "strictly decreasing"),
        (["verify", "--step-sizes", "0.1", "0.03"], "must divide"),
        (["verify", "--seed", "-1"], "`seed` must be an integer, at least 0, got -1"),
        (["verify", "--method", "optax:sgd", "--only", "gd"], "give one of them"),
        (["verify", "--field", "optax:sgd"], "--field says what --method follows"),
        (["verify", "--preset", "quickest"], "--preset"),
        (["verify", "--only", "sgd-shuffled", "--problem", "nonquadratic"], "takes no examples"),
        (["verify", "--only", "gd", "--step-sizes", "0.1", "0.099"], "must differ by a factor of at least 1.2"),
        (["verify", "--threads", "0"], "--threads must be at least 1"),
        (["verify", "--tiem", "1"], "Perhaps you meant"),
        (["verify", "--time", "nan"], "not a decimal number: 'nan'"),
        (["verify", "--time", "inf"], "not a decimal number"),
        (["verify", "--time", "1e999"], "too large"),
        (["verify", "--time", "1_0"], "not a decimal number"),
        (["verify", "--time", "٣"], "not a decimal number"),
        (["verify", "--seed", "1.5"], "not an integer"),
        (["verify", "--seed", ""], "not an integer"),
        (["verfy"], "verify"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_exit_code_2_and_touches_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert " ".join(message.split()) in " ".join(captured.err.replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert run("verify", *QUICK, "--out", tmp_path) == 2
    assert "holds files already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_folder_that_cannot_be_made_is_exit_code_74(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("verify", *QUICK, "--out", tmp_path / "file" / "run") == 74
    assert capsys.readouterr().err.startswith("error: Not a directory")


def test_a_full_disk_is_exit_code_74_and_leaves_no_half_file(tmp_path, capsys, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run("verify", *QUICK, "--out", tmp_path / "run") == 74
    assert "No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())


def test_an_internal_error_is_one_line_unless_debugged(tmp_path, capsys, monkeypatch):
    from implicit_reg import predictions

    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(predictions, "check", broken)
    assert run("verify", *QUICK, "--out", tmp_path / "a") == 70
    assert capsys.readouterr().err == "internal error: ZeroDivisionError: a bug (--debug shows the traceback)\n"
    assert run("verify", *QUICK, "--out", tmp_path / "b", "--debug") == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(tmp_path, monkeypatch):
    from implicit_reg import predictions

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictions, "check", interrupted)
    assert run("verify", *QUICK, "--out", tmp_path / "a") == 130


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_end_a_run_with_their_exit_code(number, code, word, tmp_path):
    command = [sys.executable, "-m", "implicit_reg", "verify", "--only", "gd", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not (tmp_path / "run" / "config.json").exists():  # written before the long work begins
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err.splitlines()[-1]) == (code, "", word)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_atomic_writing_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    _common.write_atomic(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        _common.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_what_json_has_not():
    with pytest.raises(ValueError, match="not JSON compliant"):
        _common.to_json({"x": float("nan")})


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["verify", "--help"], ["train", "--help"], ["compare", "--help"]]
)
def test_help_shows_examples_and_does_not_wait_for_jax(arguments, tmp_path):
    code = (
        f"import sys\nfrom implicit_reg.cli import run\nassert run({arguments!r}) == 0\nassert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "$ implicit-reg" in done.stdout
    assert "\x1b[" not in done.stdout


def test_the_program_without_a_terminal_is_plain(tmp_path):
    done = program("verify", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""
