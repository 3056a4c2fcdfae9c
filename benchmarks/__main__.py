"""The benchmarks, each in a process of its own: correct first, then timed side by side, against targets.

python benchmarks                       all of them: the table, a JSON file and a figure
python benchmarks NAME ...              some of them, with everything that they measured
python benchmarks --check [NAME ...]    toy sizes, nothing timed: that everything is right
python benchmarks --compare OLD NEW     what moved between two files
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import catalog
import comparison
import records

EXIT_INCORRECT, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
ROUNDS = 15
OUT = pathlib.Path("runs/benchmarks")
BUSY = 0.5  # of the cores, before anything is measured


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python benchmarks",
        description=__doc__.partition("\n\n")[0],
        epilog="Exit code 1 where something is wrong; a missed target is a result.",
        allow_abbrev=False,
    )
    made.add_argument("names", nargs="*", metavar="NAME", help="of --list; all where none is named")
    made.add_argument("--list", action="store_true", help="show the names, and do nothing")
    made.add_argument("--check", action="store_true", help="toy sizes, nothing timed: correctness alone")
    made.add_argument("--rounds", type=int, default=ROUNDS, help=f"timings of each program (default: {ROUNDS})")
    made.add_argument("--out", type=pathlib.Path, metavar="DIR", default=OUT,
                      help="for DEVICE.json and DEVICE.png; a file that is there keeps what is not measured anew, and "
                      f"what was finished before an interruption (default: {OUT})")  # fmt: skip
    made.add_argument("--compare", nargs=2, type=pathlib.Path, metavar=("OLD", "NEW"), help="two files of results")
    made.add_argument(
        "--show",
        type=pathlib.Path,
        metavar="FILE",
        help="print a file of results again, with everything about the benchmarks that are named",
    )
    made.add_argument("--json", action="store_true", help="print the results as JSON, and no table")
    made.add_argument("--one", type=pathlib.Path, metavar="FILE", help=argparse.SUPPRESS)
    return made


def run_one(name: str, rounds: int, tiny: bool) -> dict[str, Any]:
    """Runs one benchmark in this process.

    Returns:
      `title`, `environment`, `rounds`, `rows` (fields of `measure.Row`), `missing` (libraries that could not be
      imported, with the reasons), `details` and `data`.

    Raises:
      measure.IncorrectError: where it is wrong.
    """
    import measure

    entry = catalog.BENCHMARKS[name]
    measure.commit()  # before somebody makes another, while this one runs
    report = importlib.import_module(entry.module).run(measure.Effort(rounds, tiny), *entry.arguments)
    return {
        "title": entry.title,
        "environment": measure.environment(),
        "rounds": rounds,
        "rows": [row._asdict() for row in report.rows],
        "missing": measure.absent,
        "details": report.details,
        "data": report.data,
    }


def child(name: str, options: argparse.Namespace) -> int:
    """What the process of one benchmark does: it leaves its results, or what is wrong, in a file."""
    entry = catalog.BENCHMARKS[name]
    if entry.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-entry.cores :])
    import jax
    import measure

    try:
        with jax.default_matmul_precision("highest"):  # full float32, on GPUs too
            found = run_one(name, 0 if options.check else options.rounds, options.check)
    except measure.IncorrectError as error:
        found = {"wrong": str(error)}
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    options.one.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
    return 0


def spawn(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one benchmark in a process of its own.

    Returns:
      What `run_one` does, or `wrong`, the reason why there are no results; and the wall `seconds` of the whole process.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "result.json"
        command = [sys.executable, str(pathlib.Path(__file__).parent), name, "--one", str(target)]
        command += ["--check"] if options.check else ["--rounds", str(options.rounds)]
        environment = {**os.environ, **catalog.BENCHMARKS[name].environment}
        start = time.perf_counter()
        # What it prints goes to standard error, for standard output may be JSON.
        code = subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode
        text = target.read_text(encoding="utf-8") if target.exists() else "{}"
        seconds = round(time.perf_counter() - start, 1)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    found = json.loads(text) if not code else {}
    return (found or {"wrong": f"failed with exit code {code}"}) | {"seconds": seconds}


def outcome(found: Mapping[str, Any], check: bool) -> str:
    """What is said of a benchmark when it ends."""
    took = records.duration(found["seconds"])
    if "wrong" in found:
        return f"WRONG: {found['wrong']}, {took}"
    without = f" (not compared: {'; '.join(found['missing'].values())})" if found["missing"] else ""
    return f"{'right' if check else took}{without}{f', {took}' if check else ''}"


def show(found: Mapping[str, Mapping[str, Any]], device: str, details: bool) -> None:
    """Where it was measured, the table, the notes under it and, on request, everything that was measured."""
    if details:
        for name, each in found.items():
            print(f"\n## {name}: {each['title']}\n\n{each['details']}")
    record = {"device": device, "benchmarks": found}
    print(f"\n{records.origin(record)}\n\n{records.document(record)}")


def device_of(environment: Mapping[str, Any]) -> str:
    """What a file of results is named after: the accelerator, or the processor where there is none."""
    return environment["processor"].partition(",")[0] if environment["backend"] == "cpu" else environment["device"]


def again(names: Sequence[str], options: argparse.Namespace) -> str:
    """The command that does what is left."""
    words = [*names, *(["--check"] if options.check else [])]
    words += ["--rounds", str(options.rounds)] if options.rounds != ROUNDS else []
    words += ["--out", str(options.out)] if options.out != OUT else []
    return f"python benchmarks {shlex.join(words)}"


def say_if_busy() -> None:
    """Others change what is measured, wall time most of all."""
    if hasattr(os, "getloadavg"):
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > BUSY * cores:
            print(f"This machine is busy: load {load:.1f} on {cores} cores before anything runs.", file=sys.stderr)


def measure_all(names: Sequence[str], options: argparse.Namespace) -> tuple[dict[str, Any], pathlib.Path | None]:
    """Runs benchmarks one after the other, each alone on the machine, and writes the results of each when it ends.

    Two at a time, on a core of their own each, would be done sooner, but share caches and the memory's bandwidth, which
    passes over large parameters wait for.

    Returns:
      What `spawn` says of each, and the file; None where nothing was measured.
    """
    found: dict[str, Any] = {}
    path, width = None, max(map(len, names))
    news = sys.stdout if options.check and not options.json else sys.stderr
    began = time.perf_counter()
    for number, name in enumerate(names, 1):
        print(f"[{number:{len(str(len(names)))}}/{len(names)}] {name:{width}} ", end="", file=news, flush=True)
        try:
            each = found[name] = spawn(name, options)
            if not options.check and "wrong" not in each:
                device = device_of(each["environment"])
                path = records.write(options.out, device, {name: each}, list(catalog.BENCHMARKS))
        except KeyboardInterrupt:
            print(f"interrupted. What is left: {again(names[number - 1 :], options)}", file=news)
            raise
        print(outcome(each, options.check), file=news, flush=True)
    if len(names) > 1:
        print(f"{len(names)} benchmarks in {records.duration(time.perf_counter() - began)}.", file=news)
    return found, path


def checked(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The last line of `--check`."""
    right = {name: each for name, each in found.items() if "wrong" not in each}
    partly = [name for name, each in right.items() if each["missing"]]
    words = f"{len(right)} of {len(found)} benchmarks are right on toy sizes"
    if partly:
        words += f", {len(partly)} of them not compared with every library ({', '.join(partly)})"
    if wrong := [name for name in found if name not in right]:
        words += f"; wrong: {', '.join(wrong)}"
    return f"{words}. Nothing was timed."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line's exit code."""
    made = parser()
    options = made.parse_args(arguments)
    if files := options.compare or ([options.show] if options.show else []):
        try:
            known = [records.read(path) for path in files]
        except (OSError, ValueError) as error:
            print(f"python benchmarks: {error}", file=sys.stderr)
            return EXIT_USAGE
        if options.compare:
            print(comparison.report(*known))
            return 0
        every = known[0]["benchmarks"]
        if unknown := [name for name in options.names if name not in every]:
            made.error(f"{options.show} holds no benchmark {unknown[0]!r}, but {', '.join(every)}")
        chosen = {name: every[name] for name in options.names or every}
        show(chosen, known[0]["device"], details=bool(options.names))
        return 0
    if options.list:
        width = max(map(len, catalog.BENCHMARKS))
        print("\n".join(f"{name:{width}}  {entry.title}" for name, entry in catalog.BENCHMARKS.items()))
        return 0
    if options.rounds < 0:
        made.error(f"--rounds must be at least 0, got {options.rounds}")
    if unknown := [name for name in options.names if name not in catalog.BENCHMARKS]:
        made.error(f"there is no benchmark {unknown[0]!r}; --list shows them")
    if options.one:
        return child(options.names[0], options)

    names = options.names or list(catalog.BENCHMARKS)
    if not options.check:
        say_if_busy()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever stops this process stops its benchmark
    try:
        found, path = measure_all(names, options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (OSError, ValueError) as error:
        print(f"\npython benchmarks: {error}", file=sys.stderr)
        return EXIT_USAGE
    right = {name: each for name, each in found.items() if "wrong" not in each}
    code = EXIT_INCORRECT if len(right) < len(found) else 0
    if options.check:
        missing = {name: each["missing"] for name, each in right.items() if each["missing"]}
        print(json.dumps({"checked": list(right), "missing": missing}) if options.json else checked(found))
        return code
    if path is None:
        return code
    record = records.read(path)
    if options.json:
        print(json.dumps({"benchmarks": right}))
    else:
        show(right, record["device"], details=bool(options.names))
    import figure

    picture = figure.write(record, path.with_suffix(".png"))
    print(f"{path}\n{picture}", file=sys.stderr if options.json else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main())
