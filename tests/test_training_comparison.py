"""Comparisons: equal budgets, choices made without the test data, lanes that equal runs, honest statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.training import Run, Settings, compete, enter, fit, grid, results, stack_data, summarize

WINE = Settings(data="wine", widths=(4,), batch_size=20, epochs=3)
SEEDS = [3, 8]


def test_the_grid():
    candidates = grid("backstitch", [0.1, 0.2], {"alpha": [0.3, 1], "interval": [1, 4]})
    assert len(candidates) == 8
    assert {type(candidate.hyper["alpha"]) for candidate in candidates} == {float}
    assert {candidate.hyper["offset"] for candidate in candidates} == {0}
    assert [candidate.hyper["radius"] for candidate in grid("sam", [0.1])] == [0.0167, 0.05, 0.15]
    assert len(grid("gd", [0.1, 0.2, 0.3])) == 3
    for arguments, match in [
        (("sma", [0.1]), "Did you mean 'sam'"),
        (("sam", [0.1], {"radios": [1.0]}), "Did you mean 'radius'"),
        (("sam", [0.1], {"radius": []}), "`radius` needs at least one value"),
        (("sam", [0.1, 0.1]), "`learning_rate` is to be tried twice"),
        (("sam", [0.1, -0.1]), "`learning_rates` must be"),
        (("sam", []), "`learning_rate` needs at least one"),
    ]:
        with pytest.raises(ValueError, match=match):
            grid(*arguments)


def test_the_budget_is_in_gradients():
    for method, values, steps in [
        ("gd", {}, 20),
        ("sam", {"radius": [0.1]}, 10),
        ("gradient-penalty", {"strength": [0.1]}, 6),
        ("backstitch", {"alpha": [0.3], "interval": [4]}, 16),
    ]:
        entrant = enter(WINE, method, grid(method, [0.1], values), 20)
        assert entrant.num_steps == [steps]
        (members, run), *others = entrant.groups
        assert (members, others) == ([0], [])
        assert run.num_steps == steps
        assert run.gradients(steps) <= 20 < run.gradients(steps + 1)
        assert entrant.num_epochs == -(-steps // 5)
    with pytest.raises(ValueError, match="allows gradient-penalty no step"):
        enter(WINE, "gradient-penalty", grid("gradient-penalty", [0.1]), 2)
    with pytest.raises(ValueError, match="backstitch: `alpha`"):
        enter(WINE, "backstitch", grid("backstitch", [0.1], {"alpha": [0.3, -1.0]}), 20)


@pytest.fixture(scope="module")
def record_and_arrays():
    entrant = enter(WINE, "sam", grid("sam", [0.05, 0.5], {"radius": [0.05, 0.3]}), 22)
    arrays = stack_data(WINE, SEEDS, jnp.float32)
    return entrant, arrays, compete(entrant, arrays, SEEDS)


def test_each_lane_is_the_run_alone(record_and_arrays):
    entrant, _, record = record_and_arrays
    chosen = entrant.candidates[record["chosen"]]
    assert record["steps"] == 11
    for k, seed in enumerate(SEEDS):
        settings = dataclasses.replace(
            WINE,
            method="sam",
            hyper=(f"radius={chosen.hyper['radius']}",),
            learning_rate=chosen.learning_rate,
            seed=seed,
        )
        run = Run(settings, limit=11)
        alone = results(run, fit(run)[0])
        for when in ("best", "last"):
            got = record["seeds"][k][when]
            assert got["epoch"] == alone[when]["epoch"]
            assert_close(got["cross_entropy"], alone[when]["test"]["cross_entropy"], DERIVATIVE)
            assert_close(got["accuracy"], alone[when]["test"]["accuracy"], ROUND_OFF)


def test_the_choice_is_by_validation_and_blind_to_the_test_data(record_and_arrays):
    entrant, arrays, record = record_and_arrays
    losses = [candidate["validation_loss"] for candidate in record["candidates"]]
    assert record["chosen"] == int(np.argmin(losses))
    assert len(set(losses)) == 4
    poisoned = arrays._replace(x_test=arrays.x_test * jnp.nan, y_test=(arrays.y_test + 1) % 3)
    again = compete(entrant, poisoned, SEEDS)
    assert again["candidates"] == record["candidates"]
    assert again["chosen"] == record["chosen"]
    assert again["curves"] == record["curves"]
    assert all(seed["best"]["accuracy"] is None for seed in again["seeds"])


def test_curves_are_means_over_seeds_against_gradients(record_and_arrays):
    curves = record_and_arrays[2]["curves"]
    assert curves["gradients"] == [10.0, 20.0, 22.0]
    assert curves["epoch"] == [1, 2, 3]
    assert curves["train_loss"][-1] < curves["train_loss"][0]


def test_diverged_runs_are_data():
    settings = dataclasses.replace(WINE, data="diabetes", activation="softplus")
    arrays = stack_data(settings, SEEDS, jnp.float32)
    calls = []
    entrant = enter(settings, "gd", grid("gd", [1e4, 0.01]), 40)
    record = compete(entrant, arrays, SEEDS, on_epoch=lambda: calls.append(0))
    assert len(calls) == entrant.num_epochs
    assert [candidate["diverged"] for candidate in record["candidates"]] == [2, 0]
    assert record["chosen"] == 1
    alone = compete(enter(settings, "gd", grid("gd", [0.01]), 40), arrays, SEEDS)
    for a, b in zip(record["seeds"], alone["seeds"], strict=True):  # the neighbors that diverged left no trace
        assert_close(a["last"]["r2"], b["last"]["r2"], DERIVATIVE)
    wild = compete(enter(settings, "gd", grid("gd", [1e4]), 40), arrays, SEEDS)
    assert wild["diverged"] == 2
    assert wild["seeds"][0]["diverged"] is True
    assert wild["seeds"][0]["last"]["r2"] is None


def test_each_seed_has_its_split_unless_one_is_given():
    own = stack_data(WINE, [0, 1], jnp.float32)
    same = stack_data(dataclasses.replace(WINE, split_seed=0), [0, 1], jnp.float32)
    assert not jnp.array_equal(own.x_train[0], own.x_train[1])
    assert jnp.array_equal(same.x_train[0], same.x_train[1])
    assert jax.tree.leaves(own)[0].dtype == jnp.float32


def test_statistics_are_scipys():
    rng = np.random.default_rng(0)
    values, base = rng.standard_normal(7), rng.standard_normal(7)
    summary = summarize(list(values), list(base))
    test = stats.ttest_rel(values, base)
    interval = test.confidence_interval(0.95)
    assert_close(summary["mean"], values.mean(), ROUND_OFF)
    assert_close(summary["standard_error"], stats.sem(values), ROUND_OFF)
    difference = summary["difference"]
    assert_close(difference["mean"] / difference["standard_error"], test.statistic, ROUND_OFF)
    assert_close(np.array([difference["low"], difference["high"]]), np.array([interval.low, interval.high]), ROUND_OFF)
    assert summarize([0.5, None, 1.5], [0.25, 0.5, None])["difference"] == {
        "mean": 0.25, "standard_error": None, "n": 1, "low": None, "high": None,
    }  # fmt: skip
    assert summarize([0.5, None])["n"] == 1
    assert summarize([None, None])["mean"] is None
    assert summarize([1.0, 2.0])["difference"] is None
