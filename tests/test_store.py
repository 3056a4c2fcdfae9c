"""The folder of a sweep: every damage is named, kept aside and pending again; one writer, any readers."""

import errno
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zipfile

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from implicit_reg import _files
from implicit_reg._checks import ConfigMismatchError, CorruptResultError, EnvironmentMismatchError, LockedError
from implicit_reg.experiments import chunks, manifests, store
from implicit_reg.experiments.store import Store, load

CONFIG = {"h": [0.1, 0.2], "steps": 3, "inner": {"a": 1, "b": "x"}}
MACHINE = {"jax": "0.10.2", "threads": "2", "commit": "abc"}


def outputs(rows, seed=0):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(100, 3)).astype(np.float32)
    return {"loss": table[list(rows)], "count": np.asarray(rows, np.int32)}


def fill(folder, blocks=(0, 1, 2), resume=False):
    with Store(folder, CONFIG, MACHINE, resume=resume) as opened:
        for block in blocks:
            rows = [2 * block, 2 * block + 1]
            opened.write(block, rows, ["ok", "diverged"], outputs(rows), seconds=1.5)
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "run")


def files_of(folder):
    """What decides anything: names and bytes, without the lock."""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir() if path.name != ".lock"}


def resumed(folder, **more):
    return Store(folder, CONFIG, MACHINE, resume=True, **more)


def names(folder, pattern):
    return sorted(path.name for path in pathlib.Path(folder).glob(pattern))


def test_what_was_written_comes_back_in_row_order(tmp_path):
    with Store(tmp_path, CONFIG, MACHINE, resume=False) as opened:
        opened.write(7, [9, 4], ["ok", "diverged"], outputs([9, 4]), 1.0)
        opened.write(2, [1, 30], ["ok", "ok"], outputs([1, 30]), 0.25)
        assert opened.rows_done() == {1, 4, 9, 30}
        rows, status, leaves, seconds = opened.read()
    assert rows == [1, 4, 9, 30]
    assert status == ["ok", "diverged", "ok", "ok"]
    np.testing.assert_array_equal(leaves["loss"], outputs(rows)["loss"])
    assert leaves["count"].dtype == np.int32
    assert leaves["count"].tolist() == rows
    assert seconds == 1.25
    assert load(tmp_path)[:2] == (CONFIG, MACHINE)
    assert names(tmp_path, "*") == [".lock", "chunk-000002.irs", "chunk-000007.irs", "run.json", "times.jsonl"]


def test_equal_numbers_are_equal_files(tmp_path):
    a, b = (fill(tmp_path / name) for name in "ab")
    with resumed(b) as opened:  # later, by a process that read the others first
        opened.rows_done()
        opened.write(1, [2, 3], ["ok", "diverged"], outputs([2, 3]), seconds=99.0)
    for name in names(a, "chunk-*"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_a_folder_without_chunks_is_read(tmp_path):
    Store(tmp_path, CONFIG, MACHINE, resume=False).close()
    assert load(tmp_path)[2:] == ([], [], {}, 0.0)


def truncated(data):
    return data[: len(data) // 2]


def flipped(at):
    def flip(data):
        data = bytearray(data)
        data[int(at * (len(data) - 1))] ^= 4
        return bytes(data)

    return flip


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncated, "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"x", "truncated"),
        (lambda data: b"\0" * len(data), "not a file of this library"),
        (lambda data: data[100:], "checksum"),
        (flipped(0.0), "checksum"),
        (flipped(0.5), "checksum"),
        (flipped(1.0), "not a file of this library"),
    ],
)
def test_damage_is_named_kept_aside_and_pending(folder, damage, match):
    path = folder / "chunk-000001.irs"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(CorruptResultError, match=rf"chunk-000001\.irs: .*{match}"):
        load(folder)
    with resumed(folder) as opened:
        with pytest.warns(UserWarning, match=rf"chunk-000001\.irs: .*{match}.*kept as chunk-000001\.irs\.corrupt-"):
            assert opened.rows_done() == {0, 1, 4, 5}
        opened.write(1, [2, 3], ["ok", "diverged"], outputs([2, 3]), 1.0)
        assert opened.rows_done() == set(range(6))
    assert path.read_bytes() == whole
    (aside,) = folder.glob("*.corrupt-*")
    assert aside.read_bytes() == damage(whole)
    assert load(folder).rows == list(range(6))


