"""One compiled program for many runs: a fixed number of lanes per device, whatever is swept and on how many devices.

Ways to compile a sweep: (1) vmap over all runs; (2) one `lax.map`; (3) vmap over lanes of a fixed width, called again
and again, `shard_map` over the devices. (1) holds everything in memory, and its bits change with the number of runs;
(2) gives each run the bits of a program of its own, and no vectorization. We do (3): the bits of a run depend on the
width and on nothing else, because each device always sees the same program of `width` lanes; padding fills the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

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
        self._runs, self._width, self._mesh = runs, width, mesh
        given = {name: value for name, value in runs.settings[row].items() if name != SEED}
        constants = {name: value for name, value in given.items() if name in runs.constants[row]}
        kinds = {float: jnp.result_type(float), int: jnp.dtype("int32")}
        self._dtypes = {name: kinds[type(value)] for name, value in given.items() if name not in constants}
        self._root, implementation = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
        self._compiled: Any = None

        def lane(root, seed, operands):
            own = jax.random.fold_in(jax.random.wrap_key_data(root, impl=implementation), seed)
            return {path: _array(leaf) for path, leaf in named_leaves(fn(own, **constants, **operands)).items()}

        self._lane = lane
        vectorized = jax.vmap(lane, in_axes=(None, 0, 0))
        if mesh is None:
            self._program = jax.jit(vectorized)
        else:
            lanes = P(mesh.axis_names)
            self._program = jax.jit(
                jax.shard_map(vectorized, mesh=mesh, in_specs=(P(), lanes, lanes), out_specs=lanes, check_vma=False)
            )

    @property
    def num_blocks(self) -> int:
        """How many blocks of `width` runs one call takes."""
        return 1 if self._mesh is None else self._mesh.size

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each output of one run; nothing is computed."""
        scalar = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in self._dtypes.items()}
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        root = jax.ShapeDtypeStruct(self._root.shape, self._root.dtype)
        return jax.eval_shape(self._lane, root, seed, scalar)

    def __call__(self, blocks: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Runs up to `num_blocks` blocks of at most `width` rows.

        Args:
          blocks: the rows.

        Returns:
          Path to array; leading axis: all the rows, in order.
        """
        padded = [list(block) + [block[-1]] * (self._width - len(block)) for block in blocks]
        padded += [padded[-1]] * (self.num_blocks - len(padded))
        rows = [row for block in padded for row in block]
        seeds = np.array([self._runs.seed(row) for row in rows], np.uint32)
        operands = {
            name: np.array([self._runs.settings[row][name] for row in rows], dtype)
            for name, dtype in self._dtypes.items()
        }
        arguments = self._place((self._root, seeds, operands))
        if self._compiled is None:
            self._compiled = self._program.lower(*arguments).compile()
        outputs = self._fetch(self._compiled(*arguments))
        kept = np.concatenate([np.arange(len(block)) + k * self._width for k, block in enumerate(blocks)])
        return {path: leaf[kept] for path, leaf in outputs.items()}

    def _place(self, arguments: tuple) -> tuple:
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, arguments)
        whole = NamedSharding(self._mesh, P())
        lanes = NamedSharding(self._mesh, P(self._mesh.axis_names))

        def put(value, sharding):  # each process fills the shards of its own devices
            return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

        root, seeds, operands = arguments
        return put(root, whole), put(seeds, lanes), {name: put(value, lanes) for name, value in operands.items()}

    def _fetch(self, outputs: dict[str, jax.Array]) -> dict[str, np.ndarray]:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            outputs = multihost_utils.process_allgather(outputs, tiled=True)
        return {path: np.asarray(leaf) for path, leaf in outputs.items()}


def _array(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
