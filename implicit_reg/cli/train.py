"""`implicit-reg train`: real data, any method of the table, any base optimizer."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import tyro

from implicit_reg.cli import _common, _training
from implicit_reg.training.settings import Settings

FORMAT = "implicit_reg.train"


@dataclasses.dataclass(frozen=True)
class Train(Settings, _common.Options):
    """Train a model on real data with any method of the table on top of any Optax optimizer.

    Ends with accuracy and cross-entropy (for diabetes, mean squared error and R^2) at the last and at the best
    validation epoch. Ctrl-C finishes the epoch in hand and saves; --resume goes on from there, bit for bit.

    For example:
    $ implicit-reg train --data digits --method backstitch --hyper alpha=0.3
    $ implicit-reg train --method flooding --hyper level=0.1 --label-noise 0.1 --optimizer adam --learning-rate 0.003
    $ implicit-reg train --model conv --batch-norm --dropout 0.2 --optimizer-args momentum=0.9 --learning-rate 0.05
    $ implicit-reg train --data diabetes --schedule cosine --warmup 2 --weight-decay 0.01 --epochs 60
    $ implicit-reg train --resume runs/train-20260101-120000
    """

    resume: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Continue the run in this folder, with its settings; a flag that contradicts them is an error."""
    checkpoint_every: int = 10
    """Save the complete state each so many epochs (and at the end, and when stopped)."""

    def run(self) -> int:
        """Trains, prints, writes; the exit code says how it ended."""
        started = time.monotonic()
        with _common.user_input():
            settings, earlier = self._settings()
            from implicit_reg.training import Run, checkpoints
        with _training.precision(settings.dtype):
            with _common.user_input():
                run = Run(settings)
            folder = _common.new_folder(self.out, "train") if self.resume is None else self.resume
            try:
                with checkpoints.lock(folder):
                    return self._train(run, folder, earlier, started)
            except checkpoints.LockedError as error:
                print(f"error: {error}", file=sys.stderr)
                return _common.EXIT_RESOURCES

    def _settings(self) -> tuple[Settings, Mapping[str, Any] | None]:
        if self.checkpoint_every < 1:
            raise _common.UsageError(f"--checkpoint-every must be at least 1, got {self.checkpoint_every}")
        if self.resume is None:
            return _training.settings_of(self), None
        if self.out is not None:
            raise _common.UsageError("--resume goes on in its own folder: leave --out away")
        saved, earlier = _training.read_settings(self.resume, FORMAT)
        changed = _training.differences(self, saved)
        if changed:
            raise _common.UsageError(
                f"--resume {self.resume}: the run has other settings; leave these flags away, or start a new run:\n  "
                + "\n  ".join(changed)
            )
        return saved, earlier

    def _train(self, run: Any, folder: pathlib.Path, earlier: Mapping[str, Any] | None, started: float) -> int:
        from implicit_reg.training import checkpoints, fit, results

        state, history, log = run.init(), [], _Log(folder)
        environment = dict(_common.environment())
        if earlier is None:
            config = {"format": FORMAT, "version": 1, "config": _training.plain(run.settings)}
            _common.write_atomic(folder / "config.json", _common.to_json(config | {"environment": environment}))
            log.write(f"start: {run.settings.method} on {run.settings.data}")
        else:
            with _common.user_input():
                state, history = restore(folder, run, state)
            log.write(f"resume after epoch {int(state.epoch)}")
            for name in ("jax", "jaxlib", "optax", "flax", "device", "threads", "xla_flags"):
                if earlier.get(name) != environment[name]:
                    log.write(f"{name} was {earlier.get(name)} and is {environment[name]}: bits may differ", loud=True)
        saved_at = int(state.epoch) if earlier is not None else -1

        def save(state, history) -> None:
            nonlocal saved_at
            meta = {"history": history, "config": _training.plain(run.settings)}
            checkpoints.save(folder / "checkpoint", int(state.epoch), state, meta)
            lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in history)
            _common.write_atomic(folder / "metrics.jsonl", lines)
            saved_at = int(state.epoch)

        with _training.stop_at_epoch() as stop, _common.progress(run.settings.epochs, self) as bar:
            bar.update(len(history))

            def on_epoch(state, history) -> bool:
                bar.set_description_str(_line(history[-1], run.data.task))
                bar.update()
                log.write(f"epoch {history[-1]['epoch']}: {_line(history[-1], run.data.task)}")
                if int(state.epoch) % self.checkpoint_every == 0:
                    save(state, history)
                return bool(stop)

            if not stop:
                state, history = fit(run, state=state, history=history, on_epoch=on_epoch)
            if saved_at != int(state.epoch):
                save(state, history)
        finished = int(state.epoch) >= run.settings.epochs
        numbers = results(run, state)
        status = "diverged" if numbers["diverged"] else "finished" if finished else "interrupted"
        record = {
            "format": FORMAT,
            "version": 1,
            "status": status,
            "config": _training.plain(run.settings),
            "environment": environment,
            **numbers,
            "wall_seconds": round(time.monotonic() - started, 1),
        }
        _common.write_atomic(folder / "results.json", _common.to_json(record))
        _draw(folder, run, record, history)
        log.write(f"{status} after epoch {int(state.epoch)}")
        self._show(record, folder)
        if stop.code is not None and status == "interrupted":
            return stop.code
        return _common.EXIT_UNMEASURED if numbers["diverged"] else _common.EXIT_OK

    def _show(self, record: dict[str, Any], folder: pathlib.Path) -> None:
        if self.json:
            print(_common.to_json(record | {"folder": str(folder)}), end="")
            return
        if self.quiet:
            return
        from rich.table import Table

        config, console = record["config"], _common.console()
        hyper = " ".join(config["hyper"])
        words = f"{config['method']} {hyper}".strip()
        console.print(f"{words} on {config['data']}, {config['model']}, {config['optimizer']}", soft_wrap=True)
        table, names = Table(), list(record["last"]["test"])
        whens = [when for when in ("last", "best") if record[when] is not None]
        table.add_column("")
        for when in whens:
            for name in names:
                epoch = f"{when} epoch ({record[when]['epoch']})"
                table.add_column(f"{epoch}\n{name.replace('_', ' ')}", justify="right", no_wrap=True)
        for part in ("train", "validation", "test"):
            table.add_row(part, *(_number(record[when][part][name]) for when in whens for name in names))
        console.print(table)
        facts = [f"{record['steps']} steps", f"{record['gradients']:g} gradients", f"{record['num_params']} parameters"]
        if record["flooded_fraction"] is not None:
            facts.append(f"{100 * record['flooded_fraction']:.1f} % of the steps flooded")
        if record["left_out_per_epoch"]:
            facts.append(f"{record['left_out_per_epoch']} training examples left out of each epoch")
        if record["note"]:
            facts.append(record["note"])
        console.print("; ".join(facts), soft_wrap=True)
        if record["status"] == "diverged":
            console.print("The loss stopped being finite: a smaller learning rate may help.", style="bold red")
        if record["status"] == "interrupted":
            where = f"Stopped after epoch {record['last']['epoch']}"
            console.print(f"{where}; go on with: implicit-reg train --resume {folder}", soft_wrap=True)
        ending = f"{record['status']} in {record['wall_seconds']:.0f} s"
        console.print(f"{ending}; figure: {folder / 'figures' / 'curves.png'}; everything: {folder}", soft_wrap=True)


