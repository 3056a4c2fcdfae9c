"""The models of `models` and the steps of the methods in PyTorch: the same numbers, in the layouts that it prefers.

Parameters are a dictionary of tensors, and `loss(params, batch)` is a function, as there. A step changes them in place
and returns the loss; its gradients go straight into one update of all tensors, which is what `torch.optim.SGD` with
`foreach=True` does after `backward()`, without its bookkeeping. Weights of linear maps are (out, in). Convolutions are
in the memory format `channels_last`, which makes a step a third cheaper than the default. Attention is written out:
the fused one is no faster at these sizes, and has no second derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import models
import numpy as np
import torch
import torch.nn.functional as F

Params = dict[str, torch.Tensor]
Loss = Callable[[Params], torch.Tensor]

TABLES = ("embedding", "position")  # matrices that are looked up, not multiplied by


class Program(NamedTuple):
    """`run()` makes one step, in place; `moved()` is how far the parameters have come, in the layouts of `models`."""

    run: Callable[[], torch.Tensor]
    moved: Callable[[], dict[str, np.ndarray]]


def _tensor(x: Any, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(x, order="C"))
    tensor = tensor.to(dtype if tensor.is_floating_point() else torch.int64)
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _mlp_loss(params: Params, batch: Any) -> torch.Tensor:
    x, labels = batch
    *hidden, last = range(len(params) // 2)
    for k in hidden:
        x = torch.tanh(F.linear(x, params[f"w{k}"], params[f"b{k}"]))
    return F.cross_entropy(F.linear(x, params[f"w{last}"], params[f"b{last}"]), labels)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.relu(x), 2)


def _conv_loss(params: Params, batch: Any) -> torch.Tensor:
    x, labels = batch
    for k in range(len(params) // 2 - 1):
        x = pooled(F.conv2d(x, params[f"w{k}"], params[f"b{k}"], padding=1))
    features = x.permute(0, 2, 3, 1).flatten(1)  # a view, of channels that are last in memory
    return F.cross_entropy(F.linear(features, params["w"], params["b"]), labels)


def normalize(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, gain.shape, gain)


def _by_head(length: int, heads: int, x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, length, heads, x.shape[-1] // heads).transpose(1, 2)


def scores(length: int, heads: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    q, k = (_by_head(length, heads, x) for x in (q, k))
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def causal_softmax(x: torch.Tensor) -> torch.Tensor:
    future = torch.ones(x.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(x.masked_fill(future, -1e9), -1)


def attend(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    _, heads, length, _ = weights.shape
    return (weights @ _by_head(length, heads, v)).transpose(1, 2).reshape(v.shape)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _transformer_loss(heads: int, params: Params, batch: Any) -> torch.Tensor:
    tokens, following = batch
    x = (F.embedding(tokens, params["embedding"]) + params["position"]).flatten(0, 1)
    before = normalize(x, params["gain0"])
    q, k, v = (F.linear(before, params[name]) for name in "qkv")
    x = x + F.linear(attend(causal_softmax(scores(tokens.shape[-1], heads, q, k)), v), params["o"])
    x = x + F.linear(gelu(F.linear(normalize(x, params["gain1"]), params["up"])), params["down"])
    return F.cross_entropy(F.linear(normalize(x, params["gain2"]), params["head"]), following.flatten())


def _there(name: str, x: np.ndarray) -> np.ndarray:
    """To the layouts of PyTorch: HWIO to OIHW, and (in, out) to (out, in)."""
    if x.ndim == 4:
        return x.transpose(3, 2, 0, 1)
    return x.T if x.ndim == 2 and name not in TABLES else x


def _back(name: str, x: np.ndarray) -> np.ndarray:
    if x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    return x.T if x.ndim == 2 and name not in TABLES else x


def _loss_and_batch(name: str, model: models.Model, dtype: torch.dtype) -> tuple[Callable, tuple]:
    x, labels = map(np.asarray, model.batch)
    if name == "mlp":
        loss = _mlp_loss
    elif name == "conv":
        loss, x = _conv_loss, x.transpose(0, 3, 1, 2)
    else:
        loss = functools.partial(_transformer_loss, model.loss.args[0])
    return loss, (_tensor(x, dtype), _tensor(labels, dtype))


def program(
    name: str,
    model: models.Model,
    route: Callable,
    h: float,
    hyperparameters: Mapping[str, Any],
    *,
    dtype: str,
    traceable: bool = False,
    backend: str | None = None,
) -> Program:
    """One of `ROUTES` on `model`, which is `models.MODELS[name]` of any size.

    Gradients are taken by the tape or, where `traceable`, by `torch.func`; only these can be compiled as a whole, which
    the `backend` of `torch.compile` does where one is named.
    """
    kind = getattr(torch, dtype)
    loss, batch = _loss_and_batch(name, model, kind)
    params = {key: _tensor(_there(key, np.asarray(value)), kind) for key, value in model.params.items()}
    start = {key: value.clone() for key, value in params.items()}
    gradient = traceable_gradient if traceable else tape_gradient

    def step(params, batch):
        return route(gradient, lambda p: loss(p, batch), params, h, **hyperparameters)

    if backend is not None:
        step = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    return Program(
        lambda: step(params, batch),
        lambda: {key: _back(key, (value - start[key]).numpy()) for key, value in params.items()},
    )


def tape_gradient(loss: Loss, params: Params) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """By the tape."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    value = loss(leaves)
    return value.detach(), list(torch.autograd.grad(value, list(leaves.values())))


