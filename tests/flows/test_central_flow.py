"""The complementarity problem against its conditions and another solver; central flows against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg import problems
from implicit_reg.flows import central
from implicit_reg.flows.complementarity import clip_to_semidefinite, solve_complementarity

pytestmark = pytest.mark.x64


def random_problem(k: int, seed: int, rank: int = 20):
    """A symmetric A with eigenvalues of both signs, and `B[X]_ij = N_ij . N_kl X_kl` as a central flow has it."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((k, k))
    n = rng.standard_normal((k, k, rank))
    n = n + n.transpose(1, 0, 2)
    return jnp.asarray(a + a.T), jnp.asarray(np.einsum("ijd,kld->ijkl", n, n) / rank)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_conditions_of_complementarity(k, seed):
    a, b = random_problem(k, seed)
    x = solve_complementarity(a, b)
    slack = a + jnp.einsum("ijkl,kl->ij", b, x)
    scale = float(jnp.linalg.norm(a) * (1 + jnp.linalg.norm(x)))
    assert float(jnp.linalg.eigvalsh(x)[0]) >= -ROUND_OFF.float64 * scale
    assert float(jnp.linalg.eigvalsh(slack)[0]) >= -DERIVATIVE.float64 * scale
    assert abs(float(jnp.sum(x * slack))) <= DERIVATIVE.float64 * scale


@pytest.mark.parametrize("k", [2, 3])
def test_the_solution_of_another_solver(k):
    """BFGS on `X = R R'`, where the constraint has gone: the same minimum of the same convex function."""
    a, b = random_problem(k, 7)

    def objective(r):
        r = r.reshape(k, k)
        x = r @ r.T
        bx = np.einsum("ijkl,kl->ij", b, x)
        return 0.5 * np.sum(x * bx) + np.sum(np.asarray(a) * x), ((np.asarray(a) + bx) @ r * 2).ravel()

    found = optimize.minimize(objective, np.eye(k).ravel(), jac=True, method="BFGS", options={"gtol": 1e-10})
    root = found.x.reshape(k, k)
    ours = solve_complementarity(a, b)
    assert float(jnp.linalg.norm(ours)) > 0.1
    np.testing.assert_allclose(ours, root @ root.T, atol=1e-6)


def test_one_direction_is_a_closed_form_and_part_of_a_larger_problem():
    assert float(solve_complementarity(jnp.array([[-3.0]]), jnp.full((1, 1, 1, 1), 2.0))[0, 0]) == 1.5
    assert float(solve_complementarity(jnp.array([[3.0]]), jnp.full((1, 1, 1, 1), 2.0))[0, 0]) == 0.0
    n = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    b = jnp.einsum("ij,kl->ijkl", n, n) + jnp.einsum("ik,jl->ijkl", jnp.eye(2), jnp.eye(2))
    x = solve_complementarity(jnp.diag(jnp.array([-3.0, 50.0])), b)
    assert_close(x, jnp.diag(jnp.array([3.0 / 5.0, 0.0])), DERIVATIVE)


def test_a_good_guess_is_kept_and_the_iterations_end():
    a, b = random_problem(3, 4)
    x = solve_complementarity(a, b)
    assert_close(solve_complementarity(a, b, x, max_iterations=2), x, DERIVATIVE)
    assert float(jnp.linalg.norm(solve_complementarity(a, b, max_iterations=2) - x)) > 1e-3
    loose = solve_complementarity(a, b, tolerance=1e-2)
    assert 1e-6 < float(jnp.linalg.norm(loose - x)) < 1.0


def test_no_critical_direction_means_nothing_to_add():
    a, b = random_problem(3, 5)
    assert not np.any(np.asarray(solve_complementarity(a @ a.T, b)))


def test_clipping():
    matrix = jnp.array([[0.0, 2.0], [2.0, 0.0]])
    assert_close(clip_to_semidefinite(matrix), jnp.ones((2, 2)), ROUND_OFF)


def valley(z):
    return 0.5 * (1 + z[1]) * z[0] ** 2 - 0.02 * z[1]


