"""B-series against textbook numbers, against THEORY's coefficients as fractions, and against their own algebra."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from implicit_reg import bseries as bs

TALL, BUSHY = (((),),), ((), ())
ALPHAS = [Fraction(x) for x in ("0", "3/10", "1", "-1/4", "2")]  # five points pin a polynomial of degree 4


def gradient_terms(series, order):
    """Coefficients of the modified field in powers of L's derivatives: `(-1)^order b / sigma`, for `f = -grad L`."""
    b = bs.modified_equation(series)
    return [(-1) ** order * b[tree] / bs.symmetry(tree) for tree in bs.trees(order)]


def tall(order):
    tree = bs.LEAF
    for _ in range(order - 1):
        tree = (tree,)
    return tree


def test_number_of_trees():
    assert [len(bs.trees(n)) for n in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]
    assert len(set(bs.trees_through(7))) == 85
    assert all(tuple(sorted(tree)) == tree and bs.tree_order(tree) == 6 for tree in bs.trees(6))
    assert [bs.tree_order(tree) for tree in bs.trees_through(3)] == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("tree", "symmetry", "density", "text"),
    [
        ((), 1, 1, "f"),
        (((),), 1, 2, "f'f"),
        (TALL, 1, 6, "f'f'f"),
        (BUSHY, 2, 3, "f''(f, f)"),
        (((), (), ()), 6, 4, "f'''(f, f, f)"),
        (((), ((),)), 1, 8, "f''(f, f'f)"),
        (((((),),),), 1, 24, "f'f'f'f"),
        ((BUSHY,), 2, 12, "f'f''(f, f)"),
        ((((),), ((),)), 2, 20, "f''(f'f, f'f)"),
        (((), (), (), ()), 24, 5, "f''''(f, f, f, f)"),
        ((BUSHY, BUSHY), 8, 63, "f''(f''(f, f), f''(f, f))"),
    ],
)
def test_symmetry_density_and_notation(tree, symmetry, density, text):
    assert tree in bs.trees(bs.tree_order(tree))
    assert (bs.symmetry(tree), bs.density(tree), bs.differential(tree)) == (symmetry, density, text)


@pytest.mark.parametrize("order", range(1, 8))
def test_trees_with_labels(order):
    """`n!/(sigma gamma)` counts increasing labelings, `(n-1)!` in all; `n!/sigma` counts all labelings, `n^(n-1)`."""
    factorial = math.factorial(order)
    assert sum(Fraction(factorial, bs.symmetry(t) * bs.density(t)) for t in bs.trees(order)) == factorial // order
    assert sum(Fraction(factorial, bs.symmetry(t)) for t in bs.trees(order)) == order ** (order - 1)


def test_euler_on_y_squared():
    """The textbook series, [hairer2006], chapter IX."""

    def square(vectors):
        return [1, 2, 2, 0][min(len(vectors), 3)] * math.prod(vectors)  # at y = 1

    b = bs.modified_equation(bs.gradient_descent(6))
    terms = [
        sum(b[t] / bs.symmetry(t) * bs.elementary_differential(t, square) for t in bs.trees(n)) for n in range(1, 7)
    ]
    assert terms == [Fraction(x) for x in ("1", "-1", "3/2", "-8/3", "31/6", "-157/15")]


def test_gradient_descent():
    """-0.5 H g; -(1/3) HHg - (1/12) T(g, g); -(1/4) HHHg - (1/12) H T(g, g) - (1/12) T(g, Hg)."""
    gd = bs.gradient_descent(4)
    assert gradient_terms(gd, 1) == [-1]
    assert gradient_terms(gd, 2) == [Fraction(-1, 2)]
    assert gradient_terms(gd, 3) == [Fraction(-1, 3), Fraction(-1, 12)]
    by_tree = dict(zip(bs.trees(4), gradient_terms(gd, 4), strict=True))
    assert by_tree == {
        tall(4): Fraction(-1, 4),
        (BUSHY,): Fraction(-1, 12),
        ((), ((),)): Fraction(-1, 12),
        ((), (), ()): 0,
    }


