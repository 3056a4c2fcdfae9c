"""Verdicts on runs made to have each condition, and on runs that have none."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reg.problems import load_dataset
from implicit_reg.training import (
    Run,
    Settings,
    diagnose,
    diagnose_further,
    evidence,
    expected_calibration_error,
    fit,
    noise_entropy,
    worst_share,
)

FULL = {"data": "diabetes", "widths": (1,), "batch_size": 0}


def names(found):
    return {verdict.name: verdict for verdict in found.verdicts}


def at(run, change):
    """The start of a run with other parameters."""
    state = run.init()
    return state._replace(params=change(state.params))


@functools.cache
def at_minimum():
    run = Run(Settings(**FULL, epochs=400))
    return run, *fit(run)


def test_a_minimum_with_a_large_loss():
    run, state, history = at_minimum()
    found = diagnose(run, state, history)
    verdicts = names(found)
    assert found.verdicts[0].name == "minimum"
    assert {"minimum", "training loss large"} <= set(verdicts)
    assert "oscillation" not in verdicts
    assert "saddle" not in verdicts
    # The numbers are those of the dense Hessian of the same loss.
    from implicit_reg.curvature import hessian_operator

    loss = lambda p, x, y: run.program.evaluate(p, state.stats, x, y)[0]  # noqa: E731
    dense = hessian_operator(loss, state.params, (run.arrays.x_train, run.arrays.y_train)).dense()
    values = np.linalg.eigvalsh(np.asarray(dense))
    numbers = verdicts["minimum"].evidence
    np.testing.assert_allclose([numbers["lambda_min"], numbers["lambda_max"]], values[[0, -1]], rtol=1e-3, atol=1e-4)
    assert found.numbers["h_lambda"] == pytest.approx(0.1 * values[-1], rel=1e-3)
    minibatches = diagnose(run, state, history, batch_size=50).numbers
    assert minibatches["lambda_max"] == pytest.approx(found.numbers["lambda_max"], rel=1e-4)


def test_oscillation_just_above_two_over_lambda():
    state = at_minimum()[1]
    low = 2 / diagnose(*at_minimum()).numbers["lambda_max"]
    run = Run(Settings(**FULL, learning_rate=1.5 * low, epochs=460))
    start = run.init()._replace(params=jax.tree.map(lambda x: x + 0.01, state.params))
    verdict = diagnose(run, *fit(run, state=start)).verdicts[0]
    assert verdict.name == "oscillation"
    assert verdict.confidence == "clear"
    assert verdict.evidence["h_lambda"] >= 0.9 * verdict.evidence["limit"] == 1.8


def test_a_saddle_of_a_tanh_network():
    run = Run(Settings(data="wine", widths=(4,), epochs=150, batch_size=0, learning_rate=0.3))
    state = at(run, lambda params: jax.tree.map(jnp.zeros_like, params))
    verdict = diagnose(run, *fit(run, state=state)).verdicts[0]
    assert verdict.name == "saddle"
    assert verdict.confidence == "clear"
    assert verdict.evidence["lambda_min"] < -0.1
    assert any("escape" in advice.text for advice in verdict.advice)


def test_a_plateau_of_saturated_units():
    run = Run(Settings(**FULL | {"widths": (4,)}, epochs=40, activation="sigmoid"))
    full = lambda path, x: jnp.full_like(x, 40.0 if "hidden" in str(path) and "bias" in str(path) else 0.0)  # noqa: E731
    # Hidden units that are 1 whatever they see.
    state = at(run, lambda params: jax.tree_util.tree_map_with_path(full, params))
    verdict = diagnose(run, *fit(run, state=state)).verdicts[0]
    assert verdict.name == "plateau"
    assert verdict.confidence == "likely"


def test_a_step_too_small():
    run = Run(Settings(data="wine", widths=(4,), epochs=8, batch_size=0, learning_rate=1e-5))
    verdict = diagnose(run, *fit(run)).verdicts[0]
    assert verdict.name == "small step"
    assert verdict.evidence["h_lambda"] < 0.2


def test_overfitting_of_a_large_model_on_few_noisy_digits():
    digits = load_dataset("digits", label_noise=0.2)
    few = dataclasses.replace(digits, x_train=digits.x_train[:60], y_train=digits.y_train[:60])
    settings = Settings(label_noise=0.2, widths=(256,), epochs=150, batch_size=20, learning_rate=0.3)
    verdict = names(diagnose(run := Run(settings, given=few), *fit(run)))["overfitting"]
    numbers = verdict.evidence
    assert numbers["validation_loss"] > 1.05 * numbers["turn_validation_loss"]
    assert numbers["score_change"] < -numbers["score_error"]
    folk, entropy = [advice for advice in verdict.advice if "flooding" in advice.text]
    assert f"level={numbers['turn_train_loss'] / 2:.3g}" in folk.text
    assert (folk.rule_of_thumb, folk.source) == (True, "folk rule")
    assert f"level={noise_entropy(0.2, 10):.3g}" in entropy.text


def test_overconfidence_where_accuracy_does_not_fall():
    settings = Settings(
        data="breast-cancer", widths=(64, 64), epochs=100, learning_rate=0.3, activation="relu", batch_size=32
    )
    found = diagnose(run := Run(settings), *fit(run))
    assert set(names(found)) == {"overconfidence"}
    numbers = found.verdicts[0].evidence
    assert numbers["score_change"] >= -numbers["score_error"]
    assert numbers["worst_percent_share"] > 0.5
    assert any("relu" in note for note in found.notes)


def test_a_healthy_run_and_one_that_still_falls():
    run = Run(Settings(data="wine", widths=(8,), epochs=60, learning_rate=0.5))
    state, history = fit(run)
    assert [verdict.name for verdict in diagnose(run, state, history).verdicts] == ["healthy"]
    run = Run(Settings(data="wine", widths=(8,), epochs=12, learning_rate=0.01))
    verdict = diagnose(run, *fit(run)).verdicts[0]
    assert (verdict.name, verdict.confidence) == ("still falling", "clear")


def test_flooding_is_not_taken_for_being_stuck():
    run = Run(Settings(data="wine", widths=(8,), epochs=30, method="flooding", hyper=("level=0.5",)))
    assert diagnose(run, *fit(run)).verdicts[0].name == "flooded"


def test_diverged_short_and_impossible_runs():
    run = Run(Settings(data="diabetes", widths=(8,), activation="relu", epochs=20, learning_rate=50.0))
    state, history = fit(run)
    verdict = diagnose(run, state, history).verdicts[0]
    assert (verdict.name, verdict.confidence) == ("diverged", "clear")
    with pytest.raises(ValueError, match="did not diverge"):
        diagnose_further(run, state, history)
    run = Run(Settings(data="wine", widths=(4,), epochs=2))
    state, history = fit(run)
    assert diagnose(run, state, history).verdicts[0].name == "too short"
    with pytest.raises(ValueError, match="at least one epoch"):
        diagnose(run, state, [])
    with pytest.raises(ValueError, match="must be of `fit`: epoch 1 has 'nothing' as its train_loss"):
        diagnose(run, state, [{"epoch": 1}])
    with pytest.raises(ValueError, match="batch_size"):
        diagnose(run, state, history, batch_size=0)


def test_the_check_tells_a_small_model_from_a_short_run():
    small = Run(Settings(data="digits", widths=(1,), epochs=12, batch_size=100, learning_rate=0.5))
    further = diagnose_further(small, *fit(small))
    assert (further.longer_helped, further.larger_helped) == (False, True)
    assert "too small" in further.sentence
    short = Run(Settings(data="wine", widths=(32,), epochs=6, learning_rate=0.02))
    further = diagnose_further(short, *fit(short), epochs=20)
    assert further.longer_helped
    assert further.longer < further.before


def test_the_limit_of_each_optimizer():
    def limit(**settings):
        run = Run(Settings(data="wine", widths=(2,), epochs=1, **settings))
        return evidence.stability(run, fit(run)[0])

    assert limit().limit == 2
    assert limit(optimizer_args=("momentum=0.9",)).limit == pytest.approx(3.8)
    assert limit(optimizer_args=("momentum=0.9", "nesterov=true")).limit == pytest.approx(3.8 / 2.8)
    assert limit(optimizer="rmsprop", learning_rate=0.01).limit is None
    adam = limit(optimizer="adam", learning_rate=0.01)
    assert adam.limit == pytest.approx(38)
    run = Run(Settings(data="wine", widths=(2,), epochs=1, optimizer="adam", learning_rate=0.01))
    state = fit(run)[0]
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    (inner,) = [x for x in jax.tree.leaves(state.optimizer_state, is_leaf=is_adam) if is_adam(x)]
    wanted = optax.tree_utils.tree_bias_correction(inner.nu, 0.999, inner.count)
    for a, b in zip(jax.tree.leaves(adam.scale), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, np.sqrt(b) + 1e-8, rtol=1e-4)


def test_the_rate_of_a_schedule_is_that_of_the_last_window():
    run = Run(Settings(data="wine", widths=(2,), epochs=10, schedule="linear", learning_rate=1.0))
    state = fit(run)[0]
    assert evidence.late_rate(run, state, 3) == pytest.approx(0.15 + 0.5 / 30, rel=1e-3)


def test_calibration_against_counting():
    logits = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]))
    # Two bins: 0.9 with accuracy 1/2, and 0.6 with accuracy 1.
    assert expected_calibration_error(logits, jnp.array([0, 1, 1, 1])) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert worst_share(jnp.arange(1.0, 101.0)) == pytest.approx(100 / 5050)
    assert worst_share(jnp.zeros(3)) == 0
    assert noise_entropy(0.3, 4) == pytest.approx(-0.7 * math.log(0.7) - 3 * 0.1 * math.log(0.1))
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="fraction"):
            worst_share(jnp.ones(3), fraction=wrong)


def test_a_trend_is_told_from_noise():
    rng = np.random.default_rng(0)
    steep = evidence.trend(2 - 0.01 * np.arange(50))
    assert steep.fall == pytest.approx(0.1 / (2 - 0.01 * 34.5))
    # The stated error is that of the fall: 200 curves of white noise alone.
    curves = [evidence.trend(1 + 0.1 * rng.standard_normal(50)) for _ in range(200)]
    z = [curve.fall / curve.noise for curve in curves]
    assert 0.8 < np.std(z) < 1.25
