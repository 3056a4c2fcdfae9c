"""`implicit-reg doctor`: whether this machine keeps what the library says about bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from typing import Annotated, Any, ClassVar

import tyro

from implicit_reg.cli import _common, _sweeping

FORMAT = "implicit_reg.doctor"
NUM_DEVICES = 4
_STEPS, _EXAMPLES, _UNITS, _REPEATS = 60, 256, 96, 10
_THREADS = ("1", "2")
# The last rates are beyond the edge of stability: a difference in a last bit grows to all of them.
_RATES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclasses.dataclass(frozen=True)
class Doctor(_common.Options):
    """Measure whether runs of a sweep have the same bits here, however they are run.

    A small network is trained beside others in every way in which a sweep may be cut, and the bytes of all results are
    compared. What a sweep relies on has to be the same (exit code 1 where it is not); the last rows tell what another
    width or another number of threads does on this machine. Nothing is written, unless --out names a folder.

    For example:
    $ implicit-reg doctor
    $ implicit-reg doctor --threads 1 --x64 --json
    """

    keeps_programs: ClassVar[bool] = False  # a program that was kept would be compared with itself

    width: int = 8
    """Runs side by side on a device."""
    x64: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compute in float64."""
    dtype: tyro.conf.Suppress[tyro.conf.Fixed[str]] = "float32"

    def run(self) -> int:
        """Runs all checks and prints them; the exit code says whether all is the same that has to be."""
        started = time.monotonic()
        if self.width < 1:
            raise _common.UsageError(f"--width must be at least 1, got {self.width}")
        if "jax" not in sys.modules:
            os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(NUM_DEVICES))
        with _common.stop_at_once(), _sweeping.precision(self):
            from implicit_reg.experiments.machine import machine

            checks = self._checks()
            environment = machine()
        kept = all(check["same"] for check in checks if check["required"])
        record = {
            "format": FORMAT,
            "version": 1,
            "width": self.width,
            "kept": kept,
            "checks": checks,
            "environment": environment,
            "wall_seconds": round(time.monotonic() - started, 1),
        }
        if self.out is not None:
            _common.write_atomic(_common.new_folder(self.out, "doctor") / "results.json", _common.to_json(record))
        self._show(record)
        return _common.EXIT_OK if kept else _common.EXIT_FAILED

    def _checks(self) -> list[dict[str, Any]]:
        import jax
        import numpy as np

        from implicit_reg.experiments import sweep_mesh

        rows = [{"h": h, "seed": seed, "copy": 0} for seed in (0, 1) for h in _RATES]
        reference = measure(rows, self.width)
        order = np.random.default_rng(0).permutation(len(rows))
        found: list[dict[str, Any]] = []

        def judge(name: str, got: Any, wanted: Any = reference, required: bool = True) -> None:
            found.append({"name": name, "required": required, "sha256": digest(got)} | _compare(got, wanted))

        judge("one call", reference)
        repeated = measure([row | {"copy": k} for k in range(_REPEATS) for row in rows], self.width)
        judge(f"called {_REPEATS} times, compiled anew", repeated, np.tile(reference, (_REPEATS, 1)))
        judge("the runs in another order", measure([rows[k] for k in order], self.width), reference[order])
        wild = [row | {"h": 1e6 + k} if k % 2 else row for k, row in enumerate(rows)]
        judge("every other run diverges", measure(wild, self.width)[::2], reference[::2])
        judge("a part of the runs, padded", measure(rows[3:-2], self.width), reference[3:-2])
        for devices in range(2, min(NUM_DEVICES, len(jax.devices())) + 1, 2):
            judge(f"on {devices} devices", measure(rows, self.width, sweep_mesh(devices)))
        judge("in another process", self._elsewhere(rows))
        judge(f"width {2 * self.width}", measure(rows, 2 * self.width), required=False)
        for threads in _THREADS:
            judge(f"--threads {threads}", self._elsewhere(rows, NPROC=threads, PJRT_NPROC=threads), required=False)
        return found

    def _elsewhere(self, rows: list[dict[str, Any]], **environment: str) -> Any:
        """The same runs by a fresh process."""
        import jax
        import numpy as np

        code = "import sys; from implicit_reg.cli.doctor import answer; answer(sys.stdin, sys.stdout)"
        more = {"JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64))} | environment
        told = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps({"rows": rows, "width": self.width}),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | more,
        )
        answered = json.loads(told.stdout)
        return np.frombuffer(bytes.fromhex(answered["bytes"]), answered["dtype"]).reshape(len(rows), -1)

    def _show(self, record: dict[str, Any]) -> None:
        if self.json:
            print(_common.to_json(record), end="")
            return
        if self.quiet:
            return
        from rich.table import Table

        console = _common.console()
        number = "float64" if self.x64 else "float32"
        what = f"{2 * len(_RATES)} runs of {_STEPS} steps of gradient descent, {number}, width {self.width}"
        console.print(f"{what}: are the bytes of all results the same?", soft_wrap=True)
        table = Table()
        for head in ("", "", "largest difference", "SHA-256"):
            table.add_column(head, no_wrap=True)
        for check in record["checks"]:
            verdict = "same" if check["same"] else "DIFFERENT" if check["required"] else "different"
            difference = "" if check["same"] else f"{check['largest_difference']:.1e}"
            name = check["name"] if check["required"] else f"{check['name']} (may differ)"
            table.add_row(name, verdict, difference, check["sha256"][:16])
        console.print(table)
        machine = record["environment"]
        console.print(f"jax {machine['jax']}, {machine['processor']}, threads: {machine['threads']}", soft_wrap=True)
        if record["kept"]:
            text = "A sweep may be cut, stopped, resumed and spread over devices here: its bits stay."
        else:
            text = "A sweep that is stopped and resumed may not have the bits of an undisturbed one: use --threads 1."
        console.print(text, soft_wrap=True)


