"""The mean over the orders of an epoch: against brute force, against its flow, its error bars, and what it costs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import ORDER, ROUND_OFF, STATISTICAL, assert_close

import implicit_reg as ir
from implicit_reg.orderings import all_orders, epoch_orders, mean_epoch

START = {"a": np.array([0.3, -1.0]), "b": np.array([[0.5]])}


def loss(x, k):
    both = jnp.concatenate([x["a"], x["b"][0]])
    return jnp.sum(jnp.cos(both * (1 + 0.3 * k) + k)) + 0.5 * jnp.sum(both**2) + both[0] * both[2] * k / 5


def start(dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), START)


def ends_of(method, orders, x, h):
    """One run after the other, by Optax alone."""

    @jax.jit
    def step(x, state, k):
        updates, state = method(h).update(jax.grad(loss)(x, k), state, x)
        return optax.apply_updates(x, updates), state

    ends = []
    for order in orders:
        y, state = x, method(h).init(x)
        for k in order:
            y, state = step(y, state, int(k))
        ends.append(y)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *ends)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("m", "method"),
    [(1, optax.sgd), (2, optax.sgd), (3, optax.sgd), (4, optax.sgd), (4, lambda h: optax.sgd(h, 0.7)), (3, optax.adam)],
    ids=["1", "2", "3", "4", "4 with momentum", "3 with Adam"],
)
def test_the_mean_is_that_of_all_runs(m, method):
    x = start(jnp.float64)
    mean = mean_epoch(method, loss, m, x, 0.1)
    wanted = jax.tree.map(
        lambda ends: jnp.mean(ends, axis=0), ends_of(method, itertools.permutations(range(m)), x, 0.1)
    )
    assert_close(mean.params, wanted, ROUND_OFF)
    assert_close(mean.displacement, jax.tree.map(jnp.subtract, wanted, x), ROUND_OFF)
    assert mean.standard_error is None
    assert mean.num_draws == 0


@pytest.mark.x64
def test_lanes_only_decide_how_it_is_computed():
    x = start(jnp.float64)
    one, many = (mean_epoch(optax.sgd, loss, 4, x, 0.1, lanes=lanes) for lanes in (1, 1000))
    assert_close(one.params, many.params, ROUND_OFF)


@pytest.mark.parametrize("m", range(1, 7))
@pytest.mark.parametrize("lanes", [1, 7, 32, 1000])
def test_a_walk_goes_through_every_order_once_and_shares_what_they_begin_with(m, lanes):
    walk = all_orders(m, lanes)
    assert len(walk.batches) <= lanes
    orders = []
    for batches in walk.batches.tolist():
        slots = [()] * walk.num_slots
        for read, write, end, k in zip(walk.read, walk.write, walk.ends, batches, strict=True):
            slots[write] = (*slots[read], k)
            if end:
                orders.append(slots[write])
    assert sorted(orders) == list(itertools.permutations(range(m)))
    nodes = sum(math.perm(m, k) for k in range(1, m + 1))
    assert nodes == (math.floor(math.e * math.factorial(m)) - 1 if m > 1 else 1)
    assert nodes <= walk.batches.size <= (1.02 if lanes <= 32 and m == 6 else 1.5) * nodes
    assert walk.num_slots <= m


def runge_kutta(field, x, time, num=16):
    dt = time / num

    def step(_, x):
        slope, total = jax.tree.map(jnp.zeros_like, x), x
        for reach, weight in ((0, 1), (0.5, 2), (0.5, 2), (1, 1)):
            slope = field(jax.tree.map(lambda y, s: y + reach * dt * s, x, slope))
            total = jax.tree.map(lambda y, s: y + weight * dt / 6 * s, total, slope)
        return total

    return jax.lax.fori_loop(0, num, step, x)


@pytest.mark.x64
@pytest.mark.parametrize("order", [2, 3])
def test_the_mean_follows_its_modified_equation(order):
    x, m, sizes = start(jnp.float64), 4, (0.008, 0.004)
    field = ir.shuffled_vector_field(loss, m, order)
    flow = jax.jit(lambda h, wrong: runge_kutta(lambda y: field(0.0, y, wrong * h), x, m * h))

    def slope(wrong):
        errors = [
            np.linalg.norm(flat(flow(h, wrong)) - flat(mean_epoch(optax.sgd, loss, m, x, h).params)) for h in sizes
        ]
        return math.log2(errors[0] / errors[1])

    assert abs(slope(1.0) - (order + 1)) <= ORDER
    assert abs(slope(1.1) - (order + 1)) > ORDER  # the step size inside of the field matters


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.x64
def test_the_error_bar_is_honest_and_falls_as_one_over_the_root():
    x, h = start(jnp.float64), 0.1
    exact = flat(mean_epoch(optax.sgd, loss, 5, x, h).params)

    def sample(n, seed):
        drawn = mean_epoch(optax.sgd, loss, 5, x, h, num_samples=n, key=jax.random.key(seed))
        assert drawn.num_draws == n // 2
        return flat(drawn.params) - exact, flat(drawn.standard_error)

    off, error = sample(512, 0)
    assert np.all(abs(off) <= STATISTICAL * error)
    found = [sample(32, seed) for seed in range(40)]
    # The spread of 256 pairs is known to 5 %.
    typical = np.sqrt(np.mean([e**2 for _, e in found], axis=0))
    np.testing.assert_allclose(typical / error, 4, rtol=0.05 * STATISTICAL)
    # Squared z-scores of 16 pairs average to 15/13: a t distribution of 15 degrees.
    z = np.array([(off / error) ** 2 for off, error in found])
    assert np.all(abs(np.mean(z, axis=0) - 15 / 13) <= STATISTICAL * np.std(z, axis=0, ddof=1) / math.sqrt(len(z)))


@pytest.mark.x64
def test_it_is_the_mean_and_the_error_of_the_pairs():
    x, h, key = start(jnp.float64), 0.1, jax.random.key(3)
    ends = ends_of(optax.sgd, epoch_orders(7, num_samples=22, key=key), x, h)
    for lanes in (4, 32):  # chunks of which the last is not full, and one chunk
        mean = mean_epoch(optax.sgd, loss, 7, x, h, num_samples=22, key=key, lanes=lanes)
        pairs = jax.tree.map(lambda leaf: leaf.reshape(11, 2, *leaf.shape[1:]).mean(axis=1), ends)
        assert_close(mean.params, jax.tree.map(lambda leaf: jnp.asarray(leaf.mean(axis=0)), pairs), ROUND_OFF)
        error = jax.tree.map(lambda leaf: jnp.asarray(leaf.std(axis=0, ddof=1) / math.sqrt(11)), pairs)
        np.testing.assert_allclose(flat(mean.standard_error), flat(error), rtol=1e-9)
    again = mean_epoch(optax.sgd, loss, 7, x, h, num_samples=22, key=key)
    assert np.array_equal(flat(again.params), flat(mean.params))
    other = mean_epoch(optax.sgd, loss, 7, x, h, num_samples=22, key=jax.random.key(4))
    assert not np.array_equal(flat(other.params), flat(mean.params))


def test_a_sample_may_be_part_of_a_program(key):
    x = start(jnp.float32)
    draw = lambda x: mean_epoch(optax.sgd, loss, 4, x, 0.1, num_samples=4, key=key)[:3]  # noqa: E731
    assert_close(jax.jit(draw)(x), draw(x), ROUND_OFF)


@pytest.mark.x64
def test_reverse_pairs_are_worth_a_power_of_the_step_size():
    """Single orders spread as h^2, pairs as h^3: an error bar of as many single orders is longer by 1/h."""
    x, gains = start(jnp.float64), []
    for h in (0.02, 0.01):
        pairs = mean_epoch(optax.sgd, loss, 5, x, h, num_samples=32, key=jax.random.key(0))
        single = flat(jax.tree.map(lambda ends: ends.std(axis=0, ddof=1), ends_of(optax.sgd, epoch_orders(5), x, h)))
        gains.append(np.linalg.norm(single / math.sqrt(32)) / np.linalg.norm(flat(pairs.standard_error)))
    assert gains[0] > 3
    assert math.log2(gains[1] / gains[0]) == pytest.approx(1, abs=ORDER)


def test_float32_keeps_the_mean_to_its_precision():
    """All runs are one: 720 compensated terms lose nothing, where a plain sum would."""
    mean = mean_epoch(optax.sgd, lambda x, k: jnp.sum(x) + 0 * k, 6, jnp.full(1, 0.1), 0.3, lanes=1)
    one = np.float32(0.1)
    for _ in range(6):
        one = np.float32(one - np.float32(0.3))
    assert abs(float(mean.displacement[0]) / float(np.float32(one - np.float32(0.1))) - 1) <= 2e-7


def test_half_precision_is_summed_in_single():
    x = jnp.full(1, 1.0, jnp.bfloat16)
    mean = mean_epoch(optax.sgd, lambda x, k: jnp.sum(x) * k, 3, x, 0.125)
    assert (mean.params.dtype, mean.displacement.dtype) == (jnp.bfloat16, jnp.float32)
    assert float(mean.displacement[0]) == -0.375


def test_one_compilation_serves_all_step_sizes():
    traces = []

    def counted(x, k):
        traces.append(None)
        return loss(x, k)

    exact = [mean_epoch(optax.sgd, counted, 3, start(jnp.float32), h) for h in (0.1, 0.2, np.float32(0.3))]
    assert len(traces) == 1
    for seed in range(3):
        mean_epoch(optax.sgd, counted, 8, start(jnp.float32), 0.1 + seed, num_samples=8, key=jax.random.key(seed))
    assert len(traces) == 2
    together = jax.vmap(lambda h: mean_epoch(optax.sgd, counted, 3, start(jnp.float32), h).params)(
        jnp.array([0.1, 0.2])
    )
    assert_close(together, jax.tree.map(lambda *x: jnp.stack(x), *(mean.params for mean in exact[:2])), ROUND_OFF)


def test_the_program_holds_one_step_whatever_m_is():
    for m in (3, 6):
        program = jax.make_jaxpr(lambda x: mean_epoch(optax.sgd, loss, m, x, 0.1).params)(start(jnp.float32))
        assert str(program).count(" cos ") == 1


def test_what_is_refused(key):
    x = start(jnp.float32)
    for wrong, message in [
        ({"num_batches": 7}, "from 7 on Monte Carlo is used: give `num_samples` and `key`"),
        ({"num_batches": 0}, "`num_batches` must be an integer, at least 1"),
        ({"num_samples": 10}, "`key`"),
        ({"key": key}, "`num_samples`"),
        ({"num_samples": 7, "key": key}, "must be even"),
        ({"num_samples": 2, "key": key}, "at least 4"),
        ({"h": 0.0}, "`h` must be a finite real number, greater than 0"),
        ({"lanes": 0}, "`lanes` must be an integer, at least 1"),
        ({"loss_fn": lambda x, k: x["a"]}, "must be a scalar loss"),
    ]:
        arguments = {"method": optax.sgd, "loss_fn": loss, "num_batches": 3, "params": x, "h": 0.1} | wrong
        with pytest.raises(ValueError, match=f"mean_epoch.*{message}"):
            mean_epoch(**arguments)
    with pytest.raises(TypeError, match="mean_epoch: `key` must be concrete"):
        jax.jit(lambda key: mean_epoch(optax.sgd, loss, 3, x, 0.1, num_samples=4, key=key))(key)
    with pytest.raises(TypeError, match="mean_epoch: `method`"):
        mean_epoch(None, loss, 3, x, 0.1)
    with pytest.raises(TypeError, match=r"mean_epoch: `method\(h\)`"):
        mean_epoch(lambda h: optax.sgd, loss, 3, x, 0.1)
    with pytest.raises(TypeError, match="mean_epoch"):
        mean_epoch(optax.sgd, loss, 3, {"a": jnp.arange(3)}, 0.1)
    with pytest.raises(ValueError, match="shuffled_vector_field: `order` must be at most 3"):
        ir.shuffled_vector_field(loss, 3, 4)