@pytest.mark.parametrize("e1", [Fraction(1), Fraction(2, 3), Fraction(-3, 10)])
@pytest.mark.parametrize("e2", [Fraction(0), Fraction(1), Fraction(1, 5), Fraction(-13, 10)])
def test_flow_of_a_pair(e1, e2):
    """Descend e1, then ascend e2: F1, F2, F3 per pair."""
    pair = bs.compose(bs.gradient_descent(3, e1), bs.gradient_descent(3, -e2))
    assert gradient_terms(pair, 1) == [-(e1 - e2)]
    assert gradient_terms(pair, 2) == [-(e1**2 + e2**2) / 2]
    assert gradient_terms(pair, 3) == [
        -(e1**3 - e2**3) / 3,
        -(e1**3 - 3 * e1**2 * e2 - 3 * e1 * e2**2 - e2**3) / 12,
    ]
    if e1:
        assert pair == bs.rescale(bs.alternating(e2 / e1, 3), e1)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_backstitch(alpha):
    a = alpha
    assert gradient_terms(bs.backstitch(a, 3), 1) == [-1]
    assert gradient_terms(bs.backstitch(a, 3), 2) == [-(1 + 2 * a + 2 * a**2) / 2]
    assert gradient_terms(bs.backstitch(a, 3), 3) == [
        -(1 + 3 * a + 3 * a**2) / 3,
        -(1 + 6 * a + 12 * a**2 + 6 * a**3) / 12,
    ]


def test_flooding_pair():
    """-(e^2/2) grad ||g||^2 either order; then +(e^3/2) T(g, g) with descent first, minus with ascent first."""
    descent_first = bs.alternating(1, 3)
    ascent_first = bs.rescale(descent_first, -1)
    for series, sign in ((descent_first, 1), (ascent_first, -1)):
        assert gradient_terms(series, 1) == [0]
        assert gradient_terms(series, 2) == [-1]
        assert gradient_terms(series, 3) == [0, Fraction(sign, 2)]


@pytest.mark.parametrize("c", ALPHAS)
def test_unnormalized_sam(c):
    """rho = c h: F2 = -(c/2 + 1/4) grad ||g||^2, F3 = -(c + 1/3) HHg - (c^2/2 + c/2 + 1/12) T(g, g)."""
    sam = bs.unnormalized_sam(c, 3)
    assert gradient_terms(sam, 2) == [-(c + Fraction(1, 2))]
    assert gradient_terms(sam, 3) == [-(c + Fraction(1, 3)), -(c**2 / 2 + c / 2 + Fraction(1, 12))]


def test_extragradient():
    """L - (h/4) ||g||^2, so f_2 = +0.5 Hg."""
    assert gradient_terms(bs.extragradient(2), 2) == [Fraction(1, 2)]
    assert bs.extragradient(5) == bs.runge_kutta([[0, 0], [1, 0]], [0, 1], 5)


@pytest.mark.parametrize("c", ALPHAS)
def test_penalties(c):
    """Descent on L + c h ||g||^2, and the bias of the finite difference, c e T(g, g)."""
    e = Fraction(1, 7)
    exact, finite = bs.gradient_penalty(c, 3), bs.finite_difference_penalty(c, e, 3)
    assert gradient_terms(exact, 2) == gradient_terms(finite, 2) == [-(2 * c + Fraction(1, 2))]
    bias = [x - y for x, y in zip(gradient_terms(finite, 3), gradient_terms(exact, 3), strict=True)]
    assert bias == [0, -c * e]


def test_quadratic_logarithm():
    """On a quadratic only tall trees survive: log(1 - z) for gradient descent, log R(-z) for any method."""
    n = 7
    b = bs.modified_equation(bs.gradient_descent(n))
    assert [b[tall(k)] for k in range(1, n + 1)] == [Fraction(-((-1) ** k), k) for k in range(1, n + 1)]
    b = bs.modified_equation(bs.backstitch(Fraction(3, 10), n))
    factors = [Fraction(-3, 10), Fraction(13, 10)]  # log((1 + e1 z)(1 + e2 z))
    assert [b[tall(k)] for k in range(1, n + 1)] == [
        sum(Fraction(-1, k) * (-x) ** k for x in factors) for k in range(1, n + 1)
    ]


RK4 = ([[0, 0, 0, 0], ["1/2", 0, 0, 0], [0, "1/2", 0, 0], [0, 0, 1, 0]], ["1/6", "1/3", "1/3", "1/6"])


