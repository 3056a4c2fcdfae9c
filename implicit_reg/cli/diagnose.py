"""`implicit-reg diagnose`: what a training run is doing, with the evidence and what to try next."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

import tyro

from implicit_reg.cli import _common, _training, train

FORMAT = "implicit_reg.diagnose"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnose(_common.Options):
    """Say what a training run is doing, how sure that is, which numbers it rests on, and what to try next.

    Reads the history and the last parameters of a folder that `train` made; the folder is not changed. Verdicts:
    diverged, too short, flooded, still falling, training loss large, minimum, saddle, plateau, small step,
    oscillation, gradient noise, stalled, overconfidence, overfitting, or healthy.

    For example:
    $ implicit-reg diagnose runs/train-20260101-120000
    $ implicit-reg diagnose runs/train-20260101-120000 --check
    $ implicit-reg diagnose runs/train-20260101-120000 --json
    """

    folder: tyro.conf.Positional[Annotated[pathlib.Path, tyro.conf.arg(metavar="RUN")]]
    """A folder that `train` made."""
    out: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Also write diagnosis.json to this folder, which must not exist, or be empty. Default: print only."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also tell a too small model from a slow optimization: train on for half as long, and train a model 4x as wide."""
    batch_size: int = 1024
    """Examples in memory at once while the curvature is measured; 0 takes all."""
    seed: int = 0
    """Of the random start of the Lanczos iteration."""

    def run(self) -> int:
        """Reads, measures, prints."""
        if self.batch_size < 0:
            raise _common.UsageError(f"--batch-size must be at least 0, got {self.batch_size}")
        if not 0 <= self.seed < 2**32:
            raise _common.UsageError(f"--seed must be in [0, 2**32), got {self.seed}")
        if not self.folder.is_dir():
            raise _common.UsageError(f"{self.folder}: there is no such folder")
        with _common.user_input():
            settings, _ = _training.read_settings(self.folder, train.FORMAT)
        with _training.precision(settings.dtype):
            return self._diagnose(settings)

    def _diagnose(self, settings: Any) -> int:
        with _common.user_input():
            from implicit_reg.training import Run, diagnose, diagnose_further

            run = Run(settings)
            state, history = train.restore(self.folder, run, run.init())
            if not history:
                raise _common.UsageError(f"{self.folder} holds no finished epoch: there is nothing to diagnose")
        out = None if self.out is None else _common.new_folder(self.out, "diagnose")
        import jax

        epochs = len(history) + max(1, len(history) // 2) if self.check and bool(state.finite) else 0
        with _common.stop_at_once(), _common.progress(3 + epochs, self) as bar, _common.user_input():

            def report(stage: str) -> None:
                bar.set_description_str(stage)
                bar.update()

            key = jax.random.key(self.seed)
            found = diagnose(run, state, history, key=key, batch_size=self.batch_size or None, report=report)
            further = None
            if epochs:
                further = diagnose_further(run, state, history, on_epoch=lambda: report("longer run, larger model"))
        record = {
            "format": FORMAT,
            "version": 1,
            "run": _training.plain(settings),
            "environment": dict(_common.environment()),
            **dataclasses.asdict(found),
            "check": None if further is None else dataclasses.asdict(further),
        }
        if out is not None:
            _common.write_atomic(out / "diagnosis.json", _common.to_json(record))
        self._show(record, settings)
        return _common.EXIT_OK

    def _show(self, record: dict[str, Any], settings: Any) -> None:
        if self.json:
            print(_common.to_json(record | {"folder": str(self.folder)}), end="")
            return
        if self.quiet:
            return
        console = _common.console()
        console.print(f"{settings.method} on {settings.data}, {settings.model}, {settings.optimizer}", soft_wrap=True)
        for verdict in record["verdicts"]:
            console.print()
            console.print(f"[bold]{verdict['name']}[/bold] ({verdict['confidence']})")
            console.print(f"  {verdict['sentence']}", markup=False, soft_wrap=True)
            if verdict["evidence"]:
                facts = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in verdict["evidence"].items())
                console.print(f"  numbers: {', '.join(facts)}", style="dim", markup=False, soft_wrap=True)
            for advice in verdict["advice"]:
                source = f" (rule of thumb: {advice['source']})" if advice["rule_of_thumb"] else ""
                console.print(f"  try: {advice['text']}{source}", markup=False, soft_wrap=True)
        if record["check"] is not None:
            console.print()
            console.print(f"check: {record['check']['sentence']}", markup=False, soft_wrap=True)
        for note in record["notes"]:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
