"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Calls `write` with a temporary file, then moves it to `path` in one step.

    Raises:
      OSError: the folder cannot be written or the disk is full; names the path, leaves nothing.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _explained(error, path) from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _explained(error, path) from error
        raise
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Writes `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=False) + "\n"
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def check_writable(folder: str | Path) -> Path:
    """Makes `folder` and proves that a file can be written there, before hours of work.

    Raises:
      OSError: it cannot; says why and what to do.
    """
    folder = Path(folder)
    write_atomic(folder / ".writable", lambda file: file.write(b"")).unlink()
    return folder


def _explained(error: OSError, path: Path) -> OSError:
    return type(error)(
        error.errno,
        f"cannot write {path}: {error.strerror or error}; free space there or choose another "
        "folder that this user may write",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
