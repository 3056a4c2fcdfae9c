"""Sweeps that survive, statistics for them, and the papers' experiments run again."""

from __future__ import annotations

from implicit_reg.experiments.axes import static
from implicit_reg.experiments.lanes import sweep_mesh
from implicit_reg.experiments.papers import REPRODUCTIONS, load_reproduction
from implicit_reg.experiments.planning import SweepMemory, estimate_memory
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table, reproduce
from implicit_reg.experiments.results import SweepResult
from implicit_reg.experiments.steps import Steps, run_steps, shuffled_batches
from implicit_reg.experiments.sweeping import Progress, SweepStoppedError, load_sweep, sweep

__all__ = [
    "REPRODUCTIONS",
    "Criterion",
    "Findings",
    "Lab",
    "Progress",
    "Reproduction",
    "Steps",
    "SweepMemory",
    "SweepResult",
    "SweepStoppedError",
    "Table",
    "estimate_memory",
    "load_reproduction",
    "load_sweep",
    "reproduce",
    "run_steps",
    "shuffled_batches",
    "static",
    "sweep",
    "sweep_mesh",
]
