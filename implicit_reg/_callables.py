"""Callables as keys: what lets one compilation serve many calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ByIdentity:
    """A callable that cannot be hashed (a module that holds arrays, a plain dataclass), known by what it is."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "fn"), name)

    def __hash__(self) -> int:
        return id(self.fn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and other.fn is self.fn


def hashable(fn: Any) -> Any:
    """The callable itself where it can be a key, else wrapped so that it can; None stays None."""
    if fn is None or isinstance(fn, ByIdentity):
        return fn
    try:
        hash(fn)
    except TypeError:
        return ByIdentity(fn)
    return fn
