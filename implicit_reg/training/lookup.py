"""What the words of the settings stand for: a row of the table of methods, its hyperparameters, a data set."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from implicit_reg import _checks
from implicit_reg.methods import METHODS, Method
from implicit_reg.problems import Dataset, load_attribute, load_dataset
from implicit_reg.problems.data import DATASETS
from implicit_reg.training.settings import Settings


def find_method(name: str) -> Method:
    """A row of the table of methods, or a user's own.

    Args:
      name: a key of `METHODS`, or "module:attribute": a `Method`, or a function `(base, learning_rate,
        **hyperparameters) -> transformation` whose keywords have defaults. A function is billed one gradient per step,
        unless it has an attribute `gradients_per_step` (a number, or a function of the hyperparameters).

    Returns:
      The row.

    Raises:
      ValueError: for an unknown name (the message lists the known ones and the nearest).
      TypeError: where "module:attribute" is something else.

    Example:
      >>> find_method("sam").hyperparameters
      {'radius': 0.05}
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise _checks.unknown_name("train", "method", name, [*METHODS, "module:attribute"])
    value = load_attribute("train", "method", name)
    if isinstance(value, Method):
        return value
    _checks.check_callable("train", "method", value, "(base, learning_rate, **hyperparameters) -> transformation")
    parameters = list(inspect.signature(value).parameters.values())[2:]
    missing = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if missing:
        raise TypeError(f"train: method {name}: the hyperparameters {', '.join(missing)} need defaults")
    cost = getattr(value, "gradients_per_step", 1.0)
    return Method(
        name=name,
        title=name,
        build=value,
        hyperparameters={p.name: p.default for p in parameters if p.default is not p.empty},
        gradients_per_step=cost if callable(cost) else lambda **hyper: float(cost),
        claim="",
        modified_loss="",
        source="",
        formula=lambda *arguments, **hyper: None,
    )


def method_hyper(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's hyperparameters: defaults, overruled by those given.

    Args:
      method: a row of the table.
      given: names to values.

    Returns:
      All names to values.

    Raises:
      ValueError: for a name that the method does not have.

    Example:
      >>> method_hyper(find_method("backstitch"), {"alpha": 1.0})
      {'alpha': 1.0, 'interval': 1, 'offset': 0}
    """
    hyper = dict(method.hyperparameters)
    for name, value in given.items():
        if name not in hyper:
            known = list(hyper) or ["none at all"]
            raise _checks.unknown_name(f"train: method {method.name}", "hyperparameter", name, known)
        # `level=1` is traced as `level=1.0` is, where the default says that the number is a floating one.
        hyper[name] = float(value) if is_traced(hyper[name]) and type(value) is int else value
    return hyper


def load_data(settings: Settings) -> Dataset:
    """The data set that the settings name, split, scaled and with label noise.

    Args:
      settings: `data`, `scaling`, `label_noise` and the seeds are read.

    Returns:
      A `Dataset`; a user's own, from module:attribute, is taken as it is.

    Raises:
      ValueError: as `load_dataset`, and for scaling or noise asked of a user's own data.
      TypeError: where module:attribute is not a `Dataset`.

    Example:
      >>> load_data(Settings(data="wine")).num_classes
      3
    """
    seed = settings.seed if settings.split_seed is None else settings.split_seed
    if ":" not in settings.data:
        if settings.data not in DATASETS:
            raise _checks.unknown_name("train", "data set", settings.data, [*DATASETS, "module:attribute"])
        return load_dataset(settings.data, seed=seed, scaling=settings.scaling, label_noise=settings.label_noise)
    if settings.label_noise or settings.scaling not in ("standard", "none"):
        raise ValueError("train: a data set of your own is taken as it is: leave scaling and label noise at defaults")
    value = load_attribute("train", "data set", settings.data)
    value = value if isinstance(value, Dataset) or not callable(value) else value()
    if not isinstance(value, Dataset):
        raise TypeError(
            f"train: {settings.data} must be an implicit_reg.problems.Dataset, or a function that returns one; got "
            f"{type(value).__name__}"
        )
    return value


def is_traced(value: Any) -> bool:
    """Whether a hyperparameter is a floating number, which may be traced; integers and `None` decide the program.

    Args:
      value: a hyperparameter.

    Returns:
      Whether it is a float.

    Example:
      >>> is_traced(0.3), is_traced(2), is_traced(None)
      (True, False, False)
    """
    return isinstance(value, float)
