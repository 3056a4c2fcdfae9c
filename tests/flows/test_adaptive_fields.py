"""Fields of Adam and its relatives against what Optax's iterates trace, and against the published form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ORDER, assert_close

import implicit_reg as ir
from implicit_reg.flows import adaptive

pytestmark = pytest.mark.x64

START = jnp.array([0.7, -0.9, 0.8])
MIX = jnp.array(((0.5, -0.3, 0.2), (0.1, 0.4, -0.6), (-0.2, 0.3, 0.5)))
B1, B2 = 0.4, 0.5
TIME = 0.24  # by then memories of these decays have forgotten the start
CENTRAL = np.array([0.0, 4 / 5, -1 / 5, 4 / 105, -1 / 280])  # of the first derivative, order 8
OUTSIDE = adaptive.Rescaling(eps=0.3)
INSIDE = adaptive.Rescaling(eps_root=0.2)
BOTH = adaptive.Rescaling(eps=0.3, eps_root=0.2, weight_decay=0.4)


def loss(x):
    return jnp.sum(jnp.exp(MIX @ x)) + 0.5 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * x**2)


def stationary(b1, b2):
    return b1 / (1 - b1), b2 / (1 - b2)


CASES = {
    "adam, outside": (lambda h: optax.adam(h, B1, B2, eps=0.3), stationary(B1, B2), OUTSIDE),
    "adam, inside": (lambda h: optax.adam(h, B1, B2, eps=0.0, eps_root=0.2), stationary(B1, B2), INSIDE),
    "adamw, both": (
        lambda h: optax.adamw(h, B1, B2, eps=0.3, eps_root=0.2, weight_decay=0.4),
        stationary(B1, B2),
        BOTH,
    ),
    "nadam": (lambda h: optax.nadam(h, B1, B2, eps=0.3), (B1**2 / (1 - B1), B2 / (1 - B2)), OUTSIDE),
    "rmsprop": (lambda h: optax.rmsprop(h, B2, eps=0.2), stationary(0.0, B2), INSIDE),
    "rmsprop, corrected, outside": (
        lambda h: optax.rmsprop(h, B2, eps=0.3, eps_in_sqrt=False, bias_correction=True),
        stationary(0.0, B2),
        OUTSIDE,
    ),
}


def run(method, h, num_steps):
    """Iterates and states after every step, in a plain loop over Optax's update."""

    @jax.jit
    def go():
        tx = method(h)

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jax.grad(loss)(x), state, x)
            return (x + updates, state), (x + updates, state)

        return jax.lax.scan(step, (START, tx.init(START)), length=num_steps)[1]

    return go()


@pytest.mark.parametrize("name", CASES)
def test_the_field_is_the_one_that_the_iterates_trace(name):
    """Central differences along the iterates differ from one and two terms by h^2 and h^3."""
    method, ages, rescaling = CASES[name]
    errors = []
    for h in (0.004, 0.002):
        middle = round(TIME / h) - 1
        x = np.asarray(run(method, h, middle + 5)[0])
        advance = sum(c * (x[middle + k] - x[middle - k]) for k, c in enumerate(CENTRAL))
        first, second = adaptive.adaptive_coefficients(loss, ages, rescaling)(jnp.asarray(x[middle]))
        partial = np.stack([h * first, h * first + h**2 * second])
        errors.append(np.linalg.norm(partial - advance, axis=1))
    slopes = np.log2(errors[0] / errors[1])
    assert np.all(np.abs(slopes - (2, 3)) < ORDER), slopes


@pytest.mark.parametrize("eps_root", [0.0, 0.2])
def test_without_eps_outside_it_is_the_published_form(eps_root):
    """Cattaneo et al.: a multiple of the gradient of `||g||_{1,e} = sum sqrt(g^2 + e)`, with plain autodiff."""

    def perturbed_norm(x):
        return jnp.sum(jnp.sqrt(jax.grad(loss)(x) ** 2 + eps_root))

    g2 = jax.grad(loss)(START) ** 2 + eps_root
    first, second = (1 + B1) / (1 - B1), (1 + B2) / (1 - B2)
    bracket = first - second + second * eps_root / g2
    published = -bracket / jnp.sqrt(g2) / 2 * jax.grad(perturbed_norm)(START)
    rescaling = adaptive.Rescaling(eps_root=eps_root)
    assert_close(adaptive.adaptive_coefficients(loss, stationary(B1, B2), rescaling)(START)[1], published, DERIVATIVE)


def test_without_memories_it_is_the_modified_equation_of_the_rescaled_step():
    """Ages 0: one step along q, whose second term any one-step map's recursion gives."""

    def step(h, x):
        g = jax.grad(loss)(x)
        return x - h * (g / (jnp.sqrt(g**2 + 0.2) + 0.3) + 0.4 * x)

    expected = ir.modified_coefficients(step, 2)(START)
    for f, e in zip(adaptive.adaptive_coefficients(loss, (0.0, 0.0), BOTH)(START), expected, strict=True):
        assert_close(f, e, DERIVATIVE)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("step", [1, 2, 7, 400])
def test_the_age_is_the_mean_age_of_a_corrected_average(decay, step):
    j = np.arange(step)
    weights = decay**j / np.sum(decay**j)
    assert float(adaptive.corrected_age(decay, step)) == pytest.approx(float(j @ weights), rel=1e-9, abs=1e-9)
    assert float(adaptive.corrected_age(decay, 10**5)) == pytest.approx(adaptive.stationary_age(decay))


