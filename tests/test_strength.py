"""The meter's coefficients by running, its equivalences by running both sides, and the monitor's numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ORDER, ROUND_OFF, assert_close

import implicit_reg as ir
from implicit_reg import flows, problems, transforms
from implicit_reg.strength import (
    Adam,
    Alternating,
    Backstitch,
    FullBatch,
    GradientDescent,
    GradientPenalty,
    HeavyBall,
    Nesterov,
    Shuffled,
    WithReplacement,
    alpha_for,
    explicit_strength_for,
    implicit_strength,
    monitor,
    step_for,
)

pytestmark = pytest.mark.x64

STEPS = np.array([0.01, 0.005])
TIME = 0.48  # a multiple of every step and pair below


@functools.cache
def problem():
    return problems.load_problem("nonquadratic")


def end(method, h, *, state=None):
    """Where `method` is after TIME of flow, in steps of the effective size `h`."""
    steps = round(TIME / h)
    assert abs(steps * h - TIME) < 1e-9
    return ir.descend(method, problem().loss_fn, problem().params, h, steps, every=steps, state=state).params[-1]


# Methods are cached, so that runs of all step sizes share a compilation: strengths are given in units of the step.
@functools.cache
def penalized(ratio):
    return lambda h: optax.chain(transforms.add_gradient_penalty(ratio * h), optax.sgd(h))


@functools.cache
def backstitched(alpha):
    return lambda h: transforms.backstitch(optax.sgd(h), alpha, interval=2)


@functools.cache
def with_memory(decay, nesterov):
    return lambda h: optax.sgd(h * (1 - decay), momentum=decay, nesterov=nesterov)


@functools.cache
def pairs(ratio):
    return lambda h: optax.sgd(transforms.alternating(h / (1 - ratio), ratio * h / (1 - ratio)))


def momentum(decay, nesterov, h):
    """The end of momentum of effective step h, its trace on the slow manifold."""
    memory = (flows.nesterov_memory if nesterov else flows.heavy_ball_memory)(decay)
    trace = flows.slow_trace(problem().loss_fn, memory, decay)(h * (1 - decay), problem().params)
    fresh = with_memory(decay, nesterov)(h).init(problem().params)
    return end(with_memory(decay, nesterov), h, state=(fresh[0]._replace(trace=trace), *fresh[1:]))


def alternated(ratio, h):
    """The end of pairs of effective step h."""
    steps = 2 * round(TIME / h)
    return ir.descend(pairs(ratio), problem().loss_fn, problem().params, h, steps, every=steps).params[-1]


# The settings of effective step h, and the end of their run.
TARGETS = {
    "gradient descent": (lambda h: GradientDescent(h), lambda h: end(optax.sgd, h)),
    "heavy ball": (lambda h: HeavyBall(0.5 * h, 0.5), lambda h: momentum(0.5, False, h)),
    "nesterov": (lambda h: Nesterov(0.4 * h, 0.6), lambda h: momentum(0.6, True, h)),
    "backstitch": (lambda h: Backstitch(h, 0.7, 2), lambda h: end(backstitched(0.7), h)),
    "alternating": (lambda h: Alternating(h / 0.75, 0.25), lambda h: alternated(0.25, h)),
    "penalty": (lambda h: GradientPenalty(GradientDescent(h), 0.3 * h), lambda h: end(penalized(0.3), h)),
}


def is_order(order, expected):
    return abs(order - expected) <= ORDER


def by_penalty(target, h, factor):
    ratio = explicit_strength_for(target, GradientDescent(h)) / h
    return end(penalized(round(factor * ratio, 12)), h)


def by_backstitch(target, h, factor):
    return end(backstitched(round(factor * alpha_for(target, h, 2), 12)), h)


def by_step(target, h, factor):
    """Plain descent of the step with as strong a penalty, whatever step size that is."""
    return end(optax.sgd, factor * step_for(target))


@pytest.mark.parametrize("name", TARGETS)
def test_what_replaces_a_strength_follows_the_same_loss_to_second_order(name):
    settings, run = TARGETS[name]
    ends = [run(h) for h in STEPS]
    targets = [implicit_strength(settings(h)) for h in STEPS]

    def order(replacement, factor):
        others = [replacement(target, h / 2, factor) for target, h in zip(targets, STEPS, strict=True)]
        return ir.observed_order(STEPS, [float(jnp.linalg.norm(a - b)) for a, b in zip(ends, others, strict=True)])[-1]

    for replacement in (by_penalty, by_backstitch):
        assert is_order(order(replacement, 1.0), 2)
        assert not is_order(order(replacement, 1.1), 2)
        assert is_order(order(replacement, 0.0), 1)


def test_the_step_of_equal_strength():
    """The step of a plain run that follows heavy ball's loss: 1.5, 3 times the effective one at b = 1/2."""
    settings, run = TARGETS["heavy ball"]
    assert_close(jnp.asarray(step_for(implicit_strength(settings(0.02)))), jnp.asarray(0.06), ROUND_OFF)
    ends = [run(h) for h in STEPS]

    def order(factor):
        others = [by_step(implicit_strength(settings(h)), h, factor) for h in STEPS]
        return ir.observed_order(STEPS, [float(jnp.linalg.norm(a - b)) for a, b in zip(ends, others, strict=True)])[-1]

    assert is_order(order(1.0), 2)
    assert is_order(order(1 / 3), 1)


