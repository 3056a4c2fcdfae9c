"""One file of finished runs as bytes: an uncompressed npz, then its SHA-256, its length and a magic word.

The members of the npz are `m`, a JSON header in ASCII, and `a0`, `a1`, ...: numpy takes some names of arrays for its
own arguments, so the names are in the header. The bytes hold no time and no name of a machine: the same numbers are the
same file. The checksum is looked at before anything is parsed; it tells accidents, and proves no origin, so that a
well-formed file from elsewhere is judged by its directory before an array is made.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from implicit_reg import _checks

MAGIC = b"IRSWEEP1"
VERSION = 1
_TRAILER = struct.Struct("<32sQ8s")
_MEMBER = re.compile(r"(m|a[0-9]{1,4})\.npy", re.ASCII)
_MAX_ARRAYS = 999


class Chunk(NamedTuple):
    """Finished runs: `index` names the file, `rows` their numbers in the sweep, one `status` each, and the outputs.

    `config` and `environment` are the SHA-256 of what the runs depend on.
    """

    index: int
    config: str
    environment: str
    rows: tuple[int, ...]
    status: tuple[str, ...]
    outputs: dict[str, np.ndarray]


def encode(chunk: Chunk) -> bytes:
    """The bytes of a file.

    Args:
      chunk: finished runs; each output has one row for each of `rows`.

    Returns:
      The bytes, a pure function of the chunk.

    Raises:
      TypeError: an output is of no number or boolean.
      ValueError: rows, status and outputs do not fit together.

    Example:
      >>> chunk = Chunk(0, "c", "e", (0, 1), ("ok", "ok"), {"loss": np.array([0.5, 0.25])})
      >>> decode(encode(chunk)).outputs
      {'loss': array([0.5 , 0.25])}
    """
    rows = [int(row) for row in chunk.rows]
    if not rows or len(chunk.status) != len(rows) or len(set(rows)) != len(rows) or min(rows) < 0:
        raise ValueError(f"sweep: a chunk needs distinct rows and one status for each, got {rows}, {chunk.status}")
    outputs = _arrays(chunk.outputs, len(rows))
    header = {
        "version": VERSION,
        "index": int(chunk.index),
        "config": chunk.config,
        "environment": chunk.environment,
        "rows": rows,
        "status": list(chunk.status),
        "arrays": [[name, array.dtype.name, list(array.shape)] for name, array in outputs.items()],
    }
    text = np.frombuffer(json.dumps(header, allow_nan=False).encode("ascii"), np.uint8)
    stored = {"m": text} | {f"a{k}": _plain(array) for k, array in enumerate(outputs.values())}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **stored)
    payload = buffer.getvalue()
    return payload + _TRAILER.pack(hashlib.sha256(payload).digest(), len(payload), MAGIC)


def decode(data: bytes) -> Chunk:
    """The runs in the bytes of a file.

    Args:
      data: all bytes of it.

    Returns:
      What was given to `encode`.

    Raises:
      CorruptResultError: it is truncated, damaged, or no file of this library; the message says which.

    Example:
      >>> decode(b"PK")
      Traceback (most recent call last):
      implicit_reg._checks.errors.CorruptResultError: truncated
    """
    payload = memoryview(data)[: -_TRAILER.size]
    if len(data) <= _TRAILER.size:
        raise _checks.CorruptResultError("truncated")
    checksum, length, magic = _TRAILER.unpack(data[-_TRAILER.size :])
    if magic != MAGIC:
        raise _checks.CorruptResultError("truncated, or not a file of this library")
    if length != len(payload) or hashlib.sha256(payload).digest() != checksum:
        raise _checks.CorruptResultError("damaged: its checksum does not match")
    try:
        return _parse(io.BytesIO(payload))
    except _checks.CorruptResultError:
        raise
    except Exception as error:  # zipfile, numpy and json have many words for "this is not what was written"
        raise _checks.CorruptResultError(f"not a file of this library ({type(error).__name__}: {error})") from error


def _arrays(outputs: Mapping[str, Any], num_rows: int) -> dict[str, np.ndarray]:
    if len(outputs) > _MAX_ARRAYS:
        raise ValueError(f"sweep: `fn` must return at most {_MAX_ARRAYS} arrays, got {len(outputs)}")
    arrays = {name: np.asarray(array) for name, array in outputs.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc" and array.dtype != jnp.bfloat16:
            raise TypeError(f"sweep: output {name!r} must hold numbers or booleans, got dtype {array.dtype}")
        if array.shape[:1] != (num_rows,):
            raise ValueError(f"sweep: output {name!r} must have {num_rows} rows, got shape {array.shape}")
    return arrays


def _plain(array: np.ndarray) -> np.ndarray:
    """numpy would write bfloat16 as two bytes without a meaning; little-endian and in C order, for equal bytes."""
    if array.dtype == jnp.bfloat16:
        array = array.view(np.uint16)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _parse(file: io.BytesIO) -> Chunk:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _judge_directory(members, file.getbuffer().nbytes)
        for member in members:
            with archive.open(member) as stream:
                _judge_array(stream, member)
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        header = json.loads(bytes(stored["m"]).decode("ascii"))
        names = header["arrays"]
        if header["version"] != VERSION:
            raise _checks.CorruptResultError(f"of version {header['version']}, wanted {VERSION}")
        if {f"a{k}" for k in range(len(names))} | {"m"} != set(stored.files) or len({n for n, *_ in names}) < len(
            names
        ):
            raise _checks.CorruptResultError("its header and its arrays disagree")
        outputs = {name: _restore(stored[f"a{k}"], dtype, shape) for k, (name, dtype, shape) in enumerate(names)}
    rows, status = header["rows"], header["status"]
    whole = all(type(row) is int and row >= 0 for row in [*rows, header["index"]]) and len(set(rows)) == len(rows) > 0
    texts = [*status, *outputs, header["config"], header["environment"]]
    if not whole or not all(isinstance(text, str) for text in texts) or len(status) != len(rows):
        raise _checks.CorruptResultError("its header makes no sense")
    if any(array.shape[:1] != (len(rows),) for array in outputs.values()):
        raise _checks.CorruptResultError("its header and its arrays disagree")
    return Chunk(header["index"], header["config"], header["environment"], tuple(rows), tuple(status), outputs)


def _judge_directory(members: Sequence[zipfile.ZipInfo], length: int) -> None:
    """Stored, few, named as ours are, and together no larger than the file."""
    names = [member.filename for member in members]
    stored = all(m.compress_type == zipfile.ZIP_STORED and m.compress_size == m.file_size for m in members)
    stored = stored and not any(m.flag_bits & 1 for m in members)  # encrypted
    known = all(_MEMBER.fullmatch(name) for name in names) and len(set(names)) == len(names)
    if not (stored and known and len(names) <= _MAX_ARRAYS + 1 and sum(m.file_size for m in members) <= length):
        raise _checks.CorruptResultError("not a file of this library: its directory is foreign")


def _judge_array(stream: Any, member: zipfile.ZipInfo) -> None:
    """The header of an array may claim terabytes, or objects; neither is allocated."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise _checks.CorruptResultError(f"not a file of this library: {member.filename} has format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "biufc" or math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
        raise _checks.CorruptResultError(f"not a file of this library: {member.filename} is not what it claims to be")


def _restore(array: np.ndarray, dtype: str, shape: Sequence[int]) -> np.ndarray:
    if dtype == "bfloat16" and array.dtype == np.uint16:
        array = array.view(jnp.bfloat16)
    if array.dtype.name != dtype or list(array.shape) != shape:
        raise _checks.CorruptResultError("its header and its arrays disagree")
    return array
