"""Atomic writes of files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Calls `write` with a temporary file and then renames it to `path`; returns `path`.

    Raises:
      OSError: the folder is not writable or the disk is full; the message names the path, and the
        temporary file is removed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _with_remedy(error, path) from error
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
            raise _with_remedy(error, path) from error
        raise
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Writes `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=False) + "\n"
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def check_writable(folder: str | Path) -> Path:
    """Creates `folder` and checks that files can be written there; returns it.

    Raises:
      OSError: the folder is not writable; the message says why and what to do.
    """
    folder = Path(folder)
    write_atomic(folder / ".writable", lambda file: file.write(b"")).unlink()
    return folder


def _with_remedy(error: OSError, path: Path) -> OSError:
    return type(error)(
        error.errno,
        f"cannot write {path}: {error.strerror or error}; free space there or choose "
        "another folder with write permission",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
