"""A file that is being downloaded: how much is there, its checksum, and how to go on with it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from clipseg_jax.core.cache_folder import VARIABLE
from clipseg_jax.core.files import read_json, write_json
from clipseg_jax.core.progress import Lines
from input_pipeline.writing import CannotWrite
from weights_convert.named.names import Weights

BLOCK = 2**18  # bytes that are read at once
_SPARE = 64 * 2**20  # bytes that stay free on the disk
_LINE_S = 30.0  # between lines of progress where nobody watches
_LINE = "{desc}: {n_fmt}B of {total_fmt}B, {elapsed} passed, {remaining} left"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Part:
    """The beginning of a file that is being downloaded, and what is needed to go on with it.

    Attributes:
      size: bytes so far. digest: their SHA-256.
      validator: what the server calls this version of the file; "": nothing.
      resumed: whether the bytes are of several requests.
    """

    def __init__(self, path: Path, weights: Weights, target: Path):
        self.path, self.weights, self.target = path, weights, target
        self._state = path.with_name(f"{path.name}.json")
        self.validator = ""
        self.size, self.digest = 0, hashlib.sha256()
        with self._writing():
            self._file: IO[bytes] = open(path, "ab+")  # noqa: SIM115
            self._file.seek(0)
            if self._is_ours():
                while block := self._file.read(BLOCK):
                    self.digest.update(block)
                    self.size += len(block)
            else:
                self._file.truncate(0)
        self.resumed = self.size > 0
        lines: dict[str, Any] = {}
        if not sys.stderr.isatty():
            lines = {
                "file": Lines(), "mininterval": _LINE_S, "maxinterval": _LINE_S,
                "bar_format": _LINE, "delay": _LINE_S,
            }  # fmt: skip
        self.bar = tqdm(
            desc=weights.name,
            total=weights.size,
            initial=self.size,
            unit="B",
            unit_scale=True,
            **lines,
        )

    def _is_ours(self) -> bool:
        """Whether what is there is of this address, and can be gone on with."""
        try:
            state = read_json(self._state, "delete it")
        except (ValueError, OSError):
            return False
        validator = state.get("validator")
        if state.get("address") != self.weights.address or not isinstance(validator, str):
            return False
        self.validator = validator
        return self.can_resume()

    def can_resume(self) -> bool:
        """Whether parts of two versions of the file would be noticed."""
        return bool(self.validator) or len(self.weights.sha256) == 64

    def expect(self, total: int | None, validator: str) -> None:
        """Notes what the server says of the file.

        Raises:
          CannotWrite: there is no space for it.
        """
        self.validator = validator
        missing = (total or self.weights.size or 0) - self.size
        with self._writing():
            free = shutil.disk_usage(self.path.parent).free
            if missing + _SPARE > free:
                raise OSError(errno.ENOSPC, f"{missing:,} bytes are needed, {free:,} are free")
            write_json(self._state, {"address": self.weights.address, "validator": validator})
        self.bar.total = total or self.bar.total

    def append(self, block: bytes) -> None:
        """Adds bytes; raises CannotWrite where the disk is full."""
        with self._writing():
            self._file.write(block)
        self.digest.update(block)
        self.size += len(block)
        self.bar.update(len(block))

    def restart(self) -> None:
        """Drops what is there."""
        with self._writing():
            self._file.truncate(0)
        self.size, self.digest, self.validator = 0, hashlib.sha256(), ""
        self.resumed = False
        self.bar.reset()

    def finish(self) -> None:
        """Moves the whole file to its place."""
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self.path, self.target)
        self._state.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes what is there."""
        for path in (self.path, self._state):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file; what is there stays for the next run."""
        with self._writing():
            self._file.close()
        if not self.size:
            self.remove()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _DISK_FULL:
                self.remove()  # it would keep the disk full
            raise CannotWrite(
                f"cannot write {self.path}: {error.strerror or error}; free space there, or set "
                f"{VARIABLE} to a folder on another disk"
            ) from error
