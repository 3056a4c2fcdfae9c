"""What all commands share: flags, exit codes, strict numbers, run folders, and how a mistake is answered.

Exit codes: 0 all hold, or done; 1 a prediction failed; 2 usage or configuration; 3 something could not be measured;
70 internal error; 74 input or output; 75 locked or out of memory; 130 and 143 interrupted or terminated.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import tyro

from implicit_reg.cli import _cache

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNMEASURED = 0, 1, 2, 3
EXIT_INTERNAL, EXIT_IO, EXIT_RESOURCES, EXIT_INTERRUPTED, EXIT_TERMINATED = 70, 74, 75, 130, 143


class UsageError(Exception):
    """A user's mistake: the message is the whole answer."""


class Terminated(BaseException):
    """SIGTERM arrived."""


@dataclasses.dataclass(frozen=True)
class Options(abc.ABC):
    """Flags that every command has."""

    keeps_programs: ClassVar[bool] = True

    out: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder to write to; it must not exist, or be empty. Default: a new one below runs/."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print exactly one JSON object on standard output instead of a table."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """No progress, no table; the exit code and the files speak."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Threads for XLA; results are the same bits on machines with other core counts only when it is set."""
    cache: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep compiled programs here for the next run, instead of in the user's folder for caches (~/.cache/implicit_reg
    on Linux). A cache is executable code: share it with nobody."""
    no_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep no compiled programs, and use none."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the traceback of an error."""

    @abc.abstractmethod
    def run(self) -> int:
        """Does the work and returns the exit code."""


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


def parse_float(text: str) -> float:
    """A finite decimal number; unlike Python's float, no `nan`, `inf`, `1_000` or digits of other scripts."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a decimal number: {text!r}")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"too large: {text!r}")
    return value


def parse_int(text: str) -> int:
    """A decimal integer; unlike Python's int, no `1_000` and no digits of other scripts."""
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"not an integer: {text!r}")
    return int(text)


def strict_numbers() -> tyro.constructors.ConstructorRegistry:
    """tyro's registry with the strict parsers in place of `float` and `int`."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        parsers = {float: (parse_float, "FLOAT"), int: (parse_int, "INT")}
        if info.type not in parsers:
            return None
        parse, metavar = parsers[info.type]
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda words: parse(words[0]),
            is_instance=lambda value: isinstance(value, info.type) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def set_environment(options: Options) -> None:
    """What JAX and XLA read when they are imported."""
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {options.threads}")
        if "jax" in sys.modules and os.environ.get("NPROC") != str(options.threads):
            raise UsageError("--threads has no effect after JAX was imported; start a new process")
        os.environ.update(NPROC=str(options.threads), PJRT_NPROC=str(options.threads))
    if options.cache is not None and options.no_cache:
        raise UsageError("--cache and --no-cache exclude each other")
    if "jax" in sys.modules:
        return
    if options.no_cache or not options.keeps_programs:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    elif (why := _cache.keep_programs(options.cache)) is not None:
        print(f"note: --cache {why}", file=sys.stderr)


@contextlib.contextmanager
def user_input() -> Iterator[None]:
    """Around the code that judges arguments and files: what it raises is the user's to mend."""
    from implicit_reg._checks import ImplicitRegError

    try:
        yield
    except (ValueError, TypeError, ImplicitRegError) as error:
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def stop_at_once() -> Iterator[None]:
    """Around long work that has nothing to save: SIGINT and SIGTERM end the process, with one line and their exit code.

    Two ways to stop: (1) raise an exception in the handler; (2) leave there and then. (1) can be lost in a callback of
    the garbage collector, where Python ignores it, and can crash XLA on its way out. We do (2).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        code, word = (EXIT_INTERRUPTED, "interrupted") if number == signal.SIGINT else (EXIT_TERMINATED, "terminated")
        os.write(2, b"\n" if os.isatty(2) else b"")  # the progress bar stands on this line
        os.write(2, f"{word}\n".encode())
        os._exit(code)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and the line that is printed."""
    text = str(error) or type(error).__name__
    if isinstance(error, UsageError):
        return EXIT_USAGE, f"error: {text}"
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted"
    if isinstance(error, Terminated):
        return EXIT_TERMINATED, "terminated"
    if isinstance(error, OSError):
        name = f" ({error.filename})" if error.filename else ""
        return EXIT_IO, f"error: {error.strerror or text}{name}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return EXIT_RESOURCES, f"error: out of memory: {text.splitlines()[0]}"
    if _is_locked(error):
        return EXIT_RESOURCES, f"error: {text}"
    first = text.splitlines()[0]
    return EXIT_INTERNAL, f"internal error: {type(error).__name__}: {first} (--debug shows the traceback)"


def _is_locked(error: BaseException) -> bool:
    from implicit_reg._checks import LockedError

    return isinstance(error, LockedError)


def new_folder(out: pathlib.Path | None, command: str) -> pathlib.Path:
    """An empty folder for a run, made before any long work starts.

    Raises:
      UsageError: `out` is there and holds something.
      OSError: it cannot be made or written to.
    """
    if out is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        names = (f"{command}-{stamp}{suffix}" for suffix in ("", *(f"-{k}" for k in range(2, 1000))))
        for name in names:
            folder = pathlib.Path("runs") / name
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"--out {out} holds files already; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        return out


def write_atomic(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a whole file or nothing: to a temporary name in the same folder, flushed to disk, then renamed."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_json(value: Any) -> str:
    """JSON text; a number that is not finite is an error here and not a file that others cannot read."""
    return json.dumps(value, indent=1, allow_nan=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, pathlib.Path):
        return value.name
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def configuration(options: Options) -> dict[str, Any]:
    """The settings that decide the results, ready for JSON: without paths, and without what only concerns printing."""
    mine = {field.name for field in dataclasses.fields(Options)} - {"threads"}
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in mine}


def command_line(name: str, options: Options) -> str:
    """The command that repeats a run: every setting that is not at its default, quoted for a shell."""
    words = ["implicit-reg", name]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in configuration(options) and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += ["--" + field.name.replace("_", "-"), *map(str, values)]
    return shlex.join(words)


def environment() -> Mapping[str, Any]:
    """What the results depend on besides the settings: versions, devices, flags. No names, no paths."""
    import platform
    from importlib import metadata

    import jax

    from implicit_reg.experiments.machine import commit

    versions = {
        name: metadata.version(name)
        for name in ("implicit_reg", "jax", "jaxlib", "optax", "flax", "diffrax", "equinox", "numpy", "scikit-learn")
    }
    return {
        **versions,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "threads": os.environ.get("NPROC", "all"),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def console(stream: Any = None) -> Any:
    """A rich console on standard output: plain when it is not a terminal, and NO_COLOR is honored."""
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() else 120
    return Console(file=stream, width=width, highlight=False)


def progress(total: int, options: Options) -> Any:
    """tqdm on standard error, absent when it is not a terminal."""
    from tqdm import tqdm

    hidden = options.quiet or not sys.stderr.isatty()
    return tqdm(total=total, file=sys.stderr, disable=hidden, dynamic_ncols=True, leave=False, bar_format=BAR)


BAR = "{percentage:3.0f}% |{bar}| {elapsed} {desc}"