def test_every_flipped_bit_is_seen():
    data = chunks.encode(chunks.Chunk(0, "c", "e", (0,), ("ok",), {"x": np.ones((1, 1), np.float32)}))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        with pytest.raises(CorruptResultError):
            chunks.decode(bytes(damaged))


def test_files_of_other_sweeps_and_under_other_names(folder, tmp_path):
    with Store(tmp_path / "other", CONFIG | {"steps": 4}, MACHINE, resume=False) as other:
        other.write(1, [2, 3], ["ok", "ok"], outputs([2, 3]), 1.0)
    with Store(tmp_path / "elsewhere", CONFIG, MACHINE | {"jax": "0.9"}, resume=False) as elsewhere:
        elsewhere.write(2, [4, 5], ["ok", "ok"], outputs([4, 5]), 1.0)
    shutil.copy(tmp_path / "other" / "chunk-000001.irs", folder)
    shutil.copy(tmp_path / "elsewhere" / "chunk-000002.irs", folder)
    shutil.copy(folder / "chunk-000000.irs", folder / "chunk-000003.irs")
    with resumed(folder) as opened, pytest.warns(UserWarning, match="kept as") as caught:
        assert opened.rows_done() == {0, 1}
    said = sorted(str(warning.message).partition("; kept")[0] for warning in caught)
    assert said == [
        "chunk-000001.irs: of another sweep",
        "chunk-000002.irs: of another sweep",
        "chunk-000003.irs: holds what chunk-000000.irs should",
    ]


def resealed(payload):
    """A well-formed file of somebody hostile: the checksum is right."""
    import hashlib

    return payload + struct.pack("<32sQ8s", hashlib.sha256(payload).digest(), len(payload), chunks.MAGIC)


def zipped(members, **how):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return resealed(buffer.getvalue())


def npy(array=None, header=None):
    buffer = io.BytesIO()
    if header is None:
        np.lib.format.write_array(buffer, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def header(**changes):
    text = {"version": 1, "index": 0, "config": "c", "environment": "e", "rows": [0], "status": ["ok"]}
    text |= {"arrays": [["x", "float64", [1]]]} | changes
    return ("m.npy", npy(np.frombuffer(json.dumps(text).encode(), np.uint8)))


X = ("a0.npy", npy(np.ones(1)))
HUGE = ("a0.npy", npy(header={"descr": "<f8", "fortran_order": False, "shape": (10**13,)}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK" * 50,
        resealed(b"no zip"),
        resealed(b""),
        zipped([X, header()], compression=zipfile.ZIP_DEFLATED),
        zipped([header(), X, X]),
        zipped([header(), ("../a0.npy", X[1])]),
        zipped([header(), X, ("b.npy", X[1])]),
        zipped([header(), HUGE]),
        zipped([header(), ("a0.npy", npy(np.array([{"a": 1}], object)))]),
        zipped([header(), ("a0.npy", npy(np.array(["x"])))]),
        zipped([header(), ("a0.npy", b"\x80\x04K\x01.")]),
        zipped([header()]),
        zipped([X]),
        zipped([header(arrays=[]), X]),
        zipped([header(arrays=[["x", "float32", [1]]]), X]),
        zipped([header(arrays=[["x", "float64", [2]]]), X]),
        zipped([header(arrays=[["x", "bfloat16", [1]]]), X]),
        zipped([header(rows=[0, 1], status=["ok", "ok"]), X]),
        zipped([header(rows=[-1]), X]),
        zipped([header(rows=[True]), X]),
        zipped([header(rows=[]), X]),
        zipped([header(status=[]), X]),
        zipped([header(status=[3]), X]),
        zipped([header(version=2), X]),
        zipped([header(index="0"), X]),
        zipped([("m.npy", npy(np.frombuffer(b"[" * 100_000, np.uint8))), X]),
        zipped([("m.npy", npy(np.frombuffer(b"[]", np.uint8))), X]),
    ],
)
def test_hostile_files_end_in_one_error(data):
    with pytest.raises(CorruptResultError):
        chunks.decode(data)


def test_no_array_is_made_before_its_claim_is_judged(monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError("an array was made")

    monkeypatch.setattr(np, "load", refuse)
    for array in (HUGE, ("a0.npy", npy(np.array([{"a": 1}], object))), ("a0.npy", npy(np.array(["x"])))):
        with pytest.raises(CorruptResultError, match=r"a0\.npy is not what it claims to be"):
            chunks.decode(zipped([header(), array]))


def test_the_hostile_files_differ_from_ours_by_their_malice():
    assert chunks.decode(zipped([header(), X])).outputs["x"].tolist() == [1.0]


LEAVES = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.uint8, np.bool_, np.complex64, jnp.bfloat16]),
    st.sampled_from([(2,), (2, 3), (2, 0), (2, 1, 2)]),
    elements={"allow_subnormal": False} and st.just(1),
)


