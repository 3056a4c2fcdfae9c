"""One training step against PyTorch, eager and as one compiled graph: the same method on the same numbers.

Both libraries get the same parameters and batch, each in the layouts that it prefers (`torch_models`), and as many
threads as this process has cores. Before anything is timed the step of every eager route meets ours in float64, and
what is timed meets it in float32; a compiled route that does not is named in its row and not timed. Ours are the
methods of the table on `optax.sgd`, whose steps `step_cost` holds against the published formulas.

A row is the time of PyTorch over ours: above 1 ours is faster. XLA's CPU convolution is slow where the image has one
channel; the same layer as a product with patches is not, and PyTorch is compared with both. The last rows are the parts
of a gradient descent step alone (`torch_parts`): which of them PyTorch, at its best, is ahead in, and by how much.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax

from implicit_reg import losses
from implicit_reg.descent import optimizer_step
from implicit_reg.methods import METHODS

LEARNING_RATE = 0.05
NAMES = ("gd", "flooding", "backstitch", "sam", "gradient-penalty", "finite-difference-penalty")
# A step and its twin in another library differ by the round-off of sums. In float32 the displacement is a difference
# of parameters that are a thousand times larger, and loses as many digits.
FLOAT64_TOLERANCE, FLOAT32_TOLERANCE = 1e-9, 1e-3
# Idle threads of OpenMP spin on for about a millisecond, on the cores of whoever is next.
SECONDS_PER_SAMPLE = 0.1
TARGETS: Mapping[str, float] = {"mlp": 1.0, "transformer": 1.0}


class Way(NamedTuple):
    """How our step is written: options of the model, and whether the exact penalty goes by Gram matrices."""

    options: Mapping[str, Any]
    gram: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        return ("gradient-penalty",) if self.gram else NAMES


WAYS: Mapping[str, Mapping[str, Way]] = {
    "mlp": {"ours": Way({}), "ours, Gram matrices": Way({}, gram=True)},
    "conv": {"ours": Way({}), "ours, first layer by patches": Way({"by_patches": 1})},
    "transformer": {"ours": Way({})},
}


def _label(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def our_step(name: str, gram: bool = False) -> tuple[Callable, Callable]:
    """`init(params)` and `step(loss, params, state, batch)` of that row of the methods table."""
    row = METHODS[name]
    plain = optax.sgd(LEARNING_RATE)
    transformation = plain if gram else row.build(optax.sgd, LEARNING_RATE, **row.hyperparameters)

    def step(loss, params, state, batch):
        if gram:
            loss = losses.gradient_penalized(loss, **row.hyperparameters, gram=True)
        return optimizer_step(transformation, loss, params, state, (batch,))

    return transformation.init, step


def _flat(tree: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(tree[name], np.float64)) for name in sorted(tree)])


def _distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def displacements(model: models.Model) -> dict[str, np.ndarray]:
    """What our step adds to the parameters in float64, by method."""
    found = {}
    with jax.enable_x64(True):
        widen = lambda x: jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)  # noqa: E731
        params, batch = jax.tree.map(widen, (dict(model.params), model.batch))
        for name in NAMES:
            init, step = our_step(name)
            after, _ = jax.jit(functools.partial(step, model.loss))(params, init(params), batch)
            found[name] = _flat(after) - _flat(params)
    return found


def our_programs(model: models.Model, expected: Mapping[str, np.ndarray], way: Way) -> dict[str, measure.Program]:
    """Compiled in the dtypes of the model, each after a step that met the one in float64."""
    programs, params = {}, dict(model.params)
    for name in way.methods:
        init, step = our_step(name, way.gram)
        programs[name] = measure.build(functools.partial(step, model.loss), params, init(params), model.batch)
        error = _distance(_flat(programs[name]()[0]) - _flat(params), expected[name])
        if not error <= FLOAT32_TOLERANCE:
            raise measure.IncorrectError(f"on {model.title}: {name} in float32 is {error:.1e} from float64")
    return programs


def eager(make: Callable, what: str, expected: np.ndarray) -> Callable:
    """The program in float32, after it met our step in both precisions; `make(dtype=...)` builds it."""
    for dtype, tolerance in (("float64", FLOAT64_TOLERANCE), ("float32", FLOAT32_TOLERANCE)):
        program = make(dtype=dtype)
        program.run()
        if not (error := _distance(_flat(program.moved()), expected)) <= tolerance:
            raise measure.IncorrectError(f"{what} in PyTorch, {dtype}, is {error:.1e} from ours")
    return program.run


def compiled(make: Callable, expected: np.ndarray, tiny: bool) -> tuple[Callable | None, str]:
    """The program in float32, or None and the reason why it is not to be timed.

    The tiny form runs what would be compiled without compiling it, for each graph costs seconds.
    """
    how = {"dtype": "float64"} if tiny else {"dtype": "float32", "backend": "inductor"}
    try:
        program = make(traceable=True, **how)
        program.run()
    except Exception as error:  # whatever it is: a compiler that refuses a step is a result
        return None, f"torch.compile fails: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"
    error = _distance(_flat(program.moved()), expected)
    if not error <= (FLOAT64_TOLERANCE if tiny else FLOAT32_TOLERANCE):
        return None, f"wrong under torch.compile, by {error:.0e} of the step: not timed"
    return program.run, ""


def part_rows(
    name: str, model: models.Model, steps: Mapping[str, Callable], effort: measure.Effort, clock: str
) -> tuple[list[measure.Row], dict[str, Any]]:
    """The parts of a step of gradient descent, each alone: PyTorch's over ours, and how far they add up.

    `steps` are the whole ones: "ours", and "compiled" or, where that does not work, "eager".
    """
    torch_parts = importlib.import_module("torch_parts")
    _, how = steps
    options = {"traceable": True, "backend": None if effort.tiny else "inductor"} if how == "compiled" else {}
    rows, data, shares = [], {}, {"ours": [], how: []}
    for title, part in torch_parts.parts(name, model, LEARNING_RATE).items():
        programs = {"ours": torch_parts.ours(part), how: torch_parts.theirs(part, **options)}
        if not (error := torch_parts.error(part, programs["ours"](), programs[how]())) <= torch_parts.TOLERANCE:
            raise measure.IncorrectError(f"on {model.title}: {title} in PyTorch is {error:.1e} from ours")
        row = measure.Row(f"parts of gd: {title}, {how}", None, "ours", clock)
        if effort.rounds:
            group = programs | {f"step, {who}": step for who, step in steps.items()}
            costs = measure.interleave(group, unit="ours", rounds=effort.rounds, seconds_per_sample=SECONDS_PER_SAMPLE)
            data[title] = {who: cost._asdict() for who, cost in costs.items()}
            time = {who: getattr(cost, clock) for who, cost in costs.items()}
            note = f"{time['ours'] / time['step, ours']:.2f} of our step; PyTorch's is "
            note += f"{time[how] / time['step, ours']:.2f} of the same"
            row = row._replace(value=time[how], spread=getattr(costs[how], f"{clock}_quartiles"), note=note)
            if torch_parts.PATCHES not in title:
                for who, share in shares.items():
                    share.append(time[who] / time[f"step, {who}"])
        rows.append(row)
    for who, share in shares.items():
        value = sum(share) if effort.rounds else None
        rows.append(measure.Row(f"parts of gd: sum, {who}", value, f"the whole step, {who}", clock))
    return rows, data


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _threads(torch: Any) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(effort: measure.Effort, name: str) -> measure.Report:
    """`name` is that of a model: "mlp", "conv" or "transformer"."""
    torch = measure.peer("torch")
    if torch is None:
        note = "PyTorch is not installed"
        rows = [measure.Row(f"{method}, eager", None, "our step", "wall", note=note) for method in NAMES]
        return measure.Report(tuple(rows), note, {})
    with jax.default_matmul_precision("highest"), _threads(torch):
        return _compare(effort, name)


def _peers(effort: measure.Effort, name: str, model: models.Model, expected: Mapping[str, np.ndarray]) -> tuple:
    """Their programs by method and route, and why some are missing."""
    torch_models = importlib.import_module("torch_models")  # it imports torch
    if not effort.tiny:
        torch_models.torch.compiler.reset()  # its cache holds eight graphs of a function: the seven routes, no more
    programs: dict[str, dict[str, Callable | None]] = {}
    notes: dict[str, str] = {}
    for method, routes in torch_models.ROUTES.items():
        programs[method] = {}
        for how, route in routes.items():
            hyperparameters = METHODS[method].hyperparameters
            make = functools.partial(torch_models.program, name, model, route, LEARNING_RATE, hyperparameters)
            what = f"on {model.title}: {_label(method, how)}"
            programs[method][_label(how, "eager")] = eager(make, what, expected[method])
            found = compiled(make, expected[method], effort.tiny)
            programs[method][_label(how, "compiled")], notes[_label(method, how, "compiled")] = found
    return programs, notes


def _compare(effort: measure.Effort, name: str) -> measure.Report:
    make = (models.TINY if effort.tiny else models.MODELS)[name]
    model = make()
    expected = displacements(model)
    theirs, notes = _peers(effort, name, model, expected)
    clock = "cpu" if cores() == 1 else "wall"
    rows, data, ours = [], {}, {}
    for how, way in WAYS[name].items():
        built = our_programs(make(**way.options), expected, way) if effort.rounds else {}
        ours[how] = built.get("gd")
        data[how] = {}
        for method in way.methods:
            variants = theirs[method]
            costs = {}
            if effort.rounds:
                group = {how: built[method]} | {v: step for v, step in variants.items() if step is not None}
                costs = measure.interleave(group, unit=how, rounds=effort.rounds, seconds_per_sample=SECONDS_PER_SAMPLE)
            data[how][method] = {variant: cost._asdict() for variant, cost in costs.items()}
            for variant in variants:
                row = measure.Row(
                    _label(method, variant, how.partition(", ")[2]),
                    None,
                    how.replace("ours", "our step"),
                    clock,
                    target=TARGETS.get(name),
                    at_least=True,
                    note=notes.get(_label(method, variant), ""),
                )
                if variant in costs:
                    row = row._replace(
                        value=getattr(costs[variant], clock), spread=getattr(costs[variant], f"{clock}_quartiles")
                    )
                rows.append(row)
    how = "eager" if theirs["gd"]["compiled"] is None else "compiled"
    steps = {"ours": ours["ours"], how: theirs["gd"][how]}
    found, data["parts of gd"] = part_rows(name, model, steps, effort, clock)
    return measure.Report((*rows, *found), _details(data, clock), data)


def _details(data: Mapping[str, Mapping[str, Mapping[str, Any]]], clock: str) -> str:
    """Every program over ours of the same method, and over plain gradient descent by the same means."""
    lines = []
    for how, methods in data.items():
        for method, costs in methods.items():
            for variant, cost in costs.items():
                plain = methods.get("gd", {}).get(variant if variant == how else variant.rpartition(", ")[2])
                own = cost[f"{clock}_seconds"] / plain[f"{clock}_seconds"] if plain else None
                lines.append([method, variant, *(measure.number(x) for x in (cost["cpu"], cost["wall"], own))])
    return measure.markdown(["step", "by", "CPU / ours", "wall / ours", f"{clock}, in its own gd steps"], lines)