def minibatch_loss(x, k):
    a = jnp.array([0.3, 1.1, -0.4])[k]
    return jnp.mean(jnp.cosh(x * (1 + a)) + a * jnp.sin(x[0] - x[1]) + 0.3 * x[1] ** 3 * a)


EPOCHS = {  # settings, a step's formula on one minibatch
    "plain": (GradientDescent, lambda h, g, x, k, n: x - h * g(x, k)),
    "penalty": (
        lambda h: GradientPenalty(GradientDescent(h), 0.4 * h),
        lambda h, g, x, k, n: x - h * g(x, k) - 0.8 * h * h * jax.jvp(lambda x: g(x, k), (x,), (g(x, k),))[1],
    ),
    "backstitch": (
        lambda h: Backstitch(h, 0.7),
        lambda h, g, x, k, n: (lambda y: y - 1.7 * h * g(y, k))(x + 0.7 * h * g(x, k)),
    ),
}


@pytest.mark.parametrize("name", EPOCHS)
@pytest.mark.parametrize("sampling", [Shuffled, WithReplacement])
def test_the_mean_epoch_follows_both_coefficients(name, sampling):
    """All orders, or all draws, of three minibatches are run; one epoch is of third order."""
    settings, step = EPOCHS[name]
    start, m = jnp.array([0.5, -0.3]), 3
    orders = itertools.permutations(range(m)) if sampling is Shuffled else itertools.product(range(m), repeat=m)
    orders, g = jnp.array(list(orders)), jax.grad(minibatch_loss)

    @jax.jit
    def mean_end(h):
        def epoch(order):
            x = start
            for n in range(m):
                x = step(h, g, x, order[n], n)
            return x

        return jnp.mean(jax.vmap(epoch)(orders), axis=0)

    def modified(x, strength):
        gradients = jax.vmap(g, (None, 0))(x, jnp.arange(m))
        mean = jnp.mean(gradients, axis=0)
        variance = jnp.mean(jnp.sum((gradients - mean) ** 2, axis=1))
        loss = jnp.mean(jax.vmap(minibatch_loss, (None, 0))(x, jnp.arange(m)))
        return loss + strength[0] * jnp.sum(mean**2) + strength[1] * variance

    @jax.jit
    def flow(coefficients, time):
        field = lambda x: -jax.grad(modified)(x, coefficients)  # noqa: E731

        def runge_kutta(_, x):
            dt = time / 64
            a = field(x)
            b = field(x + dt / 2 * a)
            c = field(x + dt / 2 * b)
            return x + dt / 6 * (a + 2 * b + 2 * c + field(x + dt * c))

        return jax.lax.fori_loop(0, 64, runge_kutta, start)

    def order(scale):
        errors = []
        for h in (0.01, 0.005):
            strength = implicit_strength(settings(h), sampling(1, m))
            coefficients = jnp.array([strength.squared_norm, strength.variance + scale * h])
            errors.append(float(jnp.linalg.norm(mean_end(h) - flow(coefficients, m * strength.effective_step))))
        return ir.observed_order([0.01, 0.005], errors)[-1]

    assert is_order(order(0.0), 3)
    assert not is_order(order(0.1), 3)


def test_momentum_on_shuffled_minibatches_has_the_coefficients_of_its_flow(key):
    h, m = 0.1, 3
    x = jax.random.normal(key, (2,))
    g = jax.vmap(jax.grad(minibatch_loss), (None, 0))
    strength = implicit_strength(HeavyBall(h, 0.6), Shuffled(2, 2 * m))

    def penalty(x):
        gradients = g(x, jnp.arange(m))
        mean = jnp.mean(gradients, axis=0)
        variance = jnp.mean(jnp.sum((gradients - mean) ** 2, axis=1))
        return strength.squared_norm * jnp.sum(mean**2) + strength.variance * variance

    terms = jax.jit(lambda x: flows.momentum_shuffled_terms(minibatch_loss, m, x, h, decay=0.6))
    assert_close(-m * strength.effective_step * jax.jit(jax.grad(penalty))(x), terms(x)[1], DERIVATIVE)


def test_the_coefficient_of_the_variance_of_examples(key):
    """Averaged over all ways to put six examples into minibatches of two."""
    gradients = np.asarray(jax.random.normal(key, (6, 3)))
    strength = implicit_strength(GradientDescent(0.1), Shuffled(2, 6))
    mean = gradients.mean(0)
    batches = [gradients[list(c)].mean(0) for c in itertools.combinations(range(6), 2)]
    of_batches = np.mean([np.sum((b - mean) ** 2) for b in batches])
    of_examples = np.mean(np.sum((gradients - mean) ** 2, axis=1))
    assert_close(
        jnp.asarray(strength.example_variance * of_examples), jnp.asarray(strength.variance * of_batches), ROUND_OFF
    )


