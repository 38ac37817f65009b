"""Files written whole or not at all, so that a run that was stopped can go on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


class CannotWrite(RuntimeError):  # noqa: N818
    """A file can't be written, and the next ones neither: disk full, no permission."""


def is_whole_png(path: Path) -> bool:
    """Whether a file ends as a PNG does; one that was cut short doesn't."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside `path` and moves it there: nobody ever sees half of it.

    Raises:
      CannotWrite: the folder can't be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write(temporary, content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CannotWrite(
            f"cannot write {path}: {error.strerror or error}; free space there or get the right "
            f"to write, and run the command again: it goes on where it stopped"
        ) from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
