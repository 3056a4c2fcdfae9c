"""Two processes run this suite (`run.py test`): x64 off for contracts and prose, x64 on for orders (marked `x64`).

The flag is never changed within a process, and no test may leave `jax.config` changed.
"""

import os

# Before JAX is imported anywhere: XLA reads these once.
os.environ.setdefault("JAX_ENABLE_X64", "0")
os.environ.update(
    JAX_PLATFORMS=os.environ.get("IMPLICIT_REG_TEST_PLATFORM", "cpu"),
    JAX_NUM_CPU_DEVICES="8",
    NPROC="2",
    PJRT_NPROC="2",
    JAX_EXPLICIT_X64_DTYPES="error",
    JAX_ENABLE_COMPILATION_CACHE="0",  # of the command line, in the home of whoever runs the tests
    EQX_ON_ERROR="raise",
    MPLBACKEND="agg",
    IMPLICIT_REG_QUICK="1",  # notebooks: fewer step sizes and curves
    # Nearly all of the time is compilation, of programs that run for milliseconds. Fusions are written by the emitter
    # that goes straight to LLVM, not through MLIR, and one program is one module: a third of the compiler's time.
    XLA_FLAGS=" ".join(
        [
            *os.environ.get("XLA_FLAGS", "").split(),
            "--xla_backend_optimization_level=0",
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
    ),
)

import hashlib
import importlib
import pathlib
import sys

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("ci", max_examples=50, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(config, items):
    """Each process keeps its own half: a test marked `x64` runs with the flag on, every other one with it off."""
    on = jax.config.jax_enable_x64
    keep, drop = [], []
    for item in items:
        (keep if (item.get_closest_marker("x64") is not None) == on else drop).append(item)
    if drop:
        config.hook.pytest_deselected(items=drop)
        items[:] = keep


@pytest.fixture
def key(request):
    """A PRNG key fixed by the test's name."""
    return jax.random.key(int.from_bytes(hashlib.sha256(request.node.nodeid.encode()).digest()[:4], "big"))


@pytest.fixture(autouse=True)
def config_unchanged():
    """The library never leaves a global JAX flag changed."""
    before = dict(jax.config.values)
    yield
    after = {name: jax.config.values.get(name) for name in before}  # a later import may add options
    assert after == before


@pytest.fixture(scope="session")
def benchmark():
    """Imports a module of `benchmarks/` by name: that folder is no package, its modules are neighbors."""
    folder = str(pathlib.Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)
