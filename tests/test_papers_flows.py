"""The reproductions of flows at test scale: their numbers against closed forms and direct loops, and their figures."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reg.experiments import reproduce
from implicit_reg.experiments.papers import (
    edge_of_stability,
    flooding_slow_flow,
    igr_two_parameter,
    principal_flow,
)
from implicit_reg.experiments.reproduction import judge
from implicit_reg.plots.papers import paper_figure

pytestmark = pytest.mark.x64

MODULES = {
    "flooding-slow-flow": flooding_slow_flow,
    "igr-two-parameter": igr_two_parameter,
    "edge-of-stability": edge_of_stability,
    "principal-flow": principal_flow,
}


@pytest.fixture(scope="module")
def records():
    return {}


def record_of(name, records):
    """The record at test scale, run once, as JSON keeps it."""
    if name not in records:
        records[name] = json.loads(json.dumps(reproduce(name, "test")))
    return records[name]


def table(record, k=0):
    """Rows as dictionaries."""
    found = record["tables"][k]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


@pytest.mark.parametrize("name", MODULES)
def test_the_criteria_hold_at_test_scale(name, records):
    record = record_of(name, records)
    assert record["verdict"] == "reproduced", [part for part in record["parts"] if not part["holds"]]
    # Numbers that could not be measured must never pass.
    nothing = dict.fromkeys(record["numbers"], math.nan)
    verdict, parts = judge(MODULES[name].CRITERIA, nothing)
    assert verdict == "not", parts


@pytest.mark.parametrize("name", MODULES)
def test_the_figure_is_drawn_from_the_record(name, records):
    figure = paper_figure(record_of(name, records))
    figure.draw_without_rendering()
    assert "Scale: test" in figure.get_supxlabel()


@pytest.mark.parametrize("name", MODULES)
def test_the_full_scale_asks_for_more(name):
    scales = MODULES[name].REPRODUCTION.scales
    assert type(scales["full"]) is type(scales["fast"])
    assert scales["full"] != scales["fast"] != scales["test"]


# --- The principal flow.


def test_the_quadratics_last_iterates_are_powers(records):
    for row in table(record_of("principal-flow", records)):
        h, n = row["h"], row["steps"]
        assert row["last iterate, across"] == pytest.approx(-0.35 * (1 - 2 * h) ** n, rel=1e-12, abs=1e-15)
        assert row["last iterate, along"] == pytest.approx(-0.2 * (1 - 0.02 * h) ** n, rel=1e-12)


def test_the_second_order_flow_contracts_by_its_closed_form(records):
    numbers = record_of("principal-flow", records)["numbers"]
    z = 2.1
    assert numbers["growth per step at the largest h: second-order flow"] == pytest.approx(math.exp(-z - z**2 / 2))
    assert numbers["growth per step at the largest h: principal flow"] == pytest.approx(1.1)


# --- The two-parameter model.


def test_ends_of_descent_against_a_direct_loop_and_of_gradient_flow_in_closed_form(records):
    record = record_of("igr-two-parameter", records)
    # a^2 - b^2 and a b = 0.6 are known at the end: |w|^4 = (a^2 - b^2)^2 + 4 (a b)^2.
    closed = math.sqrt((2.8**2 - 3.5**2) ** 2 + 4 * 0.6**2)
    assert record["numbers"]["|w|^2 at the end: gradient flow"] == pytest.approx(closed, abs=1e-8)
    a, b, h = 2.8, 3.5, 0.025
    for _ in range(round(record["settings"]["time"] / h)):
        r = a * b - 0.6
        a, b = a - h * r * b, b - h * r * a
    assert record["numbers"]["|w|^2 at the end: h = 0.025"] == pytest.approx(a**2 + b**2, abs=1e-9)


def test_the_penalized_end_against_a_direct_loop(records):
    record = record_of("igr-two-parameter", records)
    a, b, mu, h = 2.8, 3.5, 0.05, record["settings"]["euler"]
    for _ in range(round(record["settings"]["time"] / h)):
        r, size = a * b - 0.6, a * a + b * b
        # ||g||^2 = r^2 (a^2 + b^2)
        da = r * b + mu * (2 * r * b * size + 2 * r**2 * a)
        db = r * a + mu * (2 * r * a * size + 2 * r**2 * b)
        a, b = a - h * da, b - h * db
    assert record["numbers"]["|w|^2 at the end: mu = 0.05"] == pytest.approx(a**2 + b**2, abs=1e-9)


def test_the_invariants_of_the_first_step(records):
    record = record_of("igr-two-parameter", records)
    r = 2.8 * 3.5 - 0.6
    for path in record["curves"]["paths"]:
        if len(path["path"]) > 1 and path["stride"] == 1:
            assert path["invariant"][1] == pytest.approx(1 - (path["h"] * r) ** 2, abs=1e-12)
    assert record["numbers"]["recalled step sizes that diverge from the far start"] == 3


# --- Flooding.


def test_a_single_run_of_flooding_against_a_direct_loop(records):
    """The mean over phases moves as much as one run, up to what a step moves."""
    record = record_of("flooding-slow-flow", records)
    e, level = 0.0125, flooding_slow_flow.LEVEL
    a, b = flooding_slow_flow.VALLEY_START
    for _ in range(round(record["settings"]["valley_time"] / e**2)):
        r = a * b - 0.6
        s = 1 if 0.5 * r * r > level else -1
        a, b = a - s * e * r * b, b - s * e * r * a
    first = np.subtract(*np.square(flooding_slow_flow.VALLEY_START))
    measured = record["curves"]["decay"]["measured"][0][-1]
    assert (a * a - b * b) / first == pytest.approx(measured, abs=5e-3)
    assert measured == pytest.approx(math.exp(-2 * level * record["settings"]["valley_time"]), abs=1e-3)


# --- The edge of stability.


def test_sharpness_and_iterates_against_a_direct_loop(records):
    record = record_of("edge-of-stability", records)
    settings, run = record["settings"], record["curves"]["runs"][0]
    loss, x = edge_of_stability.network(settings["width"], settings["seed"])
    step = jax.jit(lambda x: x - run["h"] * jax.grad(loss)(x))
    dense = jax.jit(lambda x: jnp.linalg.eigvalsh(jax.hessian(loss)(x))[-1])
    every = settings["every"]
    for n in range(15 * every + 1):
        if n in (0, 15 * every):
            assert run["sharpness"][n // every] == pytest.approx(float(dense(x)), rel=1e-5)
            assert run["loss"][n // 10] == pytest.approx(float(loss(x)), rel=1e-9)
        x = step(x)


def test_the_published_start():
    _, start = edge_of_stability.network(4000, 0)
    inner, biases, outer = np.split(np.asarray(start), 3)
    deviation = math.sqrt(2 / 4001)
    assert inner.std() == pytest.approx(1.9 * deviation, rel=0.05)
    assert outer.std() == pytest.approx(deviation, rel=0.05)
    assert not biases.any()