def test_no_critical_direction_is_gradient_flow():
    """`exp(-h H n)` on a quadratic below the edge, up to the flow's own second order in the substep."""
    hessian = jnp.diag(jnp.array([1.0, 0.3]))
    loss = lambda x: 0.5 * x @ hessian @ x  # noqa: E731
    x, h, n = jnp.array([1.0, 1.0]), 0.1, 10
    errors = []
    for substeps in (4, 8):
        flow = central.central_flow(loss, central.edge_gradient_descent(), x, h, n, num_substeps=substeps)
        exact = np.exp(-h * np.arange(n + 1)[:, None] * np.diag(hessian)) * np.asarray(x)
        errors.append(np.max(np.abs(flow.params - exact)))
        assert not np.any(np.asarray(flow.variance))
        np.testing.assert_array_equal(flow.loss, flow.predicted_loss)
    assert errors[0] < 1e-4
    assert 3.7 < errors[0] / errors[1] < 4.3
    assert_close(flow.sharpness[:, 0], jnp.full(n + 1, h * 1.0 / 2), DERIVATIVE)


def test_one_critical_direction_against_the_closed_form():
    """`sigma^2 = 2 max(0, -g . grad s)/||grad s||^2` along the valley: 2 * 0.02; the sharpness stays at the edge."""
    flow = central.central_flow(valley, central.edge_gradient_descent(), jnp.array([0.0, 0.8]), 1.0, 40, num_modes=2)
    assert_close(flow.variance[-1], jnp.array(0.04), DERIVATIVE)
    assert_close(flow.sharpness[-1, 0], jnp.array(1.0), DERIVATIVE)
    assert_close(flow.predicted_loss[-1] - flow.loss[-1], jnp.array(0.04), DERIVATIVE)  # tr Sigma / h
    assert_close(jnp.abs(flow.amplitude[-1]), jnp.array([0.2, 0.0]), DERIVATIVE)
    free = central.central_flow(
        valley, central.edge_gradient_descent(), jnp.array([0.0, 0.8]), 1.0, 40, weights=central.Weights(0.0)
    )
    assert_close(free.params[-1], jnp.array([0.0, 0.8 + 0.02 * 40]), DERIVATIVE)


def test_every_critical_direction_is_held_at_the_edge():
    problem = problems.load_problem("edge-valley-2", dtype="float64")
    flow = central.central_flow(problem.loss_fn, central.edge_gradient_descent(), problem.params, 1.0, 400, num_modes=2)
    values = np.linalg.eigvalsh(jax.vmap(jax.hessian(problem.loss_fn))(flow.params))[:, -2:]
    np.testing.assert_allclose(flow.sharpness[:, ::-1], values / 2, atol=1e-6)
    np.testing.assert_allclose(values[-1], 2.0, atol=1e-4)
    one = central.central_flow(problem.loss_fn, central.edge_gradient_descent(), problem.params, 1.0, 400, num_modes=1)
    second = np.linalg.eigvalsh(jax.hessian(problem.loss_fn)(one.params[-1]))[-2:]
    assert np.max(np.abs(second - 2.0)) > 1e-2  # following too few eigenpairs lets the other one go past


@pytest.mark.parametrize(
    ("optimizer", "make", "memoryless"),
    [
        (central.edge_gradient_descent(), optax.sgd, True),
        (central.edge_heavy_ball(0.7), lambda h: optax.sgd(h, momentum=0.7), False),
        (central.edge_nesterov(0.7), lambda h: optax.sgd(h, momentum=0.7, nesterov=True), False),
    ],
)
def test_critical_values_by_running_the_optimizer(optimizer, make, memoryless):
    """Just below kappa the iterates on a quadratic decay, just above they grow, changing sign at every step."""

    def run(sharpness, num_steps=2000):
        method, x = make(1.0), jnp.array(1.0)

        def step(carry, _):
            x, state = carry
            updates, state = method.update(sharpness * x, state)
            return (x + updates, state), x

        return np.asarray(jax.lax.scan(step, (x, method.init(x)), length=num_steps)[1])

    below, above = (run(optimizer.critical * factor) for factor in (0.995, 1.005))
    assert abs(below[-1]) < 1e-2
    assert abs(above[-1]) > 1e2
    assert np.all(above[-10:-1] * above[-9:] < 0)


