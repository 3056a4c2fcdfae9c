"""`implicit-reg verify`: every prediction against its iterates."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import tyro

from implicit_reg.cli import _common


@dataclasses.dataclass(frozen=True)
class Verify(_common.Options):
    """Show that each method follows the modified equation that theory predicts, with measured orders.

    For every method and loss: the update against its published formula, the second coefficient of the modified equation
    against the published correction, and the error of one, two and three terms against the orders 1, 2 and 3.

    For example:
    $ implicit-reg verify
    $ implicit-reg verify --only gd backstitch --json
    $ implicit-reg verify --only gd --problem nonquadratic my_losses:rosenbrock
    $ implicit-reg verify --method my_optimizers:my_method
    """

    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Check these predictions only: gd, gradient-penalty, backstitch, alternating, sam."""
    problem: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """On these losses instead of the default ones (a network on digits, the factorization); also module:attribute."""
    method: Annotated[str | None, tyro.conf.arg(metavar="MODULE:ATTRIBUTE")] = None
    """Check your own method, a function from the step size to an Optax transformation, instead of the table's."""
    step_sizes: Annotated[tuple[float, ...], tyro.conf.arg(metavar="H ...")] = (0.1, 0.05, 0.025, 0.0125, 0.00625)
    """Step sizes, decreasing; each must divide a fifth of the time. Orders are read from the last two."""
    time: float = 0.5
    """The fixed time, in units of the step, at which errors are compared."""
    seed: int = 0
    """Of what is random in a loss: the split of the data and the start."""

    def run(self) -> int:
        """Checks, prints, writes; the exit code is the verdict."""
        started = time.monotonic()
        with _common.user_input():
            rows, problems, settings = self._prepare()
        folder = _common.new_folder(self.out, "verify")
        record = {
            "format": "implicit_reg.verify",
            "version": 1,
            "config": _common.configuration(self)
            | {"dtype": "float64", "command": _common.command_line("verify", self)},
            "environment": dict(_common.environment()),
        }
        _common.write_atomic(folder / "config.json", _common.to_json(record))
        with _common.stop_at_once():
            record |= self._measure(rows, problems, settings)
        record["wall_seconds"] = round(time.monotonic() - started, 1)
        written = _write(folder, record)
        self._show(record, folder, written)
        return _EXIT_CODES[record["verdict"]]

    def _prepare(self) -> tuple[list, list, Any]:
        import jax

        from implicit_reg import predictions, problems

        settings = predictions.OrderCheck(self.step_sizes, self.time)
        if self.method is None:
            rows = [predictions.find(name) for name in dict.fromkeys(self.only or predictions.ROWS)]
        elif self.only:
            raise ValueError("--only names predictions of the table and --method your own; give one of them")
        else:
            rows = [predictions.own_method(self.method, problems.load_attribute("verify", "--method", self.method))]
        with jax.enable_x64(True):
            losses = [
                problems.load_problem(name, seed=self.seed, dtype="float64")
                for name in dict.fromkeys(self.problem or predictions.DEFAULT_LOSSES)
            ]
        for row in rows:
            for loss in losses:
                predictions.check_applicable(row, loss)
        return rows, losses, settings

    def _measure(self, rows, losses, settings) -> dict[str, Any]:
        import jax

        from implicit_reg import predictions, problems

        total = len(rows) * len(losses) * predictions.NUM_STAGES + 1
        with _common.progress(total, self) as bar:

            def report(what: str) -> None:
                bar.set_description_str(what)
                bar.update()

            checks = [predictions.check_orders(row, losses, settings, report=report) for row in rows]
            report("trajectories on the two-parameter loss")
            with jax.enable_x64(True):
                factorization = problems.load_problem("factorization-stiff", dtype="float64")
            pictures = predictions.two_parameter_trajectories(rows, factorization)
        verdict = predictions.worst(check["verdict"] for check in checks)
        return {"verdict": verdict, "checks": checks, "trajectories": pictures}

    def _show(self, record: dict[str, Any], folder, written: list[str]) -> None:
        if self.json:
            answer = {key: record[key] for key in ("verdict", "checks", "wall_seconds", "environment", "config")}
            print(_common.to_json({**answer, "folder": str(folder)}), end="")
            return
        if self.quiet:
            return
        from rich.table import Table
        from rich.text import Text

        console = _common.console()
        table = Table(title="Do the iterates follow their modified equation?", title_justify="left")
        for name in ("prediction", "modified loss", "terms", "expected", "measured", "worst on", "verdict"):
            table.add_column(name, justify="right" if name in ("terms", "expected", "measured") else "left")
        for check in record["checks"]:
            for k, (expected, measured) in enumerate(zip(check["expected"], check["measured"], strict=True)):
                first = k == 0
                table.add_row(
                    check["name"] if first else "",
                    check["details"]["formula"] if first else "",
                    str(k + 1),
                    str(expected),
                    "-" if measured is None else f"{measured:.3f}",
                    _worst_loss(check, k),
                    Text(check["verdict"], style=_STYLES[check["verdict"]]) if first else "",
                    end_section=k + 1 == len(check["expected"]),
                )
        console.print(table)
        for check in record["checks"]:
            for line in _reasons(check):
                console.print(f"  {line}", soft_wrap=True)
        counts = {verdict: sum(check["verdict"] == verdict for check in record["checks"]) for verdict in _STYLES}
        console.print("Wrote " + ", ".join(written) + f" to {folder}", soft_wrap=True)
        console.print(
            f"{counts['holds']} hold, {counts['fails']} fail, {counts['could not measure']} could not be measured; "
            f"{record['wall_seconds']:.0f} s; report: {folder / 'report.html'}",
            soft_wrap=True,
        )


