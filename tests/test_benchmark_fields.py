"""The benchmark of modified equations: fields that are right, and what happens to those that are not."""

import jax
import pytest

import implicit_reg as ir


@pytest.fixture(scope="module")
def fields(benchmark):
    return benchmark("fields")


@pytest.fixture(scope="module")
def effort(benchmark):
    return benchmark("measure").Effort(rounds=0, tiny=True)


@pytest.fixture
def few(fields, monkeypatch):
    """One field of each kind: what is wrong is seen all the same."""

    def keep(**orders):
        every = fields.routes
        monkeypatch.setattr(
            fields,
            "routes",
            lambda *args: {name: (way, orders.get(name, ())) for name, (way, _) in every(*args).items()},
        )

    return keep


def test_fields_are_of_their_orders_and_cost_what_is_counted(fields, effort):
    report = fields.run(effort)
    rows = {row.work: row for row in report.rows}
    assert rows["order 8, interpolated: gradients evaluated"].value == 8
    assert rows["order 4, empirical: gradients evaluated"].value == 0
    assert rows["interpolated, order 8 over order 3: size of the program"].value == 1
    assert abs(rows["order 4, empirical: order seen"].value - 4) < 0.3
    assert rows["order 5, interpolated"].target == 5.25
    flops = {name: row["flops"] for name, row in report.data["rows"].items()}
    # Elementwise work is some percent of so small a model.
    assert flops["order 2, exact"] < 2.8
    assert flops["order 3, exact"] < 5.6
    assert flops["order 3, exact"] < flops["order 3, nested products"]
    assert flops["order 2, exact"] < flops["order 2, Taylor mode"]
    errors = [error for row in report.data["rows"].values() for error in row["errors"] or [1]]
    assert max(report.data["reference_errors"]) < min(errors)


def _off(make):
    """With a tenth of the last term too much."""

    def wrong(phi, order):
        field, below = make(phi, order), make(phi, order - 1)
        return lambda t, x, h: jax.tree.map(lambda a, b: a + 0.1 * (a - b), field(t, x, h), below(t, x, h))

    return wrong


def test_a_field_of_the_wrong_order_is_not_timed(fields, effort, few, benchmark):
    few(interpolated=(3,))
    with pytest.raises(benchmark("measure").IncorrectError, match=r"order 3, interpolated: order [12]"):
        fields.run(effort, interpolated=_off(ir.interpolated_vector_field))


def test_an_exact_field_unlike_the_other_routes_is_not_timed(fields, effort, few, benchmark):
    few(**{"exact": (2,), "nested products": (2,)})
    with pytest.raises(benchmark("measure").IncorrectError, match=r"order 2, exact is .* from order 2, nested"):
        fields.run(effort, exact=_off(ir.modified_vector_field))


def test_an_empirical_field_of_the_wrong_order_is_not_timed(fields, effort, few, benchmark):
    few()

    def lower(run, order, **options):
        found = ir.empirical_vector_field(run, order - 2, **options)
        return found._replace(values=found.values[1:-1])  # at the point in the middle, as with more neighbors

    with pytest.raises(benchmark("measure").IncorrectError, match="order 4, empirical: order 2"):
        fields.run(effort, empirical=lower)
