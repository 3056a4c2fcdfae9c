#!/usr/bin/env python3
"""Fresh checkout -> environment -> job. Needs Python 3.11 or newer with pip; nothing else.

    python3 run.py [verify flags]        install, then the main job (implicit-reg verify)
    python3 run.py test [pytest flags]   install, then the tests

The environment is `.venv` beside this file, or the folder that IMPLICIT_REG_VENV names. It is made once and made again
only when pyproject.toml or constraints.txt change.
"""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parent
ENVIRONMENT = pathlib.Path(os.environ.get("IMPLICIT_REG_VENV", ROOT / ".venv"))
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CONSTRAINTS, PROJECT, STAMP = ROOT / "constraints.txt", ROOT / "pyproject.toml", ENVIRONMENT / ".installed.json"
EXIT_INSTALLATION_FAILED = 74


def sh(*command):
    """Runs a command of the installation, shown on standard error; a failure ends everything in one line."""
    command = [str(word) for word in command]
    print("+", *command, file=sys.stderr, flush=True)
    if code := subprocess.call(command, cwd=ROOT, stdout=sys.stderr):
        print(f"run.py: `{' '.join(command[:4])} ...` failed with exit code {code}", file=sys.stderr)
        sys.exit(EXIT_INSTALLATION_FAILED)


def has_pip():
    """Whether the environment has a pip that starts."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return PYTHON.exists() and subprocess.call([str(PYTHON), "-m", "pip", "--version"], **quiet) == 0


def ensure(extras):
    """Makes the environment hold the project and these extras, if it does not yet."""
    if sys.version_info < (3, 11):
        sys.exit(f"run.py: Python 3.11 or newer is needed; this is {sys.version.split()[0]}")
    key = hashlib.sha256(PROJECT.read_bytes() + CONSTRAINTS.read_bytes()).hexdigest() + "/%d.%d" % sys.version_info[:2]
    try:
        installed = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        installed = {}
    if PYTHON.exists() and installed.get("key") == key and set(extras) <= set(installed["extras"]):
        return
    print("run.py: installing into", ENVIRONMENT, "(once; a few minutes)", file=sys.stderr, flush=True)
    pip = [PYTHON, "-m", "pip"]
    if not has_pip():
        try:
            venv.create(ENVIRONMENT, with_pip=True, clear=ENVIRONMENT.exists(), symlinks=os.name != "nt")
        except (subprocess.CalledProcessError, SystemExit, ImportError):  # Debian without python3-venv
            venv.create(ENVIRONMENT, with_pip=False, clear=True, symlinks=os.name != "nt")
            pip = [sys.executable, "-m", "pip", "--python", PYTHON]
    extras = sorted(set(extras) | set(installed.get("extras", [])))
    target = f".[{','.join(extras)}]" if extras else "."
    sh(*pip, "install", "--quiet", "--disable-pip-version-check", "-c", CONSTRAINTS.name, "-e", target)
    STAMP.write_text(json.dumps({"key": key, "extras": extras}))


def test(flags):
    """Both halves of the suite, with x64 off and on; returns the worse exit code.

    With flags that select tests a half may be left with none (pytest's code 5), which is no failure unless both are.
    """
    if not any(flag.startswith(("-n", "--numprocesses")) for flag in flags):
        flags = ["-n", str(min(4, os.cpu_count() or 1)), *flags]
    codes = []
    for x64 in ("0", "1"):
        print(f"run.py: tests with JAX_ENABLE_X64={x64}", file=sys.stderr, flush=True)
        environment = {**os.environ, "JAX_ENABLE_X64": x64}
        codes.append(subprocess.call([str(PYTHON), "-m", "pytest", *flags], cwd=ROOT, env=environment))
    ran = [code for code in codes if code != 5]
    return max(ran, default=5)


def main(arguments):
    """The exit code of the job."""
    if arguments[:1] == ["test"]:
        ensure(["test"])
        return test(arguments[1:])
    ensure([])
    return subprocess.call([str(PYTHON), "-m", "implicit_reg", "verify", *arguments])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
