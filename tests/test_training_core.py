"""The functional core: each epoch against steps typed again with plain `jax.grad`, and metrics against scikit-learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import metrics as sklearn_metrics
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.training import Knobs, Run, Settings, fit, load_data, mean_loss, results, score

WINE = Settings(data="wine", widths=(4,), epochs=2, batch_size=20)


def network(params, x):
    """The MLP typed again: tanh layers and a linear one."""
    hidden = [params["hidden"][k] for k in sorted(params["hidden"])]
    for layer in hidden:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def cross_entropy(params, x, y):
    logits = network(params, x)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y])


def as_dict(state):
    return nnx.to_pure_dict(state)


def by_hand(run, epochs, step):
    """`step(params, x, y, count) -> (params, loss)` over the minibatches of the program's order."""
    state = run.init()
    params, losses = as_dict(state.params), []
    for epoch in range(epochs):
        for rows in np.asarray(run.program.order(state.key, epoch)):
            x, y = run.data.x_train[rows], run.data.y_train[rows]  # NumPy: no program is compiled for the indexing
            params, loss = step(params, x, y, np.float32(len(losses)))
            losses.append(float(loss))
    return params, losses


def test_gradient_descent_is_the_retyped_loop():
    run = Run(WINE)
    state, history = fit(run)

    @jax.jit
    def step(params, x, y, count):
        loss, gradient = jax.value_and_grad(cross_entropy)(params, x, y)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), loss

    params, losses = by_hand(run, 2, step)
    assert_close(as_dict(state.params), params, ROUND_OFF)
    assert_close(np.float32(history[1]["train_loss"]), np.float32(np.mean(losses[5:])), ROUND_OFF)
    validation = cross_entropy(params, run.arrays.x_validation, run.arrays.y_validation)
    assert_close(np.float32(history[1]["validation_loss"]), validation, ROUND_OFF)
    assert [record["gradients"] for record in history] == [5.0, 10.0]


def test_backstitch_on_a_schedule_is_the_retyped_loop():
    settings = dataclasses.replace(WINE, method="backstitch", hyper=("alpha=0.5",), schedule="cosine", warmup=0.6)
    run = Run(settings)
    state, _ = fit(run)

    @jax.jit
    def step(params, x, y, count):
        # Three steps of warm-up, then seven along a cosine.
        h = 0.1 * jnp.where(count < 3, count / 3, 0.5 * (1 + jnp.cos(jnp.pi * (count - 3) / 7)))
        loss, first = jax.value_and_grad(cross_entropy)(params, x, y)
        behind = jax.tree.map(lambda p, g: p + 0.5 * h * g, params, first)
        second = jax.grad(cross_entropy)(behind, x, y)
        return jax.tree.map(lambda p, g: p - 1.5 * h * g, behind, second), loss

    assert_close(as_dict(state.params), by_hand(run, 2, step)[0], ROUND_OFF)


def test_a_second_evaluation_sees_the_same_masks_and_moves_no_average():
    settings = dataclasses.replace(
        WINE, method="sam", hyper=("radius=0.5",), dropout=0.5, batch_norm=True, epochs=1, batch_size=0
    )
    run = Run(settings)
    start = run.init()
    state, record = run.step_epoch(start)
    mask_key = jax.random.fold_in(jax.random.fold_in(start.key, 2), 0)
    mask_key = jax.random.fold_in(mask_key, 0)
    keep = jax.random.bernoulli(mask_key, 0.5, (106, 4))
    rows = run.program.order(start.key, 0)[0]
    x, y = run.arrays.x_train[rows], run.arrays.y_train[rows]

    def pre(params):
        return x @ params["hidden"][0]["kernel"] + params["hidden"][0]["bias"]

    def loss_fn(params):
        h = pre(params)
        scale, shift = params["norms"][0]["scale"], params["norms"][0]["bias"]
        h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) * scale + shift
        h = jnp.where(keep, jnp.tanh(h) / 0.5, 0)
        logits = h @ params["output"]["kernel"] + params["output"]["bias"]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y])

    @jax.jit
    def retyped(params):
        value, gradient = jax.value_and_grad(loss_fn)(params)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        ahead = jax.grad(loss_fn)(jax.tree.map(lambda p, g: p + 0.5 * g / norm, params, gradient))
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, ahead)

    params = as_dict(start.params)
    value, expected = retyped(params)
    assert_close(record["train_loss"], value, DERIVATIVE)
    assert_close(as_dict(state.params), expected, DERIVATIVE)
    # One update from the averages 0 and 1, at the parameters before the step.
    stats = as_dict(state.stats)["norms"][0]
    assert_close(stats["mean"], 0.1 * pre(params).mean(0), DERIVATIVE)
    assert_close(stats["var"], 0.9 + 0.1 * pre(params).var(0), DERIVATIVE)


