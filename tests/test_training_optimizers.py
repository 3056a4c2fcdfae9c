"""Base optimizers, schedules and the everyday parts against their formulas typed again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import ROUND_OFF, assert_close

from implicit_reg.training import base_optimizer, decoupled_weight_decay, everyday_base, optimizer_names, schedule_shape
from implicit_reg.training.settings import as_pairs, parse_pairs, parse_value

PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0]), "scale": jnp.array([0.5])}
GRADS = {"kernel": jnp.array([[0.5, 0.25]]), "bias": jnp.array([-1.0]), "scale": jnp.array([2.0])}


def one_update(tx, steps=1):
    state = tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, PARAMS)
    return updates


def test_names_are_optaxs():
    names = optimizer_names()
    assert {"sgd", "adam", "adamw", "rmsprop", "lion", "adagrad", "lbfgs", "noisy_sgd"} <= set(names)
    assert all(hasattr(optax, name) for name in names)
    expected = one_update(optax.rmsprop(0.1, decay=0.5, momentum=0.9), steps=2)
    assert_close(
        one_update(base_optimizer("rmsprop", {"decay": 0.5, "momentum": 0.9})(0.1), steps=2), expected, ROUND_OFF
    )


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_schedules_are_their_formulas(name):
    shape = schedule_shape(name, 20, warmup_steps=5)
    step = np.arange(26)
    fraction = np.clip(step - 5, 0, 15) / 15
    tail = {"constant": np.ones(26), "cosine": 0.5 * (1 + np.cos(np.pi * fraction)), "linear": 1 - fraction}[name]
    expected = np.where(step < 5, step / 5, tail).astype(np.float32)
    assert_close(jax.vmap(shape)(jnp.arange(26)), expected, ROUND_OFF)


def test_decoupled_decay_spares_biases_and_scales_and_follows_the_schedule():
    tx = everyday_base("sgd", {"momentum": 0.9}, weight_decay=0.5)(lambda step: 0.1 * (step + 1))
    state = tx.init(PARAMS)
    for factor, rate in ((1.0, 0.1), (1.9, 0.2)):  # the decay enters the updates and never the momentum
        updates, state = tx.update(GRADS, state, PARAMS)
        expected = jax.tree.map(lambda g: -rate * factor * g, GRADS)
        expected["kernel"] = expected["kernel"] - rate * 0.5 * PARAMS["kernel"]
        assert_close(updates, expected, ROUND_OFF)
    with pytest.raises(ValueError, match="decoupled_weight_decay needs `params`"):
        decoupled_weight_decay(0.1, 0.1).update(GRADS, decoupled_weight_decay(0.1, 0.1).init(PARAMS))


def test_optimizers_with_a_decay_of_their_own_get_the_mask():
    decays = {"kernel": True, "bias": False, "scale": False}
    given = one_update(everyday_base("adamw", weight_decay=0.3)(0.1))
    assert_close(given, one_update(optax.adamw(0.1, weight_decay=0.3, mask=decays)), ROUND_OFF)
    default = one_update(everyday_base("adamw")(0.1))
    assert_close(default, one_update(optax.adamw(0.1, mask=decays)), ROUND_OFF)
    argument = one_update(everyday_base("adamw", {"weight_decay": 0.3})(0.1))
    assert_close(argument, given, ROUND_OFF)


def test_noise_then_clipping_then_the_optimizer():
    key = jax.random.key(4)
    tx = everyday_base("sgd", clip=0.5, noise=0.2, noise_decay=0.5, key=key)(0.1)
    reference = optax.chain(optax.add_noise(0.2**2, 1.0, key=key), optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    assert_close(one_update(tx, steps=2), one_update(reference, steps=2), ROUND_OFF)
    norm = optax.tree.norm(one_update(tx))
    assert_close(norm, np.float32(0.05), ROUND_OFF)


def test_values_are_read_strictly():
    assert parse_pairs("f", ["a=1", "b=1e-3", "c=true", "d-e=none", "f=-.5"]) == {
        "a": 1, "b": 1e-3, "c": True, "d_e": None, "f": -0.5,
    }  # fmt: skip
    assert type(parse_value("f", "a", "1")) is int
    assert parse_pairs("f", as_pairs({"alpha": 0.1 + 0.2})) == {"alpha": 0.1 + 0.2}
    for text in ["nan", "inf", "-inf", "1_000", "1e999", "", "٣", "0x10", "1 2", "'a'", "1e"]:
        with pytest.raises(ValueError, match="`a` must be a finite decimal number, true, false or none"):
            parse_pairs("f", [f"a={text}"])
    for word in ["a", "=1", "1a=3", "a b=1"]:
        with pytest.raises(ValueError, match="wanted name=value"):
            parse_pairs("f", [word])
    with pytest.raises(TypeError, match="must come in a list or a mapping"):
        as_pairs("a=1")


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: base_optimizer("rmsprob"), ValueError, r"unknown optimizer 'rmsprob'\. Did you mean 'rmsprop'"),
        (lambda: base_optimizer("adam", {"b3": 1}), ValueError, r"optimizer adam: unknown argument 'b3'"),
        (lambda: base_optimizer("scale_by_adam"), ValueError, r"unknown optimizer"),
        (lambda: schedule_shape("step", 10), ValueError, r"unknown schedule 'step'"),
        (lambda: schedule_shape("cosine", 0), ValueError, r"`num_steps`"),
        (lambda: schedule_shape("cosine", 5, 5), ValueError, r"`warmup` must end before the run"),
        (lambda: everyday_base("sgd", clip=-1.0), ValueError, r"`clip`"),
        (lambda: everyday_base("sgd", noise_decay=-1.0), ValueError, r"`noise_decay`"),
        (lambda: everyday_base("sgd", weight_decay=float("nan")), ValueError, r"`weight_decay`"),
    ],
)
def test_bad_arguments(build, error, match):
    with pytest.raises(error, match=match):
        build()
