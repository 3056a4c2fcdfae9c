"""One compiled program for many runs: a fixed number of lanes per device, whatever is swept and on how many devices.

Ways to compile a sweep: (1) vmap over all runs; (2) one `lax.map`; (3) vmap over lanes of a fixed width, called again
and again. (1) holds everything in memory, and its bits change with the number of runs; (2) gives each run the bits of a
program of its own, and no vectorization. We do (3): the bits of a run depend on the width and on nothing else.

Ways to use several devices: (1) `shard_map` over them; (2) the same program on each. With (1) XLA optimizes a
partitioned program otherwise than a whole one: a ReLU network under Adam in float32 ended elsewhere on two devices than
on one. We do (2); it costs a compilation per device, and these run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from implicit_reg._convolutions import canonical_convolutions
from implicit_reg.experiments.axes import SEED, Runs
from implicit_reg.experiments.results import named_leaves


def sweep_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis for `sweep`, over all devices of all processes, or over the first of them.

    Args:
      num_devices: how many; None takes all.

    Returns:
      The mesh, its axis called "runs".

    Raises:
      ValueError: fewer devices are there; on a CPU their number is set before JAX starts.

    Example:
      >>> sweep_mesh(1).shape["runs"]
      1
    """
    available = jax.devices()
    num_devices = len(available) if num_devices is None else num_devices
    if isinstance(num_devices, bool) or not isinstance(num_devices, int) or num_devices < 1:
        raise ValueError(f"sweep_mesh: `num_devices` must be an int of at least 1, got {num_devices!r}")
    if num_devices > len(available):
        raise ValueError(
            f"sweep_mesh: `num_devices` must be at most the {len(available)} that JAX has, got {num_devices}; on a CPU "
            f"call jax.config.update('jax_num_cpu_devices', {num_devices}) before anything else of JAX"
        )
    return jax.make_mesh((num_devices,), ("runs",), axis_types=(AxisType.Auto,), devices=available[:num_devices])


