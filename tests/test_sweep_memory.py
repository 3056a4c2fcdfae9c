"""The memory that a sweep says it needs is what its compiled program takes, and grows with lanes and results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reg.experiments import estimate_memory, sweep, sweep_mesh
from implicit_reg.experiments.axes import static

KEY = jax.random.key(3)
AXES = {"h": [0.1 * k for k in range(1, 13)]}


def sorted_draws(key, h):
    """Temporaries that no compiler fuses away: 4096 numbers and their sorted copy."""
    x = jnp.sort(jax.random.normal(key, (4096,), jnp.float32)) * h.astype(jnp.float32)
    return {"low": x[:3], "count": jnp.sum(x > 0, dtype=jnp.int32)}


def compilers_count(width):
    """Arguments, outputs and temporaries of the same lanes, compiled apart from the sweep."""

    def lane(root, seed, h):
        return sorted_draws(jax.random.fold_in(jax.random.wrap_key_data(root), seed), h)

    operands = jax.random.key_data(KEY), np.zeros(width, np.uint32), np.zeros(width, jnp.result_type(float))
    found = jax.jit(jax.vmap(lane, in_axes=(None, 0, 0))).lower(*operands).compile().memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


@pytest.mark.parametrize("width", [2, 8])
def test_a_device_holds_what_the_compiler_says(width):
    memory = estimate_memory(sorted_draws, AXES, key=KEY, width=width)
    assert memory.device == compilers_count(width)
    assert memory.device >= width * 4096 * 4
    assert memory.lane == -(-memory.device // width)


@pytest.mark.parametrize(
    ("layout", "devices", "copied"),
    [
        ({}, 1, 2),
        ({"chunk": 6}, 1, 6),
        ({"chunk": 200}, 1, 12),
        ({"mesh": 4}, 4, 8),
        ({"mesh": 8}, 6, 12),
    ],
    ids=str,
)
def test_the_host_holds_all_results_and_the_copies_of_a_chunk(layout, devices, copied):
    """Sixteen bytes a run; no more devices work than there are blocks."""
    if "mesh" in layout:
        layout = layout | {"mesh": sweep_mesh(layout["mesh"])}
    memory = estimate_memory(sorted_draws, AXES, key=KEY, width=2, **layout)
    assert memory.host == (12 + 4 * copied) * 16
    assert memory.devices == devices


def test_the_largest_program_counts():
    def fn(key, n):
        return jnp.sort(jax.random.normal(key, (n,), jnp.float32))[0]

    small, large, both = (
        estimate_memory(fn, {"n": static(sizes)}, key=KEY, width=2) for sizes in ([64], [4096], [64, 4096])
    )
    assert small.device < large.device == both.device


def test_a_sweep_says_so_before_it_runs(tmp_path):
    seen = []
    place = {"key": KEY, "width": 4, "folder": tmp_path, "report": seen.append}
    sweep(sorted_draws, AXES, **place)
    assert seen[0].done == 0
    assert {progress.memory for progress in seen} == {estimate_memory(sorted_draws, AXES, key=KEY, width=4)}
    seen.clear()
    sweep(sorted_draws, AXES, **place, resume=True)  # nothing is left, so that nothing is compiled
    assert [progress.memory for progress in seen] == [None]


def test_bad_arguments():
    with pytest.raises(ValueError, match="estimate_memory: `chunk` must be a multiple of width=4, got 6"):
        estimate_memory(sorted_draws, AXES, key=KEY, width=4, chunk=6)
    with pytest.raises(TypeError, match="estimate_memory: `key` must be one typed key"):
        estimate_memory(sorted_draws, AXES, key=0)