@hypothesis.given(
    st.dictionaries(st.text(max_size=20) | st.sampled_from(["file", "allow_pickle", "m", "a0", "../x"]), LEAVES),
    st.randoms(use_true_random=False),
)
def test_any_names_and_any_bits_come_back(leaves, random):
    leaves = {
        name: np.frombuffer(random.randbytes(array.nbytes), np.uint8).view(array.dtype).reshape(array.shape)
        if array.dtype != bool and array.size
        else array
        for name, array in leaves.items()
    }
    got = chunks.decode(chunks.encode(chunks.Chunk(3, "c", "e", (5, 2), ("ok", "diverged"), leaves)))
    assert (got.index, got.rows, got.status) == (3, (5, 2), ("ok", "diverged"))
    assert list(got.outputs) == list(leaves)
    for name, array in leaves.items():
        assert got.outputs[name].dtype == array.dtype
        assert got.outputs[name].shape == array.shape
        assert got.outputs[name].tobytes() == array.tobytes()  # nan with its payload, -0.0


def test_bfloat16_survives_the_folder(tmp_path):
    values = np.array([[1.5], [float("nan")]], jnp.bfloat16)
    with Store(tmp_path, {}, {}, resume=False) as opened:
        opened.write(0, [0, 1], ["ok", "diverged"], {"x": values}, 0.0)
    got = load(tmp_path).outputs["x"]
    assert got.dtype == jnp.bfloat16
    assert got.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"rows": [0]}, ValueError, "one status for each"),
        ({"rows": [0, 0]}, ValueError, "distinct rows"),
        ({"rows": [0, -1]}, ValueError, "distinct rows"),
        ({"rows": [], "status": []}, ValueError, "distinct rows"),
        ({"outputs": {"x": np.ones(3)}}, ValueError, r"output 'x' must have 2 rows, got shape \(3,\)"),
        ({"outputs": {"x": np.ones(())}}, ValueError, r"must have 2 rows, got shape \(\)"),
        ({"outputs": {"x": np.array(["a", "b"])}}, TypeError, "must hold numbers or booleans"),
        ({"outputs": {"x": np.array([None, {}])}}, TypeError, "must hold numbers or booleans"),
        ({"outputs": {str(k): np.ones(2) for k in range(1000)}}, ValueError, "at most 999 arrays, got 1000"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_a_file_is_there(tmp_path, change, error, match):
    call = {"rows": [0, 1], "status": ["ok", "ok"], "outputs": {"x": np.ones(2)}} | change
    with Store(tmp_path, CONFIG, MACHINE, resume=False) as opened:
        with pytest.raises(error, match=match):
            opened.write(0, seconds=0.0, **call)
        assert opened.rows_done() == set()
    assert names(tmp_path, "*chunk*") == []


def test_the_same_rows_written_twice_without_a_lock_count_once(folder):
    with resumed(folder) as opened:
        opened.write(9, [3, 40], ["diverged", "ok"], outputs([3, 40]), 1.0)
    rows, status, leaves, _ = load(folder)[2:]
    assert rows == [0, 1, 2, 3, 4, 5, 40]
    assert status[3] == "diverged"
    np.testing.assert_array_equal(leaves["loss"], outputs(rows)["loss"])


def test_chunks_of_other_shapes_do_not_mix(folder):
    with resumed(folder) as opened:
        opened.write(8, [50], ["ok"], {"loss": np.ones((1, 4), np.float32), "count": np.ones(1, np.int32)}, 1.0)
        with pytest.raises(CorruptResultError, match=r"chunk-000008\.irs has other outputs"):
            opened.read()


def test_an_old_folder_needs_resume(folder):
    before = files_of(folder)
    with pytest.raises(ValueError, match=r"holds a sweep; go on with it by resume=True \(--resume\)"):
        Store(folder, CONFIG, MACHINE, resume=False)
    assert files_of(folder) == before
    resumed(folder).close()  # the refusal gave the lock back


def test_resume_begins_where_nothing_is_yet(tmp_path):
    fill(tmp_path / "a" / "b", resume=True)
    assert load(tmp_path / "a" / "b").rows == list(range(6))


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"must be new or empty, but .* holds 'thesis.tex'"):
            Store(tmp_path, CONFIG, MACHINE, resume=resume)
    assert names(tmp_path, "*") == ["thesis.tex"]


