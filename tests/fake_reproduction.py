"""Published experiments that take no time, for the tests of everything around the real ones."""

import dataclasses
import os
import sys
import time
import types

import jax
import numpy as np

from implicit_reg.experiments import Criterion, Findings, Reproduction, Table, papers
from implicit_reg.plots import papers as pictures
from implicit_reg.plots.style import new_figure


@dataclasses.dataclass(frozen=True)
class Settings:
    """The two criteria hold where `target` is the mean of the squares of 1 to `last`, or at least below 100."""

    last: int = 4
    target: float = 7.5


def make(name, settings=None, *, send=None, fail=None):
    """A reproduction of two sweeps; `send` is a signal that arrives between them, `fail` an error of its last step."""

    def measure(settings, lab):
        lab.report("thinking")
        axes = {"x": [float(x) for x in range(1, settings.last + 1)]}
        squares = lab.sweep("squares", lambda key, x: x * x, axes, key=jax.random.key(0), width=2, chunk=2)
        if send is not None:
            os.kill(os.getpid(), send)
            time.sleep(0.3)  # another thread hears it
        cubes = lab.sweep("cubes", lambda key, x: x * x * x, axes, key=jax.random.key(0), width=4)
        if fail is not None:
            raise fail
        mean = float(np.mean(squares["value"]))
        rows = tuple((f"run {k}", float(x), k, None) for k, x in enumerate(squares["value"]))
        return Findings(
            {"mean": mean, "target": settings.target, "unknown": float("nan")},
            (Table("Squares | of [x]", ("run", "x^2", "k", "empty"), rows),),
            {"x": axes["x"], "cubes": cubes["value"]},
            ("Nothing is shown for <b>x</b> > 4.",),
        )

    scale = settings or Settings()
    return Reproduction(
        name=name,
        claim=f"The squares of {name} have the mean that <script>they</script> should.",
        source="[smith2021], figure [1]",
        reported="The paper's number is not known here.",
        criteria=(
            Criterion("the mean is the target", lambda n: n["mean"] == n["target"]),
            Criterion("the target is below 100", lambda n: n["target"] < 100),
        ),
        scales={"test": dataclasses.replace(scale, last=2), "fast": scale, "full": scale},
        measure=measure,
    )


def draw(record):
    with pictures.page(record, height=2.0, title="Squares") as figure:
        ax = figure.subplots()
        ax.plot(record["curves"]["x"], record["curves"]["cubes"], label="cubes")
        pictures.end_labels(ax)
    return figure


def blank(record):
    return new_figure(1, 1, layout=None)


def install(monkeypatch, *reproductions, draw=blank):
    """Makes these the only published experiments; nearly all of their time would go into pictures.

    What is removed comes back in the reverse of the order in which it went, and the order of the names is public.
    """
    monkeypatch.setitem(sys.modules, f"{pictures.__name__}.fake", types.SimpleNamespace(draw=draw))
    names = [each.name for each in reproductions]
    for each in reproductions:
        module = types.SimpleNamespace(REPRODUCTION=each)
        monkeypatch.setitem(sys.modules, f"{papers.__name__}.fake_{each.name}", module)
    replaced = {name: f"fake_{name}" for name in names}
    for mapping, new in ((papers.REPRODUCTIONS, replaced), (pictures.FIGURES, dict.fromkeys(names, "fake"))):
        for name in reversed(list(mapping)):
            monkeypatch.delitem(mapping, name)
        for name, value in new.items():
            monkeypatch.setitem(mapping, name, value)
