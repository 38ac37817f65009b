"""Atomic writes of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from input_pipeline.writing import write_atomic

__all__ = ["check_writable", "write_atomic", "write_json"]


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