def test_the_order_is_a_permutation_and_the_epoch_moves_it():
    shuffled, fixed = Run(WINE).program, Run(dataclasses.replace(WINE, shuffle=False)).program
    key = jax.random.key(3)
    one, two = (np.asarray(shuffled.order(key, epoch)) for epoch in (0, 1))
    assert one.shape == (5, 20)
    assert len(np.unique(one)) == 100
    assert one.max() <= 105
    assert not np.array_equal(one, two)
    assert np.array_equal(*(np.asarray(fixed.order(key, epoch)) for epoch in (0, 1)))
    assert not np.array_equal(fixed.order(key, 0), fixed.order(jax.random.key(4), 0))
    full = Run(dataclasses.replace(WINE, batch_size=0)).program
    assert full.order(key, 0).shape == (1, 106)


def test_steps_beyond_the_limit_change_nothing_and_lanes_agree_with_runs():
    linear = dataclasses.replace(WINE, widths=())
    run = Run(linear)
    a, records = fit(Run(linear, limit=7))
    assert int(a.step) == 7
    assert records[-1]["steps"] == 7
    state = run.init()

    order = run.program.order(state.key, state.epoch)

    def epoch(state, knobs):
        return run.program.epoch(state, run.arrays, knobs, order)

    lanes = jax.jit(jax.vmap(epoch, in_axes=(None, 0)))
    knobs = Knobs(jnp.array([0.1, 0.3], jnp.float32), {}, jnp.array([3, 5], jnp.int32))
    many, record = lanes(state, knobs)
    for lane, (rate, limit) in enumerate([(0.1, 3), (0.3, 5)]):
        alone, alone_record = jax.jit(epoch)(state, Knobs(jnp.float32(rate), {}, jnp.int32(limit)))
        assert int(many.step[lane]) == limit == int(alone.step)
        assert_close(jax.tree.map(lambda leaf: leaf[lane], many.params), alone.params, ROUND_OFF)
        assert_close(record["train_loss"][lane], alone_record["train_loss"], ROUND_OFF)


def test_the_best_epoch_is_kept():
    settings = dataclasses.replace(WINE, widths=(), learning_rate=3.0, epochs=6, label_noise=0.4, seed=2)
    for select, sign, name in (("loss", 1, "validation_loss"), ("score", -1, "validation_score")):
        run = Run(dataclasses.replace(settings, select=select))
        state, history = fit(run)
        values = [(sign * record[name], record["validation_loss"]) for record in history]
        wanted = min(range(6), key=lambda k: values[k]) + 1
        numbers = results(run, state)
        assert numbers["best"]["epoch"] == wanted
        assert_close(numbers["best"]["validation"]["cross_entropy"], history[wanted - 1]["validation_loss"], ROUND_OFF)
        assert numbers["last"]["validation"]["cross_entropy"] == history[-1]["validation_loss"]
        assert numbers["note"].startswith("0.4 of the training")


def test_divergence_is_data():
    run = Run(dataclasses.replace(WINE, data="diabetes", learning_rate=1000.0, activation="softplus", epochs=40))
    state, history = fit(run)
    assert len(history) < 40
    assert history[-1]["finite"] is False
    assert history[-1]["validation_loss"] is None
    numbers = results(run, state)
    assert numbers["diverged"] is True
    assert numbers["last"]["test"]["mean_squared_error"] is None


