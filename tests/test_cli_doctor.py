"""`implicit-reg doctor`: what it says is what it measured."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicit_reg.cli import doctor, run


def tiny(key, h, copy):
    """A program that compiles in no time; the command's own is a network."""
    x = jax.random.normal(key, (3,), jnp.float32)
    return jax.lax.scan(lambda x, _: (x - h * x**3, jnp.mean(x**2)), x, length=8)[1]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(doctor, "_THREADS", ("1",))
    monkeypatch.setattr(doctor, "_REPEATS", 2)
    monkeypatch.setattr(doctor, "program", tiny)
    monkeypatch.setattr(doctor.Doctor, "_elsewhere", same_process)


def same_process(self, rows, **environment):
    """The protocol of the fresh process, without the process."""
    told = io.StringIO()
    doctor.answer(io.StringIO(json.dumps({"rows": rows, "width": self.width})), told)
    answered = json.loads(told.getvalue())
    return np.frombuffer(bytes.fromhex(answered["bytes"]), answered["dtype"]).reshape(len(rows), -1)


def test_the_bits_stay_on_this_machine(small, tmp_path, capsys):
    assert run(["doctor", "--json", "--out", str(tmp_path / "new")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kept"]
    by_name = {check["name"]: check for check in record["checks"]}
    assert all(check["same"] == (check["largest_difference"] == 0) for check in record["checks"])
    assert {name for name, check in by_name.items() if not check["required"]} == {"width 16", "--threads 1"}
    assert {by_name[name]["sha256"] for name in ("one call", "on 2 devices", "on 4 devices", "in another process")} == {
        by_name["one call"]["sha256"]
    }
    assert by_name["the runs in another order"]["sha256"] != by_name["one call"]["sha256"]
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == record


def test_a_last_bit_on_two_devices_is_seen(small, monkeypatch, capsys):

    def off_by_one_bit(rows, width, mesh=None):
        curves = np.array([[row["h"] * k + row["seed"] for k in range(8)] for row in rows], np.float32)
        if mesh is not None and mesh.size == 2:
            curves[3, 5] = np.nextafter(curves[3, 5], np.float32(np.inf))
        return curves

    monkeypatch.setattr(doctor, "measure", off_by_one_bit)
    assert run(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("│")[1].strip() for line in lines if "DIFFERENT" in line] == ["on 2 devices"]
    assert "use --threads 1" in lines[-1]


def test_a_fresh_process_answers():
    rows = [{"h": 0.1, "seed": 0, "copy": 0}, {"h": 0.2, "seed": 0, "copy": 0}]
    got = doctor.Doctor(width=2)._elsewhere(rows)
    assert got.shape == (2, 60)
    assert np.all(np.diff(got[0]) < 0)


def test_mistakes(capsys):
    assert run(["doctor", "--width", "0"]) == 2
    assert "--width must be at least 1" in capsys.readouterr().err
