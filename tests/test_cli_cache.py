"""Compiled programs that are kept for the next run: where, for whom, and what happens where they cannot be."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from implicit_reg import cli
from implicit_reg.cli import _cache, _common
from implicit_reg.cli.doctor import Doctor
from implicit_reg.cli.verify import Verify

VERIFY = ["verify", "--only", "gd", "--problem", "nonquadratic", "--step-sizes", "0.025", "0.0125", "--time", "0.25"]


def command(tmp_path, *flags, out, **environment):
    """The check of one prediction in a process of its own, with a home of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_ENABLE_COMP")}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "caches"), "LOCALAPPDATA": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-m", "implicit_reg", *VERIFY, "--json", "--out", str(tmp_path / out), *flags],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=kept | home | environment,
        check=False,
    )


def results(done):
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["checks"]
    for check in found:
        del check["wall_seconds"]
    return found


def entries(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*-cache")}


@pytest.mark.x64
@pytest.mark.skipif(sys.platform != "linux", reason="the folder is XDG's")
def test_the_second_run_takes_what_the_first_kept_and_finds_the_same(tmp_path):
    first = results(command(tmp_path, out="first"))
    folder = tmp_path / "caches" / "implicit_reg"
    kept = entries(folder)
    assert kept
    assert len({path.parts[0] for path in kept}) == 1  # one machine
    assert folder.stat().st_mode & 0o077 == 0

    damaged = max(kept, key=lambda path: len(kept[path]))
    (folder / damaged).write_bytes(kept[damaged][: len(kept[damaged]) // 2])
    done = command(tmp_path, out="second")
    assert results(done) == first
    assert done.stderr == ""
    assert set(entries(folder)) == set(kept)  # nothing was compiled that had been kept, but for the damaged one


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.setattr(_cache, "default_folder", lambda: tmp_path / "mine")
    return {"OTHER": "1"}


def test_the_folder_is_named_after_the_machine_and_the_threads(environment, tmp_path, monkeypatch):
    assert _cache.keep_programs(None, environment) is None
    place = pathlib.Path(environment["JAX_COMPILATION_CACHE_DIR"])
    assert place == tmp_path / "mine" / _cache.machine_key()
    assert place.is_dir()
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    monkeypatch.setenv("NPROC", "77")
    assert _cache.machine_key() != place.name

    named = {}
    assert _cache.keep_programs(tmp_path / "named", named) is None
    assert named["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "named" / _cache.machine_key())


@pytest.mark.parametrize("own", [{"JAX_COMPILATION_CACHE_DIR": "/of/the/user"}, {"JAX_ENABLE_COMPILATION_CACHE": "0"}])
def test_what_the_environment_says_holds(environment, tmp_path, own):
    assert _cache.keep_programs(None, environment | own) is None
    changed = dict(own)
    _cache.keep_programs(None, changed)
    assert changed == own
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_had_is_done_without(environment, tmp_path):
    (tmp_path / "mine").write_text("a file")
    assert _cache.keep_programs(None, environment) is None
    assert environment == {"OTHER": "1"}
    assert "cannot be written" in _cache.keep_programs(tmp_path / "mine", environment)
    assert environment == {"OTHER": "1"}


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners")
def test_a_folder_that_others_write_to_is_not_trusted_unless_named(environment, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o777)
    assert _cache.keep_programs(None, environment) is None
    assert environment == {"OTHER": "1"}
    assert _cache.keep_programs(tmp_path / "mine", environment) is None
    assert "JAX_COMPILATION_CACHE_DIR" in environment


def test_the_oldest_entries_go(environment, tmp_path, monkeypatch):
    place = tmp_path / "mine" / "machine"
    place.mkdir(parents=True)
    (tmp_path / "mine").chmod(0o700)
    for k in range(6):
        (place / f"{k}-cache").write_bytes(bytes(100))
        os.utime(place / f"{k}-cache", (k, k))
    monkeypatch.setattr(_cache, "LIMIT", 600)
    _cache.keep_programs(None, dict(environment))
    assert len(entries(place)) == 6
    monkeypatch.setattr(_cache, "LIMIT", 599)
    _cache.keep_programs(None, dict(environment))
    assert {path.name for path in entries(place)} == {"4-cache", "5-cache"}


def test_flags_that_exclude_each_other(capsys):
    assert cli.run(["verify", "--list", "--cache", "x", "--no-cache"]) == _common.EXIT_USAGE
    assert "exclude each other" in capsys.readouterr().err


def test_who_compares_compilations_keeps_none(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    for options, expected in ((Doctor(), "0"), (Verify(no_cache=True), "0"), (Verify(), None)):
        monkeypatch.delenv("JAX_ENABLE_COMPILATION_CACHE", raising=False)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/of/the/user")
        _common.set_environment(options)
        assert os.environ.get("JAX_ENABLE_COMPILATION_CACHE") == expected