def test_flooding_reports_its_fraction_and_others_none():
    run = Run(dataclasses.replace(WINE, method="flooding", hyper=("level=1",), learning_rate=0.5, epochs=10))
    _, history = fit(run)
    losses = by_hand_fraction(run)
    assert 0.2 < history[-1]["flooded_fraction"] < 0.8
    assert_close(history[-1]["flooded_fraction"], losses, ROUND_OFF)
    assert fit(Run(WINE))[1][-1]["flooded_fraction"] is None


def by_hand_fraction(run):
    @jax.jit
    def step(params, x, y, count):
        loss, gradient = jax.value_and_grad(cross_entropy)(params, x, y)
        return jax.tree.map(lambda p, g: p - 0.5 * jnp.sign(loss - 1) * g, params, gradient), loss

    _, losses = by_hand(run, 10, step)
    return float(np.mean(np.array(losses) < 1))


def test_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((30, 4), dtype=np.float32), rng.integers(0, 4, 30).astype(np.int32)
    probabilities = np.asarray(jax.nn.softmax(logits))
    expected = sklearn_metrics.log_loss(labels, probabilities, labels=range(4))
    assert_close(mean_loss("classification", jnp.asarray(logits), labels), np.float32(expected), ROUND_OFF)
    expected = sklearn_metrics.accuracy_score(labels, logits.argmax(1))
    assert_close(score("classification", jnp.asarray(logits), labels), np.float32(expected), ROUND_OFF)
    p, y = rng.standard_normal((30, 1), dtype=np.float32), rng.standard_normal(30, dtype=np.float32)
    expected = sklearn_metrics.mean_squared_error(y, p[:, 0])
    assert_close(mean_loss("regression", jnp.asarray(p), jnp.asarray(y)), np.float32(expected), ROUND_OFF)
    expected = sklearn_metrics.r2_score(y, p[:, 0])
    assert_close(score("regression", jnp.asarray(p), jnp.asarray(y)), np.float32(expected), ROUND_OFF)
    assert np.isnan(score("classification", jnp.asarray(logits).at[0, 0].set(jnp.nan), labels))
    assert mean_loss("classification", jnp.asarray(logits, jnp.bfloat16), labels).dtype == jnp.float32


def test_diabetes_comes_in_its_own_units():
    from sklearn import datasets, model_selection

    run = Run(dataclasses.replace(WINE, data="diabetes", epochs=1))
    state, _ = fit(run)
    outputs = np.asarray(run.program.outputs(state.params, state.stats, run.arrays.x_test))[:, 0]
    predicted = outputs * run.data.target_scale + run.data.target_mean
    _, own = model_selection.train_test_split(datasets.load_diabetes().target, test_size=0.2, random_state=0)
    test = results(run, state)["last"]["test"]
    assert_close(test["mean_squared_error"], sklearn_metrics.mean_squared_error(own, predicted), DERIVATIVE)
    assert_close(test["r2"], sklearn_metrics.r2_score(own, predicted), DERIVATIVE)


OPTIONS = Settings(data="wine", widths=(), epochs=1, batch_size=26)  # a linear model, for it compiles fastest


@pytest.fixture(scope="module")
def plain_results():
    """Validation losses by option; the defaults come first, and no option may repeat any of them."""
    runs = {name: Run(dataclasses.replace(OPTIONS, method=name)) for name in ("gd", "backstitch")}
    return {name: fit(run)[1][-1]["validation_loss"] for name, run in runs.items()}


