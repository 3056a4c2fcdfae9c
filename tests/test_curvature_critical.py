"""Points of known kind, against dense `eigh` in float64; escapes that never go uphill."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reg.curvature import classify, escape, find_critical_point, flatten, hessian_operator

pytestmark = pytest.mark.x64

TARGET = np.diag([3.0, 1.0])


def factorization(params):
    """||W2 W1 - A||^2 / 2: at 0 the Hessian couples W1 and W2 alone, with eigenvalues +-3, +-1, each twice."""
    return 0.5 * jnp.sum((params["two"] @ params["one"] - TARGET) ** 2)


ZERO = {"one": np.zeros((2, 2)), "two": np.zeros((2, 2))}


def network(width=4, seed=0):
    """A tanh network with its data as arguments."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 2))
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1]
    params = {"w": rng.standard_normal((2, width)), "b": np.zeros(width), "v": rng.standard_normal(width)}

    def loss(p, x, y):
        return jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2) + 1e-3 * sum(
            jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)
        )

    return loss, params, (x, y)


def bowl(x, matrix):
    """One function for all quadratics, so that they share compilations."""
    return 0.5 * x @ matrix @ x


def matrix_of(eigenvalues, seed=3):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    return (jnp.asarray((q * np.asarray(eigenvalues)) @ q.T),)


@pytest.mark.parametrize(
    ("eigenvalues", "kind", "index", "flat"),
    [
        ([1.0, 2.0, 5.0], "minimum", 0, 0),
        ([-1.0, -2.0, -5.0], "maximum", 3, 0),
        ([-1.0, -2.0, 4.0], "saddle", 2, 0),
        ([-1.0, 0.0, 4.0], "saddle", 1, 1),
        ([0.0, 1.0, 4.0], "degenerate", 0, 1),
        ([-3.0, 0.0, -4.0], "degenerate", 2, 1),
        ([1e-12, 1.0, 2.0], "degenerate", 0, 1),
        ([1e-6, 1.0, 2.0], "minimum", 0, 0),
        ([-1e-6, 1.0, 2.0], "saddle", 1, 0),
    ],
)
def test_quadratics(eigenvalues, kind, index, flat):
    found = classify(bowl, jnp.zeros(3), matrix_of(eigenvalues))
    assert (found.kind, found.index, found.flat, found.complete, found.kinks) == (kind, index, flat, True, False)
    matrix = np.asarray(matrix_of(eigenvalues)[0])
    exact = np.linalg.eigvalsh((matrix + matrix.T) / 2)  # of the matrix as it was rounded
    assert np.all(np.abs(found.eigenvalues - exact) <= found.bounds)
    np.testing.assert_allclose(found.eigenvalues, np.sort(eigenvalues), atol=1e-13)
    assert found.gradient_norm == found.scaled_gradient == 0.0
    assert found.text.endswith(".")
    assert {"minimum": "A min", "maximum": "A max", "saddle": f"A saddle of index {index}", "degenerate": "Deg"}[
        kind
    ] in found.text


def test_scaled_gradient_is_the_relative_newton_distance():
    (matrix,), x = matrix_of([1.0, -2.0, 50.0]), jnp.array([3.0, -1.0, 2.0])
    for scale in (1e-6, 1.0, 1e6):  # the units of the loss do not matter
        found = classify(bowl, x, (scale * matrix,))
        assert found.kind == "not critical"
        length = max(float(jnp.linalg.norm(x)), (2 * abs(float(bowl(x, matrix))) / 50) ** 0.5)
        assert np.isclose(found.scaled_gradient, float(jnp.linalg.norm(x)) / length)
    far, start = lambda x: bowl(x - 1e5, matrix), jnp.full(3, 1e5) + 1e-3
    near = classify(far, start)
    assert (near.kind, near.index) == ("saddle", 1)
    assert classify(far, start, gradient_tolerance=1e-10).kind == "not critical"
    assert classify(lambda x: jnp.sum(x), jnp.ones(2)).kind == "not critical"


