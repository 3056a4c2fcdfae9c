"""A command's settings from a small TOML or JSON file, read as strictly as its flags."""

from __future__ import annotations

import difflib
import json
import math
import pathlib
import tomllib
import types
import typing
from collections.abc import Iterable
from typing import Any

from implicit_reg.cli._common import UsageError

SCHEMA_VERSION = 1
_LARGEST, _DEEPEST = 1_000_000, 50


def read_table(path: pathlib.Path) -> dict[str, Any]:
    """The table that a `.toml` or `.json` file holds.

    Args:
      path: the file.

    Returns:
      Names to values; without `schema_version`.

    Raises:
      UsageError: it is missing, too large, no UTF-8, has a syntax error (with line and column), a key twice, a number
        that is not finite, or is of a newer version.
    """
    kinds = {".toml": _toml, ".json": _json}
    if path.suffix not in kinds:
        raise UsageError(f"--config {path}: wanted a file called .toml or .json")
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise UsageError(f"--config {path}: larger than 1 MB")
    if data.startswith(b"\xef\xbb\xbf"):
        raise UsageError(f"--config {path}: line 1, column 1: starts with a byte order mark; save it as plain UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise UsageError(f"--config {path}: line {line}, column {column}: not UTF-8") from error
    if _depth(text) > _DEEPEST:
        raise UsageError(f"--config {path}: nested deeper than {_DEEPEST}")
    try:
        table = kinds[path.suffix](text)
        if not isinstance(table, dict):
            raise ValueError(f"wanted a table of settings, got {type(table).__name__}")
        _refuse_infinite(table)
        version = table.pop("schema_version", SCHEMA_VERSION)
        if type(version) is not int or version < 1:
            raise ValueError(f"schema_version must be an integer of at least 1, got {version!r}")
        if version > SCHEMA_VERSION:
            raise ValueError(f"written for a newer version of this library (schema_version {version})")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    return table


def checked(path: pathlib.Path, table: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """The values of a table, each judged by the type of its field.

    Args:
      path: for messages.
      table: from `read_table`.
      hints: names to types; dashes in the names of the table are underscores here.

    Returns:
      Names to values, lists as tuples.

    Raises:
      UsageError: an unknown name, with the nearest, a name twice, or a value of another type.
    """
    values: dict[str, Any] = {}
    for written, value in table.items():
        name = written.replace("-", "_")
        if name not in hints:
            raise UsageError(f"--config {path}: unknown key {written!r}{_nearest(name, hints)}")
        if name in values:
            raise UsageError(f"--config {path}: {written!r} is given twice")
        try:
            values[name] = _convert(value, hints[name])
        except TypeError as error:
            raise UsageError(f"--config {path}: {written} must be {_words(hints[name])}, got {value!r}") from error
    return values


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known: {', '.join(known)}"


def _toml(text: str) -> Any:
    return tomllib.loads(text)


def _json(text: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
        return table

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a finite number")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error


def _depth(text: str) -> int:
    """How deep the brackets go; those in texts count too, for a bound must not depend on a parser."""
    depth = deepest = 0
    for letter in text:
        if letter in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in "]}":
            depth = max(0, depth - 1)
    return deepest


def _refuse_infinite(value: Any, path: str = "") -> None:
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_infinite(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} must be a finite number, got {value}")


def _convert(value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        if isinstance(value, dict):  # hyper = {alpha = 0.3}
            value = [f"{name}={_word(inner)}" for name, inner in value.items()]
        if not isinstance(value, list):
            raise TypeError
        return tuple(_convert(inner, typing.get_args(hint)[0]) for inner in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError
    return value


def _word(value: Any) -> str:
    if not isinstance(value, bool | int | float):
        raise TypeError
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(hint: Any) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        return f"a list, each {_words(typing.get_args(hint)[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[hint]
