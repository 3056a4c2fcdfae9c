"""`L + strength ||grad L||^2` as a function of arrays, with a rule for its derivative: forward over reverse."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from implicit_reg import _checks, _products, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._products import Reader
from implicit_reg.losses import _gram
from implicit_reg.losses._gram import Rows
from implicit_reg.losses._pure import PureLoss

_TWICE = (
    "{function} needs second derivatives of the loss; where it has none, the transformation "
    "add_finite_difference_penalty needs first ones only."
)


def _inner(gradient, tangent):
    """`<g, t>` as JAX pairs a gradient with a tangent: not conjugated; in the dtype of the gradient."""
    return jnp.sum((gradient * tangent.astype(gradient.dtype)).real)


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0


def _replaced(inputs: Sequence, positions: list[int], values: Sequence) -> list:
    inputs = list(inputs)
    for i, value in zip(positions, values, strict=True):
        inputs[i] = value
    return inputs


class PenalizedLoss:
    """The penalized loss of one `PureLoss`, its derivative, and their means over microbatches."""

    def __init__(self, function: str, pure: PureLoss, mask: list[bool], penalize: bool, gram: bool, cut: int | None):
        self.function, self.pure, self.cut = function, pure, cut
        self.masked = [j for j, chosen in enumerate(mask) if chosen]
        self.penalize = penalize and bool(self.masked)
        self.rows = Rows(pure.program, self._leaves() if gram and self.penalize else {}, first=1)
        self.formed = [j for j in self.masked if j not in self.rows.leaves]

    def __call__(self, strength) -> tuple[jax.Array, list, list]:
        call = jax.custom_jvp(lambda strength, *inputs: self._value(strength, inputs))
        call.defjvp(self._jvp, symbolic_zeros=True)
        return call(strength, *self.pure.inputs)

    def _leaves(self) -> dict[int, _gram.Leaf]:
        """The penalized weights whose gradients are better not formed."""
        pure, program, reader = self.pure, self.pure.program, Reader(self.pure.program)
        weights = [program.invars[i] for i in pure.own]
        found = {j: _gram.read(program, reader, weights, weights[j], program.outvars[1 + j]) for j in self.masked}
        leaves = {j: leaf for j, leaf in found.items() if isinstance(leaf, _gram.Leaf)}
        if not leaves:
            paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(pure.parameters)]
            reasons = "; ".join(f"{_checks.path_name('params', paths[j])}: {why}" for j, why in found.items())
            raise ValueError(
                f"{self.function}: `gram` must be False where no penalized weight is a factor of rows, got True; "
                f"{reasons}. Without `gram` every loss has its penalty."
            )
        return {j: leaf for j, leaf in leaves.items() if leaf.pays()}

    def _value(self, strength, inputs):
        (total,), aux, state = self._mean(self._piece, strength, inputs)
        return total.astype(self.pure.dtype), aux, state

    def _piece(self, strength, inputs):
        outputs, products, _ = self.rows.run(inputs, self.rows.zeros())
        value, gradients, aux, state = self.pure.split(outputs)
        square = self._square(gradients, products)
        return (self._total(value, strength, square),), aux, state

    def _square(self, gradients, products):
        formed = _tree.squared_norm([gradients[j] for j in self.formed])
        return sum((_gram.squared_norm(product) for product in products.values()), start=formed)

    def _total(self, value, strength, square):
        return value + strength * square if self.penalize else value.astype(strength.dtype)

    def _directed_piece(self, strength, inputs):
        """The piece with the derivatives of its value: `square` in the strength, `g + 2 strength H M g` in params."""
        pure, rows, positions = self.pure, self.rows, [self.pure.own[j] for j in self.formed]

        def gradients_at(moved, taps):
            outputs, products, others = rows.run(_replaced(inputs, positions, moved), taps)
            value, gradients, aux, state = pure.split(outputs)
            return (gradients, {j: p.right for j, p in products.items()}), (value, aux, state, products, others)

        still = [inputs[i] for i in positions], rows.zeros()
        if not self.penalize:
            (gradients, _), (value, aux, state, *_) = gradients_at(*still)
            return (self._total(value, strength, 0), jnp.zeros_like(strength), gradients), aux, state
        # Three routes for H g: (1) reverse over reverse, what `grad` of ||grad L||^2 does: 6 gradients on convolutions;
        # (2) `jvp` of the gradient, which evaluates it twice; (3) `linearize`, which shares it: 2.5. We do (3).
        try:
            (gradients, _), push, (value, aux, state, products, others) = jax.linearize(
                gradients_at, *still, has_aux=True
            )
        except Exception as error:
            error.add_note(_TWICE.format(function=self.function))
            raise
        square = self._square(gradients, products)
        tangents = [jnp.conj(gradients[j]) for j in self.formed], rows.directions(products, others)
        turned, turned_right = _products.gathered(push, *tangents)
        moving = rows.moving(positions)

        def direction(j):
            g, hg = gradients[j], turned[j]
            dtype = jnp.promote_types(g.dtype, jnp.float32)
            scale = (2 * strength).astype(jnp.finfo(dtype).dtype)
            if j not in rows.leaves:
                return g.astype(dtype) + scale * hg.astype(dtype)
            product = products[j]
            terms = [product._replace(right=product.right + scale * turned_right[j])]
            # The features of a first layer are data.
            return _products.total(terms + [product._replace(left=scale * hg)] * moving[j])

        directions = [direction(j) for j in range(len(gradients))]
        return (self._total(value, strength, square), square, directions), aux, state

    def _mean(self, piece, strength, inputs):
        """The mean of the first result of `piece` over the microbatches, one at a time."""
        if self.cut is None:
            return piece(strength, inputs)
        k, pure = self.cut, self.pure
        xs = [jnp.reshape(x, (k, jnp.shape(x)[0] // k, *jnp.shape(x)[1:])) for x in (inputs[i] for i in pure.batch)]
        state = [inputs[i] for i in pure.stateful]

        def evaluate(state, x):
            summands, aux, state = piece(strength, _replaced(_replaced(inputs, pure.batch, x), pure.stateful, state))
            return summands, aux, state

        shapes, _, _ = jax.eval_shape(evaluate, state, [x[0] for x in xs])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(carry, x):
            sums, state = carry
            summands, aux, state = evaluate(state, x)
            return (jax.tree.map(jnp.add, sums, summands), state), aux

        loop = canonical_convolutions(lambda start, xs: jax.lax.scan(body, start, xs))
        (sums, state), aux = loop((zeros, state), xs)
        return jax.tree.map(lambda x: x / k, sums), aux, state

    def _jvp(self, primals, tangents):
        strength, *inputs = primals
        strength_dot, *dots = tangents
        (total, square, directions), aux, state = self._mean(self._directed_piece, strength, inputs)
        own = [(i, direction) for i, direction in zip(self.pure.own, directions, strict=True) if not _is_zero(dots[i])]
        terms = [_inner(direction, dots[i]) for i, direction in own]
        if not _is_zero(strength_dot):
            terms.append(strength_dot * square)

        # What depends on anything but the parameters through the definition: data, statistics, auxiliary output.
        # Nobody who trains parameters asks for it, and a compiler drops what nobody asks for.
        def along(positions):
            def value(*moved):
                return self._value(strength, _replaced(inputs, positions, moved))

            return jax.jvp(value, tuple(inputs[i] for i in positions), tuple(dots[i] for i in positions))[1]

        moving = [i for i, dot in enumerate(dots) if not _is_zero(dot)]
        rest = [i for i in moving if i not in {i for i, _ in own}]
        if rest:
            terms.append(along(rest)[0])
        if moving and (aux or state):
            _, aux_dot, state_dot = along(moving)
        else:
            aux_dot, state_dot = jax.tree.map(zero_from_primal, (aux, state))
        dot = sum((term.astype(self.pure.dtype) for term in terms), start=jnp.zeros((), self.pure.dtype))
        return (total.astype(self.pure.dtype), aux, state), (dot, aux_dot, state_dot)
