"""What a dimension of the scaling benchmark is made of: points, the model fitted to them, what it says beyond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import measure
import numpy as np
from scipy.optimize import nnls


class Model(NamedTuple):
    """`y = a + c sqrt(x) + b x`, or `y = a b^x` where `geometric`.

    Attributes:
      a, b, c: the coefficients.
      geometric: which form.
      residual: the largest relative error at the points that it was fitted to.
      since: the least of their x.
    """

    a: float
    b: float
    c: float
    geometric: bool
    residual: float
    since: float

    def __call__(self, x: float) -> float:
        return self.a * self.b**x if self.geometric else self.a + self.c * x**0.5 + self.b * x

    def __str__(self) -> str:
        if self.geometric:
            form = f"{self.a:.3g} * {self.b:.3g}^x"
        else:
            terms = ((self.a, ""), (self.c, " sqrt(x)"), (self.b, " x"))
            form = " + ".join(f"{value:.3g}{power}" for value, power in terms if value) or "0"
        return f"{form}; from {count(self.since)} on, within {100 * self.residual:.2g} %"


class Series(NamedTuple):
    """One curve of a dimension.

    Attributes:
      name: unique in its dimension.
      unit: of `y`.
      x, y: what was measured, or counted by the compiler.
      model: fitted to it; None where no form is claimed.
      beyond: where the model is read outside of what was measured.
      limit: y at each x and beyond as theory has it; empty where it says nothing.
    """

    name: str
    unit: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    model: Model | None = None
    beyond: tuple[float, ...] = ()
    limit: tuple[float, ...] = ()

    def at(self, x: float) -> float | None:
        """Measured there, or else as the model says; None where nothing was measured."""
        if x in self.x:
            return self.y[self.x.index(x)]
        return None if self.model is None else self.model(x)


class Dimension(NamedTuple):
    """How cost grows along one axis.

    Attributes:
      title: what grows.
      axis: what x counts.
      series: the curves.
      rows: ratios with their limits.
    """

    title: str
    axis: str
    series: tuple[Series, ...]
    rows: tuple[measure.Row, ...]


def linear(x: Sequence[float], y: Sequence[float], *, since: float = 0, root: bool = False) -> Model | None:
    """`a + b x`, with `root` `a + c sqrt(x) + b x`, none of them negative, by least squares of the *relative* errors.

    Each decade counts as much as another, from `since` on. Activations grow as the root of the parameters.
    """
    kept = [(u, v) for u, v in zip(x, y, strict=True) if u >= since]
    if len(kept) < 2:
        return None
    x, y = np.array(kept, float).T
    scale = x.max()  # columns of like size
    columns = [np.ones_like(x), x / scale] + [np.sqrt(x / scale)] * root
    found, _ = nnls(np.stack(columns, axis=1) / y[:, None], np.ones(len(x)))
    a, b, c = (*found.tolist(), 0.0)[:3]
    model = Model(a, b / scale, c / scale**0.5, False, 0.0, float(x.min()))
    return model._replace(residual=_residual(model, x, y))


def geometric(x: Sequence[float], y: Sequence[float]) -> Model | None:
    """`a b^x`, by least squares of the logarithms."""
    if len(x) < 2:
        return None
    x, y = np.asarray(x, float), np.asarray(y, float)
    slope, level = np.polyfit(x, np.log(y), 1)
    found = Model(float(np.exp(level)), float(np.exp(slope)), 0.0, True, 0.0, float(x.min()))
    return found._replace(residual=_residual(found, x, y))


def _residual(model: Model, x: np.ndarray, y: np.ndarray) -> float:
    return max(abs(model(a) - b) / b for a, b in zip(x.tolist(), y.tolist(), strict=True))


def timed(
    name: str, places: Sequence[float], costs: Mapping[Any, measure.Cost], *, since: float = 0, **more: Any
) -> Series | None:
    """CPU seconds of the programs that were timed as (name, x); None where none was."""
    x = tuple(k for k in places if (name, k) in costs)
    if not x:
        return None
    y = tuple(costs[name, k].cpu_seconds for k in x)
    return Series(name, "cpu s", x, y, linear(x, y, since=since), **more)


def total_bytes(compiled: Any) -> float:
    """Arguments, results and temporaries of a compiled program, on each device."""
    memory = compiled.memory_analysis()
    return float(memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes)


def ratio(
    work: str, value: float | None, unit: str, clock: str, limit: float | None = None, note: str = ""
) -> measure.Row:
    """A row; without a value it says that it was not timed."""
    return measure.Row(work, value, unit, clock, limit, note=note if value is not None else "not timed")


def count(x: float) -> str:
    """1 to 9999 as they are, larger ones as powers of ten."""
    if x < 10_000:
        return f"{x:g}"
    exponent = int(np.floor(np.log10(x) + 1e-9))
    lead = x / 10**exponent
    return f"10^{exponent}" if abs(lead - 1) < 0.05 else f"{lead:.2g}*10^{exponent}"


def quantity(y: float | None, unit: str) -> str:
    """A number with its unit, in a size that reads well."""
    if y is None:
        return "-"
    if unit.endswith(" s"):
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
            if y * factor >= 1:
                return (
                    f"{y * factor:.3g} {name}" if y < 120 else f"{y / 3600:.3g} h" if y >= 7200 else f"{y / 60:.3g} min"
                )
        return f"{y * 1e6:.2g} us"
    if unit == "bytes":
        for factor, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if y >= factor:
                return f"{y / factor:.3g} {name}"
        return f"{y:.0f} B"
    return f"{count(y) if y >= 10_000 else f'{y:.3g}'} {unit}"


def dimension_table(dimension: Mapping[str, Any]) -> str:
    """A dimension as `data` has it, in Markdown; what is read from a model stands in brackets."""
    series = series_of(dimension)
    places = sorted({x for s in series for x in (*s.x, *s.beyond)})
    rows = []
    for s in series:
        cells = [
            quantity(s.at(x), s.unit) if x in s.x else f"({quantity(s.at(x), s.unit)})" if x in s.beyond else ""
            for x in places
        ]
        rows.append([f"{s.name}, {s.unit}", *cells, str(s.model or "")])
    header = [dimension["axis"], *(count(x) for x in places), "model"]
    return f"{dimension['title']}\n\n{measure.markdown(header, rows)}"


def series_of(dimension: Mapping[str, Any]) -> list[Series]:
    """The curves of a dimension as `data` has it."""
    found = []
    for stored in dimension["series"]:
        lists = {name: tuple(stored[name]) for name in ("x", "y", "beyond", "limit")}
        found.append(Series(**{**stored, **lists, "model": stored["model"] and Model(**stored["model"])}))
    return found


def as_data(dimension: Dimension) -> dict[str, Any]:
    """Without the rows, ready for JSON."""
    series = [
        {
            **s._asdict(),
            "x": list(s.x),
            "y": list(s.y),
            "beyond": list(s.beyond),
            "limit": list(s.limit),
            "model": s.model and s.model._asdict(),
        }
        for s in dimension.series
    ]
    return {"title": dimension.title, "axis": dimension.axis, "series": series}
