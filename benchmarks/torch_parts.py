"""What a step of gradient descent is made of, each part alone, in JAX and in PyTorch: where one is ahead of the other.

A part is a list of functions of the model, on random arrays of the shapes that they have there: the value of each, and
the gradients that the step takes of it. Together they do what a step does, but for the sums of what reaches an array by
several ways. Compilers fuse less in a part than in a step, and what one part leaves in the cache no other part finds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import torch
import torch.nn.functional as F
import torch_models

TOLERANCE = 1e-4  # between float32 and float32: sums over at most 10^5 terms in another order
PATCHES = ", by patches"  # a part in another form, beside the one that the step has
IMAGE, KERNEL = (0, 3, 1, 2), (3, 2, 0, 1)  # ours are NHWC and HWIO, theirs NCHW and OIHW


class Piece(NamedTuple):
    """`ours(*inputs)` and `theirs(*inputs)` are equal.

    Attributes:
      inputs: in our layouts.
      wanted: which of them a step takes gradients with respect to.
      axes: the order of axes that an input has in PyTorch, where it is another; -1 is the output.
    """

    ours: Callable
    theirs: Callable
    inputs: tuple[np.ndarray, ...]
    wanted: tuple[int, ...]
    axes: Mapping[int, tuple[int, ...]] = {}


def parts(name: str, model: models.Model, h: float) -> dict[str, list[Piece]]:
    """The parts of a step of size `h` on `model`, which is `models.MODELS[name]` of any size."""
    params = {key: np.asarray(value) for key, value in model.params.items()}
    x, labels = map(np.asarray, model.batch)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    found = {"mlp": _mlp, "conv": _conv, "transformer": functools.partial(_transformer, model.loss)}[name](
        params, x, labels, draw
    )
    both = tuple(itertools.chain.from_iterable((p, draw(*p.shape)) for p in params.values()))
    found["all else"].append(Piece(functools.partial(_moved, h), functools.partial(_move, h), both, ()))
    return found


def _moved(h, *both):
    return [p - h * g for p, g in zip(both[::2], both[1::2], strict=True)]


def _move(h, *both):
    torch._foreach_add_(both[::2], both[1::2], alpha=-h)
    return both[::2]


def _dense(x: np.ndarray, *layer: np.ndarray, first: bool = False) -> Piece:
    """`x w` or `x w + b`; the first layer's input needs no gradient."""
    ours = lambda x, w, b=None: x @ w if b is None else x @ w + b  # noqa: E731
    return Piece(ours, F.linear, (x, *layer), tuple(range(first, 1 + len(layer))), {1: (1, 0)})


def _loss(logits: np.ndarray, labels: np.ndarray) -> Piece:
    known = torch.from_numpy(labels.astype(np.int64))
    return Piece(lambda z: models.cross_entropy(z, labels), lambda z: F.cross_entropy(z, known), (logits,), (0,))


