"""A local folder whose files are copied to a bucket, for libraries that write to disks alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from input_pipeline.writing import write_atomic


class CopiedFolder:
    """Files below `local`, a temporary folder, are copied to `remote`; a growing one again."""

    def __init__(self, remote: Path):
        self._remote = remote
        self._temporary = tempfile.TemporaryDirectory(prefix="clipseg_jax-")
        self.local = Path(self._temporary.name)
        self._sizes: dict[Path, int] = {}  # of what was copied
        self._at = time.monotonic()

    def flush(self, every_s: float = 0.0) -> None:
        """Copies what has grown, unless it was done within the last `every_s` seconds.

        Raises:
          CannotWrite: the bucket does not take it.
        """
        if time.monotonic() < self._at + every_s:
            return
        for path in sorted(path for path in self.local.rglob("*") if path.is_file()):
            content = path.read_bytes()
            if self._sizes.get(path) != len(content):
                write_atomic(
                    self._remote / path.relative_to(self.local).as_posix(),
                    lambda file, content=content: file.write(content),  # type: ignore[misc]
                )
                self._sizes[path] = len(content)
        self._at = time.monotonic()

    def close(self) -> None:
        """Copies the rest, and removes the local files."""
        self.flush()
        self._temporary.cleanup()
