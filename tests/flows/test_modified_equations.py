"""Modified equations against textbook series, closed forms, published corrections, and each other."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ORDER, ROUND_OFF, assert_close

import implicit_reg as ir
from implicit_reg import methods, problems
from implicit_reg.flows import interpolation_weights

pytestmark = pytest.mark.x64


def nonquadratic():
    problem = problems.load_problem("nonquadratic", dtype="float64")
    return problem.loss_fn, problem.params


def hessian_products(loss, x):
    """g, H g, H H g and T(g, g) by dense derivatives: the other route."""
    g, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    third = jnp.einsum("ijk,j,k->i", jax.jacfwd(jax.hessian(loss))(x), g, g)
    return g, hessian @ g, hessian @ hessian @ g, third


def test_euler_on_y_squared():
    """The textbook series [hairer2006, ch. IX]: 1, -1, 3/2, -8/3, 31/6, -157/15 times y^2, y^3, ..."""
    coefficients = ir.modified_coefficients(lambda h, y: y + h * y**2, 6)(jnp.array(2.0))
    expected = [1, -1, 3 / 2, -8 / 3, 31 / 6, -157 / 15]
    assert_close(list(coefficients), [jnp.array(c * 2.0 ** (n + 2)) for n, c in enumerate(expected)], ROUND_OFF)


def test_quadratic_has_the_logarithm_of_the_step():
    """The exact field is log(1 - hH)/h x, so f_n = -H^n x / n."""
    problem = problems.quadratic([0.9, 0.4, -0.3, 0.0], dtype="float64")
    hessian = jnp.asarray(problem.facts["hessian"])
    phi = ir.update_map(optax.sgd, problem.loss_fn)
    found = ir.modified_coefficients(phi, 5)(problem.params)
    expected = tuple(-jnp.linalg.matrix_power(hessian, n) @ problem.params / n for n in range(1, 6))
    assert_close(found, expected, DERIVATIVE)


def test_gradient_descent_through_the_fourth_coefficient():
    loss, x = nonquadratic()
    g, hg, hhg, tgg = hessian_products(loss, x)
    hessian, third = jax.hessian(loss)(x), jax.jacfwd(jax.hessian(loss))(x)
    tghg = jnp.einsum("ijk,j,k->i", third, g, hg)
    expected = (
        -g,
        -hg / 2,
        -hhg / 3 - tgg / 12,
        -hessian @ hhg / 4 - hessian @ tgg / 12 - tghg / 12,
    )
    assert_close(ir.modified_coefficients(ir.update_map(optax.sgd, loss), 4)(x), expected, DERIVATIVE)


def test_the_third_coefficient_is_not_a_gradient():
    loss, x = nonquadratic()
    coefficients = ir.modified_coefficients(ir.update_map(optax.sgd, loss), 3)
    asymmetry = [jnp.linalg.norm(j - j.T) / jnp.linalg.norm(j) for j in jax.jacfwd(coefficients)(x)]
    assert max(asymmetry[:2]) < DERIVATIVE.float64
    assert asymmetry[2] > 1e-3


def test_alternating_pair_through_the_third_coefficient():
    loss, x = nonquadratic()
    ratio = 0.25
    phi = ir.update_map(lambda h: optax.sgd(ir.alternating(h, ratio * h)), loss, num_steps=2)
    g, hg, hhg, tgg = hessian_products(loss, x)
    expected = (
        -(1 - ratio) * g,
        -(1 + ratio**2) / 2 * hg,
        -(1 - ratio**3) / 3 * hhg - (1 - 3 * ratio - 3 * ratio**2 - ratio**3) / 12 * tgg,
    )
    assert_close(ir.modified_coefficients(phi, 3)(x), expected, DERIVATIVE)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_backstitch_through_the_third_coefficient(alpha):
    loss, x = nonquadratic()
    phi = ir.update_map(lambda h: ir.backstitch(optax.sgd(h), alpha), loss)
    g, hg, hhg, tgg = hessian_products(loss, x)
    expected = (
        -g,
        -(1 + 2 * alpha + 2 * alpha**2) / 2 * hg,
        -(1 + 3 * alpha + 3 * alpha**2) / 3 * hhg - (1 + 6 * alpha + 12 * alpha**2 + 6 * alpha**3) / 12 * tgg,
    )
    assert_close(ir.modified_coefficients(phi, 3)(x), expected, DERIVATIVE)


def test_sam_through_the_third_coefficient():
    """With radius rho = c h; u = g/||g||."""
    loss, x = nonquadratic()
    c = 0.5
    phi = ir.update_map(lambda h: optax.chain(ir.sam(c * h), optax.sgd(h)), loss)
    hessian, third = jax.hessian(loss)(x), jax.jacfwd(jax.hessian(loss))(x)
    g = jax.grad(loss)(x)
    norm = jnp.linalg.norm(g)
    u = g / norm
    hu, tuu = hessian @ u, jnp.einsum("ijk,j,k->i", third, u, u)
    expected = (
        -g,
        -c * hu - hessian @ g / 2,
        -(c**2 / 2) * tuu
        - (c / 2) * (2 * hessian @ hu - (u @ hu) * hu + norm * tuu)
        - norm * (hessian @ hu / 3 + norm * tuu / 12),
    )
    assert_close(ir.modified_coefficients(phi, 3)(x), expected, DERIVATIVE)


@pytest.mark.parametrize("name", [name for name, row in methods.METHODS.items() if row.leading])
def test_leading_correction_is_the_published_one(name):
    row = methods.METHODS[name]
    loss, x = nonquadratic()
    h = 0.125
    phi = ir.update_map(row.at, loss, num_steps=row.num_steps)
    found = ir.modified_coefficients(phi, 2)(x)[1]
    published = row.leading(loss, x, h, **row.scaled(h))
    assert_close(found, published, DERIVATIVE)
    assert float(jnp.linalg.norm(found - 1.1 * published)) > 1e-2 * float(jnp.linalg.norm(published))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_modified_vector_field_sums_its_coefficients(order):
    loss, x = nonquadratic()
    phi = ir.update_map(optax.sgd, loss)
    h = 0.1
    coefficients = ir.modified_coefficients(phi, order)(x)
    expected = sum(h**n * f for n, f in enumerate(coefficients))
    assert_close(ir.modified_vector_field(phi, order)(0.0, x, h), expected, ROUND_OFF)
    assert_close(jax.jit(ir.modified_vector_field(phi, order))(0.0, x, h), expected, ROUND_OFF)


@pytest.mark.parametrize("make", [ir.modified_vector_field, ir.interpolated_vector_field])
def test_the_field_at_step_size_zero_is_the_first_coefficient(make):
    loss, x = nonquadratic()
    field = make(ir.update_map(optax.sgd, loss), 3)
    assert_close(field(0.0, x, 0.0), -jax.grad(loss)(x), ROUND_OFF)


def test_weights_are_the_logarithm_of_the_shift():
    """sum_j w_j j^k is the derivative at 0 of the polynomial through 0, 1, ..., differenced once: exact to degree p."""
    for order in range(1, 9):
        weights = interpolation_weights(order)
        for degree in range(1, order + 1):
            slope = sum(w * ((j + 1) ** degree - j**degree) for j, w in enumerate(weights))
            assert slope == Fraction(int(degree == 1))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_interpolated_field_is_the_modified_one_up_to_its_order(order):
    """Its distance to the field with one term more vanishes like h^order."""
    loss, x = nonquadratic()
    phi = ir.update_map(optax.sgd, loss)
    exact, interpolated = ir.modified_vector_field(phi, order + 1), ir.interpolated_vector_field(phi, order)
    step_sizes = [0.02, 0.01]
    errors = [float(jnp.linalg.norm(exact(0.0, x, h) - interpolated(0.0, x, h))) for h in step_sizes]
    assert abs(ir.observed_order(step_sizes, errors)[-1] - order) < ORDER


def test_interpolated_field_uses_raw_updates():
    """At a tiny step the differences of parameters have lost eps |x| / h, the updates have not."""
    loss = lambda x: 0.5 * jnp.sum((x - 1e4) ** 2)  # noqa: E731
    x, h = jnp.array([1e4 + 1.0]), 1e-9
    phi = ir.update_map(optax.sgd, loss)
    exact = math.log1p(-h) / h
    raw = ir.interpolated_vector_field(phi, 3)(0.0, x, h)
    differences = ir.interpolated_vector_field(lambda h, x: phi(h, x), 3)(0.0, x, h)
    assert abs(float(raw[0]) - exact) < 1e-7
    assert abs(float(differences[0]) - exact) > 1e-5


def test_interpolated_field_costs_exactly_order_updates():
    counted = []

    def step(h, x):
        jax.debug.callback(lambda: counted.append(1))
        return x - h * x

    field = jax.jit(ir.interpolated_vector_field(step, 6))
    jax.block_until_ready(field(0.0, jnp.ones(2), 0.1))
    jax.effects_barrier()
    assert len(counted) == 6


def test_interpolated_field_is_one_program_at_every_order():
    loss, x = nonquadratic()
    phi = ir.update_map(optax.sgd, loss)
    sizes = [
        len(jax.jit(ir.interpolated_vector_field(phi, p)).lower(0.0, x, 0.1).as_text().splitlines()) for p in (2, 8)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("make", [ir.modified_vector_field, ir.interpolated_vector_field])
def test_fields_compile_once_for_all_step_sizes(make):
    loss, x = nonquadratic()
    field = make(ir.update_map(optax.sgd, loss), 2)
    field(0.0, x, 0.1)
    with jax.no_tracing():
        for h in (0.2, 0.3):
            field(0.0, x, h)


def test_a_step_size_of_zero_in_an_array():
    loss, x = nonquadratic()
    field = ir.interpolated_vector_field(ir.update_map(optax.sgd, loss), 3)
    assert_close(field(0.0, x, jnp.array(0.0)), -jax.grad(loss)(x), ROUND_OFF)


def test_a_map_whose_updates_do_not_fit():
    class Broadcasting:
        def __call__(self, h, x):
            return x

        def update(self, h, x):
            return jnp.ones(())

    with pytest.raises(ValueError, match=r"update_map.update\(h, params\) has shape \(\)"):
        ir.interpolated_vector_field(Broadcasting(), 2)(0.0, jnp.ones(2), 0.1)


def test_fields_keep_structure_and_dtypes():
    params = {"wide": jnp.ones(2), "narrow": jnp.ones((), jnp.float32)}
    loss = lambda p: jnp.sum(jnp.sin(p["wide"])) + p["narrow"].astype(jnp.float64) ** 3  # noqa: E731
    phi = ir.update_map(optax.sgd, loss)
    for field in (ir.gradient_field(loss), ir.modified_vector_field(phi, 3), ir.interpolated_vector_field(phi, 3)):
        value = field(0.0, params, np.float64(0.1))
        assert jax.tree.map(lambda x: (x.shape, x.dtype.name), value) == {
            "wide": ((2,), "float64"),
            "narrow": ((), "float32"),
        }