def test_another_configuration_is_refused_with_the_difference(folder):
    before = files_of(folder)
    other = {"h": [0.1, 0.2], "steps": 3.0, "inner": {"a": 1, "c": [0] * 100}}
    with pytest.raises(ConfigMismatchError) as caught:
        Store(folder, other, MACHINE, resume=True)
    lines = str(caught.value).splitlines()[1:]
    assert lines[:2] == ["  steps: 3 then, 3.0 now", '  inner.b: "x" then, absent now']
    assert lines[2].startswith("  inner.c: absent then, [0, 0")
    assert lines[2].endswith("... (300 characters) now")
    assert files_of(folder) == before


def test_another_environment_is_refused_or_marked(folder):
    before = files_of(folder)
    newer = MACHINE | {"jax": "0.11", "commit": "def"}
    with pytest.raises(EnvironmentMismatchError) as caught:
        Store(folder, CONFIG, newer, resume=True)
    assert str(caught.value).splitlines()[1:] == ['  jax: "0.10.2" then, "0.11" now']
    assert files_of(folder) == before
    with Store(folder, CONFIG, newer, resume=True, allow_mixed=True) as opened:
        opened.write(3, [6], ["ok"], outputs([6]), 1.0)
        assert opened.rows_done() == set(range(7))
    mixed = load(folder)
    assert mixed.environment == MACHINE | {"mixed_with": [newer]}
    assert mixed.rows == list(range(7))
    marks = [chunks.decode((folder / f"chunk-00000{k}.irs").read_bytes()).environment for k in (2, 3)]
    assert marks == [manifests.digest(manifests.deciding(machine)) for machine in (MACHINE, newer)]
    with Store(folder, CONFIG, newer, resume=True, allow_mixed=True):  # once is enough
        assert json.loads((folder / "run.json").read_text())["mixed_with"] == [newer]


