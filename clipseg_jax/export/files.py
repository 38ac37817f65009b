"""The two files of an exported model: the function, and its record as JSON beside it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from clipseg_jax.core.files import check_writable, write_atomic, write_json


def record_path(path: Path) -> Path:
    """Where the record of the file `path` is."""
    return path.with_name(f"{path.name}.json")


def check_path(path: Any, *, overwrite: bool) -> Path:
    """The path of a file that may be written, checked before the work.

    Raises:
      ValueError: no path, a folder, a device, or files that exist already without `overwrite`.
      OSError: its folder cannot be written.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
    if not text.strip() or "\0" in text:
        raise ValueError(f"path is {path!r}; give the name of a file to write")
    path = Path(text)
    if text.endswith(os.sep) or path.is_dir():
        raise ValueError(f"{text} is a folder; give the name of a file in it")
    for each in (path, record_path(path)):
        if os.path.lexists(each) and not each.is_file():
            raise ValueError(f"{each} is no regular file; give another name")
        if each.exists() and not overwrite:
            raise ValueError(f"{each} exists already; give another name, or overwrite")
    if path.parent.is_dir():
        check_writable(path.parent)
    return path


def write(path: Path, content: bytes, record: dict[str, Any]) -> None:
    """Both files, or none where there was none: the record's checksum tells which belong together.

    Raises:
      OSError: one cannot be written.
    """
    new = not path.exists()
    write_atomic(path, lambda file: file.write(content))
    try:
        write_json(record_path(path), record)
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
