"""Checkpoints: nothing is cast, nothing is lost, every damage is seen, and what was there survives a failure."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reg._checks import ConfigMismatchError, CorruptResultError
from implicit_reg.training import Run, Settings, checkpoints, fit


def a_tree():
    return {
        "x": jnp.linspace(0.0, 1.0, 7) / 3,
        "half": jnp.array([1.5, -0.1], jnp.bfloat16),
        "count": jnp.int32(16777217),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 2),
        "none": None,
        "empty": jnp.zeros((0, 3)),
        "flag": jnp.array(True),
        "state": optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(1)), optax.adam(0.1)).init(jnp.ones(2)),
    }


def bits(tree):
    return [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()
            for x in jax.tree.leaves(tree)]  # fmt: skip


def test_everything_comes_back_bit_for_bit(tmp_path):
    tree = a_tree()
    checkpoints.save(tmp_path, 3, tree, {"history": [0.1 + 0.2, None]})
    blank = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.zeros_like(x), tree)
    loaded, meta = checkpoints.load(tmp_path, blank | {"key": jax.random.key(0)})
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    assert [leaf.dtype for leaf in jax.tree.leaves(loaded)] == [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert bits(loaded) == bits(tree)
    assert meta == {"history": [0.1 + 0.2, None]} == checkpoints.read_meta(tmp_path)


def test_the_newest_is_kept_and_leftovers_go(tmp_path):
    (tmp_path / ".tmp-killed").mkdir()
    for epoch in (9, 10, 10):
        checkpoints.save(tmp_path, epoch, {"x": jnp.float32(epoch)}, {"epoch": epoch})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-000010"]
    tree, meta = checkpoints.load(tmp_path, {"x": jnp.float32(0)})
    assert (float(tree["x"]), meta) == (10.0, {"epoch": 10})


@pytest.mark.parametrize(
    "template",
    [
        {"x": jnp.zeros(3, jnp.int32), "y": jnp.zeros(2)},  # a dtype, which orbax would cast
        {"x": jnp.zeros(4), "y": jnp.zeros(2)},
        {"x": jnp.zeros(3), "z": jnp.zeros(2)},
        {"x": jnp.zeros(3)},  # a part, which orbax would restore
        {"x": jnp.zeros(3), "y": jnp.zeros(2), "z": jnp.zeros(1)},
    ],
)
def test_another_tree_is_refused(tmp_path, template):
    checkpoints.save(tmp_path, 1, {"x": jnp.ones(3), "y": jnp.ones(2)}, {})
    with pytest.raises(ConfigMismatchError, match="epoch-000001: wanted"):
        checkpoints.load(tmp_path, template)


# What orbax leaves behind when it fails in the middle of a damaged file is collected, with a warning, at any time.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_damage_is_seen_and_nothing_is_changed(tmp_path):
    template = {"x": jnp.zeros((40, 5)), "key": jax.random.key(0)}
    good = tmp_path / "good"
    checkpoints.save(good, 1, {"x": jnp.arange(200.0).reshape(40, 5), "key": jax.random.key(5)}, {"a": 1})
    files = [path.relative_to(good) for path in good.rglob("*") if path.is_file()]
    seen = 0
    for name in files:
        for damage in ("remove", "empty", "truncate", "flip"):
            folder = tmp_path / "bad"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(good, folder)
            data = bytearray((folder / name).read_bytes())
            if damage == "remove":
                (folder / name).unlink()
            elif damage == "empty":
                data = data[:0]
            elif damage == "truncate":
                data = data[: len(data) // 2]
            elif data:
                data[len(data) // 2] ^= 1
            if damage != "remove":
                (folder / name).write_bytes(data)
            before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            try:
                tree, meta = checkpoints.load(folder, template)
            except CorruptResultError:
                seen += 1
            else:  # files that orbax does not need: what came back is right
                assert jnp.array_equal(tree["x"], jnp.arange(200.0).reshape(40, 5))
                assert meta == {"a": 1}
            assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert seen >= 8  # the manifest in four ways, and the arrays at least as often


def test_arrays_that_are_whole_but_not_these(tmp_path):
    """Only our checksum sees the arrays of another checkpoint: orbax finds nothing wrong with them."""
    one, two = (checkpoints.save(tmp_path / str(k), 1, {"x": jnp.full(3, float(k))}, {}) for k in (1, 2))
    shutil.rmtree(one / "arrays")
    shutil.copytree(two / "arrays", one / "arrays")
    with pytest.raises(CorruptResultError, match="its checksums do not match"):
        checkpoints.load(tmp_path / "1", {"x": jnp.zeros(3)})


def test_foreign_and_newer_manifests(tmp_path):
    path = checkpoints.save(tmp_path, 1, {"x": jnp.ones(1)}, {})
    manifest = json.loads((path / "manifest.json").read_text())
    for change, match in [({"format": "x"}, "not a checkpoint of this library"), ({"version": 99}, "newer version")]:
        (path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(CorruptResultError, match=match):
            checkpoints.load(tmp_path, {"x": jnp.ones(1)})


def test_a_failure_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, {"x": jnp.float32(1)}, {})
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:

            def refuse(*arguments):
                raise OSError(28, "No space left on device")

            patch.setattr(checkpoints.os, name, refuse)
            with pytest.raises(OSError, match="No space left"):
                checkpoints.save(tmp_path, 2, {"x": jnp.float32(2)}, {})
        assert [path.name for path in tmp_path.iterdir()] == ["epoch-000001"]
        assert float(checkpoints.load(tmp_path, {"x": jnp.float32(0)})[0]["x"]) == 1.0


def test_the_lock_goes_with_the_process(tmp_path):
    code = f"""
