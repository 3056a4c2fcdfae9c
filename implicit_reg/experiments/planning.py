"""What a sweep is going to do: its programs, the blocks of runs that they take, and the memory that they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from implicit_reg import _checks
from implicit_reg._types import Axes, Integer, Key, SweptFunction
from implicit_reg.experiments.axes import Runs, describe, make_runs
from implicit_reg.experiments.lanes import Lanes


class SweepMemory(NamedTuple):
    """What a sweep holds at once, in bytes; without the interpreter, the compiler and the code it makes.

    Attributes:
      lane: of a device, for each of the `width` runs of a call.
      device: of each device during a call: arguments, outputs and temporaries of the compiled program.
      devices: how many devices of this process work at once; on a CPU they share its memory.
      host: the results of all runs, and the copies that are made of a chunk.
    """

    lane: int
    device: int
    devices: int
    host: int


class Block(NamedTuple):
    """Rows that share a call of a program: at most `width`."""

    program: int
    rows: tuple[int, ...]


def estimate_memory(
    fn: SweptFunction,
    axes: Axes,
    *,
    key: Key,
    width: Integer = 32,
    chunk: Integer | None = None,
    mesh: Mesh | None = None,
) -> SweepMemory:
    """What a sweep would hold at once: all its programs are compiled, and none is run.

    A device holds the arguments A, outputs O and temporaries T of one call, and the host the results of all N runs and
    up to four copies of a chunk of C runs, while it is joined and written, with o bytes of outputs each:

        device = A + O + T,   host = (N + 4 C) o.

    On a CPU the whole is `devices * device + host`, beside what Python, JAX and the compiler need.

    Args:
      fn: as of `sweep`.
      axes: as of `sweep`.
      key: as of `sweep`.
      width: lanes per device and call; `device` grows with it nearly in proportion.
      chunk: as of `sweep`.
      mesh: as of `sweep`.

    Returns:
      The bytes; of several programs, those of the largest.

    Raises:
      TypeError, ValueError: an argument is not as `sweep` wants it.
      ImplicitRegError: the compiler of this backend does not say what its programs need.

    Example:
      >>> memory = estimate_memory(lambda key, n: (n, n + 1), {"n": range(6)}, key=jax.random.key(0), width=2)
      >>> memory.host == (6 + 4 * 2) * 8, memory.devices, memory.device >= 2 * 8
      (True, 1, True)
    """
    check_shared("estimate_memory", fn, key, width, chunk)
    runs = make_runs(axes)
    programs, blocks = make_plan(fn, runs, key, int(width), mesh)
    shapes = common_shapes(programs, runs, blocks)
    first = {block.program: [block.rows] for block in reversed(blocks)}
    for program, rows in first.items():
        programs[program].prepare(rows)
    memory = memory_of(programs, shapes, len(runs), int(width), blocks_of_chunk(programs, width, chunk))
    if memory is None:
        raise _checks.ImplicitRegError(f"estimate_memory: the compiler for {jax.default_backend()} does not say")
    return memory


def check_shared(function: str, fn: Any, key: Any, width: Any, chunk: Any) -> None:
    """Refuses what neither `sweep` nor `estimate_memory` takes.

    Args:
      function: who says so.
      fn: must be callable.
      key: must be one typed key.
      width: must be a positive int.
      chunk: must be a multiple of it, or None.

    Raises:
      TypeError, ValueError: naming the argument.

    Example:
      >>> check_shared("sweep", abs, jax.random.key(0), 4, 6)
      Traceback (most recent call last):
      ValueError: sweep: `chunk` must be a multiple of width=4, got 6
    """
    _checks.check_callable(function, "fn", fn, "fn(key, **settings) -> pytree of arrays")
    _checks.check_integer(function, "width", width)
    if chunk is not None:
        _checks.check_integer(function, "chunk", chunk)
        if chunk % width:
            raise ValueError(f"{function}: `chunk` must be a multiple of width={width}, got {chunk}")
    if not (isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise TypeError(f"{function}: `key` must be one typed key such as jax.random.key(0), got {key!r}")


def make_plan(
    fn: Callable[..., Any], runs: Runs, key: jax.Array, width: int, mesh: Mesh | None
) -> tuple[list[Lanes], list[Block]]:
    """The programs, and the rows cut into blocks that depend on the grid and the width alone.

    Args:
      fn: what is swept.
      runs: all of them.
      key: the root key.
      width: lanes per device.
      mesh: the devices, None for the default one.

    Returns:
      One `Lanes` for each combination of constants, and the blocks in their order.

    Example:
      >>> runs = make_runs({"h": [1.0, 2.0, 3.0]})
      >>> make_plan(lambda key, h: h, runs, jax.random.key(0), 2, None)[1]
      [Block(program=0, rows=(0, 1)), Block(program=0, rows=(2,))]
    """
    members: dict[Any, list[int]] = {}
    for row in range(len(runs)):
        members.setdefault(runs.program(row), []).append(row)
    programs = [Lanes(fn, runs, rows[0], key, width, mesh) for rows in members.values()]
    blocks = [
        Block(program, tuple(rows[at : at + width]))
        for program, rows in enumerate(members.values())
        for at in range(0, len(rows), width)
    ]
    return programs, blocks


def common_shapes(programs: list[Lanes], runs: Runs, blocks: list[Block]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of the outputs of one run, the same for all programs.

    Args:
      programs: all of the sweep.
      runs: its runs.
      blocks: its blocks.

    Returns:
      Path to shape and dtype.

    Raises:
      ValueError: two programs differ; the first output that does is named.

    Example:
      >>> runs = make_runs({"h": [1.0]})
      >>> programs, blocks = make_plan(lambda key, h: h > 1, runs, jax.random.key(0), 2, None)
      >>> common_shapes(programs, runs, blocks)
      {'value': ShapeDtypeStruct(shape=(), dtype=bool)}
    """
    shapes = [program.shapes() for program in programs]
    for program, other in enumerate(shapes[1:], 1):
        if other != shapes[0]:
            row = next(block.rows[0] for block in blocks if block.program == program)
            names = sorted(name for name in {*other, *shapes[0]} if other.get(name) != shapes[0].get(name))
            raise ValueError(
                f"sweep: `fn` must return equal shapes for all settings; {names[0]!r} is {shapes[0].get(names[0])} for "
                f"{describe(runs.settings[0])} and {other.get(names[0])} for {describe(runs.settings[row])}; record a "
                f"fixed number of times, or make two sweeps"
            )
    return shapes[0]


