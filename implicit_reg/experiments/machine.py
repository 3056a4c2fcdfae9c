"""What the bits of a result depend on besides its settings: versions, processor, devices, precision, flags."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

INFORMATIVE = ("implicit_reg", "commit", "python", "processes")
"""Fields that are recorded and decide no bit: a resumed sweep may differ in them."""


def machine() -> dict[str, Any]:
    """Versions, processor, devices, precision and flags, ready for JSON; no names of people, machines or folders.

    Returns:
      A flat dictionary. Results made where any field outside `INFORMATIVE` differs may differ in their last bits, and
      near the edge of stability in all of them.

    Example:
      >>> machine()["jax"] == jax.__version__
      True
    """
    versions = {name: metadata.version(name) for name in ("implicit_reg", "jax", "jaxlib", "optax", "numpy")}
    return {
        **versions,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
        "threads": os.environ.get("NPROC", "all"),
        "x64": bool(jax.config.jax_enable_x64),
        "prng": f"{jax.config.jax_default_prng_impl}, partitionable {jax.config.jax_threefry_partitionable}",
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "xla_flags": _deciding_flags(os.environ.get("XLA_FLAGS", "")),
    }


@functools.cache
def commit() -> str:
    """The commit of the library's source, "unknown" where it is not a checkout.

    Returns:
      As `git describe --always --dirty` says it.

    Example:
      >>> isinstance(commit(), str)
      True
    """
    here = pathlib.Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def _processor() -> str:
    """The processor's model and a hash of its instruction sets, by which XLA chooses its code."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    features = found.get("flags", found.get("Features", ""))
    digest = hashlib.sha256(" ".join(sorted(features.split())).encode()).hexdigest()[:12]
    return f"{found.get('model name', platform.machine())}, features {digest}"


def _deciding_flags(flags: str) -> str:
    """XLA_FLAGS without the number of forced host devices, which decides no bit at a fixed width per device."""
    return " ".join(word for word in flags.split() if not word.startswith("--xla_force_host_platform_device_count"))