@pytest.mark.parametrize(
    "change",
    [
        {"scaling": "min-max"},
        {"widths": (3,), "activation": "gelu"},
        {"hyper": ("interval=2",)},
        {"hyper": ("interval=2", "offset=1")},
        {"optimizer": "adam"},
        {"optimizer_args": ("momentum=0.9",)},
        {"weight_decay": 0.1},
        {"clip": 0.1},
        {"noise": 0.1},
        {"noise": 0.1, "noise_decay": 1.0},
        {"seed": 1},
        {"split_seed": 1},
        {"dtype": "bfloat16"},
    ],
    ids=lambda change: "-".join(change),
)
def test_options_without_a_retyped_loop_change_the_result(change, plain_results):
    method = "backstitch" if "hyper" in change else "gd"
    state, history = fit(Run(dataclasses.replace(OPTIONS, method=method, **change)))
    assert history[-1]["finite"]
    value = history[-1]["validation_loss"]
    assert value not in plain_results.values()
    plain_results[str(change)] = value
    if change == {"dtype": "bfloat16"}:
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.x64
def test_float64_stays_float64():
    state, _ = fit(Run(dataclasses.replace(WINE, dtype="float64", epochs=1)))
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.best.loss))}
    assert kinds == {jnp.dtype(jnp.float64)}
    narrow, _ = fit(Run(dataclasses.replace(WINE, epochs=1)))
    assert_close(jax.tree.map(jnp.float32, state.params), narrow.params, DERIVATIVE)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"data": "dgits"}, ValueError, r"unknown data set 'dgits'\. Did you mean 'digits'.*module:attribute"),
        ({"method": "backstich"}, ValueError, r"unknown method 'backstich'\. Did you mean 'backstitch'"),
        ({"hyper": ("alpha=0.3",)}, ValueError, r"method gd: unknown hyperparameter 'alpha'.*none at all"),
        ({"method": "backstitch", "hyper": ("alpha=-1",)}, ValueError, r"backstitch: `alpha`"),
        ({"method": "backstitch", "hyper": ("interval=1.5",)}, TypeError, r"`interval` must be an integer"),
        ({"method": "backstitch", "hyper": ("alpha=nan",)}, ValueError, r"`alpha` must be a finite decimal number"),
        ({"method": "backstitch", "hyper": ("alpha",)}, ValueError, r"wanted name=value"),
        ({"method": "sam", "hyper": ("radius=1", "radius=2")}, ValueError, r"`radius` is given twice"),
        ({"optimizer": "sgdd"}, ValueError, r"unknown optimizer 'sgdd'\. Did you mean 'sgd'"),
        ({"optimizer_args": ("momentom=0.9",)}, ValueError, r"Did you mean 'momentum'"),
        ({"learning_rate": 0.0}, ValueError, r"`learning_rate` must be .* greater than 0"),
        ({"learning_rate": float("nan")}, ValueError, r"`learning_rate`"),
        ({"schedule": "cosin"}, ValueError, r"Did you mean 'cosine'"),
        ({"optimizer": "sm3", "schedule": "cosine"}, ValueError, r"optimizer sm3 takes no learning-rate schedule"),
        ({"warmup": 2.0}, ValueError, r"`warmup` must end before the run"),
        ({"weight_decay": -1.0}, ValueError, r"`weight_decay`"),
        ({"clip": 0.0}, ValueError, r"`clip`"),
        ({"noise": -1.0}, ValueError, r"`noise`"),
        ({"batch_size": 107}, ValueError, r"`batch_size` must be at most the 106 training examples"),
        ({"batch_size": -1}, ValueError, r"`batch_size`"),
        ({"epochs": 0}, ValueError, r"`epochs`"),
        ({"seed": 2**32}, ValueError, r"`seed` must be below 2\*\*32"),
        ({"split_seed": -1}, ValueError, r"`split_seed`"),
        ({"select": "accuracy"}, ValueError, r"unknown select 'accuracy'"),
        ({"dtype": "float46"}, TypeError, r"`dtype`"),
        ({"dtype": "float64"}, ValueError, r"float64 needs x64"),
        ({"model": "conv"}, ValueError, r"needs images"),
        ({"dropout": 1.0}, ValueError, r"`dropout`"),
        ({"scaling": "standrd"}, ValueError, r"Did you mean 'standard'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_raise_before_any_work(change, error, match):
    with pytest.raises(error, match=match):
        Run(dataclasses.replace(WINE, **change))


def test_a_users_own_data_method_and_optimizer(tmp_path, monkeypatch):
    (tmp_path / "own_training_parts.py").write_text(
        "import optax\n"
        "from implicit_reg.problems import load_dataset\n"
        "def data():\n"
        "    return load_dataset('wine', seed=9)\n"
        "def method(base, learning_rate, factor=2.0):\n"
        "    return optax.chain(optax.scale(factor), base(learning_rate))\n"
        "method.gradients_per_step = 1.5\n"
        "def optimizer(learning_rate, extra=1.0):\n"
        "    return optax.sgd(learning_rate * extra)\n"
        "def needs(base, learning_rate, factor):\n"
        "    return base(learning_rate)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    linear = dataclasses.replace(WINE, widths=(), epochs=1)
    own = dataclasses.replace(
        linear, data="own_training_parts:data", method="own_training_parts:method", hyper=("factor=3.0",)
    )
    run = Run(own)
    state, history = fit(run)
    assert history[-1]["gradients"] == 7.5
    extra = {"optimizer": "own_training_parts:optimizer", "optimizer_args": ("extra=3",), "split_seed": 9}
    # Gradients times three, or a learning rate times three: the same steps, but for the round-off.
    assert_close(state.params, fit(Run(dataclasses.replace(linear, **extra)))[0].params, ROUND_OFF)
    plain = fit(Run(dataclasses.replace(linear, split_seed=9, learning_rate=0.3)))[0].params
    assert_close(state.params, plain, ROUND_OFF)
    for change, error, match in [
        ({"data": "own_training_parts:number"}, TypeError, "must be an implicit_reg.problems.Dataset"),
        ({"data": "own_training_parts:data", "label_noise": 0.1}, ValueError, "taken as it is"),
        ({"method": "own_training_parts:number"}, TypeError, "`method` must be callable"),
        ({"method": "own_training_parts:needs"}, TypeError, "factor need defaults"),
        ({"optimizer": "own_training_parts:number"}, TypeError, "`optimizer` must be callable"),
        ({"optimizer": "own_training_parts:data"}, (TypeError, ValueError), "optimizer"),
    ]:
        with pytest.raises(error, match=match):
            Run(dataclasses.replace(WINE, **change))


def test_base_optimizers_get_the_value():
    run = Run(dataclasses.replace(WINE, optimizer="polyak_sgd", widths=(), batch_size=0, epochs=5))
    _, history = fit(run)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_load_data_splits_by_its_own_seed():
    one, two = (load_data(dataclasses.replace(WINE, seed=seed, split_seed=5)) for seed in (0, 1))
    assert np.array_equal(one.x_train, two.x_train)


def test_epochs_reuse_the_memory_of_their_state_and_leave_the_callers_alone():
    run = Run(dataclasses.replace(WINE, epochs=2))
    start, seen = run.init(), []
    end, _ = fit(run, state=start, on_epoch=lambda state, history: seen.append(state))
    assert not any(leaf.is_deleted() for state in (start, end) for leaf in jax.tree.leaves(state))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(seen[0].params))
    again, _ = fit(run, state=start)
    assert_close(again.params, end.params, ROUND_OFF)


def test_every_leaf_of_the_state_is_donated_and_no_epoch_talks_to_the_host():
    run = Run(WINE)
    state = jax.tree.map(jnp.copy, run.init())
    order = run.program.order(state.key, state.epoch)
    epoch = jax.jit(run.program.epoch, donate_argnums=0)
    text = epoch.lower(state, run.arrays, run.knobs, order).compile().as_text()
    assert text.count("-alias)") == len(jax.tree.leaves(state)), text[:400]
    run.advance(jax.tree.map(jnp.copy, state))
    state = jax.tree.map(jnp.copy, state)
    with jax.transfer_guard("disallow"):
        after, _ = jax.block_until_ready(run.advance(state))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert "callback" not in str(jax.make_jaxpr(run.program.epoch)(after, run.arrays, run.knobs, order))
