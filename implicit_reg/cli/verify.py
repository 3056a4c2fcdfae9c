"""`implicit-reg verify`: every prediction against its iterates."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from implicit_reg.cli import _cache, _common, _verify_table, _workers

TRAJECTORIES = ("gd", "gradient-penalty", "backstitch", "alternating", "sam")  # those of which a picture is drawn
THREADS = 2  # of one process: compilation is outside of Python's lock
LONGEST = ("adam", "adamw", "nadam", "rmsprop", "gd", "flooding-level-set")  # as measured, in seconds; others are alike


class Job(NamedTuple):
    """One prediction to run: its name, the number of its losses, and `run(report) -> check`."""

    name: str
    num_losses: int
    run: Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Verify(_common.Options):
    """Show that training dynamics follow what theory predicts, with measured orders.

    Every prediction of the table names discrete dynamics, the flow or discrete equivalent that is said to follow them,
    and the orders in the step size that would show it; each is run on several losses, and each check is itself checked
    by a wrong prediction that must fail.

    For example:
    $ implicit-reg verify
    $ implicit-reg verify --list
    $ implicit-reg verify --preset standard --only adam sgd-shuffled --json
    $ implicit-reg verify --only gd --problem nonquadratic my_losses:rosenbrock
    $ implicit-reg verify --method my_module:my_optimizer --problem my_module:my_loss --field my_module:my_field
    """

    listing: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(name="list")] = False
    """Name every prediction, its claim and its source, and do nothing else."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Check these predictions only; --list names them."""
    preset: Literal["quick", "standard", "full"] = "quick"
    """How much: quick (every prediction, its main statement, under 3 minutes on two cores), standard (all statements,
    under 10) or full (longer epochs, more orders, under 30)."""
    problem: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """On these losses instead of each prediction's own; also module:attribute."""
    method: Annotated[str | None, tyro.conf.arg(metavar="MODULE:ATTRIBUTE")] = None
    """Check your own optimizer, a function from the step size to an Optax transformation, with memory or without."""
    field: Annotated[str | None, tyro.conf.arg(metavar="MODULE:ATTRIBUTE")] = None
    """With --method: the vector field(t, params, h) it is said to follow, or a tuple of truncations."""
    step_sizes: Annotated[tuple[float, ...], tyro.conf.arg(metavar="H ...")] = ()
    """Step sizes, decreasing, instead of each statement's own; each must divide the time of a record."""
    time: float | None = None
    """The fixed time, in units of the step, at which errors are compared, instead of each statement's own."""
    seed: int = 0
    """Of what is random in a loss: the split of the data and the start."""
    jobs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes, at most one for each prediction; they change the time and no number. Default: 2 where there are two
    cores, and 1 on a GPU, whose memory one process takes."""

    def run(self) -> int:
        """Checks, prints, writes; the exit code is the verdict."""
        if self.listing:
            return self._list()
        started = time.monotonic()
        if self.jobs is not None and self.jobs < 1:
            raise _common.UsageError(f"--jobs must be at least 1, got {self.jobs}")
        if "jax" not in sys.modules:
            # A program at work in a thread of JAX's is waited for here: that only costs the change of threads.
            os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
        with contextlib.ExitStack() as stack:
            wanted, workers = self._num_processes(), []

            def hire(number: int) -> None:
                while len(workers) < number:
                    worker = _workers.Worker(_SERVE, self._settings())
                    workers.append(stack.enter_context(contextlib.closing(worker)))

            hire(min(1, wanted - 1))  # begins to import while this process does
            with _common.user_input():
                jobs, skipped = self._prepare()
            if self.jobs is None and not _on_cpu():
                wanted = 1  # one process takes all of the memory; the other has touched no device yet
            hire(min(wanted, len(jobs)) - 1)
            try:
                return self._run(started, jobs, skipped, workers[: wanted - 1])
            except _workers.WorkerError as error:
                if self.debug and error.trace:
                    print(error.trace, end="", file=sys.stderr)
                print(error, file=sys.stderr)
                return error.code

    def _run(self, started: float, jobs: list[Job], skipped: list, workers: list[_workers.Worker]) -> int:
        folder = _common.new_folder(self.out, "verify")
        record = {
            "format": "implicit_reg.verify",
            "version": 2,
            "preset": self.preset,
            "config": self._configuration(),
            "environment": dict(_common.environment()),
            "skipped": skipped,
        }
        _common.write_atomic(folder / "config.json", _common.to_json(record))
        with _common.stop_at_once():
            record |= self._measure(jobs, workers)
        record["wall_seconds"] = round(time.monotonic() - started, 1)
        written = _write(folder, record)
        self._show(record, folder, written)
        return _EXIT_CODES[record["verdict"]]

    def _configuration(self) -> dict[str, Any]:
        """Without the number of processes, which decides no result."""
        plain = dataclasses.replace(self, jobs=None)
        settings = _common.configuration(plain) | {"dtype": "float64"}
        del settings["jobs"]
        return settings | {"command": _common.command_line("verify", plain)}

    def _num_processes(self) -> int:
        if self.method is not None or not sys.executable:
            return 1
        if self.jobs is not None:
            wanted = self.jobs
        elif "jax" in sys.modules:
            return 1  # what this process has set in JAX holds for no other
        else:
            wanted = _workers.default_number()
        return min(wanted, len(set(self.only)) or wanted)  # of all predictions the number is not known yet

    def _settings(self) -> dict[str, Any]:
        """What a worker has to know to make the same jobs."""
        names = ("preset", "problem", "step_sizes", "time", "seed")
        return {name: getattr(self, name) for name in names}

    def _list(self) -> int:
        from implicit_reg import predictions

        rows = predictions.ROWS.values()
        if self.json:
            found = [{"name": row.name, "claim": row.claim, "source": row.source} for row in rows]
            print(_common.to_json({"predictions": found}), end="")
            return _common.EXIT_OK
        from rich.table import Table

        table = Table(title="Predictions", title_justify="left")
        for name in ("name", "claim", "source"):
            table.add_column(name, no_wrap=name == "name")
        for row in rows:
            table.add_row(row.name, row.claim, f"\\[{row.source}]" if row.source else "derived here")
        _common.console().print(table)
        return _common.EXIT_OK

    def _prepare(self) -> tuple[list[Job], list[dict[str, str]]]:
        """What there is to run, and the rows that cannot be put to the test on the losses asked for."""
        import jax

        from implicit_reg import predictions, problems

        if self.method is not None and self.only:
            raise ValueError("--only names predictions of the table and --method your own; give one of them")
        if self.field is not None and self.method is None:
            raise ValueError("--field says what --method follows; give both")
        effort = predictions.Effort[self.preset.upper()]
        load = self._loader()
        with jax.enable_x64(True):
            if self.method is not None:
                method = problems.load_attribute("verify", "--method", self.method)
                field = None
                if self.field is not None:
                    field = problems.load_attribute("verify", "--field", self.field)
                losses = [load(name) for name in dict.fromkeys(self.problem or predictions.DEFAULT_LOSSES)]
                options = {"field": field, "step_sizes": self.step_sizes or None, "time": self.time}
                run = predictions.prepare_own(self.method, method, losses, effort, **options)
                return [Job(self.method, len(losses), run)], []
            rows = [predictions.find(name) for name in dict.fromkeys(self.only or predictions.ROWS)]
            jobs, skipped = [], []
            for row in rows:
                job, applicable = self._job(row, load)
                try:
                    applicable()
                except (ValueError, TypeError) as error:
                    # Asked for by name it is the user's mistake; otherwise the others are still worth having.
                    if self.only or not self.problem or len(rows) == 1:
                        raise
                    skipped.append({"name": row.name, "reason": str(error)})
                    continue
                jobs.append(job)
        if not jobs:
            raise ValueError(f"nothing can be put to the test on {', '.join(self.problem)}: {skipped[0]['reason']}")
        return jobs, skipped

    def _loader(self) -> Callable[[str], Any]:
        """Loads a loss once, so that what is known of it is found once."""
        from implicit_reg import problems

        return functools.cache(functools.partial(problems.load_problem, seed=self.seed, dtype="float64"))

    def _job(self, row: Any, load: Callable[[str], Any]) -> tuple[Job, Callable[[], None]]:
        """The job of a row, and what raises where it cannot be put to the test on these losses."""
        from implicit_reg import predictions

        losses = [load(name) for name in dict.fromkeys(self.problem or row.losses)]
        effort = predictions.Effort[self.preset.upper()]
        options = {"step_sizes": self.step_sizes or None, "time": self.time}
        run = functools.partial(predictions.check, row, losses, effort, **options)
        applicable = functools.partial(predictions.check_applicable, row, losses, effort, **options)
        return Job(row.name, len(losses), lambda report: run(report=report)), applicable

    def _measure(self, jobs: list[Job], workers: list[_workers.Worker]) -> dict[str, Any]:
        import jax

        from implicit_reg import predictions, problems

        with _common.progress(sum(job.num_losses for job in jobs) + 1, self) as bar:

            def report(what: str) -> None:
                bar.set_description_str(what)
                bar.update()

            by_name = {job.name: job for job in jobs}
            here: _workers.Run = lambda name, report: by_name[name].run(report)  # noqa: E731
            seats = [here, *(worker.run for worker in workers)] if workers else [here] * THREADS
            checks = _workers.run_all(list(by_name), LONGEST, seats, report)
            pictured = [predictions.find(job.name) for job in jobs if job.name in TRAJECTORIES]
            record = {"verdict": predictions.worst(check["verdict"] for check in checks), "checks": checks}
            report("trajectories on the two-parameter loss")
            if pictured:
                with jax.enable_x64(True):
                    factorization = problems.load_problem("factorization-stiff", dtype="float64")
                record["trajectories"] = predictions.two_parameter_trajectories(pictured, factorization)
        return record

    def _show(self, record: dict[str, Any], folder, written: list[str]) -> None:
        if self.json:
            kept = ("preset", "verdict", "checks", "skipped", "wall_seconds", "environment", "config")
            print(_common.to_json({**{key: record[key] for key in kept}, "folder": str(folder)}), end="")
            return
        if self.quiet:
            return
        console = _common.console()
        console.print(_verify_table.verify_table(record))
        for line in _verify_table.reasons(record):
            console.print(f"  {line}", soft_wrap=True, markup=False)
        for row in record["skipped"]:
            console.print(f"  {row['name']} skipped: {row['reason']}", soft_wrap=True, markup=False)
        counts = {verdict: sum(check["verdict"] == verdict for check in record["checks"]) for verdict in _EXIT_CODES}
        console.print("Wrote " + ", ".join(written) + f" to {folder}", soft_wrap=True, markup=False)
        skipped = f", {len(record['skipped'])} skipped" if record["skipped"] else ""
        console.print(
            f"{counts['holds']} hold, {counts['fails']} fail, {counts['could not measure']} could not be measured"
            f"{skipped}; {record['wall_seconds']:.0f} s; report: {folder / 'report.html'}",
            soft_wrap=True,
            markup=False,
        )


_EXIT_CODES = {
    "holds": _common.EXIT_OK,
    "fails": _common.EXIT_FAILED,
    "could not measure": _common.EXIT_UNMEASURED,
}


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"


_SERVE = "from implicit_reg.cli import verify; verify.serve()"


def serve() -> None:
    """What a worker process does: checks predictions by name, with the settings of its parent."""
    _workers.serve(_prepare_worker)


def _prepare_worker(settings: dict[str, Any]) -> _workers.Run:
    _cache.ignore_damage()
    import jax

    from implicit_reg import predictions

    options = Verify(**settings)
    load = options._loader()

    def run(name: str, report: _workers.Report) -> dict[str, Any]:
        with jax.enable_x64(True):
            job, _ = options._job(predictions.find(name), load)
        return job.run(report)

    return run


def _write(folder, record: dict[str, Any]) -> list[str]:
    """Numbers first, then the figures and the report made of them."""
    from implicit_reg import plots, report

    _common.write_atomic(folder / "results.json", _common.to_json(record))
    figures = plots.verify_figures(record)
    shown = [name for name in figures if not name.startswith("check-")]  # the others stand in the report
    for name in shown:
        _common.write_atomic(folder / "figures" / f"{name}.png", plots.to_png(figures[name]))
    pictures = {name: plots.to_svg(figure, name) for name, figure in figures.items()}
    _common.write_atomic(folder / "report.html", report.verify_report(record, pictures))
    return ["config.json", "results.json", "report.html", f"{len(shown)} figures"]