def traceable_gradient(loss: Loss, params: Params) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """By `torch.func`, which `torch.compile` sees through, so that a whole step is one graph."""
    gradient, value = torch.func.grad_and_value(loss)(params)
    return value, list(gradient.values())


def _move(params: Params, direction: list[torch.Tensor], scale: Any) -> None:
    torch._foreach_add_(list(params.values()), direction, alpha=scale)


def _ahead(params: Params, direction: list[torch.Tensor], scale: Any) -> Params:
    if isinstance(scale, torch.Tensor):
        moved = torch._foreach_add(list(params.values()), torch._foreach_mul(direction, scale))
    else:
        moved = torch._foreach_add(list(params.values()), direction, alpha=scale)
    return dict(zip(params, moved, strict=True))


def gd(gradient, loss, params, h):
    value, g = gradient(loss, params)
    _move(params, g, -h)
    return value


def flooding(gradient, loss, params, h, level):
    value, g = gradient(lambda p: (loss(p) - level).abs() + level, params)
    _move(params, g, -h)
    return value


def backstitch(gradient, loss, params, h, alpha, interval=1, offset=0):
    value, g = gradient(loss, params)
    _move(params, g, alpha * h)
    _move(params, gradient(loss, params)[1], -(1 + alpha) * h)
    return value


def sam(gradient, loss, params, h, radius):
    value, g = gradient(loss, params)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(g)))
    _move(params, gradient(loss, _ahead(params, g, radius / norm))[1], -h)
    return value


def finite_difference(gradient, loss, params, h, strength, displacement):
    value, g = gradient(loss, params)
    ahead = gradient(loss, _ahead(params, g, displacement))[1]
    slope = 2 * strength / displacement
    _move(params, g, -h * (1 - slope))
    _move(params, ahead, -h * slope)
    return value


def _squares(tensors):
    return sum((x * x).sum() for x in tensors)


def double_backward(gradient, loss, params, h, strength):
    """The gradient of the penalized loss, the inner gradient kept on the tape."""
    if gradient is tape_gradient:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        wanted = list(leaves.values())
        value = loss(leaves)
        inner = torch.autograd.grad(value, wanted, create_graph=True)
        total = torch.autograd.grad(value + strength * _squares(inner), wanted)
    else:

        def penalized(p):
            inner, value = torch.func.grad_and_value(loss)(p)
            return value + strength * _squares(inner.values()), value

        total, (_, value) = torch.func.grad_and_value(penalized, has_aux=True)(params)
        total = total.values()
    _move(params, list(total), -h)
    return value.detach()


def forward_over_reverse(gradient, loss, params, h, strength):
    """The gradient, and a Hessian product with it by `jvp` of `grad`."""
    value, g = gradient(loss, params)
    tangent = dict(zip(params, g, strict=True))
    _, product = torch.func.jvp(torch.func.grad(loss), (params,), (tangent,))
    _move(params, g, -h)
    _move(params, list(product.values()), -2 * h * strength)
    return value


# By the row of the methods table, routes to it.
ROUTES: Mapping[str, Mapping[str, Callable]] = {
    "gd": {"": gd},
    "flooding": {"": flooding},
    "backstitch": {"": backstitch},
    "sam": {"": sam},
    "gradient-penalty": {"double backward": double_backward, "jvp of grad": forward_over_reverse},
    "finite-difference-penalty": {"": finite_difference},
}
