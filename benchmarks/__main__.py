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
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import catalog
import records

EXIT_INCORRECT, EXIT_USAGE = 1, 2
ROUNDS = 15


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
    made.add_argument("--out", type=pathlib.Path, metavar="DIR", default=pathlib.Path("runs/benchmarks"),
                      help="for DEVICE.json and DEVICE.png; a file that is there keeps what is not measured anew "
                      "(default: runs/benchmarks)")  # fmt: skip
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
      `title`, `environment`, `seconds`, `rounds`, `rows` (fields of `measure.Row`), `details` and `data`.

    Raises:
      measure.IncorrectError: where it is wrong.
    """
    import measure

    entry = catalog.BENCHMARKS[name]
    start = time.perf_counter()
    report = importlib.import_module(entry.module).run(measure.Effort(rounds, tiny), *entry.arguments)
    return {
        "title": entry.title,
        "environment": measure.environment(),
        "seconds": round(time.perf_counter() - start, 1),
        "rounds": rounds,
        "rows": [row._asdict() for row in report.rows],
        "details": report.details,
        "data": report.data,
    }


def child(name: str, options: argparse.Namespace) -> int:
    """What the process of one benchmark does."""
    entry = catalog.BENCHMARKS[name]
    if entry.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-entry.cores :])
    import jax
    import measure

    try:
        with jax.default_matmul_precision("highest"):  # full float32, on GPUs too
            found = run_one(name, 0 if options.check else options.rounds, options.check)
    except measure.IncorrectError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_INCORRECT
    options.one.write_text(json.dumps(found), encoding="utf-8")
    return 0


def spawn(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Runs one benchmark in a process of its own; None where it fails, which has been said on standard error."""
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "result.json"
        command = [sys.executable, str(pathlib.Path(__file__).parent), name, "--one", str(target)]
        command += ["--check"] if options.check else ["--rounds", str(options.rounds)]
        environment = {**os.environ, **catalog.BENCHMARKS[name].environment}
        code = subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode
        if code or not target.exists():
            print(f"{name}: failed with exit code {code}", file=sys.stderr)
            return None
        return json.loads(target.read_text(encoding="utf-8"))


def show(found: Mapping[str, Mapping[str, Any]], details: bool) -> None:
    """The table, the notes under it and, on request, everything that was measured."""
    if details:
        for name, each in found.items():
            print(f"\n## {name}: {each['title']}\n\n{each['details']}")
    print("\n" + records.document({"benchmarks": found}))


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Prints what moved between two files of results."""
    for line in records.surroundings(a, b):
        print(f"- {line}")
    lines = records.moved(a, b)
    if lines:
        header = ("benchmark", "work", "old", "new", "new / old", "unit", "verdict")
        print("\n" + records.table(lines, header))
    else:
        print("\nNothing moved: no ratio by more than 3 % with quartiles apart, no verdict.")
    for title, rows in (("old", records.only_in(a, b)), ("new", records.only_in(b, a))):
        if rows:
            print(f"\nOnly in {title}: {'; '.join(rows)}")


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
            compare(*known)
            return 0
        every = known[0]["benchmarks"]
        if unknown := [name for name in options.names if name not in every]:
            made.error(f"{options.show} holds no benchmark {unknown[0]!r}, but {', '.join(every)}")
        show({name: every[name] for name in options.names or every}, details=bool(options.names))
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

    from tqdm import tqdm

    names = options.names or list(catalog.BENCHMARKS)
    found: dict[str, Any] = {}
    with tqdm(names, unit="benchmark", disable=None if len(names) > 1 else True) as bar:
        for name in bar:
            bar.set_description_str(name)
            if (each := spawn(name, options)) is not None:
                found[name] = each
    wrong = EXIT_INCORRECT if len(found) < len(names) else 0
    if options.check:
        checked = f"{len(found)} of {len(names)} benchmarks are right on toy sizes; nothing was timed."
        print(json.dumps({"checked": list(found)}) if options.json else checked)
        return wrong
    if not found:
        return wrong
    environment = next(iter(found.values()))["environment"]
    device = environment["processor"].partition(",")[0] if environment["backend"] == "cpu" else environment["device"]
    path = records.write(options.out, device, found)
    if options.json:
        print(json.dumps({"benchmarks": found}))
    else:
        show(found, details=bool(options.names))
    import figure

    picture = figure.write(records.read(path), path.with_suffix(".png"))
    print(f"{path}\n{picture}", file=sys.stderr if options.json else sys.stdout)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