def test_the_commit_decides_nothing(folder):
    with Store(folder, CONFIG, MACHINE | {"commit": "def", "python": "3.99"}, resume=True) as opened:
        assert opened.rows_done() == set(range(6))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text[:40], "truncated or damaged"),
        (lambda text: "", "truncated or damaged"),
        (lambda text: "[" * 100_000, "truncated or damaged"),
        (lambda text: "[]", "truncated or damaged"),
        (lambda text: text.replace('"steps": 3', '"steps": 4'), "checksum does not match"),
        (lambda text: text.replace("implicit_reg.sweep", "implicit_reg.train"), "not of a sweep"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "newer version"),
        (lambda text: text.replace('"mixed_with": []', '"mixed_with": [1]'), "checksum does not match"),
    ],
)
def test_a_broken_manifest_changes_nothing(folder, change, match):
    path = folder / "run.json"
    path.write_text(change(path.read_text()))
    before = files_of(folder)
    for call in (lambda: resumed(folder), lambda: load(folder)):
        with pytest.raises(CorruptResultError, match=match):
            call()
    assert files_of(folder) == before


def test_what_json_cannot_hold_is_no_configuration(tmp_path):
    for config in ({"h": float("nan")}, {"h": float("inf")}, {"h": object()}):
        with pytest.raises((ValueError, TypeError)):
            Store(tmp_path, config, MACHINE, resume=False)
    assert names(tmp_path, "*") == []


