"""The row of two players: alternating and simultaneous updates with different rates, and the linear game."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.linalg import expm

from implicit_reg.flows import games
from implicit_reg.predictions.measure import program
from implicit_reg.predictions.objective import Objective, Vector
from implicit_reg.predictions.prediction import Criterion, Effort, Finding, Orders, Prediction, Recurrence, flow_of

RATES = (1.0, 2.0)  # of the two players, times h: different, so that whose clock it is matters
LINEAR_GAMES = ((0.09, 0.2), (0.2, 0.2))  # friction and rate


def game_of(objective: Objective) -> tuple[games.Player, games.Player, Callable, Callable]:
    """A game from a loss: half of the parameters descends L, the others, y, ascend sqrt(1 + L^2) - ||y||^2/2.

    Not a zero-sum game, so that no transpose of a cross derivative can stand for another one; and one that stays
    finite, where the ascent of `L + L^2/2` alone blew up within the time of the check.

    Returns:
      The two players, `split: x -> (first, second)` and `join`, its inverse.
    """
    half = objective.start.size // 2
    join = lambda first, second: jnp.concatenate([first, second])  # noqa: E731

    def payoff(x):
        return jnp.sqrt(1 + objective.value(x) ** 2) - jnp.sum(x[half:] ** 2) / 2

    return (
        lambda first, second: -jax.grad(lambda u: objective.value(join(u, second)))(first),
        lambda first, second: jax.grad(lambda v: payoff(join(first, v)))(second),
        lambda x: (x[:half], x[half:]),
        join,
    )


def _updates(objective: Objective, *, simultaneous: bool) -> Recurrence:
    """One step of `optax.sgd` for each player."""
    f, k, split, join = game_of(objective)

    def move(rate, direction, params):
        method = optax.sgd(rate)
        updates, _ = method.update(-direction, method.init(params), params)
        return optax.apply_updates(params, updates)

    def step(w, h, n, y):
        first, second = split(y)
        moved = move(RATES[0] * h, f(first, second), first)
        return join(moved, move(RATES[1] * h, k(first if simultaneous else moved, second), second))

    return Recurrence(step)


def _terms(objective: Objective, rule: Callable) -> Callable:
    f, k, split, join = game_of(objective)

    def terms(h, n, x: Vector):
        return tuple(join(*pair) for pair in rule(f, k, *split(x), (RATES[0] * h, RATES[1] * h)))

    return terms


def _wrong_clock(objective: Objective) -> Criterion:
    """The order at fixed time of alternating updates with either set of coefficients."""

    def measure():
        step_sizes, time = (0.0125, 0.00625), 0.25
        run = program(_updates(objective, simultaneous=False), objective)
        errors = []
        for rule in (games.alternating_game_terms, games.players_clock_terms):
            flow = program(flow_of(_terms(objective, rule)), objective)
            errors.append(
                [
                    np.linalg.norm(run(np.ones(2), h, counts) - flow(np.ones(2), h, counts))
                    for h in step_sizes
                    for counts in [np.array([round(time / h)])]
                ]
            )
        right, published = (float(np.log(e[0] / e[1]) / np.log(step_sizes[0] / step_sizes[1])) for e in errors)
        numbers = {"one clock": right, "each player's own clock": published}
        return Finding(abs(right - 2), 0.1, abs(published - 2), numbers=numbers)

    return Criterion(
        "coefficients of each player's own clock lose an order",
        "order 2 at fixed time to 0.1 at rates h and 2 h; with the coefficients of each player's own clock it is not",
        measure,
    )


def linear_game_radii() -> dict[str, dict[str, float]]:
    """Spectral radii of one step of the game `x' = -e x + y`, `y' = -x - e y`, at equal rates.

    Returns:
      By name ("simultaneous, e = 0.09" and so on): `update`, of the step itself; `flow`, of the time-1 map of its
      modified equation with two terms; `first term`, of the equation without drift.
    """
    found = {}
    for friction, rate in LINEAR_GAMES:
        f = lambda x, y, e=friction: -e * x + y  # noqa: E731
        k = lambda x, y, e=friction: -x - e * y  # noqa: E731
        for name, rule in (
            ("simultaneous", games.simultaneous_game_terms),
            ("alternating", games.alternating_game_terms),
        ):

            def step(z, name=name, f=f, k=k, rate=rate):
                x = z[0] + rate * f(z[0], z[1])
                return jnp.stack([x, z[1] + rate * k(x if name == "alternating" else z[0], z[1])])

            def drift(z, rule=rule, f=f, k=k, rate=rate):
                return tuple(jnp.stack(pair) for pair in rule(f, k, z[0], z[1], (rate, rate)))

            matrix = np.asarray(jax.jacfwd(step)(jnp.zeros(2)))
            first, second = (np.asarray(j) for j in jax.jacfwd(drift)(jnp.zeros(2)))
            radius = lambda a: float(np.max(np.abs(np.linalg.eigvals(a))))  # noqa: E731
            found[f"{name}, e = {friction:g}"] = {
                "update": radius(matrix),
                "flow": radius(expm(first + second)),
                "first term": radius(expm(first)),
            }
    return found


def _linear_game() -> Criterion:
    def measure():
        radii = linear_game_radii()
        off = {key: [abs(r[key] - r["update"]) for r in radii.values()] for key in ("flow", "first term")}
        bound = max(rate for _, rate in LINEAR_GAMES) ** 3  # two terms leave an error of third order in one step
        return Finding(max(off["flow"]), bound, max(off["first term"]), numbers=radii)

    return Criterion(
        "spectral radii of the linear game",
        "the modified flow's within the cube of the rate of the update's; without drift it is not",
        measure,
    )


def _statements(objective: Objective, effort: Effort) -> tuple[Orders | Criterion, ...]:
    def follow(name, *, simultaneous):
        rule = games.simultaneous_game_terms if simultaneous else games.alternating_game_terms
        return Orders(name, _updates(objective, simultaneous=simultaneous), flow_of(_terms(objective, rule)), (1, 2))

    found = (follow("", simultaneous=False),)
    if effort >= Effort.STANDARD:
        found += (follow("simultaneous", simultaneous=True), _wrong_clock(objective), _linear_game())
    return found


ROWS = (
    Prediction(
        name="two-player",
        title="Two players",
        claim="Alternating and simultaneous updates follow different drifts, on one clock at any two rates.",
        formula="F = (a f - (a/2)(a f_x f + b f_y k), b k - (b/2)(b k_y k -+ a k_x f)); a = h, b = 2 h",
        source="rosca2021",
        time_scale="steps of both players",
        validity="rates times the Jacobian of the game below 0.3",
        statements=_statements,
    ),
)
