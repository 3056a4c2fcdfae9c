"""Which benchmarks there are, in the order of the table; read without importing JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """One benchmark.

    Attributes:
      module: the module beside this one whose `run(effort, *arguments)` it is.
      title: what is measured.
      arguments: those of `run`.
      cores: how many it is pinned to; None for all.
      environment: variables that are set before JAX is imported.
    """

    module: str
    title: str
    arguments: tuple[str, ...] = ()
    cores: int | None = None
    environment: Mapping[str, str] = {}


BENCHMARKS: Mapping[str, Entry] = {
    "steps-mlp": Entry("step_cost", "one training step, MLP 784-512-512-10, batch 128", ("mlp",), cores=1),
    "steps-conv": Entry("step_cost", "one training step, two 3x3 convolutions, batch 64", ("conv",), cores=1),
    "steps-transformer": Entry("step_cost", "one training step, a transformer block", ("transformer",), cores=1),
    "fields": Entry("fields", "fields of modified equations"),
    "descent": Entry("descent", "many steps in one program", cores=1),
    "loops": Entry("conv_loops", "steps of a convolution network in loops", cores=1),
    "integration": Entry("integration", "flows, at equal error", cores=1),
    "eigenvalues": Entry("eigenvalues", "the largest eigenvalues of the Hessian, at equal error", cores=1),
    "sweeps": Entry("sweeps", "256 small runs", cores=1),
    "sweep-memory": Entry("sweep_memory", "what a sweep holds", cores=1),
    "sweep-devices": Entry("sweep_devices", "lanes on two devices", environment={"JAX_NUM_CPU_DEVICES": "2"}),
    "sweep-bits": Entry("sweep_bits", "which bits of a sweep stay", environment={"JAX_NUM_CPU_DEVICES": "4"}),
    "torch-mlp": Entry("torch_steps", "one training step against PyTorch, MLP", ("mlp",), cores=1),
    "torch-conv": Entry("torch_steps", "one training step against PyTorch, convolutions", ("conv",), cores=1),
    "torch-transformer": Entry(
        "torch_steps", "one training step against PyTorch, transformer", ("transformer",), cores=1
    ),
    "startup": Entry("startup", "imports, --help, verify"),
    "scaling-kernels": Entry("scaling", "how cost grows: parameters, order", ("parameters", "order")),
    "scaling-runs": Entry("scaling", "how cost grows: step sizes, runs, orders", ("step-sizes", "runs", "minibatches")),
    "scaling-machines": Entry(
        "scaling", "devices, processes", ("devices", "processes"), environment={"JAX_NUM_CPU_DEVICES": "8"}
    ),
    "gpu": Entry("gpu", "a transformer block of real size, sweeps of thousands: on a GPU"),
}
