"""What a folder of a sweep says it is of: `run.json`, with the configuration and the environment."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from implicit_reg import _checks, _files
from implicit_reg.experiments.machine import INFORMATIVE

FORMAT = "implicit_reg.sweep"
VERSION = 1
_ABSENT = object()


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys.

    Args:
      value: what JSON can hold, finite.

    Returns:
      64 hexadecimal digits.

    Raises:
      TypeError, ValueError: it cannot hold it.

    Example:
      >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
      True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def make(config: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a new folder.

    Args:
      config: what decides the results besides the environment.
      environment: the machine.

    Returns:
      What `run.json` will hold.

    Example:
      >>> make({"h": 0.1}, {})["format"]
      'implicit_reg.sweep'
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": config,
        "config_sha256": digest(config),
        "environment": environment,
        "mixed_with": [],
    }


def write(folder: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Puts `run.json` in place, whole.

    Args:
      folder: an existing folder.
      manifest: from `make` or `read`.

    Raises:
      OSError: the disk refuses; what was there is untouched.
    """
    _files.write_whole(folder / "run.json", (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())


def deciding(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an environment on which bits depend.

    Args:
      environment: as `machine` says it.

    Returns:
      The rest is left out.

    Example:
      >>> deciding({"jax": "0.10.2", "python": "3.13"})
      {'jax': '0.10.2'}
    """
    return {name: value for name, value in environment.items() if name not in INFORMATIVE}


def environments(manifest: Mapping[str, Any]) -> set[str]:
    """The hashes of all environments that a folder knows of.

    Args:
      manifest: of the folder.

    Returns:
      SHA-256 of what decides bits, for each.
    """
    return {digest(deciding(known)) for known in (manifest["environment"], *manifest["mixed_with"])}


def read(folder: pathlib.Path) -> dict[str, Any]:
    """What `run.json` holds.

    Args:
      folder: of a sweep.

    Returns:
      The manifest.

    Raises:
      CorruptResultError: it is missing, damaged, foreign, a link, or of a newer version; nothing is changed.
    """
    path = folder / "run.json"
    try:
        manifest = json.loads(_files.read_whole(path))
        known, version = manifest["format"] == FORMAT, manifest["version"]
        whole = manifest["config_sha256"] == digest(manifest["config"])
        places = (manifest["config"], manifest["environment"], *manifest["mixed_with"])
        whole = whole and isinstance(version, int) and all(isinstance(place, dict) for place in places)
    except FileNotFoundError as error:
        raise _checks.CorruptResultError(f"{folder} holds no sweep: there is no run.json") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _checks.CorruptResultError(
            f"{path} is truncated or damaged, or not of a sweep ({type(error).__name__}); nothing was changed"
        ) from error
    if not known:
        raise _checks.CorruptResultError(f"{path} is not of a sweep; nothing was changed")
    if not whole:
        raise _checks.CorruptResultError(f"{path} is damaged: its checksum does not match; nothing was changed")
    if version > VERSION:
        raise _checks.CorruptResultError(f"{path} was written by a newer version of this library")
    return manifest


def differences(then: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two nested dictionaries.

    Args:
      then: what was.
      now: what is.
      path: where both are.

    Returns:
      A line for each place.

    Example:
      >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1.0, "c": 2}})
      ['a.b: 1 then, 1.0 now']
    """
    if isinstance(then, dict) and isinstance(now, dict):
        lines = []
        for name in dict.fromkeys([*then, *now]):
            place = f"{path}.{name}" if path else name
            lines += differences(then.get(name, _ABSENT), now.get(name, _ABSENT), place)
        return lines
    texts = ["absent" if value is _ABSENT else json.dumps(value, sort_keys=True) for value in (then, now)]
    if texts[0] == texts[1]:
        return []
    short = [text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)" for text in texts]
    return [f"{path}: {short[0]} then, {short[1]} now"]
