"""JSON-lines files to which a run appends, and from which it resumes after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import jax
from absl import logging

from clipseg_jax.core.files import json_text, write_atomic
from input_pipeline.places import is_remote
from input_pipeline.walk import open_regular

_REWRITTEN_S = 10.0  # an object of a bucket takes one write a second, and is written whole


def read_lines(path: Path, **kinds: type) -> list[dict[str, Any]]:
    """The records of a .jsonl file, without damaged lines, such as the last one after a kill.

    Args:
      path: the file; none has no records.
      kinds: name -> Python type of the values that a record must have.
    """
    lines = _content(path).split(b"\n") if path.exists() else []
    records = [parse_line(line, kinds) for line in lines if line.strip()]
    whole = [record for record in records if record is not None]
    if damaged := len(records) - len(whole):
        logging.warning("%s: %d damaged lines, as a kill leaves, are left out", path, damaged)
    return whole


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def parse_line(line: bytes, kinds: Mapping[str, type]) -> dict[str, Any] | None:
    """The record of a line; None for a damaged one, see `read_lines`."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    whole = all(type(record.get(name)) is kind for name, kind in kinds.items())
    return record if whole else None


def json_line(record: Mapping[str, Any]) -> str:
    """A record as a line; numbers that are not finite become null."""
    return json_text(record) + "\n"


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Writes `records` to a .jsonl file atomically."""
    text = "".join(map(json_line, records))
    return write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def read_partial(folder: Path, **kinds: type) -> list[dict[str, Any]]:
    """The partial results in `folder` of all processes of interrupted runs; see `read_lines`."""
    return [line for path in partial_files(folder) for line in read_lines(path, **kinds)]


def append_partial(folder: Path) -> TextIO | RemoteLines:
    """Opens this process's file of partial results for appending, after its complete lines.

    Every line reaches the disk cache at once, whatever ends the process; in a bucket it is there
    within seconds.
    """
    path = folder / f"{jax.process_index()}.partial.jsonl"
    write_lines(path, read_lines(path))
    if is_remote(path):
        return RemoteLines(path)
    return path.open("a", encoding="utf-8", buffering=1)


class RemoteLines:
    """Appends to an object of a bucket, by writing it again: at most every ten seconds, and last.

    A killed process loses the lines since then.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lines = [_content(path)] if path.exists() else []
        self._is_written, self._due = True, 0.0

    def write(self, text: str) -> int:
        """Adds text, which ends a line; returns its length."""
        self._lines.append(text.encode())
        self._is_written = False
        if time.monotonic() >= self._due:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Writes what was added.

        Raises:
          CannotWrite: the bucket does not take it.
        """
        if not self._is_written:
            content = b"".join(self._lines)
            write_atomic(self._path, lambda file: file.write(content))
            self._lines, self._is_written = [content], True
            self._due = time.monotonic() + _REWRITTEN_S

    def close(self) -> None:
        """Writes what was added."""
        self.flush()

    def __enter__(self) -> RemoteLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def partial_files(folder: Path) -> list[Path]:
    """The files of partial results in `folder`."""
    return sorted(folder.glob("*.partial.jsonl"))