class Lanes:
    """The compiled program of all runs that differ in operands only.

    Args:
      fn: `fn(key, **settings) -> pytree of arrays`.
      runs: all runs of the sweep.
      row: one of the runs of this program.
      key: the root key.
      width: lanes per device.
      mesh: the devices, or None for the default one.
    """

    def __init__(self, fn: Callable[..., Any], runs: Runs, row: int, key: jax.Array, width: int, mesh: Mesh | None):
        self._runs, self._width = runs, width
        self._devices = [_default_device()] if mesh is None else list(mesh.devices.flat)
        given = {name: value for name, value in runs.settings[row].items() if name != SEED}
        constants = {name: value for name, value in given.items() if name in runs.constants[row]}
        kinds = {float: jnp.result_type(float), int: jnp.dtype("int32")}
        self._dtypes = {name: kinds[type(value)] for name, value in given.items() if name not in constants}
        self._root, implementation = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
        self._compiled: dict[jax.Device, Any] = {}

        def lane(root, seed, operands):
            own = jax.random.fold_in(jax.random.wrap_key_data(root, impl=implementation), seed)
            return {path: _array(leaf) for path, leaf in named_leaves(fn(own, **constants, **operands)).items()}

        self._lane = lane
        self._program = jax.jit(jax.vmap(canonical_convolutions(lane), in_axes=(None, 0, 0)))

    @property
    def num_blocks(self) -> int:
        """How many blocks of `width` runs one call takes, over all processes."""
        return len(self._devices)

    @property
    def num_local(self) -> int:
        """How many of them this process takes."""
        return sum(device.process_index == jax.process_index() for device in self._devices)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each output of one run; nothing is computed, and the trace serves the compilation too."""
        lanes = {name: jax.ShapeDtypeStruct((self._width,), dtype) for name, dtype in self._dtypes.items()}
        seeds = jax.ShapeDtypeStruct((self._width,), jnp.uint32)
        root = jax.ShapeDtypeStruct(self._root.shape, self._root.dtype)
        outputs = self._program.eval_shape(root, seeds, lanes)
        return {path: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for path, leaf in outputs.items()}

    def device_bytes(self) -> int | None:
        """Arguments, outputs and temporaries of a call on one device; None where no program is compiled here yet, or
        where its compiler does not say."""
        known = [program.memory_analysis() for program in self._compiled.values()]
        return max(
            (m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes for m in known if m is not None),
            default=None,
        )

    def prepare(self, blocks: Sequence[Sequence[int]]) -> None:
        """Compiles what a call with these blocks needs.

        Args:
          blocks: as of a call.
        """
        self._compile(self._placed(blocks))

    def __call__(self, blocks: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Runs up to `num_blocks` blocks of at most `width` rows, each on a device of its own.

        Args:
          blocks: the rows; with several processes the same ones in each.

        Returns:
          Path to array; leading axis: all the rows, in order; in every process.
        """
        arguments = self._placed(blocks)
        self._compile(arguments)
        # All are started before the first is waited for.
        started = {k: self._compiled[self._devices[k]](*placed) for k, placed in arguments.items()}
        outputs = {k: jax.tree.map(np.asarray, outputs) for k, outputs in started.items()}
        if jax.process_count() > 1:
            outputs = self._exchange(outputs, len(blocks))
        return {
            path: np.concatenate([outputs[k][path][: len(block)] for k, block in enumerate(blocks)])
            for path in outputs[0]
        }

    def _placed(self, blocks: Sequence[Sequence[int]]) -> dict[int, tuple]:
        """The arguments of the blocks that this process computes, on their devices."""
        here = jax.process_index()
        mine = [k for k in range(len(blocks)) if self._devices[k].process_index == here]
        return {k: jax.device_put(self._arguments(blocks[k]), self._devices[k]) for k in mine}

    def _arguments(self, block: Sequence[int]) -> tuple:
        rows = list(block) + [block[-1]] * (self._width - len(block))
        operands = {
            name: np.array([self._runs.settings[row][name] for row in rows], dtype)
            for name, dtype in self._dtypes.items()
        }
        return self._root, np.array([self._runs.seed(row) for row in rows], np.uint32), operands

    def _compile(self, arguments: Mapping[int, tuple]) -> None:
        """Compiles where there is no program yet, side by side; tracing stays in this thread, as x64 belongs to it."""
        traced = {
            self._devices[k]: self._program.lower(*placed)
            for k, placed in arguments.items()
            if self._devices[k] not in self._compiled
        }
        if len(traced) == 1:
            self._compiled |= {device: program.compile() for device, program in traced.items()}
        elif traced:
            with ThreadPoolExecutor() as pool:
                compiled = pool.map(lambda program: program.compile(), traced.values())
                self._compiled |= dict(zip(traced, compiled, strict=True))

    def _exchange(self, outputs: dict[int, dict[str, np.ndarray]], num_blocks: int) -> dict[int, dict[str, np.ndarray]]:
        """The blocks of all processes, in all processes."""
        from jax.experimental import multihost_utils

        owners = [self._devices[k].process_index for k in range(num_blocks)]
        most = max(owners.count(process) for process in set(owners))
        empty = {path: np.zeros((self._width, *shape.shape), shape.dtype) for path, shape in self.shapes().items()}
        mine = [*outputs.values()] + [empty] * (most - len(outputs))
        gathered = multihost_utils.process_allgather(
            {path: np.stack([block[path] for block in mine]) for path in empty}
        )
        place = {k: owners[:k].count(owners[k]) for k in range(num_blocks)}
        return {
            k: {path: np.asarray(leaf[owners[k], place[k]]) for path, leaf in gathered.items()}
            for k in range(num_blocks)
        }


def _default_device() -> jax.Device:
    return jnp.zeros(()).devices().pop()


def _array(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
