"""The complete state of a run on disk, by orbax, with a strict comparison and a checksum of our own.

orbax casts and drops silently where a template differs from what was saved, so nothing is handed to it but a flat list
of arrays, and what comes back is compared, leaf by leaf, with a manifest: path, dtype, shape, and SHA-256 of the bytes.
A checkpoint is a folder `epoch-000012` that appears by one rename; it holds `arrays/` (orbax) and `manifest.json`. The
newest is the state, and the older ones go only after it has appeared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reg import _checks
from implicit_reg._checks import LockedError
from implicit_reg._files import lock, sync_folder

FORMAT = "implicit_reg.checkpoint"
VERSION = 1
__all__ = ["LockedError", "checkpoints", "describe", "describe_shapes", "load", "lock", "read_meta", "save"]
_NAME = re.compile(r"epoch-([0-9]{6,})", re.ASCII)


def _bytes(leaf: Any) -> np.ndarray:
    """The numbers of a leaf, those of a PRNG key being its data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.ascontiguousarray(np.asarray(leaf))


def describe(tree: Any) -> list[dict[str, Any]]:
    """Path, dtype, shape and SHA-256 of each leaf.

    Args:
      tree: a pytree of JAX arrays, typed PRNG keys included.

    Returns:
      One dictionary per leaf, in the order of the tree.

    Example:
      >>> [entry["path"] + " " + entry["dtype"] for entry in describe({"x": jnp.ones(2), "k": jax.random.key(0)})]
      ["['k'] key<fry>", "['x'] float32"]
    """
    return [
        {
            "path": jax.tree_util.keystr(path),
            "dtype": str(leaf.dtype),
            "shape": list(leaf.shape),
            "sha256": hashlib.sha256(_bytes(leaf).tobytes()).hexdigest(),
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def save(folder: str | os.PathLike, epoch: int, tree: Any, meta: dict[str, Any]) -> pathlib.Path:
    """Writes a checkpoint under a temporary name, then renames it, then removes the older ones.

    Args:
      folder: where the checkpoints of one run live; made where it is missing.
      epoch: names the checkpoint.
      tree: a pytree of JAX arrays.
      meta: what else belongs to it, as finite JSON: the history, the settings.

    Returns:
      The path of the new checkpoint.

    Raises:
      OSError: where the disk refuses; what was there before is then untouched.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save(folder, 3, {"x": jnp.arange(3.0)}, {"note": "half way"})
      ...     tree, meta = load(folder, {"x": jnp.zeros(3)})
      >>> path.name, tree["x"], meta
      ('epoch-000003', Array([0., 1., 2.], dtype=float32), {'note': 'half way'})
    """
    folder = pathlib.Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"epoch-{epoch:06d}"
    temporary = folder / f".tmp-{secrets.token_hex(6)}"
    temporary.mkdir()
    try:
        entries = describe(tree)
        # orbax refuses arrays without elements; they hold nothing that the template does not know.
        arrays = {f"a{k}": leaf for k, leaf in enumerate(jax.tree.leaves(tree)) if leaf.size}
        _orbax_save(temporary / "arrays", arrays)
        body = {"entries": entries, "meta": meta}
        manifest = {"format": FORMAT, "version": VERSION, "sha256": _digest(body), **body}
        with open(temporary / "manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)  # the same epoch, saved again
        os.replace(temporary, final)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # Also what a killed run left under a temporary name: the caller holds the lock of the folder.
    for other in (*checkpoints(folder), *folder.glob(".tmp-*")):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def checkpoints(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The checkpoints of a run, oldest first.

    Args:
      folder: where they live; it may be missing.

    Returns:
      Their paths; temporary folders of a killed run are not among them.

    Example:
      >>> checkpoints("no such folder")
      []
    """
    folder = pathlib.Path(folder).absolute()
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load(folder: str | os.PathLike, template: Any) -> tuple[Any, dict[str, Any]]:
    """The newest checkpoint, compared strictly with a template and with its checksums.

    Args:
      folder: where the checkpoints of one run live.
      template: a pytree of the same structure, dtypes and shapes: the state at the start.

    Returns:
      The tree, and what was given to `save` as `meta`.

    Raises:
      CorruptResultError: where there is no checkpoint, or it is truncated, damaged, or not of this library; nothing on
        disk is changed.
      ConfigMismatchError: where tree, dtypes or shapes differ from the template's.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save(folder, 1, {"key": jax.random.key(3)}, {})
      ...     tree, _ = load(folder, {"key": jax.random.key(0)})
      >>> jax.random.key_data(tree["key"])
      Array([0, 3], dtype=uint32)
    """
    found = checkpoints(folder)
    if not found:
        raise _checks.CorruptResultError(f"{folder} holds no checkpoint")
    path = found[-1]
    manifest = _manifest(path)
    wanted = [{k: v for k, v in entry.items() if k != "sha256"} for entry in describe_shapes(template)]
    saved = [{k: v for k, v in entry.items() if k != "sha256"} for entry in manifest["entries"]]
    for a, b in zip(wanted, saved, strict=False):
        if a != b:
            raise _checks.ConfigMismatchError(f"{path.name}: wanted {_words(a)}, the checkpoint holds {_words(b)}")
    if len(wanted) != len(saved):
        raise _checks.ConfigMismatchError(f"{path.name}: wanted {len(wanted)} arrays, it holds {len(saved)}")
    leaves, structure = jax.tree.flatten(template)
    names = [f"a{k}" for k, leaf in enumerate(leaves) if leaf.size]
    try:
        arrays = _orbax_load(path / "arrays", {name: leaves[int(name[1:])] for name in names})
        restored = [arrays.get(f"a{k}", leaf) for k, leaf in enumerate(leaves)]
        tree = jax.tree.unflatten(structure, restored)
        same = describe(tree) == manifest["entries"]
    except Exception as error:  # a damaged file ends in any of orbax's and tensorstore's exceptions
        first = (str(error).splitlines() or [""])[0]
        raise _checks.CorruptResultError(
            f"{path.name} is truncated or damaged ({type(error).__name__}: {first[:200]}); nothing was changed"
        ) from error
    if not same:
        raise _checks.CorruptResultError(f"{path.name} is damaged: its checksums do not match; nothing was changed")
    return tree, manifest["meta"]


def read_meta(folder: str | os.PathLike) -> dict[str, Any]:
    """What was given to `save` as `meta`, of the newest checkpoint, without its arrays.

    Args:
      folder: where the checkpoints of one run live.

    Returns:
      The dictionary.

    Raises:
      CorruptResultError: as `load`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save(folder, 1, {"x": jnp.ones(1)}, {"epochs": 1})
      ...     read_meta(folder)
      {'epochs': 1}
    """
    found = checkpoints(folder)
    if not found:
        raise _checks.CorruptResultError(f"{folder} holds no checkpoint")
    return _manifest(found[-1])["meta"]


def describe_shapes(tree: Any) -> list[dict[str, Any]]:
    """Path, dtype and shape of each leaf, for trees of arrays or of shapes.

    Args:
      tree: a pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      One dictionary per leaf.

    Example:
      >>> describe_shapes([jax.ShapeDtypeStruct((2,), jnp.int32)])
      [{'path': '[0]', 'dtype': 'int32', 'shape': [2]}]
    """
    return [
        {"path": jax.tree_util.keystr(path), "dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _words(entry: dict[str, Any]) -> str:
    return f"{entry['path']} {entry['dtype']}{entry['shape']}"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        with open(path / "manifest.json", encoding="utf-8") as file:
            manifest = json.load(file)
        known = manifest["format"] == FORMAT
        version = int(manifest["version"])
        whole = manifest["sha256"] == _digest({"entries": manifest["entries"], "meta": manifest["meta"]})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _checks.CorruptResultError(
            f"{path.name}/manifest.json is missing, truncated or damaged ({type(error).__name__}); nothing was changed"
        ) from error
    if not known:
        raise _checks.CorruptResultError(f"{path.name} is not a checkpoint of this library")
    if version > VERSION:
        raise _checks.CorruptResultError(f"{path.name} was written by a newer version of this library")
    if not whole:
        raise _checks.CorruptResultError(f"{path.name}/manifest.json is damaged: its checksum does not match")
    return manifest


def _orbax_save(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, arrays)


def _orbax_load(path: pathlib.Path, template: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        # As saved, not cast to the template: the comparison that follows must see what is there.
        return dict(checkpointer.restore(path)) if template else {}


class _quiet:
    """No log lines and no warnings of orbax on a user's terminal; absl's level is put back."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("absl")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        self.caught.__exit__(*exception)
        self.logger.setLevel(self.level)
