"""What is for a GPU runs on a CPU in its toy form, and says without one that there is none."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(scope="module")
def gpu(benchmark):
    return benchmark("gpu")


@pytest.fixture(scope="module")
def measure(benchmark):
    return benchmark("measure")


def test_without_a_gpu_rows_say_so(gpu, measure):
    report = gpu.run(measure.Effort(15, False))
    assert [row.work for row in report.rows] == list(gpu.WORKS)
    assert all(row.value is None and row.note == "no GPU" for row in report.rows)


def test_the_toy_form_runs_all_of_it(gpu, measure):
    report = gpu.run(measure.Effort(1, True))
    rows = {row.work: row for row in report.rows}
    assert len(rows) == len(report.rows)
    works = {f"{name}, {dtype}" for name in gpu.IN_TINY for dtype in gpu.TOLERANCES}
    works |= {"sweep, width 4", "gradient", "flow of order 2", "eigenvalue, 20 products"}
    assert works <= set(rows)
    assert all(rows[work].value > 0 for work in works)
    assert rows["gd, float32"].unit == "ms"
    assert rows["gradient-penalty, bfloat16"].unit == "gd step"
    assert "| gradient-penalty, bfloat16 " in report.details


def test_arithmetic_is_in_the_named_dtype(benchmark, gpu):
    model = benchmark("models").TINY["transformer"]()
    gradient = jax.grad(gpu.computed_in("bfloat16", model.loss))
    products = [
        equation.invars[0].aval.dtype
        for equation in jax.make_jaxpr(gradient)(model.params, model.batch).eqns
        if equation.primitive.name == "dot_general"
    ]
    assert products
    assert set(products) == {jnp.dtype("bfloat16")}
    assert jax.eval_shape(gradient, model.params, model.batch)["head"].dtype == jnp.float32


def test_a_wrong_step_is_not_timed(benchmark, gpu, measure):
    model = gpu.block(True)
    (plain,) = [variant for variant in benchmark("steps_variants").variants() if variant.name == "gd"]
    wrong = dataclasses.replace(plain, formula=lambda loss, x, h: x - 1.1 * h * jax.grad(loss)(x))
    with pytest.raises(measure.IncorrectError, match=r"gd in float32 is 9\.1e-02"):
        gpu.steps(model, "float32", [wrong], gpu.displacements(model, [wrong]))
