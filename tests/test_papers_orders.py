"""The papers about orders and strengths, run again at test scale: each beside a loop of its own, or a closed form."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from implicit_reg.experiments import REPRODUCTIONS, load_reproduction, reproduce
from implicit_reg.experiments.papers import _small_epochs, _stitches, adam, backstitch, momentum
from implicit_reg.experiments.papers._digits_mlp import cross_entropy, digits_split, glorot_layers
from implicit_reg.experiments.steps import shuffled_batches
from implicit_reg.plots import to_png
from implicit_reg.plots.papers import paper_figure
from implicit_reg.problems import nonquadratic

pytestmark = pytest.mark.x64

NAMES = ("sgd-permutations", "sgd-temperature", "backstitch", "momentum", "adam")


@functools.cache
def record(name):
    """As a user's file holds it."""
    return json.loads(json.dumps(reproduce(name, "test")))


def held(name):
    return [part["holds"] for part in record(name)["parts"]]


@pytest.mark.parametrize("name", NAMES)
def test_figure_from_a_file(name):
    png = to_png(paper_figure(record(name)), dpi=40)
    assert png[1:4] == b"PNG"
    assert all(table["rows"] for table in record(name)["tables"])


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_can_fail(name):
    numbers = {key: np.nan if value is None else value for key, value in record(name)["numbers"].items()}
    for criterion in load_reproduction(name).criteria:
        assert not criterion.holds(dict.fromkeys(numbers, np.nan)), criterion.text
        # An order of 2 is none of 3, a factor of 1.5 none of 1: one wrong number is enough.
        changed = [numbers | {key: wrong} for key in numbers for wrong in (0.37 + 2.1 * numbers[key], -5.0)]
        assert not all(criterion.holds(found) for found in changed), criterion.text


@pytest.mark.parametrize("name", NAMES)
def test_scales(name):
    assert name in REPRODUCTIONS
    for settings in load_reproduction(name).scales.values():
        json.dumps(dataclasses.asdict(settings))


def test_permutations():
    assert held("sgd-permutations") == [True] * 11
    # One epoch by hand, on all orders, and the flow of the formula as it is printed, by another solver.
    h = 0.005
    network = _small_epochs.small_network(jax.random.fold_in(jax.random.key(0), 0))
    gradient = jax.jit(jax.grad(network.loss_fn))
    ends = []
    for order in _small_epochs.ORDERS:
        x = network.start
        for k in order:
            x = x - h * gradient(x, int(k))
        ends.append(np.asarray(x))

    def regularized(x):
        each = jnp.stack([jax.grad(network.loss_fn)(x, k) for k in range(4)])
        return network.mean_loss(x) + h / 16 * jnp.sum(each**2)

    field = jax.jit(jax.grad(regularized))
    flow = solve_ivp(lambda t, x: -np.asarray(field(x)), (0, 4 * h), network.start, rtol=1e-10, atol=1e-13).y[:, -1]
    distance = np.linalg.norm(np.mean(ends, axis=0) - flow)
    found = record("sgd-permutations")
    step = found["settings"]["step_sizes"].index(h)
    assert found["curves"]["errors"]["without replacement"]["SGD-modified"][step] == pytest.approx(distance, rel=1e-4)
    # 24 orders and 256 sequences; the mean of a cloud is on the axis of the variance term.
    cloud = found["curves"]["cloud"]
    assert (len(cloud["without replacement"]), len(cloud["with replacement"])) == (24, 256)
    assert abs(np.mean(cloud["without replacement"], axis=0)[1]) < 1e-12


def test_temperature():
    assert held("sgd-temperature") == [True] * 4
    # c B/h is 1/4 in every cell, far outside of what a wrong power of h or B, or the factor N/(N - 1), would leave.
    for h, batch, c, ratio, *_ in record("sgd-temperature")["tables"][0]["rows"]:
        assert c == pytest.approx(h / (4 * batch), rel=0.12)
        assert ratio == pytest.approx(c * batch / h)


def test_backstitch_strength():
    assert held("backstitch")[:2] == [True, True]
    numbers = record("backstitch")["numbers"]
    assert numbers["strength, alpha = 0.3, n = 1"] == pytest.approx(1.78, rel=1e-3)
    assert numbers["strength, alpha = 1, n = 4"] == pytest.approx(2.00, rel=1e-3)
    assert numbers["strength, SGD"] == pytest.approx(1, rel=1e-3)


