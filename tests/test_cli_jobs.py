"""`verify --jobs`: the same numbers from several processes, and what is said when one of them fails or ends."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from implicit_reg import cli, predictions
from implicit_reg.cli import _workers, verify

ROOT = pathlib.Path(__file__).parents[1]
ROWS = ["gd", "alternating"]
CHEAP = ["--problem", "nonquadratic", "--step-sizes", "0.025", "0.0125", "--time", "0.25"]

SERVED = """
import os, sys, time
from implicit_reg.cli import _workers

def prepare(settings):
    def run(name, report):
        report(f"{name} begins")
        print("printed by a module")
        if name == "raise":
            raise ZeroDivisionError("a bug")
        if name == "full":
            raise OSError(28, "No space left on device")
        if name.startswith("signal"):
            os.kill(os.getpid(), int(name.split()[1]))
        if name == "leave":
            os._exit(5)
        if name == "sleep":
            time.sleep(100)
        return {"name": name, "pid": os.getpid(), "path": sys.path, "third": 1 / 3} | settings
    return run

_workers.serve(prepare)
"""


def silent(_):
    pass


@pytest.fixture
def worker():
    found = _workers.Worker(SERVED, {"seed": 3, "text": "two\nlines"})
    yield found
    found.close()


def finish(*arguments, **environment):
    """`verify` on two rows in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "implicit_reg", "verify", "--only", *ROWS, *CHEAP, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=200,
    )


def alive(pid):
    """Whether it runs; who has ended and is not yet asked for does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(words[1]) == pid:
            found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.x64
def test_numbers_and_order_do_not_depend_on_the_processes(tmp_path):
    """The warm run of one process finds what the cold run of two kept, and compiles nothing anew."""
    found, entries = [], []
    for jobs in (2, 1):  # what the worker kept serves the one process after it
        flags = ["--jobs", jobs, "--json", "--cache", tmp_path / "cache", "--out", tmp_path / str(jobs)]
        done = finish(*flags, JAX_ENABLE_COMPILATION_CACHE="1")
        assert (done.returncode, done.stderr) == (0, "")
        answer = json.loads(done.stdout)
        assert [check["name"] for check in answer["checks"]] == ROWS
        for check in answer["checks"]:
            del check["wall_seconds"]
        del answer["wall_seconds"], answer["folder"], answer["environment"]["time"]
        found.append(answer)
        entries.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
    assert found[0] == found[1]  # all bits: JSON holds every number in full
    assert entries[0]
    assert entries[0] == entries[1]
    assert "jobs" not in found[0]["config"]


def test_a_worker_answers_by_name_and_reports(worker):
    said = []
    first, second = (worker.run(name, said.append) for name in ("a", "b"))
    assert said == ["a begins", "b begins"]
    assert first == {"name": "a", "pid": second["pid"], "path": sys.path, "third": 1 / 3} | {
        "seed": 3,
        "text": "two\nlines",
    }
    assert first["pid"] != os.getpid()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signals")
@pytest.mark.parametrize(
    ("task", "code", "message"),
    [
        ("raise", 70, "internal error: ZeroDivisionError: a bug (--debug shows the traceback)"),
        ("full", 74, "error: No space left on device"),
        ("leave", 70, "internal error: the process at work on leave ended with exit code 5"),
        ("signal 9", 75, "error: the process at work on signal 9 was killed, as a system out of memory does; --jobs 1"),
        ("signal 11", 70, "internal error: the process at work on signal 11 ended with signal 11"),
        ("signal 15", 143, "terminated"),
    ],
)
def test_a_failure_is_told_as_in_one_process(worker, task, code, message):
    with pytest.raises(_workers.WorkerError) as caught:
        worker.run(task, silent)
    assert caught.value.code == code
    assert str(caught.value).startswith(message)
    assert ("ZeroDivisionError" in caught.value.trace) == (task == "raise")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_ends_with_its_parent_however_that_ends(tmp_path):
    code = f"""
from implicit_reg.cli import _workers
worker = _workers.Worker({SERVED!r}, {{}})
say = lambda what: print(what, flush=True)
say(worker.run("a", say)["pid"])
worker.run("sleep", say)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout.readline() == "a begins\n"
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "sleep begins\n"  # it writes nothing more, which would end it too
        assert alive(pid)
        parent.kill()
    wait_for(lambda: not alive(pid), seconds=30)


def test_longest_first_results_in_order_and_nothing_after_a_failure():
    began, both = [], threading.Barrier(2, timeout=60)

    def seat(name, report):
        began.append(name)
        if name in ("c", "d"):
            both.wait()
        if name == "bad":
            raise ZeroDivisionError
        return name.upper()

    assert _workers.run_all(list("abcd"), ("d", "c", "absent"), [seat, seat], silent) == list("ABCD")
    assert set(began[:2]) == {"c", "d"}  # the barrier: on both seats at once
    began.clear()
    with pytest.raises(ZeroDivisionError):
        _workers.run_all(["a", "bad", "b"], ("bad",), [seat], silent)
    assert began == ["bad"]


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(_workers, "default_number", lambda: 2)
    count = lambda **flags: verify.Verify(**flags)._num_processes()  # noqa: E731
    assert count() == 1  # JAX has been imported here
    monkeypatch.delitem(sys.modules, "jax")
    assert (count(), count(only=("gd",)), count(jobs=1), count(jobs=3)) == (2, 1, 1, 3)
    assert (count(method="a:b", jobs=4), count(only=("gd", "sam"), jobs=4)) == (1, 2)
    assert set(verify.LONGEST) <= set(predictions.ROWS)


def test_no_process_is_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["verify", "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "error: --jobs must be at least 1, got 0\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("number", "flags", "code", "word"),
    [(signal.SIGINT, [], 130, "interrupted"), (signal.SIGKILL, CHEAP, 75, "error: the process at work on ")],
)
def test_signals_end_all_processes(number, flags, code, word, tmp_path):
    """An interrupt goes to all of them, as from a terminal; SIGKILL to the worker alone, as where memory ends."""
    command = [sys.executable, "-m", "implicit_reg", "verify", "--only", *ROWS, *flags, "--jobs", "2", "--out"]
    parent = subprocess.Popen(
        [*command, str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    wait_for((tmp_path / "run" / "config.json").exists)
    (worker,) = children(parent.pid)
    if number == signal.SIGKILL:
        os.kill(worker, number)
    else:
        os.killpg(parent.pid, number)
    _, err = parent.communicate(timeout=200)
    assert parent.returncode == code, err
    assert err.splitlines()[-1].startswith(word)
    assert "Traceback" not in err
    wait_for(lambda: not alive(worker))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