def test_the_rates_of_momentum_are_those_of_its_slow_mode():
    """`-rho h lambda - rho^2 c (h lambda)^2` against the logarithm of the slow root."""
    y, b = 1e-4, 0.7
    for optimizer, r, s in ((central.edge_heavy_ball(b), 1.0, 0.0), (central.edge_nesterov(b), 1 + b, b)):
        root = np.max(np.roots([1.0, -(1 + b - r * y), b - s * y]))
        assert abs(np.log(root) + optimizer.rate * y + optimizer.rate**2 * optimizer.age * y**2) < 1e-9


def test_memory_of_squares_at_rest_and_at_the_edge():
    """At a zero gradient the oscillation alone holds `nu` up: `kappa^2 P^2 Sigma = nu`."""
    loss = lambda x: 0.5 * 3.0 * x[0] ** 2  # noqa: E731
    h = 0.1
    for optimizer in (central.edge_scalar_rmsprop(0.9), central.edge_rmsprop(0.9)):
        flow = central.central_flow(loss, optimizer, jnp.array([0.0]), h, 200, memory=jnp.array([1.0]))
        # At the edge h lambda/sqrt(nu) = 2.
        assert_close(flow.memory[-1], jnp.array([(h * 3.0 / 2) ** 2]), DERIVATIVE)
        assert_close(flow.variance[-1], jnp.array(h**2 / 4), DERIVATIVE)
        # The optimizer itself: x = +-h/2 is an orbit of period 2 of sign descent.
        decay = central.central_flow(
            loss, optimizer, jnp.array([0.0]), h, 200, memory=jnp.array([1.0]), weights=central.Weights(0.0)
        )
        assert float(decay.memory[-1, 0]) < 1e-6


def test_second_order_terms_are_those_of_the_modified_flow():
    """Below the edge, with `second_order` the flow follows gradient descent more closely by an order."""
    problem = problems.load_problem("tanh-network", dtype="float64")
    x, unravel = jax.flatten_util.ravel_pytree(problem.params)
    loss = lambda x: problem.loss_fn(unravel(x))  # noqa: E731
    n, h, ends = 20, 0.05, {}
    steps = x
    for _ in range(n):
        steps = steps - h * jax.grad(loss)(steps)
    for weights in (central.PLAIN, central.Weights(second_order=1.0), central.Weights(off_critical=1.0)):
        flow = central.central_flow(loss, central.edge_gradient_descent(), x, h, n, weights=weights, num_substeps=8)
        ends[weights] = float(jnp.linalg.norm(flow.params[-1] - steps))
    plain, second, off = ends.values()
    assert second < 0.1 * plain
    assert abs(off - second) < 1e-9  # nothing is critical here, so nothing is left out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss_fn": 3}, TypeError, "`loss_fn` must be callable"),
        ({"h": 0.0}, ValueError, "`h` must be a finite real number, greater than 0"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be an integer, at least 1"),
        ({"num_modes": 3}, ValueError, "`num_modes` must be at most the 2 parameters, got 3"),
        ({"num_substeps": 0}, ValueError, "`num_substeps` must be an integer"),
        (
            {"optimizer": central.edge_rmsprop(0.9), "weights": central.Weights(second_order=1.0)},
            ValueError,
            "must leave out the second-order terms",
        ),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {
        "loss_fn": valley,
        "optimizer": central.edge_gradient_descent(),
        "params": jnp.array([0.0, 0.8]),
        "h": 1.0,
        "num_steps": 2,
        **changes,
    }
    with pytest.raises(error, match=message):
        central.central_flow(**arguments)
    with pytest.raises(ValueError, match="`max_iterations` must be an integer"):
        solve_complementarity(jnp.eye(2), jnp.zeros((2, 2, 2, 2)), max_iterations=0)
