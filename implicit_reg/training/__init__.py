"""Training on real data: settings, programs of pure functions, runs, comparisons, checkpoints.

Names are imported when they are first used: `Settings` is wanted by `--help`, which does not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Advice": "diagnosis",
    "Arrays": "program",
    "Best": "program",
    "Candidate": "comparison",
    "Diagnosis": "diagnosis",
    "Entrant": "comparison",
    "Further": "remedies",
    "History": "runs",
    "Knobs": "program",
    "Program": "program",
    "Run": "runs",
    "Settings": "settings",
    "TrainState": "program",
    "Verdict": "diagnosis",
    "base_optimizer": "optimizers",
    "compete": "comparison",
    "decay_mask": "optimizers",
    "decoupled_weight_decay": "optimizers",
    "diagnose": "diagnosis",
    "diagnose_further": "remedies",
    "enter": "comparison",
    "everyday_base": "optimizers",
    "expected_calibration_error": "calibration",
    "find_method": "lookup",
    "fit": "runs",
    "grid": "comparison",
    "load_data": "lookup",
    "mean_loss": "metrics",
    "noise_entropy": "calibration",
    "optimizer_names": "optimizers",
    "results": "runs",
    "schedule_shape": "optimizers",
    "score": "metrics",
    "stack_data": "comparison",
    "summarize": "comparison",
    "to_arrays": "program",
    "worst_share": "calibration",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
