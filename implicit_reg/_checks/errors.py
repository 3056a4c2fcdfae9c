"""Error types, and the texts that several rooms share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from implicit_reg._checks.trees import path_name


class ImplicitRegError(RuntimeError):
    """The arguments are fine; the state of the world (a file, a lock, a precision) is not."""


class CorruptResultError(ImplicitRegError):
    """A file of results is truncated, damaged, or not of this library."""


class ConfigMismatchError(ImplicitRegError):
    """A folder was written with other settings than those asked for now."""


class EnvironmentMismatchError(ImplicitRegError):
    """A folder was written on another machine, or with other versions or flags, so that bits may differ."""


class LockedError(ImplicitRegError):
    """Another process works in the folder."""


def missing(function: str, argument: str, call: str) -> ValueError:
    """The error for an extra argument that a transformation lives on and did not get."""
    return ValueError(f"{function} needs `{argument}`: call {call}")


def unknown_name(function: str, argument: str, value: Any, known: Iterable[str]) -> ValueError:
    """The error for a name that is in no table: the known ones, and the nearest."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{function}: unknown {argument} {value!r}.{hint} Known: {', '.join(known)}")


def masked_params(function: str) -> ValueError:
    """The error for a loss that would meet the holes which `optax.masked` and `optax.partition` leave."""
    return ValueError(
        f"{function}: `params` hold optax.MaskedNode where optax.masked or optax.partition left other parameters out, "
        f"and a loss cannot be evaluated on them: call update(grads, state, params, "
        f"value_fn=fill_masked(value_fn, params)) with all the parameters."
    )


def indivisible(function: str, path: tuple, shape: tuple, num_microbatches: int) -> ValueError:
    """The error for a batch that cannot be cut into equal microbatches."""
    return ValueError(
        f"{function}: {path_name('batch', path)} must have a leading axis divisible by "
        f"num_microbatches={num_microbatches}, got shape {shape}; what all microbatches share goes in by keyword"
    )
