"""The runs of a sweep, with names for their axes, and exports that are never read back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from implicit_reg._files import write_whole

SEPARATOR = "/"


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, `a/b/0`; a bare array is called `value`.

    Args:
      tree: dicts, NamedTuples, tuples, lists, and registered dataclasses of arrays.

    Returns:
      Path to leaf, in the order of the tree.

    Raises:
      ValueError: no leaf, or two leaves of one path.

    Example:
      >>> list(named_leaves({"loss": (1, 2), "x": 3}))
      ['loss/0', 'loss/1', 'x']
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = SEPARATOR.join(_word(entry) for entry in path) or "value"
        if name in found:
            raise ValueError(f"sweep: `fn` returned two leaves of the path {name!r}; rename one")
        found[name] = leaf
    if not found:
        raise ValueError("sweep: `fn` must return at least one array, got a tree without leaves")
    return found


def _word(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Path to leaf as nested dictionaries.

    Args:
      flat: `a/b` to array.

    Returns:
      `{"a": {"b": array}}`.

    Example:
      >>> nested({"loss/train": 1, "loss/test": 2})
      {'loss': {'train': 1, 'test': 2}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, last = path.split(SEPARATOR)
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


def plain(value: Any) -> Any:
    """What JSON can hold: arrays and tuples as lists, a number that is not finite as None.

    Args:
      value: nested dicts, sequences, arrays, numbers, texts.

    Returns:
      The same in dicts with texts as keys, lists, numbers, texts and None.

    Example:
      >>> plain({"a": (1, np.float32(np.inf)), 2: np.arange(2)})
      {'a': [1, None], '2': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    json.dumps(value)
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class SweepResult:
    """All runs of a sweep.

    Attributes:
      settings: name to one value per run, in order, the seed included; a callable is given by its name.
      axes: name to values for a grid, None for a list of settings or a selection from a grid.
      leaves: path to array with leading axis num_runs; NumPy arrays, which no later precision can demote.
      status: "ok" or "diverged" per run.
      seconds: wall time of the chunks, those of earlier processes included.
      environment: what the bits depend on.
    """

    settings: Mapping[str, list[Any]]
    axes: Mapping[str, list[Any]] | None
    leaves: Mapping[str, np.ndarray]
    status: np.ndarray
    seconds: float
    environment: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.status)

    @property
    def outputs(self) -> dict[str, Any]:
        """The leaves as nested dictionaries."""
        return nested(self.leaves)

    def __getitem__(self, path: str) -> np.ndarray:
        """The array of a path such as "test/loss", leading axis num_runs."""
        if path not in self.leaves:
            raise KeyError(f"no output {path!r}; there are {', '.join(self.leaves)}")
        return self.leaves[path]

    def grid(self, path: str) -> np.ndarray:
        """An output on the axes of the grid.

        Args:
          path: of the output, or "status".

        Returns:
          An array whose first dimensions are the axes, in their order.

        Raises:
          ValueError: the runs are no full grid.

        Example:
          >>> from implicit_reg.experiments import sweep
          >>> runs = sweep(lambda key, h, p: h**p, {"h": [2.0, 3.0], "p": [1, 2]}, key=jax.random.key(0), width=4)
          >>> runs.grid("value").tolist()
          [[2.0, 4.0], [3.0, 9.0]]
        """
        if self.axes is None:
            raise ValueError("SweepResult.grid: these runs are no full grid; use result[path] and result.settings")
        values = self.status if path == "status" else self[path]
        return values.reshape(*(len(axis) for axis in self.axes.values()), *values.shape[1:])

    def select(self, **wanted: Any) -> SweepResult:
        """The runs of given settings.

        Args:
          **wanted: name to value, compared by equality; a callable by its name.

        Returns:
          The runs; a grid stays a grid without the selected axes.

        Raises:
          ValueError: for an unknown name, or where no run is left.

        Example:
          >>> from implicit_reg.experiments import sweep
          >>> runs = sweep(lambda key, h, p: h**p, {"h": [2.0, 3.0], "p": [1, 2]}, key=jax.random.key(0), width=4)
          >>> runs.select(h=3.0).grid("value").tolist()
          [3.0, 9.0]
        """
        for name in wanted:
            if name not in self.settings:
                raise ValueError(f"SweepResult.select: no setting {name!r}; there are {', '.join(self.settings)}")
        chosen = np.array(
            [all(self.settings[name][row] == value for name, value in wanted.items()) for row in range(len(self))]
        )
        if not chosen.any():
            raise ValueError(f"SweepResult.select: no run has {wanted}")
        axes = self.axes and {name: values for name, values in self.axes.items() if name not in wanted}
        return dataclasses.replace(
            self,
            settings={name: list(itertools.compress(values, chosen)) for name, values in self.settings.items()},
            axes=axes or None,
            leaves={path: leaf[chosen] for path, leaf in self.leaves.items()},
            status=self.status[chosen],
        )

    def to_records(self) -> list[dict[str, Any]]:
        """One flat dictionary per run, as `pandas.DataFrame` likes it: settings, status, outputs.

        Returns:
          Scalars as numbers, arrays as nested lists; a number that is not finite is None, as in JSON. An output that
          has the name of a setting, or is called `status`, is called `output/name`: nothing is overwritten.

        Example:
          >>> from implicit_reg.experiments import sweep
          >>> sweep(lambda key, h: 2 * h, {"h": [0.5]}, key=jax.random.key(0), width=1).to_records()
          [{'h': 0.5, 'status': 'ok', 'value': 1.0}]
        """
        taken = {*self.settings, "status"}
        return [
            {name: values[row] for name, values in self.settings.items()}
            | {"status": str(self.status[row])}
            | {f"output/{p}" if p in taken else p: plain(leaf[row]) for p, leaf in self.leaves.items()}
            for row in range(len(self))
        ]

    def write_jsonl(self, path: str | os.PathLike) -> None:
        """Writes one JSON object per run and line, for `pandas.read_json(path, lines=True)`.

        Args:
          path: the file; replaced whole.
        """
        lines = (json.dumps(record, allow_nan=False) for record in self.to_records())
        write_whole(pathlib.Path(path), "".join(line + "\n" for line in lines).encode())

    def write_npz(self, path: str | os.PathLike) -> None:
        """Writes the arrays with their axes: member `a0`, ..., and `names`, `axes` and `settings` as JSON text.

        Args:
          path: the file; replaced whole.

        Example:
          >>> import tempfile
          >>> from implicit_reg.experiments import sweep
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     runs = sweep(lambda key, h: 2 * h, {"h": [0.5]}, key=jax.random.key(0), width=1)
          ...     runs.write_npz(folder + "/runs.npz")
          ...     file = np.load(folder + "/runs.npz", allow_pickle=False)
          ...     str(file["names"]), str(file["axes"]), file["a0"].tolist()
          ('["value"]', '{"h": [0.5]}', [1.0])
        """
        import io

        members = {
            f"a{k}": self.grid(path) if self.axes else leaf for k, (path, leaf) in enumerate(self.leaves.items())
        }
        members["status"] = self.grid("status") if self.axes else self.status
        texts = {"names": list(self.leaves), "axes": self.axes, "settings": self.settings}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **members, **{n: np.array(json.dumps(t)) for n, t in texts.items()})
        write_whole(pathlib.Path(path), buffer.getvalue())