def test_the_moments_are_those_of_a_long_run():
    """To first order in h, so that they differ by h^2 from what Optax's state holds."""
    errors = []
    for h in (0.004, 0.002):
        x, state = jax.tree.map(lambda leaf: leaf[-1], run(CASES["adam, outside"][0], h, round(TIME / h)))
        mu, nu = adaptive.slow_moments(loss, (B1, B2), OUTSIDE)(h, x)
        errors.append([float(jnp.linalg.norm(d)) for d in (mu - state[0].mu, nu - state[0].nu)])
    slopes = np.log2(np.array(errors[0]) / np.array(errors[1]))
    assert np.all(np.abs(slopes - 2) < ORDER), slopes


def two_terms(ages, rescaling):
    def field(t, x, h):
        first, second = adaptive.adaptive_coefficients(loss, ages, rescaling)(x)
        return first + h * second

    return field


@pytest.mark.parametrize("name", ["nadam", "rmsprop"])
def test_the_ghost_start_is_where_the_run_seems_to_come_from(name):
    """Two terms have order 2 from there, and order 1 from the start itself."""
    method, ages, rescaling = CASES[name]
    shift = jax.jit(
        adaptive.nadam_ghost_shift(loss, B1, rescaling)
        if name == "nadam"
        else adaptive.rms_ghost_shift(loss, B2, rescaling)
    )(START)
    field = two_terms(ages, rescaling)
    errors = []
    for h in (0.004, 0.002):
        end = run(method, h, round(TIME / h))[0][-1]
        starts = (START + h * shift, START)
        ends = [ir.integrate(field, start, [TIME], h).params[-1] for start in starts]
        errors.append([float(jnp.linalg.norm(flow - end)) for flow in ends])
    slopes = np.log2(np.array(errors[0]) / np.array(errors[1]))
    assert np.all(np.abs(slopes - (2, 1)) < ORDER), slopes


def test_the_sum_behind_nadams_shift():
    n = np.arange(1, 400)
    for b in (0.3, 0.9):
        s = b * (1 - b**n) / (1 - b ** (n + 1)) + (1 - b) / (1 - b**n)
        assert np.sum(s - 1) == pytest.approx(b)


def test_strain_and_signs():
    """On a separable quadratic everything is known: `g = a x`, `H q = a q`."""
    a, x, h = jnp.array([1.0, 4.0]), jnp.array([2.0, -0.05]), 0.1
    bowl = lambda x: 0.5 * jnp.sum(a * x**2)  # noqa: E731
    chi, changing = adaptive.memory_strain(bowl, (1.0, 3.0), adaptive.Rescaling())(h, x)
    assert float(chi) == pytest.approx(h * 3.0 * 4.0 / 0.2)  # |H q|/|g| = a/|a x|
    assert float(changing) == 0.5  # 0.2 < h (1 + 3) 4, but 2 > h (1 + 3) 1
    chi, changing = adaptive.memory_strain(bowl, (1.0, 3.0), adaptive.Rescaling(eps=100.0))(h, x)
    assert float(chi) < 0.02
    assert float(changing) == 0.0


def test_a_gradient_of_zero_is_no_trouble_where_eps_is_not_zero():
    first, second = adaptive.adaptive_coefficients(lambda x: jnp.sum(x**4), (1.0, 3.0), OUTSIDE)(jnp.zeros(2))
    assert_close((first, second), (jnp.zeros(2), jnp.zeros(2)), DERIVATIVE)


def test_any_tree_will_do():
    tree = {"a": START[:1], "b": START[1:]}
    split = lambda x: {"a": x[:1], "b": x[1:]}  # noqa: E731
    join = lambda p: loss(jnp.concatenate([p["a"], p["b"]]))  # noqa: E731
    for function, arguments in (
        (adaptive.adaptive_coefficients, (stationary(B1, B2), BOTH)),
        (lambda *args: lambda x: adaptive.slow_moments(*args)(0.1, x), ((B1, B2), BOTH)),
    ):
        flat, found = function(loss, *arguments)(START), function(join, *arguments)(tree)
        for f, e in zip(found, flat, strict=True):
            assert_close(f, split(e), DERIVATIVE)
    for make in (adaptive.rms_ghost_shift, adaptive.nadam_ghost_shift):
        assert_close(make(join, B2, BOTH)(tree), split(make(loss, B2, BOTH)(START)), DERIVATIVE)
    strain = [adaptive.memory_strain(f, stationary(B1, B2), BOTH)(0.1, p) for f, p in ((join, tree), (loss, START))]
    assert_close(*strain, DERIVATIVE)


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="adaptive_coefficients: `eps` must be a finite real number, at least 0"):
        adaptive.adaptive_coefficients(loss, (0.0, 0.0), adaptive.Rescaling(eps=-1.0))
    with pytest.raises(TypeError, match="adaptive_coefficients: `loss_fn`"):
        adaptive.adaptive_coefficients(0.5, (0.0, 0.0), OUTSIDE)
    with pytest.raises(ValueError, match="stationary_age: `decay` must be less than 1"):
        adaptive.stationary_age(1.0)
    with pytest.raises(ValueError, match="slow_moments: `decay`"):
        adaptive.slow_moments(loss, (0.5, 1.0), OUTSIDE)
    with pytest.raises(ValueError, match="rms_ghost_shift: `decay`"):
        adaptive.rms_ghost_shift(loss, 1.0, OUTSIDE)
