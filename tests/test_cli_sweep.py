"""`implicit-reg sweep`: killed, stopped, out of disk and memory, and every time the same bytes in the end."""

import errno
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from implicit_reg import _files
from implicit_reg.cli import _sweeping, run
from implicit_reg.cli._common import UsageError
from implicit_reg.cli.sweep import Sweep
from implicit_reg.experiments import load_sweep

GRID = ["--fn", "swept:descent", "--axis", "h", "0.01", "0.02", "0.03", "0.04", "0.05", "9", "--seeds", "2"]
GRID += ["--width", "2"]
NUM_CHUNKS = 6


def sweep(*arguments):
    return run(["sweep", *map(str, arguments)])


def start(*arguments, **environment):
    """The command as a process of its own, its standard error line by line."""
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "implicit_reg", "sweep", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )


def wait_for(process, words):
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"{words!r} was never said; exit code {process.wait()}")


def chunk_bytes(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).glob("chunk-*.irs")}


def leftovers(folder):
    return [path.name for path in pathlib.Path(folder).iterdir() if _files.is_leftover(path.name)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What an undisturbed sweep writes."""
    folder = tmp_path_factory.mktemp("sweep") / "reference"
    assert sweep(*GRID, "--out", folder, "--quiet") == 0
    assert len(chunk_bytes(folder)) == NUM_CHUNKS
    return folder


def resume_and_compare(folder, reference):
    assert sweep(*GRID, "--out", folder, "--resume", "--quiet") == 0
    assert chunk_bytes(folder) == chunk_bytes(reference)
    assert leftovers(folder) == []
    assert load_sweep(folder)["loss"].tobytes() == load_sweep(reference)["loss"].tobytes()


def test_killed_at_a_random_time(tmp_path, reference):
    process = start(*GRID, "--out", tmp_path, "--resume", SWEPT_SECONDS="0.15")
    wait_for(process, "/12 runs")
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.9))
    process.kill()
    process.communicate()
    resume_and_compare(tmp_path, reference)


def test_killed_between_writing_and_renaming(tmp_path, reference):
    process = start(*GRID, "--out", tmp_path, SWEPT_END_AT="kill 3")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert sorted(chunk_bytes(tmp_path)) == ["chunk-000000.irs", "chunk-000001.irs"]
    (half,) = leftovers(tmp_path)
    assert half.startswith(".chunk-000002.")
    resume_and_compare(tmp_path, reference)


def test_interrupted_and_meanwhile_asked_for_by_another_process(tmp_path, reference, capsys):
    process = start(*GRID, "--out", tmp_path, SWEPT_SECONDS="0.4")
    wait_for(process, "about")
    assert sweep(*GRID, "--out", tmp_path, "--resume") == 75
    assert f"in use by another process (pid {process.pid} on {_files.HOST})" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert "stopping when the chunk in hand is finished" in err
    assert f"--resume --out {tmp_path} goes on" in err
    assert "Traceback" not in err
    assert 1 <= len(chunk_bytes(tmp_path)) < NUM_CHUNKS
    resume_and_compare(tmp_path, reference)


def test_terminated_in_process(tmp_path, reference, monkeypatch, capsys):
    """The first SIGTERM lets the chunk in hand finish; afterwards the old handlers are back."""
    from implicit_reg.experiments.store import Store

    write = Store.write

    def and_signal(self, first_block, *arguments, **more):
        if first_block == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        write(self, first_block, *arguments, **more)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Store, "write", and_signal)
    assert sweep(*GRID, "--out", tmp_path) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted(chunk_bytes(tmp_path)) == [f"chunk-00000{k}.irs" for k in range(3)]
    assert "stopped after 6 of 12 runs" in capsys.readouterr().err
    monkeypatch.undo()
    resume_and_compare(tmp_path, reference)


def test_a_second_signal_is_obeyed_inside_of_a_call(tmp_path):
    process = start(*GRID, "--out", tmp_path, SWEPT_SECONDS="60")
    wait_for(process, "0/12 runs")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "a second signal stops at once")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    process.communicate()
    assert chunk_bytes(tmp_path) == {}


def start_two(folder, **environment_of_the_first):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--out", folder, "--json"]
    return [
        start(*GRID, *group, "--process-id", k, **({} if k else environment_of_the_first), JAX_NUM_CPU_DEVICES="1")
        for k in range(2)
    ]


def test_two_processes_are_one_sweep(tmp_path, reference):
    ranks = start_two(tmp_path)
    told = [rank.communicate(timeout=200) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert json.loads(told[0][0])["runs"] == 12  # and nothing that the transport prints
    assert told[1][0] == ""
    whole, part = load_sweep(reference), load_sweep(tmp_path)
    for path in whole.leaves:
        assert part[path].tobytes() == whole[path].tobytes()
    assert part.environment["processes"] == 2


def test_a_full_disk_of_one_process_ends_both_soon(tmp_path, reference):
    ranks = start_two(tmp_path, SWEPT_END_AT="full 2")
    told = [rank.communicate(timeout=100) for rank in ranks]  # without care it takes five minutes and an abort
    assert [rank.returncode for rank in ranks] == [74, 74], told
    assert "error: No space left on device" in told[0][1]
    assert "another process of this sweep ended" in told[1][1]
    assert len(load_sweep(tmp_path)) == 4  # the first chunk, of two devices
    assert sweep(*GRID, "--out", tmp_path, "--resume", "--quiet") == 0  # alone
    assert load_sweep(tmp_path)["curve"].tobytes() == load_sweep(reference)["curve"].tobytes()


def test_devices_and_chunks_do_not_move_a_bit(tmp_path, reference):
    assert sweep(*GRID, "--out", tmp_path / "run", "--devices", "4", "--chunk", "4", "--quiet") == 0
    whole, part = load_sweep(reference), load_sweep(tmp_path / "run")
    for path in whole.leaves:
        assert part[path].tobytes() == whole[path].tobytes()


def test_a_truncated_file_is_named_and_computed_again(tmp_path, reference, capsys):
    assert sweep(*GRID, "--out", tmp_path, "--quiet") == 0
    path = tmp_path / "chunk-000001.irs"
    path.write_bytes(path.read_bytes()[:100])
    assert sweep(*GRID, "--out", tmp_path, "--resume") == 0
    err = capsys.readouterr().err
    assert "warning: chunk-000001.irs: truncated" in err
    assert "10 found in the folder" in err
    assert chunk_bytes(tmp_path) == chunk_bytes(reference)
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


def test_another_configuration_is_refused_with_the_difference(reference, capsys):
    before = {path.name: path.read_bytes() for path in reference.iterdir()}
    assert sweep(*GRID, "--out", reference, "--resume", "--seeds", "3", "--width", "4") == 2
    err = capsys.readouterr().err
    assert "settings.seed: [0, 1] then, [0, 1, 2] now" in err
    assert "width: 2 then, 4 now" in err
    assert sweep(*GRID, "--out", reference) == 2
    assert "holds a sweep" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in reference.iterdir()} == before


def test_another_environment_is_refused_unless_mixed(tmp_path, monkeypatch, capsys):
    assert sweep(*GRID, "--out", tmp_path, "--quiet") == 0
    (tmp_path / "chunk-000003.irs").unlink()
    monkeypatch.setenv("NPROC", "7")
    assert sweep(*GRID, "--out", tmp_path, "--resume") == 2
    assert 'threads: "2" then, "7" now' in capsys.readouterr().err
    assert sweep(*GRID, "--out", tmp_path, "--resume", "--allow-mixed", "--quiet") == 0
    assert load_sweep(tmp_path).environment["mixed_with"][0]["threads"] == "7"


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_full_disk(tmp_path, reference, monkeypatch, capsys, when):
    sync, calls = os.fsync, []

    def refuse(handle):
        calls.append(handle)
        if len(calls) > {"at once": 0, "later": 8}[when]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        assert sweep(*GRID, "--out", tmp_path) == 74
    assert "error: No space left on device" in capsys.readouterr().err.splitlines()
    assert leftovers(tmp_path) == []
    assert len(chunk_bytes(tmp_path)) == {"at once": 0, "later": 3}[when]
    resume_and_compare(tmp_path, reference)


def test_a_parent_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert sweep(*GRID, "--out", tmp_path / "file" / "run") == 74
    assert "Traceback" not in capsys.readouterr().err


def test_out_of_memory_says_what_to_do(tmp_path, capsys):
    assert sweep("--fn", "swept:enormous", "--axis", "h", "1.5", "2.5", "--width", "2", "--out", tmp_path) == 75
    err = capsys.readouterr().err
    assert "width=2 runs per device does not fit into memory; use width=1 in a new sweep" in err
    assert chunk_bytes(tmp_path) == {}


def test_the_summary_and_the_exports(tmp_path, reference, capsys):
    files = [tmp_path / "runs.jsonl", tmp_path / "deep" / "runs.npz"]
    flags = ["--out", reference, "--resume", "--json", "--by", "loss", "--export", *files, "--fail-on-diverged"]
    assert sweep(*GRID, *flags) == 3
    record = json.loads(capsys.readouterr().out)
    assert (record["runs"], record["diverged"], record["status"]) == (12, 2, "finished")
    assert record["config"] == {
        "fn": "swept:descent", "static": [], "x64": False, "axes": {"h": [0.01, 0.02, 0.03, 0.04, 0.05, 9]},
        "seeds": 2, "seed": 0, "width": 2,
    }  # fmt: skip
    losses = load_sweep(reference).grid("loss").astype(float)
    means = losses[:5].mean(1)
    assert [row["h"] for row in record["settings"]] == [*np.array([0.01, 0.02, 0.03, 0.04, 0.05])[np.argsort(means)], 9]
    np.testing.assert_allclose([row["mean"] for row in record["settings"][:5]], np.sort(means))
    np.testing.assert_allclose(
        [row["standard_error"] for row in record["settings"][:5]],
        (np.abs(losses[:5, 0] - losses[:5, 1]) / 2)[np.argsort(means)],
        rtol=1e-6,
    )
    last = record["settings"][-1]
    assert (last["mean"], last["diverged"]) == (None, 2)
    lines = files[0].read_text().splitlines()
    assert json.loads(lines[3])["seed"] == 1
    assert len(lines) == 12
    assert np.load(files[1], allow_pickle=False)["a0"].shape == (6, 2, 12)
    assert json.loads((reference / "results.json").read_text())["settings"] == record["settings"]


def test_the_table(tmp_path, reference, capsys):
    assert sweep(*GRID, "--out", reference, "--resume", "--by", "curve", "--highest") == 0
    out, err = capsys.readouterr()
    assert "6 settings by curve, largest first, mean over 2 seeds" in out
    assert out.index("0.01 │") < out.index("0.05 │") < out.index("9 │")
    assert "2/2" in out
    assert err.splitlines()[0].startswith("12/12 runs, 12 found in the folder, 2 diverged")


def test_a_training_is_swept_as_one_program(tmp_path, capsys, monkeypatch):
    """Learning rate, hyperparameter and split are operands; a run alone has the numbers of a direct loop."""
    import jax

    from implicit_reg.training import Run, Settings

    flags = ["--data", "wine", "--widths", "4", "--epochs", "2", "--batch-size", "50", "--method", "flooding"]
    flags += ["--axis", "learning_rate", "0.1", "1", "--axis", "level", "0.05", "1", "--axis", "split-seed", "3", "4"]
    assert sweep(*flags, "--seeds", "2", "--width", "16", "--out", tmp_path, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    runs = load_sweep(tmp_path)
    assert len(list(tmp_path.glob("chunk-*"))) == 1
    assert runs.grid("test/loss").shape == (2, 2, 2, 2, 3)
    assert "learning_rate" not in record["config"]
    settings = Settings(
        data="wine", widths=(4,), epochs=2, batch_size=50, method="flooding", hyper=("level=1",), learning_rate=1.0,
        split_seed=4,
    )  # fmt: skip
    run_alone = Run(settings)
    state = jax.jit(run_alone.program.init)(jax.random.fold_in(jax.random.key(0), 1), run_alone.knobs)
    losses = []
    for _ in range(2):
        state, _ = run_alone.step_epoch(state)
        losses.append(run_alone.evaluate(state.params, state.stats, run_alone.arrays.x_test, run_alone.arrays.y_test))
    got = runs.grid("test/loss")[1, 1, 1, 1], runs.grid("test/accuracy")[1, 1, 1, 1]
    np.testing.assert_allclose(got[0][1:], [float(loss) for loss, _ in losses], rtol=2e-5)
    np.testing.assert_allclose(got[1][1:], [float(score) for _, score in losses], rtol=1e-6)
    validation = runs.grid("validation/loss").min(-1).mean(-1)
    best = record["settings"][0]
    assert best["mean"] == pytest.approx(validation.min())
    place = np.unravel_index(validation.argmin(), validation.shape)
    assert (best["learning_rate"], best["level"], best["split_seed"]) == (
        [0.1, 1.0][place[0]], [0.05, 1.0][place[1]], [3, 4][place[2]],
    )  # fmt: skip
    epochs = runs.grid("validation/loss")[place].argmin(-1)
    tested = [runs.grid("test/loss")[place][seed, epoch] for seed, epoch in enumerate(epochs)]
    assert record["test"]["test/loss"]["mean"] == pytest.approx(np.mean(tested))


def test_a_file_says_what_and_a_flag_goes_before_it(tmp_path, reference, capsys):
    text = 'schema_version = 1\nfn = "swept:descent"\nseeds = 7\nwidth = 2\n'
    text += "[axes]\nh = [0.01, 0.02, 0.03, 0.04, 0.05, 9]\n"
    (tmp_path / "grid.toml").write_text(text)
    flags = ["--config", tmp_path / "grid.toml", "--out", reference, "--resume"]
    assert sweep(*flags, "--seeds", "2", "--quiet") == 0
    assert sweep(*flags) == 2  # of seven seeds
    assert "settings.seed" in capsys.readouterr().err
    (tmp_path / "grid.json").write_text('{"fn": "swept:descent", "width": 2, "seeds": 2, "axes": {"h": [1, 2]}}')
    axis = ["--axis", "h", "0.01", "0.02", "0.03", "0.04", "0.05", "9"]
    assert sweep("--config", tmp_path / "grid.json", *axis, "--out", reference, "--resume", "--quiet") == 0


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.toml", "epochs = ", r"Invalid value \(at"),
        ("a.toml", "epochs = 3\nepochs = 4", "overwrite"),
        ("a.toml", "epoch = 3", "unknown key 'epoch'. Did you mean 'epochs'?"),
        ("a.toml", "out = 'x'", "unknown key 'out'"),
        ("a.toml", 'learning_rate = "0.1"', "learning_rate must be a number, got '0.1'"),
        ("a.toml", "epochs = true", "epochs must be an integer, got True"),
        ("a.toml", "epochs = 3.0", "epochs must be an integer, got 3.0"),
        ("a.toml", "learning_rate = nan", "learning_rate must be a finite number, got nan"),
        ("a.toml", "[axes]\nlevel = [0.1, inf]", "axes.level.1 must be a finite number"),
        ("a.toml", "[axes]\nlevel = 0.1", "axes must be a table of lists"),
        ("a.toml", "[axes]\nlevel = []", "at least one value"),
        ("a.toml", "[axes]\nlevel = [[1]]", "axes.level must hold numbers"),
        ("a.toml", "[axes]\nepochs = [1.5]", "--axis epochs: wanted integers, got 1.5"),
        ("a.toml", "[axes]\nmethod = [3]", "--axis method: wanted texts, got 3"),
        ("a.toml", "schema_version = 2", "newer version"),
        ("a.toml", "schema_version = true", "schema_version must be an integer"),
        ("a.toml", "widths = 64", "widths must be a list, each an integer, got 64"),
        ("a.toml", "hyper = {level = []}", "hyper must be a list, each a text"),
        ("a.json", '{"epochs": 3, "epochs": 4}', "'epochs' is given twice"),
        ("a.json", '{"epochs": 3, "batch-size": 1, "batch_size": 2}', "'batch_size' is given twice"),
        ("a.json", '{"learning_rate": NaN}', "NaN is not a finite number"),
        ("a.json", '{"learning_rate": 1e999}', "learning_rate must be a finite number, got inf"),
        ("a.json", '{\n "epochs": }', "line 2, column 12: Expecting value"),
        ("a.json", "[1]", "wanted a table of settings, got list"),
        ("a.json", "[" * 100_000, "nested deeper than 50"),
        ("a.json", " " * 1_000_001, "larger than 1 MB"),
        ("a.json", b'\xef\xbb\xbf{"epochs": 3}', "byte order mark"),
        ("a.json", b'{"data":\n "\xff"}', "line 2, column 3: not UTF-8"),
        ("a.yaml", "epochs: 3", "called .toml or .json"),
        ("a.toml", None, "No such file"),
    ],
)
def test_a_wrong_file_is_one_message(tmp_path, name, text, match):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        _sweeping.parse_axes(Sweep(**_sweeping.fields_of_file(path, Sweep)))
    assert re.search(match, str(caught.value)) or match in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_file_is_exit_code_2_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text("epoch = 3")
    assert sweep("--config", "a.toml", "--seeds", "2") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: --config a.toml: unknown key 'epoch'. Did you mean 'epochs'?\n")
    assert not (tmp_path / "runs").exists()


FN = ["--fn", "swept:descent"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "nothing to sweep"),
        (["--axis", "h"], "--axis h needs values"),
        ([*FN, "--axis", "h", "1", "--axis", "h", "2"], "--axis h is given twice"),
        ([*FN, "--axis", "h", "1", "nan"], "`h` must be a finite decimal number"),
        ([*FN, "--axis", "h", "1_000"], "`h` must be a finite decimal number"),
        ([*FN, "--axis", "h", "1e999"], "`h` must be a finite decimal number"),
        ([*FN, "--axis", "h", "٣"], "`h` must be a finite decimal number"),
        ([*FN, "--axis", "h", ""], "`h` must be a finite decimal number"),
        ([*FN, "--axis", "h", "1", "1"], "the same settings twice"),
        ([*FN, "--axis", "seed", "1", "2"], "use --seeds K"),
        ([*FN, "--axis", "h", "1", "--static", "g"], "--static g: there is no such axis; there are h"),
        ([*FN, "--axis", "h", "1", "--epochs", "3"], "--epochs is a setting of a training; --fn has none"),
        ([*FN, "--axis", "h", "1", "--width", "0"], "`width`"),
        ([*FN, "--axis", "h", "1", "--chunk", "3"], "`chunk` must be a multiple of width"),
        ([*FN, "--axis", "h", "1", "--devices", "99"], "must be at most the 8"),
        ([*FN, "--axis", "h", "1", "--seed", "-1"], "`seed`"),
        ([*FN, "--axis", "g", "1"], "--fn swept:descent raised TypeError"),
        (["--fn", "swept:wrong", "--axis", "h", "1"], "--fn swept:wrong raised ZeroDivisionError: no such luck"),
        (["--fn", "swept:nothing", "--axis", "h", "1"], "'nothing'"),
        (["--fn", "swept", "--axis", "h", "1"], "module:attribute"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--axis", "learning_rate", "0.1", "-1"], "`learning_rate`"),
        (["--axis", "lerning_rate", "0.1"], "Did you mean 'learning_rate'"),
        (["--axis", "level", "0.1"], "unknown axis 'level'"),
        (["--axis", "dtype", "float32"], "unknown axis 'dtype'"),
        (["--axis", "widths", "64,x"], "joined by commas"),
        (["--axis", "method", "gd", "smm"], "unknown method 'smm'"),
        (["--axis", "batch_size", "0.5"], "--axis batch_size: wanted integers"),
        (["--static", "learning_rate", "--seeds", "2"], "--static is for --fn"),
        (["--seeds", "2", "--resume"], "--resume needs --out"),
        (["--seeds", "2", "--export", "runs.csv"], ".jsonl or .npz"),
        (["--seeds", "2", "--process-id", "0"], "belong together"),
        (["--seeds", "2", "--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"], "need --out"),
        (
            ["--seeds", "2", "--distributed", "--coordinator", "h:1", "--num-processes", "2", "--process-id", "0"],
            "give one of them",
        ),
        (["--seeds", "x"], "not an integer"),
        (["--axes", "h", "1"], "nrecognized"),
    ],
)
def test_mistakes_are_one_message_before_any_work(tmp_path, monkeypatch, capsys, arguments, match):
    monkeypatch.chdir(tmp_path)
    assert sweep(*arguments) == 2
    out, err = capsys.readouterr()
    assert match in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in out + err
    assert not list(tmp_path.rglob("run.json"))


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert sweep(*GRID, "--out", tmp_path, "--resume") == 2
    assert "holds 'thesis.tex'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_an_axis_the_seeds_are_swept(tmp_path):
    assert sweep("--fn", "swept:lonely", "--seeds", "3", "--width", "2", "--out", tmp_path, "--quiet") == 0
    assert load_sweep(tmp_path)["value"].tolist() == [1.0] * 3
