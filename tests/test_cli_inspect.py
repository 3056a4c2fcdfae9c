"""`implicit-reg inspect` as a user meets it: problems, run folders, mistakes."""

import contextlib
import json

import jax
import numpy as np
import pytest

import implicit_reg as ir
from implicit_reg.cli import run
from implicit_reg.cli.inspect import Inspect


def inspect(*arguments):
    return run(["inspect", *map(str, arguments)])


def test_a_named_problem(tmp_path, capsys):
    """The numbers are those of the dense Hessian."""
    assert inspect("factorization", "--top", 2, "--out", tmp_path / "a", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record.pop("folder") == str(tmp_path / "a")
    assert record == json.loads((tmp_path / "a" / "results.json").read_text())
    with jax.enable_x64(True):
        problem = ir.problems.load_problem("factorization", dtype="float64")
        values = np.linalg.eigvalsh(ir.curvature.hessian_operator(problem.loss_fn, problem.params).dense())
        loss = float(problem.loss_fn(problem.params))
    np.testing.assert_allclose([row["value"] for row in record["largest"]], values[::-1], rtol=1e-10)
    np.testing.assert_allclose([row["value"] for row in record["smallest"]], values, rtol=1e-10)
    np.testing.assert_allclose(record["loss"], loss, rtol=1e-12)
    assert record["classification"]["kind"] == "not critical"
    assert (tmp_path / "a" / "figures" / "curvature.png").read_bytes()[:4] == b"\x89PNG"
    assert not jax.config.jax_enable_x64


def test_a_folder_of_train(tmp_path, capsys):
    # A rate so large that the second epoch is worse than the first.
    train = ["train", "--data", "wine", "--widths", "4", "--epochs", "2", "--learning-rate", "10", "--quiet"]
    assert run([*train, "--out", str(tmp_path / "t")]) == 0
    assert inspect(tmp_path / "t", "--out", tmp_path / "i", "--batch-size", 40, "--samples", 2) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("gd on wine, mlp, epoch 2", "eigenvalue", "error bound", "trace", "curvature.png"):
        assert words in out
    record = json.loads((tmp_path / "i" / "results.json").read_text())
    trained = json.loads((tmp_path / "t" / "results.json").read_text())
    np.testing.assert_allclose(record["loss"], trained["last"]["train"]["cross_entropy"], rtol=1e-5)
    assert record["num_params"] == trained["num_params"]
    with contextlib.ExitStack() as stack:  # what --best would measure
        best = Inspect(target=str(tmp_path / "t"), best=True)._subject(stack)
        loss = best.loss_fn(best.params, *best.data)
    np.testing.assert_allclose(loss, trained["best"]["train"]["cross_entropy"], rtol=1e-5)
    assert trained["best"]["epoch"] != trained["last"]["epoch"]
    (checkpoint,) = (tmp_path / "t" / "checkpoint").glob("epoch-*")
    (checkpoint / "manifest.json").write_text("{")
    assert inspect(tmp_path / "t", "--out", tmp_path / "c") == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing-like-it"], "nothing-like-it"),
        (["factorization", "--best"], "--best is for a folder"),
        (["factorization", "--top", "0"], "`top` must be"),
        (["factorization", "--samples", "1"], "`num_samples` must be"),
        (["factorization", "--batch-size", "-1"], "--batch-size must be at least 0"),
        (["factorization", "--batch-size", "5"], "`batch_size` needs `data`"),
        (["."], "config.json"),
    ],
)
def test_mistakes(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", *arguments]) == 2
    assert words in capsys.readouterr().err
