"""Two players: the drift against coefficients found from the updates, and the linear game's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import DERIVATIVE, assert_close

import implicit_reg as ir
from implicit_reg.flows import games
from implicit_reg.predictions.games import linear_game_radii

pytestmark = pytest.mark.x64

X, Y = jnp.array([0.3, -0.4]), jnp.array([0.5, 0.2, -0.1])


def f(x, y):
    return jnp.sin(x) * y[:2] - x**2 + y[2]


def k(x, y):
    return jnp.cos(y) * x[0] + jnp.append(x, 1.0) * y - y**3


def update(ratios, simultaneous):
    def phi(h, z):
        x = z["x"] + ratios[0] * h * f(z["x"], z["y"])
        return {"x": x, "y": z["y"] + ratios[1] * h * k(z["x"] if simultaneous else x, z["y"])}

    return phi


@pytest.mark.parametrize("ratios", [(1.0, 1.0), (1.0, 2.5), (0.7, 0.2)])
@pytest.mark.parametrize("simultaneous", [False, True])
def test_drift_is_what_the_modified_equation_of_the_update_says(ratios, simultaneous):
    rule = games.simultaneous_game_terms if simultaneous else games.alternating_game_terms
    h = 0.1
    coefficients = ir.modified_coefficients(update(ratios, simultaneous), 2)({"x": X, "y": Y})
    found = rule(f, k, X, Y, (ratios[0] * h, ratios[1] * h))
    for n, (term, coefficient) in enumerate(zip(found, coefficients, strict=True), start=1):
        assert_close({"x": term[0], "y": term[1]}, jax.tree.map(lambda c: h**n * c, coefficient), DERIVATIVE)


@pytest.mark.parametrize("simultaneous", [False, True])
def test_each_players_own_clock_agrees_for_equal_rates_only(simultaneous):
    rule = games.simultaneous_game_terms if simultaneous else games.alternating_game_terms
    clock = lambda rates: games.players_clock_terms(f, k, X, Y, rates, simultaneous=simultaneous)  # noqa: E731
    assert_close(clock((0.2, 0.2)), rule(f, k, X, Y, (0.2, 0.2)), DERIVATIVE)
    (_, right), (_, published) = rule(f, k, X, Y, (0.2, 0.4)), clock((0.2, 0.4))
    assert all(
        float(jnp.linalg.norm(a - b)) > 0.05 * float(jnp.linalg.norm(a)) for a, b in zip(right, published, strict=True)
    )


def test_radii_of_the_linear_game():
    """By hand: simultaneous |1 - h e + i h|, its flow |exp| of a normal matrix; alternating has det (1 - h e)^2."""
    found = linear_game_radii()
    for e, h in ((0.09, 0.2), (0.2, 0.2)):
        simultaneous, alternating = found[f"simultaneous, e = {e:g}"], found[f"alternating, e = {e:g}"]
        np.testing.assert_allclose(simultaneous["update"], np.hypot(1 - h * e, h), rtol=1e-12)
        np.testing.assert_allclose(alternating["update"], 1 - h * e, rtol=1e-12)
        z = -e + 1j
        np.testing.assert_allclose(simultaneous["flow"], abs(np.exp(h * z - h**2 * z**2 / 2)), rtol=1e-12)
        np.testing.assert_allclose(simultaneous["first term"], np.exp(-h * e), rtol=1e-12)
    rounded = [round(v, 5) for row in found.values() for v in (row["update"], row["flow"])]
    assert rounded[:4] == [1.00216, 1.00184, 0.982, 0.982]
    assert rounded[4::2] == [0.98061, 0.96]