def test_monkey_saddle_and_plateau_are_degenerate():
    monkey = lambda x: x[0] ** 3 - 3 * x[0] * x[1] ** 2  # noqa: E731
    assert classify(monkey, jnp.zeros(2)).kind == "degenerate"
    assert "do not decide" in classify(monkey, jnp.zeros(2)).text
    assert classify(monkey, jnp.array([1e-2, 0.0])).kind == "not critical"
    assert classify(lambda x: 0 * x[0] + 3.0, jnp.ones(2)).kind == "degenerate"
    assert not escape(monkey, jnp.zeros(2)).escaped


@pytest.mark.parametrize("max_dense", [400, 0])
def test_factorization_saddle_at_zero(max_dense):
    found = classify(factorization, ZERO, max_dense=max_dense, num_extreme=2)
    known = [-3.0, -3.0, -1.0, -1.0, 1.0, 1.0, 3.0, 3.0]
    assert found.kind == "saddle"
    assert found.complete == (max_dense > 0)
    if found.complete:
        np.testing.assert_allclose(found.eigenvalues, known, atol=1e-12)
        assert found.index == 4
    else:
        np.testing.assert_allclose(found.eigenvalues, [-3, -3, 3, 3], atol=1e-7)
        assert found.index == 2
        assert "index at least 2" in found.text
        assert "extreme eigenvalues alone" in found.text


@pytest.mark.parametrize("spectrum", ["minimum", "saddle", "maximum", "degenerate"])
def test_extreme_eigenvalues_alone_agree_with_the_whole_spectrum(spectrum):
    values = {
        "minimum": np.linspace(1, 4, 90), "saddle": np.r_[-2.0, np.linspace(1, 4, 89)],
        "maximum": np.linspace(-4, -1, 90), "degenerate": np.r_[np.zeros(4), np.linspace(1, 4, 86)],
    }[spectrum]  # fmt: skip
    data = matrix_of(values)
    whole, ends = classify(bowl, jnp.zeros(90), data), classify(bowl, jnp.zeros(90), data, max_dense=10)
    assert whole.kind == ends.kind == spectrum
    assert (whole.complete, ends.complete) == (True, False)
    assert len(ends.eigenvalues) == 6
    # A value lies within its bound of the eigenvalue it stands for.
    assert np.all(np.min(np.abs(ends.eigenvalues[:, None] - values), axis=1) <= ends.bounds + 1e-14)
    if spectrum == "saddle":
        assert ends.index == 1
        assert "at least" not in ends.text