def program(key: Any, h: Any, copy: Any) -> Any:
    """The mean squared errors of a small network along gradient descent; `copy` is a name."""
    del copy
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(key, 4)
    # Drawn in float32: the same start in both precisions.
    draws = [jax.random.normal(k, shape, jnp.float32) for k, shape in zip(keys, _SHAPES, strict=True)]
    x, a, b, y = (draw.astype(jnp.result_type(float)) for draw in draws)

    def loss_fn(params):
        a, b = params
        return jnp.mean((jnp.tanh(x @ a) @ b - y) ** 2)

    def step(params, _):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        return jax.tree.map(lambda p, g: p - h * g, params, grads), loss

    return jax.lax.scan(step, (a / 8, b / 8), length=_STEPS)[1]


_SHAPES = ((_EXAMPLES, 32), (32, _UNITS), (_UNITS, 1), (_EXAMPLES, 1))


def measure(rows: list[dict[str, Any]], width: int, mesh: Any = None) -> Any:
    """The loss curves of some runs, (runs, steps)."""
    import jax

    from implicit_reg.experiments import sweep

    return sweep(program, rows, key=jax.random.key(0), width=width, mesh=mesh)["value"]


def digest(curves: Any) -> str:
    """SHA-256 of the bytes."""
    return hashlib.sha256(curves.tobytes()).hexdigest()


def _compare(got: Any, wanted: Any) -> dict[str, Any]:
    """Whether two arrays have the same bytes, and their largest difference in units of each curve's largest value."""
    import numpy as np

    a, b = got.astype(np.float64), wanted.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    scale = np.max(np.where(both, np.abs(b), 0), axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        difference = np.where(both, np.abs(a - b), 0) / np.where(scale > 0, scale, 1)
    return {"same": got.tobytes() == wanted.tobytes(), "largest_difference": float(difference.max())}


def answer(source: Any, target: Any) -> None:
    """What `_elsewhere` asks of a fresh process: reads the runs, writes the bytes."""
    asked = json.load(source)
    curves = measure(asked["rows"], asked["width"])
    json.dump({"bytes": curves.tobytes().hex(), "dtype": curves.dtype.name}, target)
