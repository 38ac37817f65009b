"""One run at a time in a folder of results."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from input_pipeline.writing import CannotWrite

NAME = ".run.lock"
# What file systems without `flock` answer.
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
_log = logging.getLogger(__name__)


class RunLock:
    """Context manager: while it is open, no other run can lock `folder`.

    The file `.run.lock` in the folder names the host and the process, for the error message. The
    lock itself is the kernel's `flock`, which ends with the process, however that ends; the hosts
    of a network file system share it. On file systems without it the existing file is the lock,
    and counts as stale if its process ran on this host and is gone.

    Of several processes of one run only the first takes the lock.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / NAME
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        """Creates the folder if needed, and takes its lock.

        Raises:
          ValueError: another run uses the folder; names its host and process, and the lock.
          OSError: the folder is not writable.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._acquire()
            me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _start(os.getpid())}
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(me).encode(), 0)
        except OSError as error:
            self._release()
            raise CannotWrite(
                f"cannot write {self.path}: {error.strerror or error}; free space there or choose "
                "another folder that this user may write to"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()

    def _acquire(self) -> int:
        """The open and locked file."""
        while True:
            file, new = _open(self.path)
            try:
                with contextlib.suppress(OSError):  # another user may run here later
                    os.fchmod(file, 0o666)
                holder = _holder(file)
                if not _flock(file, self.path, holder) and not new and _alive(holder):
                    raise in_use(self.path, holder)
                # Between `open` and `flock` the holder may have ended and removed the file.
                if _same_file(file, self.path):
                    if holder and holder.get("host") != socket.gethostname():
                        _log.warning("%s: a run on %s did not end", self.path, holder.get("host"))
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _release(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            if _same_file(self._file, self.path):
                self.path.unlink()
        os.close(self._file)
        self._file = None


def _open(path: Path) -> tuple[int, bool]:
    """The open file, and whether this call made it."""
    try:
        return os.open(path, _OPEN | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, _OPEN, 0o666), False


def _flock(file: int, path: Path, holder: dict[str, Any]) -> bool:
    """Takes the kernel's lock; False where the file system has none.

    Raises:
      ValueError: another run has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise in_use(path, holder) from None
        if error.errno in NO_FLOCK:
            return False
        raise
    return True


def in_use(path: Path, holder: dict[str, Any]) -> ValueError:
    """The error of a run that finds the lock `path` held by another."""
    who = f"on {holder.get('host')}, process {holder.get('pid')}" if holder else "that just began"
    return ValueError(
        f"{path.parent} is in use by a run {who}; wait for its end or choose another folder (if no "
        f"such process exists, delete {path})"
    )


def _holder(file: int) -> dict[str, Any]:
    """What the lock's file says: host, pid, started; empty if it says nothing readable."""
    try:
        content = json.loads(os.pread(file, 4096, 0).decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the process may still run, as far as this host knows."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or type(pid) is not int or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return _start(pid) == holder.get("started")


def _start(pid: int) -> str:
    """When a process began, in clock ticks since the system did; "" where that is not known.

    A number of a process is used again, in a restarted container even at once.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2]
        return after_name.split()[19]
    except (OSError, IndexError):
        return ""


def _same_file(file: int, path: Path) -> bool:
    """Whether `path` still is the open file."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except OSError:
        return False
