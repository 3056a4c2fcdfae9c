"""What `train` and `compare` share: stopping at an epoch's end, and reading what a folder was made with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from implicit_reg.cli import _common
from implicit_reg.training.settings import Settings


class Stop:
    """Whether a signal asked for the end, and the exit code that says so."""

    code: int | None = None

    def __bool__(self) -> bool:
        return self.code is not None


@contextlib.contextmanager
def stop_at_epoch() -> Iterator[Stop]:
    """Makes the first SIGINT or SIGTERM a wish, looked at when an epoch ends; the second one is obeyed at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        if stop:
            raise KeyboardInterrupt if number == signal.SIGINT else _common.Terminated
        stop.code = _common.EXIT_INTERRUPTED if number == signal.SIGINT else _common.EXIT_TERMINATED

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """float64 needs x64, which is on inside and restored on every exit."""
    import jax

    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        yield


def settings_of(options: Any) -> Settings:
    """The part of a command's record that decides the numbers."""
    return Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON holds them: tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(settings), allow_nan=False))


def read_object(path: pathlib.Path, maker: str = "train") -> dict[str, Any]:
    """A JSON object from a file of a folder that the command `maker` made.

    Raises:
      UsageError: it is missing, truncated or damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file, parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise _common.UsageError(f"{path} is missing: {path.parent} is not a folder that `{maker}` made") from error
    except (ValueError, RecursionError) as error:
        raise _common.UsageError(f"{path} is truncated or damaged ({error}); nothing was changed") from error
    if not isinstance(value, dict):
        raise _common.UsageError(f"{path} holds no JSON object; nothing was changed")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_settings(folder: pathlib.Path, what: str) -> tuple[Settings, Mapping[str, Any]]:
    """The settings that a folder was made with, and the environment.

    Raises:
      UsageError: there is no such folder, it is of another kind, or its settings cannot be read.
    """
    if not folder.is_dir():
        raise _common.UsageError(f"--resume {folder}: there is no such folder")
    record = read_object(folder / "config.json")
    if record.get("format") != what:
        raise _common.UsageError(f"{folder / 'config.json'} is of {record.get('format')!r}, wanted {what!r}")
    if record.get("version") != 1:
        raise _common.UsageError(f"{folder / 'config.json'} was written by another version of this library")
    saved, known = record.get("config"), {field.name for field in dataclasses.fields(Settings)}
    if not isinstance(saved, dict) or set(saved) != known:
        names = sorted(known ^ set(saved)) if isinstance(saved, dict) else "all of them"
        raise _common.UsageError(f"{folder / 'config.json'} is damaged: settings missing or unknown: {names}")
    defaults = Settings()
    for name, value in saved.items():
        wanted = getattr(defaults, name)
        number = isinstance(wanted, float) and isinstance(value, int | float) and not isinstance(value, bool)
        same = isinstance(value, list if isinstance(wanted, tuple) else type(wanted)) or wanted is None
        if not (number or same):
            raise _common.UsageError(f"{folder / 'config.json'} is damaged: {name} is {value!r}")
    return Settings.from_json(saved), record.get("environment", {})


def differences(options: Settings, saved: Settings) -> list[str]:
    """Where the flags of now contradict the settings of then; a flag that was not given contradicts nothing."""
    now, then, defaults = plain(settings_of(options)), plain(saved), plain(Settings())
    lines = []
    for name, value in now.items():
        flag = name.replace("_", "-")
        words = {f"--{flag}", f"--no-{flag}", f"--{name}", f"--no-{name}"}
        given = value != defaults[name] or any(word.partition("=")[0] in words for word in sys.argv[1:])
        if given and value != then[name]:
            lines.append(f"--{flag}: {then[name]!r} then, {value!r} now")
    return lines
