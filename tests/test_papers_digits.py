"""The reproductions on digits: recipes against loops written out here, verdicts against their numbers, figures."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reg.experiments import reproduce, shuffled_batches
from implicit_reg.experiments.papers import _digits_mlp as digits
from implicit_reg.experiments.papers import batch_size, curriculum, igr_mlp
from implicit_reg.plots.papers import paper_figure

MODULES = {"igr-mlp": igr_mlp, "batch-size": batch_size, "curriculum": curriculum}


@functools.cache
def record(name):
    """As a reader of `results.json` has it."""
    return json.loads(json.dumps(reproduce(name, "test"), allow_nan=False))


gradient = jax.jit(jax.grad(digits.cross_entropy))


@jax.jit
def sgd_step(params, x, y, h):
    return jax.tree.map(lambda p, g: p - h * g, params, gradient(params, x, y))


def run_key(settings, seed):
    return jax.random.fold_in(jax.random.key(settings.seed), seed)


def test_pieces():
    params = digits.glorot_layers(jax.random.key(0), (50, 50))
    first = np.asarray(params[0]["w"])
    assert first.shape == (64, 50)
    assert abs(first).max() <= np.sqrt(6 / 114)
    np.testing.assert_allclose(first.var(), 2 / 114, rtol=0.05)  # Glorot's variance
    data = digits.digits_split(jax.random.key(1), 100, 200)
    rows = {tuple(row) for row in np.asarray(data.x_train).tolist()}
    assert len(rows) == 100
    assert not rows & {tuple(row) for row in np.asarray(data.x_test).tolist()}
    # E[(w + s xi)^2] - w^2 = s^2 w^2 for one weight, whose normalized noise is a sign.
    one = {"w": jnp.array([3.0])}
    found = digits.noise_rises(lambda p: jnp.sum(p["w"] ** 2), one, (), 0.5, jax.random.key(2), 400)
    assert abs(float(found) - 2.25) < 4 * 9 / np.sqrt(400)
    assert digits.spearman([1, 2, 3, 4], [0, 5, 4, 9]) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="at most 1797"):
        digits.digits_split(jax.random.key(1), 1000, 1000)


def test_igr_cell_is_plain_sgd_up_to_the_level():
    settings, step, per_look = igr_mlp.SCALES["test"], 0.2, 2  # steps of 0.2 in 0.4, the largest
    found = record("igr-mlp")
    table = next(table for table in found["tables"] if table["title"].startswith("minibatch"))
    row = next(row for row in table["rows"] if row[:2] == [16, step])
    rows = []
    for seed in range(settings.num_seeds):
        split_key, start_key, order_key, _ = jax.random.split(run_key(settings, seed), 4)
        data = digits.digits_split(split_key, settings.num_train, settings.num_test)
        train, test = data[:2], data[2:]
        params = digits.glorot_layers(start_key, (16,) * settings.num_hidden)
        batch = jax.jit(shuffled_batches(order_key, settings.num_train, settings.batch_size))
        for n in range(round(settings.duration / step)):
            chosen = batch(n)
            params = sgd_step(params, data.x_train[chosen], data.y_train[chosen], step)
            loss = float(digits.cross_entropy(params, *train))
            if (n + 1) % per_look == 0 and loss <= settings.level:
                break
        slope = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient(params, *train))))
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        test_loss, accuracy = (float(f(params, *test)) for f in (digits.cross_entropy, digits.accuracy))
        rows.append(((n + 1) * step, loss, slope**2 / size / loss, slope, test_loss, accuracy))
    assert row[2] == settings.num_seeds
    np.testing.assert_allclose([*row[3:7], *row[9:]], np.mean(rows, axis=0), rtol=0.01)


def test_batch_size_is_judged_at_equal_flow_time_by_plain_sgd():
    settings, found = batch_size.SCALES["test"], record("batch-size")
    small = settings.batch_sizes[0]
    variances, losses = [], []
    for seed in range(settings.num_seeds):
        split_key, start_key, order_key = jax.random.split(run_key(settings, seed), 3)
        data = digits.digits_split(split_key, settings.batch_sizes[-1], settings.num_test)
        params = digits.glorot_layers(start_key, settings.widths)
        batch = jax.jit(shuffled_batches(order_key, settings.batch_sizes[-1], small))
        for n in range(settings.num_steps):
            chosen = batch(n)
            params = sgd_step(params, data.x_train[chosen], data.y_train[chosen], settings.step)
        parts = data.x_train.reshape(-1, small, 64), data.y_train.reshape(-1, small)
        gradients = jax.vmap(jax.grad(digits.cross_entropy), (None, 0, 0))(params, *parts)
        variances.append(sum(float(jnp.sum(jnp.var(leaf, axis=0))) for leaf in jax.tree.leaves(gradients)))
        losses.append(float(digits.cross_entropy(params, data.x_test, data.y_test)))
    ends = {q: np.array(found["curves"]["batches"][q]["mean"])[0, -1] for q in ("variance", "test_loss")}
    np.testing.assert_allclose(ends["variance"], np.mean(variances), rtol=0.02)
    np.testing.assert_allclose(ends["test_loss"], np.mean(losses), rtol=0.005)
    # The penalty lowers what it penalizes. Wall time is shown and judged by nothing.
    assert found["numbers"]["variance/penalized-full/high"] < 0
    assert not any("second" in name or "time" in name for name in found["numbers"])
    assert len(found["curves"]["seconds"]) == len(settings.batch_sizes)
    assert min(found["curves"]["seconds"]) > 0


def test_curriculum_shows_what_it_says_when_it_says():
    settings, found = curriculum.SCALES["test"], record("curriculum")
    orders, half = found["curves"]["orders"], settings.num_records // 2
    losses = {order: found["curves"]["paths"]["noisy_loss"]["mean"][k] for k, order in enumerate(orders)}
    assert losses["clean-then-all"][: half + 1] == losses["clean-then-noisy"][: half + 1]
    assert losses["clean-then-all"][half + 1] != losses["clean-then-noisy"][half + 1]
    # Half of the noisy labels are wrong: networks that have not seen them do far worse there than on the clean ones.
    clean = found["curves"]["paths"]["clean_loss"]["mean"][orders.index("clean-then-all")]
    assert clean[half] < 0.5 < 1.5 < losses["clean-then-all"][half]
    # Half of them are wrong, and no other.
    labels = jnp.arange(settings.num_noisy) % 10
    changed = np.asarray(curriculum.flip_labels(jax.random.key(0), labels, 10) != labels)
    assert changed.tolist() == [True] * 10 + [False] * (settings.num_noisy - 10)
    ends = []
    for seed in range(settings.num_seeds):
        split_key, flip_key, start_key, *order_keys = jax.random.split(run_key(settings, seed), 6)
        data = digits.digits_split(split_key, 2 * settings.num_clean, settings.num_test)
        wrong = curriculum.flip_labels(flip_key, data.y_train[settings.num_clean :], settings.num_noisy // 2)
        params = digits.glorot_layers(start_key, settings.widths)
        for key, rows, labels in (
            (order_keys[1], data.x_train[: settings.num_clean], data.y_train[: settings.num_clean]),
            (order_keys[2], data.x_train[settings.num_clean :], wrong),
        ):
            batch = jax.jit(shuffled_batches(key, len(rows), settings.batch_size))
            for n in range(settings.num_steps // 2):
                chosen = batch(n)
                params = sgd_step(params, rows[chosen], labels[chosen], settings.step)
        ends.append(float(digits.cross_entropy(params, *data[2:])))
    test_loss = found["curves"]["paths"]["test_loss"]["mean"][orders.index("clean-then-noisy")]
    np.testing.assert_allclose(test_loss[-1], np.mean(ends), rtol=0.02)


@pytest.mark.parametrize("name", MODULES)
def test_verdict_and_figure(name):
    found = record(name)
    criteria = MODULES[name].REPRODUCTION.criteria
    assert [part["text"] for part in found["parts"]] == [criterion.text for criterion in criteria]
    held = sum(part["holds"] for part in found["parts"])
    assert found["verdict"] == ("reproduced" if held == len(criteria) else "partly" if held else "not")
    figure = paper_figure(found)
    assert len(figure.axes) >= 4
    assert all(ax.lines for ax in figure.axes)


@pytest.mark.parametrize(
    ("module", "place", "claimed"),
    [
        (igr_mlp, 2, {"minibatch/rise": -0.9, "minibatch/rise/p": 0.01}),
        (igr_mlp, 4, {"minibatch/test_accuracy": 0.9, "minibatch/test_accuracy/p": 0.01}),
        (batch_size, 0, {"variance/correlation": 0.9, "variance/correlation/p": 0.01}),
        (batch_size, 3, {"test_accuracy/correlation": -0.9, "test_accuracy/correlation/p": 0.01}),
        (curriculum, 0, {"clean-then-all/test_loss": -0.1, "clean-then-all/test_loss/p": 0.01}),
        (curriculum, 1, {"clean-then-all/test_accuracy": 0.1, "clean-then-all/test_accuracy/p": 0.01}),
    ],
)
def test_criteria_want_the_sign_and_the_evidence(module, place, claimed):
    holds = module.REPRODUCTION.criteria[place].holds
    (name, value), (p, small) = claimed.items()
    assert holds(claimed)
    assert not holds({name: -value, p: small})
    assert not holds({name: value, p: 0.06})
    assert not holds({name: np.nan, p: 0})


def test_full_scales_are_what_they_say():
    full = igr_mlp.SCALES["full"]
    assert full.widths == (50, 100, 200, 400, 800, 1600)
    assert full.num_hidden + 1 == 5
    assert full.num_seeds == 5
    assert full.steps == (0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005)
    assert full.batch_size == 32
    for module in MODULES.values():
        settings = module.SCALES["full"]
        train = getattr(settings, "num_train", 0) or getattr(settings, "num_clean", 0) * 2 or settings.batch_sizes[-1]
        assert train + settings.num_test <= 1797
