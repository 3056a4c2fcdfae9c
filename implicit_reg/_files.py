"""Files that outlive a killed process: whole or absent, never half; and one writer to a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import secrets
import socket
import warnings
from collections.abc import Iterator

from implicit_reg._checks import LockedError

# This host, in a form that a file name can hold.
HOST = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname()) or "host"
_LEFTOVER = re.compile(
    r"\.(?P<stem>[A-Za-z0-9-]+)\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>[0-9]+)\.[0-9a-f]{8}\.tmp", re.ASCII
)
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """Holds a folder for one process; the lock goes with the process, however it ends.

    Args:
      folder: an existing folder; a file `.lock` is made in it and says who holds it.

    Yields:
      Nothing.

    Raises:
      LockedError: another process holds it; the message says which.
      OSError: the file cannot be made, or is a symbolic link.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder, lock(folder):
      ...     os.listdir(folder)
      ['.lock']
    """
    import fcntl

    # Never through a link: what it points to would be emptied.
    handle = os.open(pathlib.Path(folder) / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(handle, "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid, _, host = file.readline(300).strip().partition(" ")
            who = f" (pid {pid} on {host})" if host else ""
            raise LockedError(
                f"{folder} is in use by another process{who}; wait for it, or name another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{folder}: this file system has no locks; start no second process on it", stacklevel=3)
        file.truncate(0)
        file.write(f"{os.getpid()} {HOST}\n")
        file.flush()
        yield


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that is there whole, on disk, or not at all: temporary name, fsync, rename, fsync of the folder.

    Args:
      path: its name; letters, digits and dashes before the first dot.
      data: its bytes.

    Raises:
      OSError: the disk refuses; what was there before is untouched.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_whole(pathlib.Path(folder) / "run.json", b"{}")
      ...     os.listdir(folder)
      ['run.json']
    """
    stem = path.name.partition(".")[0]
    temporary = path.with_name(f".{stem}.{HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: str | os.PathLike) -> None:
    """Brings the names in a folder to the disk, as fsync does with the bytes of a file.

    Args:
      folder: an existing folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_whole(path: pathlib.Path) -> bytes:
    """The bytes of a regular file, never through a symbolic link.

    Args:
      path: the file.

    Returns:
      Its bytes.

    Raises:
      OSError: it is missing, a link, or no regular file.
    """
    # A pipe of that name must not hang us.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        return file.read()


def is_leftover(name: str) -> bool:
    """Whether a name is that of a temporary file of `write_whole`.

    Args:
      name: without its folder.

    Returns:
      Whether it is.

    Example:
      >>> is_leftover(".run.a-host.123.0a1b2c3d.tmp"), is_leftover("run.tmp")
      (True, False)
    """
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed processes of this host left under temporary names; the caller holds the lock.

    Args:
      folder: an existing folder.
    """
    for path in folder.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        # Our own number: an earlier process had it, as all do that are alone in their container.
        if match and match["host"] == HOST and (int(match["pid"]) == os.getpid() or not _alive(int(match["pid"]))):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