_EXIT_CODES = {
    "holds": _common.EXIT_OK,
    "fails": _common.EXIT_FAILED,
    "could not measure": _common.EXIT_UNMEASURED,
}
_STYLES = {"holds": "green", "fails": "bold red", "could not measure": "yellow"}


def _worst_loss(check: dict[str, Any], k: int) -> str:
    """The loss on which the order deviates most, or could not be measured."""

    def deviation(loss: dict[str, Any]) -> float:
        measured = loss["truncations"][k]["fixed_time"]["measured"]
        return float("inf") if measured is None else abs(measured - check["expected"][k])

    return max(check["details"]["losses"], key=deviation)["name"]


def _reasons(check: dict[str, Any]) -> list[str]:
    """Why a check does not hold, a line for each finding."""
    lines = []
    for loss in check["details"]["losses"]:
        where = f"{check['name']} on {loss['name']}"
        for pin, what in (("update", "update against its published formula"), ("leading", "published correction")):
            if pin in loss and loss[pin]["verdict"] != "holds":
                lines.append(f"{where}: {what}: relative error {loss[pin]['error']}, {loss[pin]['verdict']}")
        for truncation in loss["truncations"]:
            for kind, name in (("one_step", "one step"), ("fixed_time", "fixed time")):
                if truncation[kind]["reason"]:
                    lines.append(f"{where}, {truncation['terms']} terms, {name}: {truncation[kind]['reason']}")
    return lines


def _write(folder, record: dict[str, Any]) -> list[str]:
    """Numbers first, then the figures and the report made of them."""
    from implicit_reg import plots, report

    _common.write_atomic(folder / "results.json", _common.to_json(record))
    figures = plots.verify_figures(record)
    for name, figure in figures.items():
        _common.write_atomic(folder / "figures" / f"{name}.png", plots.to_png(figure))
    pictures = {name: plots.to_svg(figure, name) for name, figure in figures.items()}
    _common.write_atomic(folder / "report.html", report.verify_report(record, pictures))
    return ["config.json", "results.json", "report.html", f"{len(figures)} figures"]
