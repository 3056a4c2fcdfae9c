"""A sweep on disk: a folder of files that are each whole or absent, so that what is there is what is done.

`run.json` says what the folder is of (`manifests`); `chunk-000012.irs` holds finished runs (`chunks`), the first of
them in block 12; `.lock` is held while a process works; `times.jsonl` is for people and decides nothing. There is no
file of progress that could disagree with the chunks, and no decision is made by a clock or by the time of a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from implicit_reg import _checks, _files
from implicit_reg.experiments import chunks, manifests

_CHUNK = re.compile(r"chunk-([0-9]{6,9})\.irs", re.ASCII)


class Rows(NamedTuple):
    """Finished runs in the order of their numbers: `rows`, their `status`, their `outputs`, the `seconds` they took."""

    rows: list[int]
    status: list[str]
    outputs: dict[str, np.ndarray]
    seconds: float


class Stored(NamedTuple):
    """What a folder holds. `environment["mixed_with"]` lists other environments, where some runs were made in such."""

    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[int]
    status: list[str]
    outputs: dict[str, np.ndarray]
    seconds: float


class Store:
    """The folder of one sweep, held by this process until it is closed.

    Args:
      folder: missing or empty, it is made and `run.json` written.
      config: what decides the results besides the environment, as finite JSON.
      environment: the machine, as finite JSON; fields in `INFORMATIVE` are recorded only.
      resume: whether to go on with a sweep that the folder holds; without one there, it begins.
      allow_mixed: whether to go on in another environment; the files then say which they are of.

    Raises:
      ValueError: the folder holds a sweep and `resume` is off, or it holds other files.
      LockedError: another process works in it.
      ConfigMismatchError: it is of another configuration; the message lists what differs.
      EnvironmentMismatchError: it is of another environment, and `allow_mixed` is off; likewise.
      CorruptResultError: its `run.json` is damaged or foreign. In all these cases nothing in it is changed.
      OSError: the disk refuses.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Store(folder, {"h": [0.1, 0.2]}, {"jax": "1"}, resume=False) as store:
      ...         store.write(0, [0, 1], ["ok", "diverged"], {"loss": np.array([0.5, np.nan])}, seconds=0.1)
      ...     with Store(folder, {"h": [0.1, 0.2]}, {"jax": "1"}, resume=True) as store:
      ...         done = store.rows_done()
      ...     done, load(folder).outputs["loss"]
      ({0, 1}, array([0.5, nan]))
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        resume: bool,
        allow_mixed: bool = False,
    ):
        self.folder = pathlib.Path(folder).absolute()
        # As JSON gives it back: tuples are lists there.
        self.config = json.loads(json.dumps(config, allow_nan=False))
        self.environment = json.loads(json.dumps(environment, allow_nan=False))
        _refuse_foreign(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = contextlib.ExitStack()
        self._held.enter_context(_files.lock(self.folder))
        try:
            self._open(resume, allow_mixed)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the folder back to others."""
        self._held.close()

    def _open(self, resume: bool, allow_mixed: bool) -> None:
        path = self.folder / "run.json"
        if not os.path.lexists(path):
            _refuse_foreign(self.folder)
            _files.remove_leftovers(self.folder)
            self._manifest = manifests.make(self.config, self.environment)
            manifests.write(self.folder, self._manifest)
            return
        if not resume:
            raise ValueError(
                f"sweep: `folder` must be new or empty, but {self.folder} holds a sweep; go on with it by resume=True "
                f"(--resume), or name another folder"
            )
        self._manifest = manifests.read(self.folder)
        if lines := manifests.differences(self._manifest["config"], self.config):
            raise _checks.ConfigMismatchError(
                f"{self.folder} is of another configuration; repeat the settings of then, or name another folder:\n  "
                + "\n  ".join(lines)
            )
        then, now = manifests.deciding(self._manifest["environment"]), manifests.deciding(self.environment)
        if lines := manifests.differences(then, now):
            if not allow_mixed:
                raise _checks.EnvironmentMismatchError(
                    f"{self.folder} was made elsewhere, where the same runs may give other bits; go on there, or pass "
                    f"allow_mixed=True (--allow-mixed), or name another folder:\n  " + "\n  ".join(lines)
                )
            if manifests.digest(now) not in manifests.environments(self._manifest):
                self._manifest["mixed_with"].append(self.environment)
                manifests.write(self.folder, self._manifest)
        _files.remove_leftovers(self.folder)

    def rows_done(self) -> set[int]:
        """The numbers of all finished runs; a file that cannot be trusted is kept aside, and its runs are pending.

        Returns:
          The numbers.

        Warns:
          UserWarning: for each file that is truncated, damaged or of another sweep, with the name that it gets.
        """
        done: set[int] = set()
        for path in _chunk_files(self.folder):
            try:
                done.update(_read_chunk(path, self._manifest).rows)
            except FileNotFoundError:
                continue
            except (_checks.CorruptResultError, OSError) as error:
                aside = path.with_name(f"{path.name}.corrupt-{secrets.token_hex(3)}")
                reason = error if isinstance(error, _checks.CorruptResultError) else error.strerror
                os.rename(path, aside)
                _files.sync_folder(self.folder)
                warnings.warn(f"{path.name}: {reason}; kept as {aside.name}, its runs are pending", stacklevel=2)
        return done

    def write(
        self,
        first_block: int,
        rows: Sequence[int],
        status: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        seconds: float,
    ) -> None:
        """Keeps finished runs: on return they are on disk.

        Args:
          first_block: names the file; of no other finished runs.
          rows: the numbers of the runs.
          status: "ok" or "diverged", for each.
          outputs: names to arrays with one row for each.
          seconds: that they took.

        Raises:
          TypeError, ValueError: the arguments do not fit together.
          OSError: the disk refuses; no part of the file is left.
        """
        chunk = chunks.Chunk(
            first_block,
            self._manifest["config_sha256"],
            manifests.digest(manifests.deciding(self.environment)),
            tuple(rows),
            tuple(status),
            dict(outputs),
        )
        _files.write_whole(self.folder / f"chunk-{first_block:06d}.irs", chunks.encode(chunk))
        line = json.dumps({"chunk": first_block, "runs": len(rows), "seconds": round(float(seconds), 3)})
        handle = os.open(self.folder / "times.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(handle, "wb") as file:
            # The line before may have been cut short.
            file.write(f"\n{line}".encode())

    def read(self) -> Rows:
        """All finished runs.

        Returns:
          In the order of their numbers.

        Raises:
          CorruptResultError: a file is damaged, or files do not fit together.
        """
        return _read_rows(self.folder, self._manifest)


def load(folder: str | os.PathLike) -> Stored:
    """What a folder holds, for a reader; takes no lock, and a process that works in it does not disturb.

    Args:
      folder: of a sweep, finished or not.

    Returns:
      Configuration, environment and the finished runs.

    Raises:
      CorruptResultError: it holds no sweep, or a file is damaged.

    Example:
      >>> load("no such folder")
      Traceback (most recent call last):
      implicit_reg._checks.errors.CorruptResultError: no such folder holds no sweep: there is no run.json
    """
    manifest = manifests.read(pathlib.Path(folder))
    environment = manifest["environment"]
    if manifest["mixed_with"]:
        environment = environment | {"mixed_with": manifest["mixed_with"]}
    return Stored(manifest["config"], environment, *_read_rows(pathlib.Path(folder), manifest))


def _refuse_foreign(folder: pathlib.Path) -> None:
    """A folder with files of others in it is no place for a sweep, and is left as it is."""
    if not folder.is_dir() or os.path.lexists(folder / "run.json"):
        return
    foreign = [path.name for path in folder.iterdir() if path.name != ".lock" and not _files.is_leftover(path.name)]
    if foreign:
        raise ValueError(f"sweep: `folder` must be new or empty, but {folder} holds {min(foreign)!r}; name another one")


def _chunk_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if _CHUNK.fullmatch(path.name))


def _read_chunk(path: pathlib.Path, manifest: Mapping[str, Any]) -> chunks.Chunk:
    chunk = chunks.decode(_files.read_whole(path))
    if chunk.config != manifest["config_sha256"] or chunk.environment not in manifests.environments(manifest):
        raise _checks.CorruptResultError("of another sweep")
    if chunk.index != int(_CHUNK.fullmatch(path.name)[1]):
        raise _checks.CorruptResultError(f"holds what chunk-{chunk.index:06d}.irs should")
    return chunk


def _read_rows(folder: pathlib.Path, manifest: Mapping[str, Any]) -> Rows:
    parts: list[chunks.Chunk] = []
    for path in _chunk_files(folder):
        try:
            parts.append(_read_chunk(path, manifest))
        except FileNotFoundError:
            continue  # kept aside by a process that works here, since the folder was listed
        except (_checks.CorruptResultError, OSError) as error:
            reason = error if isinstance(error, _checks.CorruptResultError) else error.strerror
            raise _checks.CorruptResultError(f"{path}: {reason}; resume the sweep to compute it again") from error
    kinds = [{name: (array.dtype, array.shape[1:]) for name, array in part.outputs.items()} for part in parts]
    for part, kind in zip(parts, kinds, strict=True):
        if kind != kinds[0]:
            raise _checks.CorruptResultError(f"{folder}: chunk-{part.index:06d}.irs has other outputs than the first")
    rows = [row for part in parts for row in part.rows]
    # Two processes without a working lock may have written the same runs twice: the same numbers.
    order = np.unique(np.asarray(rows, np.int64), return_index=True)[1]
    status = [word for part in parts for word in part.status]
    outputs = {
        name: np.concatenate([part.outputs[name] for part in parts])[order] for name in (kinds[0] if kinds else ())
    }
    seconds = _seconds(folder, {part.index for part in parts})
    return Rows([rows[k] for k in order], [status[k] for k in order], outputs, seconds)


def _seconds(folder: pathlib.Path, present: set[int]) -> float:
    """The time of the files that are there, as far as it is known."""
    times: dict[int, float] = {}
    with contextlib.suppress(OSError):
        for line in _files.read_whole(folder / "times.jsonl").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                entry = json.loads(line)
                times[int(entry["chunk"])] = float(entry["seconds"])
    return sum((times[index] for index in sorted(present & set(times))), 0.0)