def _mlp(params, x, labels, draw):
    layers = [(params[f"w{k}"], params[f"b{k}"]) for k in range(len(params) // 2)]
    outputs = [draw(len(x), len(b)) for _, b in layers]
    return {
        "dense layers": [_dense(draw(len(x), len(w)), w, b, first=k == 0) for k, (w, b) in enumerate(layers)],
        "all else": [
            *(Piece(jnp.tanh, torch.tanh, (z,), (0,)) for z in outputs[:-1]),
            _loss(outputs[-1], labels),
        ],
    }


def _conv(params, x, labels, draw):
    found, rest, side = {}, [], x.shape[1]
    forms = {"": models.convolve, PATCHES: models.convolve_patches}
    for k in range(len(params) // 2 - 1):
        w, b = params[f"w{k}"], params[f"b{k}"]
        image = draw(len(x), side, side, w.shape[2])
        for form, convolve in forms.items() if k == 0 else [("", models.convolve)]:
            found[f"convolution {k + 1}{form}"] = [
                Piece(
                    lambda x, w, b, convolve=convolve: convolve(x, w) + b,
                    functools.partial(F.conv2d, padding=1),
                    (image, w, b),
                    (1, 2) if k == 0 else (0, 1, 2),
                    {0: IMAGE, 1: KERNEL, -1: IMAGE},
                )
            ]
        output = draw(len(x), side, side, len(b))
        rest.append(Piece(models.pooled, torch_models.pooled, (output,), (0,), {0: IMAGE, -1: IMAGE}))
        side //= 2
    w, b = params["w"], params["b"]
    return found | {"all else": [*rest, _dense(draw(len(x), len(w)), w, b), _loss(draw(len(x), len(b)), labels)]}


def _transformer(loss, params, tokens, labels, draw):
    (heads,), (n, length), (_, width) = loss.args, tokens.shape, params["embedding"].shape
    features = lambda size=width: draw(n * length, size)  # noqa: E731
    known = torch.from_numpy(tokens.astype(np.int64))
    shape = length, heads
    return {
        "dense layers": [
            _dense(features(len(params[key])), params[key]) for key in ("q", "k", "v", "o", "up", "down", "head")
        ],
        "products of attention, and its layouts": [
            Piece(
                functools.partial(models.scores, *shape),
                functools.partial(torch_models.scores, *shape),
                (features(), features()),
                (0, 1),
            ),
            Piece(models.attend, torch_models.attend, (draw(n, heads, length, length), features()), (0, 1)),
        ],
        "all else": [
            Piece(
                lambda table, position: (table[tokens] + position).reshape(tokens.size, -1),
                lambda table, position: (F.embedding(known, table) + position).flatten(0, 1),
                (params["embedding"], params["position"]),
                (0, 1),
            ),
            *(
                Piece(models.normalize, torch_models.normalize, (features(), params[f"gain{k}"]), (0, 1))
                for k in range(3)
            ),
            Piece(models.causal_softmax, torch_models.causal_softmax, (draw(n, heads, length, length),), (0,)),
            Piece(jax.nn.gelu, torch_models.gelu, (features(params["up"].shape[1]),), (0,)),
            _loss(features(params["head"].shape[1]), labels.ravel()),
        ],
    }


def _cotangents(part: Sequence[Piece]) -> list[Any]:
    rng = np.random.default_rng(1)
    shapes = [jax.eval_shape(piece.ours, *piece.inputs) for piece in part]
    return [
        rng.standard_normal(s.shape).astype(np.float32) if p.wanted else None for p, s in zip(part, shapes, strict=True)
    ]


def _only(f: Callable, inputs: Sequence[Any], wanted: Sequence[int]) -> Callable:
    """`f` of the inputs that are wanted."""

    def of(*some):
        whole = list(inputs)
        for k, x in zip(wanted, some, strict=True):
            whole[k] = x
        return f(*whole)

    return of


def ours(part: Sequence[Piece]) -> measure.Program:
    """Values and gradients, piece by piece, in one program."""

    def run(inputs, cotangents):
        found = []
        for piece, xs, cotangent in zip(part, inputs, cotangents, strict=True):
            if piece.wanted:
                value, pull = jax.vjp(_only(piece.ours, xs, piece.wanted), *(xs[k] for k in piece.wanted))
                found.append((value, *pull(cotangent)))
            else:
                found.append(tuple(piece.ours(*xs)))
        return found

    inputs = [tuple(map(jnp.asarray, piece.inputs)) for piece in part]
    return measure.build(run, inputs, [None if c is None else jnp.asarray(c) for c in _cotangents(part)])


def _tensor(x: np.ndarray, axes: tuple[int, ...] | None) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(x if axes is None else x.transpose(axes), order="C"))
    return tensor.to(memory_format=torch.channels_last) if axes in (IMAGE, KERNEL) else tensor


def _by_tape(piece: Piece, xs: Sequence[torch.Tensor], cotangent: torch.Tensor) -> tuple:
    xs = [x.detach().requires_grad_() if k in piece.wanted else x for k, x in enumerate(xs)]
    value = piece.theirs(*xs)
    return value.detach(), *torch.autograd.grad(value, [xs[k] for k in piece.wanted], cotangent)


def _by_function(piece: Piece, xs: Sequence[torch.Tensor], cotangent: torch.Tensor) -> tuple:
    value, pull = torch.func.vjp(_only(piece.theirs, xs, piece.wanted), *(xs[k] for k in piece.wanted))
    return value, *pull(cotangent)


def theirs(part: Sequence[Piece], *, traceable: bool = False, backend: str | None = None) -> Callable[[], list[tuple]]:
    """The same in PyTorch, by the tape or, where `traceable`, by `torch.func`; compiled where a backend is named."""
    gradient = _by_function if traceable else _by_tape
    inputs = [tuple(_tensor(x, piece.axes.get(k)) for k, x in enumerate(piece.inputs)) for piece in part]
    pairs = zip(part, _cotangents(part), strict=True)
    cotangents = [None if c is None else _tensor(c, piece.axes.get(-1)) for piece, c in pairs]

    def run(inputs, cotangents):
        every = zip(part, inputs, cotangents, strict=True)
        return [gradient(p, xs, c) if p.wanted else tuple(p.theirs(*xs)) for p, xs, c in every]

    if backend is not None:
        run = torch.compile(run, fullgraph=True, dynamic=False, backend=backend)
    return functools.partial(run, inputs, cotangents)


def error(part: Sequence[Piece], expected: Sequence[tuple], found: Sequence[tuple]) -> float:
    """The largest relative distance of an array of `found`, from `theirs`, to that of `expected`, from `ours`."""
    return max(itertools.chain.from_iterable(map(_errors, part, expected, found)))


def _errors(piece: Piece, expected: tuple, found: tuple) -> Iterator[float]:
    for k, a, b in zip((-1, *piece.wanted) if piece.wanted else range(len(found)), expected, found, strict=True):
        axes = piece.axes.get(k)
        a, b = np.asarray(a), b.numpy()
        yield float(np.linalg.norm((b if axes is None else b.transpose(np.argsort(axes))) - a) / np.linalg.norm(a))