import sys
from implicit_reg.training import checkpoints
try:
    with checkpoints.lock({str(tmp_path)!r}):
        print("locked", flush=True)
        sys.stdin.read()
except checkpoints.LockedError as error:
    print("refused", flush=True)
"""
    start = lambda: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    first = start()
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(checkpoints.LockedError, match="in use by another process"), checkpoints.lock(tmp_path):
        pass
    first.kill()
    first.communicate()
    with checkpoints.lock(tmp_path):
        pass


def test_no_checkpoint_is_said(tmp_path):
    for call in (lambda: checkpoints.load(tmp_path / "nowhere", {}), lambda: checkpoints.read_meta(tmp_path)):
        with pytest.raises(CorruptResultError, match="holds no checkpoint"):
            call()


@pytest.fixture(scope="module")
def everything():
    """A run that uses every kind of state: momenta, noise keys, dropout, averages, counters of backstitch."""
    return Settings(
        data="wine", widths=(4,), dropout=0.2, batch_norm=True, method="backstitch", hyper=("interval=2",),
        optimizer="adam", learning_rate=0.01, schedule="cosine", warmup=1.5, noise=0.01, weight_decay=0.01, epochs=5,
        batch_size=20, seed=11,
    )  # fmt: skip


def test_resuming_is_bit_for_bit(tmp_path, everything):
    run = Run(everything)
    straight, history = fit(run)
    first, part = fit(run, on_epoch=lambda state, history: int(state.epoch) == 2)
    assert len(part) == 2
    checkpoints.save(tmp_path, 2, first, {"history": part})
    jax.clear_caches()
    again = Run(everything)
    state, meta = checkpoints.load(tmp_path, again.init())
    end, whole = fit(again, state=state, history=meta["history"])
    assert bits(end) == bits(straight)
    assert whole == history


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, everything):
    other = dataclasses.replace(everything, widths=(5,))
    run = Run(other)
    checkpoints.save(tmp_path, 1, run.init(), {})
    with pytest.raises(ConfigMismatchError, match=r"wanted .*, the checkpoint holds"):
        checkpoints.load(tmp_path, Run(everything).init())
