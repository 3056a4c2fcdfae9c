"""The rows of stochastic gradient descent, enumeration, samples, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicit_reg.flows import stochastic as fields
from implicit_reg.orderings import epoch_orders, reverse_pair
from implicit_reg.predictions import measure, orderings, stochastic
from implicit_reg.predictions.prediction import Effort
from implicit_reg.problems import load_problem

pytestmark = pytest.mark.x64

ROWS = {row.name: row for row in stochastic.ROWS}


def check(name, effort=Effort.QUICK, loss="tanh-network"):
    return measure.check(ROWS[name], [load_problem(loss, dtype="float64")], effort)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_holds(name):
    found = check(name)
    assert found["verdict"] == "holds", found


@pytest.mark.parametrize("name", ROWS)
def test_standard_holds(name):
    found = check(name, Effort.STANDARD)
    assert {case["statement"]: case["verdict"] for case in found["details"]["cases"]} == {
        case["statement"]: "holds" for case in found["details"]["cases"]
    }


def test_a_wrong_field_fails(monkeypatch):
    right = fields.shuffled_terms

    def without_variance(loss, m, x, h, order):
        terms = right(loss, m, x, h, order=order)
        return (terms[0], fields.shuffled_parts(loss, m, x, h)[0], *terms[2:])

    monkeypatch.setattr(fields, "shuffled_terms", without_variance)
    assert check("sgd-shuffled")["verdict"] == "fails"


@pytest.mark.parametrize("name", ROWS)
def test_a_loss_without_examples_is_refused(name):
    with pytest.raises(ValueError, match="takes no examples"):
        check(name, loss="nonquadratic")


def test_a_population_is_all_paths():
    loss = lambda x, k: jnp.sum(jnp.cos(x + k) + x**2)  # noqa: E731
    orders, x, h = epoch_orders(3), jnp.array([0.3]), 0.1
    runs = orderings.population(optax.sgd, loss, orders, 2)
    y = runs.start(None, h, x)
    for n in range(2):
        y = runs.step(None, h, n, y)
    ends = []
    for first in orders:
        for second in orders:
            point = x
            for k in (*first, *second):
                point = point - h * jax.grad(loss)(point, k)
            ends.append(float(point[0]))
    np.testing.assert_allclose(np.sort(np.ravel(y.x)), np.sort(ends), rtol=1e-14)
    np.testing.assert_allclose(runs.read(y), np.mean(ends), rtol=1e-14)


def test_initial_states_are_multiplied():
    loss = lambda x, k: jnp.sum((x - k) ** 2)  # noqa: E731
    runs = orderings.population(
        lambda h: optax.sgd(h, momentum=0.5),
        loss,
        orderings.single_batches(2),
        1,
        states=lambda h, x, fresh: jax.tree.map(lambda leaf: jnp.array([[0.0], [1.0]]), fresh),
        num_states=2,
    )
    y = runs.step(None, 0.1, 0, runs.start(None, 0.1, jnp.array([1.0])))
    np.testing.assert_allclose(np.ravel(y.x), [0.8, 1.0, 0.75, 0.95])


def test_samples_come_in_reverse_pairs_from_their_key(key):
    drawn = epoch_orders(8, num_samples=10, key=key)
    assert drawn.shape == (10, 8)
    assert (drawn[::2] == drawn[1::2, ::-1]).all()
    assert (np.sort(drawn, axis=1) == np.arange(8)).all()
    assert (drawn == epoch_orders(8, num_samples=10, key=key)).all()
    assert (drawn != epoch_orders(8, num_samples=10, key=jax.random.fold_in(key, 1))).any()


def test_what_is_refused(key):
    with pytest.raises(ValueError, match=r"from 7 on Monte Carlo is used: give `num_samples` and `key`"):
        epoch_orders(7)
    with pytest.raises(ValueError, match="`key`"):
        epoch_orders(7, num_samples=10)
    with pytest.raises(ValueError, match="`num_samples`"):
        epoch_orders(7, key=key)
    with pytest.raises(ValueError, match="must be even"):
        epoch_orders(7, num_samples=11, key=key)
    with pytest.raises(ValueError, match="more than 65536"):
        orderings.population(optax.sgd, lambda x, k: jnp.sum(x), epoch_orders(6), 2)
    with pytest.raises(ValueError, match=r"each of 0\.\.m-1 once"):
        reverse_pair([0, 0, 1])
