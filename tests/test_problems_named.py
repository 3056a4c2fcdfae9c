"""Named losses: every fact on a problem is held against plain automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg import problems


def flow(loss_fn, params, time, steps=200):
    """Gradient flow by the classical Runge-Kutta method, typed here so that nothing of `flows` is used."""
    x, unravel = ravel_pytree(params)
    field = jax.grad(lambda x: -loss_fn(unravel(x)))
    dt = time / steps

    def step(x, _):
        k1 = field(x)
        k2 = field(x + dt / 2 * k1)
        k3 = field(x + dt / 2 * k2)
        k4 = field(x + dt * k3)
        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), x

    end, path = jax.jit(lambda x: jax.lax.scan(step, x, None, length=steps))(x)
    return unravel(end), path


@pytest.mark.x64
@pytest.mark.parametrize(("y", "x"), [(0.6, 1.0), (-1.5, 0.5)])
def test_factorization_facts(y, x):
    problem = problems.factorization(y, x, start=(1.1, 0.4))
    a, b = problem.params["a"], problem.params["b"]
    assert_close(problem.loss_fn(problem.params), (y - a * b * x) ** 2 / 2, ROUND_OFF)
    flattest = {name: jnp.asarray(value) for name, value in problem.facts["flattest_minimum"].items()}
    assert_close(problem.loss_fn(flattest), jnp.asarray(0.0), ROUND_OFF)
    assert_close(flattest["a"] * flattest["b"], jnp.asarray(problem.facts["product"]), ROUND_OFF)

    def sharpness(params):
        v, unravel = ravel_pytree(params)
        return jnp.linalg.eigvalsh(jax.hessian(lambda v: problem.loss_fn(unravel(v)))(v))[-1]

    assert_close(sharpness(flattest), jnp.asarray(problem.facts["flattest_sharpness"]), DERIVATIVE)
    other = {"a": jnp.asarray(3.0), "b": jnp.asarray(y / x / 3.0)}
    assert_close(sharpness(other), problem.facts["sharpness_at_minimum"](other), DERIVATIVE)
    assert sharpness(other) > problem.facts["flattest_sharpness"]


@pytest.mark.x64
def test_factorization_conserves_and_descent_shrinks():
    problem = problems.load_problem("factorization")
    end, _ = flow(problem.loss_fn, problem.params, 1.0)
    before, after = problem.facts["conserved"](problem.params), problem.facts["conserved"](end)
    assert_close(after, before, DERIVATIVE)
    params = problem.params
    for _ in range(10):
        gradient = jax.grad(problem.loss_fn)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    # With r = y - a b x, one step of gradient descent multiplies a^2 - b^2 by exactly 1 - (h x r)^2.
    a, b = problem.params["a"], problem.params["b"]
    one = {"a": a + 0.1 * (0.6 - a * b) * b, "b": b + 0.1 * (0.6 - a * b) * a}
    assert_close(problem.facts["conserved"](one), before * (1 - (0.1 * (0.6 - a * b)) ** 2), ROUND_OFF)
    assert abs(problem.facts["conserved"](params)) < abs(before)


@pytest.mark.x64
def test_nonquadratic_facts():
    problem = problems.nonquadratic()
    gradient = jax.grad(problem.loss_fn)(problem.params)
    assert_close(gradient, jnp.asarray(problem.facts["start_gradient"]), ROUND_OFF)
    _, path = flow(problem.loss_fn, problem.params, 1.0)
    norms = jnp.linalg.norm(jax.vmap(jax.grad(problem.loss_fn))(path), axis=1)
    assert norms.min() >= problem.facts["gradient_norm_at_least"]
    third = jax.jacfwd(jax.hessian(problem.loss_fn))(problem.params)
    assert jnp.all(jnp.abs(jnp.einsum("iii->i", third)[:2]) > 0.01)
    assert jnp.linalg.eigvalsh(jax.hessian(problem.loss_fn)(problem.params))[0] < 0


@pytest.mark.x64
def test_quadratic_facts():
    problem = problems.quadratic([3.0, 1.0, -0.5], seed=7)
    hessian = jax.hessian(problem.loss_fn)(problem.params)
    assert_close(hessian, jnp.asarray(problem.facts["hessian"]), ROUND_OFF)
    assert_close(jnp.linalg.eigvalsh(hessian), jnp.asarray([-0.5, 1.0, 3.0]), ROUND_OFF)
    basis = problem.facts["basis"]
    assert_close(jnp.asarray(hessian @ basis), jnp.asarray(basis * problem.facts["spectrum"]), ROUND_OFF)
    assert "minimum_value" not in problem.facts
    assert problems.quadratic([2.0, 0.0]).facts["minimum_value"] == 0.0
    assert not np.allclose(
        problems.quadratic([3.0, 1.0], seed=1).facts["basis"], problems.quadratic([3.0, 1.0]).facts["basis"]
    )


@pytest.mark.x64
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_float32_and_float64_start_together(name):
    narrow, wide = problems.load_problem(name, dtype=jnp.float32), problems.load_problem(name)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.params)} == {np.dtype(np.float64)}
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {np.dtype(np.float32)}
    assert narrow.loss_fn(narrow.params).dtype == np.float32
    assert wide.loss_fn(wide.params).dtype == np.float64
    assert_close(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), wide.params), narrow.params, ROUND_OFF)
    assert_close(narrow.loss_fn(narrow.params), wide.loss_fn(wide.params), ROUND_OFF)


def test_digits_tanh_is_the_retyped_cross_entropy():
    problem = problems.digits_tanh(num_examples=20, width=4)
    data = problems.load_dataset("digits", scaling="none")
    x, y = data.x_train[:20] / 16, data.y_train[:20]
    first, second = (jax.tree.map(np.asarray, layer) for layer in problem.params)
    logits = np.tanh(x @ first["w"] + first["b"]) @ second["w"] + second["b"]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(20), y])
    assert_close(problem.loss_fn(problem.params), np.float32(expected), ROUND_OFF)
    half = problem.loss_fn(problem.params, jnp.arange(10)) + problem.loss_fn(problem.params, jnp.arange(10, 20))
    assert_close(half / 2, np.float32(expected), ROUND_OFF)
    assert problems.digits_tanh(1).params[0]["w"][0, 0] != problems.digits_tanh(0).params[0]["w"][0, 0]


def test_load_problem_refuses(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown problem 'factorisation'.*'factorization'.*Known: .*digits-tanh"):
        problems.load_problem("factorisation")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_problem_of_a_user.py").write_text(
        "import jax.numpy as jnp\n"
        "from implicit_reg.problems import Problem\n"
        "ready = Problem('bowl', lambda x: jnp.sum(x**2), jnp.ones(2))\n"
        "def made(dtype=None):\n"
        "    return Problem('made', lambda x: jnp.sum(x**2), jnp.ones(3, dtype))\n"
        "number = 3\n"
    )
    (tmp_path / "own_broken_problem.py").write_text("1 / 0\n")
    assert problems.load_problem("own_problem_of_a_user:ready").name == "bowl"
    made = problems.load_problem("own_problem_of_a_user:made", dtype=jnp.bfloat16)
    assert made.params.dtype == jnp.bfloat16
    for name, error, match in [
        ("own_problem_of_a_user:number", TypeError, "must be an implicit_reg.problems.Problem.*got int"),
        ("own_problem_of_a_user:raedy", ValueError, "unknown attribute.*'raedy'.*Did you mean 'ready'"),
        ("own_missing_module:x", ValueError, "cannot import 'own_missing_module'; is the file in this folder"),
        ("own_broken_problem:x", ValueError, "importing 'own_broken_problem' raised ZeroDivisionError"),
        (":x", ValueError, "form module:attribute"),
        ("own_problem_of_a_user:", ValueError, "form module:attribute"),
    ]:
        with pytest.raises(error, match=match):
            problems.load_problem(name)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: problems.factorization("0.6"), TypeError, r"factorization: `y` must be a finite real number"),
        (lambda: problems.factorization(x=0), ValueError, r"`x` must not be 0"),
        (lambda: problems.factorization(start=(float("nan"), 1)), ValueError, r"start\['a'\]"),
        (lambda: problems.factorization(dtype=int), TypeError, r"`dtype` must be a floating dtype, got int"),
        (lambda: problems.factorization(dtype="float46"), TypeError, r"`dtype` must be a floating dtype"),
        (lambda: problems.factorization(dtype=np.float64), ValueError, r"float64 needs x64.*enable_x64"),
        (lambda: problems.quadratic([]), ValueError, r"`spectrum` must hold at least one"),
        (lambda: problems.quadratic([1.0, float("inf")]), ValueError, r"`spectrum\[1\]`"),
        (lambda: problems.quadratic([1.0], seed=-1), ValueError, r"`seed`"),
        (lambda: problems.digits_tanh(num_examples=5000), ValueError, r"`num_examples` must be at most 1077"),
        (lambda: problems.Problem("p", 3, jnp.ones(1)), TypeError, r"`loss_fn` must be callable"),
        (lambda: problems.Problem("p", abs, jnp.arange(2)), TypeError, r"dtype int32"),
        (lambda: problems.Problem("p", abs, {}), ValueError, r"at least one leaf"),
    ],
)
def test_bad_arguments(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_facts_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        problems.factorization().facts["minimum_value"] = 1.0


def test_the_seed_moves_what_is_random():
    for name, random in (("digits-tanh", True), ("tanh-network", True), ("quadratic", True), ("factorization", False)):
        first, again, other = (jax.tree.leaves(problems.load_problem(name, seed=s).params) for s in (1, 1, 2))
        assert all(jnp.array_equal(x, y) for x, y in zip(first, again, strict=True))
        assert random != all(jnp.array_equal(x, y) for x, y in zip(first, other, strict=True))
