"""`implicit-reg compare`: several methods on equal terms."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from typing import Annotated, Any

import tyro

from implicit_reg.cli import _common, _training
from implicit_reg.training.settings import Settings, parse_value

FORMAT = "implicit_reg.compare"


@dataclasses.dataclass(frozen=True)
class Compare(Settings, _common.Options):
    """Compare methods on equal terms: same seeds, same gradient budget, hyperparameters chosen on validation data.

    A method that spends two gradients on a step gets half the steps. Each method has its own grid of learning rates and
    hyperparameters; the setting with the fewest diverged runs and the best mean validation value is chosen, and the
    test data are looked at for that one alone. Differences to the baseline are paired by seed.

    For example:
    $ implicit-reg compare --methods gd sam backstitch --seeds 5
    $ implicit-reg compare --methods gd flooding --grid flooding.level=0.05,0.1,0.2 --label-noise 0.1
    $ implicit-reg compare --data wine --learning-rates 0.1 0.3 --epochs 60 --json
    """

    # What the grid decides is no flag here.
    method: tyro.conf.Suppress[tyro.conf.Fixed[str]] = "gd"
    hyper: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    learning_rate: tyro.conf.Suppress[tyro.conf.Fixed[float]] = 0.1

    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = (
        "gd",
        "gradient-penalty",
        "backstitch",
        "sam",
        "flooding",
    )
    """Rows of the methods table, or module:attribute."""
    baseline: str = "gd"
    """The method that the others are compared with; it is added where it is not among them."""
    seeds: int = 5
    """How many seeds, from --seed on; each has its own split, unless --split-seed is given."""
    learning_rates: Annotated[tuple[float, ...], tyro.conf.arg(metavar="H ...")] = (0.1, 0.3, 1.0)
    """Learning rates to choose from, for every method."""
    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD.NAME=V,V,... ...")] = ()
    """Hyperparameter values to choose from. Default: a third, once and three times the method's default."""

    def run(self) -> int:
        """Trains all, prints, writes; the exit code says whether every method could be measured."""
        started = time.monotonic()
        with _common.user_input():
            if self.seeds < 1:
                raise _common.UsageError(f"--seeds must be at least 1, got {self.seeds}")
            names = list(dict.fromkeys((self.baseline, *self.methods)))
            grids = _parse_grids(self.grid, names)
        with _training.precision(self.dtype):
            with _common.user_input():
                entrants, arrays, seeds, budget = self._prepare(names, grids)
            folder = _common.new_folder(self.out, "compare")
            record = {
                "format": FORMAT,
                "version": 1,
                "config": {k: v for k, v in _common.configuration(self).items() if k not in _CHOSEN},
                "environment": dict(_common.environment()),
            }
            _common.write_atomic(folder / "config.json", _common.to_json(record))
            methods, code = self._compete(entrants, arrays, seeds)
        status = "finished" if code is None else "interrupted"
        record |= {"status": status, "budget_gradients": budget, "baseline": self.baseline, "seeds": seeds}
        record |= {"methods": _summarize(methods, self.baseline)}
        record["wall_seconds"] = round(time.monotonic() - started, 1)
        _common.write_atomic(folder / "results.json", _common.to_json(record))
        figures = _draw(folder, record)
        self._show(record, folder, figures)
        if code is not None:
            return code
        unmeasured = any(method["summary"]["best"][_loss(method)]["n"] == 0 for method in record["methods"])
        return _common.EXIT_UNMEASURED if unmeasured else _common.EXIT_OK

    def _prepare(self, names: list[str], grids: dict[str, dict[str, list]]) -> tuple[list, Any, list[int], float]:
        from implicit_reg import _checks
        from implicit_reg.training import enter, grid, load_data, stack_data

        _checks.check_seed("compare", "seed", self.seed)
        _checks.check_integer("compare", "epochs", self.epochs)
        seeds = list(range(self.seed, self.seed + self.seeds))
        _checks.check_seed("compare", "the last seed", seeds[-1])
        settings = _training.settings_of(self)
        data = load_data(settings)
        # Which gradient budget the epochs are: those of plain gradient descent, one gradient on a step.
        size = settings.batch_size or len(data.x_train)
        budget = float(settings.epochs * max(1, len(data.x_train) // size))
        entrants = [
            enter(settings, name, grid(name, self.learning_rates, grids.get(name)), budget, data=data) for name in names
        ]
        return entrants, stack_data(settings, seeds, entrants[0].groups[0][1].dtype), seeds, budget

    def _compete(self, entrants: list, arrays: Any, seeds: list[int]) -> tuple[list[dict[str, Any]], int | None]:
        from implicit_reg.training import compete

        records: list[dict[str, Any]] = []
        total = sum(entrant.num_epochs for entrant in entrants)
        with _training.stop_at_epoch() as stop, _common.progress(total, self) as bar:

            def on_epoch() -> None:
                bar.update()
                if stop:
                    raise _Stopped

            try:
                for entrant in entrants:
                    lanes = len(entrant.candidates) * len(seeds)
                    bar.set_description_str(f"{entrant.name}: {lanes} runs at once")
                    records.append(compete(entrant, arrays, seeds, on_epoch=on_epoch))
            except _Stopped:
                return records, stop.code
        return records, None

    def _show(self, record: dict[str, Any], folder: pathlib.Path, figures: list[str]) -> None:
        if self.json:
            print(_common.to_json(record | {"folder": str(folder)}), end="")
            return
        if self.quiet:
            return
        from rich.table import Table

        console = _common.console()
        title = f"{self.data}, {self.model}: test data at the best validation epoch, mean and standard error of "
        title += f"{self.seeds} seeds, {record['budget_gradients']:g} gradients each"
        console.print(title, soft_wrap=True)
        table = Table()
        table.add_column("method", no_wrap=True)
        table.add_column("steps", justify="right")
        metrics = list(record["methods"][0]["summary"]["best"]) if record["methods"] else []
        for metric in metrics:
            table.add_column(metric.replace("_", " "), justify="right", no_wrap=True)
            table.add_column(f"minus {self.baseline} (95 %)", justify="right", no_wrap=True)
        table.add_column("diverged", justify="right")
        for method in record["methods"]:
            cells = [method["name"], str(method["steps"])]
            for metric in metrics:
                summary = method["summary"]["best"][metric]
                cells += [_plus_minus(summary["mean"], summary["standard_error"]), _interval(summary["difference"])]
            table.add_row(*cells, f"{method['diverged']}/{self.seeds}")
        console.print(table)
        for method in record["methods"]:
            console.print(_chosen(method), soft_wrap=True)
        for method in record["methods"]:
            if method["flooded_fraction"] is not None:
                share = sum(method["flooded_fraction"]) / len(method["flooded_fraction"])
                console.print(f"{method['name']}: {100 * share:.1f} % of the steps flooded", soft_wrap=True)
        console.print("* the interval excludes 0. The numbers of the last epoch are in results.json.", soft_wrap=True)
        done = f"{record['status']} in {record['wall_seconds']:.0f} s"
        console.print(f"{done}; wrote results.json and {', '.join(figures)} to {folder}", soft_wrap=True)


_CHOSEN = ("method", "hyper", "learning_rate")


class _Stopped(Exception):
    """A signal asked for the end; the methods that are done are kept."""


def _parse_grids(words: tuple[str, ...], methods: list[str]) -> dict[str, dict[str, list]]:
    """`method.name=v,v` words as method -> name -> values."""
    grids: dict[str, dict[str, list]] = {}
    for word in words:
        place, equals, values = word.partition("=")
        method, dot, name = place.rpartition(".")
        if not (equals and dot and method and name):
            wanted = "method.name=value,value,... for example sam.radius=0.02,0.1"
            raise _common.UsageError(f"--grid wants {wanted}; got {word!r}")
        if method not in methods:
            raise _common.UsageError(f"--grid {word}: {method!r} is not compared; compared are {', '.join(methods)}")
        name = name.replace("-", "_")
        if name in grids.setdefault(method, {}):
            raise _common.UsageError(f"--grid: {place} is given twice; give it once")
        grids[method][name] = [parse_value("--grid", place, value.strip()) for value in values.split(",")]
    return grids


def _loss(method: dict[str, Any]) -> str:
    """The last of the two metrics: cross-entropy or squared error."""
    return list(method["summary"]["best"])[-1]


def _summarize(methods: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Adds to each method the mean, the standard error and the paired difference of each metric."""
    from implicit_reg.training import summarize

    def values(method: dict[str, Any], when: str, metric: str) -> list[float | None]:
        return [seed[when][metric] for seed in method["seeds"]]

    base = next((method for method in methods if method["name"] == baseline), None)
    for method in methods:
        metrics = [name for name in method["seeds"][0]["best"] if name != "epoch"]
        method["summary"] = {
            when: {
                metric: summarize(values(method, when, metric), None if method is base else values(base, when, metric))
                for metric in metrics
            }
            for when in ("best", "last")
        }
    return methods


def _draw(folder: pathlib.Path, record: dict[str, Any]) -> list[str]:
    """One picture per metric, of the best validation epoch."""
    from implicit_reg import plots

    names = []
    metrics = list(record["methods"][0]["summary"]["best"]) if record["methods"] else []
    for metric in metrics:
        words = metric.replace("_", " ")
        page = {
            "metric": f"test {words}",
            "baseline": record["baseline"],
            "methods": [
                {
                    "name": method["name"],
                    "title": method["title"],
                    "values": [seed["best"][metric] for seed in method["seeds"]],
                    **method["summary"]["best"][metric],
                }
                for method in record["methods"]
            ],
        }
        config = record["config"]
        note = f"{config['data']}, {config['model']}, {record['budget_gradients']:g} gradients each; 95 % intervals."
        figure = plots.comparison_figure(page, note=note)
        names.append(f"figures/{metric.replace('_', '-')}.png")
        _common.write_atomic(folder / names[-1], plots.to_png(figure))
    return names


def _chosen(method: dict[str, Any]) -> str:
    """Which setting won, and whether it stood at an edge of what was tried: the best may then lie outside."""
    tried = [{"learning rate": c["learning_rate"], **c["hyper"]} for c in method["candidates"]]
    won = tried[method["chosen"]]
    words = []
    for name, value in won.items():
        values = {setting[name] for setting in tried}
        if value is None or (len(values) == 1 and name != "learning rate"):
            continue
        edges = {min(values): " (smallest tried)", max(values): " (largest tried)"} if len(values) > 1 else {}
        words.append(f"{name} {value:g}{edges.get(value, '')}")
    return f"{method['name']}: best of {len(tried)} on validation data: {', '.join(words)}"


def _plus_minus(mean: float | None, error: float | None, sign: str = "") -> str:
    """A number to the second digit of its error."""
    if mean is None:
        return "-"
    if not error:
        return f"{mean:{sign}.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def _interval(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return "baseline"
    if difference["low"] is None:
        return _plus_minus(difference["mean"], None, "+")
    clear = difference["low"] > 0 or difference["high"] < 0
    half = (difference["high"] - difference["low"]) / 2
    return _plus_minus(difference["mean"], half, "+") + (" *" if clear else "  ")
