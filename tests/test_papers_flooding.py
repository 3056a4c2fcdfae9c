"""The reproductions of flooding on synthetic and on real data: data, network, choice, and the runs themselves."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reg.experiments import reproduce
from implicit_reg.experiments.papers import _noisy_choice as tools
from implicit_reg.experiments.papers import flooding_digits, flooding_synthetic
from implicit_reg.experiments.papers._batch_norm_mlp import initial_layers, logits
from implicit_reg.experiments.papers._flooding_methods import make_auxiliary, stack
from implicit_reg.plots import to_png
from implicit_reg.plots.papers import paper_figure
from implicit_reg.problems import SYNTHETIC, load_dataset, noise_entropy, sinusoid, spiral, two_gaussians


def test_gaussians_have_the_bayes_values_that_they_say():
    problem = two_gaussians(3, label_noise=0.2, num_test=200_000)
    log_odds = problem.data.x_test.astype(np.float64).sum(axis=1) - 5
    p = 0.2 + 0.6 / (1 + np.exp(-log_odds))
    wrong = (log_odds > 0) != problem.clean_test
    surprise = -np.log(np.where(problem.data.y_test == 1, p, 1 - p))
    for values, exact in ((wrong, problem.bayes_error), (surprise, problem.bayes_cross_entropy)):
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(values.size)
    assert problem.bayes_error == pytest.approx(0.5 * math.erfc(math.sqrt(10) / 2 / math.sqrt(2)), rel=1e-12)


def test_sinusoid_splits_a_uniform_disc():
    problem = sinusoid(5, num_test=100_000)
    x = problem.data.x_test
    radius = np.linalg.norm(x, axis=1)
    assert radius.max() < 2
    for share in (0.25, 0.5):  # area of the inner disc over that of the whole
        inside = radius < 2 * math.sqrt(share)
        assert abs(inside.mean() - share) < 4 * math.sqrt(share * (1 - share) / len(x))
    boundary = 1.5 * x[:, 0] + np.sin(1.5 * x[:, 1])
    clear = np.abs(boundary) > 1e-5
    np.testing.assert_array_equal(problem.clean_test[clear], boundary[clear] > 0)


def test_spiral_without_scatter_lies_on_its_arms():
    problem = spiral(0, scatter=0, num_train=200, label_noise=0.1)
    x, y = problem.data.x_train, problem.clean_train
    angle = np.linalg.norm(x, axis=1) - np.pi * (y == 0)
    np.testing.assert_allclose(np.sort(angle[y == 1]), np.linspace(0, 4 * np.pi, 100), atol=1e-5)
    direction = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    off_origin = angle > 1e-6
    np.testing.assert_allclose(direction[off_origin, 0], np.cos(angle[off_origin]), atol=1e-5)
    assert (problem.bayes_error, problem.bayes_cross_entropy) == (0.0, noise_entropy(0.1))
    assert spiral(0).bayes_error is None


@pytest.mark.parametrize("name", SYNTHETIC)
def test_noise_is_exact_and_parts_are_independent_streams(name):
    small = SYNTHETIC[name](7, label_noise=0.1, num_test=50)
    large = SYNTHETIC[name](7, label_noise=0.1, num_test=500)
    np.testing.assert_array_equal(small.data.x_train, large.data.x_train)
    np.testing.assert_array_equal(small.data.y_train, large.data.y_train)
    assert not np.array_equal(small.data.x_train, small.data.x_validation)
    flips = [
        int((noisy != clean).sum())
        for noisy, clean in (
            (large.data.y_train, large.clean_train),
            (large.data.y_validation, large.clean_validation),
            (large.data.y_test, large.clean_test),
        )
    ]
    assert flips == [10, 10, 50]


def test_data_name_the_argument_that_is_wrong():
    with pytest.raises(ValueError, match=r"`label_noise` must be below 1/2, got 0\.5"):
        sinusoid(0, label_noise=0.5)
    with pytest.raises(ValueError, match="`num_train` must be even, got 3"):
        two_gaussians(0, num_train=3)
    with pytest.raises(ValueError, match="`scatter`"):
        spiral(0, scatter=-1.0)


def test_network_normalizes_others_with_the_statistics_of_the_first(key):
    params = jax.jit(initial_layers, static_argnums=1)(key, (3, 6, 5, 2))
    params[0]["shift"] = np.linspace(-0.3, 0.4, 6, dtype=np.float32)
    params[1]["scale"] = np.linspace(0.5, 1.5, 5, dtype=np.float32)
    rng = np.random.default_rng(0)
    x, other = (rng.standard_normal((n, 3)).astype(np.float32) for n in (8, 4))
    a, b = np.asarray(x, np.float64), np.asarray(other, np.float64)
    for layer in jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[:-1]):
        a, b = a @ layer["w"], b @ layer["w"]
        mean, deviation = a.mean(axis=0), np.sqrt(a.var(axis=0) + 1e-5)
        a, b = (np.maximum((v - mean) / deviation * layer["scale"] + layer["shift"], 0) for v in (a, b))
    last = jax.tree.map(np.asarray, params[-1])
    for got, hidden in zip(jax.jit(logits)(params, x, other), (a, b), strict=True):
        np.testing.assert_allclose(got, hidden @ last["w"] + last["b"], atol=2e-5)
    for fan_in, layer in zip((3, 6, 5), params, strict=True):
        assert 0.7 / math.sqrt(fan_in) < float(np.abs(layer["w"]).max()) <= 1 / math.sqrt(fan_in)


def test_choice_is_nested_and_breaks_ties_by_the_loss():
    accuracy = np.array([[[0.9, 0.8]], [[0.7, 0.8]], [[0.7, np.nan]]])  # three settings, one seed, two epochs
    loss = np.array([[[2.0, 2.0]], [[2.0, 1.0]], [[2.0, np.nan]]])
    score = tools.validation_score(accuracy, loss, 10)
    test = np.array([[[0.1, 0.2]], [[0.3, 0.4]], [[0.5, 0.6]]])
    found = tools.choose(tools.Curves(score, loss, loss, loss, test))
    assert found.last.tolist() == [0.4]  # equal accuracy at the last epoch, lower loss; never the diverged one
    assert found.stopped.tolist() == [0.1]
    # Half an example is the most that a loss can weigh.
    better, worse = tools.validation_score(np.array([0.8, 0.7]), np.array([1e9, 0.0]), 10)
    assert better > worse


def test_auxiliary_models_never_see_what_they_judge(key):
    scale = dataclasses.replace(flooding_synthetic.TEST, widths=(16,))
    problem = sinusoid(0, num_test=4)
    arrays = stack([problem])
    run = jax.jit(make_auxiliary(scale, arrays))
    before = run(key, case=0, fold=1)
    labels = np.array(arrays.y[0])
    held = slice(scale.num_train // scale.folds, 2 * scale.num_train // scale.folds)
    labels[0, held] = 1 - labels[0, held]
    after = jax.jit(make_auxiliary(scale, arrays._replace(y=(labels, *arrays.y[1:]))))(key, case=0, fold=1)
    # Each example's two losses belong to p and 1 - p of one unchanged model.
    np.testing.assert_allclose(np.exp(-before) + np.exp(-after), 1.0, atol=1e-5)


@pytest.fixture(scope="module")
def synthetic():
    return json.loads(json.dumps(reproduce("flooding-synthetic", "test"), allow_nan=False))


@pytest.fixture(scope="module")
def digits():
    return json.loads(json.dumps(reproduce("flooding-digits", "test"), allow_nan=False))


@functools.partial(jax.jit, static_argnums=3)
def losses_of(params, x, y, normalized):
    """Cross-entropies of a network with or without normalization, written again."""
    for layer in params[:-1]:
        x = x @ layer["w"]
        if normalized:
            x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) * layer["scale"] + layer["shift"]
        else:
            x = x + layer["b"]
        x = jnp.maximum(x, 0)
    z = x @ params[-1]["w"] + params[-1]["b"]
    return jax.nn.logsumexp(z, axis=1) - z[jnp.arange(len(y)), y]


def test_synthetic_runs_are_those_of_a_direct_loop(synthetic):
    scale, drawn = flooding_synthetic.TEST, synthetic["curves"]["problems"]["sinusoid, 10% noise"]
    tx, begin = optax.adam(scale.learning_rate), jax.jit(initial_layers, static_argnums=1)
    for method, level in (("none", 0.0), ("flooding", drawn["level"])):

        @jax.jit
        def step(params, state, x, y, level=level):
            def loss(p):
                return jnp.abs(losses_of(p, x, y, True).mean() - level) + level

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        means = []
        for seed in range(scale.seeds):
            data = sinusoid(seed, label_noise=0.1, num_test=scale.num_test).data
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), seed)
            params = begin(key, (2, *scale.widths, 2))
            state, means = tx.init(params), [*means, []]
            for n in range(3 * scale.every + 1):
                if n % scale.every == 0:
                    means[-1].append(float(losses_of(params, data.x_train, data.y_train, True).mean()))
                params, state = step(params, state, data.x_train, data.y_train)
        # Rounding grows along a path: the beginning decides whether these are the same runs.
        np.testing.assert_allclose(drawn[method]["train"][:4], np.mean(means, axis=0), rtol=2e-3)


def test_synthetic_finds_what_the_flood_does(synthetic):
    name, numbers = "sinusoid, 10% noise", synthetic["numbers"]
    drawn = synthetic["curves"]["problems"][name]
    assert drawn["level"] in flooding_synthetic.TEST.levels
    tail = np.array(drawn["flooding"]["train"][-5:])
    np.testing.assert_allclose(tail, drawn["level"], atol=0.02)
    # Below what any model can reach on new labels: the noise was learned.
    assert drawn["none"]["train"][-1] < noise_entropy(0.1) / 2 < noise_entropy(0.1) < drawn["none"]["test"][-1]
    assert numbers[f"{name}: loss mean"] < 0 < numbers[f"{name}: gain mean"]
    assert numbers["worst loss"] == numbers[f"{name}: loss high"]
    assert [part["holds"] for part in synthetic["parts"]] == [
        numbers["worst gain"] > 0,
        numbers["worst settling"] <= 0.03,
        numbers["worst loss"] < 0,
        numbers["worst second"] < 0,
        numbers["worst stopping"] > 0,
    ]
    assert len(synthetic["tables"][1]["rows"]) == len(drawn["methods"]) == 8
    assert paper_figure(synthetic).get_suptitle()
    assert to_png(paper_figure(synthetic))[1:4] == b"PNG"


def test_digits_runs_are_those_of_a_direct_loop(digits):
    scale = flooding_digits.TEST
    first = digits["curves"]["data"]["breast-cancer, SGD"]["methods"]["alternating"]["train"][:2]
    descent, ascent = 2 / 9 * 10 * scale.sgd_step, 2 / 9 * scale.sgd_step
    gradient = jax.jit(jax.grad(lambda p, x, y: losses_of(p, x, y, False).mean()))
    begin = jax.jit(functools.partial(initial_layers, sizes=(30, *scale.widths, 2), normalize=False))
    permutation = jax.jit(lambda key, n: jax.random.permutation(key, jnp.arange(n)), static_argnums=1)
    means = []
    for seed in range(scale.seeds):
        data = load_dataset(
            "breast-cancer", seed=seed, label_noise=scale.noise, validation=scale.validation, test=scale.test
        )
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), seed)
        start, order = jax.random.split(key)
        params = begin(start)
        per_epoch, means = len(data.y_train) // scale.batch_size, [*means, []]
        for n in range(scale.every + 1):
            if n % scale.every == 0:
                means[-1].append(float(losses_of(params, data.x_train, data.y_train, False).mean()))
            epoch = permutation(jax.random.fold_in(order, n // per_epoch), len(data.y_train))
            rows = epoch[n % per_epoch * scale.batch_size :][: scale.batch_size]
            g = gradient(params, data.x_train[rows], data.y_train[rows])
            rate = descent if n % 2 == 0 else -ascent
            params = jax.tree.map(lambda p, d, rate=rate: p - rate * d, params, g)
    np.testing.assert_allclose(first, np.mean(means, axis=0), rtol=2e-3)


def test_digits_judges_the_level_against_where_validation_loss_rises(digits):
    drawn, numbers = digits["curves"]["data"]["breast-cancer, SGD"], digits["numbers"]
    level, rises = np.array(drawn["chosen"]), np.array(drawn["rises_at"]["loss"])
    assert set(level) <= {0.0, *flooding_digits.TEST.levels}
    assert numbers["breast-cancer, SGD: half mean"] == pytest.approx((level - rises / 2).mean(), abs=1e-6)
    assert numbers["worst half"] == numbers["breast-cancer, SGD: half high"] > numbers["breast-cancer, SGD: half mean"]
    assert [part["holds"] for part in digits["parts"]] == [
        numbers["worst gain"] > 0,
        numbers["worst loss"] < 0,
        numbers["worst half"] < 0,
        numbers["worst alternating"] < 0,
    ]
    assert to_png(paper_figure(digits))[1:4] == b"PNG"
