"""Sweeps: values, pairing, and the same bits whatever the chunk, the devices, the neighbors and the interruptions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import ROUND_OFF, assert_close

from implicit_reg import _checks
from implicit_reg.experiments import (
    SweepStoppedError,
    load_sweep,
    run_steps,
    shuffled_batches,
    static,
    sweep,
    sweep_mesh,
)
from implicit_reg.experiments.axes import make_runs
from implicit_reg.experiments.identity import fingerprint
from implicit_reg.experiments.lanes import Lanes
from implicit_reg.transforms import flooding

KEY = jax.random.key(7)
GRID = {"h": [0.05, 0.4, 30.0], "power": [2, 4], "seed": range(5)}


def descent(key, h, power):
    """Eight steps on |x|^power / power from a random start: diverges for h = 30."""
    start = jax.random.normal(key, (3,), jnp.float32)

    def loss(x):
        return jnp.sum(jnp.abs(x) ** power) / power

    run = run_steps(optax.sgd(h), loss, start, None, 8, every=4, observe=lambda x, state: loss(x))
    return {"curve": run.observed, "end": run.params, "first_bad_step": run.first_bad_step}


@pytest.fixture(scope="module")
def whole():
    return sweep(descent, GRID, key=KEY, width=4)


def same_bits(a, b, rows=None):
    assert a.leaves.keys() == b.leaves.keys()
    for path, leaf in a.leaves.items():
        np.testing.assert_array_equal(leaf if rows is None else leaf[rows], b[path], strict=True)


def test_values_are_those_of_a_plain_loop(whole):
    """Every run against steps written out, in the order of the grid, the last axis fastest."""
    assert whole.settings["h"][:11] == [0.05] * 10 + [0.4]
    assert whole.settings["seed"][:6] == [0, 1, 2, 3, 4, 0]
    for row in range(len(whole)):
        h, power, seed = (whole.settings[name][row] for name in GRID)
        if h > 1:
            continue
        x = np.asarray(jax.random.normal(jax.random.fold_in(KEY, seed), (3,), jnp.float32))
        curve = [np.sum(np.abs(x) ** power) / power]
        for n in range(1, 9):
            x = x - np.float32(h) * np.sign(x) * np.abs(x) ** (power - 1)
            if n % 4 == 0:
                curve.append(np.sum(np.abs(x) ** power) / power)
        assert_close(whole["end"][row], x, ROUND_OFF)
        assert_close(whole["curve"][row], np.array(curve, np.float32), ROUND_OFF)


def test_a_diverged_run_is_data(whole):
    grid = whole.grid("status")
    assert grid.shape == (3, 2, 5)
    assert set(grid[:2].ravel()) == {"ok"}
    assert set(grid[2, 1].ravel()) == {"diverged"}  # |x|^4 at h = 30
    bad = whole.select(h=30.0, power=4)
    assert (bad["first_bad_step"] > 0).all()
    assert np.isfinite(bad["end"]).all()  # the last finite parameters
    assert np.isnan(bad["curve"][:, -1]).all()
    assert np.isfinite(bad["curve"][:, 0]).all()


def test_without_first_bad_step_an_output_that_is_not_finite_counts():
    runs = sweep(lambda key, x: {"a": jnp.log(x), "n": jnp.int32(1)}, {"x": [-1.0, 1.0]}, key=KEY, width=2)
    assert runs.status.tolist() == ["diverged", "ok"]


def test_where_there_is_first_bad_step_nothing_else_counts():
    """NaN may be a value (never observed), and a finite end may hide that the run stood still."""
    runs = sweep(lambda key, n: {"x": jnp.log(jnp.float32(n)), "first_bad_step": n}, {"n": [-1, 3]}, key=KEY, width=2)
    assert np.isnan(runs["x"][0])
    assert runs.status.tolist() == ["ok", "diverged"]


def test_programs_do_not_mix_on_several_devices():
    """Three blocks each of two programs, two devices: the middle pair is of both."""
    axes = {"power": static([1, 2]), "x": [2.0, 3.0, 4.0], "seed": [0]}
    runs = sweep(lambda key, x, power: x**power, axes, key=KEY, width=1, mesh=sweep_mesh(2), chunk=6)
    assert runs.grid("value").ravel().tolist() == [2, 3, 4, 4, 9, 16]


def test_each_device_has_its_program():
    mesh = sweep_mesh(2)
    lanes = Lanes(lambda key, x: x + 1, make_runs({"x": [1.0, 2.0, 3.0]}), 0, KEY, 2, mesh)
    assert lanes.num_blocks == 2
    assert lanes([[0, 1], [2]])["value"].tolist() == [2, 3, 4]
    assert set(lanes._compiled) == set(mesh.devices.flat)


def test_runs_of_one_seed_are_paired_and_know_nothing_of_the_grid(whole):
    starts = whole.grid("curve")[..., 0]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert len(set(starts[0, 0])) == 5
    alone = sweep(descent, [{"h": 0.4, "power": 4, "seed": 3}], key=KEY, width=4)
    row = next(k for k in range(len(whole)) if all(whole.settings[n][k] == v[0] for n, v in alone.settings.items()))
    same_bits(whole, alone, [row])
    no_seed = sweep(lambda key: jax.random.normal(key), [{"seed": 0}], key=KEY, width=1)
    assert no_seed["value"][0] == jax.random.normal(jax.random.fold_in(KEY, 0))


@pytest.mark.parametrize(
    "layout",
    [{"chunk": 4}, {"chunk": 20}, *({"mesh": num} for num in (1, 2, 4)), {"mesh": 2, "chunk": 24}],
    ids=str,
)
def test_the_same_bits_whatever_the_chunk_and_the_devices(whole, layout):
    if "mesh" in layout:
        layout = layout | {"mesh": sweep_mesh(layout["mesh"])}
    runs = sweep(descent, GRID, key=KEY, width=4, **layout)
    same_bits(whole, runs)
    assert runs.status.tolist() == whole.status.tolist()


def test_the_same_bits_whatever_the_order_and_the_neighbors(whole):
    rows = [{name: whole.settings[name][k] for name in GRID} for k in range(len(whole))]
    order = np.random.default_rng(0).permutation(len(rows))[:17]
    same_bits(whole, sweep(descent, [rows[k] for k in order], key=KEY, width=4), list(order))


@pytest.mark.parametrize("devices", [None, 2])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_sweep_goes_on_to_the_same_bits(whole, tmp_path, devices, stop_after):
    """With another chunk after the interruption, and other devices."""
    seen = []
    first = {"key": KEY, "width": 4, "folder": tmp_path, "chunk": 8, "report": seen.append}
    with pytest.raises(SweepStoppedError, match=f"stopped after {8 * stop_after} of 30 runs"):
        sweep(descent, GRID, **first, should_stop=lambda: len(seen) > stop_after)
    assert len(load_sweep(tmp_path)) == 8 * stop_after
    assert load_sweep(tmp_path).axes is None
    mesh = devices and sweep_mesh(devices)
    again = []
    runs = sweep(descent, GRID, key=KEY, width=4, folder=tmp_path, resume=True, mesh=mesh, report=again.append)
    assert (again[0].reused, again[0].done, again[-1].done) == (8 * stop_after, 8 * stop_after, 30)
    same_bits(whole, runs)
    stored = load_sweep(tmp_path)
    same_bits(whole, stored)
    assert stored.settings == whole.settings
    assert stored.axes == whole.axes
    assert stored.status.tolist() == whole.status.tolist()
    assert stored.grid("end").shape == (3, 2, 5, 3)


def test_a_damaged_chunk_is_named_and_computed_again(whole, tmp_path):
    sweep(descent, GRID, key=KEY, width=4, chunk=8, folder=tmp_path)
    chunks = sorted(tmp_path.glob("chunk-*.irs"))
    chunks[1].write_bytes(chunks[1].read_bytes()[:-5])
    before = chunks[0].read_bytes()
    with pytest.warns(UserWarning, match=chunks[1].name):
        runs = sweep(descent, GRID, key=KEY, width=4, chunk=8, folder=tmp_path, resume=True)
    same_bits(whole, runs)
    assert chunks[0].read_bytes() == before
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


def test_another_sweep_in_the_folder_is_refused_with_the_difference(tmp_path):
    def scaled(by):
        return lambda key, x: by * x

    place = {"folder": tmp_path, "resume": True}
    sweep(scaled(2.0), {"x": [1.0, 2.0]}, key=KEY, width=2, folder=tmp_path, identity={"data": "digits"})
    names = sorted(path.name for path in tmp_path.iterdir())
    for change, place_of_it in (
        ({"fn": scaled(3.0)}, "fn.closure.by: 2.0 then, 3.0 now"),
        ({"fn": lambda key, x: x}, "fn"),
        ({"axes": {"x": [1.0, 2.5]}}, "settings.x"),
        ({"width": 1}, "width: 2 then, 1 now"),
        ({"key": jax.random.key(8)}, "key"),
        ({"identity": {"data": "wine"}}, 'identity.data: "digits" then, "wine" now'),
    ):
        call = {"fn": scaled(2.0), "axes": {"x": [1.0, 2.0]}, "key": KEY, "width": 2, "identity": {"data": "digits"}}
        with pytest.raises(_checks.ConfigMismatchError, match=place_of_it):
            sweep(**call | change, **place)
        assert sorted(path.name for path in tmp_path.iterdir()) == names
    with pytest.raises(ValueError, match="resume"):
        sweep(scaled(2.0), {"x": [1.0, 2.0]}, key=KEY, width=2, folder=tmp_path)


def test_fingerprints_see_code_and_what_it_closes_over():
    def make(a, array=None):
        def fn(key, x):
            return a * x if array is None else array + x  # a comment

        return fn

    assert fingerprint(make(2)) == fingerprint(make(2))
    assert json.dumps(fingerprint(make(2))) != json.dumps(fingerprint(make(2.0)))  # as they are compared on disk
    assert fingerprint(make(1, np.arange(3, dtype=np.int32))) == fingerprint(make(1, jnp.arange(3)))
    assert fingerprint(make(1, np.arange(3, dtype=np.int32))) != fingerprint(make(1, np.arange(1, 4, dtype=np.int32)))
    assert fingerprint(functools.partial(make(2), x=1)) != fingerprint(functools.partial(make(2), x=2))
    inner = [fingerprint(lambda key: f(key)) for f in (make(2), make(3))]
    assert inner[0] != inner[1]
    json.dumps(fingerprint(make(np.float32(np.inf))), allow_nan=False)


def test_one_compilation_for_each_combination_of_constants():
    """Two widths times two texts are four programs, however many numbers there are, each traced once."""
    traces = []

    def fn(key, h, width, name):
        traces.append((width, name, jnp.result_type(h)))
        return jnp.sum(jax.random.normal(key, (width,))) * h + len(name)

    axes = {"width": static([2, 3]), "name": ["a", "bb"], "h": [0.1, 1, 2.0], "seed": range(4)}
    seen = []
    runs = sweep(fn, axes, key=KEY, width=8, report=seen.append)
    assert len(traces) == 4
    assert seen[0].programs == 4
    assert set(traces) == {(w, n, jnp.result_type(float)) for w in (2, 3) for n in ("a", "bb")}
    assert runs.grid("value").shape == (2, 2, 3, 4)
    direct = jnp.sum(jax.random.normal(jax.random.fold_in(KEY, 2), (3,))) * 2.0 + 2
    assert_close(runs.select(width=3, name="bb", h=2.0, seed=2)["value"][0], np.asarray(direct), ROUND_OFF)


def test_none_and_numbers_share_an_axis():
    def fn(key, level):
        return jnp.float32(-1) if level is None else level * jnp.float32(2)

    assert sweep(fn, {"level": [None, 0.5, 1]}, key=KEY, width=2)["value"].tolist() == [-1, 1, 2]


def test_keys_and_integers_and_callables_pass():
    runs = sweep(
        lambda key, n, act: {"key": key, "n": n + 1, "y": act(jnp.float32(0.5))},
        {"n": [1, 2], "act": [jnp.tanh, jnp.sin]},
        key=KEY,
        width=4,
    )
    assert runs["n"].dtype == np.int32
    assert runs["n"].tolist() == [2, 2, 3, 3]
    np.testing.assert_array_equal(runs["key"][0], jax.random.key_data(jax.random.fold_in(KEY, 0)))
    assert set(runs.settings["act"]) == {"jax.numpy:tanh", "jax.numpy:sin"}


@pytest.mark.parametrize(
    ("axes", "error", "words"),
    [
        ({}, ValueError, "sweep has 0 runs"),
        ({"h": []}, ValueError, "sweep has 0 runs"),
        ([], ValueError, "sweep has 0 runs"),
        ({"h": [0.1, 0.1]}, ValueError, "the same settings twice.*0.1"),
        ({"h": [0.1, float("nan")]}, ValueError, "`h` must be finite, got nan"),
        ({"h": [np.inf]}, ValueError, "`h` must be finite, got inf"),
        ({"h": 0.1}, TypeError, r"axes\['h'\] must be a sequence"),
        ({"h": "ab"}, TypeError, r"axes\['h'\] must be a sequence"),
        ({"h": [object()]}, TypeError, "`h` must be a number"),
        ({"key": [1]}, ValueError, "identifier other than `key`"),
        ({"a b": [1]}, ValueError, "identifier other than `key`"),
        ({"seed": [-1]}, ValueError, r"`seed` must be an int in \[0, 2"),
        ({"seed": [2**32]}, ValueError, r"`seed` must be an int in \[0, 2"),
        ({"seed": [True]}, ValueError, r"`seed` must be an int in \[0, 2"),
        ({"n": [2**31]}, ValueError, "32 bits"),
        ([{"h": 1.0}, {"g": 1.0}], ValueError, "the same names"),
        (3, TypeError, "`axes` must be a dictionary"),
    ],
)
def test_bad_axes(axes, error, words):
    with pytest.raises(error, match=words):
        sweep(lambda key, **settings: jnp.float32(0), axes, key=KEY)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"fn": 3}, TypeError, "`fn`"),
        ({"width": 0}, ValueError, "`width`"),
        ({"width": 2.0}, TypeError, "`width`"),
        ({"width": 4, "chunk": 6}, ValueError, "`chunk` must be a multiple of width=4"),
        ({"key": 0}, TypeError, "`key` must be one typed key"),
        ({"key": jax.random.split(KEY)}, TypeError, "`key` must be one typed key"),
        ({"resume": True}, ValueError, "`resume` needs the `folder`"),
        ({"identity": {"h": float("nan")}}, TypeError, "`identity` must be what JSON can hold"),
        ({"identity": object()}, TypeError, "`identity` must be what JSON can hold"),
        ({"fn": lambda key, h: {}}, ValueError, "at least one array"),
        ({"fn": lambda key, h: {"a": {"b": h}, "a/b": h}}, ValueError, "two leaves"),
    ],
)
def test_bad_arguments(change, error, words):
    with pytest.raises(error, match=words):
        sweep(**{"fn": lambda key, h: h, "axes": {"h": [0.1]}, "key": KEY} | change)


def test_shapes_must_agree_between_programs(tmp_path):
    with pytest.raises(ValueError, match=r"equal shapes.*'value'.*\(2,\).*\(3,\)"):
        sweep(lambda key, n: jnp.zeros(n), {"n": static([2, 3])}, key=KEY, folder=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="at most the 8 that JAX has, got 9; on a CPU call"):
        sweep_mesh(9)


def test_an_error_in_a_later_program_stops_the_sweep_and_finished_chunks_stay(tmp_path):
    def fail(x):
        raise RuntimeError("cannot run b")

    def fn(key, name):
        one = jnp.float32(1)
        return jax.pure_callback(fail, one, one, vmap_method="sequential") if name == "b" else one

    with pytest.raises(jax.errors.JaxRuntimeError, match="cannot run b"):
        sweep(fn, {"name": ["a", "b"]}, key=KEY, width=1, folder=tmp_path)
    assert load_sweep(tmp_path).settings == {"name": ["a"]}


def test_an_error_while_tracing_leaves_no_folder(tmp_path):
    def fn(key, name):
        if name == "b":
            raise RuntimeError("cannot trace b")
        return jnp.float32(1)

    with pytest.raises(RuntimeError, match="cannot trace b"):
        sweep(fn, {"name": ["a", "b"]}, key=KEY, width=1, folder=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_out_of_memory_says_what_to_do(monkeypatch):
    from implicit_reg.experiments import lanes

    def full(self, blocks):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(lanes.Lanes, "__call__", full)
    with pytest.raises(
        MemoryError, match="width=32 runs per device does not fit into memory; use width=16 in a new sweep"
    ):
        sweep(lambda key, h: h, {"h": [1.0]}, key=KEY)


def test_selections_and_exports(whole, tmp_path):
    part = whole.select(power=2, seed=1)
    assert part.axes == {"h": [0.05, 0.4, 30.0]}
    np.testing.assert_array_equal(part.grid("end"), whole.grid("end")[:, 0, 1])
    with pytest.raises(ValueError, match="no setting 'g'; there are h, power, seed"):
        whole.select(g=1)
    with pytest.raises(ValueError, match="no run has"):
        whole.select(h=0.7)
    with pytest.raises(KeyError, match="no output 'loss'; there are curve, end"):
        whole["loss"]
    whole.write_jsonl(tmp_path / "runs.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    assert lines[11] == whole.to_records()[11]
    assert lines[-1]["curve"][-1] is None
    assert lines[-1]["status"] == "diverged"
    whole.write_npz(tmp_path / "runs.npz")
    file = np.load(tmp_path / "runs.npz", allow_pickle=False)
    names = json.loads(str(file["names"]))
    np.testing.assert_array_equal(file[f"a{names.index('end')}"], whole.grid("end"))
    assert json.loads(str(file["axes"])) == {name: list(values) for name, values in GRID.items()}


def test_an_output_with_the_name_of_a_setting_overwrites_nothing():
    runs = sweep(lambda key, h: {"h": 2 * h, "status": h, "loss": h}, {"h": [0.5]}, key=KEY, width=1)
    (record,) = runs.to_records()
    assert record == {"h": 0.5, "status": "ok", "output/h": 1.0, "output/status": 0.5, "loss": 0.5}


class TestRunSteps:
    def test_extras_reach_the_transformation_and_the_state_is_seen(self):
        level = 0.3
        chain = optax.chain(flooding(level), optax.sgd(0.1, 0.9))
        run = run_steps(
            chain, lambda x: x**2, jnp.float32(1), None, 12, every=3, observe=lambda x, s: (x, s[1][0].trace)
        )
        x, trace, seen = np.float32(1), np.float32(0), [(1.0, 0.0)]
        for n in range(1, 13):
            trace = np.float32(0.9) * trace + np.sign(x**2 - np.float32(level)) * 2 * x
            x = x - np.float32(0.1) * trace
            if n % 3 == 0:
                seen.append((x, trace))
        assert_close(run.observed, tuple(np.array(v, np.float32) for v in zip(*seen, strict=True)), ROUND_OFF)
        assert int(run.first_bad_step) == -1

    def test_batches_follow_the_step(self):
        run = run_steps(
            optax.sgd(1.0), lambda x, b: b * x, jnp.float32(0), lambda n: (n + 1,), 4, every=2, observe=lambda x, s: x
        )
        assert run.observed.tolist() == [0, -3, -10]

    def test_observers_run_at_the_records_alone_in_lanes_too(self):
        seen = []

        def look(x, state):
            jax.debug.callback(lambda value: seen.append(float(value)), x)
            return x

        def run(h):
            return run_steps(optax.sgd(h), lambda x: x, jnp.float32(0), None, 12, every=4, observe=look).observed

        jax.block_until_ready(jax.jit(jax.vmap(run))(jnp.array([1.0, 2.0], jnp.float32)))
        jax.effects_barrier()
        assert sorted(seen) == [-24, -16, -12, -8, -8, -4, 0, 0]

    def test_every_must_divide(self):
        with pytest.raises(ValueError, match="`every` must divide `num_steps`, got every=3 and num_steps=4"):
            run_steps(optax.sgd(1.0), lambda x: x, jnp.float32(0), None, 4, every=3, observe=lambda x, s: x)


class TestShuffledBatches:
    def test_each_epoch_is_a_permutation_of_its_own(self, key):
        batch = shuffled_batches(key, 10, 5)
        epochs = [[int(i) for n in (2 * e, 2 * e + 1) for i in batch(n)] for e in range(4)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 4

    def test_a_remainder_sits_out(self, key):
        batch = shuffled_batches(key, 7, 3)
        seen = [int(i) for n in (0, 1) for i in batch(n)]
        assert len(set(seen)) == 6

    def test_the_full_batch_keeps_its_order(self, key):
        assert shuffled_batches(key, 4, 4)(3).tolist() == [0, 1, 2, 3]

    def test_too_large(self, key):
        with pytest.raises(ValueError, match="`batch_size` must be at most 4, got 5"):
            shuffled_batches(key, 4, 5)
