"""What `implicit-reg sweep` reads and says around the sweep: axes, config file, processes, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
import traceback
import typing
from collections.abc import Callable, Iterator
from typing import Any

from implicit_reg.cli import _common, _config_file, _training
from implicit_reg.training.settings import Settings, parse_value

# How a command is run is not for a file that says what is to be run.
_OF_FILES = ("fn", "static", "seeds", "width", "chunk", "x64", "by", "highest")


def fields_of_file(path: pathlib.Path, command: type) -> dict[str, Any]:
    """The settings of a config file, as fields of the command.

    Raises:
      UsageError: for anything in it that is wrong.
    """
    table = _config_file.read_table(path)
    axes = table.pop("axes", {})
    if not isinstance(axes, dict) or not all(isinstance(values, list) and values for values in axes.values()):
        raise _common.UsageError(f"--config {path}: axes must be a table of lists, each of at least one value")
    for name, values in axes.items():
        for value in values:
            if not isinstance(value, str | bool | int | float):
                raise _common.UsageError(f"--config {path}: axes.{name} must hold numbers, texts, true or false")
    known = {*(field.name for field in dataclasses.fields(Settings)), *_OF_FILES}
    hints = {name: hint for name, hint in typing.get_type_hints(command).items() if name in known}
    values = _config_file.checked(path, table, hints)
    return values | {"axes_of_file": tuple((name.replace("-", "_"), tuple(v)) for name, v in axes.items())}


def parse_axes(options: Any) -> dict[str, list[Any]]:
    """Names to values, from flags and file; a flag goes before the file.

    Raises:
      UsageError: an axis without values or given twice, a value of another type than its setting, or settings of a
        training beside --fn.
    """
    chosen = {name: list(values) for name, values in options.axes_of_file}
    given: set[str] = set()
    for words in options.axis:
        name, values = words[0].replace("-", "_"), list(words[1:])
        if not values:
            raise _common.UsageError(f"--axis {words[0]} needs values: --axis learning_rate 0.1 0.3")
        if name in given:
            raise _common.UsageError(f"--axis {name} is given twice; give it once with all values")
        given.add(name)
        chosen[name] = [_parse(options, name, value) for value in values]
    if "seed" in chosen:
        raise _common.UsageError("the seeds are no axis: use --seeds K")
    unknown = [name for name in options.static if name.replace("-", "_") not in chosen]
    if options.fn is None:
        if options.static:
            raise _common.UsageError("--static is for --fn; what may be traced in a training is known")
        for name, values in chosen.items():
            chosen[name] = [_fitting(name, value) for value in values]
    else:
        if unknown:
            raise _common.UsageError(f"--static {unknown[0]}: there is no such axis; there are {', '.join(chosen)}")
        defaults = dataclasses.replace(Settings(), seed=options.seed)
        for name, value in _training.plain(_training.settings_of(options)).items():
            if value != _training.plain(defaults)[name]:
                raise _common.UsageError(f"--{name.replace('_', '-')} is a setting of a training; --fn has none")
    return chosen


def _parse(options: Any, name: str, text: str) -> Any:
    """A value of an axis: a number, true, false, or a text; what only Python takes for a number is refused."""
    if options.fn is None and _kind(name) is str:
        return text
    try:
        return parse_value("--axis", name, text)
    except ValueError as error:
        try:
            float(text)
        except ValueError:
            if options.fn is not None and text:
                return text
        raise _common.UsageError(str(error)) from error


def _kind(name: str) -> type | None:
    """str, bool, int or float for a setting of a training; None for a hyperparameter of the method."""
    hints = typing.get_type_hints(Settings)
    if name not in hints:
        return None
    if name == "widths":
        return str
    options = [hint for hint in typing.get_args(hints[name]) if hint is not type(None)] or [hints[name]]
    return options[0]


def _fitting(name: str, value: Any) -> Any:
    kind = _kind(name)
    if kind is float and type(value) is int:
        return float(value)
    if name == "widths" and type(value) is int:
        return str(value)
    if kind is not None and type(value) is not kind and value is not None:
        words = {str: "texts", bool: "true or false", int: "integers", float: "numbers"}[kind]
        raise _common.UsageError(f"--axis {name}: wanted {words}, got {value!r}")
    return value


@contextlib.contextmanager
def precision(options: Any) -> Iterator[None]:
    """float64 inside, where it is asked for."""
    with _training.precision("float64" if options.x64 else options.dtype):
        yield


def check_processes(options: Any) -> None:
    """The flags that join processes belong together.

    Raises:
      UsageError: where one is missing.
    """
    three = (options.coordinator, options.num_processes, options.process_id)
    if any(flag is not None for flag in three) and any(flag is None for flag in three):
        raise _common.UsageError("--coordinator HOST:PORT, --num-processes N and --process-id I belong together")
    if options.distributed and options.coordinator is not None:
        raise _common.UsageError("--distributed asks the cluster, --coordinator tells; give one of them")
    if (options.distributed or options.coordinator is not None) and options.out is None:
        raise _common.UsageError("several processes need --out DIR, the same for all")
    if options.num_processes is not None and not 0 <= options.process_id < options.num_processes:
        last = options.num_processes - 1
        raise _common.UsageError(f"--process-id must be in 0 to {last}, got {options.process_id}")


@contextlib.contextmanager
def processes(options: Any) -> Iterator[None]:
    """Joins the processes of one sweep; what their transport prints goes to standard error."""
    if not options.distributed and options.coordinator is None:
        yield
        return
    import jax

    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    python_stdout, sys.stdout = sys.stdout, os.fdopen(os.dup(stdout), "w", encoding="utf-8")
    try:
        if options.distributed:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
        try:
            yield
        except BaseException as error:
            # The others wait for us inside of a call, and a proper shutdown would wait for them: minutes, and an abort
            # in the end. They notice at once when we are gone.
            if options.debug:
                traceback.print_exc()
            code, message = _common.explain(error)
            if "Gloo" in message:
                code, message = _common.EXIT_IO, "error: another process of this sweep ended; its message says why"
            print(message, file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(code)
        sys.stdout.flush()
        jax.distributed.shutdown()
    finally:
        sys.stdout.close()
        sys.stdout = python_stdout
        os.dup2(stdout, 1)
        os.close(stdout)


@contextlib.contextmanager
def a_users_mistake() -> Iterator[None]:
    """Around the sweep: what its arguments or its folder are not, in one line and exit code 2; a lock has its own."""
    from implicit_reg._checks import ImplicitRegError, LockedError
    from implicit_reg.experiments import SweepStoppedError

    try:
        yield
    except (LockedError, SweepStoppedError):
        raise
    except (ValueError, TypeError, ImplicitRegError) as error:
        raise _common.UsageError(str(error)) from error


@contextlib.contextmanager
def reporter(options: Any, first: bool) -> Iterator[Callable[[Any], None] | None]:
    """Progress on standard error: a bar on a terminal, a line for each chunk elsewhere."""
    if options.quiet or not first:
        yield None
        return
    if not sys.stderr.isatty():
        yield lambda progress: print(_line(progress), file=sys.stderr, flush=True)
        return
    from tqdm import tqdm

    with tqdm(file=sys.stderr, dynamic_ncols=True, leave=False, bar_format=_common.BAR) as bar:

        def report(progress: Any) -> None:
            bar.total, bar.n = progress.total, progress.done
            bar.set_description_str(_line(progress))

        yield report


def _line(progress: Any) -> str:
    words = [f"{progress.done}/{progress.total} runs"]
    if progress.reused:
        words.append(f"{progress.reused} found in the folder")
    if progress.diverged:
        words.append(f"{progress.diverged} diverged")
    if progress.programs > 1:
        words.append(f"{progress.programs} programs")
    if progress.memory is not None and progress.done == progress.reused:
        device, devices = _mebibytes(progress.memory.device), progress.memory.devices
        each = f" on each of {devices} devices" if devices > 1 else ""
        words.append(f"{device} a call{each} and {_mebibytes(progress.memory.host)} of results")
    words.append(f"{progress.elapsed:.0f} s")
    if progress.left == progress.left and progress.done < progress.total:
        words.append(f"about {progress.left:.0f} s to go")
    return ", ".join(words)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"