def test_nothing_is_written_or_read_through_links(folder, tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("precious")
    for name in ("chunk-000001.irs", "chunk-000004.irs"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside)
    with resumed(folder) as opened:
        with pytest.warns(UserWarning, match="symbolic links"):
            assert opened.rows_done() == {0, 1, 4, 5}
        (folder / "chunk-000007.irs").symlink_to(outside)
        opened.write(7, [14, 15], ["ok", "ok"], outputs([14, 15]), 1.0)
        assert not (folder / "chunk-000007.irs").is_symlink()
        (folder / "times.jsonl").unlink()
        (folder / "times.jsonl").symlink_to(outside)
        with pytest.raises(OSError, match="symbolic links"):
            opened.write(8, [16], ["ok"], outputs([16]), 1.0)
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        resumed(folder)
    (folder / ".lock").unlink()
    shutil.copy(folder / "run.json", tmp_path)
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to(tmp_path / "run.json")
    for call in (lambda: resumed(folder), lambda: load(folder)):
        with pytest.raises(CorruptResultError, match=r"run\.json is truncated or damaged"):
            call()
    assert outside.read_text() == "precious"


def test_a_pipe_or_a_folder_in_place_of_a_chunk_does_not_hang(folder):
    (folder / "chunk-000001.irs").unlink()
    os.mkfifo(folder / "chunk-000001.irs")
    (folder / "chunk-000002.irs").unlink()
    (folder / "chunk-000002.irs").mkdir()
    with resumed(folder) as opened, pytest.warns(UserWarning, match="kept as") as caught:
        assert opened.rows_done() == {0, 1}
    assert len(caught) == 2


@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_loses_the_chunk_in_hand_alone(folder, monkeypatch, name, number):
    before = files_of(folder)

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    with resumed(folder) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(_files.os, name, refuse)
            with pytest.raises(OSError, match=os.strerror(number)):
                opened.write(3, [6], ["ok"], outputs([6]), 1.0)
        assert files_of(folder) == before
        opened.write(3, [6], ["ok"], outputs([6]), 1.0)
        assert opened.rows_done() == set(range(7))


def test_a_full_disk_leaves_no_half_manifest(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            fill(tmp_path)
    assert names(tmp_path, "*") == [".lock"]
    fill(tmp_path)  # nothing stands in the way


def test_a_limit_on_file_sizes(folder):
    """The kernel's own refusal in the middle of a file, as a quota gives it."""
    before, limits = files_of(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with resumed(folder) as opened:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
            try:
                with pytest.raises(OSError, match="too large"):
                    opened.write(3, [6], ["ok"], {"loss": np.ones((1, 9000))}, 1.0)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert files_of(folder) == before


def test_a_folder_that_disappears(folder):
    with resumed(folder) as opened:
        shutil.rmtree(folder)
        with pytest.raises(FileNotFoundError):
            opened.write(3, [6], ["ok"], outputs([6]), 1.0)


def test_leftovers_of_the_dead_go_and_those_of_others_stay(folder):
    finished = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, other = int(finished.stdout), f"{_files.HOST}-2"
    gone = [f".chunk-000007.{_files.HOST}.{dead}.0a1b2c3d.tmp", f".run.{_files.HOST}.{os.getpid()}.0a1b2c3d.tmp"]
    kept = [
        f".chunk-000007.{_files.HOST}.{os.getppid()}.0a1b2c3d.tmp",  # alive
        f".chunk-000007.{other}.{dead}.0a1b2c3d.tmp",
        f".chunk-000007.{_files.HOST}.{dead}.tmp",  # not ours
        "notes.tmp",
    ]
    for name in (*gone, *kept):
        (folder / name).write_text("half")
    with resumed(folder) as opened:
        assert opened.rows_done() == set(range(6))
    left = {path.name for path in folder.iterdir()}
    assert not left & set(gone)
    assert set(kept) <= left


def test_clocks_and_times_decide_nothing(folder):
    for path in folder.iterdir():
        os.utime(path, (4e9, 4e9))
    with resumed(folder) as opened:
        assert opened.rows_done() == set(range(6))
    (folder / "times.jsonl").write_text('{"chunk": 0, "seconds": 2}\n{"chu\n[]\n{"chunk": 99, "seconds": 1}\nnull')
    assert load(folder).seconds == 2.0
    (folder / "times.jsonl").unlink()
    assert load(folder).seconds == 0.0


def test_the_second_process_is_told_who_holds_the_folder(folder):
    code = f"""
import sys
from implicit_reg._files import lock
with lock({str(folder)!r}):
    print("locked", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    before = files_of(folder)
    with pytest.raises(LockedError, match=rf"in use by another process \(pid {holder.pid} on {_files.HOST}\)"):
        resumed(folder)
    assert files_of(folder) == before
    assert load(folder).rows == list(range(6))  # readers take no lock
    holder.kill()
    holder.communicate()
    resumed(folder).close()
    assert socket.gethostname() not in (folder / "run.json").read_text()


def test_two_stores_in_one_process_exclude_each_other(folder):
    with resumed(folder), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        resumed(folder)


def test_a_file_system_without_locks_is_said_and_used(folder, monkeypatch):
    import fcntl

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), resumed(folder) as opened:
        assert opened.rows_done() == set(range(6))


def test_three_writers_without_a_working_lock(tmp_path, monkeypatch):
    """Whole files by rename, and the same bytes from all: any interleaving ends in one result."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *arguments: None)
    alone = fill(tmp_path / "alone", blocks=range(8))
    shared, problems = tmp_path / "shared", []
    fill(shared, blocks=())

    def work(opened):
        try:
            for block in range(8):
                rows = [2 * block, 2 * block + 1]
                opened.write(block, rows, ["ok", "diverged"], outputs(rows), seconds=1.5)
        except Exception as error:
            problems.append(error)

    writers = [threading.Thread(target=work, args=(resumed(shared),)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert problems == []
    for name in names(alone, "chunk-*"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes()
    assert load(shared).rows == list(range(16))


def test_a_reader_during_writing_sees_whole_chunks_and_their_number_grows(tmp_path):
    blocks, seen = 60, []
    with Store(tmp_path, CONFIG, MACHINE, resume=False) as opened:

        def write():
            for block in range(blocks):
                rows = [2 * block, 2 * block + 1]
                opened.write(block, rows, ["ok", "ok"], outputs([0, 1]), 0.01)

        writer = threading.Thread(target=write)
        writer.start()
        while writer.is_alive():
            seen.append(len(load(tmp_path).rows))
        writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert all(count % 2 == 0 for count in seen)
    assert len(load(tmp_path).rows) == 2 * blocks


def test_a_reader_survives_a_chunk_that_is_put_aside_under_it(folder, monkeypatch):
    read = _files.read_whole

    def vanishing(path):
        if path.name == "chunk-000001.irs":
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(store._files, "read_whole", vanishing)
    assert load(folder).rows == [0, 1, 4, 5]
