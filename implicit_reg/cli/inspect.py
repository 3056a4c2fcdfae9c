"""`implicit-reg inspect`: the curvature of a loss around its parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import tyro

from implicit_reg.cli import _common, _training, train

FORMAT = "implicit_reg.inspect"


class Subject(NamedTuple):
    """What is looked at: a loss, its parameters, its data, and what it is called."""

    name: str
    loss_fn: Callable[..., Any]
    params: Any
    data: tuple[Any, ...]


def trained(folder: pathlib.Path, stack: contextlib.ExitStack, *, best: bool) -> Subject:
    """The training loss at test time (running averages, no dropout) and the parameters of a folder of `train`."""
    settings, _ = _training.read_settings(folder, train.FORMAT)
    stack.enter_context(_training.precision(settings.dtype))
    from implicit_reg.training import Run

    run = Run(settings)
    state, history = train.restore(folder, run, run.init())
    if not history:
        raise _common.UsageError(f"{folder} holds no finished epoch")
    chosen = state.best if best else state
    if best and int(state.best.epoch) == 0:
        raise _common.UsageError(f"{folder} has no best epoch: no validation loss was finite")
    name = f"{settings.method} on {settings.data}, {settings.model}, epoch {int(chosen.epoch)}"
    loss_fn = run.program.loss_at_test_time(chosen.stats)
    return Subject(name, loss_fn, chosen.params, (run.arrays.x_train, run.arrays.y_train))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(_common.Options):
    """Look at the curvature of a loss around its parameters: spectrum, kind of point, flatness, surface.

    The target is a folder that `train` made (its training loss at the last or the best epoch, without dropout and with
    running averages), the name of a problem, or module:attribute (an implicit_reg.problems.Problem, or a function of
    the keyword dtype that returns one).

    For example:
    $ implicit-reg inspect runs/train-20260101-120000
    $ implicit-reg inspect digits-tanh --top 10
    $ implicit-reg inspect my_losses:rosenbrock --json
    """

    target: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TARGET")]]
    """A folder of `train`, the name of a problem, or module:attribute."""
    best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of a folder: the parameters at the best validation epoch instead of the last."""
    top: int = 5
    """Eigenvalues at each end of the spectrum, each with its error bound."""
    samples: int = 8
    """Random vectors for the spectral density and the trace: more make narrower error bars."""
    radius: float = 0.05
    """Radius of epsilon-sharpness, and size of the parameter noise relative to each weight's filter."""
    batch_size: int = 0
    """Examples in memory at once, where the target brings its data; 0 takes all."""
    seed: int = 0
    """Of the random vectors and the noise."""

    def run(self) -> int:
        """Measures, prints, writes."""
        started = time.monotonic()
        if self.batch_size < 0:
            raise _common.UsageError(f"--batch-size must be at least 0, got {self.batch_size}")
        with contextlib.ExitStack() as stack:
            with _common.user_input():
                subject = self._subject(stack)
            folder = _common.new_folder(self.out, "inspect")
            config = {"format": FORMAT, "version": 1, "config": _common.configuration(self)}
            config["environment"] = dict(_common.environment())
            _common.write_atomic(folder / "config.json", _common.to_json(config))
            with _common.stop_at_once(), _common.user_input():
                record = config | self._measure(subject)
        record["wall_seconds"] = round(time.monotonic() - started, 1)
        _common.write_atomic(folder / "results.json", _common.to_json(record))
        from implicit_reg import plots

        _common.write_atomic(folder / "figures" / "curvature.png", plots.to_png(plots.curvature_figure(record)))
        self._show(record, folder)
        return _common.EXIT_OK

    def _subject(self, stack: contextlib.ExitStack) -> Subject:
        """Loads the target, with x64 on for as long as the stack lives where it needs that."""
        path = pathlib.Path(self.target)
        if path.is_dir():
            return trained(path, stack, best=self.best)
        if self.best:
            raise _common.UsageError(f"--best is for a folder of `train`; {self.target} is none")
        from implicit_reg import problems

        stack.enter_context(_training.precision("float64"))
        problem = problems.load_problem(self.target, seed=self.seed, dtype="float64")
        return Subject(problem.name, problem.loss_fn, problem.params, ())

    def _measure(self, subject: Subject) -> dict[str, Any]:
        import jax

        from implicit_reg import curvature

        with _common.progress(len(curvature.PORTRAIT_STAGES), self) as bar:

            def report(stage: str) -> None:
                bar.set_description_str(stage)
                bar.update()

            portrait = curvature.portrait(
                subject.loss_fn,
                subject.params,
                subject.data,
                batch_size=self.batch_size or None,
                top=self.top,
                num_samples=self.samples,
                radius=self.radius,
                key=jax.random.key(self.seed),
                report=report,
            )
        return {"name": subject.name, **portrait}

    def _show(self, record: Mapping[str, Any], folder: pathlib.Path) -> None:
        if self.json:
            print(_common.to_json(dict(record) | {"folder": str(folder)}), end="")
            return
        if self.quiet:
            return
        from rich.table import Table

        console = _common.console()
        console.print(f"{record['name']}: {record['num_params']} parameters, loss {record['loss']:.6g}", soft_wrap=True)
        console.print(record["classification"]["text"], soft_wrap=True)
        table = Table()
        for name in ("", "eigenvalue", "error bound", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for end, rows in (("largest", record["largest"]), ("smallest", record["smallest"])):
            for k, row in enumerate(rows):
                met = "" if row["converged"] else "bound not met"
                table.add_row(end if k == 0 else "", f"{row['value']:.6g}", f"{row['bound']:.1e}", met)
        console.print(table)
        flat = Table()
        for name in ("flatness", "", "what it is"):
            flat.add_column(name, justify="left" if name else "right")
        for row in record["flatness"]:
            error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.2g}"
            flat.add_row(row["name"], f"{row['value']:.5g}{error}", row["what"])
        console.print(flat)
        where = folder / "figures" / "curvature.png"
        console.print(f"done in {record['wall_seconds']:.0f} s; figure: {where}; everything: {folder}", soft_wrap=True)
