"""Bad input to the meter, the equivalences and the monitor: clear errors, before anything is computed."""

import jax.numpy as jnp
import pytest

from implicit_reg.strength import (
    Adam,
    Alternating,
    Backstitch,
    FullBatch,
    GradientDescent,
    GradientPenalty,
    HeavyBall,
    Nesterov,
    Shuffled,
    WithReplacement,
    alpha_for,
    explicit_strength_for,
    implicit_strength,
    monitor,
    step_for,
)

PLAIN = GradientDescent(0.1)
TARGET = implicit_strength(PLAIN)


def bowl(x):
    return jnp.sum(x**2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: GradientDescent(0.0), ValueError, "`step` must be"),
        (lambda: GradientDescent(jnp.array(jnp.nan)), ValueError, "`step` must be"),
        (lambda: GradientDescent("0.1"), TypeError, "`step` must be"),
        (lambda: GradientDescent(True), TypeError, "`step` must be"),
        (lambda: HeavyBall(0.1, 1.0), ValueError, "less than 1"),
        (lambda: Nesterov(0.1, -0.1), ValueError, "`decay` must be"),
        (lambda: Backstitch(0.1, -0.3), ValueError, "`alpha` must be"),
        (lambda: Backstitch(0.1, 0.3, 1.5), TypeError, "`interval` must be"),
        (lambda: Alternating(0.1, 1.0), ValueError, "flooding_pair_terms"),
        (lambda: GradientPenalty(0.1, 0.1), TypeError, "must be settings"),
        (lambda: GradientPenalty(Adam(0.1), 0.1), TypeError, "another norm"),
        (lambda: GradientPenalty(PLAIN, float("inf")), ValueError, "`strength` must be"),
        (lambda: Adam(0.1, 0.9, 1.0), ValueError, "less than 1"),
        (lambda: Adam(0.1, count=0), ValueError, "`count` must be"),
        (lambda: Shuffled(3, 10), ValueError, "must divide"),
        (lambda: Shuffled(0, 10), ValueError, "`batch_size` must be"),
        (lambda: WithReplacement(2, 0), ValueError, "`num_examples` must be"),
        (lambda: implicit_strength("sgd"), TypeError, "must be settings"),
        (lambda: implicit_strength(PLAIN, 32), TypeError, "`sampling` must be"),
        (lambda: implicit_strength(Nesterov(0.1, 0.9), Shuffled(1, 4)), ValueError, "no formula is known"),
        (lambda: implicit_strength(Alternating(0.1, 0.5), Shuffled(1, 4)), ValueError, "no formula is known"),
        (lambda: implicit_strength(Adam(0.1), Shuffled(1, 4)), ValueError, "must be FullBatch"),
        (lambda: explicit_strength_for(implicit_strength(Adam(0.1)), PLAIN), TypeError, "another norm"),
        (lambda: explicit_strength_for(0.1, PLAIN), TypeError, "must be a Strength"),
        (lambda: alpha_for(TARGET, 0.2), ValueError, "a step back only adds"),
        (lambda: alpha_for(TARGET, 0.05, 0), ValueError, "`interval` must be"),
        (lambda: alpha_for(TARGET, -0.05), ValueError, "`step` must be"),
        (lambda: step_for(implicit_strength(GradientPenalty(PLAIN, -1.0))), ValueError, "positive coefficient"),
        (lambda: monitor(bowl, Adam(0.1)), TypeError, "another norm"),
        (lambda: monitor(None, PLAIN), TypeError, "`loss_fn` must be callable"),
        (lambda: monitor(bowl, PLAIN, every=0), ValueError, "`every` must be"),
        (lambda: monitor(bowl, PLAIN, num_steps=0), ValueError, "`num_steps` must be"),
        (lambda: monitor(bowl, PLAIN, data=[jnp.ones(3)]), TypeError, "must be a tuple"),
        (lambda: monitor(bowl, PLAIN, Shuffled(1, 4), data=(jnp.ones(3),)), ValueError, "leading axis"),
        (lambda: monitor(bowl, PLAIN, Shuffled(1, 4)), ValueError, "leading axis"),
        (lambda: monitor(bowl, PLAIN)(jnp.array([1, 2])), TypeError, "floating"),
        (lambda: monitor(lambda x: x, PLAIN).line(jnp.ones(2)), Exception, "scalar"),
        (lambda: monitor(bowl, PLAIN).due(-1), ValueError, "`count` must be"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_one_number_does_not_match_two_coefficients():
    """Heavy ball weighs ||g||^2 and the variance differently from a step on minibatches."""
    both = implicit_strength(HeavyBall(0.1, 0.9), Shuffled(10, 100))
    for inverse in (
        lambda: explicit_strength_for(both, PLAIN, Shuffled(10, 100)),
        lambda: alpha_for(both, 0.1, 1, Shuffled(10, 100)),
        lambda: step_for(both, Shuffled(10, 100)),
        lambda: explicit_strength_for(both, PLAIN, FullBatch()),
    ):
        with pytest.raises(ValueError, match="minibatch variance"):
            inverse()


def test_shuffled_steps_and_penalties_match_both_coefficients():
    target = implicit_strength(GradientDescent(0.4), Shuffled(10, 100))
    strength = explicit_strength_for(target, PLAIN, Shuffled(10, 100))
    reached = implicit_strength(GradientPenalty(PLAIN, strength), Shuffled(10, 100))
    assert reached[1:4] == pytest.approx(target[1:4])
    alpha = alpha_for(target, 0.1, 3, Shuffled(10, 100))
    assert implicit_strength(Backstitch(0.1, alpha, 3), Shuffled(10, 100))[1:4] == pytest.approx(target[1:4])


def test_a_line_is_of_one_reading():
    watch = monitor(bowl, PLAIN)
    reading = watch(jnp.ones(2))
    with pytest.raises(ValueError, match="one record"):
        watch.line(type(reading)(*(jnp.ones(3) for _ in reading)))


def test_the_reading_has_the_dtype_of_the_parameters_and_the_loss_keeps_its_words():
    reading = monitor(bowl, PLAIN)(jnp.ones(2, jnp.float32))
    assert {value.dtype for value in reading} == {jnp.dtype(jnp.float32)}
