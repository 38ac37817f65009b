"""The cache folder: where it is, which files in it are as they must be, and one download at a time.

<cache>/*.safetensors            converted CLIPs (`clip/cache.py`)
<cache>/weights/<file>           downloaded by a known name
<cache>/weights/<sha256>/<file>  downloaded from an address
<file>.json                      beside it: address, sha256 and size of what was accepted
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from clipseg_jax.core.cache_folder import VARIABLE, cache_folder
from clipseg_jax.core.files import read_json, write_json
from clipseg_jax.core.run_lock import NO_FLOCK
from input_pipeline import commands
from input_pipeline.text_lists import escaped
from input_pipeline.walk import open_regular
from input_pipeline.writing import CannotWrite
from weights_convert.errors import CheckpointError
from weights_convert.named.names import KNOWN, Weights

_LOCKS = ".locks"
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


def location(weights: Weights) -> Path:
    """Where the file of `weights` is, or is to be.

    Raises:
      CheckpointError: there is no place for it.
    """
    folder = cache_folder()
    if folder is None:
        raise CheckpointError(
            f"no folder to keep {weights.name} in: this user has no home directory; set {VARIABLE}"
        )
    folder /= "weights"
    known = KNOWN.get(weights.name) == weights
    return (folder if known else folder / weights.sha256) / weights.file


def is_ready(target: Path, weights: Weights) -> bool:
    """Whether `target` is there and has the published checksum; files put there by hand count.

    A file that was checked before and has not changed since is not read again. Without a full
    published checksum it must have that of the first file that was accepted.

    Raises:
      CheckpointError: it is another file. OSError: it cannot be read.
    """
    if not target.exists():
        return False
    with open_regular(target) as file:
        state = os.fstat(file.fileno())
        stamp = [state.st_size, state.st_mtime_ns]
        known = accepted(target)
        if known.get("stamp") == stamp and known.get("sha256", "-").startswith(weights.sha256):
            return True
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if wrong := fault(weights, target, digest, state.st_size):
        raise CheckpointError(
            f"{target} is not {weights.name}: {wrong}; delete it, and it is downloaded again"
        )
    accept(target, weights, digest)
    return True


def fault(weights: Weights, target: Path, sha256: str, size: int) -> str:
    """How a file differs from what is published of `weights` and was accepted before; or ""."""
    before = accepted(target).get("sha256", "")
    if not sha256.startswith(weights.sha256):
        digits = "" if len(weights.sha256) == 64 else "that begins with "
        return f"its sha256 is {sha256}, expected one {digits}{weights.sha256}"
    if before and sha256 != before:
        return (
            f"its sha256 is {sha256}, that of the file that was downloaded first {before} "
            f"(if the publisher has replaced it, delete {_record(target)})"
        )
    if weights.size is not None and size != weights.size:
        return f"it has {size:,} bytes, expected {weights.size:,}"
    return ""


def accepted(target: Path) -> dict[str, Any]:
    """What is recorded beside `target`; {} if nothing readable is."""
    try:
        record = read_json(_record(target), "delete it")
    except (ValueError, OSError):
        return {}
    return record if isinstance(record.get("sha256"), str) else {}


def accept(target: Path, weights: Weights, sha256: str) -> None:
    """Records `target`, whose checksum is `sha256`; a cache that is read-only stays as it is."""
    state = target.stat()
    stamp = [state.st_size, state.st_mtime_ns]
    record = {"address": weights.address, "sha256": sha256, "stamp": stamp}
    with contextlib.suppress(OSError):
        write_json(_record(target), record)


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


class Lock:
    """Context manager: while it is open, no other process downloads the same file.

    The lock is the kernel's `flock`, which ends with its process, however that ends. The second
    process says for whom it waits. On a file system without such locks there is none, and `held` is
    False.
    """

    def __init__(self, target: Path, name: str):
        self.path = target.parent / _LOCKS / f"{target.name}.lock"
        self.name = name
        self.held = True
        self._file: int | None = None

    def __enter__(self) -> Lock:
        """Waits for the lock.

        Raises:
          CannotWrite: the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, _OPEN, 0o666)
        except OSError as error:
            raise CannotWrite(
                f"cannot write {self.path.parent.parent}: {error.strerror or error}; set "
                f"{VARIABLE} to a folder that this user may write to"
            ) from error
        with contextlib.suppress(OSError):  # another user may share the cache
            os.fchmod(self._file, 0o666)
        try:
            self._acquire(self._file)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _acquire(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                self.held = False
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            commands.say(
                f"{self.name}: waiting for {_holder(file)}, which downloads it", error=True
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        os.ftruncate(file, 0)
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        os.pwrite(file, json.dumps(me).encode(), 0)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def _holder(file: int) -> str:
    try:
        content = json.loads(os.pread(file, 4096, 0))
        return escaped(f"process {int(content['pid'])} on {str(content['host'])[:80]}")
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
