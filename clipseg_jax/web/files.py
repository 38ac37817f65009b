"""The page's temporary files: one private folder, which ends with the server."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path


class Files:
    """A folder for uploads and for what visitors look at or download.

    Only names that cannot be guessed lead to its files.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="clipseg_web_")).resolve()  # for this user alone

    def new(self, suffix: str) -> Path:
        """A new path in a folder of its own, whose last part is `suffix`."""
        folder = self.root / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        return folder / suffix

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Removes a file below `root`, and its folder if that is empty then; others are left."""
        path = Path(os.path.realpath(path))
        if self.root not in path.parents:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        if path.parent != self.root:
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def sweep(self, *, idle_s: float, most_bytes: int, now: float | None = None) -> int:
        """Removes files that nobody removed; returns how many.

        Those of uploads that broke off, of tabs that were closed, and the library's own.

        Args:
          idle_s: files that were written longer ago go.
          most_bytes: of all files together; beyond it the oldest go.
          now: the time.
        """
        now = time.time() if now is None else now
        found = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    state = os.stat(path, follow_symlinks=False)
                    found.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in found)
        count = 0
        for written, size, path in sorted(found):
            if written < now - idle_s or total > most_bytes:
                self.remove(path)
                total -= size
                count += 1
        return count

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.root, ignore_errors=True)