def test_backstitch_budget():
    assert [_stitches.Stitch(*pair).num_steps(1600) for pair in ((0.0, 1), (0.3, 1), (1.0, 4))] == [1600, 800, 1280]
    for settings in load_reproduction("backstitch").scales.values():
        for stitch in (_stitches.PLAIN, *_stitches.RECOMMENDED):
            steps = stitch.num_steps(settings.budget)
            record_at = backstitch.HALFWAY[stitch.interval if stitch.alpha else 0]
            assert steps % backstitch.RECORDS == 0
            assert steps // backstitch.RECORDS * record_at == settings.budget // 2


def test_backstitch_run():
    # One run of the sweep by hand: back by alpha h g, forward by (1 + alpha) h g' on the same minibatch.
    settings = load_reproduction("backstitch").scales["test"]
    h, alpha = settings.step_sizes[0], 1.0
    assert settings.trained[1] == (alpha, 1)

    @jax.jit
    def test_loss(key):
        parts = digits_split(jax.random.fold_in(key, 0), settings.num_train, 1497)
        batch = shuffled_batches(jax.random.fold_in(key, 1), settings.num_train, settings.batch_size)
        gradient = jax.grad(cross_entropy)

        def step(n, params):
            x, y = parts.x_train[batch(n)], parts.y_train[batch(n)]
            moved = jax.tree.map(lambda p, g: p + alpha * h * g, params, gradient(params, x, y))
            return jax.tree.map(lambda p, g: p - (1 + alpha) * h * g, moved, gradient(moved, x, y))

        start = glorot_layers(jax.random.fold_in(key, 2), (settings.width,))
        end = jax.lax.fori_loop(0, settings.budget // 2, step, start)
        return cross_entropy(end, parts.x_test[497:], parts.y_test[497:])

    wanted = float(test_loss(jax.random.fold_in(jax.random.key(1), 0)))
    assert record("backstitch")["curves"]["test loss"][1][0][0] == pytest.approx(wanted, rel=1e-3)


def test_momentum():
    assert held("momentum") == [True] * 6
    numbers = record("momentum")["numbers"]
    for kind, b, value in (
        ("heavy ball", 0.5, 3),
        ("Nesterov", 0.5, 2),
        ("heavy ball", 0.9, 475),
        ("Nesterov", 0.9, 430),
    ):
        assert numbers[f"{kind}: coefficient at b = {b:g}"] == pytest.approx(value, rel=0.01)
        assert momentum.formula(b, kind == "Nesterov") == pytest.approx(value)


def test_adam():
    assert held("adam") == [True] * 5
    rows = {tuple(row[:2]): row[2:4] for row in record("adam")["tables"][0]["rows"]}
    for (b1, b2), (formula, measured) in rows.items():
        wanted = (1 + b1) / (1 - b1) - (1 + b2) / (1 - b2)
        assert formula == pytest.approx(wanted)
        assert abs(measured - wanted) < 0.2
    # The recursion as it is printed, and the flow of the sign, a straight line as long as no sign changes.
    b1, b2, h, num = 0.9, 0.5, 1e-3, 200
    problem = nonquadratic()
    gradient = jax.jit(jax.grad(problem.loss_fn))
    key = jax.random.fold_in(jax.random.key(0), 0)
    start = np.asarray(problem.params + adam.SPREAD * jax.random.normal(key, (3,)))
    x, m, v = start, np.zeros(3), np.zeros(3)
    for n in range(1, num + 1):
        g = np.asarray(gradient(x))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        x = x - h * (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + 1e-8)
    line = start - num * h * np.sign(np.asarray(gradient(start)))
    drift = np.abs(np.asarray(gradient(x))).sum() - np.abs(np.asarray(gradient(line))).sum()
    followed = {tuple(run["pair"]): run["drift"] for run in record("adam")["curves"]["followed"]}
    assert drift < 0
    assert followed[(b1, b2)][-1] == pytest.approx(drift, rel=1e-5)
    assert followed[(0.9, 0.999)][-1] > 0