class _Log:
    """Lines with times, appended to `log.txt` as they come."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / "log.txt"

    def write(self, text: str, *, loud: bool = False) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
        if loud:
            print(text, file=sys.stderr)


def restore(folder: pathlib.Path, run: Any, template: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The state and the history that a folder holds; the template's where it was killed before its first checkpoint.

    Raises:
      UsageError: it is not whole, or its parts disagree.
      ImplicitRegError: the checkpoint is damaged, or of other shapes.
    """
    from implicit_reg.training import checkpoints

    if not checkpoints.checkpoints(folder / "checkpoint"):
        if (folder / "metrics.jsonl").exists():
            raise _common.UsageError(f"{folder} holds metrics but no checkpoint: it is not whole; nothing was changed")
        # Killed before the first checkpoint: the settings are all there is, and the beginning is the state.
        return template, []
    state, meta = checkpoints.load(folder / "checkpoint", template)
    if meta["config"] != _training.plain(run.settings):
        raise _common.UsageError(f"{folder}: config.json and the checkpoint disagree; nothing was changed")
    return state, meta["history"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _line(record: Mapping[str, Any], task: str) -> str:
    name = "accuracy" if task == "classification" else "R^2"
    numbers = {
        "loss": record["train_loss"],
        "validation loss": record["validation_loss"],
        name: record["validation_score"],
    }
    return ", ".join(f"{name} {_number(value)}" for name, value in numbers.items())


def _draw(folder: pathlib.Path, run: Any, record: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
    """The curves, with the test loss at the last and the best epoch in the units of the curves."""
    if not history:
        return
    from implicit_reg import plots

    curves = {name: [epoch[name] for epoch in history] for name in ("epoch", "train_loss", "validation_loss")}
    scale = 1.0
    if run.data.task == "classification":
        curves["validation_accuracy"] = [epoch["validation_score"] for epoch in history]
    else:
        scale = run.data.target_scale**2
    loss = "cross_entropy" if run.data.task == "classification" else "mean_squared_error"
    # Stars that stand close would write over each other; the table has both numbers.
    one = record["best"] is None or record["last"]["epoch"] - record["best"]["epoch"] < 0.3 * record["last"]["epoch"]
    whens = ["last"] if one else ["last", "best"]
    tests = [
        {"epoch": record[when]["epoch"], "loss": None if value is None else value / scale, "label": f"{when} epoch"}
        for when in whens
        for value in [record[when]["test"][loss]]
    ]
    level = run.hyper.get("level") if record["flooded_fraction"] is not None else None
    note = f"{run.settings.data}, {run.settings.model}, {record['num_params']} parameters, seed {run.settings.seed}"
    if run.data.task == "regression":
        note += "; loss: mean squared error of the standardized target"
    title = f"{run.settings.method} {' '.join(run.settings.hyper)}".strip()
    figure = plots.training_figure(
        curves,
        name=run.settings.method,
        title=title,
        level=level,
        tests=tests,
        note="; ".join(filter(None, (note, record["note"]))),
    )
    _common.write_atomic(folder / "figures" / "curves.png", plots.to_png(figure))
