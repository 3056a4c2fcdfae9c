"""Where compiled programs are kept for the next run: JAX's persistent cache, in a folder that is the user's own.

JAX keys an entry by the program, its options, XLA's flags and the versions of jax and jaxlib. On a CPU a program also
depends on the instructions that the processor has and on the number of threads that it was cut for, so these name a
folder of their own: one home on several machines gives none of them another's code, and `--threads` decides the bits
with a cache as it does without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
import tempfile
import warnings
from collections.abc import MutableMapping

LIMIT = 512 * 2**20  # bytes; the oldest entries go until half of it is left

_OFF = ("0", "false", "off", "no", "n", "f")


def default_folder() -> pathlib.Path:
    """The folder for caches of this user, as the system has it."""
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or pathlib.Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = pathlib.Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "implicit_reg"


def machine_key() -> str:
    """The processor and the number of threads, in a few letters that name neither."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [platform.machine(), platform.processor(), os.environ.get("NPROC") or str(cores)]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        kinds = ("model name", "flags", "features", "cpu part", "isa")
        words += sorted({line for line in lines if line.lower().startswith(kinds)})
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def keep_programs(folder: pathlib.Path | None, environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Tells JAX, which is not imported yet, to keep compiled programs; a folder that cannot be had is done without.

    Args:
      folder: as the user named it; None is the default one, unless the environment names one or none.
      environment: what JAX will read, and is changed.

    Returns:
      Why nothing is kept, where the user asked for it by name; else None.
    """
    if environment.get("JAX_ENABLE_COMPILATION_CACHE", "1").strip().lower() in _OFF:
        return None
    if folder is None and "JAX_COMPILATION_CACHE_DIR" in environment:
        return None
    try:
        base = default_folder() if folder is None else folder.absolute()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_mine(base, strict=folder is None)
        place = base / machine_key()
        place.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
        _shrink(base)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        return None if folder is None else f"{folder} cannot be written to, and keeps no programs ({error})"
    environment["JAX_COMPILATION_CACHE_DIR"] = str(place)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    ignore_damage()
    return None


def ignore_damage() -> None:
    """An entry that cannot be read is compiled again, which is all that there is to say."""
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache", module="jax")


def _check_mine(folder: pathlib.Path, *, strict: bool) -> None:
    """An entry is code that will be run: nobody else may have put it there unless the user named the folder."""
    if strict and hasattr(os, "getuid"):
        about = folder.stat()
        if about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise PermissionError(f"{folder} is not the user's own")


def _shrink(base: pathlib.Path) -> None:
    """Removes the oldest entries of all machines where there is more than `LIMIT`; another process may do the same."""
    found = []
    for path in base.glob("*/*-cache"):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    if total <= LIMIT:
        return
    for _, size, path in sorted(found):
        if total <= LIMIT // 2:
            break
        path.unlink(missing_ok=True)
        total -= size
