"""`implicit-reg reproduce`: published experiments, run again and judged by a criterion fixed beforehand."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import tyro

from implicit_reg.cli import _common, _training
from implicit_reg.cli._stopping import stop_after_chunk

FORMAT, VERSION = "implicit_reg.reproduce", 1
ALL = "all"
COLORS = {"reproduced": "green", "partly": "yellow", "not": "red"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce(_common.Options):
    """Run a published experiment again and say whether its claim is reproduced.

    The verdict (reproduced, partly, not) is computed from a criterion that was fixed beforehand; whatever it is, the
    exit code is 0. Ctrl-C finishes the chunk in hand; the same command with --resume goes on, with the same numbers.

    For example:
    $ implicit-reg reproduce --list
    $ implicit-reg reproduce principal-flow
    $ implicit-reg reproduce flooding-digits --scale full --devices 8
    $ implicit-reg reproduce all --out runs/papers --resume
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]] = ""
    """One of --list, or all."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the experiments with their claims, and do nothing."""
    scale: Literal["test", "fast", "full"] = "fast"
    """test takes seconds, fast at most two minutes on two cores, full is the paper's protocol where known."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue what --out holds, finished runs are not repeated; where it holds nothing yet, begin."""
    devices: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Spread the runs over so many devices; it does not change the numbers. On a CPU they are made."""

    def run(self) -> int:
        """Runs, judges, prints, writes."""
        if self.devices is not None:
            if self.devices < 1:
                raise _common.UsageError(f"--devices must be at least 1, got {self.devices}")
            if "jax" not in sys.modules:
                os.environ["JAX_NUM_CPU_DEVICES"] = str(self.devices)
        if self.list:
            return self._list()
        if not self.name:
            raise _common.UsageError("name an experiment, or all; --list shows them")
        if self.resume and self.out is None:
            raise _common.UsageError("--resume needs --out DIR, the folder that is to be continued")
        with _common.user_input():
            from implicit_reg._files import lock
            from implicit_reg.experiments import SweepStoppedError, load_reproduction, sweep_mesh

            if self.name != ALL:
                load_reproduction(self.name)
            mesh = None if self.devices is None else sweep_mesh(self.devices)
        if self.resume:
            self.out.mkdir(parents=True, exist_ok=True)
        folder = self.out if self.resume else _common.new_folder(self.out, "reproduce")
        with lock(folder), self._progress() as (bar, report), stop_after_chunk() as stop:

            def one(name: str, place: pathlib.Path, note: str = "") -> dict[str, Any]:
                return reproduce_into(place, name, self.scale, mesh, lambda *news: report(note, *news), stop)

            try:
                if self.name == ALL:
                    return self._all(one, folder, bar)
                record = one(self.name, folder)
                bar.clear()
                return self._single(record, folder)
            except SweepStoppedError:
                print(f"stopped; the same command with --resume --out {folder} goes on", file=sys.stderr)
                return stop.code or _common.EXIT_INTERRUPTED

    @contextlib.contextmanager
    def _progress(self) -> Iterator[tuple[Any, Callable[..., None]]]:
        with _common.progress(1, self) as bar:

            def report(note: str, text: str, progress: Any) -> None:
                words = f"{note}{text}"
                if progress is not None:
                    bar.total, bar.n = progress.total, progress.done
                    words += f": {progress.done} of {progress.total} runs"
                    words += f", {progress.diverged} diverged" if progress.diverged else ""
                    words += f", {progress.left:.0f} s to go" if progress.left > 0 else ""
                bar.set_description_str(words)

            yield bar, report

    def _list(self) -> int:
        from implicit_reg.experiments import REPRODUCTIONS, load_reproduction

        found = [load_reproduction(name) for name in REPRODUCTIONS]
        rows = [{"name": each.name, "claim": each.claim, "source": each.source} for each in found]
        if self.json:
            print(_common.to_json({"experiments": rows}), end="")
        elif not self.quiet:
            from rich.table import Table

            table = Table(show_lines=True)
            table.add_column("experiment", no_wrap=True, style="bold")
            for column in ("claim", "source"):
                table.add_column(column)
            for row in rows:
                table.add_row(*(_plain(row[column]) for column in ("name", "claim", "source")))
            console = _common.console()
            console.print(table)
            console.print("--scale test: seconds; fast: at most 2 minutes on 2 cores; full: hours, better with a GPU")
        return _common.EXIT_OK

    def _single(self, record: Mapping[str, Any], folder: pathlib.Path) -> int:
        if self.json:
            print(_common.to_json(short(record) | {"folder": str(folder)}), end="")
            return _common.EXIT_OK
        if self.quiet:
            return _common.EXIT_OK
        from rich.table import Table

        console = _common.console()
        console.print(_plain(record["claim"]), style="bold", soft_wrap=True)
        console.print(f"source: {_plain(record['source'])}", soft_wrap=True)
        console.print(f"reported there: {_plain(record['reported'])}", soft_wrap=True)
        console.print()
        for part in record["parts"]:
            mark = "[green]✓[/green]" if part["holds"] else "[red]✗[/red]"
            console.print(f"{mark} {_plain(part['text'])}", soft_wrap=True)
        for each in record["tables"]:
            table = Table(title=_plain(each["title"]), title_justify="left", title_style="bold")
            for k, column in enumerate(each["columns"]):
                text = any(isinstance(row[k], str) for row in each["rows"]) and k == 0
                table.add_column(_plain(column), justify="left" if text else "right")
            for row in each["rows"]:
                table.add_row(*map(_cell, row))
            console.print()
            console.print(table)
        for note in record["notes"]:
            console.print(f"note: {_plain(note)}", soft_wrap=True)
        console.print()
        console.print(
            f"{_verdict(record)} in {record['seconds']:.0f} s; report: {folder / 'report.html'}; everything: {folder}",
            soft_wrap=True,
        )
        return _common.EXIT_OK

    def _all(self, one: Callable[..., dict[str, Any]], folder: pathlib.Path, bar: Any) -> int:
        """Each in a folder of its own; one that cannot be run does not keep the others from it."""
        from implicit_reg import report
        from implicit_reg.experiments import REPRODUCTIONS, SweepStoppedError

        begin(folder, {"name": ALL, "scale": self.scale}, {})
        console, records, failed = _common.console(), [], {}
        for k, name in enumerate(REPRODUCTIONS):
            (folder / name).mkdir(exist_ok=True)
            try:
                records.append(one(name, folder / name, f"{k + 1} of {len(REPRODUCTIONS)}, {name}: "))
            except SweepStoppedError:
                raise
            except Exception as error:
                if self.debug:
                    raise
                failed[name] = _common.explain(error)[1]
                print(f"{name}: {failed[name]}", file=sys.stderr)
                continue
            bar.clear()  # the line of what is printed next
            if not self.quiet and not self.json:
                held = sum(part["holds"] for part in records[-1]["parts"])
                words = f"{held} of {len(records[-1]['parts'])} criteria hold, {records[-1]['seconds']:.0f} s"
                console.print(f"{name:18} {_verdict(records[-1])}: {words}", soft_wrap=True)
        head = {"format": f"{FORMAT}.{ALL}", "version": VERSION, "scale": self.scale, "failed": failed}
        results = head | {"experiments": [short(record) for record in records]}
        _common.write_atomic(folder / "report.html", report.reproductions_report(records, failed))
        _common.write_atomic(folder / "table.md", report.reproductions_table(records))
        _common.write_atomic(folder / "results.json", _common.to_json(results))
        if self.json:
            print(_common.to_json(results | {"folder": str(folder)}), end="")
        elif not self.quiet:
            count = sum(record["verdict"] == "reproduced" for record in records)
            where = f"report: {folder / 'report.html'}; everything: {folder}"
            console.print(f"{count} of {len(REPRODUCTIONS)} reproduced; {where}", soft_wrap=True)
        return _common.EXIT_UNMEASURED if failed else _common.EXIT_OK


def reproduce_into(
    folder: pathlib.Path, name: str, scale: str, mesh: Any, tell: Callable[[str, Any], None], stop: _training.Stop
) -> dict[str, Any]:
    """Runs one experiment in its folder, going on where there is a beginning; what is finished there is read.

    Args:
      folder: an existing one, empty or of this experiment.
      name: of the experiment.
      scale: of the run.
      mesh: of devices, or None.
      tell: is told what is going on.
      stop: looked at whenever something is told.

    Returns:
      The record, as it stands in `results.json`.

    Raises:
      UsageError: the folder is of another experiment, scale or settings, or damaged.
      SweepStoppedError: a signal arrived; what was finished is kept.
    """
    from implicit_reg import plots, report
    from implicit_reg._checks import ConfigMismatchError, CorruptResultError, EnvironmentMismatchError
    from implicit_reg.experiments import SweepStoppedError, load_reproduction, reproduce
    from implicit_reg.experiments.reproduction import plain
    from implicit_reg.plots.papers import paper_figure

    settings = plain(dataclasses.asdict(load_reproduction(name).scales[scale]))
    begin(folder, {"name": name, "scale": scale}, settings)
    if (folder / "results.json").exists():
        return _read(folder / "results.json", FORMAT)

    def obey(text: str, progress: Any) -> None:
        tell(text, progress)
        # A sweep that ends in one chunk never asks; between two of them nobody would.
        if stop and (progress is None or progress.done < progress.total):
            raise SweepStoppedError("reproduce: stopped; what was finished is kept")

    try:
        record = reproduce(name, scale, folder=folder / "sweeps", resume=True, mesh=mesh, report=obey)
    except (ConfigMismatchError, CorruptResultError, EnvironmentMismatchError) as error:
        raise _common.UsageError(str(error)) from error
    record = {"format": FORMAT, "version": VERSION, **record}
    figure = paper_figure(record)
    _common.write_atomic(folder / "figures" / f"{name}.png", plots.to_png(figure))
    page = report.reproduction_report(record, {name: plots.to_svg(figure, name)})
    _common.write_atomic(folder / "report.html", page)
    _common.write_atomic(folder / "results.json", _common.to_json(record))  # last: where it is, all is
    return record


def begin(folder: pathlib.Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes down what a folder is for, or makes sure that it is for this.

    Raises:
      UsageError: it is for something else, with the differences, or damaged, or another's.
    """
    if not (folder / "config.json").exists():
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise _common.UsageError(f"{folder} holds files, but no config.json: `reproduce` did not make it")
        head = {"format": FORMAT, "version": VERSION, "config": config, "settings": settings}
        environment = {"environment": dict(_common.environment())}
        _common.write_atomic(folder / "config.json", _common.to_json(head | environment))
        return
    saved = _read(folder / "config.json", FORMAT)
    before = saved.get("config"), saved.get("settings")
    if not all(isinstance(part, dict) for part in before):
        raise _common.UsageError(
            f"{folder / 'config.json'} is damaged: config or settings missing; nothing was changed"
        )
    changed = [
        f"{name}: {then.get(name)!r} then, {now.get(name)!r} now"
        for then, now in zip(before, (config, settings), strict=True)
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise _common.UsageError(f"{folder} was begun with other settings:\n  " + "\n  ".join(changed))


def _read(path: pathlib.Path, kind: str) -> dict[str, Any]:
    record = _training.read_object(path, "reproduce")
    if (record.get("format"), record.get("version")) != (kind, VERSION):
        raise _common.UsageError(
            f"{path} is of {record.get('format')!r}, version {record.get('version')}, not {kind!r}"
        )
    return record


def short(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` prints of a record."""
    return {name: record[name] for name in ("name", "claim", "verdict", "criterion", "numbers")}


def _verdict(record: Mapping[str, Any]) -> str:
    from implicit_reg.plots.papers import MARKS

    sign, _, words = MARKS[record["verdict"]]
    return f"[{COLORS[record['verdict']]}]{sign} {words}[/]"


def _plain(text: Any) -> str:
    """Text in which rich sees no styles: a citation stands in brackets."""
    from rich.markup import escape

    return escape(str(text))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else _plain(value)