def calls_of(programs: list[Lanes], blocks: list[Block]) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """Consecutive blocks of one program, as many as it has devices for.

    Args:
      programs: all of the sweep.
      blocks: some of its blocks, in order.

    Yields:
      A program's number, and the rows of each block that one call of it takes.

    Example:
      >>> programs, blocks = make_plan(lambda key, h: h, make_runs({"h": [1.0, 2.0]}), jax.random.key(0), 1, None)
      >>> list(calls_of(programs, blocks))
      [(0, [(0,)]), (0, [(1,)])]
    """
    at = 0
    while at < len(blocks):
        program = blocks[at].program
        end = at
        while end < len(blocks) and end - at < programs[program].num_blocks and blocks[end].program == program:
            end += 1
        yield program, [block.rows for block in blocks[at:end]]
        at = end


def blocks_of_chunk(programs: list[Lanes], width: int, chunk: int | None) -> int:
    """How many blocks are computed between two writes.

    Args:
      programs: all of the sweep.
      width: lanes per device.
      chunk: runs between two writes, None for one call.

    Returns:
      At least as many as one call takes.

    Example:
      >>> programs, _ = make_plan(lambda key, h: h, make_runs({"h": [1.0]}), jax.random.key(0), 4, None)
      >>> blocks_of_chunk(programs, 4, None), blocks_of_chunk(programs, 4, 12)
      (1, 3)
    """
    calls = programs[0].num_blocks
    return calls if chunk is None else max(calls, int(chunk) // int(width))


def memory_of(
    programs: list[Lanes], shapes: Mapping[str, jax.ShapeDtypeStruct], num_runs: int, width: int, chunk: int
) -> SweepMemory | None:
    """What the largest program needs among those that are compiled (`estimate_memory`).

    Args:
      programs: all of the sweep.
      shapes: of the outputs of one run.
      num_runs: of the whole sweep.
      width: lanes per device.
      chunk: blocks between two writes.

    Returns:
      The bytes, None where no program is compiled, or where no compiler says what they need.

    Example:
      >>> programs, _ = make_plan(lambda key, h: h, make_runs({"h": [1.0]}), jax.random.key(0), 4, None)
      >>> memory_of(programs, programs[0].shapes(), 1, 4, 1) is None
      True
    """
    device = max((known for program in programs if (known := program.device_bytes()) is not None), default=None)
    if device is None:
        return None
    of_a_run = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes.values())
    copied = min(num_runs, width * chunk)
    devices = min(programs[0].num_local, -(-num_runs // width))
    return SweepMemory(-(-device // width), device, devices, (num_runs + 4 * copied) * of_a_run)
