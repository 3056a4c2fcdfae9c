"""One file for each published experiment that can be run again: its recipe, its criterion, its scales."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from implicit_reg import _checks
from implicit_reg.experiments.reproduction import Reproduction

REPRODUCTIONS: Mapping[str, str] = {
    "flooding-synthetic": "flooding_synthetic",
    "flooding-digits": "flooding_digits",
    "flooding-slow-flow": "flooding_slow_flow",
    "igr-two-parameter": "igr_two_parameter",
    "igr-mlp": "igr_mlp",
    "sgd-permutations": "sgd_permutations",
    "sgd-temperature": "sgd_temperature",
    "backstitch": "backstitch",
    "batch-size": "batch_size",
    "curriculum": "curriculum",
    "momentum": "momentum",
    "adam": "adam",
    "edge-of-stability": "edge_of_stability",
    "principal-flow": "principal_flow",
}
"""Name on the command line to file in this folder; each holds a `REPRODUCTION`."""


def load_reproduction(name: str) -> Reproduction:
    """A published experiment by name.

    Args:
      name: one of `REPRODUCTIONS`.

    Returns:
      The record; nothing is run.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> load_reproduction("principal-flow").name
      'principal-flow'
    """
    if name not in REPRODUCTIONS:
        raise _checks.unknown_name("reproduce", "experiment", name, REPRODUCTIONS)
    return importlib.import_module(f"{__name__}.{REPRODUCTIONS[name]}").REPRODUCTION