@pytest.mark.parametrize("count", [None, 5])
def test_adam_follows_its_own_norm(count):
    """The second term is that of the published form, in the metric of the root; nearly all components are large."""
    h, loss, x = 0.01, problem().loss_fn, problem().params
    adam = Adam(h, 0.8, 0.9, count)
    strength = implicit_strength(adam)
    g, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    for eps_root, coefficient in ((0.0, strength.one_norm), (1e12, strength.one_norm_small)):
        root = jnp.sqrt(g**2 + eps_root)
        expected = jax.jit(flows.adaptive_coefficients(loss, adam.ages(), flows.Rescaling(eps_root=eps_root)))(x)[1]
        found = -coefficient / h * (hessian @ (g / root)) / root
        scale = jnp.linalg.norm(expected)
        assert_close(found / scale, expected / scale, DERIVATIVE)


def rows(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) - y) ** 2)


def test_the_monitor_reads_what_it_says(key):
    a, b = jax.random.split(key)
    params, x = {"w": jax.random.normal(a, (3,))}, jax.random.normal(b, (12, 3))
    data = (x, jnp.sin(x[:, 0]) + 0.3)
    watch = monitor(rows, HeavyBall(0.01, 0.5), Shuffled(3, 12), data=data)
    reading = jax.jit(lambda p: watch(p))(params)
    loss = lambda w, *data: rows({"w": w}, *data)  # noqa: E731
    gradient, hessian = jax.grad(loss)(params["w"], *data), jax.hessian(loss)(params["w"], *data)
    per_batch = jnp.stack([jax.grad(loss)(params["w"], *(d[k : k + 3] for d in data)) for k in range(0, 12, 3)])
    values = jnp.linalg.eigvalsh(hessian)
    penalty = 0.015 * jnp.sum(gradient**2)  # (eta/4) (1 + b)/(1 - b) with eta = 0.02
    expected = {
        "loss": rows(params, *data),
        "penalty": penalty,
        "share": penalty / rows(params, *data),
        "minibatch": watch.strength.variance * jnp.mean(jnp.sum((per_batch - gradient) ** 2, axis=1)),
        "half_sharpness": 0.005 * values[-1],
        "term_ratio": 0.005 * jnp.linalg.norm(hessian @ gradient) / jnp.linalg.norm(gradient),
        "reach": 0.01 * jnp.max(jnp.abs(values)) / flows.heavy_ball_radius(0.5),
        "epoch": 4 * 0.02 * values[-1],
    }
    for name, value in expected.items():
        assert_close(getattr(reading, name), value, DERIVATIVE)


def test_the_monitor_follows_a_run():
    watch = monitor(problem().loss_fn, GradientDescent(0.05), every=10)
    run = ir.descend(optax.sgd, problem().loss_fn, problem().params, 0.05, 20, observe=watch, every=10)
    last = jax.tree.map(lambda x: x[-1], run.observed)
    assert_close(last.loss, problem().loss_fn(run.params[-1]), ROUND_OFF)
    assert watch.line(last) == watch.line(run.params[-1])
    assert "trusted: " in watch.line(last)
    assert [n for n in range(25) if watch.due(n)] == [0, 10, 20]


@pytest.mark.parametrize(
    ("step", "words"), [(0.1, "trusted: "), (0.5, "trusted with caution"), (0.9, "near its end"), (1.5, "beyond it")]
)
def test_the_verdict_is_that_of_the_bands(step, words):
    bowl = monitor(lambda x: 0.5 * jnp.sum(x**2), GradientDescent(step))
    assert words in bowl.line(jnp.array([1.0, 2.0]))


def test_the_verdicts_of_long_epochs_momentum_and_faults():
    data = (jnp.arange(1.0, 13.0),)
    loss = lambda x, d: 0.5 * jnp.mean(d * x**2) / 6.5  # noqa: E731
    line = monitor(loss, GradientDescent(0.1), Shuffled(1, 12), data=data).line(jnp.array(1.0))
    assert "not trusted: an epoch is 1.2 long" in line
    bowl = lambda x: 0.5 * x**2  # noqa: E731
    assert "not trusted" in monitor(bowl, HeavyBall(0.1, 0.9)).line(jnp.array(1.0))
    assert "not trusted" not in monitor(bowl, GradientDescent(0.1)).line(jnp.array(1.0))
    assert "not finite" in monitor(bowl, GradientDescent(0.1)).line(jnp.array(jnp.nan))
    assert "0 % of the loss" not in monitor(bowl, GradientDescent(0.1)).line(jnp.array(0.0))
    assert monitor(bowl, GradientDescent(0.1), FullBatch())(jnp.array(0.0)).term_ratio == 0