def test_minimum_saddle_and_escape_of_a_network():
    loss, params, data = network()
    with_batches = {"batch_size": 16}
    assert classify(loss, params, data).kind == "not critical"
    # From afar ||g||^2 ends in a local minimum that is no critical point, and says so.
    assert not find_critical_point(loss, params, data, max_iterations=30).converged
    found = find_critical_point(loss, jax.tree.map(lambda leaf: 0.3 * leaf, params), data)
    assert found.converged
    assert found.gradient_norm < 1e-8 * found.initial_gradient_norm
    verdict = classify(loss, found.params, data, **with_batches)
    dense = np.linalg.eigvalsh(np.asarray(hessian_operator(loss, found.params, data).dense()))
    assert verdict.kind == "saddle"
    assert verdict.index == np.sum(dense < 0)
    assert np.min(np.abs(dense)) > 1e-6  # so that the count of signs is a count of signs
    np.testing.assert_allclose(verdict.eigenvalues, dense, atol=1e-12)
    assert not verdict.kinks
    out = escape(loss, found.params, data, **with_batches)
    assert out.escaped
    assert np.isclose(out.loss, float(loss(out.params, *data)))
    assert out.loss < found.loss - 1e-4
    assert np.isclose(out.decrease, found.loss - out.loss)
    assert abs(out.eigenvalue - dense[0]) <= out.bound + 1e-12
    moved = flatten(out.params)[0] - flatten(found.params)[0]
    np.testing.assert_allclose(moved, out.sign * out.step * flatten(out.direction)[0], atol=1e-12)

    # Descent from there meets more saddles, each lower, and escapes from each: in the end there is a minimum.
    from scipy.optimize import minimize

    _, back = flatten(out.params)
    fun = jax.jit(jax.value_and_grad(lambda x: loss(back(x), *data)))
    kinds, losses = [verdict.kind], [found.loss]
    while kinds[-1] == "saddle" and len(kinds) < 8:
        start = flatten(out.params)[0]
        x = minimize(lambda x: tuple(map(np.asarray, fun(x))), start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
        lower = classify(loss, back(jnp.asarray(x)), data)
        kinds.append(lower.kind)
        losses.append(lower.loss)
        out = escape(loss, back(jnp.asarray(x)), data, **with_batches)
        assert out.escaped == (lower.kind == "saddle")
    assert kinds[-1] == "minimum"
    assert np.all(np.diff(losses) < 0)
    assert "unchanged" in out.text
    np.testing.assert_array_equal(flatten(out.params)[0], x)


def test_escape_of_the_factorization_saddle():
    out = escape(factorization, ZERO)
    assert out.escaped
    assert np.isclose(out.eigenvalue, -3.0)
    # Along the eigenvector the loss is (s^2/2 - 3)^2 / 2 + 1/2, lowest 1/2 at s = sqrt(6); the trials halve the step.
    assert out.loss < factorization(ZERO) - 2
    assert abs(out.step) <= 2.0


def test_both_signs_are_tried_and_the_lower_one_is_taken():
    for tilt in (1.0, -1.0):
        loss = lambda x: -(x[0] ** 2) + tilt * x[0] ** 3 + x[0] ** 4 + x[1] ** 2  # noqa: E731
        out = escape(loss, jnp.zeros(2))
        assert float(out.params[0]) * tilt < 0


def test_escape_never_goes_uphill():
    """Negative curvature on a scale that no trial reaches: a wall rises before it is left."""
    loss = lambda x: -(x[0] ** 2) + 1e12 * x[0] ** 4 + x[1] ** 2 + 1.0  # noqa: E731
    out = escape(loss, jnp.zeros(2), num_trials=10)
    assert not out.escaped
    assert out.decrease == 0.0
    assert "negative, but" in out.text
    np.testing.assert_array_equal(out.params, np.zeros(2))


def test_kinks_are_seen():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((200, 2)))
    params = {"w": jnp.asarray(rng.standard_normal((2, 8))), "v": jnp.asarray(rng.standard_normal(8))}
    for activation, kinks in ((jax.nn.relu, True), (jnp.tanh, False), (jax.nn.softplus, False)):
        loss = lambda p, x: jnp.mean((activation(x @ p["w"]) @ p["v"] - jnp.sin(x[:, 0])) ** 2)  # noqa: E731
        found = classify(loss, params, (x,))
        assert found.kinks == kinks
        assert ("Hessian of the smooth piece" in found.text) == kinks
    assert classify(lambda x: jnp.sum(jnp.abs(x)) + jnp.sum(x**2), jnp.zeros(2)).kinks


def test_critical_point_already_there_and_none():
    found = find_critical_point(factorization, ZERO)
    assert (found.converged, found.gradient_norm, found.evaluations) == (True, 0.0, 0)
    nowhere = find_critical_point(lambda x: x[0] + 0.1 * x[0] ** 3 + x[1] ** 2, jnp.array([1.0, 1.0]))
    assert not nowhere.converged
    assert "not within" in nowhere.text
    matrix_free = find_critical_point(bowl, jnp.ones(450), matrix_of(np.r_[-1.0, np.linspace(1, 3, 449)]))
    assert matrix_free.converged
    np.testing.assert_allclose(matrix_free.params, 0.0, atol=1e-6)


@pytest.mark.parametrize("function", [classify, escape, find_critical_point])
def test_bad_input(function):
    square = lambda x: jnp.sum(x**2)  # noqa: E731
    with pytest.raises(ValueError, match="finite"):
        function(square, jnp.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="must be finite"):
        function(lambda x: jnp.sum(jnp.log(x)), jnp.array([-1.0, 1.0]))
    with pytest.raises(TypeError, match="floating"):
        function(square, jnp.arange(3))
    with pytest.raises(ValueError, match="at least one entry"):
        function(square, jnp.zeros((0, 2)))
    with pytest.raises(TypeError, match="loss_fn"):
        function(3.0, jnp.ones(2))


def test_tolerances_below_the_dtype_are_refused():
    with pytest.raises(ValueError, match="below what"):
        classify(jnp.sum, jnp.ones(2), eigenvalue_tolerance=1e-17)
    with pytest.raises(ValueError, match="below what"):
        classify(jnp.sum, jnp.ones(2, jnp.float32), gradient_tolerance=1e-8)
