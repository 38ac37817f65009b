"""Files that are either whole or absent, so that an interrupted run can resume."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from input_pipeline.places import is_remote, place, write_object
from input_pipeline.walk import open_regular

# Of a file's temporary name, which is short because the file's own may be as long as names can be.
_TEMPORARY = ".writing-"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


class CannotWrite(OSError):  # noqa: N818
    """A file cannot be written, and neither can the next ones: disk full, no permission."""


def write_atomic(
    path: str | Path, write: Callable[[BinaryIO], object], *, sync: bool = True
) -> Path:
    """Calls `write` with a temporary file, then moves it to `path` in one step.

    In a bucket, where nothing is moved, the content is written as one object, which appears whole.

    Args:
      sync: wait until the content is on the disk. False, for many small files that can be made
        again: after a power failure `path` may be incomplete.

    Raises:
      CannotWrite: the folder cannot be written or the disk is full; leaves no file behind.
    """
    path = place(path)
    if is_remote(path):
        return _write_remote(path, write)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
        with os.fdopen(handle, "wb") as file:
            write(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotWrite(
                f"cannot write {path}: {error.strerror or error}; free space there or choose "
                "another folder that this user may write to, and run the command again to resume"
            ) from error
        raise
    return path


def _write_remote(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    content = io.BytesIO()
    write(content)
    try:
        write_object(path, content.getvalue())
    except OSError as error:
        raise CannotWrite(
            f"cannot write {path}: {error}; check the bucket's name, this machine's credentials "
            "and what they may write, and run the command again to resume"
        ) from error
    return path


def remove_temporary(folder: str | Path, *, below: bool = True) -> int:
    """Removes what killed runs were writing in `folder`; returns the number of files.

    For the start of the one run that uses the folder: a file that is being written would go too.

    Args:
      below: also in the folders below it.
    """
    count = 0
    if is_remote(folder):  # where an object is whole or absent
        return count
    for where, folders, names in os.walk(folder):
        if not below:
            folders.clear()
        for name in names:
            if name.startswith(_TEMPORARY):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(where, name))
                    count += 1
    return count


def is_whole_png(path: Path) -> bool:
    """Whether a file ends as a PNG does; a truncated one does not."""
    return ends_with(path, _PNG_END)


def ends_with(path: Path, end: bytes) -> bool:
    """Whether `path` is a file that ends with these bytes."""
    try:
        with open_regular(path) as file:
            file.seek(-len(end), os.SEEK_END)
            return file.read() == end
    except OSError:
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
