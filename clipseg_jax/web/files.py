"""The page's temporary files: one private folder, which ends with the server."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections import deque
from pathlib import Path


class Files:
    """A folder for uploads and for what visitors look at or download.

    Only names that cannot be guessed lead to its files.
    """

    def __init__(self, *, grace_s: float = 3.0) -> None:
        """`grace_s`: how long a file stays after `remove`, for browsers that still fetch it."""
        self.root = Path(tempfile.mkdtemp(prefix="clipseg_web_")).resolve()  # for this user alone
        self._grace_s = grace_s
        self._leaving: deque[tuple[float, Path]] = deque()  # since when

    def new(self, suffix: str) -> Path:
        """A new path in a folder of its own, whose last part is `suffix`."""
        folder = self.root / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        return folder / suffix

    def remove(self, path: str | os.PathLike[str], *, now: float | None = None) -> None:
        """Lets the next `sweep` but for the grace remove a file; one outside `root` is left."""
        path = Path(os.path.realpath(path))
        if self.root in path.parents:
            self._leaving.append((time.time() if now is None else now, path))

    def sweep(self, *, idle_s: float, most_bytes: int, now: float | None = None) -> int:
        """Removes what `remove` was told, and what nobody tells of; returns how many files.

        That are those of uploads that broke off, and the library's own.

        Args:
          idle_s: files that were written longer ago go.
          most_bytes: of all files together; beyond it the oldest go.
          now: the time.
        """
        now = time.time() if now is None else now
        count = 0
        while self._leaving and self._leaving[0][0] <= now - self._grace_s:
            count += _unlink(self._leaving.popleft()[1])
        found = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    state = os.stat(path, follow_symlinks=False)
                    found.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in found)
        for written, size, path in sorted(found):
            if written < now - idle_s or total > most_bytes:
                count += _unlink(Path(path))
                total -= size
        return count

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.root, ignore_errors=True)


def _unlink(path: Path) -> bool:
    """Removes a file, and its folder if that is empty then; whether it was there."""
    try:
        path.unlink()
    except OSError:
        return False
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    return True
