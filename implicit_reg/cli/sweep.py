"""`implicit-reg sweep`: many runs that survive, on one core or on many machines."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import tyro

from implicit_reg.cli import _common, _sweeping, _training
from implicit_reg.cli._stopping import stop_after_chunk
from implicit_reg.training.settings import Settings

FORMAT = "implicit_reg.sweep_summary"
Switch = tyro.conf.FlagCreatePairsOff


@dataclasses.dataclass(frozen=True)
class Sweep(Settings, _common.Options):
    """Run a grid of trainings, or of your own function, chunk by chunk into a folder that survives what may happen.

    All runs of a chunk are one vectorized program; learning rate and floating hyperparameters share a compilation. Kill
    it at any moment: the same command with --resume continues, and ends with the same numbers to the last bit, whatever
    the chunk, the devices or the point of the stop. A run that diverges is data.

    For example:
    $ implicit-reg sweep --axis learning_rate 0.03 0.1 0.3 --seeds 5 --out runs/rates --resume
    $ implicit-reg sweep --method flooding --axis level 0 0.05 0.1 0.2 --label-noise 0.2 --seeds 10
    $ implicit-reg sweep --axis method gd sam backstitch --axis widths 16 64 64,64 --seeds 3 --devices 2
    $ implicit-reg sweep --fn my_model:final_loss --axis h 0.1 0.2 --axis depth 2 3 --static depth --by loss
    $ implicit-reg sweep --config grid.toml --out runs/grid --resume --export runs/grid.jsonl
    """

    fn: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """Sweep your own traceable function (key, **settings) -> arrays instead of a training; it is code, and runs."""
    axis: Annotated[
        tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME VALUE ...")
    ] = ()
    """A setting, or a hyperparameter of the method, and the values to try. Several axes make a grid."""
    static: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Axes of --fn whose numbers are constants of a compiled program (a width), one compilation for each."""
    seeds: int = 1
    """How many seeds for each setting, paired across settings: parameters and batch order. The split of the data is
    one (--split-seed), unless you add --axis split_seed 0 1 2."""
    width: int = 32
    """Runs side by side on a device. Part of the results' identity: another width gives other last bits."""
    chunk: int | None = None
    """Runs between two writes, a multiple of the width. Default: one call of the program."""
    devices: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Spread each call over K devices; on a CPU they are made."""
    x64: Switch[bool] = False
    """Compute in float64 (for --fn; a training has --dtype)."""

    resume: Switch[bool] = False
    """Continue what --out holds; where it holds nothing yet, begin."""
    allow_mixed: Switch[bool] = False
    """Continue on another machine or with other versions, although bits may differ; the files say so."""
    fail_on_diverged: Switch[bool] = False
    """Exit with code 3 where a run diverged."""
    by: Annotated[str | None, tyro.conf.arg(metavar="OUTPUT")] = None
    """The output that ranks the settings, the smallest first. Default: validation/loss; of --fn the first one."""
    highest: Switch[bool] = False
    """Rank the largest value of --by first."""
    export: Annotated[tuple[pathlib.Path, ...], tyro.conf.arg(metavar="FILE ...")] = ()
    """Write all runs to files called .jsonl (a line for each run) or .npz (arrays on the axes of the grid)."""
    config: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Settings from a TOML or JSON file, its grid in a table `axes`; a flag goes before the file."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """One sweep by several processes: the address of process 0, with --num-processes and --process-id."""
    num_processes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many processes there are."""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """Which one this is, from 0."""
    distributed: Switch[bool] = False
    """One sweep by several processes, which the cluster describes (Slurm, Open MPI): srun implicit-reg sweep ..."""

    axes_of_file: tyro.conf.Suppress[tyro.conf.Fixed[tuple[tuple[str, tuple[Any, ...]], ...]]] = ()

    def run(self) -> int:
        """Runs what is not there yet, prints, writes; the exit code says how it ended."""
        chosen = self._checked()
        if self.devices is not None and "jax" not in sys.modules:
            os.environ["JAX_NUM_CPU_DEVICES"] = str(self.devices)
        with _sweeping.processes(self), _sweeping.precision(self):
            import jax

            from implicit_reg.experiments import SweepStoppedError, static, sweep, sweep_mesh

            first = jax.process_index() == 0
            with _common.user_input():
                fn, axes, identity = self._work(chosen, static)
                spread = self.devices is not None or jax.process_count() > 1
                mesh = sweep_mesh(self.devices if jax.process_count() == 1 else None) if spread else None
            folder = self._folder() if first else self.out
            where = f"the same command with --resume --out {folder} goes on"
            with stop_after_chunk() as stop, _sweeping.reporter(self, first) as report, _warnings(first):
                try:
                    with _sweeping.a_users_mistake():
                        runs = sweep(
                            fn,
                            axes | {"seed": range(self.seeds)},
                            key=jax.random.key(self.seed),
                            width=self.width,
                            chunk=self.chunk,
                            mesh=mesh,
                            folder=folder,
                            resume=self.resume,
                            allow_mixed=self.allow_mixed,
                            identity=identity,
                            report=report,
                            should_stop=lambda: bool(stop),
                        )
                except SweepStoppedError as error:
                    if first:
                        print(f"{error}; {where}", file=sys.stderr)
                    return stop.code or _common.EXIT_TERMINATED  # another process had the signal
            if first:
                self._end(runs, folder, chosen)
        return _common.EXIT_UNMEASURED if self.fail_on_diverged and "diverged" in runs.status else _common.EXIT_OK

    def _checked(self) -> dict[str, list[Any]]:
        """The axes; what is contradictory is said before JAX starts."""
        if self.seeds < 1:
            raise _common.UsageError(f"--seeds must be at least 1, got {self.seeds}")
        if self.resume and self.out is None:
            raise _common.UsageError("--resume needs --out DIR, the folder that is to be continued")
        for path in self.export:
            if path.suffix not in (".jsonl", ".npz"):
                raise _common.UsageError(f"--export {path}: wanted a file called .jsonl or .npz")
        _sweeping.check_processes(self)
        chosen = _sweeping.parse_axes(self)
        if not chosen and self.seeds == 1:
            raise _common.UsageError(
                "nothing to sweep: give --axis NAME VALUE ..., or --seeds, or a --config with axes"
            )
        return chosen

    def _work(self, chosen: dict[str, list[Any]], static: Callable[[Any], Any]) -> tuple[Any, dict[str, Any], Any]:
        """The function, its axes, and what else identifies the sweep."""
        from implicit_reg import _checks

        _checks.check_seed("sweep", "seed", self.seed)
        if self.fn is None:
            from implicit_reg.experiments.trainings import Trainings

            settings = _training.settings_of(self)
            split = settings.seed if settings.split_seed is None else settings.split_seed
            settings = dataclasses.replace(settings, seed=0, split_seed=split)
            trainings = Trainings(settings, chosen)
            own = {k: v for k, v in _training.plain(settings).items() if k not in chosen}
            return trainings.fn, trainings.axes, own
        from implicit_reg.problems.plugins import load_attribute

        fn = load_attribute("sweep", "fn", self.fn)
        _checks.check_callable("sweep", "fn", fn, "(key, **settings) -> pytree of arrays")

        @functools.wraps(fn)
        def guarded(key: Any, **row: Any) -> Any:
            try:
                return fn(key, **row)
            except Exception as error:
                raise _common.UsageError(f"--fn {self.fn} raised {type(error).__name__}: {error}") from error

        axes = {name: static(values) if name in self.static else values for name, values in chosen.items()}
        return guarded, axes, {"fn": self.fn}

    def _folder(self) -> pathlib.Path:
        if self.out is None:
            return _common.new_folder(None, "sweep")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        return self.out

    def _summary(self, chosen: dict[str, list[Any]]) -> dict[str, Any]:
        """What was swept, without how the command was run; `run.json` has what decides the bits."""
        own = {k: v for k, v in _training.plain(_training.settings_of(self)).items() if k not in (*chosen, "seed")}
        what = own if self.fn is None else {"fn": self.fn, "static": self.static, "x64": self.x64}
        return what | {"axes": chosen, "seeds": self.seeds, "seed": self.seed, "width": self.width}

    def _end(self, runs: Any, folder: pathlib.Path, chosen: dict[str, list[Any]]) -> None:
        from implicit_reg.cli import _sweep_table

        for path in self.export:
            path.parent.mkdir(parents=True, exist_ok=True)
            (runs.write_jsonl if path.suffix == ".jsonl" else runs.write_npz)(path)
        with _common.user_input():
            ranking = _sweep_table.rank(runs, self.by, highest=self.highest, training=self.fn is None)
        record = {
            "format": FORMAT,
            "version": 1,
            "status": "finished",
            "config": self._summary(chosen),
            "environment": dict(runs.environment),
            "runs": len(runs),
            "diverged": int((runs.status == "diverged").sum()),
            "seconds": round(runs.seconds, 3),
            **ranking,
        }
        _common.write_atomic(folder / "results.json", _common.to_json(record))
        if self.json:
            print(_common.to_json(record | {"folder": str(folder)}), end="")
        elif not self.quiet:
            _sweep_table.show(record, folder)


@contextlib.contextmanager
def _warnings(first: bool) -> Iterator[None]:
    """A warning is one line, and said by one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        if not first:
            warnings.simplefilter("ignore")

        def show(message: Any, *place: Any, **more: Any) -> None:
            print(f"warning: {message}", file=sys.stderr, flush=True)

        warnings.showwarning = show
        yield


def with_file(options: Sweep) -> Mapping[str, Any]:
    """What the file of --config says, as fields of `Sweep`."""
    return _sweeping.fields_of_file(options.config, type(options))