def test_order_of_known_methods():
    """A method of order p has the exact flow's coefficients, and no correction, through order p and not further."""
    methods = {
        1: ([[0]], [1]),
        2: ([["1/2"]], [1]),  # implicit midpoint
        3: ([[0, 0, 0], ["1/3", 0, 0], [0, "2/3", 0]], ["1/4", 0, "3/4"]),  # Heun's third order
        4: RK4,
    }
    for p, tableau in methods.items():
        b = bs.modified_equation(bs.runge_kutta(*tableau, p + 1))
        corrections = {tree: x for tree, x in b.items() if x and tree not in (bs.EMPTY, bs.LEAF)}
        assert b[bs.LEAF] == 1
        assert corrections
        assert all(bs.tree_order(tree) == p + 1 for tree in corrections)
        assert bs.runge_kutta(*tableau, p) == bs.exact_flow(p)


def test_implicit_midpoint_is_symmetric():
    """Phi_h after Phi_-h is the identity, so that the modified equation holds odd orders only."""
    midpoint = bs.runge_kutta([["1/2"]], [1], 5)
    identity = {tree: Fraction(tree is bs.EMPTY) for tree in midpoint}
    assert bs.compose(midpoint, bs.rescale(midpoint, -1)) == identity
    b = bs.modified_equation(midpoint)
    assert all(b[tree] == 0 for n in (2, 4) for tree in bs.trees(n))
    assert any(b[tree] for tree in bs.trees(3))


def test_flows_compose():
    s, t = Fraction(2, 7), Fraction(-3, 5)
    assert bs.compose(bs.exact_flow(5, s), bs.exact_flow(5, t)) == bs.exact_flow(5, s + t)
    assert bs.flow({bs.EMPTY: Fraction(0)} | {t: Fraction(t == bs.LEAF) for t in bs.trees_through(5)}) == bs.exact_flow(
        5
    )
    b = bs.modified_equation(bs.backstitch(Fraction(3, 10), 5))
    assert bs.compose(bs.flow(b, s), bs.flow(b, t)) == bs.flow(b, s + t)
    assert bs.flow(b, 3) == bs.compose(*[bs.backstitch(Fraction(3, 10), 5)] * 3)


def test_composition_equals_one_tableau():
    """Two Euler steps are one two-stage method; composition is associative and does not commute."""
    x, y = Fraction(-3, 10), Fraction(13, 10)
    one, two = bs.gradient_descent(6, x), bs.gradient_descent(6, y)
    assert bs.compose(one, two) == bs.runge_kutta([[0, 0], [x, 0]], [x, y], 6)
    assert bs.compose(one, two) != bs.compose(two, one)
    sam = bs.unnormalized_sam("1/3", 6)
    assert bs.compose(one, bs.compose(two, sam)) == bs.compose(bs.compose(one, two), sam) == bs.compose(one, two, sam)
    penalty = bs.gradient_penalty("1/3", 6)
    assert bs.compose(penalty, one, sam) == bs.compose(penalty, bs.compose(one, sam))


def test_modified_equation_and_flow_are_inverse():
    for series in (
        bs.gradient_descent(6),
        bs.alternating(1, 6),
        bs.runge_kutta(*RK4, 6),
        bs.gradient_penalty("1/3", 6),
    ):
        assert bs.flow(bs.modified_equation(series)) == series


def test_composition_is_complete_through_the_lower_order():
    assert bs.compose(bs.gradient_descent(3), bs.gradient_descent(5)) == bs.compose(*[bs.gradient_descent(3)] * 2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: bs.trees(0), ValueError, "at least 1, got 0"),
        (lambda: bs.trees(2.0), TypeError, "integer"),
        (lambda: bs.trees_through(True), TypeError, "integer"),
        (lambda: bs.exact_flow(2, 0.5), TypeError, "'0.3'"),
        (lambda: bs.exact_flow(2, "one half"), ValueError, "'one half'"),
        (lambda: bs.exact_flow(2, "1/0"), ValueError, "'1/0'"),
        (lambda: bs.backstitch(True, 2), TypeError, "`alpha`"),
        (lambda: bs.runge_kutta([[0, 0]], [1], 2), ValueError, "square"),
        (lambda: bs.runge_kutta([[0.5]], [1], 2), TypeError, r"matrix\[0\]\[0\]"),
        (lambda: bs.finite_difference_penalty(1, 0, 2), ValueError, "must not be 0"),
        (lambda: bs.flow(bs.gradient_descent(2)), ValueError, "a field"),
        (lambda: bs.compose(bs.modified_equation(bs.gradient_descent(2))), ValueError, "a map"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()
