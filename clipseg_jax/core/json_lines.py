"""JSON-lines files to which a run appends, and from which it resumes after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from clipseg_jax.core.files import write_atomic


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file; stops at a line truncated by a kill."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Writes `records` to a .jsonl file atomically."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def read_partial(folder: Path) -> list[dict[str, Any]]:
    """The partial results in `folder` of all processes of interrupted runs."""
    return [line for path in partial_files(folder) for line in read_lines(path)]


def append_partial(folder: Path) -> TextIO:
    """Opens this process's file of partial results for appending, after its last complete line."""
    path = folder / f"{jax.process_index()}.partial.jsonl"
    write_lines(path, read_lines(path) if path.exists() else [])
    return path.open("a", encoding="utf-8")


def partial_files(folder: Path) -> list[Path]:
    """The files of partial results in `folder`."""
    return list(folder.glob("*.partial.jsonl"))
